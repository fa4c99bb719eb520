"""mount(2), umount2(2) and the mount API of Linux 5.2 and later. All raise OSError."""

from __future__ import annotations

from voile.linux import libc
from voile.linux.libc import c_char_p, c_int, c_size_t, c_uint, c_ulong, c_void_p, check, text

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_FORCE = 1
MNT_DETACH = 2
MNT_EXPIRE = 4
UMOUNT_NOFOLLOW = 8

FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1

_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_SET_FD = 5
_FSCONFIG_CMD_CREATE = 6

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_RELATIME = 0x0
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = 0x80000
AT_RECURSIVE = 0x8000

MOVE_MOUNT_F_SYMLINKS = 0x1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_SYMLINKS = 0x10
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOVE_MOUNT_BENEATH = 0x200

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000

_mount = libc.function("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = libc.function("umount2", c_char_p, c_int)
_syscall_fsopen = libc.syscall_function(c_char_p, c_uint)
_syscall_fsconfig = libc.syscall_function(c_int, c_uint, c_char_p, c_char_p, c_int)
_syscall_fsmount = libc.syscall_function(c_int, c_uint, c_uint)
_syscall_move_mount = libc.syscall_function(c_int, c_char_p, c_int, c_char_p, c_uint)
_syscall_open_tree = libc.syscall_function(c_int, c_char_p, c_uint)
_syscall_mount_setattr = libc.syscall_function(c_int, c_char_p, c_uint, c_void_p, c_size_t)


def mount(
    source: bytes | None, target: bytes, fstype: bytes | None, flags: int, data: bytes | None = None
) -> None:
    """mount(2). The path in the error is the target."""
    for value in (source, target, fstype, data):
        if value is not None:
            text(value)
    check(_mount(source, target, fstype, flags, data), target)


def umount2(target: bytes, flags: int = 0) -> None:
    """umount2(2) with MNT_DETACH, UMOUNT_NOFOLLOW, ..."""
    check(_umount2(text(target), flags), target)


def fsopen(fstype: bytes, flags: int = FSOPEN_CLOEXEC) -> int:
    """A file system context, to be configured. What it has to say about errors can be read from the fd."""
    return check(_syscall_fsopen(libc.NR_FSOPEN, text(fstype), flags))


def fsconfig_string(fs: int, key: bytes, value: bytes) -> None:
    """Set the parameter `key` to a string (at most 255 bytes)."""
    check(_syscall_fsconfig(libc.NR_FSCONFIG, fs, _FSCONFIG_SET_STRING, text(key), text(value), 0), key)


def fsconfig_flag(fs: int, key: bytes) -> None:
    """Set the flag `key`."""
    check(_syscall_fsconfig(libc.NR_FSCONFIG, fs, _FSCONFIG_SET_FLAG, text(key), None, 0), key)


def fsconfig_fd(fs: int, key: bytes, fd: int) -> None:
    """Set the parameter `key` to an open file."""
    check(_syscall_fsconfig(libc.NR_FSCONFIG, fs, _FSCONFIG_SET_FD, text(key), None, fd), key)


def fsconfig_create(fs: int) -> None:
    """Create the superblock from what has been configured."""
    check(_syscall_fsconfig(libc.NR_FSCONFIG, fs, _FSCONFIG_CMD_CREATE, None, None, 0))


def fsmount(fs: int, flags: int = FSMOUNT_CLOEXEC, attributes: int = 0) -> int:
    """An fd (O_PATH) of a detached mount of the context, with these MOUNT_ATTR_*."""
    return check(_syscall_fsmount(libc.NR_FSMOUNT, fs, flags, attributes))


def move_mount(from_dirfd: int, from_path: bytes, to_dirfd: int, to_path: bytes, flags: int) -> None:
    """Attach a detached mount, or move an attached one. See MOVE_MOUNT_*."""
    check(
        _syscall_move_mount(libc.NR_MOVE_MOUNT, from_dirfd, text(from_path), to_dirfd, text(to_path), flags),
        to_path,
    )


def open_tree(dirfd: int, path: bytes, flags: int) -> int:
    """An O_PATH fd of a mount, or with OPEN_TREE_CLONE of a detached copy (AT_RECURSIVE: of a tree)."""
    return check(_syscall_open_tree(libc.NR_OPEN_TREE, dirfd, text(path), flags | OPEN_TREE_CLOEXEC), path)


def mount_setattr(
    dirfd: int,
    path: bytes,
    flags: int,
    attr_set: int,
    attr_clr: int,
    propagation: int = 0,
    userns_fd: int = 0,
) -> None:
    """Change MOUNT_ATTR_* and the propagation (MS_PRIVATE, ...) of a mount, with AT_RECURSIVE of a tree."""
    attributes = libc.array(libc.c_uint64, [attr_set, attr_clr, propagation, userns_fd])
    check(_syscall_mount_setattr(libc.NR_MOUNT_SETATTR, dirfd, text(path), flags, attributes, 32), path)
