"""file system x errno x kind of mount x probe x history x call: never a false OK, never a false alarm.

One mount goes through all histories in order, and all calls are made after each; histories that ask for
another mount get one. A cell that cannot be right is named in NOT_SEEN, and nowhere else. The errnos take
turns; `make matrix` tries all of them everywhere, and prints what it has counted (see matrix).
"""

import errno
import os
import shutil
import signal

import pytest

from faults import matrix
from faults.faultyfs import ARRIVES_AS, GOOD, KINDS
from faults.places import PLACES, Place, voile
from faults.test_policy import status
from support import holders, syscalls
from support.outcome import result
from support.overlays import voile_missing
from support.wait import wait_until

pytestmark = pytest.mark.skipif(voile_missing() is not None, reason=str(voile_missing()))

ERRNOS = (errno.EIO, errno.ENOSPC, errno.ETIMEDOUT, errno.EDQUOT)
# Probes that can be made at each place; the first is what the place gets by itself.
PROBES = {
    "fuseblk": ("overlay", "userns", "inode"),
    "plain": ("overlay", "inode"),
    "fusermount3": ("userns", "inode"),
    "userns": ("overlay", "inode"),
}
UNSEEN = "an error before the mount, that nobody has seen"
KILLED = "the daemon is killed"
# What a probe of single files does not see: other files, and what was before. (probe, history)
NOT_SEEN = {("inode", "a file outside the upper directory is lost"), ("inode", UNSEEN)}


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
        "syncfs": result(syscalls.syncfs, directory),
    }
    assert status(point)["syncfs"] in ("exact", "canary")
    for each in (fd, lower, osync, directory):
        os.close(each)
    return got


def expected(got, number):
    # syncfs says EIO whatever was lost, as the kernel's volatile overlay; of `voile sync` the exit status is
    # looked at here.
    always_eio = ("syncfs", "voile sync")
    return {call: (number and errno.EIO) if call in always_eio else number for call in got}


class Walk:
    """Goes through the histories of one mount. `cells`: what was seen."""

    def __init__(self, fs, place, probe, lost):
        self.fs, self.place, self.probe, self.lost = fs, place, probe, lost
        self.number = ARRIVES_AS.get(lost, lost)
        self.cells = []

    def run(self, go_through):
        """With a mount."""

        def work(point, layers):
            self.point, self.layers = point, layers
            go_through()
            return self.cells

        self.cells = self.place.run(work)  # perhaps a child's

    def found(self, history, call, got, wanted):
        listed = (self.probe, history) in NOT_SEEN
        cell = (self.fs.kind, self.lost, self.place.name, self.probe, history, call, got, wanted, listed)
        self.cells.append(matrix.Cell(*cell))

    def look(self, history, number):
        got = answers(self.point)
        wanted = expected(got, number)
        for call in got:
            self.found(history, call, got[call], wanted[call])

    def start_over(self):
        """What container engines do before each mount, and what somebody does who wants to know."""
        shutil.rmtree(self.place.layers.work / "work")
        self.fs.sync()
        # There is still the record of the last mount.
        error = holders.read(self.place.layers)["error"]
        self.place.warns = "had lost data" if error != "0" else None

    def mount_with_unseen_error(self):
        """Refused where the probe can tell."""
        self.fs.lose(self.lost)
        got = self.place.attempt()
        refused = errno.EIO if got[0] == 32 and "has lost data before and nobody was told" in got[1] else 0
        assert refused or got == (0, "")
        self.found(UNSEEN, "mount", refused, errno.EIO)
        if not refused:
            self.start_over()
        else:
            assert self.fs.sync() == self.number

    def first_mount(self):
        (self.point / "file").write_bytes(GOOD)
        self.look("an error before the mount, seen", 0)
        self.found("after a checkpoint", "voile checkpoint", voile("checkpoint", self.point)[0], 0)
        self.look("after a checkpoint", 0)
        self.fs.lose(self.lost, self.layers.upper / "file")
        self.look("a file of the mount is lost", self.number)
        self.fs.sync()
        self.look("somebody else has seen it, and the disk works again", self.number)
        failed = "after a checkpoint that failed"
        self.found(failed, "voile checkpoint", voile("checkpoint", self.point)[0], 74)
        (self.point / "more").write_bytes(GOOD)
        self.look(failed, self.number)

    def second_mount(self):
        self.look("mounted again", 0)
        self.fs.lose(self.lost, self.layers.base / "outside")
        self.look("a file outside the upper directory is lost", self.number)
        file, directory = (os.open(self.point / name, os.O_RDONLY) for name in ("file", "."))
        os.kill(status(self.point)["pid"], signal.SIGKILL)
        for call in (os.fsync, os.fdatasync):
            wait_until(lambda call=call: result(call, directory) == errno.ENOTCONN, "it lives")
            self.found(KILLED, call.__name__, result(call, file), errno.ENOTCONN)
        self.found(KILLED, "fsyncdir", result(os.fsync, directory), errno.ENOTCONN)
        for fd in file, directory:
            result(os.close, fd)

    def third_mount(self):
        self.look("after a restart of the daemon", 0)
        self.fs.lose(self.lost, self.layers.upper / "file")
        self.look("after a restart of the daemon, a file is lost", self.number)


COLUMNS = [(place, probe) for place, probes in PROBES.items() for probe in probes]


@pytest.mark.parametrize("turn", range(len(ERRNOS) if matrix.ALL else 1))
@pytest.mark.parametrize("place, probe", COLUMNS)
def test_matrix(fs, as_user, place, probe, turn):
    lost = ERRNOS[(COLUMNS.index((place, probe)) + list(KINDS).index(fs.kind) + turn) % len(ERRNOS)]
    layers = fs.layers()
    layers.base.chmod(0o755)
    (layers.lowers[0] / "lower").write_bytes(GOOD)
    walk = Walk(fs, Place(place, as_user, layers, f"volatile,probe={probe}"), probe, lost)
    walk.mount_with_unseen_error()
    walk.run(walk.first_mount)
    walk.start_over()
    walk.run(walk.second_mount)
    walk.start_over()
    walk.run(walk.third_mount)
    matrix.keep(walk.cells)
    assert matrix.wrong(walk.cells) == []
    for cell in walk.cells:
        assert cell.got == 0 or not cell.listed, "it can be seen after all"


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
    where = ("tmpfs", 0, "fuseblk", "overlay", "nothing can be lost")
    matrix.keep(matrix.Cell(*where, call, said, 0, False) for call, said in got.items())
