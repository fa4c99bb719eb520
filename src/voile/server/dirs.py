"""Open directories."""

from __future__ import annotations

import os
from bisect import bisect_left

from voile.fuse import abi, replies
from voile.overlay import namei, readdir
from voile.overlay.inode import Dir
from voile.server.base import Served

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from voile.fuse.requests import Deferred, Request
    from voile.overlay.super import Overlay

    Item = tuple[int, bytes, int, int]

# Offsets are positive 63-bit numbers.
_OFFSET_MASK = (1 << 62) - 1


class Listing:
    """One open directory: its entries in the order of their offsets, and what fsync needs.

    The kernel keeps listings too, and gives what one open directory has read to another,
    so an offset must mean the same in all of them, whatever was created or removed in
    between: it is a hash of the name, as in ext4.
    """

    __slots__ = ("node", "entries", "fd")

    def __init__(self, node: Dir) -> None:
        self.node = node
        # (offset of the next entry, name, d_ino, d_type); taken at the first read and at every rewind.
        self.entries: list[Item] | None = None
        # The upper directory, opened where an fsync is a real one (once-per-open errors).
        self.fd = -1

    def after(self, overlay: Overlay, offset: int) -> Iterator[Item]:
        """The entries behind an offset, 0 for all of them, anew."""
        if self.entries is None or offset == 0:
            self.entries = _in_order(readdir.entries(overlay, self.node))
        entries = self.entries
        for index in range(bisect_left(entries, (offset + 1,)), len(entries)):
            yield entries[index]


def _in_order(entries: list[readdir.Entry]) -> list[Item]:
    # "." and ".." come first; hash() is keyed, and the same for the life of the daemon.
    items = [(index + 1, *entry) for index, entry in enumerate(entries[:2])]
    items += sorted([(3 + (hash(entry[0]) & _OFFSET_MASK), *entry) for entry in entries[2:]])
    for index in range(1, len(items)):
        if items[index][0] <= items[index - 1][0]:
            items[index] = (items[index - 1][0] + 1, *items[index][1:])
    return items


class DirOperations(Served):
    """OPENDIR to FSYNCDIR."""

    def opendir(self, req: Request, flags: int) -> bytes:
        node = self.dir(req.nodeid)
        listing = Listing(node)
        if not self.overlay.volatile and node.upper is not None and self.overlay.writable:
            listing.fd = namei.open_dir(self.overlay, node.upper)
        fh = self.new_fh()
        self.listings[fh] = listing
        # The kernel keeps the listing until the directory changes, which it does only through us.
        cache = abi.FOPEN_CACHE_DIR | abi.FOPEN_KEEP_CACHE if self.params.timeout is None else 0
        return replies.open_out(fh, cache)

    def readdir(self, req: Request, fh: int, offset: int, size: int) -> bytes:
        buffer = replies.DirentBuffer(size, False)
        add = buffer.add
        for position, name, ino, kind in self.listings[fh].after(self.overlay, offset):
            if not add(ino, position, kind, name):
                break
        return buffer.bytes()

    def readdirplus(self, req: Request, fh: int, offset: int, size: int) -> bytes:
        overlay = self.overlay
        listing = self.listings[fh]
        buffer = replies.DirentBuffer(size, True)
        for position, name, ino, kind in listing.after(overlay, offset):
            found = None
            if position > 2:
                try:
                    found = namei.lookup(overlay, listing.node, name)
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
        return buffer.bytes()

    def releasedir(self, req: Request, fh: int) -> None:
        listing = self.listings.pop(fh)
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
