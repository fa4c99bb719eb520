"""Whiteouts: entries that say "nothing here" to the layers below.

The kernel's form is a character device 0:0 (`ovl_is_whiteout`); since 5.8 anybody
may make one.  The other form is made by tools, for layers that lie on an overlay or where there
are no devices: an empty file with the attribute `overlay.whiteout` (`ovl_path_is_whiteout`).
Lookup knows it in every layer; listings only in merged directories marked `opaque=x`.

With the option `aufs_whiteouts` there is a third form: see aufs.

All whiteouts of a mount are hard links to one inode, until the link limit is reached
(fs/overlayfs/dir.c, `ovl_whiteout`).
"""

from __future__ import annotations

import os
import stat
from errno import EEXIST, EMLINK, EPERM

from voile.linux import files
from voile.overlay import xattrs
from voile.overlay.layers import RealDir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.overlay.super import Overlay

MODE = stat.S_IFCHR
DEVICE = 0


def is_whiteout(st: os.stat_result) -> bool:
    """Whether a file status is that of a whiteout device."""
    return st.st_rdev == DEVICE and stat.S_ISCHR(st.st_mode)


def hides(names: xattrs.Names, dir_fd: int, name: bytes, st: os.stat_result) -> bool:
    """Whether `name`, whose status is `st`, is a whiteout of either form (`ovl_path_is_whiteout`)."""
    if stat.S_ISREG(st.st_mode):
        return st.st_size == 0 and has_attribute(names, dir_fd, name)
    return is_whiteout(st)


def has_attribute(names: xattrs.Names, dir_fd: int, name: bytes) -> bool:
    """Whether an empty regular file is a whiteout; an error is none (`ovl_path_check_xwhiteout_xattr`)."""
    return files.has_xattrat(dir_fd, name, names.whiteout)


class Maker:
    """Makes whiteouts as links to one shared inode in the work directory."""

    __slots__ = ("_ofs", "_shared", "_alone")

    def __init__(self, ofs: Overlay) -> None:
        self._ofs = ofs
        self._shared = b""
        self._alone = False

    def make(self, dir_fd: int, name: bytes) -> None:
        """Creates a whiteout where nothing is yet.

        Raises:
            OSError: EEXIST where the name is taken, or as mknod(2).
        """
        ofs = self._ofs
        if not self._alone:
            if not self._shared:
                ofs.creds.mounter()
                shared = ofs.temp_name()
                os.mknod(shared, MODE, DEVICE, dir_fd=ofs.work_fd)
                self._shared = shared
            try:
                os.link(self._shared, name, src_dir_fd=ofs.work_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
                return
            except OSError as exc:
                if exc.errno == EEXIST:
                    raise
                if exc.errno == EMLINK:
                    self._renew()
                elif exc.errno == EPERM:
                    self._alone = True  # a file system without hard links
                else:
                    raise
        ofs.creds.mounter()
        os.mknod(name, MODE, DEVICE, dir_fd=dir_fd)

    def _renew(self) -> None:
        os.unlink(self._shared, dir_fd=self._ofs.work_fd)
        self._shared = b""

    def close(self) -> None:
        """Removes the shared inode's own name."""
        if self._shared:
            self._renew()

    def temp(self) -> bytes:
        """A whiteout in the work directory; returns its name there."""
        name = self._ofs.temp_name()
        self.make(self._ofs.work_fd, name)
        return name

    def cover(self, upper: RealDir, name: bytes, is_dir: bool) -> None:
        """Replaces the upper object `name` by a whiteout in one step.

        A directory is exchanged and then cleaned out of the work directory, as in
        `ovl_cleanup_and_whiteout`; what it still holds are whiteouts.
        """
        ofs = self._ofs
        temp = self.temp()
        flags = files.RENAME_EXCHANGE if is_dir else 0
        try:
            files.renameat2(ofs.work_fd, temp, ofs.fds.fd(upper), name, flags)
        except OSError:
            os.unlink(temp, dir_fd=ofs.work_fd)
            raise
        if is_dir:
            ofs.discard(temp)
