"""Attributes: what stat(2) shows of a node, and how it is changed (fs/overlayfs/inode.c)."""

from __future__ import annotations

import os
import stat
from errno import EINVAL, ENODATA, EOPNOTSUPP, EPERM

from voile.linux import files
from voile.overlay import xattrs
from voile.overlay.copy_up import copy_up
from voile.overlay.inode import Dir, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from voile.overlay.super import Overlay

    KeepsSgid = Callable[[int], bool]

UTIME_NOW = files.UTIME_NOW
UTIME_OMIT = files.UTIME_OMIT

# A group's execute bit makes S_ISGID a set-group-id bit, and not one for mandatory locks.
_SGID_EXEC = stat.S_ISGID | stat.S_IXGRP


def shown_nlink(node: Node, real: int) -> int:
    """The link count that callers see: 1 for a merged directory; the index does not count (ovl_getattr)."""
    if isinstance(node, Dir):
        return 1 if node.is_merge else real
    if node.extra is not None and node.extra.nlink >= 0:
        return node.extra.nlink
    return real


def place(ofs: Overlay, node: Node) -> tuple[int, bytes, int]:
    """The real object of `node`: a directory, a name in it, and the AT_* flags to go with them."""
    if isinstance(node, Dir):
        return ofs.fds.fd(node.top), b".", files.AT_SYMLINK_NOFOLLOW
    if node.unlinked_fd >= 0:
        return files.AT_FDCWD, xattrs.proc_fd(node.unlinked_fd), 0
    return ofs.fds.fd(node.real), node.place, files.AT_SYMLINK_NOFOLLOW


def proc_path(ofs: Overlay, node: Node) -> tuple[bytes, bool]:
    """A path for the real object of `node`, and whether its last component is to be followed."""
    if isinstance(node, Dir):
        return xattrs.proc_fd(ofs.fds.fd(node.top)), True
    if node.unlinked_fd >= 0:
        return xattrs.proc_fd(node.unlinked_fd), True
    return xattrs.proc_path(ofs.fds.fd(node.real), node.place), False


def chmod(ofs: Overlay, node: Node, mode: int) -> None:
    """chmod(2); symbolic links have no mode to change (EOPNOTSUPP)."""
    copy_up(ofs, node, metadata=True)
    if not node.is_dir and node.unlinked_fd < 0:
        fd = ofs.fds.fd(node.real)
        files.fchmodat2(fd, node.place, mode & 0o7777, files.AT_SYMLINK_NOFOLLOW)
        return
    os.chmod(proc_path(ofs, node)[0], mode & 0o7777)


def chown(ofs: Overlay, node: Node, uid: int, gid: int, keeps_sgid: KeepsSgid | None = None) -> None:
    """lchown(2); -1 leaves an id as it is.  The file system below drops the s-bits.

    But for one that it keeps for its caller, the mounter: see `drop_privileges` for `keeps_sgid`.
    """
    copy_up(ofs, node, metadata=True)
    before = None if keeps_sgid is None else ofs.stat(node)
    dir_fd, name, at_flags = place(ofs, node)
    os.chown(name, uid, gid, dir_fd=dir_fd, follow_symlinks=not at_flags)
    if keeps_sgid is not None and before is not None:
        if before.st_mode & _SGID_EXEC == stat.S_ISGID and not keeps_sgid(before.st_gid):
            chmod(ofs, node, ofs.stat(node).st_mode & ~stat.S_ISGID)


def utimes(ofs: Overlay, node: Node, atime_ns: int, mtime_ns: int) -> None:
    """utimensat(2); nanoseconds, `UTIME_NOW` or `UTIME_OMIT`."""
    copy_up(ofs, node, metadata=True)
    dir_fd, name, at_flags = place(ofs, node)
    files.utimensat(dir_fd, name, atime_ns, mtime_ns, at_flags)


def truncate(ofs: Overlay, node: Node, size: int, *, is_open: bool = False) -> None:
    """truncate(2), or ftruncate(2) where the caller has it open.

    The latter sets the times also of a file that has this size already (do_truncate); for the
    former that is the file system's business.
    """
    copy_up(ofs, node, data=size > 0)
    if node.fmt != stat.S_IFREG:
        raise OSError(EINVAL, "not a regular file")
    fd = ofs.open_real(node, os.O_WRONLY)
    try:
        if is_open:
            os.ftruncate(fd, size)
        else:
            os.truncate(xattrs.proc_fd(fd), size)
    finally:
        os.close(fd)


def drop_privileges(ofs: Overlay, node: Node, keeps_sgid: KeepsSgid) -> None:
    """Takes the set-id bits and the file capabilities away, as a write by an ordinary user does.

    `setattr_should_drop_suidgid` and `cap_inode_killpriv`; the daemon's own capabilities
    keep the file system below from doing it.

    Args:
        keeps_sgid: whether the caller may keep S_ISGID of a file of this group that the group may not
            execute (`in_group_or_capable`).
    """
    st = ofs.stat(node)
    if not stat.S_ISREG(st.st_mode):
        return
    mode = st.st_mode & ~stat.S_ISUID
    if mode & stat.S_ISGID and (mode & stat.S_IXGRP or not keeps_sgid(st.st_gid)):
        mode &= ~stat.S_ISGID
    if mode != st.st_mode:
        chmod(ofs, node, mode)
    dir_fd, name, at_flags = place(ofs, node)
    if xattrs.get_at(dir_fd, name, xattrs.CAPABILITY, at_flags) is None:
        return
    copy_up(ofs, node, metadata=True)
    path, follow = proc_path(ofs, node)
    try:
        os.removexattr(path, xattrs.CAPABILITY, follow_symlinks=follow)
    except OSError as exc:
        # EPERM: we are an ordinary user, and the write itself removes them.
        if exc.errno not in (ENODATA, EOPNOTSUPP, EPERM):
            raise


def has_set_id(mode: int) -> bool:
    """Whether a write may take set-id bits away from a file of this mode.

    Also S_ISGID without the group's execute bit: a write that the kernel does for the daemon would take it
    away, for the daemon is not of the file's group (setattr_should_drop_sgid).
    """
    return bool(mode & (stat.S_ISUID | stat.S_ISGID))


def getxattr(ofs: Overlay, node: Node, name: bytes) -> bytes:
    """getxattr(2) with the private names hidden and escaped.

    Raises:
        OSError: ENODATA also for an ACL on a layer that knows none: the mount has ACLs,
            this object has no entry (ovl_get_acl).
    """
    dir_fd, real, at_flags = place(ofs, node)
    try:
        return files.getxattrat(dir_fd, real, ofs.names.to_layer(name), at_flags)
    except OSError as exc:
        if exc.errno == EOPNOTSUPP and name in (xattrs.ACL_ACCESS, xattrs.ACL_DEFAULT):
            raise OSError(ENODATA, "no ACL") from None
        raise


def listxattr(ofs: Overlay, node: Node) -> list[bytes]:
    """listxattr(2) with the private names hidden and escaped."""
    return ofs.names.to_caller(xattrs.listing_at(*place(ofs, node)))


def setxattr(ofs: Overlay, node: Node, name: bytes, value: bytes, flags: int) -> None:
    """setxattr(2); of the names of a hard link none is copied up for it alone (ovl_xattr_set)."""
    if not node.is_upper:
        copy_up(ofs, node, metadata=True)
    path, follow = proc_path(ofs, node)
    os.setxattr(path, ofs.names.to_layer(name), value, flags, follow_symlinks=follow)


def removexattr(ofs: Overlay, node: Node, name: bytes) -> None:
    """removexattr(2); what a lower object does not have is not copied up to be removed."""
    if not node.is_upper:
        getxattr(ofs, node, name)
        copy_up(ofs, node, metadata=True)
    path, follow = proc_path(ofs, node)
    os.removexattr(path, ofs.names.to_layer(name), follow_symlinks=follow)


def readlink(ofs: Overlay, node: Node) -> bytes:
    """readlink(2)."""
    if node.unlinked_fd >= 0:
        return os.readlink(b"", dir_fd=node.unlinked_fd)
    return os.readlink(node.place, dir_fd=ofs.fds.fd(node.real))


