"""Every scenario on the kernel's overlayfs and on voile: same results, tree and layers; then exchanged."""

import importlib
import os
import pkgutil

import pytest

from differential import scenarios, snapshot
from differential.builder import Builder
from differential.scenario import ALL
from differential.tree import Tree
from support import fsck
from support.namespace import become_root_of_a_user_namespace
from support.overlays import KernelOverlay, VoileOverlay, voile_missing
from support.users import USER, in_child

for module in pkgutil.iter_modules(scenarios.__path__):
    importlib.import_module(f"differential.scenarios.{module.name}")


class Side:
    """One overlay with its layers, and what was seen on it."""

    builder = Builder

    def __init__(self, scenario, overlay, options):
        self.scenario, self.overlay, self.layers = scenario, overlay, overlay.layers
        self.options = options
        self.daemon = scenario.daemon if overlay.name == "voile" else ""
        builder = self.builder(self.layers, ordinary=options != scenario.options)
        self.steps = scenario.function(builder)
        next(self.steps)
        builder.settle()
        self.lowers = self.raw_lowers()
        if self.layers.upper:
            self.upper_before = snapshot.raw(self.layers.upper, times=False)

    def raw_lowers(self):
        return [snapshot.raw(lower) for lower in (*self.layers.lowers, *self.layers.datas)]

    def play(self):
        """Mount, do the steps, unmount; a scenario that raises has a mistake of its own."""
        point = self.overlay.mount(self.options, self.daemon)
        self.log, self.tree = in_child(lambda: self._steps(point), timeout=60)
        self.overlay.check()
        self.overlay.umount()
        origins = snapshot.handles(self.layers)
        if self.layers.upper:
            self.upper = snapshot.raw(self.layers.upper, origins, times=False)
            # The kernel keeps one whiteout there to make more of it by link(2).
            work = snapshot.raw(self.layers.work)
            self.complaints = fsck.complaints(self.layers, self.options)
            paths = (path for path, entry in work.items() if entry["kind"] != "whiteout")
            self.work = sorted(snapshot.index_entry(path, origins) for path in paths)

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


def look(overlay, options):
    """The tree that an overlay shows of layers which somebody else has written."""
    point = overlay.mount(options)

    def in_mount():
        os.chdir(point)
        return snapshot.merged()

    tree = in_child(in_mount, timeout=60)
    overlay.umount()
    return tree


def unlike(title, lines):
    return [f"-- {title}", *lines[:25], *(["…"] if len(lines) > 25 else [])] if lines else []


def compare(scenario, options, layers, kernel_overlay, voile_overlay):
    """Play a scenario on both, exchange the layers; lines that say what is unlike."""
    oracle = Side(scenario, kernel_overlay(layers[0]), options)
    oracle.play()
    ours = Side(scenario, voile_overlay(layers[1]), options)
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
        problems += unlike("read-only upper", snapshot.differences(ours.upper_before, ours.upper))
    elif scenario.upper:
        if scenario.raw:
            problems += unlike("raw upper", snapshot.differences(oracle.upper, ours.upper))
        for side in (oracle, ours) if scenario.clean else ():
            problems += unlike(f"check of {side.overlay.name}'s layers", side.complaints)
        if oracle.work != ours.work:
            problems.append(f"-- work directory: expected {oracle.work}, got {ours.work}")
    if scenario.upper and "volatile" not in options:
        # Without privilege nobody can find a lower object by its origin: st_ino lasts as long as the mount.
        ignore = {"one device"} if scenario.ino and options == scenario.options else {"one device", "ino"}
        theirs = look(kernel_overlay(ours.layers), options)
        problems += unlike(
            "voile's layers mounted by the kernel (expected: what voile showed)",
            # The kernel's d_ino is wrong here and there (".." in merged directories): nothing to live up to.
            snapshot.differences(ours.tree, theirs, ignore | {"d_ino wrong"}),
        )
        mine = look(voile_overlay(oracle.layers), options)
        problems += unlike(
            "the kernel's layers mounted by voile (expected: what the kernel showed)",
            snapshot.differences(oracle.tree, mine, ignore),
        )
    return problems


def step_differences(expected, got):
    lines = []
    for number, (a, b) in enumerate(zip(expected, got), 1):
        if a != b:
            lines.append(f"step {number} {a[0]}: expected {a[1]!r}, got {b[1]!r}")
    if len(expected) != len(got):
        lines.append(f"{len(expected)} steps expected, {len(got)} done")
    return lines


def make(scenario, layers):
    wanted = scenario.lowers, scenario.upper, scenario.on, scenario.lowers_on, scenario.datas
    return [layers(*wanted) for _ in range(2)]


@pytest.mark.parametrize("scenario", ALL.values(), ids=ALL.keys())
def test_like_the_kernel(scenario, layers, kernel_overlay, voile_overlay):
    problems = compare(scenario, scenario.options, make(scenario, layers), kernel_overlay, voile_overlay)
    if problems:
        pytest.fail("\n".join([f"{scenario.name} ({scenario.options})", *problems]), pytrace=False)


NOT_FOR_USERS = {
    # ACLs that name a user who does not exist in the namespace.
    "copy_up-keeps_acls",
    "xattrs-default_acls_are_inherited",
    "xattrs-default_acls_over_whiteouts",
    # The kernel's st_ino changes when a lower file gets a second name (no origin to follow); ours stays.
    "names-link_to_a_lower_file",
}
# On ext4, without options, and not about the relations of several users.
FOR_USERS = [
    scenario
    for scenario in ALL.values()
    if scenario.options in ("", "volatile")
    and not scenario.datas
    and scenario.on == "ext4"
    and not scenario.lowers_on
    and "as_user" not in scenario.function.__code__.co_names
    and scenario.name not in NOT_FOR_USERS
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("scenario", FOR_USERS, ids=[scenario.name for scenario in FOR_USERS])
def test_like_the_kernel_in_a_user_namespace(scenario, layers, as_user):
    """The same by an ordinary user, with userxattr, where the kernel's overlayfs works as well."""
    if reason := voile_missing():
        pytest.skip(reason)
    directories = make(scenario, layers)
    for each in directories:
        for path in (each.base, *each.base.iterdir()):
            os.chown(path, USER, USER)

    def inside():
        become_root_of_a_user_namespace()
        made = []

        def factory(cls):
            def new(of):
                made.append(cls(of))
                return made[-1]

            return new

        options = ",".join(filter(None, [scenario.options, "userxattr"]))
        try:
            return compare(scenario, options, directories, factory(KernelOverlay), factory(VoileOverlay))
        finally:
            for overlay in made:
                overlay.close()

    if problems := as_user(inside, fuse=True, timeout=110):
        pytest.fail("\n".join([f"{scenario.name} in a user namespace", *problems]), pytrace=False)
