"""Which errors fail a volatile mount, whose, and for how long."""

import errno
import os
import uuid

import pytest

from faults.faultyfs import BAD, GOOD, write_back
from support import syscalls
from support.users import in_child


def sync_results(point):
    """What sync calls say on new descriptors: fsync, fdatasync, fsync of a directory, syncfs."""
    found = []
    file = os.open(point / "file", os.O_RDWR)
    directory = os.open(point, os.O_RDONLY)
    try:
        for call, fd in (
            (os.fsync, file),
            (os.fdatasync, file),
            (os.fsync, directory),
            (syscalls.syncfs, file),
        ):
            try:
                call(fd)
                found.append(0)
            except OSError as exc:
                found.append(exc.errno)
    finally:
        os.close(file)
        os.close(directory)
    return found


def failed(number):
    return [number, number, number, errno.EIO]


HEALTHY = [0, 0, 0, 0]


@pytest.fixture
def volatile(fs, overlay):
    """A volatile mount with one file in it."""
    mounted = overlay(fs.layers())
    mounted.mount("volatile")
    (mounted.point / "file").write_bytes(GOOD)
    assert sync_results(mounted.point) == HEALTHY
    yield mounted
    mounted.check()
    mounted.umount()


def test_data_written_through_the_mount(volatile, fs):
    """The application's own write, from its write(2) to the refused block."""
    rule = fs.disk.fail(errno.EIO)
    (volatile.point / "file").write_bytes(BAD)
    write_back(volatile.layers.upper / "file")
    assert rule.hits
    assert sync_results(volatile.point) == failed(errno.EIO)


def test_file_outside_the_upper_directory(volatile, fs):
    """The error state is that of the file system: we cannot know that the lost file is none of ours."""
    fs.lose(errno.EIO)
    assert sync_results(volatile.point) == failed(errno.EIO)


def test_file_deleted_since(volatile, fs):
    lost = fs.lose(errno.EIO, volatile.layers.upper / "lost")
    os.unlink(lost)
    assert sync_results(volatile.point) == failed(errno.EIO)


def test_file_deleted_through_the_mount(volatile, fs):
    path = volatile.point / "lost"
    path.write_bytes(GOOD)
    fs.lose(errno.ENOSPC, volatile.layers.upper / "lost")
    path.unlink()
    assert sync_results(volatile.point) == failed(errno.ENOSPC)


def test_disk_healed_and_data_written_again(volatile, fs):
    lost = fs.lose(errno.EIO, volatile.layers.upper / "file")
    fs.disk.heal()
    fd = os.open(lost, os.O_WRONLY)
    os.pwrite(fd, BAD, 0)
    with pytest.raises(OSError):
        os.fsync(fd)  # of the first time
    os.fsync(fd)
    os.close(fd)
    assert sync_results(volatile.point) == failed(errno.EIO)


def test_somebody_else_collected_the_error(volatile, fs):
    """`sync -f` of the upper file system reports the error to its caller; that must not hide it from ours."""
    fs.lose(errno.EIO)
    assert fs.sync() == errno.EIO
    assert fs.sync() == 0
    assert sync_results(volatile.point) == failed(errno.EIO)


def test_collected_by_fsync_of_the_lost_file(volatile, fs):
    lost = fs.lose(errno.EIO)
    with open(lost, "rb") as f, pytest.raises(OSError):
        os.fsync(f.fileno())
    assert sync_results(volatile.point) == failed(errno.EIO)


def test_the_latest_errno_is_told(volatile, fs):
    for number in errno.EIO, errno.ENOSPC, errno.EIO:
        fs.lose(number)
        assert sync_results(volatile.point) == failed(number)
        fs.sync()  # seen, so that the next one counts anew


def test_the_latest_errno_is_told_also_when_nobody_looked(volatile, fs):
    fs.lose(errno.EIO)
    fs.lose(errno.ENOSPC)
    assert sync_results(volatile.point) == failed(errno.ENOSPC)


def test_for_good(volatile, fs):
    fs.lose(errno.EIO)
    for _ in range(100):
        assert sync_results(volatile.point) == failed(errno.EIO)
    assert in_child(lambda: sync_results(volatile.point)) == failed(errno.EIO)


def test_another_file_system_is_none_of_ours(volatile, fs, other_fs):
    other_fs.lose(errno.EIO)
    assert sync_results(volatile.point) == HEALTHY
    assert other_fs.sync() == errno.EIO


def test_the_lower_file_system_is_none_of_ours(fs, other_fs, overlay):
    """What is read from the lower layers was never ours to lose."""
    lower = other_fs.point / uuid.uuid4().hex
    mounted = overlay(fs.layers(lower_base=lower))
    mounted.mount("volatile")
    (mounted.point / "file").write_bytes(GOOD)
    other_fs.lose(errno.EIO)
    assert sync_results(mounted.point) == HEALTHY
    fs.lose(errno.EIO)
    assert sync_results(mounted.point) == failed(errno.EIO)
    mounted.umount()


def test_an_error_before_the_mount_does_not_count_when_seen(fs, overlay):
    fs.lose(errno.EIO)
    assert fs.sync() == errno.EIO
    mounted = overlay(fs.layers())
    mounted.mount("volatile")
    (mounted.point / "file").write_bytes(GOOD)
    assert sync_results(mounted.point) == HEALTHY
    # The same errno again is another error.
    fs.lose(errno.EIO)
    assert sync_results(mounted.point) == failed(errno.EIO)
    mounted.umount()


def test_two_mounts_each_see_it(fs, overlay):
    """No mount uses the error up for another one, and one that came later has nothing to do with it."""
    first, second, late = (overlay(fs.layers()) for _ in range(3))
    for mounted in first, second:
        mounted.mount("volatile")
        (mounted.point / "file").write_bytes(GOOD)
    fs.lose(errno.EIO)
    for _ in range(2):
        for mounted in first, second:
            assert sync_results(mounted.point) == failed(errno.EIO)
    assert fs.sync() == errno.EIO
    late.mount("volatile")
    (late.point / "file").write_bytes(GOOD)
    assert sync_results(late.point) == HEALTHY
    assert sync_results(first.point) == failed(errno.EIO)
    for mounted in first, second, late:
        mounted.umount()


def test_copied_up_data(fs, other_fs, overlay):
    """Copy-up is made without a sync; that its data was lost is told by the next one."""
    base = other_fs.point / "lower"
    mounted = overlay(fs.layers(lower_base=base))  # from another file system: no reflink
    (mounted.layers.lowers[0] / "below").write_bytes(BAD)
    mounted.mount("volatile")
    rule = fs.disk.fail(errno.EIO)
    try:
        os.chmod(mounted.point / "below", 0o600)
        write_back(mounted.layers.upper / "below")
    except OSError as exc:  # xfs writes back when the copy's size is set, and the copy-up fails at once
        assert exc.errno == errno.EIO
    assert rule.hits
    (mounted.point / "file").write_bytes(GOOD)
    assert sync_results(mounted.point) == failed(errno.EIO)
    mounted.umount()
