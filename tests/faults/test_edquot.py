"""EDQUOT: where it can be an error of a writeback, and where it is told before anything is written.

A quota is charged when data comes into the page cache, by write(2) or by the first store to a mapped page. So
on ext4, xfs and btrfs the writeback of what was let in does not fail for a quota any more, even if that has
shrunk. And a disk cannot say EDQUOT: there is no code for it between file system and disk (blk_status_t).
(Measured on btrfs; the kernel of the tests may have no quotas for the others.)

What writes pages back to another file system, or over a network, can be told so later.
"""

import errno
import os
import shutil
import subprocess

import pytest

from faults.conftest import make_filesystem
from faults.faultyfs import ARRIVES_AS, BAD, GOOD, write_back
from faults.test_volatile_causes import HEALTHY, sync_results
from support import mountinfo
from support.wait import wait_until
from voile.linux import files
from voile.volatile.inode_probe import InodeProbe

LIMIT = 64 << 10
WRITE_AND_WAIT = 7  # SYNC_FILE_RANGE_WAIT_BEFORE | _WRITE | _WAIT_AFTER


@pytest.fixture
def limited(filesystems):
    """(btrfs, a function that sets the limit of what may be written to it)"""
    fs = make_filesystem(filesystems, "btrfs")
    subprocess.run(["btrfs", "quota", "enable", fs.point], check=True)
    assert fs.sync() == 0

    def limit(size):
        subprocess.run(["btrfs", "qgroup", "limit", str(size), "0/5", fs.point], check=True)
        assert fs.sync() == 0

    yield fs, limit
    fs.close()


def test_a_disk_cannot_say_it(fs):
    assert ARRIVES_AS == {errno.EDQUOT: errno.EIO}
    rule = fs.disk.fail(errno.EDQUOT)
    (fs.point / "file").write_bytes(BAD)
    write_back(fs.point / "file")
    assert rule.hits
    assert fs.error() == errno.EIO


def test_a_quota_loses_nothing(limited, overlay_kind):
    """A write that it refuses is no lost data: sync calls go on saying so."""
    fs, limit = limited
    overlay = overlay_kind(fs.layers())
    try:
        overlay.mount("volatile")
        (overlay.point / "file").write_bytes(GOOD)
        (overlay.point / "before").write_bytes(GOOD * 256)
        limit(LIMIT)
        assert fs.error() == 0, "what was let in before is written"
        with pytest.raises(OSError) as caught, open(overlay.point / "file", "ab", 0) as file:
            file.write(GOOD * 256)
        assert caught.value.errno == errno.EDQUOT
        assert sync_results(overlay.point) == HEALTHY
        overlay.umount()
    finally:
        overlay.close()


@pytest.mark.skipif(not shutil.which("fuse-overlayfs"), reason="no fuse-overlayfs")
def test_a_writeback_that_fails_for_a_quota(limited):
    """fuse-overlayfs caches writes, and hears from the file system below when they are written back."""
    fs, limit = limited
    layers = fs.layers()
    command = ["fuse-overlayfs", "-f", "-o", f"{layers.options()},writeback=1", layers.point]
    daemon = subprocess.Popen(command, cwd=layers.base, stderr=subprocess.DEVNULL)
    wait_until(lambda: mountinfo.at(layers.point), "not mounted")
    probe = InodeProbe()
    fd, other = [os.open(layers.point / "file", os.O_RDWR | os.O_CREAT) for _ in range(2)]
    try:
        probe.watch(fd)
        limit(LIMIT)
        heard = 0
        for _ in range(20):
            assert probe.check() == 0
            os.pwrite(fd, os.urandom(1 << 20), 0)
            try:
                files.sync_file_range(other, 0, 0, WRITE_AND_WAIT)
            except OSError as error:
                heard = error.errno
                break
        assert heard == errno.EDQUOT
        assert probe.check() == errno.EDQUOT
        assert probe.check() == errno.EDQUOT
        assert fs.error() == 0, "the file system below has refused it in time"
    finally:
        os.close(fd)
        os.close(other)
        probe.close()
        subprocess.run(["umount", layers.point], check=True)
        daemon.wait(30)
