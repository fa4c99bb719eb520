"""The files of a canary (see canary), which exist only here: the requests about them.

Each of these makes the handler that comes before the one for the union's files (`Session.put_before`).
"""

from __future__ import annotations

import os
import stat

from voile.fuse import abi, replies
from voile.fuse.requests import DEFERRED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from voile.fuse.requests import Body, Buffer, Handler, Request
    from voile.server.canary import Canary

# The numbers of our nodes, far from all others, are also those of the open files.
FIRST = 1 << 62
BELL, LATCHES, ROPE, CONTROL = FIRST, (FIRST + 1, FIRST + 2), FIRST + 3, FIRST + 4
FILES = 5
PAGE = os.sysconf("SC_PAGE_SIZE")
SIZE = 2 * PAGE
# What a write(2) to a file means, by its offset. To a latch:
SPOIL, HOLD = 1, 2
# To the control file (or to the rope of the bell, a file of its own, since the kernel carries out one write
# at a time).
BELL_ARMED, READY, DONE, TICK, BYE = range(5)


class Files:
    """`canary` hears what is written to them, by its methods `rung`, `latch_written` and `told`."""

    __slots__ = ("_canary", "prefix")

    def __init__(self, canary: Canary) -> None:
        self._canary = canary
        # They can be opened by whoever knows it, and the number of one: the helper.
        self.prefix = b".voile-" + os.urandom(12).hex().encode() + b"-"

    def handlers(self, lookup: bool) -> dict[int, Callable[[Handler], Handler]]:
        """For `Session.put_before`; without `lookup`, nobody finds the files, and nobody opens them."""
        made: dict[int, Callable[[Handler], Handler]] = {
            abi.READ: self._read, abi.WRITE: self._write, abi.RELEASE: self._release,
            abi.INTERRUPT: self._interrupt,
        }  # fmt: skip
        if lookup:
            return made | {abi.LOOKUP: self._lookup, abi.OPEN: self._open}
        return made | dict.fromkeys((abi.OPEN, abi.OPENDIR, abi.CREATE), self._opening)

    def _lookup(self, inner: Handler) -> Handler:
        def handle(req: Request, buf: Buffer, size: int) -> Body:
            name = bytes(buf[40 : size - 1])
            if req.nodeid != abi.ROOT_ID or not name.startswith(self.prefix):
                return inner(req, buf, size)
            nodeid = FIRST + int(name[len(self.prefix) :])
            mode = stat.S_IFREG | 0o600
            owner = os.geteuid(), os.getegid()
            attr = abi.ATTR.pack(nodeid, SIZE, 0, 0, 0, 0, 0, 0, 0, mode, 1, *owner, 0, PAGE, 0)
            return replies.entry_out(nodeid, 0, 0, 0, 1 << 31, 0, attr)

        return handle

    def _open(self, inner: Handler) -> Handler:
        def handle(req: Request, buf: Buffer, size: int) -> Body:
            if req.nodeid < FIRST:
                return inner(req, buf, size)
            how = abi.FOPEN_DIRECT_IO if req.nodeid >= ROPE else abi.FOPEN_KEEP_CACHE
            return replies.open_out(req.nodeid, how)

        return handle

    def _opening(self, inner: Handler) -> Handler:
        """Of files of the union."""
        opening = self._canary.opening

        def handle(req: Request, buf: Buffer, size: int) -> Body:
            opening()
            return inner(req, buf, size)

        return handle

    def _release(self, inner: Handler) -> Handler:
        return lambda req, buf, size: inner(req, buf, size) if req.nodeid < FIRST else None

    def _read(self, inner: Handler) -> Handler:
        def handle(req: Request, buf: Buffer, size: int) -> Body:
            if req.nodeid < FIRST:
                return inner(req, buf, size)
            return bytes(min(abi.READ_IN.unpack_from(buf, 40)[2], SIZE))

        return handle

    def _write(self, inner: Handler) -> Handler:
        canary = self._canary

        def handle(req: Request, buf: Buffer, size: int) -> Body:
            nodeid = req.nodeid
            if nodeid < FIRST:
                return inner(req, buf, size)
            _, offset, length, flags, *_ = abi.WRITE_IN.unpack_from(buf, 40)
            if nodeid >= ROPE:
                return replies.write_out(1) if canary.told(req.unique, offset) else DEFERRED
            if nodeid == BELL:
                canary.rung()
            elif not canary.latch_written(nodeid - LATCHES[0], req.unique, offset, length, flags):
                return DEFERRED
            return replies.write_out(length)

        return handle

    def _interrupt(self, inner: Handler) -> Handler:
        def handle(req: Request, buf: Buffer, size: int) -> Body:
            self._canary.interrupted(abi.INTERRUPT_IN.unpack_from(buf, 40)[0])
            return inner(req, buf, size)

        return handle
