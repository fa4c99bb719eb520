"""Lookup: from a directory of the union and a name to a node.

Theory of operation
-------------------
`resolve` asks the real directories of the parent from top to bottom, as
fs/overlayfs/namei.c, `ovl_lookup`, does:

* a non-directory ends the search, and is the result if nothing was found above it;
* a whiteout ends the search;
* directories are collected into a stack; `opaque` ends it, `redirect` changes the
  name, or with an absolute value the whole path, that the layers below are asked for.

Attributes of a directory are read with one listxattr(2) first, because most
directories have none.
"""

from __future__ import annotations

import os
import stat
from errno import EACCES, EINVAL, ENAMETOOLONG, ENOENT, ENOTDIR, EOPNOTSUPP, EPERM

from voile.linux import files
from voile.overlay import aufs, origin, whiteout, xattrs
from voile.overlay.copy_up import set_impure
from voile.overlay.inode import Dir, Node
from voile.overlay.layers import DIR_READ, RealDir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from voile.overlay.super import Overlay

S_IFMT = 0o170000
S_IFDIR = 0o040000
S_IFREG = 0o100000
S_IFCHR = 0o020000

# ENAMETOOLONG: a name of another layer, or of a redirect (ovl_lookup_single).
MISSING = (ENOENT, ENOTDIR, ENAMETOOLONG)


def lookup(ofs: Overlay, parent: Dir, name: bytes) -> tuple[Node, os.stat_result] | None:
    """The node of `name` in `parent` and the status of its real object; None: no such entry.

    Raises:
        OSError: ENAMETOOLONG, or EPERM and EIO as the kernel's ovl_lookup gives them
            for redirects and metacopy files that must not be followed.
    """
    node = parent.children.get(name)
    if node is not None:
        if ofs.index is not None:
            ofs.index.looked_up(node, parent, name)
        return node, ofs.stat(node)
    if ofs.aufs and name[:4] == aufs.PREFIX:
        return None
    if len(name) > ofs.namelen:
        raise OSError(ENAMETOOLONG, "name too long")
    found = resolve(ofs, parent, name)
    if found is None:
        return None
    node, st = found
    if node.parent is parent and node.name == name:
        parent.children[name] = node
    return node, st


def resolve(ofs: Overlay, parent: Dir, name: bytes) -> tuple[Node, os.stat_result] | None:
    """As `lookup`, for a name that has no node yet; the new node is not hooked in."""
    if parent.dead:
        return None
    fds = ofs.fds
    for position, real in enumerate(parent.reals):
        try:
            st = os.stat(
                name, dir_fd=real.fd if real.fd >= 0 else fds.fd(real), follow_symlinks=False
            )
        except OSError as exc:
            if exc.errno in MISSING:
                if ofs.aufs and name in aufs.hidden_names(real, fds.fd(real)):
                    return None
                continue
            raise
        fmt = st.st_mode & S_IFMT
        if fmt == S_IFDIR:
            if ofs.hidden and (st.st_dev, st.st_ino) in ofs.hidden:
                return None
            return Search(ofs, parent, name).directory(position, st)
        if fmt == S_IFCHR and st.st_rdev == 0:
            return None
        if fmt == S_IFREG and not st.st_size and whiteout.has_attribute(ofs.names, real.fd, name):
            return None
        return _file(ofs, parent, name, real, st, fmt)
    return None


def _file(
    ofs: Overlay, parent: Dir, name: bytes, real: RealDir, st: os.stat_result, fmt: int
) -> tuple[Node, os.stat_result]:
    layer, index, meta = real.layer, ofs.index, None
    if ofs.meta is not None:
        meta = ofs.meta.lookup(parent, name, real, st)
    elif st.st_size > st.st_blocks * 512 or (
        real.impure is not False and _may_be_empty(st) and _holds_copies(ofs, parent, real)
    ):
        refuse_metacopy(ofs, real.fd, name, st)
    if layer.index != 0:
        if index is not None:
            node, st = index.lower(parent, name, real, st)
            if ofs.meta is not None:
                ofs.meta.indexed(node, real, name, meta)
        else:
            node = Node(parent, name, real, ofs.map_ino(layer, st.st_ino), fmt)
            if meta is None:
                return node, st
            node.more().meta = meta
        return node, _with_blocks(ofs, node, st)
    # Also with one link: the name that it is known by may be removed already, and the file still be open.
    known = ofs.nodes.by_ino.get(st.st_ino)
    if known is not None:
        ofs.nodes.add_link(known, parent, name)
        if index is not None:
            index.looked_up(known, parent, name)
        return known, _with_blocks(ofs, known, st)
    entry = None if index is None else index.upper(parent, name, real, st)
    if entry is not None:
        node = entry
    else:
        ino = ofs.map_ino(layer, st.st_ino)
        if meta is not None and meta.ino:
            ino = meta.ino
        elif parent.impure or parent.lowers:
            ino = upper_ino(ofs, real.fd, name, st, ino)
        node = Node(parent, name, real, ino, fmt)
        if st.st_nlink > 1:
            ofs.nodes.index(node, st.st_ino)
    if meta is not None:
        node.more().meta = meta
    return node, _with_blocks(ofs, node, st)


def _may_be_empty(st: os.stat_result) -> bool:
    """Whether the blocks of a file with a size may all be of extended attributes."""
    return 0 < st.st_size and st.st_blocks * 512 <= st.st_blksize


def _holds_copies(ofs: Overlay, parent: Dir, real: RealDir) -> bool:
    """Whether a directory of a layer is marked as one with copied-up files; a lower one is asked once."""
    if real.layer.index == 0:
        return parent.impure
    if real.impure is None:
        real.impure = xattrs.get_at(real.fd, b".", ofs.names.impure) is not None
    return real.impure


def _with_blocks(ofs: Overlay, node: Node, st: os.stat_result) -> os.stat_result:
    """What to show of a file: st_blocks of a metacopy file are elsewhere."""
    return st if node.extra is None or node.extra.meta is None else ofs.stat(node)


def refuse_metacopy(ofs: Overlay, dir_fd: int, name: bytes, st: os.stat_result) -> None:
    """EPERM for a file that has only metadata, where the data below must not be looked for."""
    if st.st_mode & S_IFMT == S_IFREG and xattrs.get_at(dir_fd, name, ofs.names.metacopy) is not None:
        raise OSError(EPERM, "metacopy file without metacopy=on")


def upper_ino(ofs: Overlay, dir_fd: int, name: bytes, st: os.stat_result, ino: int) -> int:
    """The st_ino of an upper non-directory: that of its origin, if it has a usable one.

    An origin with other hard links does not count (ovl_getattr): each of its names
    may have been copied up on its own, unless it is in the index.
    """
    known = ofs.origins.get(st.st_ino)
    if known is not None:
        return known
    value = xattrs.get_at(dir_fd, name, ofs.names.origin)
    if not value:
        return ino
    found = origin.decode(ofs, value)
    if found is None or (found[1].st_mode ^ st.st_mode) & S_IFMT:
        return ino
    if found[1].st_nlink != 1 and (ofs.index is None or not ofs.index.has(value, found[1], st)):
        return ino
    return ofs.map_ino(found[0], found[1].st_ino)


class Search:
    """The search for all directories that are merged under one name."""

    __slots__ = (
        "ofs", "parent", "name", "look", "leads_out", "stop", "redirect", "impure", "xwhiteouts", "origin",
    )  # fmt: skip

    def __init__(self, ofs: Overlay, parent: Dir, name: bytes) -> None:
        self.ofs = ofs
        self.parent = parent
        self.name = name
        # What the next layer is asked for: a name, or a path from its root.
        self.look = name
        # Whether a redirect may lead below the last layer too: to a data-only layer.
        self.leads_out = False
        self.stop = False
        self.redirect: bytes | None = None
        self.impure = False
        self.xwhiteouts = False
        self.origin = False

    def directory(self, position: int, st: os.stat_result) -> tuple[Node, os.stat_result]:
        """Collects the stack; the topmost directory is in the parent's `position`."""
        ofs = self.ofs
        reals: Sequence[RealDir] = self.parent.reals
        top = RealDir(reals[position].layer, reals[position], self.name)
        upper = top if top.layer.index == 0 else None
        lowers = [] if upper is not None else [top]
        self.attributes(top, reals[position + 1 :], b"", b"")
        upper_redirect, upper_impure, upper_origin = self.redirect, self.impure, self.origin
        below = reals[position + 1 :]
        self._may_follow()
        if upper_redirect is not None and upper_redirect[:1] == b"/":
            below = self.roots(top)
        first_ino = -1 if upper is not None else st.st_ino
        while below and not self.stop:
            real, below = below[0], below[1:]
            redirect = self.redirect
            found = self._layer(real, below)
            if found is None:
                continue
            lower, lower_ino = found
            if upper is not None and not lowers and not upper_origin and ofs.writable:
                _fix_origin(ofs, upper, lower)
                set_impure(ofs, self.parent)
            self._may_follow()
            if first_ino < 0:
                first_ino = lower_ino
            lowers.append(lower)
            if self.redirect is not redirect and self.redirect is not None and self.redirect[:1] == b"/":
                below = self.roots(lower)
        ino_layer = lowers[0].layer if lowers else top.layer
        ino = ofs.map_ino(ino_layer, first_ino if lowers else st.st_ino)
        node = Dir(self.parent, self.name, upper, tuple(lowers), ino)
        node.xwhiteouts = self.xwhiteouts
        if upper is not None:
            node.redirect, node.impure = upper_redirect, upper_impure
        return node, st

    def _may_follow(self) -> None:
        """EPERM at the first directory with a redirect that must not be followed.

        A redirect leads anywhere in the lower layers, without the permission checks of a path.
        """
        if self.redirect is not None and not self.ofs.follows_redirects:
            raise OSError(EPERM, "refusing to follow a redirect")

    def roots(self, above: RealDir) -> list[RealDir]:
        """The roots of all layers below that of `above`."""
        return [layer.root for layer in self.ofs.lowers if layer.index > above.layer.index]

    def _layer(self, base: RealDir, below: Sequence[RealDir]) -> tuple[RealDir, int] | None:
        """One layer's directory for `look`, and its inode number; None: nothing, or a stop."""
        components = [each for each in self.look.split(b"/") if each]
        return self.descend(base, below, components, len(components))

    def descend(
        self, base: RealDir, below: Sequence[RealDir], components: list[bytes], count: int
    ) -> tuple[RealDir, int] | None:
        """Goes down the first `count` of the components of a path, all of them directories."""
        ofs = self.ofs
        real = base
        ino = 0
        for number, component in enumerate(components[:count]):
            if component in (b".", b".."):
                # As lookup_one() in the kernel: nothing in a redirect leads out of a layer.
                raise OSError(EACCES, "invalid redirect")
            parent_fd = ofs.fds.fd(real)
            try:
                st = os.stat(component, dir_fd=parent_fd, follow_symlinks=False)
            except OSError as exc:
                if exc.errno in MISSING:
                    if ofs.aufs and component in aufs.hidden_names(real, parent_fd):
                        self.stop = True
                    return None
                raise
            if not stat.S_ISDIR(st.st_mode):
                # A whiteout or a file: it hides what is below, and is hidden by what is above.
                self.stop = True
                return None
            if ofs.hidden and (st.st_dev, st.st_ino) in ofs.hidden:
                self.stop = True
                return None
            if number and ofs.fds.full:
                ofs.fds.drop((real,))  # it was opened for this step only
            real = RealDir(real.layer, real, component)
            ino = st.st_ino
            prefix, post = components[:number], components[number + 1 :]
            self.attributes(real, below, b"/".join(prefix), b"/".join(post))
        return real, ino

    def attributes(
        self, real: RealDir, below: Sequence[RealDir], prefix: bytes, post: bytes
    ) -> None:
        """Reads what a directory says about the layers below it.

        `prefix` and `post` are the components before and after this directory in the
        path that is looked up; a redirect in the middle changes only its own component
        (`ovl_check_redirect`).
        """
        ofs = self.ofs
        # With nothing of the parent below only an absolute redirect can lead on (`ovl_lookup_data.last`).
        last = not below and (not ofs.follows_redirects or real.layer.index == len(ofs.lowers))
        last = last and not self.leads_out
        if last and real.layer.index != 0:
            return
        assert real.parent is not None
        place = ofs.fds.fd(real.parent), real.name
        opaque = False
        if ofs.aufs and (
            real.name in aufs.hidden_names(real.parent, place[0])
            or aufs.is_opaque(real, ofs.fds.fd(real))
        ):
            self.stop = opaque = True
        present = xattrs.listing_at(*place)
        if not present:
            return
        names = ofs.names
        if names.opaque in present:
            value = xattrs.get_at(*place, names.opaque)
            if value == b"y":
                self.stop = opaque = True
            elif value == b"x" and not post and real.layer.index != 0:
                self.xwhiteouts = real.layer.xwhiteouts = True
        if names.impure in present:
            self.impure = True
        if names.origin in present:
            self.origin = True
        if names.redirect in present and not opaque and not last:
            value = xattrs.get_at(*place, names.redirect)
            if value is not None:
                check_redirect(value)
                absolute = value[:1] == b"/"
                if absolute:
                    self.stop = False  # a directory on the way here may have been opaque
                elif self.look[:1] == b"/":
                    prefix = b"/" + prefix
                parts = [value] if absolute else [prefix, value]
                self.look = b"/".join(part for part in (*parts, post) if part)
                self.redirect = value


def _fix_origin(ofs: Overlay, upper: RealDir, lower: RealDir) -> None:
    """Stores the origin of a merged directory that has none, as `ovl_fix_origin` does.

    Somebody else made the upper directory: an image layer, or a mkdir below the mount.
    Its st_ino is the lower one's, and only the origin tells others (tools, an upper that
    becomes a lower) so.
    """
    value = origin.encode(lower.layer, ofs.fds.fd(lower), b"", files.AT_EMPTY_PATH)
    try:
        os.setxattr(xattrs.proc_fd(ofs.fds.fd(upper)), ofs.names.origin, value)
    except OSError as exc:
        if exc.errno not in (EOPNOTSUPP, EPERM):
            raise


def check_redirect(value: bytes) -> None:
    """Refuses what `ovl_get_redirect_xattr` calls invalid."""
    absolute = value[:1] == b"/"
    if b"" in value.removeprefix(b"/").split(b"/") or b"\0" in value or (b"/" in value and not absolute):
        raise OSError(EINVAL, "invalid redirect")


def lower_positive(ofs: Overlay, parent: Dir, name: bytes) -> bool:
    """Whether a lower layer of `parent` shows `name` (`ovl_lower_positive`)."""
    for real in parent.lowers:
        fd = ofs.fds.fd(real)
        try:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError as exc:
            if exc.errno in MISSING:
                if ofs.aufs and name in aufs.hidden_names(real, fd):
                    return False
                continue
            raise
        return not whiteout.hides(ofs.names, fd, name, st)
    return False


def open_dir(ofs: Overlay, real: RealDir, *, noatime: bool = False) -> int:
    """A readable descriptor for the listing of `real`; the caller closes it."""
    flags = DIR_READ
    if noatime:
        try:
            return os.open(b".", flags | os.O_NOATIME, dir_fd=ofs.fds.fd(real))
        except PermissionError:
            pass  # somebody else's directory, and we are an ordinary user (ovl_path_open)
    return os.open(b".", flags, dir_fd=ofs.fds.fd(real))
