"""Origin: which lower object an upper object was copied up from.

It is stored as the lower object's file handle (`struct ovl_fb`, fs/overlayfs/overlayfs.h)
and gives the upper object the lower one's st_ino, also after a remount.
"""

from __future__ import annotations

import os
import struct
from errno import EINVAL, ENODATA

from voile.linux import files
from voile.overlay.layers import Layer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.overlay.super import Overlay

# version, magic, length, flags, handle type, uuid; then the handle.
_FB = struct.Struct("=BBBBB16s")
_VERSION = 0
_MAGIC = 0xFB
_BIG_ENDIAN = 1 << 0
_ANY_ENDIAN = 1 << 1
PATH_UPPER = 1 << 2
_CPU_ENDIAN = _BIG_ENDIAN if struct.pack("=H", 1) == b"\0\1" else 0
_NO_UUID = bytes(16)


def encode(layer: Layer, dir_fd: int, name: bytes, flags: int = 0, fb_flags: int = 0) -> bytes:
    """The origin value for an object of `layer`; empty where a handle could not be followed.

    That is a file system without handles, or a mounter who may not open by them
    (`ovl_can_decode_fh`).  `fb_flags`: PATH_UPPER for one of the upper layer.
    """
    if not layer.decodes:
        return b""
    try:
        _mount, kind, handle = files.name_to_handle_at(dir_fd, name, flags)
    except OSError:
        # A NULL handle still says "copied up" (ovl_set_origin_fh).
        return b""
    if not 0 <= kind <= 0xFF or _FB.size + len(handle) > 0xFF:
        return b""
    length = _FB.size + len(handle)
    fb_flags |= _CPU_ENDIAN
    return _FB.pack(_VERSION, _MAGIC, length, fb_flags, kind, layer.uuid or _NO_UUID) + handle


def check(value: bytes) -> int:
    """What is wrong with a file handle, as an errno, or 0 (`ovl_check_fb_len`)."""
    if len(value) < _FB.size:
        return EINVAL
    version, magic, length, flags, _kind, _uuid = _FB.unpack_from(value)
    if magic != _MAGIC or length > len(value):
        return EINVAL
    if version > _VERSION or flags & ~(_BIG_ENDIAN | _ANY_ENDIAN | PATH_UPPER):
        return ENODATA
    if not flags & _ANY_ENDIAN and flags & _BIG_ENDIAN != _CPU_ENDIAN:
        return ENODATA
    return 0


def decode(ofs: Overlay, value: bytes) -> tuple[Layer, os.stat_result] | None:
    """The lower layer and the status of the object that an origin value names.

    None where the value is empty, foreign or stale: the kernel then takes the upper
    object for a pure upper one (`ovl_check_origin_fh`).
    """
    if len(value) < _FB.size:
        return None
    version, magic, length, flags, kind, uuid = _FB.unpack_from(value)
    if version != _VERSION or magic != _MAGIC or length != len(value) or flags & PATH_UPPER:
        return None
    if not flags & _ANY_ENDIAN and flags & _BIG_ENDIAN != _CPU_ENDIAN:
        return None
    handle = value[_FB.size :]
    for layer in ofs.lowers:
        if not layer.decodes or (layer.uuid or _NO_UUID) != uuid:
            continue
        try:
            fd = files.open_by_handle_at(layer.mount_fd, kind, handle, os.O_PATH)
        except PermissionError:
            layer.decodes = False
            continue
        except OSError:
            continue
        try:
            return layer, os.fstat(fd)
        finally:
            os.close(fd)
    return None
