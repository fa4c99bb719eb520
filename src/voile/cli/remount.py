"""`-o remount`: changes the generic flags of a mount, as the kernel's overlayfs lets them be changed.

mount(8) calls it through mount.fuse3 for the type fuse.voile; for the type fuseblk.voile it makes the same
system call itself.
"""

from __future__ import annotations

import os
from errno import EBUSY, EROFS

from voile.cli import mounts, report
from voile.linux import mount as linux_mount
from voile.linux.mount import MS_BIND, MS_RDONLY, MS_REMOUNT
from voile.overlay import params as mount_options
from voile.overlay.params import Params


def asked_for(options: list[bytes]) -> bool:
    """Whether `remount` is among the `-o` values."""
    return any(b"remount" in mount_options.split_options(item) for item in options if b"remount" in item)


def main(options: list[bytes], target: bytes) -> int:
    """Remount what is mounted on `target`; return an exit status.

    What is not a generic flag is ignored, as the kernel's overlayfs ignores it: mount(8) gives all options of
    /etc/fstab again.
    """
    shown = os.fsdecode(target)
    mount = mounts.find(target)
    if mount is None or not mounts.is_voile(mount):
        report.say(f"{shown}: not mounted by voile")
        return report.MOUNT_FAILURE
    params = Params()
    # The flags that are not named stay: mount(2) would clear them.
    for item in (b",".join(mount.options), *options):
        words = [word for word in mount_options.split_options(item) if word not in (b"remount", b"bind")]
        mount_options.parse(b",".join(words), params, sloppy=True)
    flags = params.ms_flags | (MS_RDONLY if params.readonly else 0)
    if any(b"bind" in mount_options.split_options(item) for item in options):
        flags |= MS_BIND
    try:
        if not flags & (MS_RDONLY | MS_BIND) and mounts.ask(mount).get("read_only"):
            raise OSError(EROFS, "no upper directory, ro, or errors=remount-ro: mount it anew to write")
        _remount(mount.mountpoint, flags)
    except OSError as error:
        report.say(f"{shown}: {error.strerror}")
        return report.exit_status(error)
    return report.OK


def _remount(point: bytes, flags: int) -> None:
    """remount(2). What the canary has open for writing is in the way of `ro`."""
    from voile.server import control

    try:
        linux_mount.mount(None, point, None, MS_REMOUNT | flags)
    except OSError as error:
        if error.errno != EBUSY or not flags & MS_RDONLY or flags & MS_BIND:
            raise
        control.canary(point, False)
        try:
            linux_mount.mount(None, point, None, MS_REMOUNT | flags)
        except OSError:
            control.canary(point, True)
            raise
    else:
        if not flags & (MS_RDONLY | MS_BIND):
            control.canary(point, True)
