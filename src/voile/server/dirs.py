"""Listing and syncing directories.

Theory of operation
-------------------
The kernel keeps listings, and gives what one open directory has read to another.  So the
offset of an entry must mean the same for all of them, whatever was created or removed in
between: it is a hash of the name, as in ext4.  With such offsets a listing belongs to
nobody in particular, and opening a directory needs no request at all: OPENDIR is answered
with ENOSYS, once.  Only where an fsync of a directory is a real one is it opened, since a
lost write is reported once to every open file.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from errno import ENOSYS

from voile.fuse import abi, replies
from voile.overlay import namei, readdir
from voile.overlay.inode import Dir
from voile.server.base import Served

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.fuse.requests import Deferred, Request

    # offset of the next entry, name, d_ino, d_type
    Item = tuple[int, bytes, int, int]

# Offsets are positive 63-bit numbers.
_OFFSET_MASK = (1 << 62) - 1


# Listings that are being read; more of them than this at a time are taken anew.
_LISTINGS = 64


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

    def _after(self, node: Dir, offset: int) -> tuple[list[Item], range]:
        """A directory's entries, and which of them come behind `offset`; 0 takes them anew."""
        entries = self.listings.get(node.id)
        if entries is None or offset == 0:
            entries = _in_order(readdir.entries(self.overlay, node))
            while len(self.listings) >= _LISTINGS:
                del self.listings[next(iter(self.listings))]
            self.listings[node.id] = entries
        start = bisect_left(entries, (offset + 1,)) if offset else 0
        if start == len(entries):
            del self.listings[node.id]  # read to its end
        return entries, range(start, len(entries))

    def readdir(self, req: Request, fh: int, offset: int, size: int) -> bytes:
        buffer = replies.DirentBuffer(size, False)
        add = buffer.add
        entries, indices = self._after(self.dir(req.nodeid), offset)
        for index in indices:
            position, name, ino, kind = entries[index]
            if not add(ino, position, kind, name):
                break
        return buffer.bytes()

    def readdirplus(self, req: Request, fh: int, offset: int, size: int) -> bytes:
        overlay = self.overlay
        node = self.dir(req.nodeid)
        buffer = replies.DirentBuffer(size, True)
        entries, indices = self._after(node, offset)
        for index in indices:
            position, name, ino, kind = entries[index]
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
        return buffer.bytes()

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
