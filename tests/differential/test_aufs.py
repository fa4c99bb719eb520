"""Scenarios in which lower layers hide something: in the kernel's form for it, in that of AUFS for voile."""

import inspect
import os

import pytest

from differential import snapshot
from differential.builder import Builder, Layer
from differential.test_differential import ALL, Side, make, step_differences, unlike


class AufsLayer(Layer):
    """A lower layer as it was unpacked for fuse-overlayfs."""

    def whiteout(self, name):
        directory, _, name = os.fsencode(name).rpartition(b"/")
        return self.file(os.path.join(directory, b".wh." + name), b"")

    def opaque(self, name):
        return self.dir(name).file(os.path.join(os.fsencode(name), b".wh..wh..opq"), b"")


class AufsBuilder(Builder):
    def __init__(self, layers, ordinary=False):
        super().__init__(layers)
        self.lows = [AufsLayer(path) for path in layers.lowers]
        self.low = self.lows[0]


class AufsSide(Side):
    builder = AufsBuilder


def hides(scenario):
    source = inspect.getsource(scenario.function)
    return ".whiteout(" in source or ".opaque(" in source


SCENARIOS = [each for each in ALL.values() if hides(each) and not each.lowers_on]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[each.name for each in SCENARIOS])
def test_like_the_kernels_whiteouts(scenario, layers, kernel_overlay, voile_overlay):
    mine, theirs = make(scenario, layers)
    options = scenario.options
    oracle = Side(scenario, kernel_overlay(theirs), options)
    oracle.play()
    ours = AufsSide(scenario, voile_overlay(mine), ",".join(filter(None, [options, "aufs_whiteouts=on"])))
    ours.play()
    ignore = {"ino", "one device"}
    problems = unlike("steps (expected: kernel)", step_differences(oracle.log, ours.log))
    problems += unlike("tree on the mount", snapshot.differences(oracle.tree, ours.tree, ignore))
    if scenario.upper and options != "ro":
        problems += unlike("raw upper", snapshot.differences(oracle.upper, ours.upper))
    for before, after in zip(ours.lowers, ours.raw_lowers()):
        problems += unlike("voile changed a lower", snapshot.differences(before, after))
    if problems:
        pytest.fail("\n".join([f"{scenario.name} ({options})", *problems]), pytrace=False)
