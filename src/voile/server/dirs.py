"""Listing and syncing directories.

Theory of operation
-------------------
The kernel keeps listings, and gives what one open directory has read to another.  So the
offset of an entry must mean the same for all of them, whatever was created or removed in
between: it is a hash of the name, as in ext4.  With such offsets a listing belongs to
nobody in particular, and opening a directory needs no request at all: OPENDIR is answered
with ENOSYS, once.

The kernel checks only at the start of a directory that what it keeps is not old
(fuse_readdir_cached).  Who has opened a directory after a change would go on in what somebody
else had begun to read before it and has completed meanwhile.  So we keep account of who may
be doing that (`Served.kept_by_kernel`) and take the pages away: it then begins anew.  So we do
with a listing that fills its last page: with an entry that is gone, a reader who looks for
his place in it would be told that this was all.

A long listing is taken in steps; other requests run between them, and its own is run again
after the last (`Waiting`).  Only where an fsync of a directory is a real one is it opened,
since a lost write is reported once to every open file.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from errno import EIO, ENOSYS
from mmap import PAGESIZE
from time import monotonic

from voile.fuse import abi, replies
from voile.overlay import namei, readdir
from voile.overlay.inode import Dir
from voile.server.base import KEPT_OLD, KEPT_PART, KEPT_WHOLE, Served, Waiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from voile.fuse.requests import Deferred, Request
    from voile.overlay.params import Params
    from voile.overlay.super import Overlay

    # offset of the next entry, name, d_ino, d_type
    Item = tuple[int, bytes, int, int]

# Offsets are positive 63-bit numbers.
_OFFSET_MASK = (1 << 62) - 1
# A long listing is kept in 256 parts.
_PART_SHIFT = 54
# For so many seconds a listing may keep others waiting.
_STEP = 0.005

# Listings that are being read; more of them than this at a time are taken anew.
_LISTINGS = 64
# So many directories whose listings the kernel may keep are accounted for.
_KEPT = 256


class Listing:
    """The entries of a directory in the order of their offsets.

    Many entries are kept in parts by offset, each put in order when it is first read: a million cannot be
    sorted at once while others wait.
    """

    __slots__ = ("changes", "_parts", "_shift", "_ordered", "_packed", "_size")

    def __init__(self, node: Dir, changes: int) -> None:
        # How many names had been changed when it was begun.
        self.changes = changes
        # "." and ".." come first.
        self._parts: list[list[Item]] = [[(at, *entry) for at, entry in enumerate(readdir.dots(node), 1)]]
        self._shift = 63
        self._ordered: set[int] = set()
        # How many parts have been added up, and to how many bytes of the kernel's pages.
        self._packed = 0
        self._size = 0

    def add(self, batch: list[readdir.Entry]) -> None:
        """Takes more entries, before any is read."""
        parts, shift = self._parts, self._shift
        for entry in batch:
            # hash() is keyed, and the same for the life of the daemon.
            at = 3 + (hash(entry[0]) & _OFFSET_MASK)
            parts[at >> shift].append((at, *entry))

    def split(self) -> None:
        """Prepares for many entries."""
        if len(self._parts) == 1:
            (all_,) = self._parts
            self._shift = _PART_SHIFT
            self._parts = [[] for _ in range((_OFFSET_MASK + 3 >> _PART_SHIFT) + 1)]
            for item in all_:
                self._parts[item[0] >> _PART_SHIFT].append(item)

    def after(self, offset: int) -> Iterator[Item]:
        """The entries behind an offset."""
        for number in range(offset >> self._shift, len(self._parts)):
            part = self._parts[number]
            if number not in self._ordered:
                self._ordered.add(number)
                _put_in_order(part)
                if number == self._packed:
                    self._packed += 1
                    self._size = _pack(part, self._size)
            for index in range(bisect_left(part, (offset + 1,)), len(part)):
                yield part[index]

    @property
    def fills_page(self) -> bool:
        """Whether it fills its last page in the kernel, or may."""
        return self._packed < len(self._parts) or self._size % PAGESIZE == 0

    def shrink(self) -> bool:
        """Gives the memory of one part back, when nobody reads any more; whether there are others."""
        self._parts.pop()
        return bool(self._parts)


def _put_in_order(items: list[Item]) -> None:
    items.sort()
    last = 0
    for index, item in enumerate(items):
        at = item[0]
        if at <= last:
            at = last + 1
            items[index] = (at, *item[1:])
        last = at


def _pack(items: list[Item], size: int) -> int:
    """The size of a kept listing with further entries: none goes over the end of a page."""
    used = size % PAGESIZE
    before = size - used
    for item in items:
        length = 24 + len(item[1]) + 7 & ~7  # FUSE_DIRENT_SIZE
        used += length
        if used > PAGESIZE:
            before += PAGESIZE
            used = length
    return before + used


class Gathering:
    """A listing that is being taken."""

    __slots__ = ("listing", "waiters", "nodeid", "_batches")

    def __init__(self, overlay: Overlay, node: Dir, changes: int, noatime: bool) -> None:
        self.listing = Listing(node, changes)
        self.waiters: list[Callable[[int], None]] = []
        self.nodeid = node.id
        self._batches = readdir.batches(overlay, node, noatime=noatime)

    def step(self) -> bool:
        """Works for a short time; whether that was all."""
        until = monotonic() + _STEP
        for batch in self._batches:
            self.listing.add(batch)
            if monotonic() > until:
                self.listing.split()
                return False
        return True


def _wake(waiters: list[Callable[[int], None]], code: int) -> None:
    for waiter in waiters:
        waiter(code)


class DirOperations(Served):
    """OPENDIR to FSYNCDIR."""

    # The listing that requests were waiting for, while they are run again.
    _gathered: Listing | None = None
    # The kernel must not keep the listing of which the end is about to be told.
    _take_away = False

    def __init__(self, overlay: Overlay, params: Params) -> None:
        super().__init__(overlay, params)
        # Listings that are being taken, by node.
        self._gatherings: dict[int, Gathering] = {}

    @property
    def _opens_directories(self) -> bool:
        """Whether somebody has to know which directories are open."""
        return self.params.timeout is not None or (self.overlay.writable and not self.overlay.volatile)

    def opendir(self, req: Request, flags: int) -> bytes:
        if not self._opens_directories:
            raise OSError(ENOSYS, "directories need no opening")
        node = self.dir(req.nodeid)
        fh = self.new_fh()
        if node.upper is not None and self.overlay.writable and not self.overlay.volatile:
            self.dir_fds[fh] = namei.open_dir(self.overlay, node.upper)
        # The kernel keeps the listing until the directory changes, which it does only through us.
        cache = abi.FOPEN_CACHE_DIR | abi.FOPEN_KEEP_CACHE if self.params.timeout is None else 0
        return replies.open_out(fh, cache)

    def _after(self, node: Dir, offset: int, flags: int) -> Iterator[Item]:
        """A directory's entries behind `offset`; 0 takes them anew.  `flags` are those of its open(2)."""
        listing = self._gathered or (self.listings.get(node.id) if offset else None)
        if listing is None:
            listing = self._gather(node, bool(flags & os.O_NOATIME))
        if self.listings.get(node.id) is not listing:
            self.drop_listing(node.id)
            while len(self.listings) >= _LISTINGS:
                self.drop_listing(next(iter(self.listings)))
            self.listings[node.id] = listing
        if not offset:
            self._begins(node.id, listing.changes != self.changes)
        items = listing.after(offset)
        first = next(items, None)
        if first is not None:
            yield first
            yield from items
            return
        self._ends(node.id, listing)
        if self.listings.get(node.id) is listing:
            if self._gathered is None:
                self.drop_listing(node.id)
            else:
                del self.listings[node.id]  # others read it, too: `_go_on` frees it

    def _begins(self, nodeid: int, old: bool) -> None:
        """The kernel may begin to keep a listing, or go on with one that somebody has not read to its end."""
        kept = self.kept_by_kernel
        if kept.get(nodeid) != KEPT_OLD:
            while len(kept) >= _KEPT:
                del kept[next(iter(kept))]
            kept[nodeid] = KEPT_OLD if old else KEPT_PART

    def _ends(self, nodeid: int, listing: Listing) -> None:
        """The kernel may have a whole listing with the reply that follows."""
        kept = self.kept_by_kernel
        if kept.get(nodeid, KEPT_OLD) == KEPT_OLD or listing.fills_page:
            kept.pop(nodeid, None)
            self._take_away = True
        else:
            kept[nodeid] = KEPT_WHOLE

    def _gather(self, node: Dir, noatime: bool) -> Listing:
        """A new listing.

        One that was begun before the last change must not be used after this: its readers get this one.

        Raises:
            Waiting: it takes longer.
        """
        old = self._gatherings.get(node.id)
        if old is not None and old.listing.changes == self.changes:
            raise Waiting(old.waiters)
        job = Gathering(self.overlay, node, self.changes, noatime)
        done = job.step()
        if old is not None:
            del self._gatherings[node.id]
            self.free_listing(old.listing)
            if done:
                self.pool.soon(lambda: _wake(old.waiters, 0))
            else:
                job.waiters += old.waiters
        if done:
            return job.listing
        self._gatherings[node.id] = job
        self.pool.soon(lambda: self._go_on(job))
        raise Waiting(job.waiters)

    def _go_on(self, job: Gathering) -> None:
        """The next step, and after the last the requests themselves."""
        if self._gatherings.get(job.nodeid) is not job:
            return
        try:
            done, code = job.step(), 0
        except Exception as exc:
            done, code = True, (exc.errno if isinstance(exc, OSError) else None) or EIO
        if not done:
            self.pool.soon(lambda: self._go_on(job))
            return
        del self._gatherings[job.nodeid]
        self._gathered = job.listing
        try:
            _wake(job.waiters, code)
        finally:
            self._gathered = None
            if self.listings.get(job.nodeid) is not job.listing:
                self.free_listing(job.listing)

    def _reply(self, req: Request, buffer: replies.DirentBuffer) -> bytes | Deferred:
        """What is in the buffer."""
        if not self._take_away:
            return buffer.bytes()
        self._take_away = False
        # In a thread: another reader may have locked a page, and wait for us.
        session, nodeid = self.session, req.nodeid
        return self.later(req, lambda: session.notify_inval_inode(nodeid, 0), lambda _: b"")

    def readdir(self, req: Request, fh: int, offset: int, size: int, flags: int) -> bytes | Deferred:
        buffer = replies.DirentBuffer(size, False)
        buffer.fill(self._after(self.dir(req.nodeid), offset, flags))
        return self._reply(req, buffer)

    def readdirplus(self, req: Request, fh: int, offset: int, size: int, flags: int) -> bytes | Deferred:
        overlay = self.overlay
        node = self.dir(req.nodeid)
        buffer = replies.DirentBuffer(size, True)
        for position, name, ino, kind in self._after(node, offset, flags):
            found = None
            if position > 2:
                try:
                    found = namei.lookup(overlay, node, name)
                except OSError:
                    pass  # stat(2) will say what is wrong with it
            if found is None:
                if not buffer.add(ino, position, kind, name):
                    break
                continue
            child, st = found
            nodeid = overlay.nodes.refer(child)
            if not buffer.add(child.ino, position, kind, name, self.entry_of(child, nodeid, st)):
                overlay.nodes.forget(nodeid, 1)
                break
        return self._reply(req, buffer)

    def releasedir(self, req: Request, fh: int) -> None:
        fd = self.dir_fds.pop(fh, -1)
        if fd >= 0:
            os.close(fd)

    def fsyncdir(self, req: Request, fh: int, datasync: bool) -> Deferred | None:
        sync = self.overlay.sync
        status = sync.get()
        if status == 0:
            sync.fsyncdir += 1
            return None
        if status < 0:
            raise OSError(-status, "the upper file system has lost data")
        upper = self.dir(req.nodeid).upper
        if upper is None or not self.overlay.writable:
            return None
        fd = self.dir_fds.get(fh, -1)
        if fd < 0:  # it was opened before it was copied up
            fd = self.dir_fds[fh] = namei.open_dir(self.overlay, upper)
        return self.sync_fd(req, fd, datasync)
