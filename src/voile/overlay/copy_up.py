"""Copy-up: a lower object becomes an upper one, complete or not at all.

Theory of operation
-------------------
The copy is made in ``work/work`` under a temporary name, gets all its data and
attributes there, and is then moved to its place by one rename; a kill at any point
leaves either no upper object or a complete one (fs/overlayfs/copy_up.c).  Ancestors
are copied up first.  On a mount that is not volatile the copy is durable before the
rename makes it visible.

Copying much data, or waiting for a disk, would hold up every other caller.  Such work
is a `CopyUp` job: `copy_up` hands `CopyUp.run` to `Overlay.submit` and raises `Busy`;
whoever serves the request keeps it, adds itself to `CopyUp.waiters` and starts it
again from the beginning when the job is over.  Operations therefore copy up *before*
they change anything.  `run` touches only its own descriptors, so it may be in another
thread; `finish` is back in the thread that owns the nodes.
"""

from __future__ import annotations

import os
import stat
from errno import EIO, ENODATA, EOPNOTSUPP, EPERM, EROFS

from voile.linux import files
from voile.overlay import origin, protect, xattrs
from voile.overlay.copy_data import copy_data, copy_lower_data
from voile.overlay.inode import Dir, Extra, Node
from voile.overlay.layers import DIR_READ, RealDir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from voile.overlay.inode import Name
    from voile.overlay.super import Overlay

    class Job(Protocol):
        """What takes so long that others are served meanwhile."""

        waiters: list[Callable[[int], None]]

# Up to here copying is quicker than handing it over.
INLINE_BYTES = 256 * 1024


class Busy(Exception):
    """The object is being copied up, or looked at; `job.waiters` are told when it is over."""

    def __init__(self, job: Job) -> None:
        self.job = job


def copy_up(
    ofs: Overlay, node: Node, *, data: bool = True, metadata: bool = False, at: Name | None = None
) -> None:
    """Makes sure that `node` and all directories above it are in the upper layer.

    Args:
        data: False when the caller truncates the file to nothing anyway.
        metadata: the caller changes nothing else, so with metacopy=on the data may stay where it is.
        at: by which of its names a hard link is meant, where that matters and is known.

    Raises:
        Busy: somebody has to wait for it.
        OSError: EROFS on a mount that was made read-only, ENOSPC and all else the file systems say.
    """
    if not ofs.writable:
        raise OSError(EROFS, "read-only")
    extra, index = node.extra, ofs.index
    indexed = index is not None and extra is not None and bool(extra.entry)
    if extra is not None and extra.meta is not None and ofs.meta is not None:
        ofs.meta.verify(extra.meta)
    if node.is_upper:
        if index is not None and extra is not None and extra.pending:
            index.link_up(node, at)
        if extra is not None and extra.meta is not None:
            _copy_up_data(ofs, node, extra, data, metadata)
        return
    chain: list[Node] = [node]
    above = node.parent
    if index is not None and indexed:
        at = index.name_for(node, at)
        above = at[0] if at is not None else None
    while above is not None and not above.is_upper:
        chain.append(above)
        above = above.parent
    for each in reversed(chain):
        if each.extra is not None and each.extra.job is not None:
            raise Busy(each.extra.job)
        if ofs.fds.full:
            ofs.fds.trim()  # the way up may be longer than there are descriptors
        _start(CopyUp(ofs, each, data, metadata, at if indexed and each is node else None))


def _copy_up_data(ofs: Overlay, node: Node, extra: Extra, data: bool, metadata: bool) -> None:
    """Of a metacopy file that is in the upper layer already."""
    assert ofs.meta is not None
    if extra.job is not None:
        raise Busy(extra.job)
    if not metadata:
        _start(ofs.meta.data_job(node, data))


def _start(job: CopyUp) -> None:
    ofs, node = job.ofs, job.node
    ofs.creds.mounter()
    try:
        job.begin()
        submit = ofs.submit if job.slow else None
        if submit is None:
            job.run()
            job.finish()
        else:
            submit(job.run, job.complete)
    except BaseException:
        job.abandon()
        raise
    if submit is not None:
        node.more().job = job
        raise Busy(job)


class CopyUp:
    """One object on its way up."""

    __slots__ = (
        "ofs", "node", "temp", "src", "dst", "lower", "st", "data", "metacopy", "below", "waiters", "origin",
        "indexed", "at",
    )  # fmt: skip

    def __init__(
        self, ofs: Overlay, node: Node, data: bool, metadata: bool = False, at: Name | None = None
    ) -> None:
        self.ofs = ofs
        self.node = node
        self.temp = b""
        self.src = -1
        self.dst = -1
        # The data of a metacopy file, which `src` has not.
        self.lower = -1
        self.data = data
        # Without the data (`ovl_need_meta_copy_up`); what has no name any more could not find it again.
        self.metacopy = metadata and ofs.metacopy and node.fmt == stat.S_IFREG and node.parent is not None
        # A lower file that is a metacopy itself: its data lies further below.
        self.below = None if node.extra is None else node.extra.meta
        # Called with the errno of the failure, or 0.
        self.waiters: list[Callable[[int], None]] = []
        self.origin: bytes | None = None
        # It goes to the index first, and is then linked to the name `at`.
        self.indexed = ofs.index is not None and node.extra is not None and bool(node.extra.entry)
        self.at = at

    @property
    def slow(self) -> bool:
        """Whether this must not be done while others wait."""
        if self.metacopy:
            return False
        if self.synced and self.dst >= 0:
            return True
        size = self.st.st_size if self.below is not None else self.st.st_blocks * 512
        return self.data and size > INLINE_BYTES and stat.S_ISREG(self.st.st_mode)

    @property
    def synced(self) -> bool:
        """Whether the copy is to be durable before it is seen.

        With metacopy=on metadata is not worth a sync to the kernel (ovl_copy_up_one, metadata_fsync).
        """
        of_metadata = self.metacopy or stat.S_ISDIR(self.st.st_mode)
        return not self.ofs.volatile and not (self.ofs.metacopy and of_metadata)

    def begin(self) -> None:
        """Opens the source and makes the temporary object."""
        ofs, node = self.ofs, self.node
        work = ofs.work_fd
        if isinstance(node, Dir):
            real = node.lowers[0]
            self.src = os.open(b".", DIR_READ, dir_fd=ofs.fds.fd(real))
            dir_fd, name, flags = self.src, b"", files.AT_EMPTY_PATH
            self.st = os.fstat(self.src)
        else:
            dir_fd, name, flags = ofs.fds.fd(node.real), node.place, 0
            self.st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        # Without an index a lower hard link is broken by its copy-up: it gets no origin (ovl_do_copy_up).
        if stat.S_ISDIR(self.st.st_mode) or self.st.st_nlink == 1 or self.indexed:
            layer = node.lowers[0].layer if isinstance(node, Dir) else node.real.layer
            self.origin = origin.encode(layer, dir_fd, name, flags)
        temp = ofs.temp_name()
        mode = self.st.st_mode
        if stat.S_ISREG(mode):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self.src = os.open(name, flags, dir_fd=dir_fd)
            if self.below is not None and self.data and not self.metacopy:
                assert ofs.meta is not None
                self.lower = ofs.meta.open(self.below, os.O_RDONLY)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.dst = os.open(temp, flags, 0o600, dir_fd=work)
            ofs.sync.probe.watch(self.dst)
        elif stat.S_ISDIR(mode):
            os.mkdir(temp, 0o700, dir_fd=work)
            self.temp = temp
            self.dst = os.open(temp, DIR_READ, dir_fd=work)
        elif stat.S_ISLNK(mode):
            os.symlink(os.readlink(name, dir_fd=dir_fd), temp, dir_fd=work)
        else:
            os.mknod(temp, stat.S_IFMT(mode) | 0o600, self.st.st_rdev, dir_fd=work)
        self.temp = temp

    def run(self) -> None:
        """Data, attributes and, unless volatile, durability: the long part."""
        ofs, st = self.ofs, self.st
        if stat.S_ISREG(st.st_mode):
            self._copy_data()
        if self.dst >= 0:
            os.fchown(self.dst, st.st_uid, st.st_gid)
            os.fchmod(self.dst, stat.S_IMODE(st.st_mode))
            self._copy_xattrs(self.src, self.dst)
            protect.copy(ofs, self.src, self.dst)
            # A file without its data has changed: the truncation that follows finds nothing left to change.
            changed = not self.data and st.st_size > 0 and stat.S_ISREG(st.st_mode)
            mtime = files.UTIME_NOW if changed else st.st_mtime_ns
            files.utimensat(self.dst, None, st.st_atime_ns, mtime)
            if self.synced:
                os.fsync(self.dst)
            return
        work, temp = ofs.work_fd, self.temp
        os.chown(temp, st.st_uid, st.st_gid, dir_fd=work, follow_symlinks=False)
        if not stat.S_ISLNK(st.st_mode):
            files.fchmodat2(work, temp, stat.S_IMODE(st.st_mode), files.AT_SYMLINK_NOFOLLOW)
        real = self.node.real
        self._copy_xattrs(xattrs.proc_path(ofs.fds.fd(real), self.node.place), xattrs.proc_path(work, temp))
        os.utime(temp, ns=(st.st_atime_ns, st.st_mtime_ns), dir_fd=work, follow_symlinks=False)

    def _copy_data(self) -> None:
        st = self.st
        if self.metacopy:
            os.ftruncate(self.dst, st.st_size)
        elif self.lower >= 0:
            copy_lower_data(self.lower, self.dst, st.st_size)
        elif self.data:
            copy_data(self.src, self.dst, st.st_size, sparse=st.st_blocks * 512 < st.st_size)

    def _copy_xattrs(self, src: int | bytes, dst: int | bytes) -> None:
        names = self.ofs.names
        follow = isinstance(src, int)
        try:
            found = [os.fsencode(name) for name in os.listxattr(src, follow_symlinks=follow)]
        except OSError as exc:
            if exc.errno != EOPNOTSUPP:
                raise
            found = []
        for name in found:
            if name.startswith(names.prefix) and not name.startswith(names.escaped):
                continue
            try:
                value = os.getxattr(src, name, follow_symlinks=follow)
                os.setxattr(dst, name, value, follow_symlinks=follow)
            except OSError as exc:
                # As ovl_copy_xattr: what the upper cannot hold is left behind, unless it is about security.
                must = name.startswith(b"security.") or name in (xattrs.ACL_ACCESS, xattrs.ACL_DEFAULT)
                if exc.errno == ENODATA or (exc.errno == EOPNOTSUPP and not must):
                    continue
                raise
        if self.origin is not None:
            try:
                os.setxattr(dst, names.origin, self.origin, follow_symlinks=follow)
            except OSError as exc:
                # user.* attributes exist only on files and directories.
                if exc.errno not in (EOPNOTSUPP, EPERM):
                    raise
        if self.indexed and self.ofs.index is not None:
            value = self.ofs.index.initial_nlink(self.node)
            os.setxattr(dst, names.nlink, value, follow_symlinks=follow)
        if self.metacopy:
            os.setxattr(dst, names.metacopy, b"", follow_symlinks=follow)

    def complete(self, _result: object, exc: BaseException | None) -> None:
        """The end of a job, back in the thread that owns the nodes."""
        if self.node.extra is not None:
            self.node.extra.job = None
        # Whatever happens: who waits must be told.
        code = EIO
        try:
            if exc is None:
                self.finish()
                code = 0
            elif isinstance(exc, OSError):
                code = exc.errno or EIO
            else:
                raise exc
        except OSError as caught:
            code = caught.errno or EIO
        finally:
            if code:
                self.abandon()
            waiters, self.waiters = self.waiters, []
            for waiter in waiters:
                waiter(code)

    def finish(self) -> None:
        """Moves the object to its place and makes the node an upper one."""
        ofs, node, parent = self.ofs, self.node, self.node.parent
        if ofs.index is not None and self.indexed:
            if ofs.meta is not None:
                ofs.meta.copied_up(node, self.metacopy, self.st)
            ofs.index.install(node, self.temp)
            self.temp = b""
            self._close()
            ofs.index.link_up(node, self.at)
            return
        if parent is None:
            self._finish_unlinked()
            return
        assert parent.upper is not None
        parent_fd = ofs.fds.fd(parent.upper)
        set_impure(ofs, parent)
        before = os.fstat(parent_fd)
        files.renameat2(ofs.work_fd, self.temp, parent_fd, self.node.name, files.RENAME_NOREPLACE)
        self.temp = b""
        if ofs.meta is not None:
            ofs.meta.copied_up(node, self.metacopy, self.st)
        if isinstance(node, Dir):
            node.upper = RealDir(ofs.upper_layer, parent.upper, node.name)
        else:
            node.real = parent.upper
        self._close()
        try:
            # Copying up is no change of the directory (ovl_copy_up_one: "best effort").
            files.utimensat(parent_fd, b"", before.st_atime_ns, before.st_mtime_ns, files.AT_EMPTY_PATH)
        except OSError:
            pass
        if isinstance(node, Dir):
            # It is a merged directory from now on, and shows another link count.
            ofs.changed(node)
        else:
            self._settle_ino(node)
            if ofs.births_known:
                ofs.changed(node)

    def _settle_ino(self, node: Node) -> None:
        """Keeps st_ino, except where the copy broke a lower hard link (ovl_getattr).

        The names of a broken link are different files now and must not look like one.
        """
        ofs = self.ofs
        if self.origin is None:
            number = ofs.stat(node).st_ino
            ofs.origins.pop(number, None)
            node.ino = ofs.map_ino(node.real.layer, number)
            ofs.changed(node)
            if node.parent is not None:
                ofs.changed(node.parent)  # lists another number now
        elif not self.origin or not ofs.decodes_origin:
            ofs.origins[ofs.stat(node).st_ino] = node.ino

    def _finish_unlinked(self) -> None:
        """No name leads here any more: the copy lives as long as it is open."""
        ofs, node = self.ofs, self.node
        fd = os.open(self.temp, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=ofs.work_fd)
        root = ofs.upper_layer.root
        if isinstance(node, Dir):
            node.upper = RealDir(ofs.upper_layer, root, self.temp)
            ofs.fds.adopt(node.upper, fd)
            ofs.fds.pin(node.upper)
        else:
            node.more().fd, node.real, node.more().meta = fd, root, None
        self._close()
        ofs.discard(self.temp)
        self.temp = b""

    def abandon(self) -> None:
        """Removes what there is of the copy."""
        self._close()
        if self.temp:
            self.ofs.discard(self.temp)
            self.temp = b""

    def _close(self) -> None:
        for fd in (self.src, self.dst, self.lower):
            if fd >= 0:
                os.close(fd)
        self.src = self.dst = self.lower = -1


def set_impure(ofs: Overlay, parent: Dir) -> None:
    """Marks that entries of `parent` may have an origin (`ovl_set_impure`)."""
    if parent.impure:
        return
    assert parent.upper is not None
    try:
        os.setxattr(xattrs.proc_fd(ofs.fds.fd(parent.upper)), ofs.names.impure, b"y")
    except OSError as exc:
        # EPERM is said by an append-only directory, and then nothing can be put there.
        if exc.errno != EOPNOTSUPP:
            raise
    parent.impure = True


def drop_impure(ofs: Overlay, node: Dir) -> None:
    """Takes that mark away; best effort, as in the kernel."""
    assert node.upper is not None
    try:
        os.removexattr(xattrs.proc_fd(ofs.fds.fd(node.upper)), ofs.names.impure)
    except OSError:
        pass
    node.impure = False
