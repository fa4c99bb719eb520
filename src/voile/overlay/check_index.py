"""WORKDIR/index: which upper file stands for which lower one, by its file handle (index=on, nfs_export=on).

Theory of operation
-------------------
The name of an entry is the lower object's handle in hexadecimal.  The entry is

* a hard link of the upper file, whose `origin` repeats the handle.  `nlink` says how many names
  the union shows, as a difference to the link count of the upper file (``U+0``) or of the lower
  one (``L-1``), so that one rename or unlink keeps it right;
* for a directory (nfs_export) an empty directory, whose `upper` is the handle of the upper one;
* for what has gone (nfs_export) a whiteout, so that its handle stays stale.

The kernel looks through them at mount (`ovl_indexdir_cleanup`), drops what is stale, and refuses
the mount for what it does not understand.  What is dropped here is dropped there too; but an
entry that is the last name of a file only when it is certain that the union shows it nowhere.
"""

from __future__ import annotations

import os
import stat
from errno import ESTALE
from functools import partial

from voile.linux import files, trees
from voile.overlay import whiteout, xattrs
from voile.overlay.check_handle import FileSystem, Foreign, Handle, Invalid
from voile.overlay.indexdir import parse_nlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from voile.overlay.check_report import Report
    from voile.overlay.check_union import Key

    # Upper and origin file → names in the union, and those of the origin in the lower layers alone.
    Count = Callable[[set[Key]], tuple[dict[Key, int], dict[Key, int]]]

_TEMP = b"#check"


class Entry:
    """A file in the index that is what it should be."""

    __slots__ = ("name", "path", "st", "origin")

    def __init__(self, name: bytes, path: bytes, st: os.stat_result, origin: os.stat_result | None) -> None:
        self.name = name
        self.path = path
        self.st = st
        self.origin = origin


class Index:
    """The index directory `fd`, known as `path`.

    Args:
        upper_fd: the upper directory's root, whose index it should be.
        filesystems: where lower objects may be; the upper's comes first.
    """

    __slots__ = (
        "fd", "path", "entries", "ours", "_names", "_report", "_filesystems", "_exported", "_orphans",
    )  # fmt: skip

    def __init__(
        self,
        fd: int,
        path: bytes,
        upper_fd: int,
        names: xattrs.Names,
        filesystems: Sequence[FileSystem],
        report: Report,
    ) -> None:
        self.fd = fd
        self.path = path
        self.entries: dict[Key, Entry] = {}
        self._names = names
        self._report = report
        self._filesystems = filesystems
        self._exported = False
        # Directories' entries that name nothing, and the origin in their names.
        self._orphans: list[tuple[bytes, bytes]] = []
        self.ours = self._is_of(upper_fd)

    def _is_of(self, upper_fd: int) -> bool:
        """Whether the directory says that it is this upper's index (`ovl_verify_upper`)."""
        for name in (self._names.prefix + b"upper", self._names.origin):  # the latter: before 4.16
            value = xattrs.get(xattrs.proc_fd(self.fd), name, follow=True)
            if not value:
                continue
            try:
                if Handle(value).names(upper_fd):
                    continue
                why = b"it belongs to another upper directory"
            except ValueError as exc:
                why = str(exc).encode()
            self._report.problem(self.path, "index", why + b" (index=on refuses the mount)")
            return False
        return True

    def read(self) -> None:
        """Checks all entries for themselves, and takes in the good ones."""
        found = []
        for name in sorted(os.fsencode(each) for each in os.listdir(self.fd)):
            st = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            found.append((name, st))
            temporary = name[:1] == b"#"
            self._exported |= not temporary and (stat.S_ISDIR(st.st_mode) or whiteout.is_whiteout(st))
        for name, st in found:
            self._report.checked += 1
            try:
                self._entry(name, st)
            except OSError as exc:
                self._report.error(exc, self.path + b"/" + name)

    def _entry(self, name: bytes, st: os.stat_result) -> None:
        path = self.path + b"/" + name
        if name[:1] == b"#":
            # A whiteout is kept by a live mount, and left by the last, to make more of it.
            if not whiteout.is_whiteout(st):
                what = b"of an interrupted change"
                self._wrong(path, "leftover", what, lambda: trees.remove(self.fd, name))
            return
        try:
            value = bytes.fromhex(name.decode("ascii"))
            handle = Handle(value)
        except Foreign as exc:
            self._wrong(path, "index", b"not checked: " + str(exc).encode())
            return
        except ValueError:
            # Invalid too, and UnicodeDecodeError.
            self._wrong(path, "index", b"the name is no file handle", *self._removal(name, st))
            return
        if whiteout.is_whiteout(st):
            return
        if stat.S_ISDIR(st.st_mode):
            self._directory(name, path, value)
            return
        try:
            origin = handle.stat(self._filesystems)
        except OSError as exc:
            if exc.errno != ESTALE:
                raise
            if st.st_nlink == 1:
                what = b"the lower file has gone: it can be seen nowhere (a mount with index=on drops it)"
                self._wrong(path, "index", what)
                return
            origin = None  # or a file system that cannot follow its own handles (FUSE)
        said = xattrs.get(xattrs.proc_path(self.fd, name), self._names.origin)
        if said != value:
            self._origin(name, path, value, said, origin is not None)
        if origin is not None and stat.S_IFMT(origin.st_mode) != stat.S_IFMT(st.st_mode):
            self._wrong(path, "index", b"the lower file is of another type")
            return
        self.entries[st.st_dev, st.st_ino] = Entry(name, path, st, origin)

    def _origin(
        self, name: bytes, path: bytes, value: bytes, said: bytes | None, found: bool
    ) -> None:
        """Of a file that is not in the index under its own origin.

        Its name mends an origin that says nothing.  One that says something else may be the right one.
        """
        try:
            Handle(said or b"").stat(self._filesystems)
            silent = False
        except Foreign:
            silent = False
        except (Invalid, OSError):
            silent = True
        steps: tuple[Callable[[], None], ...] = ()
        if found and silent:
            at = xattrs.proc_path(self.fd, name)
            steps = (partial(os.setxattr, at, self._names.origin, value, follow_symlinks=False),)
        what = b"the origin of the file is not the one of its name" if said else b"the file has no origin"
        self._wrong(path, "index", what, *steps)

    def _directory(self, name: bytes, path: bytes, value: bytes) -> None:
        """Of a directory, as far as it can be told."""
        upper = xattrs.get(xattrs.proc_path(self.fd, name), self._names.prefix + b"upper")
        try:
            fd = Handle(upper or b"").open(self._filesystems[:1])
        except (Invalid, Foreign):
            what = b"does not say which directory it stands for"
            self._wrong(path, "index", what, partial(self._rmdir, name))
            return
        except OSError as exc:
            if exc.errno != ESTALE:
                raise
            self._orphans.append((name, value))
            return
        if fd is None:
            return
        try:
            same = xattrs.get(xattrs.proc_fd(fd), self._names.origin, follow=True) == value
        finally:
            os.close(fd)
        if not same:
            what = b"the directory that it stands for has another origin"
            self._wrong(path, "index", what, partial(self._rmdir, name))

    def check_directories(self, origins: set[bytes]) -> None:
        """Entries of directories that have gone; `origins`: of all upper directories that are there."""
        for name, value in self._orphans:
            path = self.path + b"/" + name
            if value in origins:
                # A whiteout would make the directory unreachable; without an entry it is only not exported.
                what = b"names a directory that has gone, and its own is there"
                self._wrong(path, "index", what, partial(self._rmdir, name))
            else:
                steps = self._steps_to_whiteout(name, True)
                self._wrong(path, "index", b"orphaned: the upper directory has gone", *steps)

    def _wrong(self, path: bytes, kind: str, detail: bytes, *steps: Callable[[], None]) -> bool:
        # The index of another upper directory is nothing to mend.
        return self._report.problem(path, kind, detail, *(steps if self.ours else ()))

    def _removal(self, name: bytes, st: os.stat_result) -> tuple[Callable[[], None], ...]:
        """How to remove a bad entry: not at all where it would be the last name of a file."""
        if stat.S_ISDIR(st.st_mode):
            return (partial(self._rmdir, name),)
        if st.st_nlink == 1 and not whiteout.is_whiteout(st):
            return ()
        return (lambda: os.unlink(name, dir_fd=self.fd),)

    def _rmdir(self, name: bytes) -> None:
        os.rmdir(name, dir_fd=self.fd)

    def _steps_to_whiteout(self, name: bytes, is_dir: bool) -> tuple[Callable[[], None], ...]:
        """As `ovl_cleanup_and_whiteout`: the deciding step is one rename; ``#`` entries are leftovers."""
        flags = files.RENAME_EXCHANGE if is_dir else 0
        steps: tuple[Callable[[], None], ...] = (
            lambda: trees.remove(self.fd, _TEMP),
            lambda: os.mknod(_TEMP, whiteout.MODE, whiteout.DEVICE, dir_fd=self.fd),
            lambda: files.renameat2(self.fd, _TEMP, self.fd, name, flags),
        )
        return (*steps, partial(self._rmdir, _TEMP)) if is_dir else steps

    def check_links(self, count: Count | None) -> None:
        """Orphans and link counts; `count` counts names, if the lower layers are there."""
        wanted = set()
        for key, entry in self.entries.items():
            if entry.origin is not None:
                wanted |= {key, (entry.origin.st_dev, entry.origin.st_ino)}
        union, lower = count(wanted) if count is not None and wanted else ({}, {})
        for key, entry in self.entries.items():
            expected = None
            origin = entry.origin
            if count is not None and origin is not None:
                below = (origin.st_dev, origin.st_ino)
                # Names outside of the layers count for the kernel as well, and nobody can find them.
                if lower[below] == origin.st_nlink:
                    expected = union[key] + union[below]
            self._check_nlink(entry, expected)

    def _check_nlink(self, entry: Entry, expected: int | None) -> None:
        value = xattrs.get(xattrs.proc_path(self.fd, entry.name), self._names.nlink)
        shown = union_nlink(value, entry)
        links = entry.st.st_nlink
        if links == 1 and (expected == 0 or (expected is None and shown == 0)):
            steps = (
                self._steps_to_whiteout(entry.name, False)
                if self._exported
                else (lambda: os.unlink(entry.name, dir_fd=self.fd),)
            )
            self._wrong(entry.path, "index", b"orphaned: nothing shows the file any more", *steps)
            return
        if entry.origin is not None and entry.origin.st_nlink == 1:
            return  # not looked at (ovl_get_nlink)
        if entry.origin is None and shown is None and (value is None or parse_nlink(value) is not None):
            return  # relative to a lower file that is not known
        if shown == expected if expected is not None else shown is not None and shown >= links - 1:
            return
        detail = b"no nlink" if value is None else b"nlink " + value
        steps = ()
        if expected is not None:
            detail += b", the union has %d names" % expected
            path, right = xattrs.proc_path(self.fd, entry.name), b"U%+d" % (expected - links)
            steps = (lambda: os.setxattr(path, self._names.nlink, right, follow_symlinks=False),)
        self._wrong(entry.path, "nlink", detail, *steps)


def union_nlink(value: bytes | None, entry: Entry) -> int | None:
    """The link count that `value` stands for; None: it is invalid, or the lower file is not known."""
    difference = None if value is None else parse_nlink(value)
    if difference is None or value is None:
        return None
    if value[:1] == b"U":
        base = entry.st
    elif entry.origin is not None:
        base = entry.origin
    else:
        return None
    return max(0, base.st_nlink + difference)
