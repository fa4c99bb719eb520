"""Mounts that are not volatile: every sync is a real one, and errors are told as on any file system."""

import errno
import os
import subprocess
import threading

import pytest

from faults.conftest import umount_after_loss
from faults.faultyfs import BAD, GOOD, write_back
from support import syscalls
from support.outcome import result
from support.overlays import KernelOverlay, VoileOverlay

CALLS = {"fsync": os.fsync, "fdatasync": os.fdatasync}


@pytest.fixture
def strict(fs, overlay):
    mounted = overlay(fs.layers())
    (mounted.layers.lowers[0] / "lower").write_bytes(GOOD)
    mounted.mount()
    (mounted.point / "file").write_bytes(GOOD)
    (mounted.point / "directory").mkdir()
    assert fs.sync() == 0
    yield mounted
    fs.disk.heal()
    mounted.check()
    umount_after_loss(mounted)


@pytest.fixture
def descriptors(strict, opened):
    """Three of one file: read and write, read and write, read only."""
    return [opened(strict.point / "file", flags) for flags in (os.O_RDWR, os.O_RDWR, os.O_RDONLY)]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", CALLS)
def test_error_is_told_once_to_each_open_file(strict, fs, descriptors, call, number):
    """errseq_t per open file description, as fsync(2) has it since Linux 4.13."""
    fs.disk.fail(number)
    os.pwrite(descriptors[0], BAD, 0)
    assert [result(CALLS[call], fd) for fd in descriptors] == [number] * 3
    # The page is clean now and its data gone: that has been said.
    assert [result(CALLS[call], fd) for fd in descriptors] == [0] * 3


def test_duplicates_share_it(strict, fs, descriptors):
    fs.disk.fail(errno.EIO)
    twin = os.dup(descriptors[0])
    os.pwrite(twin, BAD, 0)
    assert result(os.fsync, twin) == errno.EIO
    assert result(os.fsync, descriptors[0]) == 0
    assert result(os.fsync, descriptors[1]) == errno.EIO
    os.close(twin)


def test_error_that_nobody_has_seen_is_told_to_a_new_descriptor(strict, fs):
    fs.disk.fail(errno.EIO)
    (strict.point / "file").write_bytes(BAD)
    write_back(strict.layers.upper / "file")
    with open(strict.point / "file", "rb") as f:
        assert result(os.fsync, f.fileno()) == errno.EIO
    with open(strict.point / "file", "rb") as f:
        assert result(os.fsync, f.fileno()) == 0


def test_error_of_another_file_is_none_of_this_one(strict, fs, descriptors):
    fs.lose(errno.EIO)
    assert [result(os.fsync, fd) for fd in descriptors] == [0] * 3


NEW = b"NEW-CONTENT".ljust(len(GOOD), b".")


@pytest.fixture
def reaches_disk(fs):
    """reaches_disk(action): whether what NEW says is on the disk, and the disk was flushed, when it returns.

    Requests are counted from before the write on: somebody else's sync(1) may be quicker than the test's.
    """

    def check(action):
        written = fs.disk.add("write", match="NEW-CONTENT")
        flushed = fs.disk.add("flush")
        action()
        return written.hits > 0, flushed.hits > 0

    return check


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC], ids=["O_SYNC", "O_DSYNC"])
def test_synchronous_write(strict, fs, opened, reaches_disk, flag):
    fd = opened(strict.point / "file", os.O_WRONLY | flag)
    assert reaches_disk(lambda: os.pwrite(fd, NEW, 0)) == (True, True)
    fs.disk.heal()
    fs.disk.fail(errno.EIO)
    assert result(os.pwrite, fd, BAD, 0) == errno.EIO


@pytest.mark.parametrize("call", CALLS)
def test_sync_of_a_file_reaches_the_disk(strict, opened, reaches_disk, call):
    fd = opened(strict.point / "file", os.O_RDWR)
    assert reaches_disk(lambda: (os.pwrite(fd, NEW, 0), CALLS[call](fd))) == (True, True)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("what", ["directory", "."])
def test_sync_of_a_directory_reaches_the_disk(strict, opened, reaches_disk, call, what):
    fd = opened(strict.point / what)
    _, flushed = reaches_disk(lambda: ((strict.point / what / "new").touch(), CALLS[call](fd)))
    assert flushed


def test_directory_on_a_disk_that_does_not_flush(strict, fs, opened):
    fd = opened(strict.point / "directory")
    (strict.point / "directory" / "new").touch()
    fs.disk.fail(errno.EIO, "flush")
    assert result(os.fsync, fd) != 0


def test_syncfs_reaches_the_disk(strict, opened, reaches_disk):
    fd = opened(strict.point)
    done = reaches_disk(lambda: ((strict.point / "file").write_bytes(NEW), syscalls.syncfs(fd)))
    assert done == (True, True)


def test_umount_reaches_the_disk(strict, reaches_disk):
    """Not volatile: what was written is on the disk when umount(2) returns, as on the kernel's overlayfs."""
    written, flushed = reaches_disk(lambda: ((strict.point / "file").write_bytes(NEW), strict.umount()))
    strict.mount()
    assert (written, flushed) == (True, True)


def test_umount_tells_of_a_lost_page(strict, fs, overlay_kind):
    """There is nobody left to fail a call of; but a daemon in the foreground can say it."""
    fs.lose(errno.EIO, strict.layers.upper / "file")
    assert umount_after_loss(strict) == (overlay_kind is VoileOverlay)
    strict.mount()


def test_umount_does_not_repeat_what_was_told(strict, fs, opened, overlay_kind):
    if overlay_kind is KernelOverlay:
        pytest.skip("it is a matter of the daemon")
    fs.lose(errno.EIO, strict.layers.upper / "file")
    assert result(syscalls.syncfs, opened(strict.point)) == errno.EIO
    os.close(opened.fds.pop())
    assert not umount_after_loss(strict)
    strict.mount()


def test_syncfs_tells_of_a_lost_page(strict, fs, opened, overlay_kind):
    """Kernel overlayfs does not: it looks only at what sync_fs of the upper returns (6.18, measured)."""
    fd = opened(strict.point)
    fs.disk.fail(errno.EIO)
    (strict.point / "file").write_bytes(BAD)
    assert result(syscalls.syncfs, fd) == (0 if overlay_kind is KernelOverlay else errno.EIO)
    assert result(syscalls.syncfs, fd) == 0


def test_sync_of_somebody_else_does_not_hide_a_lost_page(strict, fs, opened, overlay_kind):
    """sync(1) asks too, and tells nobody what it heard."""
    if overlay_kind is KernelOverlay:
        pytest.skip("kernel overlayfs does not tell of lost pages at all")
    fd = opened(strict.point)
    fs.disk.fail(errno.EIO)
    (strict.point / "file").write_bytes(BAD)
    subprocess.run(["sync", "-f", strict.point], capture_output=True)
    assert result(syscalls.syncfs, fd) == errno.EIO
    assert result(syscalls.syncfs, fd) == 0


def test_syncfs_tells_of_a_page_lost_before_it(strict, fs, opened, overlay_kind):
    if overlay_kind is KernelOverlay:
        pytest.skip("kernel overlayfs does not")
    fs.lose(errno.EIO, strict.layers.upper / "file")
    fd = opened(strict.point)
    assert result(syscalls.syncfs, fd) == errno.EIO
    assert result(syscalls.syncfs, fd) == 0


def in_thread(function):
    """Start it; join() gives its value, or raises what it raised."""

    class Started(threading.Thread):
        value = error = None

        def run(self):
            try:
                self.value = function()
            except BaseException as exc:
                self.error = exc

        def join(self, timeout=30):
            super().join(timeout)
            assert not self.is_alive(), "still at it"
            if self.error:
                raise self.error
            return self.value

    thread = Started(daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("lower", ["same", "other"])
@pytest.mark.parametrize("change", ["chmod", "write"])
def test_copy_up_is_durable_before_it_is_visible(fs, other_fs, overlay, overlay_kind, change, lower):
    """The copy is on the disk before it takes the place of the original: a crash leaves one or the other."""
    if lower == "same" and fs.kind != "ext4" and overlay_kind is KernelOverlay:
        pytest.skip("kernel overlayfs does not sync a reflink (fs/overlayfs/copy_up.c, ovl_copy_up_file)")
    mounted = overlay(fs.layers(lower_base=other_fs.point / "lower" if lower == "other" else None))
    (mounted.layers.lowers[0] / "lower").write_bytes(GOOD)
    mounted.mount()
    assert fs.sync() == 0

    def copy_up():
        if change == "chmod":
            os.chmod(mounted.point / "lower", 0o600)
        else:
            os.close(os.open(mounted.point / "lower", os.O_WRONLY))

    with fs.disk.holding("flush") as rule:
        thread = in_thread(copy_up)
        rule.wait(1)
        visible = os.listdir(mounted.layers.upper)
    assert visible == []
    thread.join()
    assert (mounted.layers.upper / "lower").read_bytes() == GOOD
    mounted.umount()


def test_copy_up_that_fails_leaves_the_original(fs, other_fs, overlay):
    mounted = overlay(fs.layers(lower_base=other_fs.point / "lower"))
    (mounted.layers.lowers[0] / "lower").write_bytes(BAD)
    mounted.mount()
    rule = fs.disk.fail(errno.EIO)
    with pytest.raises(OSError) as caught:
        os.chmod(mounted.point / "lower", 0o600)
    assert caught.value.errno == errno.EIO
    assert rule.hits
    assert os.listdir(mounted.layers.upper) == []
    assert (mounted.point / "lower").read_bytes() == BAD
    assert (mounted.point / "lower").stat().st_mode & 0o777 == 0o644
    rule.remove()
    os.chmod(mounted.point / "lower", 0o600)
    assert (mounted.layers.upper / "lower").read_bytes() == BAD
    umount_after_loss(mounted)
