"""file system x kind of mount x probe x history x call: never a false OK, never a false alarm.

One mount (two, where the history asks for a new one) goes through all histories in order, and all calls are
made after each. A cell that cannot be right is named in NOT_SEEN, and nowhere else. The errnos take turns.
"""

import errno
import os
import shutil

import pytest

from faults.faultyfs import GOOD, KINDS
from faults.places import PLACES, Place, voile
from faults.test_policy import result, status
from support import syscalls
from support.overlays import voile_missing

pytestmark = pytest.mark.skipif(voile_missing() is not None, reason=str(voile_missing()))

ERRNOS = (errno.EIO, errno.ENOSPC, errno.ETIMEDOUT)
# Probes that can be made at each place; the first is what the place gets by itself.
PROBES = {
    "fuseblk": ("overlay", "userns", "inode"),
    "plain": ("overlay", "inode"),
    "fusermount3": ("userns", "inode"),
    "userns": ("overlay", "inode"),
}
# What a probe of single files does not see: other files. (probe, history)
NOT_SEEN = {("inode", "a file outside the upper directory is lost")}


def answers(point):
    """What every call says: 0 or the errno."""
    fd = os.open(point / "file", os.O_RDWR)
    lower = os.open(point / "lower", os.O_RDONLY)
    osync = os.open(point / "osync", os.O_WRONLY | os.O_SYNC | os.O_CREAT)
    directory = os.open(point, os.O_RDONLY)
    got = {
        "fsync": result(os.fsync, fd),
        "fdatasync": result(os.fdatasync, fd),
        "fsync, lower": result(os.fsync, lower),
        "fsyncdir": result(os.fsync, directory),
        "O_SYNC": result(os.pwrite, osync, GOOD, 0),
        "voile sync": errno.EIO if voile("sync", point)[0] == 74 else 0,
    }
    if status(point)["syncfs"] == "exact":
        got["syncfs"] = result(syscalls.syncfs, directory)
    for each in (fd, lower, osync, directory):
        os.close(each)
    return got


def expected(got, number):
    # syncfs says EIO whatever was lost, as the kernel's volatile overlay; of `voile sync` the exit status is
    # looked at here.
    always_eio = ("syncfs", "voile sync")
    return {call: (number and errno.EIO) if call in always_eio else number for call in got}


class Walk:
    """Goes through the histories of one mount; `wrong` are the cells that are not what they should be."""

    def __init__(self, fs, point, layers, probe, number):
        self.fs, self.point, self.layers, self.probe, self.number = fs, point, layers, probe, number
        self.wrong = {}

    def look(self, history, number):
        if (self.probe, history) in NOT_SEEN:
            number = 0
        got = answers(self.point)
        if got != expected(got, number):
            self.wrong[history] = got

    def first_mount(self):
        self.look("an error before the mount, seen", 0)
        self.exit_status = voile("checkpoint", self.point)[0]
        self.look("after a checkpoint", 0)
        self.fs.lose(self.number, self.layers.upper / "file")
        self.look("a file of the mount is lost", self.number)
        self.fs.sync()
        self.look("somebody else has seen it, and the disk works again", self.number)
        self.failed = voile("checkpoint", self.point)[0]
        (self.point / "more").write_bytes(GOOD)
        self.look("after a checkpoint that failed", self.number)

    def second_mount(self):
        self.look("mounted again", 0)
        self.fs.lose(self.number, self.layers.base / "outside")
        self.look("a file outside the upper directory is lost", self.number)


COLUMNS = [(place, probe) for place, probes in PROBES.items() for probe in probes]


@pytest.mark.parametrize("place, probe", COLUMNS)
def test_matrix(fs, as_user, place, probe):
    number = ERRNOS[(COLUMNS.index((place, probe)) + list(KINDS).index(fs.kind)) % len(ERRNOS)]
    fs.lose(number)
    assert fs.sync() == number
    layers = fs.layers()
    layers.base.chmod(0o755)
    (layers.lowers[0] / "lower").write_bytes(GOOD)

    def first(point, layers):
        (point / "file").write_bytes(GOOD)
        walk = Walk(fs, point, layers, probe, number)
        walk.first_mount()
        # The polling may log, but to the system log.
        return walk.wrong, walk.exit_status, walk.failed

    def second(point, layers):
        walk = Walk(fs, point, layers, probe, number)
        walk.second_mount()
        return walk.wrong

    options = f"volatile,probe={probe}"
    assert Place(place, as_user, layers, options).run(first) == ({}, 0, 74)
    shutil.rmtree(layers.work / "work")
    fs.sync()
    assert Place(place, as_user, layers, options).run(second) == {}


def test_every_place_is_covered():
    assert set(PROBES) == set(PLACES)


def test_memory_has_no_errors(filesystems, as_user):
    """tmpfs writes nothing back: all is well, always."""
    from support.overlays import Layers

    layers = Layers(filesystems.directory("tmpfs"))
    (layers.lowers[0] / "lower").write_bytes(GOOD)

    def work(point, layers):
        (point / "file").write_bytes(GOOD)
        return answers(point), voile("checkpoint", point)

    got, checkpoint = Place("fuseblk", as_user, layers, "volatile").run(work)
    assert set(got.values()) == {0}
    assert checkpoint == (0, "")
