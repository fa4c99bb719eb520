"""The flags of chattr(1) on objects of the union (fs/overlayfs/inode.c, `ovl_fileattr_get` and `_set`).

Immutable and append-only are not set in the upper layer, where they would be in the way of the overlay
itself, but kept in the attribute `protattr`; see protect for what they do.  All others are the real object's.
"""

from __future__ import annotations

import os
from errno import ENODATA, EOPNOTSUPP

from voile.linux import fileattr
from voile.overlay import protect
from voile.overlay.attr import proc_path
from voile.overlay.copy_up import copy_up
from voile.overlay.inode import Dir, Node
from voile.overlay.layers import DIR_READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.overlay.super import Overlay

_XFLAGS = fileattr.FS_XFLAG_IMMUTABLE | fileattr.FS_XFLAG_APPEND


def _open(ofs: Overlay, node: Node) -> int:
    if isinstance(node, Dir):
        return os.open(b".", DIR_READ, dir_fd=ofs.fds.fd(node.top))
    # Not the file with the data, which may be another one (metacopy).
    path, follow = proc_path(ofs, node)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(path, flags if follow else flags | os.O_NOFOLLOW)


def _to_xflags(flags: int) -> int:
    immutable = fileattr.FS_XFLAG_IMMUTABLE if flags & protect.IMMUTABLE else 0
    return immutable | (fileattr.FS_XFLAG_APPEND if flags & protect.APPEND else 0)


def _from_xflags(xflags: int) -> int:
    immutable = protect.IMMUTABLE if xflags & fileattr.FS_XFLAG_IMMUTABLE else 0
    return immutable | (protect.APPEND if xflags & fileattr.FS_XFLAG_APPEND else 0)


def get_flags(ofs: Overlay, node: Node) -> int:
    """FS_IOC_GETFLAGS.

    Raises:
        OSError: ENOTTY or what else the real file system says that has none.
    """
    fd = _open(ofs, node)
    try:
        return fileattr.get_flags(fd) | protect.flags_of(ofs, node)
    finally:
        os.close(fd)


def get_fsxattr(ofs: Overlay, node: Node) -> bytes:
    """FS_IOC_FSGETXATTR; raises as `get_flags`."""
    fd = _open(ofs, node)
    try:
        xflags, *rest = fileattr.FSXATTR.unpack(fileattr.get_fsxattr(fd))
    finally:
        os.close(fd)
    return fileattr.FSXATTR.pack(xflags | _to_xflags(protect.flags_of(ofs, node)), *rest)


def set_flags(ofs: Overlay, node: Node, flags: int) -> None:
    """FS_IOC_SETFLAGS, by somebody whom the kernel has allowed it (`fileattr_set_prepare`).

    Raises:
        Busy: see copy_up.
        OSError: as `get_flags`, EPERM where protection flags cannot be stored, EOPNOTSUPP for flags that the
            upper file system does not know.
    """
    get_flags(ofs, node)  # what has no flags cannot get any by a copy-up (vfs_fileattr_set)
    fd = _prepare(ofs, node, flags & protect.MASK)
    try:
        fileattr.set_flags(fd, flags & ~protect.MASK)
    finally:
        os.close(fd)
        ofs.changed(node)


def set_fsxattr(ofs: Overlay, node: Node, value: bytes) -> None:
    """FS_IOC_FSSETXATTR; as `set_flags`."""
    get_fsxattr(ofs, node)
    xflags, *rest = fileattr.FSXATTR.unpack(value)
    fd = _prepare(ofs, node, _from_xflags(xflags))
    try:
        fileattr.set_fsxattr(fd, fileattr.FSXATTR.pack(xflags & ~_XFLAGS, *rest))
    finally:
        os.close(fd)
        ofs.changed(node)


def _prepare(ofs: Overlay, node: Node, flags: int) -> int:
    """Stores the protection flags; an open upper object for the others (`ovl_set_protattr`)."""
    copy_up(ofs, node, metadata=True)
    fd = _open(ofs, node)
    try:
        # Where the upper object has them itself, they forbid this too.
        known = protect.flags_of(ofs, node) | fileattr.get_flags(fd) & protect.MASK
        if flags:
            protect.store(ofs, fd, flags)
        elif known:
            os.removexattr(fd, ofs.names.protattr)
    except OSError as exc:
        if flags or exc.errno not in (ENODATA, EOPNOTSUPP):
            os.close(fd)
            raise
    node.flags = flags
    return fd
