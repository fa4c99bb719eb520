"""What the flags immutable and append-only forbid.

Theory of operation
-------------------
The kernel's overlayfs copies these flags into its inode, and the VFS looks there.  A FUSE inode cannot have
them, so the VFS's checks (fs/namei.c, fs/attr.c, fs/open.c) are made here, with the same errno.

Nothing may be paid for flags that nobody has set.  `Node.flags` of an object that was made through this
mount is 0, and callers look no further.  Of an object that was found it is FLAGS_UNKNOWN until somebody wants
to change it: then one system call tells (`flags_of`).
"""

from __future__ import annotations

import os
from errno import EINVAL, ENOTTY, EOPNOTSUPP, EPERM

from voile.linux import fileattr, files
from voile.overlay import xattrs
from voile.overlay.inode import FLAGS_UNKNOWN, Dir, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.overlay.super import Overlay

# The bits of `Node.flags`: as in statx(2) and FS_IOC_GETFLAGS, where they have the same values.
IMMUTABLE = files.STATX_ATTR_IMMUTABLE
APPEND = files.STATX_ATTR_APPEND
MASK = IMMUTABLE | APPEND

# Flags that a copy-up sets on the copy itself (OVL_COPY_FS_FLAGS_MASK); all others, like nodump, are lost.
_COPIED = fileattr.FS_SYNC_FL | fileattr.FS_NOATIME_FL
_NO_FLAGS = (ENOTTY, EINVAL, EOPNOTSUPP)

_LETTERS = {ord("i"): IMMUTABLE, ord("a"): APPEND}
_FORMATS = (0o100000, 0o040000)


def flags_of(ofs: Overlay, node: Node) -> int:
    """`IMMUTABLE` and `APPEND` of a node (`ovl_copyflags`, `ovl_check_protattr`)."""
    flags = node.flags
    if flags == FLAGS_UNKNOWN:
        flags = node.flags = _learn(ofs, node)
    return flags


def _learn(ofs: Overlay, node: Node) -> int:
    if node.fmt not in _FORMATS:
        return 0
    if isinstance(node, Dir):
        place = ofs.fds.fd(node.top), b".", files.AT_SYMLINK_NOFOLLOW
    elif node.extra is None:
        place = ofs.fds.fd(node.real), node.name, files.AT_SYMLINK_NOFOLLOW
    elif node.extra.fd >= 0:
        place = files.AT_FDCWD, xattrs.proc_fd(node.extra.fd), 0
    else:
        place = ofs.fds.fd(node.real), node.place, files.AT_SYMLINK_NOFOLLOW
    if node.is_upper:
        return decode(xattrs.get_at(place[0], place[1], ofs.names.protattr, place[2]) or b"")
    protection = files.statx_attributes(*place) & MASK
    return protection if protection and _has_flags(*place) else 0


def _has_flags(dir_fd: int, name: bytes, at_flags: int) -> bool:
    """Whether the file system has flags at all: erofs says of everything that it is immutable."""
    nofollow = os.O_NOFOLLOW if at_flags else 0
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | nofollow | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError:
        return True
    try:
        fileattr.get_flags(fd)
    except OSError as exc:
        return exc.errno not in _NO_FLAGS
    finally:
        os.close(fd)
    return True


def decode(value: bytes) -> int:
    """What a `protattr` attribute stands for; nothing, if it has an unknown letter (`ovl_check_protattr`)."""
    flags = 0
    for letter in value:
        if letter not in _LETTERS:
            return 0
        flags |= _LETTERS[letter]
    return flags


def encode(flags: int) -> bytes:
    """The value of the attribute (`ovl_set_protattr`)."""
    return (b"a" if flags & APPEND else b"") + (b"i" if flags & IMMUTABLE else b"")


def store(ofs: Overlay, fd: int, flags: int) -> None:
    """Stores `flags`, not 0, for an upper object; raises OSError EPERM where there is no place for them."""
    try:
        os.setxattr(fd, ofs.names.protattr, encode(flags))
    except OSError as exc:
        if exc.errno == EOPNOTSUPP:
            raise OSError(EPERM, "no attributes in the upper layer") from None
        raise


def copy(ofs: Overlay, src: int, dst: int) -> None:
    """Gives an object that is copied up the flags of the lower one (`ovl_copy_fileattr`)."""
    try:
        flags = fileattr.get_flags(src)
    except OSError as exc:
        if exc.errno in _NO_FLAGS:
            return
        raise
    if flags & MASK:
        # Those of a file system that enforces them: a FUSE file system only says so.
        protection = files.statx(src, b"", files.AT_EMPTY_PATH, 0).attributes & MASK
        try:
            if protection:
                store(ofs, dst, protection)
        except PermissionError:
            pass
    if flags & _COPIED:
        try:
            fileattr.set_flags(dst, fileattr.get_flags(dst) & ~_COPIED | flags & _COPIED)
        except OSError as exc:
            if exc.errno not in _NO_FLAGS:
                raise


def _refuse(ofs: Overlay, node: Node, mask: int) -> None:
    if node.flags and flags_of(ofs, node) & mask:
        raise OSError(EPERM, "immutable or append-only")


# Each of these raises OSError EPERM.  Callers may leave them out where `Node.flags` is 0.


def may_create(ofs: Overlay, parent: Dir) -> None:
    """A new name in `parent` (`may_create`: MAY_WRITE)."""
    _refuse(ofs, parent, IMMUTABLE)


def may_delete(ofs: Overlay, parent: Dir, node: Node) -> None:
    """A name that goes, by a removal or a rename (`may_delete`)."""
    if (parent.flags and flags_of(ofs, parent) & MASK) or (node.flags and flags_of(ofs, node) & MASK):
        raise OSError(EPERM, "immutable or append-only")


def may_change(ofs: Overlay, node: Node) -> None:
    """Mode, owner, given times, attributes, a new link (`may_setattr`, `xattr_permission`, `vfs_link`)."""
    _refuse(ofs, node, MASK)


def may_touch(ofs: Overlay, node: Node) -> None:
    """Both times to now (`may_setattr`: ATTR_TOUCH)."""
    _refuse(ofs, node, IMMUTABLE)


def may_truncate(ofs: Overlay, node: Node, is_open: bool) -> None:
    """Another size (`vfs_truncate`); who has it open already could write to it then (`do_ftruncate`)."""
    _refuse(ofs, node, APPEND if is_open else MASK)


def may_open(ofs: Overlay, node: Node, flags: int) -> None:
    """Opening for writing, or truncating (`may_open`)."""
    appends = flags & os.O_APPEND and not flags & os.O_TRUNC
    _refuse(ofs, node, IMMUTABLE if appends else MASK)


def may_write_at(ofs: Overlay, node: Node) -> None:
    """A write where an open file that appends has been told not to (`setfl`)."""
    _refuse(ofs, node, APPEND)


def may_allocate(ofs: Overlay, node: Node, mode: int) -> None:
    """fallocate(2), also for who has it open already (`vfs_fallocate`)."""
    _refuse(ofs, node, MASK if mode & ~files.FALLOC_FL_KEEP_SIZE else IMMUTABLE)


def may_copy_into(ofs: Overlay, node: Node) -> None:
    """The target of copy_file_range(2), also for who has it open already (`generic_copy_file_checks`)."""
    _refuse(ofs, node, IMMUTABLE)
