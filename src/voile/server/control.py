"""Questions to a running mount, asked through an ioctl on its root directory.

An ioctl reaches the daemon in every namespace that sees the mount and needs no socket.  FUSE
takes the sizes of its data from the command number (_IOC_SIZE, 14 bits; fs/fuse/ioctl.c,
fuse_do_ioctl without FUSE_IOCTL_UNRESTRICTED), so both directions are one buffer of fixed size,
and an answer that is longer comes in pieces.

Request:  magic, protocol version, question, token, offset; the rest is zero.
Reply:    magic, protocol version, bytes in this piece, token, total; then the piece.

The daemon answers a question at offset 0 afresh.  When one piece does not suffice it keeps the
answer under a token, and the following pieces are cut from that copy: they always fit together.

An answer that takes time (a real sync) is found in another thread; others are served meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class State(Protocol):
        """What the daemon knows about itself.

        A method may return a Late in place of the answer.
        """

        def status(self) -> dict[str, Any]: ...
        def sync(self) -> Any: ...
        def shut_down(self, uid: int, pid: int) -> Any: ...
        def take_checkpoint(self) -> Any: ...
        def freeze(self, pid: int) -> Any: ...
        def thaw(self) -> Any: ...
        def calibrate(self) -> Any: ...
        def dismiss_canary(self) -> Any: ...
        def new_canary(self) -> Any: ...


SIZE = 8192
_IOC_READ_WRITE = 3
# _IOWR('V', 1, char[SIZE]) of <asm-generic/ioctl.h>
COMMAND = _IOC_READ_WRITE << 30 | SIZE << 16 | ord("V") << 8 | 1

# Another one that is answered: _IOR('X', 125, __u32), the same as XFS_IOC_GOINGDOWN.
FS_IOC_SHUTDOWN = 0x8004587D

_MAGIC = b"voil"
_VERSION = 1
_HEAD = struct.Struct("=4sHHQQ")
_ROOM = SIZE - _HEAD.size

STATUS = 1
VERSION = 2
SYNC = 3
SHUTDOWN = 4
CHECKPOINT = 5
FREEZE = 6
THAW = 7
CALIBRATE = 8
NO_CANARY = 9
CANARY = 10
_QUESTIONS = frozenset(
    (STATUS, VERSION, SYNC, SHUTDOWN, CHECKPOINT, FREEZE, THAW, CALIBRATE, NO_CANARY, CANARY)
)
# Those that anybody may ask who can open the root: fsync(2) would tell him as well, and SHUTDOWN has its own
# rule.
_PUBLIC = frozenset((SYNC, SHUTDOWN))

# Answers being fetched in pieces; who is slower than this many others starts again.
_KEPT_ANSWERS = 8


class Late:
    """An answer that takes time: `finish(work())`, `work` in another thread, `finish` back in the loop's.

    `finish` may return another Late. Both may raise OSError, which is the answer then.
    """

    __slots__ = ("finish", "work")

    def __init__(self, work: Callable[[], Any], finish: Callable[[Any], Any] = lambda found: found) -> None:
        self.work = work
        self.finish = finish


class Control:
    """The daemon's side."""

    __slots__ = ("_answers", "_owner", "_state", "_token")

    def __init__(self, state: State, owner: int) -> None:
        """`state` is asked for the answers; `owner` is the uid that may ask for all of them, besides root."""
        self._state = state
        self._owner = owner
        self._token = 0
        self._answers: dict[int, bytes] = {}

    def handle(self, uid: int, command: int, data: bytes | memoryview, pid: int = 0) -> bytes | Late:
        """Answer one FUSE_IOCTL of a caller with this uid; or return what finds the answer (see `one_piece`).

        `pid`: his thread, 0 when it cannot be known.

        Raises OSError: ENOTTY for an ioctl that is not ours, EPERM for a caller who is neither root nor the
        owner, EINVAL for a question of another version, ESTALE when the kept answer has been dropped.
        """
        if command != COMMAND or len(data) != SIZE:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        magic, version, question, token, offset = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if uid not in (0, self._owner) and question not in _PUBLIC:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if version != _VERSION or question not in _QUESTIONS:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if offset:
            answer = self._answers.get(token)
            if answer is None or offset >= len(answer):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return self._piece(answer, token, offset)
        found = self._ask(question, uid, pid)
        if isinstance(found, Late):
            return found
        answer = found if isinstance(found, bytes) else _json(found)
        return self._piece(answer, self._keep(answer) if len(answer) > _ROOM else 0, 0)

    def _ask(self, question: int, uid: int, pid: int) -> Any:
        if question == STATUS:
            return self._state.status()
        if question == SYNC:
            return self._state.sync()
        if question == SHUTDOWN:
            return self._state.shut_down(uid, pid)
        if question == CHECKPOINT:
            return self._state.take_checkpoint()
        if question == FREEZE:
            return self._state.freeze(pid)
        if question == THAW:
            return self._state.thaw()
        if question == CALIBRATE:
            return self._state.calibrate()
        if question == NO_CANARY:
            return self._state.dismiss_canary()
        if question == CANARY:
            return self._state.new_canary()
        from voile import __version__

        return __version__.encode()

    def _piece(self, answer: bytes, token: int, offset: int) -> bytes:
        piece = answer[offset : offset + _ROOM]
        if token and offset + len(piece) == len(answer):
            del self._answers[token]
        head = _HEAD.pack(_MAGIC, _VERSION, len(piece), token, len(answer))
        return (head + piece).ljust(SIZE, b"\0")

    def _keep(self, answer: bytes) -> int:
        if len(self._answers) >= _KEPT_ANSWERS:
            del self._answers[next(iter(self._answers))]
        self._token += 1
        self._answers[self._token] = answer
        return self._token


def _json(value: Any) -> bytes:
    import json

    return json.dumps(value).encode()


def one_piece(value: Any) -> bytes:
    """The whole reply for an answer that is short."""
    answer = _json(value)
    return (_HEAD.pack(_MAGIC, _VERSION, len(answer), 0, len(answer)) + answer).ljust(SIZE, b"\0")


def ask(directory: int, question: int = STATUS) -> bytes:
    """Ask the mount that the open directory (its root; not O_PATH) belongs to; return the whole answer.

    Raises OSError: ENOTTY (or EINVAL, ENOSYS) when the file system is not voile, EPERM when the caller is
    neither root nor the mount's owner, ENOTCONN when the daemon is gone.
    """
    while True:
        try:
            return _ask(directory, question)
        except OSError as error:
            if error.errno != errno.ESTALE:  # the daemon dropped our half-fetched answer
                raise


def _ask(directory: int, question: int) -> bytes:
    answer = bytearray()
    token = 0
    while True:
        buffer = bytearray(_HEAD.pack(_MAGIC, _VERSION, question, token, len(answer)).ljust(SIZE, b"\0"))
        fcntl.ioctl(directory, COMMAND, buffer)
        magic, version, length, token, total = _HEAD.unpack_from(buffer)
        if magic != _MAGIC or version != _VERSION or not 0 < length <= _ROOM:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        answer += buffer[_HEAD.size : _HEAD.size + length]
        if len(answer) >= total:
            return bytes(answer)


def status(mountpoint: bytes) -> dict[str, Any]:
    """Return the status of the mount at `mountpoint`, as in `voile status --json`, with its mount point.

    Raises OSError as `ask` does, or when the mount point cannot be opened.
    """
    return {"mountpoint": os.fsdecode(mountpoint), **_ask_at(mountpoint, STATUS)}


def shutdown(mountpoint: bytes) -> None:
    """Shut the mount at `mountpoint` down: everything on it fails with EIO, until it is unmounted.

    Raises OSError: EPERM for a caller who is neither the owner (an ordinary user) nor has CAP_SYS_ADMIN, as
    `ask`, or when the mount point cannot be opened.
    """
    _ask_at(mountpoint, SHUTDOWN)


class LostData(OSError):
    """The upper file system has lost data since the mount; `errno` says how."""


def sync(mountpoint: bytes) -> bool:
    """Ask the mount at `mountpoint` whether its upper file system has lost data since the mount.

    A volatile mount syncs nothing for that, any other one syncs its upper file system first. The answer is
    exact on every mount and for everybody, while syncfs(2) does not reach the daemon of every mount.
    Return whether data has been synced. Raises LostData; OSError as `ask`, EIO when the mount has been shut
    down, or when the mount point cannot be opened.
    """
    answer = _ask_at(mountpoint, SYNC)
    _raise_lost(mountpoint, answer)
    return bool(answer["synced"])


def checkpoint(mountpoint: bytes) -> None:
    """Have all that was changed on the mount at `mountpoint` on the disk; verify that nothing was lost.

    Raises LostData: something was lost since the mount; OSError: EBUSY while somebody else does the same, EIO
    after a shutdown, as `ask`, or when the mount point cannot be opened.
    """
    _raise_lost(mountpoint, _ask_at(mountpoint, CHECKPOINT))


def freeze(mountpoint: bytes) -> None:
    """As `checkpoint`, and keep all changes waiting: this process is about to unmount.

    The marker of the volatile mount has been removed then. `thaw` undoes it, and so does the end of this
    process.
    Raises as `checkpoint`; EBUSY also when a file is open for writing.
    """
    _raise_lost(mountpoint, _ask_at(mountpoint, FREEZE))


def calibrate(mountpoint: bytes) -> None:
    """Have the mount at `mountpoint` time a few real syncs; its status has an estimate of time saved then.

    Raises OSError: that of a sync, EIO after a shutdown, EROFS when it cannot be written, or as `ask`.
    """
    _ask_at(mountpoint, CALIBRATE)


def canary(mountpoint: bytes, on: bool) -> None:
    """End the canary of the mount at `mountpoint`, which has files open for writing, or have a new one.

    Raises OSError as `ask`.
    """
    _ask_at(mountpoint, CANARY if on else NO_CANARY)


def thaw(mountpoint: bytes) -> None:
    """After `freeze`: it could not be unmounted. Raises OSError as `ask`."""
    _ask_at(mountpoint, THAW)


def _raise_lost(mountpoint: bytes, answer: dict[str, Any]) -> None:
    error = answer["error"]
    if error is not None:
        raise LostData(error["errno"], os.strerror(error["errno"]), mountpoint)


def _ask_at(mountpoint: bytes, question: int) -> dict[str, Any]:
    import json

    directory = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        answer: dict[str, Any] = json.loads(ask(directory, question))
    finally:
        os.close(directory)
    return answer
