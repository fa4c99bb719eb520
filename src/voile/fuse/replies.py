"""Reply bodies: values → bytes, no I/O.

Every function returns the body of one reply (what follows `fuse_out_header`). They are on the hot path:
one `Struct.pack` each, no intermediate objects. Attributes come in two forms: whole replies made straight
from an `os.stat_result` (`entry_from_stat`, `attr_out_from_stat`), and replies made from ready attribute
bytes (`attr_from_stat`, or `attr` field by field) for callers that keep them.
"""

from __future__ import annotations

import errno
from struct import Struct

from voile.fuse import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

_NS = 1_000_000_000
_U32 = 0xFFFFFFFF

_attr_pack = abi.ATTR.pack
_entry_pack = abi.ENTRY_OUT.pack
_entry_head_pack = abi.ENTRY_HEAD.pack
_attr_out_pack = abi.ATTR_OUT.pack
_attr_out_head_pack = abi.ATTR_OUT_HEAD.pack
_open_pack = abi.OPEN_OUT.pack
_create_pack = abi.CREATE_OUT.pack
_write_pack = abi.WRITE_OUT.pack

#: `struct fuse_attr`, field by field: ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec,
#: ctimensec, mode, nlink, uid, gid, rdev, blksize, flags.
attr = abi.ATTR.pack


def attr_from_stat(st: os.stat_result, ino: int, nlink: int) -> bytes:
    """`struct fuse_attr` of *st*, with the inode number and link count that the mount shows.

    rdev: glibc's dev_t has the layout of the kernel's new_encode_dev() in its low 32 bits
    (include/linux/kdev_t.h), so no conversion is needed.
    """
    return _attr_pack(
        ino, st.st_size, st.st_blocks, st[7], st[8], st[9],
        st.st_atime_ns % _NS, st.st_mtime_ns % _NS, st.st_ctime_ns % _NS,
        st.st_mode, nlink, st.st_uid, st.st_gid, st.st_rdev & _U32, st.st_blksize, 0,
    )  # fmt: skip


def entry_out(
    nodeid: int,
    generation: int,
    entry_valid: int,
    entry_nsec: int,
    attr_valid: int,
    attr_nsec: int,
    attr: bytes,
) -> bytes:
    """`fuse_entry_out`: the answer to LOOKUP, SYMLINK, MKNOD, MKDIR and LINK.

    *attr* is 88 bytes as made by `attr_from_stat`. Each such reply with a nodeid other than 0 adds one to the
    kernel's lookup count of the node, until FORGET.
    """
    return _entry_head_pack(nodeid, generation, entry_valid, attr_valid, entry_nsec, attr_nsec) + attr


def entry_from_stat(
    nodeid: int, generation: int, entry_valid: int, attr_valid: int, st: os.stat_result, ino: int, nlink: int
) -> bytes:
    """`fuse_entry_out` in one step; whole seconds of validity (see `attr_from_stat`)."""
    return _entry_pack(
        nodeid, generation, entry_valid, attr_valid, 0, 0,
        ino, st.st_size, st.st_blocks, st[7], st[8], st[9],
        st.st_atime_ns % _NS, st.st_mtime_ns % _NS, st.st_ctime_ns % _NS,
        st.st_mode, nlink, st.st_uid, st.st_gid, st.st_rdev & _U32, st.st_blksize, 0,
    )  # fmt: skip


def negative_entry(entry_valid: int, entry_nsec: int = 0) -> bytes:
    """The answer to LOOKUP that lets the kernel remember that the name does not exist (nodeid 0)."""
    return _entry_head_pack(0, 0, entry_valid, 0, entry_nsec, 0) + bytes(abi.ATTR.size)


def attr_out(attr_valid: int, attr_nsec: int, attr: bytes) -> bytes:
    """`fuse_attr_out`: the answer to GETATTR and SETATTR."""
    return _attr_out_head_pack(attr_valid, attr_nsec) + attr


def attr_out_from_stat(attr_valid: int, st: os.stat_result, ino: int, nlink: int) -> bytes:
    """`fuse_attr_out` in one step; whole seconds of validity (see `attr_from_stat`)."""
    return _attr_out_pack(
        attr_valid, 0,
        ino, st.st_size, st.st_blocks, st[7], st[8], st[9],
        st.st_atime_ns % _NS, st.st_mtime_ns % _NS, st.st_ctime_ns % _NS,
        st.st_mode, nlink, st.st_uid, st.st_gid, st.st_rdev & _U32, st.st_blksize, 0,
    )  # fmt: skip


def open_out(fh: int, open_flags: int = 0, backing_id: int = 0) -> bytes:
    """`fuse_open_out`: the answer to OPEN and OPENDIR. *backing_id* goes with FOPEN_PASSTHROUGH only."""
    return _open_pack(fh, open_flags, backing_id)


def create_out(entry: bytes, fh: int, open_flags: int = 0, backing_id: int = 0) -> bytes:
    """The answer to CREATE and TMPFILE: `fuse_entry_out` followed by `fuse_open_out`."""
    return entry + _open_pack(fh, open_flags, backing_id)


def write_out(size: int) -> bytes:
    """`fuse_write_out`: the answer to WRITE and COPY_FILE_RANGE."""
    return _write_pack(size)


def statfs_out(st: os.statvfs_result) -> bytes:
    """`fuse_statfs_out` from the statvfs(3) of the file system below."""
    return abi.KSTATFS.pack(
        st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree, st.f_bsize, st.f_namemax, st.f_frsize
    )


def statx_out(
    attr_valid: int, attr_nsec: int, mask: int, blksize: int, attributes: int, nlink: int, uid: int, gid: int,
    mode: int, ino: int, size: int, blocks: int, attributes_mask: int,
    atime_ns: int, btime_ns: int, ctime_ns: int, mtime_ns: int, rdev_major: int, rdev_minor: int,
) -> bytes:  # fmt: skip
    """`fuse_statx_out`: the answer to STATX. Times in nanoseconds; the kernel fills in the device itself."""
    return abi.STATX_OUT.pack(
        attr_valid, attr_nsec, 0,
        mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask,
        atime_ns // _NS, atime_ns % _NS, btime_ns // _NS, btime_ns % _NS,
        ctime_ns // _NS, ctime_ns % _NS, mtime_ns // _NS, mtime_ns % _NS,
        rdev_major, rdev_minor, 0, 0,
    )  # fmt: skip


def lseek_out(offset: int) -> bytes:
    """`fuse_lseek_out`: the answer to LSEEK."""
    return abi.LSEEK_OUT.pack(offset)


def getxattr_size_out(size: int) -> bytes:
    """`fuse_getxattr_out`: the answer to GETXATTR and LISTXATTR of size 0."""
    return abi.GETXATTR_OUT.pack(size)


def xattr_out(value: bytes, size: int) -> bytes:
    """The answer to GETXATTR or LISTXATTR whose buffer has *size* bytes; 0 asks for the length.

    Raises OSError ERANGE when the value does not fit (getxattr(2)).
    """
    if size == 0:
        return abi.GETXATTR_OUT.pack(len(value))
    if len(value) > size:
        raise OSError(errno.ERANGE, "xattr value larger than the buffer")
    return value


def ioctl_out(data: bytes, result: int = 0) -> bytes:
    """`fuse_ioctl_out`: the answer to a restricted IOCTL; *result* is what ioctl(2) returns."""
    return abi.IOCTL_OUT.pack(result, 0, 0, 0) + data


def _record_structs(fmt: str, fixed: int) -> list[Struct]:
    # One struct per name length: `s` pads with zeros, so a single pack makes the aligned record.
    return [Struct(f"={fmt}{(fixed + n + 7 & ~7) - fixed}s") for n in range(256)]


_plain_records: list[Struct] = []
_plus_records: list[Struct] = []


class DirentBuffer:
    """The records of one READDIR (*plus* false) or READDIRPLUS reply of at most *size* bytes."""

    __slots__ = ("_records", "_room", "_structs", "plus")

    def __init__(self, size: int, plus: bool) -> None:
        if not _plain_records:  # made on first use: 0.3 ms that a mount need not wait for
            _plain_records.extend(_record_structs("2Q2I", abi.DIRENT.size))
            _plus_records.extend(
                _record_structs(f"{abi.ENTRY_OUT.size}s2Q2I", abi.ENTRY_OUT.size + abi.DIRENT.size)
            )
        self._room = size
        self.plus = plus
        self._records: list[bytes] = []
        self._structs = _plus_records if plus else _plain_records

    def add(self, ino: int, off: int, type: int, name: bytes, entry: bytes | None = None) -> bool:
        """Append one name; return False, changing nothing, when it does not fit.

        *off* is the offset from which the *next* record is read; *type* is a DT_* value. *entry*, with
        READDIRPLUS only, is a `fuse_entry_out`: it counts as a lookup of its nodeid (but not for "." and
        "..", for which, and for names without an entry, give None: the kernel then looks the name up itself;
        fs/fuse/readdir.c fuse_direntplus_link).
        """
        length = len(name)
        record = self._structs[length]
        room = self._room - record.size
        if room < 0:
            return False
        self._room = room
        if self.plus:
            self._records.append(record.pack(entry or b"", ino, off, length, type, name))
        else:
            self._records.append(record.pack(ino, off, length, type, name))
        return True

    def fill(self, items: Iterable[tuple[int, bytes, int, int]]) -> None:
        """`add` as many items (off, name, ino, type) as there is room for; READDIR only."""
        structs, append, room = self._structs, self._records.append, self._room
        for off, name, ino, type in items:
            length = len(name)
            record = structs[length]
            room -= record.size
            if room < 0:
                break
            append(record.pack(ino, off, length, type, name))
            self._room = room

    def __len__(self) -> int:
        return len(self._records)

    def bytes(self) -> bytes:
        """The reply body; empty at the end of the directory."""
        return b"".join(self._records)
