"""WORKDIR/index as a directory: made, checked and cleaned at mount.

The rules are those of `ovl_get_indexdir` (fs/overlayfs/super.c) and `ovl_indexdir_cleanup` (readdir.c).

What its entries are for: see index.
"""

from __future__ import annotations

import os
import stat
from errno import EINVAL, EIO, ENODATA, ENOENT, ENOTDIR, ESTALE

from voile.linux import creds as linux_creds
from voile.linux import files, trees
from voile.overlay import origin, whiteout, xattrs
from voile.overlay.layers import DIR_FLAGS, DIR_READ, RealDir
from voile.overlay.layout import MountError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn, Self

    from voile.overlay.super import Overlay

NAME = b"index"
S_IFMT = 0o170000


class IndexDir:
    """The index directory of a mount.

    `real` is the directory; on a mount that cannot be written to, it may be missing (fd -1).
    """

    __slots__ = ("_ofs", "real", "_used", "_ignored", "_undo")

    def __init__(self, ofs: Overlay) -> None:
        """See `open`, which is what callers use."""
        self._ofs = ofs
        self.real = RealDir(ofs.upper_layer, ofs.upper_layer.root, NAME)
        # There were entries at mount.  They may be of files that have one link by now, or had one only
        # (nfs_export=on indexes all): those are looked for as well.
        self._used = False
        # What a mount that may write would have removed.
        self._ignored: set[bytes] = set()
        self._undo: list[Callable[[], None]] = []

    @classmethod
    def open(cls, ofs: Overlay) -> Self | None:
        """Checks what is there, and changes nothing (`ovl_get_indexdir`).

        None, with a warning, where there can be no index, as in the kernel.

        Raises:
            MountError: ESTALE: the upper directory was used with another lower one, or the index
                with another upper one.  EINVAL, ENODATA: an entry that is not understood.
        """
        reason = _impossible(ofs)
        if reason is not None:
            ofs.warnings.append(f"{reason}; falling back to index=off")
            return None
        self = cls(ofs)
        upper = ofs.upper_layer.root
        if _verify(ofs, upper.fd, ofs.names.origin, self._origin_of_root()) is False:
            message = "upperdir was used with another lower directory (index=off would take it)"
            raise MountError(ESTALE, message, ofs.params.upperdir)
        self._open_existing()
        if self.real.fd >= 0:
            if _verify(ofs, self.real.fd, ofs.names.upper, self._upper_root()) is False:
                message = "the index in workdir belongs to another upper directory (index=off would take it)"
                raise MountError(ESTALE, message, ofs.params.workdir)
            self._ignored = self._bad_entries()
        return self

    def _open_existing(self) -> None:
        try:
            self.real.fd = os.open(NAME, DIR_FLAGS, dir_fd=self._ofs.workdir_fd)
        except FileNotFoundError:
            pass
        except OSError as exc:
            message = f"workdir: 'index': {os.strerror(exc.errno or ENOTDIR)}"
            raise MountError(exc.errno or ENOTDIR, message, self._ofs.params.workdir) from None

    def _origin_of_root(self) -> bytes:
        lower = self._ofs.lowers[0]
        return origin.encode(lower, lower.root.fd, b"", files.AT_EMPTY_PATH)

    def _upper_root(self) -> bytes:
        upper = self._ofs.upper_layer
        return origin.encode(upper, upper.root.fd, b"", files.AT_EMPTY_PATH, origin.PATH_UPPER)

    def activate(self) -> None:
        """Makes the directory, marks it and the upper one as belonging together, and cleans it.

        Raises:
            OSError: it cannot be made, written or cleaned.
        """
        ofs = self._ofs
        ofs.creds.mounter()
        self._mark(ofs.upper_layer.root.fd, ofs.names.origin, self._origin_of_root())
        if self.real.fd < 0:
            self._make()
        self._mark(self.real.fd, ofs.names.upper, self._upper_root())
        for name in self._ignored:
            trees.remove(self.real.fd, name)
        self._ignored.clear()

    def _make(self) -> None:
        """`ovl_workdir_create`: of mode 0, without any ACL."""
        ofs = self._ofs
        os.mkdir(NAME, 0o700, dir_fd=ofs.workdir_fd)
        self._undo.append(lambda: os.rmdir(NAME, dir_fd=ofs.workdir_fd))
        self.real.fd = os.open(NAME, DIR_FLAGS, dir_fd=ofs.workdir_fd)
        path = xattrs.proc_fd(self.real.fd)
        for acl in (xattrs.ACL_DEFAULT, xattrs.ACL_ACCESS):
            if xattrs.get(path, acl, follow=True) is not None:
                os.removexattr(path, acl)
        if linux_creds.has_cap(linux_creds.CAP_DAC_OVERRIDE):
            os.chmod(path, 0)

    def _mark(self, fd: int, attribute: bytes, value: bytes) -> None:
        if _verify(self._ofs, fd, attribute, value) is None:
            path = xattrs.proc_fd(fd)
            os.setxattr(path, attribute, value)
            self._undo.append(lambda: os.removexattr(path, attribute))

    def abort(self) -> None:
        """The mount failed: takes back what `activate` made."""
        for undo in reversed(self._undo):
            try:
                undo()
            except OSError:
                pass
        self.close()

    def close(self) -> None:
        """Closes the directory."""
        if self.real.fd >= 0:
            os.close(self.real.fd)
            self.real.fd = -1

    def _bad_entries(self) -> set[bytes]:
        """What is to be removed: leftovers, stale and orphaned entries (`ovl_indexdir_cleanup`)."""
        bad = set()
        fd = os.open(b".", DIR_READ, dir_fd=self.real.fd)
        try:
            names = [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)
        for name in names:
            if name[:1] == b"#" or not self._verify_entry(name):
                bad.add(name)
            else:
                self._used = True
        return bad

    def _verify_entry(self, name: bytes) -> bool:
        """`ovl_verify_index`: whether to keep an entry.

        Raises:
            MountError: it is nothing that an index holds.
        """
        try:
            value = bytes.fromhex(name.decode("ascii"))
            code = origin.check(value)
        except ValueError:
            code = EINVAL
        if code:
            self._refuse(code, name, "is no file handle of this machine")
        st = os.stat(name, dir_fd=self.real.fd, follow_symlinks=False)
        if whiteout.is_whiteout(st) or stat.S_ISDIR(st.st_mode):
            return True  # of a mount with nfs_export=on
        said = xattrs.get_at(self.real.fd, name, self._ofs.names.origin)
        if not said or origin.check(said):
            self._refuse(ENODATA, name, "has no origin")
        if said != value:
            return False
        if st.st_nlink > 1:
            return True
        # Nothing but the index has it: it is kept while names of lower layers lead to it.
        found = origin.decode(self._ofs, value)
        if found is None or (found[1].st_mode ^ st.st_mode) & S_IFMT:
            return False
        return self.get_nlink(name, st, found[1].st_nlink, 0) > 0

    def _refuse(self, code: int, name: bytes, why: str) -> NoReturn:
        message = f"workdir: 'index/{os.fsdecode(name)}' {why} (voile check --fix may mend it)"
        raise MountError(code, message, self._ofs.params.workdir)

    # --- entries ---

    def find(self, entry: bytes, fmt: int) -> os.stat_result | None:
        if self.real.fd < 0 or entry in self._ignored:
            return None
        try:
            st = os.stat(entry, dir_fd=self.real.fd, follow_symlinks=False)
        except OSError as exc:
            if exc.errno == ENOENT:
                return None
            raise
        if whiteout.is_whiteout(st) or st.st_mode & S_IFMT != fmt:
            raise OSError(EIO, "bad index entry")
        return st

    def get_nlink(self, entry: bytes, st: os.stat_result, lower_nlink: int, fallback: int) -> int:
        """How many names the union has (`ovl_get_nlink`)."""
        if lower_nlink == 1:
            return fallback
        value = xattrs.get_at(self.real.fd, entry, self._ofs.names.nlink)
        difference = None if value is None else parse_nlink(value)
        if difference is None or value is None:
            return fallback
        links = (lower_nlink if value[:1] == b"L" else st.st_nlink) + difference
        return links if links > 0 else fallback


def parse_nlink(value: bytes) -> int | None:
    """The difference in an `nlink` value; None where it is invalid (`ovl_get_nlink`)."""
    if value[:1] not in (b"U", b"L") or value[1:2] not in (b"+", b"-") or not value[2:].isdigit():
        return None
    return int(value[1:])


def _verify(ofs: Overlay, fd: int, attribute: bytes, value: bytes) -> bool | None:
    """Whether a directory has this file handle in an attribute; None: it has none (`ovl_verify_fh`)."""
    stored = xattrs.get(xattrs.proc_fd(fd), attribute, follow=True)
    if not stored or origin.check(stored):
        return None
    return stored[: stored[2]] == value


def _impossible(ofs: Overlay) -> str | None:
    """Why there can be no index: handles of lower files lead nowhere, or to several (`ovl_lower_uuid_ok`)."""
    below: dict[int, bytes | None] = {}
    for layer in (ofs.upper_layer, *ofs.lowers):
        path = os.fsdecode(layer.path)
        if not layer.decodes:
            return f"the file system of '{path}' has no file handles, or they may not be used"
        if layer.index == 0:
            continue
        for fsid, uuid in below.items():
            if fsid != layer.fsid and layer.fsid and uuid == layer.uuid:
                return f"the file system of '{path}' has the uuid of another one"
        below.setdefault(layer.fsid, layer.uuid)
    return None
