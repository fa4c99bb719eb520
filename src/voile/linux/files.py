"""File system calls that `os` does not have, or has without the flags that are needed.

Paths are bytes, relative to a directory fd (`AT_FDCWD` for the working directory). All raise OSError with the
path in `filename`; the meaning of each is that of the manual page of the same name. File descriptors that are
returned are close-on-exec. Calls that may be interrupted are repeated after the signal handlers have run, as
the functions in `os` do (PEP 475).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from voile.linux import libc
from voile.linux.libc import c_char_p, c_int, c_int64, c_long, c_size_t, c_uint, c_void_p, check, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mmap import mmap

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_REMOVEDIR = 0x200
AT_SYMLINK_FOLLOW = 0x400
AT_NO_AUTOMOUNT = 0x800
AT_EMPTY_PATH = 0x1000
AT_STATX_DONT_SYNC = 0x4000

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# What the kernel's overlayfs asks for in a data-only layer.
RESOLVE_IN_LAYER = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_COLLAPSE_RANGE = 0x08
FALLOC_FL_ZERO_RANGE = 0x10
FALLOC_FL_INSERT_RANGE = 0x20
FALLOC_FL_UNSHARE_RANGE = 0x40

SYNC_FILE_RANGE_WAIT_BEFORE = 1
SYNC_FILE_RANGE_WRITE = 2
SYNC_FILE_RANGE_WAIT_AFTER = 4

# Times out of every range, so that they fit in an argument that is otherwise nanoseconds.
UTIME_NOW = 1 << 96
UTIME_OMIT = 1 << 97

STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800
STATX_MNT_ID = 0x1000
STATX_MNT_ID_UNIQUE = 0x4000
STATX_ATTR_COMPRESSED = 0x4
STATX_ATTR_IMMUTABLE = 0x10
STATX_ATTR_APPEND = 0x20
STATX_ATTR_NODUMP = 0x40
STATX_ATTR_MOUNT_ROOT = 0x2000

MAX_HANDLE_SZ = 128

FS_IOC_GETFSUUID = 0x80111500
# struct btrfs_ioctl_fs_info_args: u64 max_id, u64 num_devices, u8 fsid[16], ...
BTRFS_IOC_FS_INFO = 0x8400941F
FICLONE = 0x40049409

FUSE_SUPER_MAGIC = 0x65735546
OVERLAYFS_SUPER_MAGIC = 0x794C7630
TMPFS_MAGIC = 0x01021994
EXT4_SUPER_MAGIC = 0xEF53
XFS_SUPER_MAGIC = 0x58465342
BTRFS_SUPER_MAGIC = 0x9123683E

_syscall_openat2 = libc.syscall_function(c_int, c_char_p, c_char_p, c_size_t)
_syscall_renameat2 = libc.syscall_function(c_int, c_char_p, c_int, c_char_p, c_uint)
_syscall_fchmodat2 = libc.syscall_function(c_int, c_char_p, c_uint, c_uint)
_syscall_utimensat = libc.syscall_function(c_int, c_char_p, c_char_p, c_int)
_syscall_statx = libc.syscall_function(c_int, c_char_p, c_uint, c_uint, c_void_p)
_syscall_getdents64 = libc.syscall_function(c_int, c_void_p, c_size_t)
_syscall_name_to_handle_at = libc.syscall_function(c_int, c_char_p, c_void_p, c_void_p, c_int)
_syscall_open_by_handle_at = libc.syscall_function(c_int, c_void_p, c_int)
_syscall_cachestat = libc.syscall_function(c_int, c_char_p, c_void_p, c_uint)
_linkat = libc.function("linkat", c_int, c_char_p, c_int, c_char_p, c_int)
_syncfs = libc.function("syncfs", c_int)
_sync_file_range = libc.function("sync_file_range", c_int, c_int64, c_int64, c_uint)
_fallocate = libc.function("fallocate", c_int, c_int, c_int64, c_int64)
_fstatfs = libc.function("fstatfs", c_int, c_void_p)

_syscall_getxattrat = libc.syscall_function(c_int, c_char_p, c_uint, c_char_p, c_char_p, c_size_t)
_syscall_listxattrat = libc.syscall_function(c_int, c_char_p, c_uint, c_void_p, c_size_t)

_OPEN_HOW = struct.Struct("=QQQ")
_TIMESPECS = struct.Struct("=qqqq")
_FILE_HANDLE = struct.Struct("=Ii")
_XATTR_ARGS = struct.Struct("=QII")
_NO_XATTR_ROOM = _XATTR_ARGS.pack(0, 0, 0)
# No such system call, also in the words of a container's filter; or not enough room.
_ANOTHER_WAY = frozenset((errno.ENOSYS, errno.EPERM, errno.ERANGE))


def openat2(dirfd: int, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` below `dirfd` with the RESOLVE_* restrictions; O_CLOEXEC is added.

    The kernel refuses (EINVAL) flags it does not know and a mode without O_CREAT or O_TMPFILE. EAGAIN means
    that ".." raced with a rename (with RESOLVE_BENEATH or RESOLVE_IN_ROOT): try again.
    """
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    while True:
        fd = _syscall_openat2(libc.NR_OPENAT2, dirfd, text(path), how, 24)
        if fd >= 0 or libc.get_errno() != errno.EINTR:
            return check(fd, path)


def renameat2(olddir: int, old: bytes, newdir: int, new: bytes, flags: int = 0) -> None:
    """rename(2) with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT."""
    check(_syscall_renameat2(libc.NR_RENAMEAT2, olddir, text(old), newdir, text(new), flags), old)


def linkat(olddir: int, old: bytes, newdir: int, new: bytes, flags: int = 0) -> None:
    """link(2). With AT_EMPTY_PATH and an empty `old`: the file that the fd `olddir` refers to.

    AT_EMPTY_PATH needs CAP_DAC_READ_SEARCH, or (since 6.10) an fd opened with the same credentials; without
    it, link /proc/self/fd/N with AT_SYMLINK_FOLLOW.
    """
    check(_linkat(olddir, text(old), newdir, text(new), flags), new)


def syncfs(fd: int) -> None:
    """Write out the whole file system of `fd`; raises its writeback error, once per open file (since 5.8)."""
    while _syncfs(fd) < 0:
        if libc.get_errno() != errno.EINTR:
            check(-1)


def sync_file_range(fd: int, offset: int, length: int, flags: int) -> None:
    """Start or await writeback of a range; raises this open file's writeback error, once."""
    check(_sync_file_range(fd, offset, length, flags))


def cachestat(fd: int) -> tuple[int, int, int]:
    """The pages of a file in the page cache: all, dirty ones, and those being written (cachestat(2), 6.5)."""
    result = bytearray(5 * 8)
    check(_syscall_cachestat(libc.NR_CACHESTAT, fd, bytes(16), libc.view(result), 0))
    cached, dirty, writeback, _evicted, _recently = struct.unpack("=5Q", result)
    return cached, dirty, writeback


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate, punch, zero, collapse or insert a range, by FALLOC_FL_*."""
    while _fallocate(fd, mode, offset, length) < 0:
        if libc.get_errno() != errno.EINTR:
            check(-1)


def _xattr_path(dirfd: int, name: bytes) -> bytes:
    return name if dirfd == AT_FDCWD else b"/proc/self/fd/%d/%s" % (dirfd, name)


def getxattrat(dirfd: int, name: bytes, attribute: bytes, flags: int = AT_SYMLINK_NOFOLLOW) -> bytes:
    """getxattr(2) of `name` in `dirfd`, by default of a symbolic link itself.

    The system call is new in 6.13, and twice as fast as a path below /proc, which does the same before, and
    for long values.
    """
    room = libc.chars(1024)
    arguments = _XATTR_ARGS.pack(libc.addressof(room), 1024, 0)
    size = _syscall_getxattrat(libc.NR_GETXATTRAT, dirfd, text(name), flags, text(attribute), arguments, 16)
    if size >= 0:
        return room.raw[:size]
    if libc.get_errno() not in _ANOTHER_WAY:
        check(-1, name)
    follow = not flags & AT_SYMLINK_NOFOLLOW
    return os.getxattr(_xattr_path(dirfd, name), attribute, follow_symlinks=follow)


def has_xattrat(dirfd: int, name: bytes, attribute: bytes) -> bool:
    """Whether `name` in `dirfd` (a symbolic link: itself) has an attribute that can be read.

    An error is none: on the way of a lookup the usual answer is no, and that must be quick.
    """
    nofollow, room = AT_SYMLINK_NOFOLLOW, _NO_XATTR_ROOM
    if _syscall_getxattrat(libc.NR_GETXATTRAT, dirfd, text(name), nofollow, attribute, room, 16) >= 0:
        return True
    if libc.get_errno() not in _ANOTHER_WAY:
        return False
    try:
        os.getxattr(_xattr_path(dirfd, name), attribute, follow_symlinks=False)
    except OSError:
        return False
    return True


def listxattrat(dirfd: int, name: bytes, flags: int = AT_SYMLINK_NOFOLLOW) -> list[bytes]:
    """listxattr(2) of `name` in `dirfd`, as `getxattrat`."""
    room = libc.chars(1024)
    size = _syscall_listxattrat(libc.NR_LISTXATTRAT, dirfd, text(name), flags, room, 1024)
    if size >= 0:
        return room.raw[:size].split(b"\0")[:-1]
    if libc.get_errno() not in _ANOTHER_WAY:
        check(-1, name)
    follow = not flags & AT_SYMLINK_NOFOLLOW
    return [os.fsencode(each) for each in os.listxattr(_xattr_path(dirfd, name), follow_symlinks=follow)]


def fchmodat2(dirfd: int, name: bytes, mode: int, flags: int = 0) -> None:
    """chmod(2) with AT_SYMLINK_NOFOLLOW and AT_EMPTY_PATH. Symbolic links themselves: EOPNOTSUPP.

    The system call is new in 6.6; before, an O_PATH fd and its link in /proc do the same.
    """
    if _syscall_fchmodat2(libc.NR_FCHMODAT2, dirfd, text(name), mode, flags) < 0:
        if libc.get_errno() != errno.ENOSYS:
            check(-1, name)
        _fchmodat_by_proc(dirfd, name, mode, flags)


def _fchmodat_by_proc(dirfd: int, name: bytes, mode: int, flags: int) -> None:
    if flags & AT_EMPTY_PATH and not name:
        fd = os.dup(dirfd)
    else:
        nofollow = os.O_NOFOLLOW if flags & AT_SYMLINK_NOFOLLOW else 0
        fd = os.open(name, os.O_PATH | os.O_CLOEXEC | nofollow, dir_fd=None if dirfd == AT_FDCWD else dirfd)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), name)
        os.chmod(b"/proc/self/fd/%d" % fd, mode)
    finally:
        os.close(fd)


def _timespec(ns: int) -> tuple[int, int]:
    if ns == UTIME_OMIT:
        return 0, 0x3FFFFFFE
    if ns == UTIME_NOW:
        return 0, 0x3FFFFFFF
    return divmod(ns, 1_000_000_000)


def utimensat(dirfd: int, name: bytes | None, atime_ns: int, mtime_ns: int, flags: int = 0) -> None:
    """Set the times in nanoseconds, or UTIME_NOW, UTIME_OMIT.

    `name` None: the file that `dirfd` refers to (futimens); an O_PATH fd needs b"" and AT_EMPTY_PATH instead.
    """
    times = _TIMESPECS.pack(*_timespec(atime_ns), *_timespec(mtime_ns))
    path = None if name is None else text(name)
    check(_syscall_utimensat(libc.NR_UTIMENSAT, dirfd, path, times, flags), name)


def name_to_handle_at(dirfd: int, name: bytes, flags: int = 0) -> tuple[int, int, bytes]:
    """(mount id, handle type, handle) of a file. EOPNOTSUPP where the file system has no handles."""
    buffer = bytearray(_FILE_HANDLE.size + MAX_HANDLE_SZ)
    _FILE_HANDLE.pack_into(buffer, 0, MAX_HANDLE_SZ, 0)
    mount_id = c_int()
    handle = libc.view(buffer)
    result = _syscall_name_to_handle_at(
        libc.NR_NAME_TO_HANDLE_AT, dirfd, text(name), handle, libc.addressof(mount_id), flags
    )
    check(result, name)
    length, handle_type = _FILE_HANDLE.unpack_from(buffer)
    return mount_id.value, handle_type, bytes(buffer[8 : 8 + length])


def open_by_handle_at(mount_fd: int, handle_type: int, handle: bytes, flags: int) -> int:
    """Open a file by its handle; `mount_fd` is any fd of its mount. Needs CAP_DAC_READ_SEARCH.

    ESTALE: the file is gone.
    """
    buffer = bytearray(_FILE_HANDLE.pack(len(handle), handle_type) + handle)
    return check(
        _syscall_open_by_handle_at(
            libc.NR_OPEN_BY_HANDLE_AT, mount_fd, libc.view(buffer), flags | os.O_CLOEXEC
        )
    )


class Statx:
    """struct statx, with times in nanoseconds."""

    __slots__ = (
        "atime_ns", "attributes", "attributes_mask", "blksize", "blocks", "btime_ns", "ctime_ns", "dev_major",
        "dev_minor", "gid", "ino", "mask", "mnt_id", "mode", "mtime_ns", "nlink", "rdev_major", "rdev_minor",
        "size", "uid",
    )  # fmt: skip

    _LAYOUT = struct.Struct("=IIQIIIHxxQQQQqI4xqI4xqI4xqI4xIIIIQ")

    def __init__(self, buffer: bytes | bytearray) -> None:
        """Decode the first 152 bytes of a struct statx (include/uapi/linux/stat.h)."""
        (
            self.mask, self.blksize, self.attributes, self.nlink, self.uid, self.gid, self.mode,
            self.ino, self.size, self.blocks, self.attributes_mask,
            atime, atime_nsec, btime, btime_nsec, ctime, ctime_nsec, mtime, mtime_nsec,
            self.rdev_major, self.rdev_minor, self.dev_major, self.dev_minor, self.mnt_id,
        ) = self._LAYOUT.unpack_from(buffer)  # fmt: skip
        self.atime_ns: int = atime * 1_000_000_000 + atime_nsec
        self.btime_ns: int = btime * 1_000_000_000 + btime_nsec
        self.ctime_ns: int = ctime * 1_000_000_000 + ctime_nsec
        self.mtime_ns: int = mtime * 1_000_000_000 + mtime_nsec


def statx(dirfd: int, path: bytes, flags: int = 0, mask: int = STATX_BASIC_STATS | STATX_BTIME) -> Statx:
    """statx(2). `Statx.mask` says which fields the file system filled in."""
    buffer = bytearray(256)
    check(_syscall_statx(libc.NR_STATX, dirfd, text(path), flags, mask, libc.view(buffer)), path)
    return Statx(buffer)


# The struct statx of `statx_attributes`, which one thread calls.
_ROOM = libc.chars(256)
_attributes = memoryview(_ROOM).cast("B").cast("Q")
_untyped_syscall = libc.untyped_syscall()
_STATX = c_long(libc.NR_STATX)


def statx_attributes(dirfd: int, path: bytes, flags: int = 0) -> int:
    """The STATX_ATTR_* of a file alone, in half the time. For one thread only."""
    if _untyped_syscall(_STATX, dirfd, text(path), flags, 0, _ROOM) < 0:
        check(-1, path)
    return _attributes[1]  # after stx_mask and stx_blksize


def unique_mount_id(fd: int) -> int:
    """The number of the mount that `fd` (O_PATH will do) is in; no other mount gets it until the next boot.

    0 where the kernel has no such number (before 6.8).
    """
    found = statx(fd, b"", AT_EMPTY_PATH, STATX_MNT_ID_UNIQUE)
    return int(found.mnt_id) if found.mask & STATX_MNT_ID_UNIQUE else 0


def getdents64(fd: int, buffer: bytearray | mmap) -> int:
    """Fill `buffer` with struct linux_dirent64 records; the number of bytes, 0 at the end.

    A record is u64 d_ino, s64 d_off, u16 d_reclen, u8 d_type, then the NUL-terminated name.
    """
    return check(_syscall_getdents64(libc.NR_GETDENTS64, fd, libc.view(buffer), len(buffer)))


def fs_uuid(fd: int) -> bytes | None:
    """The 16-byte uuid of the file system of `fd`, or None when that is unknown (kernels before 6.9).

    It is the superblock's s_uuid, the one that overlayfs writes into its origin xattrs.  btrfs has one,
    but does not tell it in the general way (fs/btrfs/super.c does not call super_set_uuid).
    """
    buffer = bytearray(17)
    try:
        fcntl.ioctl(fd, FS_IOC_GETFSUUID, buffer)
        if buffer[0] == 16:
            return bytes(buffer[1:])
    except OSError:
        pass
    info = bytearray(1024)
    try:
        fcntl.ioctl(fd, BTRFS_IOC_FS_INFO, info)
    except OSError:
        return None
    return bytes(info[16:32])


def ficlone(dst: int, src: int) -> None:
    """Make `dst` share the extents of `src`. EOPNOTSUPP, EXDEV, EINVAL, ENOTTY: not possible here."""
    fcntl.ioctl(dst, FICLONE, src)


def statfs_type(fd: int) -> int:
    """The magic number (`*_MAGIC`) of the file system of `fd`."""
    buffer = bytearray(256)
    check(_fstatfs(fd, libc.view(buffer)))
    return c_long.from_buffer(buffer).value & 0xFFFFFFFF
