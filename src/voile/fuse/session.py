"""A session: one opened /dev/fuse and the file system behind it.

`handshake()` answers the kernel's INIT; then `device.Device` reads requests into the session's buffer and
calls `process(n)` for each: header → handler (`requests.bind`) → one write. That function is a closure, built
once, because it runs for every request: cell variables cost less than attributes, and the header is stored
into one `Request` object that is used again and again.

Every request gets exactly one answer, whatever happens in a method: OSError → its errno; anything else →
`Operations.unexpected`; a reply that the kernel finds malformed (EINVAL) → EIO. A request without an answer
leaves its caller in uninterruptible sleep. ENOENT from the write is normal: the request was aborted by a
signal.
"""

from __future__ import annotations

import errno
import os
from mmap import mmap

from voile.fuse import abi
from voile.fuse.negotiation import WANTED, Config, Negotiated, ProtocolError, negotiate
from voile.fuse.operations import Operations
from voile.fuse.requests import DEFERRED, Request, bind, lacking, not_implemented

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from voile.fuse.requests import Body, Buffer, Handler

    Write = Callable[[int, bytes], int]
    Writev = Callable[[int, tuple[bytes, bytes | bytearray | memoryview]], int]

__all__ = ["DEFERRED", "WANTED", "Config", "Negotiated", "Operations", "ProtocolError", "Request", "Session"]

_out_header = abi.OUT_HEADER.pack
# Above this size a copy into one buffer costs more than writev's second vector.
_JOIN_LIMIT = 8192


class Session:
    """The dialogue over the open /dev/fuse *fd* with the kernel; *operations* answers."""

    def __init__(self, fd: int, operations: Operations, config: Config | None = None) -> None:
        self.fd = fd
        self.operations = operations
        self.config = config or Config()
        self.negotiated: Negotiated | None = None
        # The kernel wants room for the largest WRITE and its headers (fs/fuse/dev.c fuse_dev_do_read). An
        # anonymous mapping costs memory only where requests touch it.
        self.buffer = mmap(-1, max(self.config.max_write, 65536 + 4096) + 4096)
        self.request = Request()
        self._destroyed = False
        # DESTROY has come, the last request of a fuseblk mount: the kernel has nothing left to write.
        self.said_goodbye = False
        # The mount is gone, or its connection has been aborted: the device cannot tell which.
        self.gone = False
        self._handlers: list[Handler] = [not_implemented] * 64
        self._agreed = list(self._handlers)
        self._make: Callable[[int, Handler], Handler] = lambda opcode, handler: handler
        self._front: dict[int, Callable[[Handler], Handler]] = {}
        #: Handle the request of the given length that was read into `buffer` (see also `answering_by`).
        self.process: Callable[[int], None] = self._make_process(self.request, self.buffer)

    def handshake(self) -> Negotiated:
        """Read INIT and answer it; the mount works from then on.

        Raises OSError from the device (ENODEV: unmounted meanwhile), ProtocolError when the kernel is too
        old.
        """
        while self.negotiated is None:
            size = os.readv(self.fd, [self.buffer])
            _, opcode, unique, *_ = abi.IN_HEADER.unpack_from(self.buffer)
            if opcode != abi.INIT:
                raise ProtocolError(f"opcode {opcode} came before INIT")
            try:
                negotiated, body = negotiate(self.buffer[40:size], self.config, lacking(self.operations))
            except ProtocolError:
                self.fail(unique, errno.EPROTO)
                raise
            if negotiated is not None:
                self.start(negotiated)
            self.reply(unique, body)
        return self.negotiated

    def start(self, negotiated: Negotiated) -> None:
        """Set up for what was *negotiated* (part of `handshake`; alone for tests or a device handed over)."""
        self.negotiated = negotiated
        table = bind(self.operations, negotiated.flags)
        table[abi.DESTROY] = self._destroy
        self._handlers[:] = table
        trace = self.config.trace
        if trace is not None:
            self._handlers[:] = [_traced(handler, trace) for handler in table]
        self._agreed = list(self._handlers)
        self.operations.init(negotiated)

    def exchange(self, make: Callable[[int, Handler], Handler]) -> None:
        """Have other handlers answer, from the next request on: `make(opcode, handler)` gives each of them.

        It is called with the handlers that `start` set up. In any thread.
        """
        self._make = make
        handlers = [make(opcode, handler) for opcode, handler in enumerate(self._agreed)]
        for opcode, front in self._front.items():
            handlers[opcode] = front(handlers[opcode])
        self._handlers[:] = handlers

    def put_before(self, front: dict[int, Callable[[Handler], Handler]]) -> None:
        """Have others see requests first, whatever `exchange` does: `front[opcode](handler)` makes them.

        They replace those of an earlier call.
        """
        self._front = front
        self.exchange(self._make)

    def dispatch(self, raw: bytes) -> None:
        """Run the request *raw*, kept from `Operations.unexpected`, as if it had just been read."""
        self._make_process(Request(), raw)(len(raw))

    def reply(self, unique: int, body: bytes | bytearray | memoryview | None = None) -> None:
        """Answer the request *unique* with *body*. An answer that nobody waits for any more is dropped."""
        try:
            if body is None:
                os.write(self.fd, _out_header(16, 0, unique))
            else:
                os.writev(self.fd, (_out_header(16 + len(body), 0, unique), body))
        except OSError as exc:
            self._reply_failed(unique, exc)

    def fail(self, unique: int, error: int) -> None:
        """Answer the request *unique* with the positive errno *error*."""
        if not 0 < error < 512:  # the kernel would refuse the reply and the caller would wait for ever
            error = errno.EIO
        try:
            os.write(self.fd, _out_header(16, -error, unique))
        except OSError as exc:
            if exc.errno not in _NOBODY_WAITS:
                raise

    # Notifications. The kernel works on them inside our write(2): it takes the directory's lock
    # (fs/fuse/dir.c fuse_reverse_inval_entry) or waits for pages. Whoever holds these may be waiting for an
    # answer of ours, so send one from a thread of `WorkerPool`, or where no request on that node can be
    # unanswered. Attributes alone (`notify_inval_inode` with a negative *off*) need no lock and may be
    # dropped from the loop.

    def notify_inval_inode(self, nodeid: int, off: int = 0, length: int = 0) -> bool:
        """Drop cached attributes, and cached data from *off* (negative: attributes only; *length* 0: to the
        end).

        False when the kernel does not know the node. Other errors raise OSError, for all notifications.
        """
        return self._notify(abi.NOTIFY_INVAL_INODE, abi.NOTIFY_INVAL_INODE_OUT.pack(nodeid, off, length))

    def notify_inval_entry(self, parent: int, name: bytes, flags: int = 0) -> bool:
        """Forget a name; with abi.EXPIRE_ONLY only its validity ends. False: it was not cached."""
        head = abi.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), flags)
        return self._notify(abi.NOTIFY_INVAL_ENTRY, head + name + b"\0")

    def notify_delete(self, parent: int, child: int, name: bytes) -> bool:
        """Like `notify_inval_entry`, and tell inotify watchers that *child* was deleted."""
        head = abi.NOTIFY_DELETE_OUT.pack(parent, child, len(name))
        return self._notify(abi.NOTIFY_DELETE, head + name + b"\0")

    def notify_store(self, nodeid: int, offset: int, data: bytes) -> bool:
        """Put *data* into the page cache of a file. False when the kernel does not know the node."""
        return self._notify(abi.NOTIFY_STORE, abi.NOTIFY_STORE_OUT.pack(nodeid, offset, len(data)) + data)

    def notify_inc_epoch(self) -> bool:
        """Have the kernel look up every name anew. False before Linux 6.16, which cannot do that."""
        try:
            self._notify(abi.NOTIFY_INC_EPOCH, b"")
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            return False
        return True

    def _notify(self, code: int, body: bytes) -> bool:
        try:
            os.write(self.fd, _out_header(16 + len(body), code, 0) + body)
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                raise
            return False
        return True

    def finish(self) -> None:
        """The device has ended: tell the operations, once."""
        if not self._destroyed:
            self._destroyed = True
            self.operations.destroy()

    def _destroy(self, req: Request, buf: Buffer, size: int) -> Body:
        self.said_goodbye = True
        self.finish()
        return None

    def _reply_failed(self, unique: int, exc: OSError) -> None:
        if exc.errno in _NOBODY_WAITS:
            return
        # EINVAL is a malformed reply of ours, ENOMEM or EFAULT a passing trouble: end the request either way.
        import sys

        print(f"voile: reply to request {unique} refused: {exc}", file=sys.stderr)
        self.fail(unique, errno.EIO)

    def _failed(self, req: Request, buf: Buffer, n: int, exc: Exception) -> None:
        if req.opcode >= len(self._handlers):
            error: int | None = errno.ENOSYS
        else:
            try:
                error = self.operations.unexpected(req, memoryview(buf)[:n], exc)
            except Exception:
                error = errno.EIO
        if error is not None:
            self.fail(req.unique, error)

    def answering_by(self, write: Write, writev: Writev) -> Callable[[int], None]:
        """As `process`, with other functions for os.write and os.writev."""
        return self._make_process(self.request, self.buffer, write, writev)

    def _make_process(
        self, req: Request, buf: Buffer, write: Write = os.write, writev: Writev = os.writev
    ) -> Callable[[int], None]:
        fd, handlers, failed, reply_failed = self.fd, self._handlers, self._failed, self._reply_failed
        unpack, pack = abi.IN_HEADER.unpack_from, _out_header

        def process(n: int) -> None:
            size, req.opcode, unique, req.nodeid, req.uid, req.gid, req.pid, extra = unpack(buf)
            req.unique = unique
            if extra:  # extensions (security context, groups) follow the arguments
                size -= extra * 8
            try:
                body = handlers[req.opcode](req, buf, size)
            except OSError as exc:
                error = exc.errno
                if error is None or not 0 < error < 512:
                    failed(req, buf, n, exc)
                    return
                head, body = pack(16, -error, unique), None
            except Exception as exc:
                failed(req, buf, n, exc)
                return
            else:
                if body is None:
                    head = pack(16, 0, unique)
                elif body is DEFERRED:
                    return
                else:
                    length = len(body)
                    head = pack(16 + length, 0, unique)
                    if length < _JOIN_LIMIT:
                        head += body
                        body = None
            try:
                if body is None:
                    write(fd, head)
                else:
                    writev(fd, (head, body))
            except OSError as exc:
                reply_failed(unique, exc)

        return process


# The request was aborted by a signal (ENOENT), or the whole connection has ended.
_NOBODY_WAITS = frozenset((errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN, errno.EPERM))


def _traced(handler: Handler, trace: Callable[[str], None]) -> Handler:
    def handle(req: Request, buf: Buffer, size: int) -> Body:
        trace(f"{req!r} {size} bytes")
        try:
            body = handler(req, buf, size)
        except BaseException as exc:
            trace(f"  unique={req.unique} {exc!r}")
            raise
        if body is not DEFERRED:
            trace(f"  unique={req.unique} ok, {len(body or b'')} bytes")
        return body

    return handle
