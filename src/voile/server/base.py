"""What all operations share: the overlay, the session, open handles, and how replies are made."""

from __future__ import annotations

import os
import time
from errno import EIO, ESTALE

from voile.fuse import replies
from voile.fuse.operations import Operations
from voile.fuse.requests import DEFERRED
from voile.linux import creds
from voile.overlay.attr import shown_nlink
from voile.overlay.copy_up import Busy
from voile.overlay.inode import Dir, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from voile.fuse.negotiation import Negotiated
    from voile.fuse.requests import Deferred, Request
    from voile.fuse.session import Session
    from voile.fuse.workers import WorkerPool
    from voile.overlay.params import Params
    from voile.overlay.super import Overlay
    from voile.server.dirs import Listing
    from voile.server.files import File

    T = TypeVar("T")

# "For ever": the layers change only through us.
_FOREVER = 1 << 31

# What the kernel may keep of a listing: some of it, some of it from before a change, all of it.
KEPT_PART, KEPT_OLD, KEPT_WHOLE = 1, 2, 3


class Waiting(Exception):
    """The answer takes longer than others should wait; `waiters` hear when the request can run again."""

    def __init__(self, waiters: list[Callable[[int], None]]) -> None:
        self.waiters = waiters


class Seen:
    """Where the daemon sees its own mount: `path`, st_dev, and the mountinfo that shows it."""

    __slots__ = ("device", "mountinfo", "path")

    def __init__(self, target: bytes, device: tuple[int, int], tid: int) -> None:
        """`tid`: the thread whose mount namespace `target` is in, 0 for our own."""
        base = b"/proc/self/task/%d/" % tid if tid else b"/proc/thread-self/"
        self.path = base + b"root" + target
        self.device = os.makedev(*device)
        self.mountinfo = base + b"mountinfo"


class Served(Operations):
    """An overlay and its session."""

    session: Session
    pool: WorkerPool

    def __init__(self, overlay: Overlay, params: Params) -> None:
        self.overlay = overlay
        self.params = params
        self.fuse_type = "fuse"
        # None: the daemon does not see its own mount.
        self.seen: Seen | None = None
        self.started = time.monotonic()
        # Even, and another one for each mount: numbers of nodes come again, and a file handle (fanotify has
        # them) must not mean another file in a later mount.
        self.generation = int.from_bytes(os.urandom(4), "little") & ~1
        self.negotiated: Negotiated | None = None
        timeout = _FOREVER if params.timeout is None else params.timeout
        self.valid = int(timeout)
        self.valid_nsec = int((timeout - self.valid) * 1_000_000_000)
        self.files: dict[int, File] = {}
        # Listings that are being read, by node; real descriptors of open directories, by handle.
        self.listings: dict[int, Listing] = {}
        self.dir_fds: dict[int, int] = {}
        self.last_fh = 0
        # How many names were made, changed or removed so far.
        self.changes = 0
        # KEPT_PART, KEPT_OLD, KEPT_WHOLE: what listing the kernel may keep, by node (see dirs).
        self.kept_by_kernel: dict[int, int] = {}
        # Nodes whose attributes may change without a request: they may be mapped
        # shared and writable through passthrough.
        self.mapped: set[int] = set()
        overlay.changed = self.attributes_changed

    def attach(self, session: Session, pool: WorkerPool) -> None:
        """Gives the operations what they answer late with."""
        self.session = session
        self.pool = pool
        self.overlay.submit = pool.submit
        self.overlay.soon = pool.soon

    def init(self, negotiated: Negotiated) -> None:
        self.negotiated = negotiated

    def unexpected(self, req: Request, raw: memoryview, exc: BaseException) -> int | None:
        """A request that has to wait, for a copy-up or a long listing, is kept and run again after that."""
        if isinstance(exc, Busy):
            waiters = exc.job.waiters
        elif isinstance(exc, Waiting):
            waiters = exc.waiters
        else:
            return super().unexpected(req, raw, exc)
        kept, unique = bytes(raw), req.unique

        def again(code: int) -> None:
            if code:
                self.session.fail(unique, code)
            else:
                self.session.dispatch(kept)

        waiters.append(again)
        return None

    def later(
        self, req: Request, work: Callable[[], T], reply: Callable[[T], bytes | None] = lambda result: None
    ) -> Deferred:
        """Answers a request with `reply(work())`, or the OSError of `work`, which runs in another thread.

        The kernel keeps a file open until what it asked of it is answered, so `work` may use its descriptor.
        """
        unique = req.unique

        def done(result: T, exc: BaseException | None) -> None:
            if exc is None:
                self.session.reply(unique, reply(result))
            else:
                self.session.fail(unique, (exc.errno if isinstance(exc, OSError) else None) or EIO)

        self.pool.submit(work, done)
        return DEFERRED

    def sync_fd(self, req: Request, fd: int, datasync: bool) -> Deferred:
        """Answers a request with a real fsync(2) or fdatasync(2) of `fd`."""
        return self.later(req, lambda: os.fdatasync(fd) if datasync else os.fsync(fd))

    def node(self, nodeid: int) -> Node:
        """The node of a request."""
        return self.overlay.nodes.by_id[nodeid]

    def dir(self, nodeid: int) -> Dir:
        """The directory of a request."""
        overlay = self.overlay
        node = overlay.nodes.by_id[nodeid]
        if not isinstance(node, Dir):
            raise OSError(ESTALE, "not a directory any more")
        if overlay.fds.full:
            overlay.fds.trim()
        return node

    def entry(self, node: Node, st: os.stat_result) -> bytes:
        """The reply that introduces a node to the kernel; counts as one lookup."""
        nodeid = self.overlay.nodes.refer(node)
        return self.entry_of(node, nodeid, st)

    def entry_of(self, node: Node, nodeid: int, st: os.stat_result) -> bytes:
        """As `entry`, without counting."""
        nlink, valid, nsec = st.st_nlink, self.valid, self.valid_nsec
        if node.extra is not None or node.is_dir:
            nlink = shown_nlink(node, nlink)
            if node.tells_names:
                valid = nsec = 0
        attr_valid = 0 if nodeid in self.mapped else self.valid
        if self.valid_nsec:
            attr = replies.attr_from_stat(st, node.ino, nlink)
            attr_nsec = self.valid_nsec if nodeid not in self.mapped else 0
            return replies.entry_out(nodeid, self.generation, valid, nsec, attr_valid, attr_nsec, attr)
        return replies.entry_from_stat(nodeid, self.generation, valid, attr_valid, st, node.ino, nlink)

    def attributes(self, nodeid: int, node: Node, st: os.stat_result) -> bytes:
        """The reply to GETATTR and SETATTR."""
        nlink = st.st_nlink if node.extra is None and not node.is_dir else shown_nlink(node, st.st_nlink)
        if nodeid in self.mapped:
            return replies.attr_out_from_stat(0, st, node.ino, nlink)
        if self.valid_nsec:
            attr = replies.attr_from_stat(st, node.ino, nlink)
            return replies.attr_out(self.valid, self.valid_nsec, attr)
        return replies.attr_out_from_stat(self.valid, st, node.ino, nlink)

    @staticmethod
    def keeps_sgid(req: Request) -> Callable[[int], bool]:
        """Whether the caller may keep S_ISGID of a file of some group (`in_group_or_capable`)."""
        uid, gid, pid = req.uid, req.gid, req.pid

        def keeps(group: int) -> bool:
            if gid == group or creds.pid_in_group(pid, group):
                return True
            return uid == 0 and creds.pid_has_cap(pid, creds.CAP_FSETID)

        return keeps

    def attributes_changed(self, node: Node) -> None:
        """Has the kernel ask for the attributes again, and for the listing of a directory."""
        if node.id and node.nlookup > 0:
            self.session.notify_inval_inode(node.id, 0 if node.is_dir else -1)

    def names_changed(self, nodeid: int) -> None:
        """To be told before a name in a directory is made, changed or removed."""
        self.changes += 1
        kept = self.kept_by_kernel.get(nodeid)
        if kept == KEPT_PART:
            self.kept_by_kernel[nodeid] = KEPT_OLD
        elif kept == KEPT_WHOLE:
            # Whoever was given the end of it may not have come to note that it is whole.  Nobody reads the
            # directory now: the kernel has locked it for the change.
            del self.kept_by_kernel[nodeid]
            self.session.notify_inval_inode(nodeid, 0)

    def drop_listing(self, nodeid: int) -> None:
        """Nobody reads the listing of a directory any more, if there is one."""
        listing = self.listings.pop(nodeid, None)
        if listing is not None:
            self.free_listing(listing)

    def free_listing(self, listing: Listing) -> None:
        """Frees a listing step by step: for a million entries that takes half a second."""
        if listing.shrink():
            self.pool.soon(lambda: self.free_listing(listing))

    def new_fh(self) -> int:
        """A number for an open file or directory."""
        self.last_fh += 1
        return self.last_fh
