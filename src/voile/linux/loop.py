"""Loop devices (drivers/block/loop.c; the structures are those of <linux/loop.h>)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time

LOOP_CLR_FD = 0x4C01
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82
LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16

_LOOP_MAJOR = 7
_ATTEMPTS = 64

# struct loop_config: u32 fd, u32 block_size, struct loop_info64 (232 bytes: five u64, three u32,
# u32 lo_flags, u8 lo_file_name[64], the rest unused here), u64 reserved[8].
_LOOP_CONFIG = struct.Struct("=II40x12xI64s112x64x")


def attach_memfd(name: bytes, size: int = 0) -> tuple[bytes, int]:
    """A loop device over anonymous memory: (its path, an open fd of it).

    It goes away by itself when nothing uses it: keep the fd until it is mounted. `name` is what /sys and
    mount(8) show for the backing file (they put "/memfd:" before it). Raises OSError: EPERM or EACCES without
    privilege, ENOENT without the loop driver, EBUSY when others take every free device first.
    """
    fd = os.memfd_create(os.fsdecode(name), os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        return attach_file(fd, name=name)
    finally:
        os.close(fd)


def attach_file(
    fd: int, block_size: int = 0, name: bytes = b"", flags: int = LO_FLAGS_AUTOCLEAR
) -> tuple[bytes, int]:
    """A loop device over an open file: (its path, an open fd of it). `block_size` 0: the kernel chooses."""
    config = _LOOP_CONFIG.pack(fd, block_size, flags, name[:63])
    control = os.open(b"/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for attempt in range(_ATTEMPTS):
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            path = b"/dev/loop%d" % number
            device = _open_node(path, number)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, config)
                return path, device
            except OSError as error:
                os.close(device)
                # Between GET_FREE and CONFIGURE somebody else took it (EBUSY), or is deleting it (ENXIO).
                if error.errno not in (errno.EBUSY, errno.ENXIO) or attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.001 * attempt)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
    finally:
        os.close(control)


def detach(device: int) -> None:
    """Ask for the device to be cleared; with users left, it happens at the last close."""
    fcntl.ioctl(device, LOOP_CLR_FD)


def _open_node(path: bytes, number: int) -> int:
    """Open the device, and make its node first where /dev is not the kernel's own (containers)."""
    for _ in range(2):
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            try:
                os.mknod(path, 0o660 | stat.S_IFBLK, os.makedev(_LOOP_MAJOR, number))
            except FileExistsError:
                pass
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)
