"""Questions to a running mount, asked through an ioctl on its root directory.

An ioctl reaches the daemon in every namespace that sees the mount and needs no socket.  FUSE
takes the sizes of its data from the command number (_IOC_SIZE, 14 bits; fs/fuse/ioctl.c,
fuse_do_ioctl without FUSE_IOCTL_UNRESTRICTED), so both directions are one buffer of fixed size,
and an answer that is longer comes in pieces.

Request:  magic, protocol version, question, token, offset; the rest is zero.
Reply:    magic, protocol version, bytes in this piece, token, total; then the piece.

The daemon answers a question at offset 0 afresh.  When one piece does not suffice it keeps the
answer under a token, and the following pieces are cut from that copy: they always fit together.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class State(Protocol):
        """What the daemon knows about itself."""

        def status(self) -> dict[str, Any]: ...


SIZE = 8192
_IOC_READ_WRITE = 3
# _IOWR('V', 1, char[SIZE]) of <asm-generic/ioctl.h>
COMMAND = _IOC_READ_WRITE << 30 | SIZE << 16 | ord("V") << 8 | 1

_MAGIC = b"voil"
_VERSION = 1
_HEAD = struct.Struct("=4sHHQQ")
_ROOM = SIZE - _HEAD.size

STATUS = 1
VERSION = 2

# Answers being fetched in pieces; who is slower than this many others starts again.
_KEPT_ANSWERS = 8


class Control:
    """The daemon's side."""

    __slots__ = ("_answers", "_owner", "_state", "_token")

    def __init__(self, state: State, owner: int) -> None:
        """`state` is asked for the answers; `owner` is the uid that may ask, besides root."""
        self._state = state
        self._owner = owner
        self._token = 0
        self._answers: dict[int, bytes] = {}

    def handle(self, uid: int, command: int, data: bytes | memoryview) -> bytes:
        """Answer one FUSE_IOCTL of a caller with this uid.

        Raises OSError: ENOTTY for an ioctl that is not ours, EPERM for a caller who is neither root nor the
        owner, EINVAL for a question of another version, ESTALE when the kept answer has been dropped.
        """
        if command != COMMAND or len(data) != SIZE:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        if uid not in (0, self._owner):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        magic, version, question, token, offset = _HEAD.unpack_from(data)
        if magic != _MAGIC or version != _VERSION or question not in (STATUS, VERSION):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if offset:
            answer = self._answers.get(token)
            if answer is None or offset >= len(answer):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        else:
            answer = self._answer(question)
            token = self._keep(answer) if len(answer) > _ROOM else 0
        piece = answer[offset : offset + _ROOM]
        if token and offset + len(piece) == len(answer):
            del self._answers[token]
        head = _HEAD.pack(_MAGIC, _VERSION, len(piece), token, len(answer))
        return (head + piece).ljust(SIZE, b"\0")

    def _answer(self, question: int) -> bytes:
        if question == VERSION:
            from voile import __version__

            return __version__.encode()
        import json

        return json.dumps(self._state.status()).encode()

    def _keep(self, answer: bytes) -> int:
        if len(self._answers) >= _KEPT_ANSWERS:
            del self._answers[next(iter(self._answers))]
        self._token += 1
        self._answers[self._token] = answer
        return self._token


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
    import json

    directory = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        answer: dict[str, Any] = json.loads(ask(directory))
    finally:
        os.close(directory)
    return {"mountpoint": os.fsdecode(mountpoint), **answer}
