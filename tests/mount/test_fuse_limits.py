"""What the kernel's FUSE decides without asking the daemon: each is a difference that voile cannot mend.

The daemon is stopped while they are tried.  When one of these tests fails, the kernel has learnt to ask.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import struct

import pytest

from support import syscalls
from support.syscalls import FS_APPEND_FL, FS_IMMUTABLE_FL
from support.users import in_child

SIZE = 1 << 20
FALLOC_FL_UNSHARE_RANGE = 64
FICLONE, FICLONERANGE, FIDEDUPERANGE = 0x40049409, 0x4020940D, 0xC0189436
FS_IOC_FIEMAP, FS_IOC_GETFSUUID = 0xC020660B, 0x80111500


def clone_range(source, target):
    fcntl.ioctl(target, FICLONERANGE, struct.pack("=qQQQ", source, 0, 65536, 0))


def dedupe(source, target):
    """FIDEDUPERANGE; the errno is in the answer."""
    request = struct.pack("=QQHHI", 0, 65536, 1, 0, 0) + struct.pack("=qQQiI", target, 0, 0, 0, 0)
    answer = fcntl.ioctl(source, FIDEDUPERANGE, request)
    status = struct.unpack_from("=i", answer, 24 + 24)[0]
    if status < 0:
        raise OSError(-status, os.strerror(-status))


def fiemap(source, _target):
    request = struct.pack("=QQIIII", 0, SIZE, 0, 0, 0, 0)
    assert struct.unpack_from("=I", fcntl.ioctl(source, FS_IOC_FIEMAP, request), 20)[0] > 0


RANGES = {
    "collapse": lambda s, t: syscalls.fallocate(t, syscalls.FALLOC_FL_COLLAPSE_RANGE, 0, 4096),
    "insert": lambda s, t: syscalls.fallocate(t, syscalls.FALLOC_FL_INSERT_RANGE, 0, 4096),
    "unshare": lambda s, t: syscalls.fallocate(t, FALLOC_FL_UNSHARE_RANGE, 0, 4096),
    "clone": lambda s, t: fcntl.ioctl(t, FICLONE, s),
    "clone range": clone_range,
    "dedupe": dedupe,
    "fiemap": fiemap,
    "uuid": lambda s, t: fcntl.ioctl(s, FS_IOC_GETFSUUID, bytes(17)),
}
SAYS = {"uuid": errno.ENOTTY}


def errno_of(function, *args):
    try:
        function(*args)
    except OSError as error:
        return error.errno
    return 0


def try_all(point, what, pid=None):
    """The errno of each function, called with two open files while the daemon is stopped."""
    opened = [os.open(point / name, os.O_RDWR) for name in ("source", "target")]
    if pid:
        os.kill(pid, signal.SIGSTOP)
    try:
        return {name: errno_of(function, *opened) for name, function in what.items()}
    finally:
        if pid:
            os.kill(pid, signal.SIGCONT)


def files(layers):
    for name in ("source", "target"):
        (layers.upper / name).write_bytes(b"same" * (SIZE // 4))
    return layers


@pytest.mark.parametrize("options", ["", "volatile", "passthrough=off"])
def test_ranges(layers, kernel_overlay, voile_overlay, options):
    kernel = kernel_overlay(files(layers(on="xfs")))
    point = kernel.mount()
    assert set(in_child(lambda: try_all(point, RANGES)).values()) == {0}
    voile = voile_overlay(files(layers(on="xfs")))
    point = voile.mount(options)
    found = in_child(lambda: try_all(point, RANGES, voile.pid))
    assert found == {name: SAYS.get(name, errno.EOPNOTSUPP) for name in RANGES}


def test_copies_share_what_they_can(layers, voile_overlay):
    """No FICLONE, but copy_file_range(2), which `cp --reflink=auto` uses, shares extents."""
    made = files(layers(on="xfs"))
    point = voile_overlay(made).mount()

    def copy(source, target):
        assert os.copy_file_range(source, target, SIZE, 0, 0) == SIZE

    assert in_child(lambda: try_all(point, {"copy": copy})) == {"copy": 0}
    os.sync()
    FIEMAP_EXTENT_SHARED = 0x2000
    request = struct.pack("=QQIIII", 0, SIZE, 0, 0, 1, 0).ljust(32 + 56, b"\0")
    with open(made.upper / "target", "rb") as target:
        extent = fcntl.ioctl(target, FS_IOC_FIEMAP, request)
    assert struct.unpack_from("=I", extent, 32 + 40)[0] & FIEMAP_EXTENT_SHARED


def test_handles_of_another_mount(layers, voile_overlay):
    """Handles mean nothing in the next mount, where the same number is another file's."""
    made = files(layers())

    def handles(point):
        return [syscalls.file_handle(point / name, syscalls.AT_HANDLE_FID) for name in ("source", "target")]

    seen = []
    for _ in range(2):
        overlay = voile_overlay(made)
        point = overlay.mount()
        seen += in_child(lambda at=point: handles(at) + handles(at)[::-1])
        overlay.umount()
    assert len(set(seen)) == 4


def access(path):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.access(os.fsencode(path), os.W_OK) < 0:
        raise OSError(ctypes.get_errno(), "access")


def no_longer_append(path):
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"over", 0)


def map_shared(path):
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    with mmap.mmap(fd, 4096):
        pass


def chattr_limits(point):
    syscalls.set_flags(point / "source", FS_IMMUTABLE_FL)
    syscalls.set_flags(point / "target", FS_APPEND_FL)
    attributes = {name: syscalls.statx(point / name).attributes & 0x70 for name in ("source", "target")}
    found = attributes | {
        "access": errno_of(access, point / "source"),
        "append": errno_of(no_longer_append, point / "target"),
        "map": errno_of(map_shared, point / "target"),
        "rmdir": errno_of(os.rmdir, point / "source"),
        "data": (point / "target").read_bytes()[:4],
    }
    for name in ("source", "target"):
        syscalls.set_flags(point / name, 0)
    return found


@pytest.mark.parametrize("options", ["", "volatile", "passthrough=off"])
def test_protection(layers, kernel_overlay, voile_overlay, options):
    """A FUSE inode is not immutable or append-only; what voile is asked it refuses all the same."""
    kernel = kernel_overlay(files(layers())).mount()
    assert in_child(lambda: chattr_limits(kernel)) == {
        "source": 0x10, "target": 0x20, "access": errno.EPERM, "append": errno.EPERM, "map": errno.EACCES,
        "rmdir": errno.EPERM, "data": b"same",
    }  # fmt: skip
    voile = voile_overlay(files(layers())).mount(options)
    assert in_child(lambda: chattr_limits(voile)) == {
        "source": 0, "target": 0, "access": 0, "append": errno.EPERM, "map": 0,
        "rmdir": errno.ENOTDIR, "data": b"same",
    }  # fmt: skip


def unaligned(point):
    fd = os.open(point / "source", os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, 4096)
    return errno_of(os.preadv, fd, [page], 100), errno_of(os.pwritev, fd, [page], 100)


def test_direct_io(layers, kernel_overlay, voile_overlay):
    """What the disk below does not like is refused where the kernel passes it on."""
    point = kernel_overlay(files(layers())).mount()
    assert in_child(lambda: unaligned(point)) == (errno.EINVAL, errno.EINVAL)
    for options, says in (("", errno.EINVAL), ("passthrough=off", 0)):
        overlay = voile_overlay(files(layers()))
        point = overlay.mount(options)
        assert in_child(lambda at=point: unaligned(at)) == (says, says)
        overlay.umount()
