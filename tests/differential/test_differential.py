"""Every scenario on the kernel's overlayfs and on voile: same results, tree and layers; then exchanged."""

import importlib
import os
import pkgutil

import pytest

from differential import scenarios, snapshot
from differential.builder import Builder
from differential.scenario import ALL
from differential.tree import Tree
from support.users import in_child

for module in pkgutil.iter_modules(scenarios.__path__):
    importlib.import_module(f"differential.scenarios.{module.name}")


class Side:
    """One overlay with its layers, and what was seen on it."""

    def __init__(self, scenario, overlay):
        self.scenario, self.overlay, self.layers = scenario, overlay, overlay.layers
        builder = Builder(self.layers)
        self.steps = scenario.function(builder)
        next(self.steps)
        builder.settle()
        self.lowers = self.raw_lowers()
        if self.layers.upper:
            self.upper_before = snapshot.raw(self.layers.upper, times=False)

    def raw_lowers(self):
        return [snapshot.raw(lower) for lower in self.layers.lowers]

    def play(self):
        """Mount, do the steps, unmount; a scenario that raises has a mistake of its own."""
        point = self.overlay.mount(self.scenario.options)
        self.log, self.tree = in_child(lambda: self._steps(point), timeout=60)
        self.overlay.check()
        self.overlay.umount()
        origins = snapshot.handles(self.layers)
        if self.layers.upper:
            self.upper = snapshot.raw(self.layers.upper, origins, times=False)
            # The kernel keeps one whiteout there to make more of it by link(2).
            self.work = sorted(
                p for p, e in snapshot.raw(self.layers.work).items() if e["kind"] != "whiteout"
            )

    def _steps(self, point):
        os.chdir(point)
        os.umask(0o022)
        tree = Tree()
        try:
            self.steps.send(tree)
        except StopIteration:
            pass
        os.chdir(point)
        return tree.log, snapshot.merged()


def look(overlay, scenario):
    """The tree that an overlay shows of layers which somebody else has written."""
    point = overlay.mount(scenario.options)

    def in_mount():
        os.chdir(point)
        return snapshot.merged()

    tree = in_child(in_mount, timeout=60)
    overlay.umount()
    return tree


def unlike(title, lines):
    return [f"-- {title}", *lines[:25], *(["…"] if len(lines) > 25 else [])] if lines else []


@pytest.mark.parametrize("scenario", ALL.values(), ids=ALL.keys())
def test_like_the_kernel(scenario, layers, kernel_overlay, voile_overlay):
    def make():
        return layers(scenario.lowers, scenario.upper, scenario.on, scenario.lowers_on)

    oracle = Side(scenario, kernel_overlay(make()))
    oracle.play()
    ours = Side(scenario, voile_overlay(make()))
    ours.play()

    problems = unlike("steps (expected: kernel)", step_differences(oracle.log, ours.log))
    # Whether every object has the one st_dev is where voile is meant to be better on several file systems.
    ignore = {"ino", "one device"}
    problems += unlike("tree on the mount", snapshot.differences(oracle.tree, ours.tree, ignore))
    for side in (oracle, ours):
        for before, after in zip(side.lowers, side.raw_lowers()):
            problems += unlike(f"{side.overlay.name} changed a lower", snapshot.differences(before, after))
    if scenario.upper and scenario.options == "ro":
        # The kernel stores origins at lookup on a read-only mount too; voile leaves a read-only upper alone.
        problems += unlike("upper of a read-only mount", snapshot.differences(ours.upper_before, ours.upper))
    elif scenario.upper:
        problems += unlike("raw upper", snapshot.differences(oracle.upper, ours.upper))
        if oracle.work != ours.work:
            problems.append(f"-- work directory: expected {oracle.work}, got {ours.work}")
    if scenario.upper and "volatile" not in scenario.options:
        ignore = {"one device"} if scenario.ino else {"one device", "ino"}
        theirs = look(kernel_overlay(ours.layers), scenario)
        problems += unlike(
            "voile's layers mounted by the kernel (expected: what voile showed)",
            # The kernel's d_ino is wrong here and there (".." in merged directories): nothing to live up to.
            snapshot.differences(ours.tree, theirs, ignore | {"d_ino wrong"}),
        )
        mine = look(voile_overlay(oracle.layers), scenario)
        problems += unlike(
            "the kernel's layers mounted by voile (expected: what the kernel showed)",
            snapshot.differences(oracle.tree, mine, ignore),
        )
    if problems:
        pytest.fail(
            "\n".join([f"{scenario.name} ({scenario.options or 'no options'})", *problems]), pytrace=False
        )


def step_differences(expected, got):
    lines = []
    for number, (a, b) in enumerate(zip(expected, got), 1):
        if a != b:
            lines.append(f"step {number} {a[0]}: expected {a[1]!r}, got {b[1]!r}")
    if len(expected) != len(got):
        lines.append(f"{len(expected)} steps expected, {len(got)} done")
    return lines
