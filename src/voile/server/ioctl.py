"""lsattr and chattr: the ioctls that the kernel asks a FUSE file system with (`fuse_fileattr_get`, `_set`).

It checks itself who may change which flags, after it has asked for those in force.  A question of its own has
the size of an int, though the command says long: what has the command's size comes from somebody whom it has
not checked, when there are no flags, and gets no answer.
"""

from __future__ import annotations

import os
from errno import ENOTTY

from voile.linux import fileattr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.overlay.inode import Node
    from voile.overlay.super import Overlay

CHANGING_FILE_ATTRIBUTES = (fileattr.FS_IOC_SETFLAGS, fileattr.FS_IOC_FSSETXATTR)
FILE_ATTRIBUTES = (fileattr.FS_IOC_GETFLAGS, fileattr.FS_IOC_FSGETXATTR, *CHANGING_FILE_ATTRIBUTES)


def file_attributes(overlay: Overlay, node: Node, cmd: int, data: bytes, out_size: int) -> bytes:
    """Answers one of `FILE_ATTRIBUTES`; raises OSError as the functions in overlay.fileattr do."""
    from voile.overlay import fileattr as of  # rarely needed

    if cmd == fileattr.FS_IOC_GETFLAGS and out_size == fileattr.FLAGS.size:
        return fileattr.FLAGS.pack(of.get_flags(overlay, node))
    if cmd == fileattr.FS_IOC_SETFLAGS and len(data) == fileattr.FLAGS.size:
        of.set_flags(overlay, node, fileattr.FLAGS.unpack(data)[0])
        return b""
    if cmd == fileattr.FS_IOC_FSGETXATTR:
        return of.get_fsxattr(overlay, node)
    if cmd == fileattr.FS_IOC_FSSETXATTR:
        of.set_fsxattr(overlay, node, bytes(data))
        return b""
    raise OSError(ENOTTY, os.strerror(ENOTTY))
