"""Whiteouts of AUFS, which image layers have that were unpacked for a mount program (`aufs_whiteouts=on`).

A file of whatever kind, `.wh.NAME`, says that the layers below have no NAME; `.wh..wh..opq`, that they have
nothing in its directory.  The layer itself may have NAME (image-spec of OCI, "Whiteouts").  Such names do not
show and cannot be made; all other `.wh.` names are of AUFS's own.
"""

from __future__ import annotations

import os
from errno import EINVAL

from voile.linux import files
from voile.overlay import xattrs
from voile.overlay.layers import DIR_READ, RealDir

PREFIX = b".wh."
OPAQUE = b".wh..opq"
_FUSE_OVERLAYFS_OPAQUE = b"user.fuseoverlayfs.opaque"
_NONE: frozenset[bytes] = frozenset()


def refuse(name: bytes) -> None:
    """No `.wh.` name is made through the mount: it would hide something, and not show itself.

    Raises:
        OSError: EINVAL, as fuse-overlayfs gives it.
    """
    if name[:4] == PREFIX:
        raise OSError(EINVAL, "that would be a whiteout")


def hidden_names(real: RealDir, dir_fd: int) -> frozenset[bytes]:
    """What the AUFS whiteouts in a directory of a layer hide; with it OPAQUE, if it is marked so.

    `dir_fd` is its descriptor.  They are read once: nobody changes a lower layer, and nobody can make such
    names in the upper one.
    """
    if real.aufs is None:
        real.aufs = _NONE
        buffer = bytearray(64 * 1024)
        fd = os.open(b".", DIR_READ, dir_fd=dir_fd)
        try:
            while length := files.getdents64(fd, buffer):
                # Most directories have none: that is seen sooner in the raw entries than in their names.
                if buffer.find(PREFIX, 0, length) >= 0:
                    os.lseek(fd, 0, os.SEEK_SET)
                    names = map(os.fsencode, os.listdir(fd))
                    real.aufs = frozenset(each[4:] for each in names if each[:4] == PREFIX)
                    break
        finally:
            os.close(fd)
    return real.aufs


def is_opaque(real: RealDir, fd: int) -> bool:
    """Whether a directory, whose descriptor is `fd`, hides all below: by AUFS's mark or fuse-overlayfs's."""
    return (
        OPAQUE in hidden_names(real, fd)
        or xattrs.get(xattrs.proc_fd(fd), _FUSE_OVERLAYFS_OPAQUE, follow=True) == b"y"
    )
