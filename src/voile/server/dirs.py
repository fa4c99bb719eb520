"""Open directories."""

from __future__ import annotations

import os

from voile.fuse import abi, replies
from voile.overlay import namei, readdir
from voile.overlay.inode import Dir
from voile.server.base import Served

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.fuse.requests import Deferred, Request


class Listing:
    """One open directory: a snapshot of its entries, and what fsync needs."""

    __slots__ = ("node", "entries", "fd")

    def __init__(self, node: Dir) -> None:
        self.node = node
        # Taken at the first read and at every rewind; an entry's offset is its index + 1.
        self.entries: list[tuple[bytes, int, int]] | None = None
        # The upper directory, opened where an fsync is a real one (once-per-open errors).
        self.fd = -1


class DirOperations(Served):
    """OPENDIR to FSYNCDIR."""

    def opendir(self, req: Request, flags: int) -> bytes:
        node = self.dir(req.nodeid)
        listing = Listing(node)
        if not self.overlay.volatile and node.upper is not None and self.overlay.writable:
            listing.fd = namei.open_dir(self.overlay, node.upper)
        fh = self.new_fh()
        self.listings[fh] = listing
        # The kernel keeps the listing until the directory changes, which it does only through us.  It has one
        # cache for all readers and goes by offsets (fs/fuse/readdir.c fuse_parse_cache), which mean different
        # entries in the snapshots of different readers: so only one reader at a time may use it.
        cache = 0
        if self.params.timeout is None and req.nodeid not in self.cached_listings:
            self.cached_listings[req.nodeid] = fh
            cache = abi.FOPEN_CACHE_DIR | abi.FOPEN_KEEP_CACHE
        return replies.open_out(fh, cache)

    def _entries(self, fh: int, offset: int) -> list[tuple[bytes, int, int]]:
        listing = self.listings[fh]
        if listing.entries is None or offset == 0:
            listing.entries = readdir.entries(self.overlay, listing.node)
        return listing.entries

    def readdir(self, req: Request, fh: int, offset: int, size: int) -> bytes:
        entries = self._entries(fh, offset)
        buffer = replies.DirentBuffer(size, False)
        add = buffer.add
        for index in range(offset, len(entries)):
            name, ino, kind = entries[index]
            if not add(ino, index + 1, kind, name):
                break
        return buffer.bytes()

    def readdirplus(self, req: Request, fh: int, offset: int, size: int) -> bytes:
        overlay = self.overlay
        entries = self._entries(fh, offset)
        node = self.listings[fh].node
        buffer = replies.DirentBuffer(size, True)
        for index in range(offset, len(entries)):
            name, ino, kind = entries[index]
            if name in (b".", b".."):
                if not buffer.add(ino, index + 1, kind, name):
                    break
                continue
            try:
                found = namei.lookup(overlay, node, name)
            except OSError:
                found = None  # stat(2) will say what is wrong with it
            if found is None:
                if not buffer.add(ino, index + 1, kind, name):
                    break
                continue
            child, st = found
            nodeid = overlay.nodes.refer(child)
            if not buffer.add(child.ino, index + 1, kind, name, self.entry_of(child, nodeid, st)):
                overlay.nodes.forget(nodeid, 1)
                break
        return buffer.bytes()

    def releasedir(self, req: Request, fh: int) -> None:
        listing = self.listings.pop(fh)
        if self.cached_listings.get(req.nodeid) == fh:
            del self.cached_listings[req.nodeid]
        if listing.fd >= 0:
            os.close(listing.fd)

    def fsyncdir(self, req: Request, fh: int, datasync: bool) -> Deferred | None:
        sync = self.overlay.sync
        status = sync.get()
        if status == 0:
            sync.fsyncdir += 1
            return None
        if status < 0:
            raise OSError(-status, "the upper file system has lost data")
        listing = self.listings[fh]
        upper = listing.node.upper
        if upper is None or not self.overlay.writable:
            return None
        if listing.fd < 0:
            listing.fd = namei.open_dir(self.overlay, upper)
        return self.sync_fd(req, listing.fd, datasync)
