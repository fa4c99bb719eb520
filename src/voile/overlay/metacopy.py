"""Metacopy files: metadata in one layer, the data of the file in another one below.

Theory of operation
-------------------
With ``metacopy=on`` a change of metadata copies up a sparse file of the right size with all attributes,
marked by the attribute ``metacopy``; the data follows with the first open for writing, into the same
file, and then the mark is removed (fs/overlayfs/copy_up.c, `ovl_copy_up_meta_inode_data`).  A kill
before that leaves the mark, and so the old data.

Such files are found in every layer.  The search for the data (`_Search`) goes down the layers as that for
merged directories does, until it finds a file without the mark; a ``redirect`` changes the name or path that
the layers below are asked for.  If the last file found has an absolute redirect and nothing below it, the
data is in a *data-only layer*; it is looked up there when first needed (`ovl_lookup_data_layers`).

A node of such a file has a `Meta`, until its data is copied up.  Its attributes are those of its real file,
but for st_blocks.

This module is imported only where there may be such files: `Overlay.meta`.
"""

from __future__ import annotations

import os
import stat
from errno import EACCES, EIO, ENODATA, ENOENT, EOPNOTSUPP, EPERM, EXDEV

from voile.linux import files
from voile.overlay import attr, aufs, rename, whiteout, xattrs
from voile.overlay.copy_data import copy_lower_data
from voile.overlay.copy_up import INLINE_BYTES, CopyUp
from voile.overlay.inode import Dir, Node
from voile.overlay.layers import RealDir
from voile.overlay.namei import MISSING, Search, check_redirect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from voile.overlay.inode import Name
    from voile.overlay.super import Overlay

    Found = tuple[RealDir, bytes, os.stat_result]

_OPEN_LOWER = os.O_NOFOLLOW


class Meta:
    """Where the data of a metacopy file is.

    real, name   a file in a lower layer; or the root of a data-only layer, and a path in it
    lazy         the path to be looked up in the data-only layers, while `real` is None
    redirect     the attribute of an upper file
    ino, hard    the st_ino that callers see (0: that of the real file), and whether the topmost lower
                 file has several names
    """

    __slots__ = ("real", "name", "lazy", "redirect", "ino", "hard")

    def __init__(self, real: RealDir | None, name: bytes, ino: int, hard: bool, lazy: bool = False) -> None:
        self.real = real
        self.name = name
        self.lazy = lazy
        self.redirect: bytes | None = None
        self.ino = ino
        self.hard = hard


class Metacopy:
    """All that an overlay does differently for metacopy files."""

    __slots__ = ("ofs",)

    def __init__(self, ofs: Overlay) -> None:
        self.ofs = ofs

    def lookup(self, parent: Dir, name: bytes, real: RealDir, st: os.stat_result) -> Meta | None:
        """Where the data of a regular file is; None: it is no metacopy file.

        Args:
            real: the directory of `parent` that has the file, of status `st`.

        Raises:
            OSError: EIO where there is no data, EPERM where it must not be looked for, EINVAL and
                EACCES for redirects, as ovl_lookup.
        """
        if not stat.S_ISREG(st.st_mode):
            return None
        return _Search(self.ofs, parent, name).data(real, st)

    def indexed(self, node: Node, real: RealDir, name: bytes, meta: Meta | None) -> None:
        """Told which node a lower file has with an index, and what `lookup` has said of it.

        If the file has been copied up under another name, the entry in the index decides.
        """
        extra = node.extra
        if (extra is not None and extra.meta is not None) or node.id:
            return
        if not node.is_upper:
            if meta is not None:
                node.more().meta = meta
        elif node.fmt == stat.S_IFREG and self.ofs.metacopy:
            dir_fd = self.ofs.fds.fd(node.real)
            if present(self.ofs, dir_fd, node.place):
                meta = meta or Meta(real, name, 0, True)
                meta.hard = True
                meta.redirect = xattrs.get_at(dir_fd, node.place, self.ofs.names.redirect)
                node.more().meta = meta

    def stat(self, node: Node, meta: Meta) -> os.stat_result:
        """The status of a metacopy node's real file, with the blocks of its data."""
        dir_fd, name, at_flags = attr.place(self.ofs, node)
        st = os.stat(name, dir_fd=dir_fd if dir_fd >= 0 else None, follow_symlinks=not at_flags)
        return self._shown(meta, st)

    def _shown(self, meta: Meta, st: os.stat_result) -> os.stat_result:
        blocks = self.blocks(meta, st.st_size, st.st_blksize)
        fields = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_blksize", "st_rdev")
        return os.stat_result(st, {name: getattr(st, name) for name in fields} | {"st_blocks": blocks})

    def blocks(self, meta: Meta, size: int, blksize: int) -> int:
        """st_blocks of the data; guessed while it has not been looked up, as ovl_getattr does."""
        if meta.real is None:
            return (size + blksize - 1) // blksize * blksize >> 9
        if not meta.lazy:
            dir_fd = self.ofs.fds.fd(meta.real)
            return os.stat(meta.name, dir_fd=dir_fd, follow_symlinks=False).st_blocks
        fd = self.open(meta, os.O_PATH)
        try:
            return os.fstat(fd).st_blocks
        finally:
            os.close(fd)

    def verify(self, meta: Meta) -> None:
        """Looks the data up in the data-only layers, if that is still to be done (`ovl_verify_lowerdata`).

        Raises:
            OSError: of the last layer.
        """
        if meta.real is not None:
            return
        failure = OSError(ENOENT, "no data")
        for layer in self.ofs.data_layers:
            try:
                fd = files.openat2(layer.root.fd, meta.name, os.O_PATH, resolve=files.RESOLVE_IN_LAYER)
            except OSError as exc:
                failure = exc
                continue
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    meta.real = layer.root
                    return
            finally:
                os.close(fd)
            failure = OSError(ENOENT, "no regular file")
        raise failure

    def open(self, meta: Meta, flags: int) -> int:
        """Opens the data; the caller closes it."""
        self.verify(meta)
        assert meta.real is not None
        dir_fd = self.ofs.fds.fd(meta.real)
        if meta.lazy:
            return files.openat2(dir_fd, meta.name, flags, resolve=files.RESOLVE_IN_LAYER)
        return os.open(meta.name, flags | _OPEN_LOWER | os.O_CLOEXEC, dir_fd=dir_fd)

    def accessed(self, node: Node) -> None:
        """Lets the upper file know that it has been read: its own mount decides (`ovl_file_accessed`)."""
        if not self.ofs.writable:
            return
        dir_fd, name, at_flags = attr.place(self.ofs, node)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_NOFOLLOW if at_flags else 0)
        try:
            fd = os.open(name, flags, dir_fd=dir_fd if dir_fd >= 0 else None)
        except OSError:
            return  # an ordinary user, who may not read it
        try:
            os.pread(fd, 1, 0)
        finally:
            os.close(fd)

    def data_job(self, node: Node, data: bool) -> CopyUp:
        """The job that brings up the data of an upper metacopy file; see `CopyUp`."""
        return DataUp(self.ofs, node, data)

    def copied_up(self, node: Node, metacopy: bool, st: os.stat_result) -> None:
        """Told of a copy-up, before the node is an upper one; `st` is of the lower object."""
        extra = node.extra
        if not metacopy:
            if extra is not None:
                extra.meta = None
            return
        hard = st.st_nlink > 1
        if extra is not None and extra.meta is not None:
            extra.meta.hard = hard
        else:
            node.more().meta = Meta(node.real, node.place, 0 if hard else node.ino, hard)

    def set_redirect(self, node: Node, at: Name | None, same_dir: bool) -> None:
        """Stores where the lower part of a metacopy file stays, before it gets another name than `at`.

        `ovl_set_redirect` for files: upper hard links may be in several directories, and several
        lower ones may be copied up to the same file.

        Raises:
            OSError: EXDEV where that cannot be stored.
        """
        meta = None if node.extra is None else node.extra.meta
        if meta is None:
            return
        relative = same_dir and not meta.hard
        if meta.redirect is not None and (relative or meta.redirect[:1] == b"/"):
            return
        if at is None:
            raise OSError(EXDEV, "its path is not known any more")
        value = at[1] if relative else rename.absolute(at[0], meta.redirect or at[1])
        path, follow = attr.proc_path(self.ofs, node)
        try:
            os.setxattr(path, self.ofs.names.redirect, value, follow_symlinks=follow)
        except OSError:
            raise OSError(EXDEV, "cannot set a redirect") from None
        meta.redirect = value


def present(ofs: Overlay, dir_fd: int, name: bytes) -> bool:
    """Whether a regular file has the mark (`ovl_check_metacopy_xattr`).

    Raises:
        OSError: EIO for a value that is none.
    """
    try:
        value = xattrs.get_at(dir_fd, name, ofs.names.metacopy)
    except OSError as exc:
        if exc.errno == EACCES and ofs.params.userxattr:
            return False  # user.* of a file that must not be read
        raise
    if value is None:
        return False
    if 0 < len(value) < xattrs.METACOPY_MIN:
        raise OSError(EIO, "invalid metacopy attribute")
    return True


class _Search(Search):
    """The search for the data of one file: `ovl_lookup`, where it finds no directory."""

    __slots__ = ("metacopy", "absolute")

    def __init__(self, ofs: Overlay, parent: Dir, name: bytes) -> None:
        super().__init__(ofs, parent, name)
        # The last file found is a metacopy; the last redirect looked for was there, and absolute.
        self.metacopy = False
        self.absolute = False
        self.leads_out = bool(ofs.data_layers)

    def data(self, real: RealDir, st: os.stat_result) -> Meta | None:
        """See `Metacopy.lookup`."""
        ofs = self.ofs
        upper = real.layer.index == 0
        if not self._read(real, self.name, b""):
            return None
        upper_redirect = self.redirect if upper else None
        chain: list[Found] = [] if upper else [(real, self.name, st)]
        reals: Sequence[RealDir] = self.parent.reals
        below = self._next(real, reals[reals.index(real) + 1 :])
        while below and not self.stop:
            if not ofs.metacopy:
                raise OSError(EPERM, "refusing to follow a metacopy file")
            base, below = below[0], below[1:]
            found = self._file(base, below)
            if found is None:
                continue
            # Of several metacopy files only the topmost counts, for st_ino.
            if not self.metacopy or not chain:
                chain.append(found)
            below = self._next(base, below)
        if self.metacopy and chain and ofs.data_layers and self.absolute:
            meta = Meta(None, self.look.lstrip(b"/"), 0, False, lazy=True)
        elif not ofs.metacopy:
            raise OSError(EPERM, "refusing to follow a metacopy file")
        elif self.metacopy or not chain:
            raise OSError(EIO, "metacopy file without data")
        else:
            meta = Meta(*chain[-1][:2], 0, False)
        top, _name, first = chain[0]
        meta.hard = first.st_nlink > 1
        if not upper or not meta.hard:
            meta.ino = ofs.map_ino(top.layer, first.st_ino)
        meta.redirect = upper_redirect
        return meta

    def _next(self, above: RealDir, below: Sequence[RealDir]) -> Sequence[RealDir]:
        return self.roots(above) if self.look[:1] == b"/" else below

    def _file(self, base: RealDir, below: Sequence[RealDir]) -> Found | None:
        """One layer's regular file for `look`; None: nothing, or a stop."""
        components = [each for each in self.look.split(b"/") if each]
        way = self.descend(base, below, components, len(components) - 1)
        if way is None:
            return None
        real, name = way[0], components[-1]
        if name in (b".", b".."):
            raise OSError(EACCES, "invalid redirect")
        dir_fd = self.ofs.fds.fd(real)
        try:
            st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except OSError as exc:
            if exc.errno in MISSING:
                if self.ofs.aufs and name in aufs.hidden_names(real, dir_fd):
                    self.stop = True
                return None
            raise
        if not stat.S_ISREG(st.st_mode) or whiteout.hides(self.ofs.names, dir_fd, name, st):
            self.stop = True
            return None
        self._read(real, name, b"/".join(components[:-1]))
        return real, name, st

    def attributes(self, real: RealDir, below: Sequence[RealDir], prefix: bytes, post: bytes) -> None:
        """As for directories; remembers also whether a redirect was absolute."""
        before, look, self.stop = self.stop, self.look, False
        super().attributes(real, below, prefix, post)
        if not self.stop:
            self.absolute = self.look is not look and self.redirect is not None and self.redirect[:1] == b"/"
            self.stop = before and not self.absolute

    def _read(self, real: RealDir, name: bytes, prefix: bytes) -> bool:
        """What a file says: whether its data is below, and where."""
        ofs = self.ofs
        dir_fd = ofs.fds.fd(real)
        self.metacopy = present(ofs, dir_fd, name)
        self.stop = not self.metacopy
        if self.stop or (real.layer.index == len(ofs.lowers) and not ofs.data_layers):
            return self.metacopy
        self.absolute = False
        value = xattrs.get_at(dir_fd, name, ofs.names.redirect)
        if value is None:
            return True
        check_redirect(value)
        self.absolute = value[:1] == b"/"
        if self.absolute:
            self.look = value
        else:
            if self.look[:1] == b"/":
                prefix = b"/" + prefix
            self.look = b"/".join(part for part in (prefix, value) if part)
        self.redirect = value
        return True


class DataUp(CopyUp):
    """The data of an upper metacopy file on its way up (`ovl_copy_up_meta_inode_data`)."""

    __slots__ = ("capability",)

    def __init__(self, ofs: Overlay, node: Node, data: bool) -> None:
        super().__init__(ofs, node, data)
        self.capability: bytes | None = None

    @property
    def slow(self) -> bool:
        return (self.data and self.st.st_size > INLINE_BYTES) or not self.ofs.volatile

    def begin(self) -> None:
        ofs, node, meta = self.ofs, self.node, self.below
        assert meta is not None and ofs.meta is not None
        dir_fd, name, at_flags = attr.place(ofs, node)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_NOFOLLOW if at_flags else 0)
        self.dst = os.open(name, flags, dir_fd=dir_fd if dir_fd >= 0 else None)
        ofs.sync.probe.watch(self.dst)
        self.st = os.fstat(self.dst)
        if self.data:
            self.lower = ofs.meta.open(meta, os.O_RDONLY)
            try:
                self.capability = os.getxattr(self.dst, xattrs.CAPABILITY)
            except OSError as exc:
                if exc.errno not in (ENODATA, EOPNOTSUPP):
                    raise

    def run(self) -> None:
        if self.data:
            copy_lower_data(self.lower, self.dst, self.st.st_size)
            if not self.ofs.volatile:
                os.fsync(self.dst)
        elif self.st.st_size:
            # Before the mark goes: sparse zeros must never be taken for the data.
            os.ftruncate(self.dst, 0)
        if self.capability is not None:
            # Writing has taken it away.
            os.setxattr(self.dst, xattrs.CAPABILITY, self.capability)
        os.removexattr(self.dst, self.ofs.names.metacopy)

    def finish(self) -> None:
        assert self.node.extra is not None
        self.node.extra.meta = None
        self._close()
        self.ofs.changed(self.node)
