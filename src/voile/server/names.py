"""Operations on names and attributes."""

from __future__ import annotations

from itertools import islice

from voile.fuse import abi, replies
from voile.linux import creds, files
from voile.overlay import attr, namei, protect, rename, xattrs
from voile.overlay import dir as overlay_dir
from voile.overlay.dir import Caller
from voile.overlay.inode import Dir, Node
from voile.server.base import Served

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from voile.fuse.requests import Request, SetattrIn
    from voile.overlay.params import Params
    from voile.overlay.super import Overlay

# So many nodes are forgotten before somebody else has a turn.
_FORGET_STEP = 2048


class NameOperations(Served):
    """Lookup, creation, removal, renaming, attributes and extended attributes."""

    def __init__(self, overlay: Overlay, params: Params) -> None:
        super().__init__(overlay, params)
        self._to_forget: list[Iterator[tuple[int, int]]] = []

    def lookup(self, req: Request, name: bytes) -> bytes:
        parent = self.dir(req.nodeid)
        found = namei.lookup(self.overlay, parent, name)
        if found is None:
            return replies.negative_entry(self.valid, self.valid_nsec)
        node, st = found
        return self.entry(node, st)

    def forget(self, nodeid: int, nlookup: int) -> None:
        if self._to_forget:
            self._to_forget.append(iter(((nodeid, nlookup),)))
        else:
            self._forget(nodeid, nlookup)

    def batch_forget(self, many: Iterator[tuple[int, int]]) -> None:
        """Takes turns with others: 65,000 at once would be 100 ms."""
        self._to_forget.append(many)
        if len(self._to_forget) == 1:
            self._forget_some()

    def _forget_some(self) -> None:
        # In the order of the kernel, in which a directory comes after what was in it.
        waiting, turn, done = self._to_forget, _FORGET_STEP, 0
        for many in waiting:
            some = list(islice(many, turn))
            for nodeid, nlookup in some:
                self._forget(nodeid, nlookup)
            turn -= len(some)
            if not turn:
                break
            done += 1
        del waiting[:done]
        if waiting:
            self.pool.soon(self._forget_some)
        else:
            self.overlay.nodes.shrink()

    def _forget(self, nodeid: int, nlookup: int) -> None:
        nodes = self.overlay.nodes
        nodes.forget(nodeid, nlookup)
        if (nodeid in self.mapped or nodeid in self.listings) and not nodes.known(nodeid):
            self.mapped.discard(nodeid)
            self.drop_listing(nodeid)

    def readlink(self, req: Request) -> bytes:
        return attr.readlink(self.overlay, self.node(req.nodeid))

    def symlink(self, req: Request, name: bytes, target: bytes) -> bytes:
        self.names_changed(req.nodeid)
        caller = Caller(req.uid, req.gid)
        return self.entry(*overlay_dir.symlink(self.overlay, self.dir(req.nodeid), name, target, caller))

    def mknod(self, req: Request, name: bytes, mode: int, rdev: int, umask: int) -> bytes:
        self.names_changed(req.nodeid)
        caller = Caller(req.uid, req.gid, umask)
        return self.entry(*overlay_dir.mknod(self.overlay, self.dir(req.nodeid), name, mode, rdev, caller))

    def mkdir(self, req: Request, name: bytes, mode: int, umask: int) -> bytes:
        self.names_changed(req.nodeid)
        caller = Caller(req.uid, req.gid, umask)
        return self.entry(*overlay_dir.mkdir(self.overlay, self.dir(req.nodeid), name, mode, caller))

    def unlink(self, req: Request, name: bytes) -> None:
        self.names_changed(req.nodeid)
        overlay_dir.unlink(self.overlay, self.dir(req.nodeid), name)

    def rmdir(self, req: Request, name: bytes) -> None:
        self.names_changed(req.nodeid)
        overlay_dir.rmdir(self.overlay, self.dir(req.nodeid), name)

    def rename(self, req: Request, name: bytes, newdir: int, newname: bytes, flags: int) -> None:
        self.names_changed(req.nodeid)
        self.names_changed(newdir)
        old, new = self.dir(req.nodeid), self.dir(newdir)
        rename.rename(self.overlay, old, name, new, newname, flags)
        if old is not new:
            # The kernel may have a listing of what moved, with another d_ino for "..".
            for node in (old.children.get(name), new.children.get(newname)):
                if isinstance(node, Dir) and node.id:
                    self.session.notify_inval_inode(node.id, 0)

    def link(self, req: Request, oldnodeid: int, newname: bytes) -> bytes:
        self.names_changed(req.nodeid)
        node = self.node(oldnodeid)
        return self.entry(node, overlay_dir.link(self.overlay, node, self.dir(req.nodeid), newname))

    def getattr(self, req: Request, flags: int, fh: int | None) -> bytes:
        overlay, nodeid = self.overlay, req.nodeid
        node = overlay.nodes.by_id[nodeid]
        return self.attributes(nodeid, node, overlay.stat(node))

    def statx(self, req: Request, flags: int, fh: int | None, sx_flags: int, sx_mask: int) -> bytes:
        node = self.node(req.nodeid)
        dir_fd, name, at_flags = attr.place(self.overlay, node)
        st = files.statx(dir_fd, name, at_flags, sx_mask | files.STATX_BASIC_STATS)
        self.overlay.births_known = True
        nlink = attr.shown_nlink(node, st.nlink)
        blocks = self._blocks(node, st)
        mapped = req.nodeid in self.mapped
        # The attributes that mean something on any file system; a mount root of a layer is none of ours.
        attributes = st.attributes & _STATX_ATTRIBUTES
        return replies.statx_out(
            0 if mapped else self.valid, 0 if mapped else self.valid_nsec,
            st.mask & (files.STATX_BASIC_STATS | files.STATX_BTIME), st.blksize, attributes, nlink,
            st.uid, st.gid, st.mode, node.ino, st.size, blocks, st.attributes_mask & _STATX_ATTRIBUTES,
            st.atime_ns, st.btime_ns, st.ctime_ns, st.mtime_ns, st.rdev_major, st.rdev_minor,
        )  # fmt: skip

    def _blocks(self, node: Node, st: files.Statx) -> int:
        meta = None if node.extra is None else node.extra.meta
        if meta is None or self.overlay.meta is None:
            return int(st.blocks)
        return self.overlay.meta.blocks(meta, st.size, st.blksize)

    def setattr(self, req: Request, args: SetattrIn) -> bytes:
        overlay, valid = self.overlay, args.valid
        node = self.node(req.nodeid)
        if node.flags:
            _check_flags(overlay, node, args)
        if valid & (abi.FATTR_UID | abi.FATTR_GID):
            uid = args.uid if valid & abi.FATTR_UID else -1
            gid = args.gid if valid & abi.FATTR_GID else -1
            kills = valid & abi.FATTR_KILL_SUIDGID and req.uid != 0
            attr.chown(overlay, node, uid, gid, self.keeps_sgid(req) if kills else None)
        if valid & abi.FATTR_SIZE:
            if valid & abi.FATTR_KILL_SUIDGID:
                attr.drop_privileges(overlay, node, self.keeps_sgid(req))
            attr.truncate(overlay, node, args.size, is_open=args.fh is not None)
        if valid & abi.FATTR_MODE:
            attr.chmod(overlay, node, args.mode)
        if valid & (abi.FATTR_ATIME | abi.FATTR_MTIME):
            attr.utimes(overlay, node, *_times(args))
        return self.attributes(req.nodeid, node, overlay.stat(node))

    def statfs(self, req: Request) -> bytes:
        return replies.statfs_out(self.overlay.statvfs())

    def getxattr(self, req: Request, name: bytes, size: int) -> bytes:
        return attr.getxattr(self.overlay, self.node(req.nodeid), name)

    def listxattr(self, req: Request, size: int) -> bytes:
        names = attr.listxattr(self.overlay, self.node(req.nodeid))
        if any(name.startswith(b"trusted.") for name in names) and not _may_see_trusted(req):
            names = [name for name in names if not name.startswith(b"trusted.")]
        return b"".join(name + b"\0" for name in names)

    def setxattr(self, req: Request, name: bytes, value: bytes, flags: int, setxattr_flags: int) -> None:
        node = self.node(req.nodeid)
        if node.flags:
            protect.may_change(self.overlay, node)
        attr.setxattr(self.overlay, node, name, value, flags)
        if setxattr_flags & abi.SETXATTR_ACL_KILL_SGID and name == xattrs.ACL_ACCESS:
            self._drop_sgid(node)

    def _drop_sgid(self, node: Node) -> None:
        # Setting or removing an access ACL by somebody outside the group (ovl_set_acl).
        mode = self.overlay.stat(node).st_mode
        if mode & 0o2000:
            attr.chmod(self.overlay, node, mode & ~0o2000)

    def removexattr(self, req: Request, name: bytes) -> None:
        node = self.node(req.nodeid)
        if node.flags:
            protect.may_change(self.overlay, node)
        if name == xattrs.ACL_ACCESS and not self.keeps_sgid(req)(self.overlay.stat(node).st_gid):
            self._drop_sgid(node)  # FUSE has a flag for setting one only
        attr.removexattr(self.overlay, node, name)


# STATX_ATTR_COMPRESSED, IMMUTABLE, APPEND, NODUMP, ENCRYPTED, VERITY.
_STATX_ATTRIBUTES = 0x4 | 0x10 | 0x20 | 0x40 | 0x800 | 0x100000


_CHANGES = abi.FATTR_MODE | abi.FATTR_UID | abi.FATTR_GID
_TIMES = abi.FATTR_ATIME | abi.FATTR_MTIME
_NOW = abi.FATTR_ATIME_NOW | abi.FATTR_MTIME_NOW


def _check_flags(overlay: Overlay, node: Node, args: SetattrIn) -> None:
    """What the VFS forbids for an object that may be immutable or append-only (`may_setattr`)."""
    valid = args.valid
    if valid & abi.FATTR_SIZE:
        # With the times that it sets.
        protect.may_truncate(overlay, node, args.fh is not None)
    elif valid & _CHANGES or (valid & _TIMES and valid & _NOW != _NOW):
        protect.may_change(overlay, node)
    elif valid & _TIMES:
        protect.may_touch(overlay, node)


def _times(args: SetattrIn) -> tuple[int, int]:
    valid = args.valid
    atime = mtime = attr.UTIME_OMIT
    if valid & abi.FATTR_ATIME:
        atime = attr.UTIME_NOW if valid & abi.FATTR_ATIME_NOW else args.atime_ns
    if valid & abi.FATTR_MTIME:
        mtime = attr.UTIME_NOW if valid & abi.FATTR_MTIME_NOW else args.mtime_ns
    return atime, mtime


def _may_see_trusted(req: Request) -> bool:
    """`ovl_can_list`: trusted.* names are listed for CAP_SYS_ADMIN only."""
    return creds.pid_has_cap(req.pid, creds.CAP_SYS_ADMIN)


