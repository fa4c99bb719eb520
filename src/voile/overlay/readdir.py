"""Listing: the names that all real directories of a node show together.

Theory of operation
-------------------
The real directories are read from top to bottom; the first one that has a name wins,
and a whiteout wins without being shown (fs/overlayfs/readdir.c, `ovl_dir_read_merged`).
A listing comes in batches, between which somebody else may be served: a directory can have
a million entries.  As POSIX has it, what is created or removed meanwhile is listed or not.

d_ino must be the st_ino that stat(2) shows.  For an entry of a lower layer, or a plain
one of the upper, that is the real number; merged directories and what was copied up
show another one (`impure`), and are looked up.
"""

from __future__ import annotations

import os
import struct
from errno import EIO
from mmap import mmap
from time import monotonic

from voile.linux import files
from voile.overlay import aufs, namei, whiteout
from voile.overlay.copy_up import Busy, drop_impure
from voile.overlay.inode import Dir
from voile.overlay.layers import RealDir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Set

    from voile.overlay.super import Overlay

    Entry = tuple[bytes, int, int]

DT_UNKNOWN = 0
DT_CHR = 2
DT_DIR = 4
DT_REG = 8

_NONE: frozenset[int] = frozenset()
# For so many seconds a look at a directory may keep others waiting.
_STEP = 0.005

_HEAD = struct.Struct("=QqHB")
# An anonymous mapping costs memory only where entries touch it.
_BUFFER = mmap(-1, 64 * 1024)


def dots(node: Dir) -> list[Entry]:
    """The entries "." and ".." as (name, d_ino, d_type)."""
    if node.dead:
        # A removed directory lists nothing, not even the dots (IS_DEADDIR).
        return []
    parent_ino = node.parent.ino if node.parent is not None else node.ino
    return [(b".", node.ino, DT_DIR), (b"..", parent_ino, DT_DIR)]


def batches(ofs: Overlay, node: Dir, *, noatime: bool = False) -> Iterator[list[Entry]]:
    """All other entries, some thousand at a time.

    Args:
        noatime: the caller has asked for O_NOATIME.

    Raises:
        OSError: as getdents64(2).
    """
    if node.dead:
        return
    reals = node.reals
    seen: set[bytes] | None = set() if len(reals) > 1 else None
    for real in reals:
        # Elsewhere whiteouts that are attributes are listed (ovl_dir_read_merged).
        files_too = node.xwhiteouts and real.layer.xwhiteouts and seen is not None
        raw = _raw_batches(ofs, real, asked=not noatime)
        if node.impure and len(reals) == 1:
            raw = _still_impure(ofs, node, raw)
        for batch in raw:
            if ofs.aufs:
                batch = [entry for entry in batch if entry[0][:4] != aufs.PREFIX]
            yield _shown(ofs, node, real, seen, batch, files_too)
        if ofs.aufs and seen is not None:
            seen |= aufs.hidden_names(real, ofs.fds.fd(real))


def is_empty(ofs: Overlay, node: Dir) -> bool:
    """Whether there is nothing but whiteouts; not those that are attributes (`ovl_check_empty_dir`).

    Raises:
        Busy: there are so many whiteouts that others should not wait for the answer.
    """
    look = ofs.looks.get(node)
    if look is None:
        look = Look(ofs, node)
        if ofs.soon is None:
            while not look.step():
                pass
        elif not look.step():
            ofs.looks[node] = look
            ofs.soon(look.go_on)
    if not look.over:
        raise Busy(look)
    return look.empty


class Look:
    """A look at a directory that may be empty, in steps.

    The answer holds for those who have waited for it: the kernel lets nobody create anything in a directory
    that it wants removed or replaced (vfs_rmdir and vfs_rename lock it).
    """

    __slots__ = ("waiters", "over", "empty", "_ofs", "_node", "_shows")

    def __init__(self, ofs: Overlay, node: Dir) -> None:
        # Called with the errno of the failure, or 0.
        self.waiters: list[Callable[[int], None]] = []
        self.over = False
        self.empty = True
        self._ofs = ofs
        self._node = node
        self._shows = _shows(ofs, node)

    def step(self) -> bool:
        """Looks for a short time; whether that was all."""
        until = monotonic() + _STEP
        for shows in self._shows:
            if shows:
                self.empty = False
                break
            if monotonic() > until:
                return False
        self.over = True
        self._shows.close()
        return True

    def go_on(self) -> None:
        """The next step, and after the last one the requests that wait."""
        assert self._ofs.soon is not None
        code = 0
        try:
            if not self.step():
                self._ofs.soon(self.go_on)
                return
        except Exception as exc:
            code = (exc.errno if isinstance(exc, OSError) else None) or EIO
        for waiter in self.waiters:
            waiter(code)
        del self._ofs.looks[self._node]


def _shows(ofs: Overlay, node: Dir) -> Generator[bool, None, None]:
    """For some thousand entries at a time, whether there is anything but whiteouts."""
    whiteouts: set[bytes] = set()
    for real in () if node.dead else node.reals:
        hidden = _hidden(ofs, real)
        for batch in _raw_batches(ofs, real, asked=False):
            for name, ino, kind in batch:
                if name in whiteouts or (kind == DT_DIR and ino in hidden):
                    continue
                if ofs.aufs and name[:4] == aufs.PREFIX:
                    continue
                if kind != DT_CHR and kind != DT_UNKNOWN:
                    yield True
                if not whiteout.is_whiteout(os.stat(name, dir_fd=ofs.fds.fd(real), follow_symlinks=False)):
                    yield True
                whiteouts.add(name)
            yield False
        if ofs.aufs:
            whiteouts |= aufs.hidden_names(real, ofs.fds.fd(real))


def _hidden(ofs: Overlay, real: RealDir) -> Set[int]:
    """The inode numbers of directories that must not show in a directory of a lower layer."""
    layer = real.layer
    return {ino for dev, ino in ofs.hidden if dev == layer.dev} if ofs.hidden and layer.index else _NONE


def _shown(
    ofs: Overlay, node: Dir, real: RealDir, seen: set[bytes] | None, batch: list[Entry], files_too: bool
) -> list[Entry]:
    """What one layer's directory shows of names not yet `seen`; `files_too` may be whiteouts."""
    result: list[Entry] = []
    layer = real.layer
    upper = layer.index == 0
    merged = len(node.reals) > 1
    plain = ofs.samefs
    hidden = _hidden(ofs, real)
    if seen is None and plain and not (hidden or files_too or (upper and (node.impure or merged))):
        kinds = {entry[2] for entry in batch}
        if DT_CHR not in kinds and DT_UNKNOWN not in kinds:
            return batch  # all of it, as it is
    for name, ino, kind in batch:
        if seen is not None:
            if name in seen:
                continue
            seen.add(name)
        if kind == DT_CHR or kind == DT_UNKNOWN or (files_too and kind == DT_REG):
            fd = ofs.fds.fd(real)
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if whiteout.hides(ofs.names, fd, name, st) if files_too else whiteout.is_whiteout(st):
                continue
            kind = st.st_mode >> 12
        if hidden and ino in hidden and kind == DT_DIR:
            continue
        if upper and (node.impure or (merged and kind == DT_DIR)):
            shown = _constant_ino(ofs, node, real, name, ino, kind)
            if shown < 0:
                continue
        else:
            shown = ino if plain else ofs.map_ino(layer, ino)
        result.append((name, shown, kind))
    return result


def _constant_ino(ofs: Overlay, node: Dir, real: RealDir, name: bytes, ino: int, kind: int) -> int:
    """The st_ino of an upper entry that may come from a lower layer; -1: it is a whiteout."""
    try:
        return _looked_up(ofs, node, real, name, ino, kind)
    except OSError:
        # An entry that cannot be looked up is still listed (ovl_cache_update).
        return ofs.map_ino(real.layer, ino)


def _looked_up(ofs: Overlay, node: Dir, real: RealDir, name: bytes, ino: int, kind: int) -> int:
    known = node.children.get(name)
    if known is not None:
        return known.ino
    if kind == DT_DIR:
        found = namei.resolve(ofs, node, name)
        if found is not None:
            child = found[0]
            assert isinstance(child, Dir)
            ofs.fds.drop(child.reals)
            return child.ino
        return ofs.map_ino(real.layer, ino)
    fd = ofs.fds.fd(real)
    st = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if kind == DT_REG and not st.st_size and whiteout.has_attribute(ofs.names, fd, name):
        return -1
    if ofs.meta is not None and kind == DT_REG:
        meta = ofs.meta.lookup(node, name, real, st)
        if meta is not None and meta.ino:
            return meta.ino
    return namei.upper_ino(ofs, fd, name, st, ofs.map_ino(real.layer, ino))


def _still_impure(ofs: Overlay, node: Dir, raw: Iterator[list[Entry]]) -> Iterator[list[Entry]]:
    """The same entries; takes the mark away when no entry shows another number (`ovl_cache_get_impure`).

    Only of a directory that is read in one go: nobody may put something there meanwhile.
    """
    first, second = next(raw, []), next(raw, None)
    (real,) = node.reals
    layer = real.layer
    # Elsewhere the kernel lists the real numbers and looks nothing up (ovl_need_adjust_d_ino).
    lasting = ofs.samefs or ofs.params.xino == "on"
    if second is None and lasting and layer.index == 0 and ofs.writable:
        number = ofs.map_ino
        try:
            if all(_looked_up(ofs, node, real, *entry) in (-1, number(layer, entry[1])) for entry in first):
                drop_impure(ofs, node)
        except OSError:
            pass  # nobody knows what cannot be looked up
    yield first
    if second is not None:
        yield second
        yield from raw


def holds_nothing(ofs: Overlay, real: RealDir) -> bool:
    """Whether the directory of one layer has no entry, not even a whiteout."""
    return not any(_raw_batches(ofs, real, asked=False))


def _raw_batches(ofs: Overlay, real: RealDir, *, asked: bool) -> Iterator[list[Entry]]:
    """What the directory of one layer itself holds, without "." and "..".

    `asked`: by a caller, whose reading sets the access time of the upper directory.
    """
    fd = namei.open_dir(ofs, real, noatime=not asked)
    buffer = _BUFFER
    unpack, find = _HEAD.unpack_from, buffer.find
    try:
        while True:
            length = files.getdents64(fd, buffer)
            if length == 0:
                break
            result: list[Entry] = []
            at = 0
            while at < length:
                ino, _off, size, kind = unpack(buffer, at)
                start = at + 19
                name = buffer[start : find(b"\0", start)]
                at += size
                if name != b"." and name != b"..":
                    result.append((name, ino, kind))
            yield result
    finally:
        os.close(fd)
