"""Closing a mount that is in use: to changes, or to everything.

The session's table of handlers is exchanged as a whole, which takes effect with the next request. While all
is open, nothing is asked: it costs nothing.
"""

from __future__ import annotations

import os
from errno import EIO, EROFS

from voile.fuse import abi
from voile.server.base import Waiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from voile.fuse.requests import Body, Buffer, Handler, Request
    from voile.fuse.session import Session

#: Requests that change something. And OPEN, if it is for writing.
CHANGES = frozenset((
    abi.SETATTR, abi.SYMLINK, abi.MKNOD, abi.MKDIR, abi.UNLINK, abi.RMDIR, abi.RENAME, abi.RENAME2, abi.LINK,
    abi.WRITE, abi.SETXATTR, abi.REMOVEXATTR, abi.CREATE, abi.TMPFILE, abi.FALLOCATE, abi.COPY_FILE_RANGE,
    abi.COPY_FILE_RANGE_64,
))  # fmt: skip
# What ends things: it has to work always. And the control questions, which look after themselves.
_ENDS = frozenset((
    abi.FORGET, abi.BATCH_FORGET, abi.INTERRUPT, abi.FLUSH, abi.RELEASE, abi.RELEASEDIR, abi.DESTROY,
    abi.IOCTL,
))  # fmt: skip
# What opening the root needs, for the control questions: umount(8) and `voile status` ask there.
_TO_OPEN_THE_ROOT = frozenset((abi.GETATTR, abi.OPENDIR))


def open_all(session: Session) -> None:
    """Everything works again."""
    session.exchange(lambda opcode, handler: handler)


def read_only(session: Session) -> None:
    """Every change fails with EROFS, as on a read-only file system."""

    def refuse(req: Request, buf: Buffer, size: int) -> Body:
        raise OSError(EROFS, os.strerror(EROFS))

    _close_to_changes(session, refuse)


def park(session: Session, waiters: list[Callable[[int], None]]) -> None:
    """Every change waits, until `waiters` are called with 0 (or an errno, which fails it)."""

    def wait(req: Request, buf: Buffer, size: int) -> Body:
        raise Waiting(waiters)

    _close_to_changes(session, wait)


def shut(session: Session, lookup: Handler) -> None:
    """Everything fails with EIO, but what an unmount and the control questions need.

    `lookup` answers LOOKUP (see shutdown).
    """

    def make(opcode: int, handler: Handler) -> Handler:
        if opcode == abi.LOOKUP:
            return lookup
        if opcode in _ENDS:
            return handler
        return _only_root(handler) if opcode in _TO_OPEN_THE_ROOT else fail

    session.exchange(make)


def fail(req: Request, buf: Buffer, size: int) -> Body:
    """The handler of everything on a mount that is shut down."""
    raise OSError(EIO, "shut down")


def _only_root(handler: Handler) -> Handler:
    def handle(req: Request, buf: Buffer, size: int) -> Body:
        return handler(req, buf, size) if req.nodeid == 1 else fail(req, buf, size)

    return handle


def _close_to_changes(session: Session, change: Handler) -> None:
    def make(opcode: int, handler: Handler) -> Handler:
        if opcode in CHANGES:
            return change
        return _unless_writing(handler, change) if opcode == abi.OPEN else handler

    session.exchange(make)


def _unless_writing(handler: Handler, change: Handler) -> Handler:
    unpack = abi.OPEN_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        flags = unpack(buf, 40)[0]
        writes = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        return change(req, buf, size) if writes else handler(req, buf, size)

    return handle
