"""The flags of chattr(1): FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR and their counterparts.

All take an open file (not O_PATH) and raise OSError: ENOTTY or EOPNOTSUPP on a file system without flags,
EPERM for who may not change them. The numbers are those of include/uapi/linux/fs.h.
"""

from __future__ import annotations

import struct
from fcntl import ioctl

# _IOR('f', 1, long), _IOW('f', 2, long); the data is an int all the same.
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
# _IOR('X', 31, struct fsxattr), _IOW('X', 32, struct fsxattr)
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820

FS_SYNC_FL = 0x8
FS_IMMUTABLE_FL = 0x10
FS_APPEND_FL = 0x20
FS_NOATIME_FL = 0x80
FS_CASEFOLD_FL = 0x40000000

FS_XFLAG_IMMUTABLE = 0x8
FS_XFLAG_APPEND = 0x10

FLAGS = struct.Struct("=I")
# struct fsxattr: xflags, extsize, nextents, projid, cowextsize, padding.
FSXATTR = struct.Struct("=5I8x")


def get_flags(fd: int) -> int:
    """The FS_*_FL of a file."""
    flags: int = FLAGS.unpack_from(ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))[0]
    return flags


def set_flags(fd: int, flags: int) -> None:
    """Sets all FS_*_FL of a file."""
    ioctl(fd, FS_IOC_SETFLAGS, FLAGS.pack(flags).ljust(8, b"\0"))


def get_fsxattr(fd: int) -> bytes:
    """The `struct fsxattr` of a file."""
    return ioctl(fd, FS_IOC_FSGETXATTR, bytes(FSXATTR.size))


def set_fsxattr(fd: int, value: bytes) -> None:
    """Sets a `struct fsxattr`."""
    ioctl(fd, FS_IOC_FSSETXATTR, value)
