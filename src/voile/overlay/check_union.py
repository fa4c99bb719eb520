"""The union of the layers as a check sees it: read only, and without a mount.

This follows the same rules of the kernel as namei, but shares nothing with it but the way layers
are opened (`RealDir`: one component at a time, no symbolic link): a checker that calls what it
checks finds only what it knows already.  What cannot be looked up ends the search, where a mount
answers with an error.
"""

from __future__ import annotations

import os
import stat
from errno import ENAMETOOLONG, ENOENT, ENOTDIR

from voile.linux import files
from voile.overlay import whiteout, xattrs
from voile.overlay.layers import FdCache, RealDir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MISSING = (ENOENT, ENOTDIR, ENAMETOOLONG)
_LIST_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Key = tuple[int, int]


def invalid_redirect(value: bytes) -> bool:
    """What `ovl_get_redirect_xattr` refuses, and what no lookup of a component accepts."""
    parts = value.removeprefix(b"/").split(b"/")
    absolute = value[:1] == b"/"
    if b"\0" in value or (len(parts) > 1 and not absolute):
        return True
    return any(each in (b"", b".", b"..") for each in parts)


def listing(fds: FdCache, real: RealDir) -> list[bytes]:
    """The names in a directory of a layer, sorted.

    Raises:
        OSError: as open(2).
    """
    fd = os.open(b".", _LIST_FLAGS, dir_fd=fds.fd(real))
    try:
        return sorted(os.fsencode(name) for name in os.listdir(fd))
    finally:
        os.close(fd)


class _Look:
    """What the next layer is asked for, as `struct ovl_lookup_data`."""

    __slots__ = ("path", "stop", "redirect")

    def __init__(self, path: bytes) -> None:
        self.path = path
        self.stop = False
        self.redirect: bytes | None = None


class Union:
    """Layers put together.

    Args:
        names: the spelling of the private attributes.
        fds: where descriptors are kept.
        lowers: the roots of the lower layers, top to bottom; their layers' `index` counts from 1.
        datas: those of the data-only layers.
    """

    __slots__ = ("names", "fds", "lowers", "datas")

    def __init__(
        self, names: xattrs.Names, fds: FdCache, lowers: Sequence[RealDir], datas: Sequence[RealDir] = ()
    ) -> None:
        self.names = names
        self.fds = fds
        self.lowers = list(lowers)
        self.datas = list(datas)

    def merged(self, reals: Sequence[RealDir], name: bytes) -> list[RealDir]:
        """The directories merged under `name`, topmost first; that one lies in the first of `reals`.

        Raises:
            OSError: a directory cannot be read.
        """
        look = _Look(name)
        top = RealDir(reals[0].layer, reals[0], name)
        self._attributes(top, look, b"", b"")
        stack = [top]
        below = self._below(top, look, None, reals[1:])
        while below and not look.stop:
            real, below = below[0], below[1:]
            before = look.redirect
            found = self._descend(real, look)
            if found is not None:
                stack.append(found)
                below = self._below(found, look, before, below)
        return stack

    def _below(
        self, real: RealDir, look: _Look, before: bytes | None, rest: Sequence[RealDir]
    ) -> Sequence[RealDir]:
        """Where the search goes on: an absolute redirect begins at the roots of all layers below."""
        if look.redirect is before or look.redirect is None or look.redirect[:1] != b"/":
            return rest
        return [root for root in self.lowers if root.layer.index > real.layer.index]

    def _descend(self, real: RealDir, look: _Look, leave: int = 0) -> RealDir | None:
        """The directory `look.path`, but for its last `leave` components below `real`, or None."""
        parts = [each for each in look.path.split(b"/") if each]
        for number, part in enumerate(parts[: len(parts) - leave]):
            try:
                st = os.stat(part, dir_fd=self.fds.fd(real), follow_symlinks=False)
            except OSError as exc:
                if exc.errno in _MISSING:
                    return None
                raise
            if not stat.S_ISDIR(st.st_mode):
                look.stop = True  # a whiteout or a file: it hides what is below
                return None
            if number and self.fds.full:
                self.fds.drop((real,))
            real = RealDir(real.layer, real, part)
            self._attributes(real, look, b"/".join(parts[:number]), b"/".join(parts[number + 1 :]))
        return real

    def _attributes(self, real: RealDir, look: _Look, prefix: bytes, post: bytes) -> None:
        """What a directory says about the layers below (`ovl_check_redirect` for prefix and post)."""
        assert real.parent is not None
        path = xattrs.proc_path(self.fds.fd(real.parent), real.name)
        present = xattrs.listing(path)
        if self.names.opaque in present:
            look.stop = look.stop or xattrs.get(path, self.names.opaque) == b"y"
        if self.names.redirect not in present or look.stop:
            return
        redirect = xattrs.get(path, self.names.redirect) or b""
        if invalid_redirect(redirect):
            look.stop = True
            return
        if redirect[:1] != b"/" and look.path[:1] == b"/":
            prefix = b"/" + prefix
        parts = [redirect] if redirect[:1] == b"/" else [prefix, redirect]
        look.path = b"/".join(part for part in (*parts, post) if part)
        look.redirect = redirect

    def has_data(self, reals: Sequence[RealDir], path: bytes) -> bool:
        """Whether the data of a metacopy file in the first of `reals` is where it should be.

        Args:
            path: its redirect, or its name; in further layers on the way others may follow.
        """
        look = _Look(path)
        roots = self._below_file(reals[0], path, reals[1:])
        while roots and not look.stop:
            root, roots = roots[0], roots[1:]
            before, name = look.redirect, look.path.rpartition(b"/")[2]
            directory = self._descend(root, look, leave=1)
            roots = self._below(root, look, before, roots)
            if directory is None:
                continue
            at = xattrs.proc_path(self.fds.fd(directory), name)
            try:
                if not stat.S_ISREG(os.lstat(at).st_mode):
                    return False
            except OSError as exc:
                if exc.errno in _MISSING:
                    continue
                raise
            present = xattrs.listing(at)
            if self.names.metacopy not in present:
                return True
            redirect = xattrs.get(at, self.names.redirect) if self.names.redirect in present else None
            if redirect is not None:
                if invalid_redirect(redirect):
                    return False
                place, slash, _name = look.path.rpartition(b"/")
                look.path = redirect if redirect[:1] == b"/" else place + slash + redirect
                roots = self._below_file(root, look.path, roots)
        path = look.path
        return path[:1] == b"/" and any(self._is_data(root, path.lstrip(b"/")) for root in self.datas)

    def _below_file(self, real: RealDir, path: bytes, rest: Sequence[RealDir]) -> Sequence[RealDir]:
        if path[:1] != b"/":
            return rest
        return [root for root in self.lowers if root.layer.index > real.layer.index]

    @staticmethod
    def _is_data(root: RealDir, path: bytes) -> bool:
        """`ovl_lookup_data_layer`."""
        try:
            fd = files.openat2(root.fd, path, os.O_PATH, resolve=files.RESOLVE_IN_LAYER)
        except OSError:
            return False
        try:
            return stat.S_ISREG(os.fstat(fd).st_mode)
        finally:
            os.close(fd)

    def links(self, roots: Sequence[RealDir], wanted: set[Key]) -> dict[Key, int]:
        """How many names each of the objects `wanted` has in the union of `roots`.

        Raises:
            OSError: a directory cannot be read.
        """
        found = dict.fromkeys(wanted, 0)
        for st in self._files(roots):
            key = (st.st_dev, st.st_ino)
            if key in found:
                found[key] += 1
        return found

    def _files(self, roots: Sequence[RealDir]) -> Iterator[os.stat_result]:
        pending = [list(roots)]
        while pending:
            reals = pending.pop()
            seen: set[bytes] = set()
            for position, real in enumerate(reals):
                for name in listing(self.fds, real):
                    if name in seen:
                        continue
                    seen.add(name)
                    st = os.stat(name, dir_fd=self.fds.fd(real), follow_symlinks=False)
                    if stat.S_ISDIR(st.st_mode):
                        pending.append(self.merged(reals[position:], name))
                    elif not whiteout.hides(self.names, self.fds.fd(real), name, st):
                        yield st
            self.fds.trim()
