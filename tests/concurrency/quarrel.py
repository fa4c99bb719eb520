"""Races on one mount, all at a time, and what must be true afterwards."""

import os
import shutil

from concurrency import files, listings, names
from concurrency.crowd import GRACE, LONGEST, Crowd
from differential import snapshot
from support import fsck
from support.users import in_child
from support.wait import wait_until

GROUPS = {"names": names.RACES, "files": files.RACES, "listings": listings.RACES}


def press(actor):
    """The kernel forgets what nobody uses: lookups and FORGETs in between everything else."""
    while actor.going():
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("2\n")
        actor.pause(1.0)


def quarrel(kinds, layers, overlay, options, seconds, seed, pressure=True):
    """Runs races of these kinds on `overlay`, which is not mounted yet; how many rounds they made.

    Raises Violated, or AssertionError for what is wrong in the end.
    """
    races = [kind(options) for kind in kinds]
    for race in races:
        for lower in layers.lowers:
            (lower / race.name).mkdir()
        race.build([lower / race.name for lower in layers.lowers])
    point = overlay.mount(options)

    def run():
        crowd = Crowd(seconds, seed)
        for race in races:
            race.begin(point / race.name)
        for race in races:
            crowd.group = race.name
            race.join(crowd, point / race.name)
        crowd.group = ""
        if pressure:
            crowd.add("pressure", press)
        results = crowd.run()
        for race in races:
            race.check(point / race.name, results[race.name])
        return crowd.rounds

    rounds = in_child(run, timeout=int(seconds) + LONGEST + 2 * GRACE)
    overlay.check()
    return rounds


def ended_well(overlay):
    """Unmounts voile, which holds nothing when the kernel has forgotten all, and leaves nothing in work."""

    def nothing():
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("2\n")
        state = overlay.state()
        return (state["nodes"], state["files"], state["outstanding"], state["hooked"]) == (1, 0, 0, 0)

    wait_until(nothing, lambda: f"kept: {overlay.state()}")
    overlay.umount()
    assert os.listdir(overlay.layers.work / "work") in ([], ["incompat"])


def sound(layers, options, kernel_overlay, voile_overlay):
    """The layers are in order, and the kernel and voile see the same in them."""
    if "volatile" in options:
        shutil.rmtree(layers.work / "work/incompat")
    assert fsck.complaints(layers, options) == []
    without = options.replace("passthrough=off", "").replace("volatile", "").strip(",")
    expected = fsck.shown(kernel_overlay(layers), without)
    found = fsck.shown(voile_overlay(layers), without)
    # Without an index the lower names of a hard link go their own ways.
    ignore = () if "index=on" in options else ("one device", "ino", "nlink", "d_ino wrong")
    assert snapshot.differences(expected, found, ignore) == []
