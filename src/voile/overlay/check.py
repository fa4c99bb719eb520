"""An fsck for overlay layers: is what a mount has left on disk what the format allows?

Theory of operation
-------------------
The upper directory is walked from the top, one component at a time and through no symbolic link
or mount (`RealDir`, in a mount of our own).  With the lower layers each directory of it is looked
up in them as a mount would (`Union`), which tells where a redirect leads.  The work directory
follows: the index before the upper, because a file without its entry has no use for a link count.

What is mended is what has one meaning: a mount shows the same tree before and after, or an error
before.  Everything else is told and left alone, as is all file data.
"""

from __future__ import annotations

import os
import stat
import time
from errno import EBUSY, EINVAL, ELOOP, ENOENT, ENOTDIR, ESTALE
from functools import partial

from voile.linux import mount, trees
from voile.overlay import inuse, whiteout, xattrs
from voile.overlay.check_handle import FileSystem, Foreign, Handle, Invalid
from voile.overlay.check_index import Index
from voile.overlay.check_report import Problem, Report
from voile.overlay.check_union import Union, invalid_redirect, listing
from voile.overlay.layers import FdCache, Layer, RealDir
from voile.overlay.layout import MountError, Place, private_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from voile.overlay.check_union import Key

__all__ = ["Problem", "Report", "check"]

_NAMES = b"opaque redirect origin impure nlink metacopy whiteout protattr upper uuid".split()
_VOLATILE = (
    b"the last mount was volatile and ended without a sync: if the machine has crashed since, files may be "
    b"incomplete, and only empty directories are safe; if it has not, all is there, and the directory may be "
    b"removed. No mount takes these directories until then"
)


def check(
    upper: bytes, work: bytes | None, lowers: Sequence[bytes], userxattr: bool, fix: bool,
    datas: Sequence[bytes] = (),
) -> Report:  # fmt: skip
    """Checks an upper directory (or any layer), and mends with `fix`.

    Args:
        work: its work directory, if that is to be checked too.
        lowers: the layers below it, all of them, top to bottom; without them redirects and
            link counts can be checked for their form only.
        userxattr: as at the mount.
        datas: the data-only layers.

    Raises:
        OSError: a directory cannot be opened (`layout.MountError`), or with `fix` is in use (`inuse.InUse`).
    """
    checker = _Check(userxattr, fix)
    try:
        checker.open(upper, work, lowers, datas)
        checker.run()
    finally:
        checker.close()
    return checker.report


class _Check:
    __slots__ = (
        "report", "names", "others", "fds", "union", "root", "path", "work_fd", "work_path", "filesystems",
        "index", "_open", "_layers", "_linked", "_origins",
    )  # fmt: skip

    def __init__(self, userxattr: bool, fix: bool) -> None:
        self.report = Report(fix)
        self.names = xattrs.Names(userxattr)
        other = xattrs.Names(not userxattr).prefix
        # The other namespace's attributes, and what each would be called here.
        self.others = {other + name: self.names.prefix + name for name in _NAMES}
        self.fds = FdCache(64)
        self.work_fd = -1
        self.work_path = b""
        self.filesystems: list[FileSystem] = []
        self.index: Index | None = None
        self._open: list[int] = []
        self._layers: list[Layer] = []
        # Files with several names, of which one is enough to be told of.
        self._linked: set[Key] = set()
        # What directories were copied up from, for the index.
        self._origins: set[bytes] = set()

    def open(
        self, upper: bytes, work: bytes | None, lowers: Sequence[bytes], datas: Sequence[bytes]
    ) -> None:
        """Opens all directories; with `fix` none of a live mount."""
        writable = self.report.fix
        self.path = upper
        places = []
        try:
            places.append(Place("upperdir", upper))
            places += [Place("lowerdir", path) for path in (*lowers, *datas)]
            if work is not None:
                places.append(Place("workdir", work))
                if places[-1].key[0] != places[0].key[0]:
                    raise MountError(EINVAL, "workdir must be on the same file system as upperdir", work)
            if writable:
                self._claim([place for place in places if place.role != "lowerdir"])
            for place in places:
                fd = _private(place) if writable and place.role != "lowerdir" else private_tree(place)
                if place.role == "workdir":
                    self.work_fd, self.work_path = fd, place.path
                    self._open.append(fd)
                else:
                    self._layers.append(self._layer(place, fd))
        finally:
            for place in places:
                place.close()
        self.root, *below = [layer.root for layer in self._layers]
        self.union = Union(self.names, self.fds, below[: len(lowers)], below[len(lowers) :])

    def _claim(self, places: list[Place]) -> None:
        deadline = time.monotonic() + inuse.WAIT_S
        work_fd = places[-1].fd if len(places) > 1 else -1
        for place in places:
            fd = _readable(place.fd, self._open)
            # A detached mount can still write: a mount may take over from it, a check may not.
            if not inuse.take(fd, work_fd, place.role, place.path, deadline):
                raise inuse.InUse(EBUSY, f"{place.role} is in use by a detached mount", place.path)

    def _layer(self, place: Place, fd: int) -> Layer:
        layer = Layer(len(self._layers), place.path, fd, 0, fd)
        if all(layer.dev != each.dev for each in self.filesystems):
            self.filesystems.append(FileSystem(fd))
        return layer

    def close(self) -> None:
        """Closes everything."""
        self.fds.close()
        for layer in self._layers:
            layer.close()
        for each in self.filesystems:
            each.close()
        for fd in self._open:
            os.close(fd)

    def run(self) -> None:
        """The whole check."""
        if self.work_fd >= 0:
            self._index()
        self._root()
        self._walk()
        if self.index is not None:
            self.index.check_directories(self._origins)
            try:
                self.index.check_links(self._count if self.union.lowers else None)
            except OSError as exc:
                self.report.error(exc, self.index.path)
        if self.work_fd >= 0:
            self._work()

    def _index(self) -> None:
        fd = self._work_directory(self.work_fd, b"index")
        if fd is not None:
            path = os.path.join(self.work_path, b"index")
            self.index = Index(fd, path, self.root.fd, self.names, self.filesystems, self.report)
            self.index.read()

    def _count(self, wanted: set[Key]) -> tuple[dict[Key, int], dict[Key, int]]:
        lowers = self.union.lowers
        return self.union.links([self.root, *lowers], wanted), self.union.links(lowers, wanted)

    def _root(self) -> None:
        """The upper root is merged with the lower roots whatever it says; the index ties it to the first."""
        path = xattrs.proc_path(self.root.fd, b".")
        present = xattrs.listing(path)
        self._foreign_names(self.path, path, present)
        lowers = self.union.lowers
        if self.names.origin not in present or self.index is None or not lowers:
            return
        try:
            if not Handle(xattrs.get(path, self.names.origin) or b"").names(lowers[0].fd):
                what = b"the index was made with another first lower directory (index=on refuses the mount)"
                self.report.problem(self.path, "origin", what)
        except ValueError:
            pass  # told below

    def _walk(self) -> None:
        """All of the upper directory, depth first."""
        # A directory with what is merged below it, its path, and whether nothing below can show in it.
        pending: list[tuple[Sequence[RealDir], bytes, bool]] = [
            ([self.root, *self.union.lowers], self.path, False)
        ]
        while pending:
            reals, path, pure = pending.pop()
            try:
                names = listing(self.fds, reals[0])
            except OSError as exc:
                self.report.error(exc, path)
                continue
            below = []
            for name in names:
                self.report.checked += 1
                at = os.path.join(path, name)
                try:
                    found = self._entry(reals, name, at, pure)
                except OSError as exc:
                    self.report.error(exc, at)
                    continue
                if found is not None:
                    below.append((found[0], at, found[1]))
            pending += reversed(below)
            self.fds.trim()

    def _entry(
        self, reals: Sequence[RealDir], name: bytes, at: bytes, pure: bool
    ) -> tuple[Sequence[RealDir], bool] | None:
        """One object; for a directory what is merged there, and whether nothing below shows."""
        fd = self.fds.fd(reals[0])
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if whiteout.is_whiteout(st):
            if pure:
                what = b"in an opaque directory, where it has nothing to hide"
                self.report.problem(at, "whiteout", what, lambda: os.unlink(name, dir_fd=fd))
            return None
        path = xattrs.proc_path(fd, name)
        present = xattrs.listing(path)
        if st.st_nlink == 1 or stat.S_ISDIR(st.st_mode) or (st.st_dev, st.st_ino) not in self._linked:
            self._linked |= {(st.st_dev, st.st_ino)} if st.st_nlink > 1 else set()
            self._foreign_names(at, path, present)
            if self.names.origin in present:
                self._origin(at, path, st)
            if self.names.nlink in present and not stat.S_ISDIR(st.st_mode):
                self._nlink(at, path, st)
        if stat.S_ISDIR(st.st_mode):
            return self._directory(reals, name, at, path, present, pure)
        if self.names.metacopy in present and stat.S_ISREG(st.st_mode):
            self._metacopy(reals, name, at, path)
        return None

    def _directory(
        self, reals: Sequence[RealDir], name: bytes, at: bytes, path: bytes, present: list[bytes], pure: bool
    ) -> tuple[Sequence[RealDir], bool]:
        top = [RealDir(reals[0].layer, reals[0], name)]
        names = self.names
        if names.opaque in present:
            value = xattrs.get(path, names.opaque)
            if value == b"y":
                return top, True
            if value is not None and value != b"x":
                self.report.problem(at, "opaque", b"'%s' means nothing" % value, _remover(path, names.opaque))
        redirect = xattrs.get(path, names.redirect) if names.redirect in present else None
        if redirect is None:
            return (top, True) if pure else (self.union.merged(reals, name), False)
        what = b"redirect to '%s': " % redirect
        if invalid_redirect(redirect):
            what += b"neither a name nor a path"
        elif pure and redirect[:1] != b"/":
            what += b"the directory it is in is opaque"
        elif not self.union.lowers:
            return top, False
        else:
            stack = self.union.merged(reals, name)
            if len(stack) > 1:
                return stack, False
            what += b"no lower layer has a directory there"
        # Opaque says what it means by now: nothing below shows. It comes first, and makes the other void.
        mended = self.report.problem(
            at,
            "redirect",
            what,
            partial(os.setxattr, path, names.opaque, b"y", follow_symlinks=False),
            _remover(path, names.redirect),
        )
        return top, mended

    def _metacopy(self, reals: Sequence[RealDir], name: bytes, at: bytes, path: bytes) -> None:
        """A file whose data lies below, at its own name or where its redirect says."""
        redirect = xattrs.get(path, self.names.redirect)
        if redirect is not None and invalid_redirect(redirect):
            what = b"redirect to '%s': neither a name nor a path" % redirect
            self.report.problem(at, "redirect", what)
        elif self.union.lowers and not self.union.has_data(reals, redirect or name):
            what = b"the data of the file should be at '%s', and no lower layer has it" % (redirect or name)
            self.report.problem(at, "redirect", what)
        if 0 < len(xattrs.get(path, self.names.metacopy) or b"") < xattrs.METACOPY_MIN:
            self.report.problem(at, "metacopy", b"a value that is none (a mount says EIO)")

    def _foreign_names(self, at: bytes, path: bytes, present: list[bytes]) -> None:
        """Attributes of the other namespace: rests of a mount with, or without, userxattr.

        They may as well be somebody's own: to a mount they are attributes like any other.
        """
        for name in present:
            right = self.others.get(name)
            if right is None:
                continue
            value = xattrs.get(path, name)
            if right in present and xattrs.get(path, right) == value:
                what = name + b" repeats " + right
                self.report.problem(at, "namespace", what, _remover(path, name))
            else:
                self.report.problem(at, "namespace", name + b" has no meaning here")

    def _origin(self, at: bytes, path: bytes, st: os.stat_result) -> None:
        value = xattrs.get(path, self.names.origin)
        if not value:
            return  # copied up from a file system without handles
        if self.index is not None and stat.S_ISDIR(st.st_mode):
            self._origins.add(value)
        try:
            handle = Handle(value)
            if self.union.lowers and not handle.belongs(self._lower_filesystems()):
                raise Foreign("of none of the lower file systems")
            origin = handle.stat(self.filesystems)
        except (Invalid, Foreign) as exc:
            self.report.problem(at, "origin", str(exc).encode())
            return
        except OSError as exc:
            if exc.errno != ESTALE:
                raise
            return  # the lower layer has changed since, or cannot follow its own handles (FUSE)
        if origin is not None and stat.S_IFMT(origin.st_mode) != stat.S_IFMT(st.st_mode):
            self.report.problem(at, "origin", b"the lower object is of another type (the kernel says EIO)")

    def _lower_filesystems(self) -> list[FileSystem]:
        devices = {layer.dev for layer in self._layers[1:]}
        return [each for each in self.filesystems if each.dev in devices]

    def _nlink(self, at: bytes, path: bytes, st: os.stat_result) -> None:
        """A link count is for files in the index; of those check_index tells."""
        if self.work_fd < 0 or (self.index is not None and (st.st_dev, st.st_ino) in self.index.entries):
            return
        # Without an index it may be the wrong work directory that was given.
        sure = self.index is not None and self.index.ours
        steps = (_remover(path, self.names.nlink),) if sure else ()
        self.report.problem(at, "nlink", b"for a file that is not in the index", *steps)

    def _work(self) -> None:
        """What lies in the work directory; each mount clears it, but for the marker that refuses it."""
        for name in sorted(os.fsencode(each) for each in os.listdir(_readable(self.work_fd, self._open))):
            if name[:1] == b"#":
                self._leftover(self.work_fd, self.work_path, name)
        fd = self._work_directory(self.work_fd, b"work")
        if fd is None:
            return
        path = os.path.join(self.work_path, b"work")
        for name in sorted(os.fsencode(each) for each in os.listdir(fd)):
            self.report.checked += 1
            if name == b"incompat":
                self._incompat(fd, os.path.join(path, name))
            else:
                self._leftover(fd, path, name)

    def _leftover(self, fd: int, path: bytes, name: bytes) -> None:
        # A whiteout is kept to make more of it, and stays when the mount ends.
        if not whiteout.is_whiteout(os.stat(name, dir_fd=fd, follow_symlinks=False)):
            what = b"of an interrupted change"
            self.report.problem(os.path.join(path, name), "leftover", what, lambda: trees.remove(fd, name))

    def _incompat(self, work_fd: int, path: bytes) -> None:
        fd = self._work_directory(work_fd, b"incompat")
        for name in [] if fd is None else sorted(os.fsencode(each) for each in os.listdir(fd)):
            if name == b"volatile":
                self.report.problem(os.path.join(path, name), "volatile", _VOLATILE)
            else:
                self.report.problem(os.path.join(path, name), "incompat", b"a feature that is not known here")

    def _work_directory(self, dir_fd: int, name: bytes) -> int | None:
        """A directory of the work directory, for reading; None where there is none, or it cannot be read."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        except OSError as exc:
            if exc.errno not in (ENOENT, ENOTDIR, ELOOP):
                self.report.error(exc, os.path.join(self.work_path, name))
            return None
        self._open.append(fd)
        return fd


def _remover(path: bytes, name: bytes) -> Callable[[], None]:
    return partial(os.removexattr, path, name, follow_symlinks=False)


def _readable(fd: int, opened: list[int]) -> int:
    opened.append(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd))
    return opened[-1]


def _private(place: Place) -> int:
    """A descriptor of a directory in a writable mount of our own, with nothing mounted below."""
    try:
        flags = mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC | mount.AT_EMPTY_PATH
        return mount.open_tree(place.fd, b"", flags)
    except OSError:
        return os.dup(place.fd)
