"""A file system on a failing disk, with what the tests do to it."""

import errno
import fcntl
import os
import struct
import subprocess
import uuid
from pathlib import Path

from support import mountinfo, syscalls
from support.overlays import Layers

from .faultdisk import MARKER, FaultDisk

MIB = 1 << 20
BLOCK = 4096
BAD = MARKER.encode().ljust(BLOCK, b".")
GOOD = b"harmless".ljust(BLOCK, b".")
FS_IOC_FIEMAP = 0xC020660B
FIEMAP_FLAG_SYNC = 1

# Quiet: nothing is written later than it must be (no lazy initialisation, no timer for the journal), so that
# the counters of the device move only when somebody syncs. btrfs commits by itself when space for metadata
# gets scarce, as it is from the beginning on 256 MiB.
EXT4 = ["-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"]
KINDS = {
    "ext4": (256 * MIB, ["mkfs.ext4", "-q", "-F", *EXT4], "commit=900"),
    "xfs": (320 * MIB, ["mkfs.xfs", "-q", "-f", "-K"], ""),
    "btrfs": (1024 * MIB, ["mkfs.btrfs", "-q", "-f", "-K"], "commit=900"),
}
# What becomes of an errno of the disk on its way to the file system (block/blk-core.c, blk_errors).
ARRIVES_AS = {errno.EDQUOT: errno.EIO}


def write_back(path):
    """Write a file's dirty pages to the disk and wait for them; nobody is told what became of them.

    FIEMAP with SYNC does just that (fs/ioctl.c, fiemap_prep: filemap_write_and_wait): no journal commit, no
    flush, and unlike fsync(2) and sync_file_range(2) it leaves the file's error for others to find.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FS_IOC_FIEMAP, struct.pack("=QQIIII", 0, (1 << 64) - 1, FIEMAP_FLAG_SYNC, 0, 0, 0))
    except OSError as exc:
        if exc.errno not in (errno.EIO, errno.ENOSPC, errno.ETIMEDOUT, errno.ENOLINK):
            raise
    finally:
        os.close(fd)


class FaultyFilesystem:
    """`point` is its root; `disk` its FaultDisk."""

    def __init__(self, kind, directory):
        self.kind = kind
        self.directory = Path(directory)
        self.point = self.directory / kind
        self.point.mkdir()
        self._watch = -1
        size, mkfs, self.options = KINDS[kind]
        self.disk = FaultDisk(size, directory)
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        subprocess.run([*mkfs, self.disk.device], check=True, env={**os.environ, "PATH": path})
        self.mount()

    def mount(self):
        syscalls.mount(self.disk.device, self.point, self.kind, 0, self.options)
        self._watch = self._error_watch()

    def _error_watch(self):
        """An fd whose fsync tells this file system's writeback errors, and leaves them as they are.

        A volatile kernel overlay, as `voile.volatile.probe`; but the tests have their own.
        """
        base = self.point / "watch"
        layers = Layers(base)
        options = f"lowerdir={layers.lowers[0]},upperdir={layers.upper},workdir={layers.work},volatile"
        syscalls.mount("watch", layers.point, "overlay", 0, options)
        try:
            return os.open(layers.point, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            syscalls.umount(layers.point, syscalls.MNT_DETACH)
            subprocess.run(["rm", "-rf", base], check=True)

    def error(self):
        """The latest errno since the mount, 0 for none. Changes nothing."""
        try:
            os.fsync(self._watch)
        except OSError as exc:
            return exc.errno
        return 0

    def layers(self, **what):
        """Empty directories of an overlay on this file system."""
        return Layers(self.point / uuid.uuid4().hex[:8], **what)

    def lose(self, number, path=None):
        """Lose the data of a file (a new one outside all layers by default) with that errno: it is written
        back now, by nobody's sync, and nobody is told. Other writes are safe again afterwards."""
        path = path or self.point / f"lost-{uuid.uuid4().hex[:8]}"
        rule = self.disk.fail(number)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        try:
            os.pwrite(fd, BAD, 0)
        finally:
            os.close(fd)
        write_back(path)
        assert rule.hits, "no write has failed"
        assert self.error() == ARRIVES_AS.get(number, number)
        rule.remove()
        return path

    def sync(self):
        """syncfs(2) on the file system itself: its errno, or 0. Whoever asks marks the error as seen."""
        fd = os.open(self.point, os.O_RDONLY)
        try:
            syscalls.syncfs(fd)
        except OSError as exc:
            return exc.errno
        finally:
            os.close(fd)
        return 0

    def umount(self):
        if self._watch >= 0:
            os.close(self._watch)
            self._watch = -1
        syscalls.umount(self.point)

    def close(self):
        self.disk.heal()
        if mountinfo.at(self.point):
            self.umount()
        self.disk.close()
        self.point.rmdir()
