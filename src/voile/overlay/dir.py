"""Changes of directories: create, mkdir, mknod, symlink, link, unlink, rmdir.

Theory of operation
-------------------
A new object is made directly in the upper directory; where a whiteout is in the way it
is made in ``work/work`` and renamed over the whiteout, so that a kill in between never
uncovers what the whiteout hides (fs/overlayfs/dir.c, `ovl_create_over_whiteout`).  The
upper file system itself applies umask, default ACLs and set-group-id inheritance.

A removal leaves a whiteout exactly when a lower layer has the name.

Every operation copies up first and changes nothing before (see copy_up).
"""

from __future__ import annotations

import os
import stat
from errno import EEXIST, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM

from voile.linux import files
from voile.overlay import aufs, namei, protect, readdir, whiteout, xattrs
from voile.overlay.copy_up import Busy, copy_up, set_impure
from voile.overlay.inode import Dir, Indexed, Node
from voile.overlay.layers import DIR_READ, RealDir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from voile.overlay.super import Overlay

    T = TypeVar("T")

CREATE_FLAGS = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Caller:
    """On whose behalf something is made: ids and umask."""

    __slots__ = ("uid", "gid", "umask")

    def __init__(self, uid: int, gid: int, umask: int = 0) -> None:
        self.uid = uid
        self.gid = gid
        self.umask = umask


def create(
    ofs: Overlay, parent: Dir, name: bytes, flags: int, mode: int, caller: Caller
) -> tuple[Node, os.stat_result, int]:
    """Makes a regular file and opens it; `flags` are the access mode and O_APPEND and the like.

    Returns:
        The node, its status, and an open descriptor.
    """
    fd = _make(
        ofs, parent, name, caller,
        lambda dir_fd, real: os.open(real, flags | CREATE_FLAGS, mode & 0o7777, dir_fd=dir_fd),
    )  # fmt: skip
    try:
        node, st = _new_node(ofs, parent, name, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return node, st, fd


def mkdir(ofs: Overlay, parent: Dir, name: bytes, mode: int, caller: Caller) -> tuple[Node, os.stat_result]:
    """mkdir(2)."""
    _make(
        ofs, parent, name, caller,
        lambda dir_fd, real: os.mkdir(real, mode & 0o7777, dir_fd=dir_fd), is_dir=True,
    )  # fmt: skip
    return _new_node(ofs, parent, name)


def mknod(
    ofs: Overlay, parent: Dir, name: bytes, mode: int, rdev: int, caller: Caller
) -> tuple[Node, os.stat_result]:
    """mknod(2).

    Raises:
        OSError: EPERM for the device number of whiteouts, as ovl_mknod.
    """
    if stat.S_ISCHR(mode) and rdev == whiteout.DEVICE:
        raise OSError(EPERM, "that would be a whiteout")
    _make(
        ofs, parent, name, caller,
        lambda dir_fd, real: os.mknod(real, mode, rdev, dir_fd=dir_fd),
    )  # fmt: skip
    return _new_node(ofs, parent, name)


def symlink(
    ofs: Overlay, parent: Dir, name: bytes, target: bytes, caller: Caller
) -> tuple[Node, os.stat_result]:
    """symlink(2)."""
    _make(
        ofs, parent, name, caller,
        lambda dir_fd, real: os.symlink(target, real, dir_fd=dir_fd),
    )  # fmt: skip
    return _new_node(ofs, parent, name)


def tmpfile(
    ofs: Overlay, parent: Dir, flags: int, mode: int, caller: Caller
) -> tuple[Node, os.stat_result, int]:
    """open(2) with O_TMPFILE: a file without a name, until `link` gives it one."""
    if parent.flags:
        protect.may_create(ofs, parent)
    copy_up(ofs, parent)
    upper = _upper(parent)
    ofs.creds.become(caller.uid, caller.gid, caller.umask)
    keep = flags & (os.O_ACCMODE | os.O_EXCL | os.O_APPEND)
    fd = os.open(b".", keep | os.O_TMPFILE | os.O_CLOEXEC, mode & 0o7777, dir_fd=ofs.fds.fd(upper))
    try:
        st = os.fstat(fd)
        ofs.origins.pop(st.st_ino, None)
        node = Node(parent, b"", upper, ofs.map_ino(upper.layer, st.st_ino), stat.S_IFREG)
        node.parent, node.flags = None, 0
        node.more().fd = os.open(xattrs.proc_fd(fd), os.O_PATH | os.O_CLOEXEC)
    except BaseException:
        os.close(fd)
        raise
    return node, st, fd


def link(ofs: Overlay, node: Node, parent: Dir, name: bytes) -> os.stat_result:
    """link(2): a further name for `node`; returns its status."""
    if parent.flags:
        protect.may_create(ofs, parent)
    if node.flags:
        protect.may_change(ofs, node)
    if node.parent is None and not node.is_upper and not isinstance(node.extra, Indexed):
        # By stat(2), and so for FUSE, it still has the link count of the lower file; the kernel counts names.
        raise OSError(ENOENT, "its last name has gone")
    copy_up(ofs, node, metadata=True)

    def make(dir_fd: int, real: bytes) -> None:
        if node.unlinked_fd >= 0:
            source = xattrs.proc_fd(node.unlinked_fd)
            files.linkat(files.AT_FDCWD, source, dir_fd, real, files.AT_SYMLINK_FOLLOW)
        else:
            os.link(
                node.place, real, src_dir_fd=ofs.fds.fd(node.real), dst_dir_fd=dir_fd, follow_symlinks=False
            )

    copy_up(ofs, parent)
    if ofs.index is not None:
        ofs.index.nlink_start(node, None)
    if ofs.meta is not None:
        at = None if node.parent is None else (node.parent, node.name)
        if ofs.index is not None and isinstance(node.extra, Indexed):
            at = ofs.index.name_for(node, None)
        ofs.meta.set_redirect(node, at, same_dir=False)
    before = ofs.stat(node)
    if node.ino != ofs.map_ino(node.real.layer, before.st_ino):
        set_impure(ofs, parent)
    _make(ofs, parent, name, None, make)
    st = os.stat(name, dir_fd=ofs.fds.fd(_upper(parent)), follow_symlinks=False)
    ofs.nodes.index(node, st.st_ino)
    ofs.nodes.add_link(node, parent, name)
    if ofs.index is not None:
        ofs.index.linked(node, parent, name)
    return st if ofs.meta is None else ofs.stat(node)


def _upper(parent: Dir) -> RealDir:
    if parent.dead or parent.upper is None:
        raise OSError(ENOENT, "the directory was removed")
    return parent.upper


def _new_node(
    ofs: Overlay, parent: Dir, name: bytes, st: os.stat_result | None = None
) -> tuple[Node, os.stat_result]:
    upper = _upper(parent)
    if st is None:
        st = os.stat(name, dir_fd=ofs.fds.fd(upper), follow_symlinks=False)
    ofs.origins.pop(st.st_ino, None)  # of another object that had this number
    ino = ofs.map_ino(upper.layer, st.st_ino)
    node: Node
    if stat.S_ISDIR(st.st_mode):
        node = Dir(parent, name, RealDir(upper.layer, upper, name), (), ino)
    else:
        node = Node(parent, name, upper, ino, stat.S_IFMT(st.st_mode))
    node.flags = 0
    parent.children[name] = node
    return node, st


def _make(
    ofs: Overlay,
    parent: Dir,
    name: bytes,
    caller: Caller | None,
    make: Callable[[int, bytes], T],
    is_dir: bool = False,
) -> T:
    """Runs `make(directory fd, name)` so that `name` appears in `parent`, complete."""
    if parent.flags:
        protect.may_create(ofs, parent)
    if ofs.aufs:
        aufs.refuse(name)
    copy_up(ofs, parent)
    upper = _upper(parent)
    fd = ofs.fds.fd(upper)
    _become(ofs, caller)
    try:
        result = make(fd, name)
    except FileExistsError:
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if not whiteout.hides(ofs.names, fd, name, st):
            raise
        return _make_over_whiteout(ofs, parent, name, caller, make, is_dir)
    if is_dir and parent.lowers and not ofs.lowers_may_change:
        # Nothing lies below; saying so saves later lookups (ovl_create_upper: "just an optimization").
        try:
            set_opaque(ofs, fd, name)
        except OSError:
            pass
    return result


def _become(ofs: Overlay, caller: Caller | None) -> None:
    if caller is None:
        ofs.creds.mounter()
    else:
        ofs.creds.become(caller.uid, caller.gid, caller.umask)


def _make_over_whiteout(
    ofs: Overlay,
    parent: Dir,
    name: bytes,
    caller: Caller | None,
    make: Callable[[int, bytes], T],
    is_dir: bool,
) -> T:
    temp = ofs.temp_name()
    nursery = -1
    try:
        if caller is not None:
            nursery = _nursery(ofs, parent, temp)
        made_dir, made = (nursery, b"new") if nursery >= 0 else (ofs.work_fd, temp)
        _become(ofs, caller)
        result = make(made_dir, made)
        if is_dir:
            set_opaque(ofs, made_dir, made)
        flags = files.RENAME_EXCHANGE if is_dir else 0
        files.renameat2(made_dir, made, ofs.fds.fd(_upper(parent)), name, flags)
    finally:
        if nursery >= 0:
            os.close(nursery)
        # The nursery, the whiteout that a directory was exchanged for, or a failed attempt.
        ofs.discard(temp)
    return result


def _nursery(ofs: Overlay, parent: Dir, temp: bytes) -> int:
    """A directory in work that bequeaths what `parent` bequeaths: group and default ACL.

    So the file system below does the arithmetic that ovl_create_over_whiteout does with
    posix_acl_create().  -1: there is nothing to bequeath, work itself will do.
    """
    parent_fd = ofs.fds.fd(_upper(parent))
    acl = xattrs.get(xattrs.proc_fd(parent_fd), xattrs.ACL_DEFAULT, follow=True)
    st = os.fstat(parent_fd)
    if acl is None and not st.st_mode & stat.S_ISGID:
        return -1
    ofs.creds.mounter()
    os.mkdir(temp, 0o700, dir_fd=ofs.work_fd)
    fd = os.open(temp, DIR_READ, dir_fd=ofs.work_fd)
    try:
        os.fchown(fd, -1, st.st_gid)
        os.fchmod(fd, 0o700 | (st.st_mode & stat.S_ISGID))
        if acl is not None:
            os.setxattr(fd, xattrs.ACL_DEFAULT, acl)
    except BaseException:
        os.close(fd)
        raise
    return fd


def set_opaque(ofs: Overlay, dir_fd: int, name: bytes) -> None:
    """Marks a directory: nothing below it shows."""
    os.setxattr(xattrs.proc_path(dir_fd, name), ofs.names.opaque, b"y", follow_symlinks=False)


def child(ofs: Overlay, parent: Dir, name: bytes) -> Node:
    """The node that is about to be removed or renamed.

    Raises:
        Busy: it is being copied up.
        OSError: ENOENT.
    """
    node = parent.children.get(name)
    if node is None:
        found = namei.lookup(ofs, parent, name)
        if found is None:
            raise OSError(ENOENT, "no such entry")
        node = found[0]
    if node.extra is not None and node.extra.job is not None:
        raise Busy(node.extra.job)
    return node


def hold(ofs: Overlay, node: Node) -> None:
    """Keeps an object reachable whose last known name is about to go, if anybody uses it."""
    if isinstance(node, Dir):
        ofs.fds.pin(node.top)
    elif node.is_upper and node.nlookup > 0 and node.unlinked_fd < 0:
        if node.extra is None or not node.extra.links:
            ofs.nodes.hold(node)


def release_hold(node: Node) -> None:
    """Takes `hold` back after a failure."""
    if isinstance(node, Dir):
        node.top.pinned = False
    elif node.extra is not None and node.extra.fd >= 0 and node.parent is not None:
        os.close(node.extra.fd)
        node.extra.fd = -1


def gone(ofs: Overlay, node: Node, parent: Dir, name: bytes) -> None:
    """Unhooks a name that does not exist any more."""
    ofs.nodes.drop_link(node, parent, name)
    if ofs.index is not None:
        ofs.index.unlinked(node)
    if isinstance(node, Dir):
        node.dead = True
    if node.nlookup == 0:
        ofs.nodes.release(node)


def unlink(ofs: Overlay, parent: Dir, name: bytes) -> None:
    """unlink(2)."""
    node = child(ofs, parent, name)
    if parent.flags or node.flags:
        protect.may_delete(ofs, parent, node)
    if isinstance(node, Dir):
        raise OSError(EISDIR, "is a directory")
    _remove(ofs, node, parent, name)


def rmdir(ofs: Overlay, parent: Dir, name: bytes) -> None:
    """rmdir(2)."""
    node = child(ofs, parent, name)
    if parent.flags or node.flags:
        protect.may_delete(ofs, parent, node)
    if not isinstance(node, Dir):
        raise OSError(ENOTDIR, "not a directory")
    if not readdir.is_empty(ofs, node):
        raise OSError(ENOTEMPTY, "directory not empty")
    _remove(ofs, node, parent, name)


def _remove(ofs: Overlay, node: Node, parent: Dir, name: bytes) -> None:
    """Removes a name, and leaves a whiteout where a lower layer has it."""
    if parent.upper is None or not ofs.writable:
        copy_up(ofs, parent)
    if ofs.index is not None:
        ofs.index.nlink_start(node, (parent, name))
    upper = _upper(parent)
    fd = ofs.fds.fd(upper)
    if not (node.is_dir or node.is_upper):  # it stays where it is
        ofs.whiteouts.make(fd, name)
        gone(ofs, node, parent, name)
        return
    hold(ofs, node)
    try:
        if not node.is_upper:
            ofs.whiteouts.make(fd, name)
        elif namei.lower_positive(ofs, parent, name):
            ofs.whiteouts.cover(upper, name, is_dir=node.is_dir)
        elif not node.is_dir:
            os.unlink(name, dir_fd=fd)
        else:
            _remove_upper_dir(ofs, fd, name)
    except OSError:
        release_hold(node)
        raise
    gone(ofs, node, parent, name)


def _remove_upper_dir(ofs: Overlay, dir_fd: int, name: bytes) -> None:
    """Removes a directory that shows nothing, but may hold whiteouts."""
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except OSError as exc:
        if exc.errno not in (ENOTEMPTY, EEXIST):
            raise
        temp = ofs.temp_name()
        files.renameat2(dir_fd, name, ofs.work_fd, temp, files.RENAME_NOREPLACE)
        ofs.discard(temp)


