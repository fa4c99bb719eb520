"""FUSE_PASSTHROUGH: backing files that the kernel reads and writes itself (Linux ≥ 6.9).

The kernel allows one backing file per inode at a time: a second open of the node with another backing id is
refused with EBUSY (fs/fuse/iomode.c fuse_file_uncached_io_open), so share one id per node and count its
opens.
"""

from __future__ import annotations

from errno import EPERM
from fcntl import ioctl
from struct import Struct

from voile.fuse import abi
from voile.linux import creds

_pack_map = abi.BACKING_MAP.pack
_pack_id = Struct("=I").pack
_without_fsetid: creds.Without | None = None


def permitted(device: int) -> bool:
    """Whether the kernel lets us register backing files, once INIT has been answered.

    It offers PASSTHROUGH to everybody, but each call checks first for CAP_SYS_ADMIN in the initial user
    namespace (fs/fuse/backing.c fuse_backing_open).
    """
    try:
        backing_open(device, -1)
    except OSError as exc:
        return exc.errno != EPERM
    return True


def backing_open(device: int, fd: int) -> int:
    """Register the open file *fd* (O_PATH will do) with the connection of *device*; return its backing id.

    The kernel opens the file anew with the flags of each opener. Raises OSError: EPERM without CAP_SYS_ADMIN
    in the initial user namespace or without INIT's PASSTHROUGH, ELOOP when its file system is stacked too
    deep, EINVAL or EOPNOTSUPP when it is not a regular file or cannot be read and written through.
    """
    global _without_fsetid
    if _without_fsetid is None:
        _without_fsetid = creds.Without(creds.CAP_FSETID)
    # The kernel writes with the credentials of this moment (struct fuse_backing), whoever the writer is.
    # With CAP_FSETID it would leave a file its set-id bits (setattr_should_drop_suidgid).
    with _without_fsetid:
        # A bytearray, because for immutable bytes ioctl() would lose the id that the call returns.
        backing_id: int = ioctl(device, abi.DEV_IOC_BACKING_OPEN, bytearray(_pack_map(fd, 0)))
    return backing_id


def backing_close(device: int, backing_id: int) -> None:
    """Drop the id. Files opened with it keep their backing file. Raises OSError ENOENT for an unknown id."""
    ioctl(device, abi.DEV_IOC_BACKING_CLOSE, bytearray(_pack_id(backing_id)))
