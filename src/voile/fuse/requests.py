"""Requests: bytes → calls of the file system's methods → reply bytes. No I/O.

`bind(operations)` makes the table opcode → handler. A handler takes the `Request` (the header), the buffer
that holds the whole request, and its length; it decodes the arguments, calls one method of `operations` and
returns the reply's body: bytes, None for an empty one, or DEFERRED for none at all (yet).

The buffer is an `mmap` (or `bytes` when a request is run again): a slice of either is a `bytes` copy, made in
40 ns. Only WRITE hands out a view instead, because its data can be a mebibyte.

A method that a file system does not override is not called: its opcode answers ENOSYS, which for many opcodes
makes the kernel stop asking (see `operations`).
"""

from __future__ import annotations

import errno
import os

from voile.fuse import abi, replies
from voile.fuse.operations import Operations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap
    from typing import Final

    Buffer = mmap | bytes
    Body = bytes | bytearray | memoryview | None
    Handler = Callable[["Request", Buffer, int], Body]
    Binder = Callable[[Operations], Handler]


class Deferred(bytes):
    """The type of DEFERRED: bytes, so that it needs no place of its own in the types of replies."""

    __slots__ = ()


#: Returned by an operation that answers later, with `Session.reply` or `Session.fail`.
DEFERRED: Final = Deferred()


class Request:
    """The header of a request, and who sent it.

    The session reuses one object for all requests: use it during the call only, and `copy()` it to keep it.
    *pid* is the calling thread's in our pid namespace, 0 when it has none there or when the kernel itself
    asks (writeback, FORGET); *uid* and *gid* are the caller's fsuid and fsgid.
    """

    __slots__ = ("gid", "nodeid", "opcode", "pid", "uid", "unique")

    def __init__(
        self, opcode: int = 0, unique: int = 0, nodeid: int = 0, uid: int = 0, gid: int = 0, pid: int = 0
    ) -> None:
        self.opcode = opcode
        self.unique = unique
        self.nodeid = nodeid
        self.uid = uid
        self.gid = gid
        self.pid = pid

    def copy(self) -> Request:
        """An object that stays valid after the call."""
        return Request(self.opcode, self.unique, self.nodeid, self.uid, self.gid, self.pid)

    def __repr__(self) -> str:
        name = BINDERS[self.opcode][0].upper() if self.opcode in BINDERS else f"opcode {self.opcode}"
        return (
            f"<{name} unique={self.unique} nodeid={self.nodeid} uid={self.uid} gid={self.gid} pid={self.pid}>"
        )


class SetattrIn:
    """What a SETATTR changes: the fields whose bit is in *valid* (abi.FATTR_*). Times in nanoseconds."""

    __slots__ = ("atime_ns", "ctime_ns", "fh", "gid", "mode", "mtime_ns", "size", "uid", "valid")

    def __init__(self, fields: tuple[int, ...]) -> None:
        valid, fh, size, _, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, uid, gid = fields
        self.valid = valid
        self.fh = fh if valid & abi.FATTR_FH else None
        self.size = size
        self.atime_ns = atime * 1_000_000_000 + atimensec
        self.mtime_ns = mtime * 1_000_000_000 + mtimensec
        self.ctime_ns = ctime * 1_000_000_000 + ctimensec
        self.mode = mode
        self.uid = uid
        self.gid = gid


def bind(operations: Operations, flags: int) -> list[Handler]:
    """The handlers of *operations*, indexed by opcode; opcodes below 64 that it lacks answer ENOSYS.

    *flags* are the agreed INIT flags: SETXATTR_EXT decides on a layout.
    """
    table: list[Handler] = [not_implemented] * 64
    cls = type(operations)
    for opcode, (method, binder) in BINDERS.items():
        if getattr(cls, method) is not getattr(Operations, method) or method in _HARMLESS:
            table[opcode] = binder(operations)
    if not flags & abi.SETXATTR_EXT and table[abi.SETXATTR] is not not_implemented:
        table[abi.SETXATTR] = _setxattr_compat(operations)
    return table


def lacking(operations: Operations) -> int:
    """The INIT flags that must not be agreed on, because *operations* lacks the method behind them."""
    cls, flags = type(operations), 0
    if cls.readdirplus is Operations.readdirplus:
        flags |= abi.DO_READDIRPLUS | abi.READDIRPLUS_AUTO
    if cls.syncfs is Operations.syncfs:
        flags |= abi.HAS_SYNCFS
    return flags


def not_implemented(req: Request, buf: Buffer, size: int) -> Body:
    """The handler of opcodes that the file system (or this code) does not know."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


# Methods with a default that does something useful, or at least nothing: FORGET and INTERRUPT have no reply.
_HARMLESS = frozenset(("forget", "interrupt", "statfs"))


# Shapes that several opcodes share.


def _nothing(method: Callable[[Request], Body]) -> Handler:
    return lambda req, buf, size: method(req)


def _name(method: Callable[[Request, bytes], Body]) -> Handler:
    return lambda req, buf, size: method(req, buf[40 : size - 1])


def _sync(method: Callable[[Request, int, bool], Body]) -> Handler:
    unpack = abi.FSYNC_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        fh, flags = unpack(buf, 40)
        return method(req, fh, bool(flags & abi.FSYNC_FDATASYNC))

    return handle


def _listing(method: Callable[[Request, int, int, int, int], Body]) -> Handler:
    unpack = abi.READ_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        fh, offset, room, _, _, flags = unpack(buf, 40)
        return method(req, fh, offset, room, flags)

    return handle


def _new_file(method: Callable[[Request, bytes, int, int, int, int], Body]) -> Handler:
    unpack = abi.CREATE_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        flags, mode, umask, open_flags = unpack(buf, 40)
        return method(req, buf[56 : size - 1], flags, mode, umask, open_flags)

    return handle


# The other opcodes, in the order of the table.


def _forget(ops: Operations) -> Handler:
    method, unpack = ops.forget, abi.FORGET_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        method(req.nodeid, unpack(buf, 40)[0])
        return DEFERRED

    return handle


def _batch_forget(ops: Operations) -> Handler:
    method = ops.batch_forget

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        (count,) = abi.BATCH_FORGET_IN.unpack_from(buf, 40)
        method(abi.FORGET_ONE.iter_unpack(buf[48 : 48 + 16 * count]))
        return DEFERRED

    return handle


def _getattr(ops: Operations) -> Handler:
    method, unpack = ops.getattr, abi.GETATTR_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        flags, fh = unpack(buf, 40)
        return method(req, flags, fh if flags & 1 else None)

    return handle


def _statx(ops: Operations) -> Handler:
    method, unpack = ops.statx, abi.STATX_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        flags, fh, sx_flags, sx_mask = unpack(buf, 40)
        return method(req, flags, fh if flags & 1 else None, sx_flags, sx_mask)

    return handle


def _setattr(ops: Operations) -> Handler:
    method, unpack = ops.setattr, abi.SETATTR_IN.unpack_from
    return lambda req, buf, size: method(req, SetattrIn(unpack(buf, 40)))


def _symlink(ops: Operations) -> Handler:
    method = ops.symlink

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        name, target = buf[40 : size - 1].split(b"\0")
        return method(req, name, target)

    return handle


def _mknod(ops: Operations) -> Handler:
    method, unpack = ops.mknod, abi.MKNOD_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        mode, rdev, umask = unpack(buf, 40)
        return method(req, buf[56 : size - 1], mode, rdev, umask)

    return handle


def _mkdir(ops: Operations) -> Handler:
    method, unpack = ops.mkdir, abi.MKDIR_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        mode, umask = unpack(buf, 40)
        return method(req, buf[48 : size - 1], mode, umask)

    return handle


def _rename(ops: Operations) -> Handler:
    method, unpack = ops.rename, abi.RENAME_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        name, newname = buf[48 : size - 1].split(b"\0")
        return method(req, name, unpack(buf, 40)[0], newname, 0)

    return handle


def _rename2(ops: Operations) -> Handler:
    method, unpack = ops.rename, abi.RENAME2_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        newdir, flags = unpack(buf, 40)
        name, newname = buf[56 : size - 1].split(b"\0")
        return method(req, name, newdir, newname, flags)

    return handle


def _link(ops: Operations) -> Handler:
    method, unpack = ops.link, abi.LINK_IN.unpack_from
    return lambda req, buf, size: method(req, unpack(buf, 40)[0], buf[48 : size - 1])


def _open(ops: Operations) -> Handler:
    method, unpack = ops.open, abi.OPEN_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        flags, open_flags = unpack(buf, 40)
        return method(req, flags, open_flags)

    return handle


def _opendir(ops: Operations) -> Handler:
    method, unpack = ops.opendir, abi.OPEN_IN.unpack_from
    return lambda req, buf, size: method(req, unpack(buf, 40)[0])


def _read(ops: Operations) -> Handler:
    method, unpack = ops.read, abi.READ_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        fh, offset, length, read_flags, _, flags = unpack(buf, 40)
        return method(req, fh, offset, length, read_flags, flags)

    return handle


def _write(ops: Operations) -> Handler:
    method, unpack, pack = ops.write, abi.WRITE_IN.unpack_from, replies.write_out

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        fh, offset, length, write_flags, _, flags = unpack(buf, 40)
        done = method(req, fh, offset, memoryview(buf)[80 : 80 + length], write_flags, flags)
        return done if isinstance(done, Deferred) else pack(done)

    return handle


def _release(ops: Operations) -> Handler:
    method, unpack = ops.release, abi.RELEASE_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        fh, flags, release_flags, lock_owner = unpack(buf, 40)
        return method(req, fh, flags, release_flags, lock_owner)

    return handle


def _releasedir(ops: Operations) -> Handler:
    method, unpack = ops.releasedir, abi.RELEASE_IN.unpack_from
    return lambda req, buf, size: method(req, unpack(buf, 40)[0])


def _setxattr(ops: Operations) -> Handler:
    method, unpack = ops.setxattr, abi.SETXATTR_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        length, flags, setxattr_flags = unpack(buf, 40)
        name, _, value = buf[56:size].partition(b"\0")
        return method(req, name, value[:length], flags, setxattr_flags)

    return handle


def _setxattr_compat(ops: Operations) -> Handler:
    method, unpack = ops.setxattr, abi.SETXATTR_IN_COMPAT.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        length, flags = unpack(buf, 40)
        name, _, value = buf[48:size].partition(b"\0")
        return method(req, name, value[:length], flags, 0)

    return handle


def _getxattr(ops: Operations) -> Handler:
    method, unpack, pack = ops.getxattr, abi.GETXATTR_IN.unpack_from, replies.xattr_out

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        (room,) = unpack(buf, 40)
        value = method(req, buf[48 : size - 1], room)
        return value if isinstance(value, Deferred) else pack(value, room)

    return handle


def _listxattr(ops: Operations) -> Handler:
    method, unpack, pack = ops.listxattr, abi.GETXATTR_IN.unpack_from, replies.xattr_out

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        (room,) = unpack(buf, 40)
        value = method(req, room)
        return value if isinstance(value, Deferred) else pack(value, room)

    return handle


def _flush(ops: Operations) -> Handler:
    method, unpack = ops.flush, abi.FLUSH_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        fh, lock_owner = unpack(buf, 40)
        return method(req, fh, lock_owner)

    return handle


def _access(ops: Operations) -> Handler:
    method, unpack = ops.access, abi.ACCESS_IN.unpack_from
    return lambda req, buf, size: method(req, unpack(buf, 40)[0])


def _interrupt(ops: Operations) -> Handler:
    method, unpack = ops.interrupt, abi.INTERRUPT_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        method(unpack(buf, 40)[0])
        return DEFERRED

    return handle


def _ioctl(ops: Operations) -> Handler:
    method, unpack = ops.ioctl, abi.IOCTL_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        fh, flags, cmd, arg, in_size, out_size = unpack(buf, 40)
        data = method(req, fh, flags, cmd, arg, buf[72 : 72 + in_size], out_size)
        return data if isinstance(data, Deferred) else replies.ioctl_out(data)

    return handle


def _fallocate(ops: Operations) -> Handler:
    method, unpack = ops.fallocate, abi.FALLOCATE_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        fh, offset, length, mode = unpack(buf, 40)
        return method(req, fh, offset, length, mode)

    return handle


def _lseek(ops: Operations) -> Handler:
    method, unpack = ops.lseek, abi.LSEEK_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        fh, offset, whence = unpack(buf, 40)
        return method(req, fh, offset, whence)

    return handle


def _copy_file_range(ops: Operations) -> Handler:
    method, unpack, pack = ops.copy_file_range, abi.COPY_FILE_RANGE_IN.unpack_from, replies.write_out

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        fh_in, off_in, nodeid_out, fh_out, off_out, length, flags = unpack(buf, 40)
        done = method(req, fh_in, off_in, nodeid_out, fh_out, off_out, length, flags)
        return done if isinstance(done, Deferred) else pack(done)

    return handle


def _copy_file_range_64(ops: Operations) -> Handler:
    method, unpack = ops.copy_file_range, abi.COPY_FILE_RANGE_IN.unpack_from

    def handle(req: Request, buf: Buffer, size: int) -> Body:
        fh_in, off_in, nodeid_out, fh_out, off_out, length, flags = unpack(buf, 40)
        done = method(req, fh_in, off_in, nodeid_out, fh_out, off_out, length, flags)
        return done if isinstance(done, Deferred) else abi.COPY_FILE_RANGE_OUT.pack(done)

    return handle


#: opcode → (method of Operations, maker of its handler)
BINDERS: dict[int, tuple[str, Binder]] = {
    abi.LOOKUP: ("lookup", lambda ops: _name(ops.lookup)),
    abi.FORGET: ("forget", _forget),
    abi.GETATTR: ("getattr", _getattr),
    abi.SETATTR: ("setattr", _setattr),
    abi.READLINK: ("readlink", lambda ops: _nothing(ops.readlink)),
    abi.SYMLINK: ("symlink", _symlink),
    abi.MKNOD: ("mknod", _mknod),
    abi.MKDIR: ("mkdir", _mkdir),
    abi.UNLINK: ("unlink", lambda ops: _name(ops.unlink)),
    abi.RMDIR: ("rmdir", lambda ops: _name(ops.rmdir)),
    abi.RENAME: ("rename", _rename),
    abi.LINK: ("link", _link),
    abi.OPEN: ("open", _open),
    abi.READ: ("read", _read),
    abi.WRITE: ("write", _write),
    abi.STATFS: ("statfs", lambda ops: _nothing(ops.statfs)),
    abi.RELEASE: ("release", _release),
    abi.FSYNC: ("fsync", lambda ops: _sync(ops.fsync)),
    abi.SETXATTR: ("setxattr", _setxattr),
    abi.GETXATTR: ("getxattr", _getxattr),
    abi.LISTXATTR: ("listxattr", _listxattr),
    abi.REMOVEXATTR: ("removexattr", lambda ops: _name(ops.removexattr)),
    abi.FLUSH: ("flush", _flush),
    abi.OPENDIR: ("opendir", _opendir),
    abi.READDIR: ("readdir", lambda ops: _listing(ops.readdir)),
    abi.RELEASEDIR: ("releasedir", _releasedir),
    abi.FSYNCDIR: ("fsyncdir", lambda ops: _sync(ops.fsyncdir)),
    abi.ACCESS: ("access", _access),
    abi.CREATE: ("create", lambda ops: _new_file(ops.create)),
    abi.INTERRUPT: ("interrupt", _interrupt),
    abi.IOCTL: ("ioctl", _ioctl),
    abi.BATCH_FORGET: ("forget", _batch_forget),
    abi.FALLOCATE: ("fallocate", _fallocate),
    abi.READDIRPLUS: ("readdirplus", lambda ops: _listing(ops.readdirplus)),
    abi.RENAME2: ("rename", _rename2),
    abi.LSEEK: ("lseek", _lseek),
    abi.COPY_FILE_RANGE: ("copy_file_range", _copy_file_range),
    abi.SYNCFS: ("syncfs", lambda ops: _nothing(ops.syncfs)),
    abi.TMPFILE: ("tmpfile", lambda ops: _new_file(ops.tmpfile)),
    abi.STATX: ("statx", _statx),
    abi.COPY_FILE_RANGE_64: ("copy_file_range", _copy_file_range_64),
}
