"""A volatile mount forces nothing onto the disk: the block device's counters do not move.

They may move once for another reason: somebody's sync(1) writes back every file system of the machine, and
btrfs commits a transaction when it sees fit. So each action is tried a few times, and must leave them alone
once; a forced sync would move them every time.
"""

import os
import subprocess

import pytest

from faults.faultyfs import GOOD
from support import syscalls
from support.overlays import KernelOverlay

ROUNDS = 10_000
FILES = 100
ATTEMPTS = 5


class Quiet:
    """Volatile mounts with files in both layers, on a file system that has nothing to write."""

    def __init__(self, fs, overlay):
        self.fs = fs
        self.make = overlay
        self.mount()

    def mount(self):
        layers = self.fs.layers()
        for attempt in range(ATTEMPTS):
            for i in range(FILES):
                (layers.lowers[0] / f"lower{attempt}-{i}").write_bytes(GOOD)
        self.mounted = self.make(layers)
        self.mounted.mount("volatile")
        self.point = self.mounted.point
        (self.point / "file").write_bytes(GOOD)
        (self.point / "directory").mkdir()

    def moved(self, action, *args):
        """What the device was asked to do during action(*args): (sectors written, flushes)."""
        assert self.fs.sync() == 0
        before = self.fs.disk.stat()
        action(*args)
        after = self.fs.disk.stat()
        return after.sectors_written - before.sectors_written, after.flushes - before.flushes

    def check(self, action, prepare=lambda: None):
        """action(attempt) leaves the disk alone."""
        seen = []
        for attempt in range(ATTEMPTS):
            prepare()
            seen.append(self.moved(action, attempt))
            if seen[-1] == (0, 0):
                return
        pytest.fail(f"sectors written and flushes, each time: {seen}")


@pytest.fixture
def quiet(fs, overlay):
    return Quiet(fs, overlay)


@pytest.mark.parametrize("call", ["fsync", "fdatasync", "fsync-directory", "syncfs", "O_SYNC", "O_DSYNC"])
def test_ten_thousand_syncs(quiet, call, overlay_kind):
    if call.startswith("O_") and overlay_kind is KernelOverlay:
        # It takes O_SYNC from the request, but not from the real file (fs/backing-file.c makes a new kiocb
        # from the file's flags): 6.18 syncs every such write, on a volatile mount too.
        pytest.skip("kernel overlayfs does sync these")
    flags = {"O_SYNC": os.O_SYNC, "O_DSYNC": os.O_DSYNC}.get(call, 0)
    file = os.open(quiet.point / "file", os.O_RDWR | flags)
    directory = os.open(quiet.point / "directory", os.O_RDONLY)
    sync = {
        "fsync": lambda: os.fsync(file),
        "fdatasync": lambda: os.fdatasync(file),
        "fsync-directory": lambda: os.fsync(directory),
        "syncfs": lambda: syscalls.syncfs(directory),
    }.get(call, lambda: None)

    def write_and_sync(attempt):
        for i in range(ROUNDS):
            os.pwrite(file, GOOD, 4096 * (i % 64))  # there is something to sync each time
            sync()

    try:
        quiet.check(write_and_sync)
    finally:
        os.close(file)
        os.close(directory)


def test_the_counters_notice_one_fsync(quiet):
    """The check of the check."""

    def honest_fsync():
        with open(quiet.mounted.layers.upper / "file", "r+b") as f:
            f.write(GOOD)
            f.flush()
            os.fsync(f.fileno())

    sectors, flushes = quiet.moved(honest_fsync)
    assert sectors > 0
    assert flushes > 0


def test_copy_up(quiet):
    def copy_up(attempt):
        for i in range(FILES):
            path = quiet.point / f"lower{attempt}-{i}"
            if i % 2:
                os.chmod(path, 0o600)
            else:
                with open(path, "r+b") as f:
                    f.write(b"changed")
        assert len(list(quiet.mounted.layers.upper.glob(f"lower{attempt}-*"))) == FILES

    quiet.check(copy_up)


def test_tree_operations(quiet):
    def change(attempt):
        for i in range(FILES):
            new = quiet.point / f"new{attempt}-{i}"
            new.mkdir()
            (new / "file").write_bytes(GOOD)
            os.rename(new / "file", new / "renamed")
            os.link(new / "renamed", new / "link")
            os.symlink("x", new / "symlink")
            os.unlink(quiet.point / f"lower{attempt}-{i}")

    quiet.check(change)


def test_umount(quiet):
    def write_and_umount(attempt):
        (quiet.point / "late").write_bytes(GOOD)
        quiet.mounted.umount()
        assert (quiet.mounted.layers.upper / "late").read_bytes() == GOOD

    def mount_again():
        if not os.path.exists(quiet.point / "file"):
            quiet.mount()

    quiet.check(write_and_umount, prepare=mount_again)


def test_sync_command_of_the_mount(quiet):
    def sync(attempt):
        (quiet.point / "late").write_bytes(GOOD)
        subprocess.run(["sync", "-f", quiet.point], check=True)

    quiet.check(sync)


def test_remount(quiet):
    def remount(attempt):
        (quiet.point / "late").write_bytes(GOOD)
        for flags in (1, 0):  # MS_RDONLY and back
            syscalls.mount(None, quiet.point, None, 32 | flags)

    quiet.check(remount)
