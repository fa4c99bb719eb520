"""File handles in attributes and in names of the index (`struct ovl_fb`), for a check.

A value that the kernel calls invalid, one that it silently passes over as foreign, and one that
names nothing any more are told apart here, which a mount has no need to do.
"""

from __future__ import annotations

import os
import struct
from errno import ESTALE

from voile.linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# version, magic, length, flags, handle type, uuid; then the handle.
_FB = struct.Struct("=BBBBB16s")
_MAGIC = 0xFB
_BIG_ENDIAN, _ANY_ENDIAN = 1 << 0, 1 << 1
_ALL_FLAGS = _BIG_ENDIAN | _ANY_ENDIAN | 1 << 2
_CPU_ENDIAN = _BIG_ENDIAN if struct.pack("=H", 1) == b"\0\1" else 0
_NO_UUID = bytes(16)


class Invalid(ValueError):
    """Not a handle (`ovl_check_fb_len`: EINVAL)."""


class Foreign(ValueError):
    """A handle, but of another kind of machine or of a newer kernel (`ovl_check_fb_len`: ENODATA)."""


class FileSystem:
    """Where handles are followed: a readable descriptor and the uuid that handles of it carry."""

    __slots__ = ("dev", "fd", "uuid", "decodes")

    def __init__(self, root_fd: int) -> None:
        self.fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
        self.dev = os.fstat(self.fd).st_dev
        self.uuid = files.fs_uuid(self.fd)
        self.decodes = True
        try:
            _mount, kind, handle = files.name_to_handle_at(self.fd, b"", files.AT_EMPTY_PATH)
            os.close(files.open_by_handle_at(self.fd, kind, handle, os.O_PATH))
        except OSError:
            self.decodes = False

    def close(self) -> None:
        """Closes the descriptor."""
        os.close(self.fd)


class Handle:
    """A decoded `struct ovl_fb`."""

    __slots__ = ("kind", "uuid", "handle")

    def __init__(self, value: bytes) -> None:
        """Decodes.

        Raises:
            Invalid, Foreign: with the reason.
        """
        if len(value) < _FB.size:
            raise Invalid("too short for a file handle")
        version, magic, length, flags, self.kind, self.uuid = _FB.unpack_from(value)
        if magic != _MAGIC or not _FB.size <= length <= len(value):
            raise Invalid("not a file handle")
        if version or flags & ~_ALL_FLAGS:
            raise Foreign("a file handle of a newer format")
        if not flags & _ANY_ENDIAN and flags & _BIG_ENDIAN != _CPU_ENDIAN:
            raise Foreign("a file handle of a machine with another byte order")
        self.handle: bytes = value[_FB.size : length]

    def names(self, fd: int) -> bool:
        """Whether it is the handle of the object `fd`; also true where that cannot be told."""
        try:
            _mount, kind, handle = files.name_to_handle_at(fd, b"", files.AT_EMPTY_PATH)
        except OSError:
            return True
        return (kind, handle) == (self.kind, self.handle)

    def belongs(self, filesystems: Iterable[FileSystem]) -> bool:
        """Whether one of the file systems may have made it."""
        return self.uuid == _NO_UUID or any(each.uuid in (None, self.uuid) for each in filesystems)

    def open(self, filesystems: Iterable[FileSystem]) -> int | None:
        """An O_PATH descriptor of what it names; None where that cannot be told (no privilege, for one).

        Raises:
            OSError: ESTALE: nothing, any more.
        """
        stale = False
        for each in filesystems:
            if not each.decodes or self.uuid != (each.uuid or _NO_UUID):
                continue
            try:
                return files.open_by_handle_at(each.fd, self.kind, self.handle, os.O_PATH)
            except OSError as exc:
                stale = stale or exc.errno == ESTALE
        if stale:
            raise OSError(ESTALE, "stale file handle")
        return None

    def stat(self, filesystems: Iterable[FileSystem]) -> os.stat_result | None:
        """As `open`, the status."""
        fd = self.open(filesystems)
        if fd is None:
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)
