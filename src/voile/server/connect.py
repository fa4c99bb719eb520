"""Which kind of mount it becomes: fuseblk where it helps, plain fuse, or through fusermount3."""

from __future__ import annotations

import errno
import os

from voile.fuse import mountpoint
from voile.linux import creds, trees
from voile.linux import mount as linux_mount
from voile.volatile import policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from voile.overlay.params import Params

    # The FUSE device, "fuse" or "fuseblk", and the device number of the mount where it is known.
    Connection = tuple[int, str, "tuple[int, int] | None"]

# The first kernel that sends FUSE_SYNCFS to a plain fuseblk mount (fs/fuse/inode.c, fuse_fill_super_common).
_FUSEBLK_SYNCFS = (6, 18)

_FLAG_NAMES = (
    (linux_mount.MS_NOEXEC, b"noexec"),
    (linux_mount.MS_SYNCHRONOUS, b"sync"),
    (linux_mount.MS_DIRSYNC, b"dirsync"),
    (linux_mount.MS_NOATIME, b"noatime"),
    (linux_mount.MS_NODIRATIME, b"nodiratime"),
    (linux_mount.MS_RELATIME, b"relatime"),
    (linux_mount.MS_STRICTATIME, b"strictatime"),
    (linux_mount.MS_LAZYTIME, b"lazytime"),
    (linux_mount.MS_NOSYMFOLLOW, b"nosymfollow"),
)


def connect(
    params: Params, target: bytes, workdir_fd: int, before_mount: Callable[[], None] | None = None
) -> Connection:
    """Mount on the absolute path `target`.

    `workdir_fd` (-1 without an upper layer) is a place for a moment's scratch.  `before_mount` is called when
    the device is open.  Raises OSError; nothing is mounted then.
    """
    if not creds.has_cap(creds.CAP_SYS_ADMIN):
        _check_kind(params, target, "fuse")
        return mountpoint.via_fusermount3(target, _helper_options(params)), "fuse", None
    fd = mountpoint.open_device()
    try:
        if before_mount is not None:
            before_mount()
        wanted = params.fuseblk and params.syncfs in (policy.AUTO, policy.FUSEBLK)
        if wanted and not params.readonly and _fuseblk_helps():
            number = _mount_block(fd, params, target, workdir_fd)
            if number is not None:
                return fd, "fuseblk", number
        _check_kind(params, target, "fuse")
        _mount(fd, params, target, None)
        return fd, "fuse", None
    except BaseException:
        os.close(fd)
        raise


def _check_kind(params: Params, target: bytes, kind: str) -> None:
    if params.syncfs == policy.FUSEBLK != kind and not params.readonly:
        reason = f"option 'syncfs={params.syncfs}': it cannot be mounted as fuseblk here"
        raise OSError(errno.EOPNOTSUPP, reason, target)


def _fuseblk_helps() -> bool:
    major, minor, *_ = os.uname().release.replace("-", ".").split(".")
    return os.geteuid() == 0 and (int(major), int(minor)) >= _FUSEBLK_SYNCFS


def _mount(fd: int, params: Params, target: bytes, block_device: bytes | None) -> None:
    mountpoint.mount(
        fd,
        target,
        source=params.source,
        subtype=params.subtype,
        ms_flags=params.ms_flags | (linux_mount.MS_RDONLY if params.readonly else 0),
        # As on kernel overlayfs, everybody sees the mount and the kernel checks what they may do.
        allow_other=True,
        default_permissions=True,
        block_device=block_device,
    )


def _mount_block(fd: int, params: Params, target: bytes, workdir_fd: int) -> tuple[int, int] | None:
    """Mount as fuseblk, over a loop device that holds nothing: its number. None: not possible here."""
    from voile.linux import loop

    try:
        path, device = loop.attach_memfd(params.source)
    except OSError:
        return None  # no loop devices here: syncfs(2) on the mount will then not be asked of us
    try:
        _mount_named(fd, params, target, workdir_fd, path)
        number = os.fstat(device).st_rdev
        return os.major(number), os.minor(number)
    except PermissionError:
        return None  # root of a container: not in the initial user namespace
    finally:
        os.close(device)


def _mount_named(fd: int, params: Params, target: bytes, workdir_fd: int, device: bytes) -> None:
    """Mount the block device `device` so that mountinfo shows `params.source` as its source.

    `mount -a` compares the two, and would mount a second time.  The kernel shows the path that it was given:
    so it gets a relative one, of a symlink in a scratch directory.
    """
    name = params.source
    if b"/" in name or name in (b"", b".", b"..") or len(name) > 255:
        _mount(fd, params, target, device)
        return
    scratch = b"#source-%x" % os.getpid()
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.mkdir(scratch, 0o700, dir_fd=workdir_fd)
        there = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=workdir_fd)
        os.fchdir(there)
        os.close(there)
        os.symlink(device, name)
        _mount(fd, params, target, name)
    finally:
        os.fchdir(here)
        os.close(here)
        trees.remove(workdir_fd, scratch)


def _helper_options(params: Params) -> list[bytes]:
    options = [b"fsname=" + params.source, b"subtype=" + params.subtype, b"default_permissions"]
    if params.allow_other:
        options.append(b"allow_other")
    if params.readonly:
        options.append(b"ro")
    # It always sets nosuid and nodev.
    options += [name for flag, name in _FLAG_NAMES if params.ms_flags & flag]
    return options
