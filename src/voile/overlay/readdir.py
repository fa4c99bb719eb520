"""Listing: the names that all real directories of a node show together.

Theory of operation
-------------------
The real directories are read from top to bottom; the first one that has a name wins,
and a whiteout wins without being shown (fs/overlayfs/readdir.c, `ovl_dir_read_merged`).
A listing is a snapshot, so an offset means the same entry for as long as the directory
is open, whatever happens to it meanwhile.

d_ino must be the st_ino that stat(2) shows.  For an entry of a lower layer, or a plain
one of the upper, that is the real number; merged directories and what was copied up
show another one (`impure`), and are looked up.
"""

from __future__ import annotations

import os
import struct
from mmap import mmap

from voile.linux import files
from voile.overlay import namei, whiteout
from voile.overlay.inode import Dir
from voile.overlay.layers import RealDir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.overlay.super import Overlay

    Entry = tuple[bytes, int, int]

DT_UNKNOWN = 0
DT_CHR = 2
DT_DIR = 4
DT_REG = 8

_HEAD = struct.Struct("=QqHB")
# An anonymous mapping costs memory only where entries touch it.
_BUFFER = mmap(-1, 256 * 1024)


def entries(ofs: Overlay, node: Dir, *, asked: bool = True) -> list[Entry]:
    """All entries as (name, d_ino, d_type), "." and ".." first.

    `asked`: by a caller, whose reading sets the access time of the upper directory.

    Raises:
        OSError: as getdents64(2).
    """
    parent_ino = node.parent.ino if node.parent is not None else node.ino
    result: list[Entry] = [(b".", node.ino, DT_DIR), (b"..", parent_ino, DT_DIR)]
    if node.dead:
        # A removed directory lists nothing, not even the dots (IS_DEADDIR).
        return []
    reals = node.reals
    seen: set[bytes] | None = set() if len(reals) > 1 else None
    for real in reals:
        _read_layer(ofs, node, real, seen, result, asked)
    return result


def is_empty(ofs: Overlay, node: Dir) -> bool:
    """Whether nothing but "." and ".." would be listed."""
    return len(entries(ofs, node, asked=False)) <= 2


def _read_layer(
    ofs: Overlay, node: Dir, real: RealDir, seen: set[bytes] | None, result: list[Entry], asked: bool
) -> None:
    """Adds what one layer's directory shows of names not yet `seen`."""
    layer = real.layer
    upper = layer.index == 0
    merged = len(node.reals) > 1
    plain = layer.fsid == 0 or ofs.samefs
    hidden = {ino for dev, ino in ofs.hidden if dev == layer.dev} if ofs.hidden and not upper else None
    for name, ino, kind in raw_entries(ofs, real, asked=asked):
        if seen is not None:
            if name in seen:
                continue
            seen.add(name)
        if kind == DT_CHR or kind == DT_UNKNOWN or (real.xwhiteouts and kind == DT_REG):
            st = os.stat(name, dir_fd=ofs.fds.fd(real), follow_symlinks=False)
            if whiteout.is_whiteout(st) or whiteout.is_xattr_whiteout(ofs, real, name, st):
                continue
            kind = st.st_mode >> 12
        if hidden and ino in hidden and kind == DT_DIR:
            continue
        if upper and (node.impure or (merged and kind == DT_DIR)):
            shown = _constant_ino(ofs, node, real, name, ino, kind)
        else:
            shown = ino if plain else ofs.map_ino(layer, ino)
        result.append((name, shown, kind))


def _constant_ino(ofs: Overlay, node: Dir, real: RealDir, name: bytes, ino: int, kind: int) -> int:
    """The st_ino of an upper entry that may come from a lower layer."""
    known = node.children.get(name)
    if known is not None:
        return known.ino
    try:
        if kind == DT_DIR:
            found = namei.resolve(ofs, node, name)
            if found is not None:
                child = found[0]
                assert isinstance(child, Dir)
                ofs.fds.drop(child.reals)
                return child.ino
        else:
            fd = ofs.fds.fd(real)
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            return namei.upper_ino(ofs, fd, name, st, ofs.map_ino(real.layer, ino))
    except OSError:
        # An entry that cannot be looked up is still listed (ovl_cache_update).
        pass
    return ofs.map_ino(real.layer, ino)


def raw_entries(ofs: Overlay, real: RealDir, *, asked: bool = False) -> list[Entry]:
    """What the directory of one layer itself holds, without "." and ".."; `asked` as for `entries`."""
    fd = namei.open_dir(ofs, real, noatime=not asked)
    result: list[Entry] = []
    buffer = _BUFFER
    unpack, find = _HEAD.unpack_from, buffer.find
    try:
        while True:
            length = files.getdents64(fd, buffer)
            if length == 0:
                break
            at = 0
            while at < length:
                ino, _off, size, kind = unpack(buffer, at)
                start = at + 19
                name = buffer[start : find(b"\0", start)]
                at += size
                if name != b"." and name != b"..":
                    result.append((name, ino, kind))
    finally:
        os.close(fd)
    return result
