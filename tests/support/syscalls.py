"""System calls that Python 3.11 lacks, for the tests' own use (voile has its own in voile.linux)."""

import ctypes
import fcntl
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_HANDLE_FID = 0x200
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_ZERO_RANGE, FALLOC_FL_INSERT_RANGE = 8, 16, 32

FS_IMMUTABLE_FL, FS_APPEND_FL, FS_NODUMP_FL, FS_NOATIME_FL, FS_SYNC_FL = 0x10, 0x20, 0x40, 0x80, 0x8
# What chattr(1) can set and every file system has; the others say how a file is stored.
FS_USER_FL = FS_IMMUTABLE_FL | FS_APPEND_FL | FS_NODUMP_FL | FS_NOATIME_FL | FS_SYNC_FL
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
FSXATTR = struct.Struct("=5I8x")

_GETDENTS64 = {"x86_64": 217}.get(os.uname().machine, 61)


def _check(result, *path):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *path)
    return result


def unshare(flags):
    _check(_libc.unshare(flags))


def mount(source, target, fstype, flags=0, data=""):
    encoded = [None if x is None else os.fsencode(x) for x in (source, target, fstype)]
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), os.fsencode(data) or None), target)


def umount(target, flags=0):
    _check(_libc.umount2(os.fsencode(target), flags), target)


def renameat2(old, new, flags, old_dir=AT_FDCWD, new_dir=AT_FDCWD):
    _check(_libc.renameat2(old_dir, os.fsencode(old), new_dir, os.fsencode(new), flags), old, None, new)


def linkat_fd(fd, new):
    """Give a name to an open, nameless file (O_TMPFILE)."""
    # The way of open(2): through /proc, which needs no CAP_DAC_READ_SEARCH.
    _check(_libc.linkat(AT_FDCWD, b"/proc/self/fd/%d" % fd, AT_FDCWD, os.fsencode(new), 0x400), new)


def fallocate(fd, mode, offset, length):
    _check(_libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))


def _with_open(path, function):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        return function(fd)
    finally:
        os.close(fd)


def get_flags(path):
    """FS_IOC_GETFLAGS, as lsattr(1)."""
    answer = _with_open(path, lambda fd: fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))
    return struct.unpack("=I4x", answer)[0]


def set_flags(path, flags):
    """FS_IOC_SETFLAGS with exactly these; the storage flags stay, as chattr(1) leaves them."""

    def change(fd):
        (old,) = struct.unpack("=I4x", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I4x", old & ~FS_USER_FL | flags))

    _with_open(path, change)


def get_fsxattr(path):
    """FS_IOC_FSGETXATTR: (xflags, extsize, nextents, projid, cowextsize)."""
    return FSXATTR.unpack(_with_open(path, lambda fd: fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(28))))


def set_fsxattr(path, *fields):
    """FS_IOC_FSSETXATTR."""
    _with_open(path, lambda fd: fcntl.ioctl(fd, FS_IOC_FSSETXATTR, FSXATTR.pack(*fields)))


def set_dumpable():
    """prctl(PR_SET_DUMPABLE): a change of uid has taken it away, an exec would give it back."""
    _check(_libc.prctl(4, 1, 0, 0, 0))


def syncfs(fd):
    _check(_libc.syncfs(fd))


def getdents(fd, size=32768):
    """One call: list of (name, ino, offset, d_type)."""
    buffer = ctypes.create_string_buffer(size)
    end = _check(_libc.syscall(_GETDENTS64, fd, buffer, size))
    found, at = [], 0
    while at < end:
        ino, offset, length, kind = struct.unpack_from("=QqHB", buffer, at)
        name = buffer.raw[at + 19 : at + length].split(b"\0", 1)[0]
        found.append((name, ino, offset, kind))
        at += length
    return found


def list_directory(path):
    """All of a directory, "." and ".." too, as getdents gives it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = []
        while part := getdents(fd):
            found += part
        return found
    finally:
        os.close(fd)


def open_by_handle_at(directory, kind, handle):
    """An open directory says which mount; the handle is that of file_handle."""
    buffer = struct.pack("=Ii", len(handle), kind) + handle
    return _check(_libc.open_by_handle_at(directory, buffer, os.O_RDONLY))


class Statx:
    """What os.stat does not show. Times in nanoseconds."""

    def __init__(self, buffer):
        self.mask, _blksize, self.attributes = struct.unpack_from("=IIQ", buffer)
        (self.mode,) = struct.unpack_from("=H", buffer, 28)
        (self.attributes_mask,) = struct.unpack_from("=Q", buffer, 56)
        seconds, nanoseconds = struct.unpack_from("=qI", buffer, 80)
        self.btime = seconds * 10**9 + nanoseconds
        (self.mnt_id,) = struct.unpack_from("=Q", buffer, 144)


def statx(path, mask=0xFFFF):
    """statx(2) of a path, symlinks not followed, or of a descriptor."""
    buffer = ctypes.create_string_buffer(256)
    where, name = (path, b"") if isinstance(path, int) else (AT_FDCWD, os.fsencode(path))
    flags = AT_EMPTY_PATH if isinstance(path, int) else 0x100
    _check(_libc.statx(where, name, flags, mask, buffer), path)
    return Statx(buffer.raw)


def file_handle(path, flags=0):
    """(handle_type, handle bytes) of name_to_handle_at(2), symlinks not followed."""
    buffer = ctypes.create_string_buffer(8 + 128)
    struct.pack_into("=Ii", buffer, 0, 128, 0)
    mount_id = ctypes.c_int()
    _check(_libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), buffer, ctypes.byref(mount_id), flags), path)
    length, kind = struct.unpack_from("=Ii", buffer, 0)
    return kind, buffer.raw[8 : 8 + length]
