"""/dev/fuse, mounting and unmounting.

Three ways to a mount: mount(2) of type "fuse"; mount(2) of type "fuseblk", whose superblock the kernel also
tells about syncfs(2) (Linux ≥ 6.18; needs a block device and CAP_SYS_ADMIN in the initial user namespace);
and the setuid helper fusermount3, which mounts for ordinary users and hands over the device.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEVICE = b"/dev/fuse"


def open_device() -> int:
    """Open /dev/fuse. Raises OSError with the device as filename and one clear line as strerror."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        hint = _DEVICE_HINTS.get(exc.errno or 0)
        if hint is None:
            raise
        raise OSError(exc.errno, hint, os.fsdecode(DEVICE)) from None


_DEVICE_HINTS = {
    errno.ENOENT: "missing: the kernel lacks FUSE (modprobe fuse), or the container was not given the device",
    errno.ENODEV: "no FUSE in this kernel (modprobe fuse)",
    errno.ENXIO: "no FUSE in this kernel (modprobe fuse)",
    errno.EACCES: "not permitted to open it",
    errno.EPERM: "not permitted to open it (in a container: --device /dev/fuse)",
}


def mount(
    fd: int,
    target: bytes,
    *,
    source: bytes,
    subtype: bytes,
    ms_flags: int = 0,
    allow_other: bool = False,
    default_permissions: bool = False,
    block_device: bytes | None = None,
    max_read: int = 0,
) -> str:
    """Mount the connection *fd* on the directory *target* with mount(2); return the type, "fuse" or
    "fuseblk".

    With *block_device* (a fresh one: `voile.linux.loop.attach_memfd`) it is fuseblk, and that device is what
    mount(8) shows as the source; otherwise *source* is. *subtype* is what follows the dot in the type shown;
    *ms_flags* are MS_*. Raises OSError with the target as filename: EPERM without CAP_SYS_ADMIN in the mount
    namespace's user namespace (for fuseblk: in the initial one), ENODEV when the kernel lacks the type,
    ENOENT, ENOTDIR.
    """
    from voile.linux import mount as linux_mount

    options = b"fd=%d,rootmode=40755,user_id=%d,group_id=%d" % (fd, os.getuid(), os.getgid())
    if allow_other:
        options += b",allow_other"
    if default_permissions:
        options += b",default_permissions"
    if max_read:
        options += b",max_read=%d" % max_read
    if block_device is None:
        linux_mount.mount(source, target, b"fuse." + subtype, ms_flags, options)
        return "fuse"
    # blksize is the superblock's: 512, the default, would make statfs and st_blksize odd.
    options += b",blksize=4096"
    linux_mount.mount(block_device, target, b"fuseblk." + subtype, ms_flags, options)
    return "fuseblk"


def via_fusermount3(target: bytes, options: Sequence[bytes]) -> int:
    """Have fusermount3 mount on *target* with *options* (``b"fsname=x"``, ``b"subtype=y"``, …); return the
    device.

    Raises OSError: ENOENT when fusermount3 is not installed, EPERM with its own message as strerror
    otherwise.
    """
    import socket

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    errors_read, errors_write = os.pipe()
    with ours, theirs, os.fdopen(errors_read, "rb") as errors:
        escaped = (option.replace(b"\\", b"\\\\").replace(b",", b"\\,") for option in options)
        argv = [b"fusermount3", b"-o", b",".join(escaped), b"--", target]
        try:
            os.set_inheritable(theirs.fileno(), True)
            env = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
            pid = _spawn(argv, env, errors_write)
        finally:
            os.close(errors_write)
        theirs.close()
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        message = errors.read().decode(errors="replace").strip().partition("\n")[0]
        os.waitpid(pid, 0)
    if not fds:
        raise OSError(errno.EPERM, message or "fusermount3 failed", os.fsdecode(target))
    os.set_inheritable(fds[0], False)
    return fds[0]


def unmount(target: bytes, lazy: bool = False, force: bool = False) -> None:
    """Unmount *target*: umount2(2), or fusermount3 where that is not permitted.

    *lazy*: detach now, end when the last user has gone. *force*: abort the connection first, so that all
    users get errors. A process must not call this in the thread that answers the mount's requests: the kernel
    may ask for data to be written, and asks fuseblk mounts to answer DESTROY. Raises OSError: EBUSY, EINVAL
    (no mount), EPERM.
    """
    from voile.linux import mount as linux_mount

    flags = linux_mount.UMOUNT_NOFOLLOW
    flags |= linux_mount.MNT_DETACH if lazy else 0
    flags |= linux_mount.MNT_FORCE if force else 0
    try:
        linux_mount.umount2(target, flags)
    except OSError as exc:
        if exc.errno != errno.EPERM:
            raise
        _fusermount3_unmount(target, lazy, exc)


def set_read_ahead(major: int, minor: int, kind: str, kib: int) -> None:
    """Let the kernel read ahead that much of a file that is not passed through; after the handshake.

    INIT can only lower it from the default of 128 KiB (fs/fuse/inode.c process_init_reply), at which the
    requests cost more than the data. Without the privilege, or /sys, it stays as it is.
    """
    name = f"{major}:{minor}-fuseblk" if kind == "fuseblk" else f"{major}:{minor}"
    try:
        fd = os.open(f"/sys/class/bdi/{name}/read_ahead_kb", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(fd, b"%d" % kib)
    except OSError:
        pass
    finally:
        os.close(fd)


def unmount_in_thread(
    target: bytes, lazy: bool, force: bool = False, failed: Callable[[OSError], None] | None = None
) -> None:
    """`unmount` in a thread of its own, for the process that answers the mount (for its signal handlers)."""
    import threading

    from voile.linux.process import leave_sched_idle

    def work() -> None:
        leave_sched_idle()
        try:
            unmount(target, lazy, force)
        except OSError as exc:
            if failed is not None:
                failed(exc)

    threading.Thread(target=work, name="unmount", daemon=True).start()


def _fusermount3_unmount(target: bytes, lazy: bool, refused: OSError) -> None:
    argv = [b"fusermount3", b"-u", *([b"-z"] if lazy else []), b"--", target]
    errors_read, errors_write = os.pipe()
    with os.fdopen(errors_read, "rb") as errors:
        try:
            pid = _spawn(argv, dict(os.environ), errors_write)
        except FileNotFoundError:
            raise refused from None
        finally:
            os.close(errors_write)
        message = errors.read().decode(errors="replace").strip().partition("\n")[0]
        _, status = os.waitpid(pid, 0)
    if status != 0:
        error = errno.EBUSY if "busy" in message else errno.EPERM
        raise OSError(error, message or "fusermount3 failed", os.fsdecode(target))


def _spawn(argv: list[bytes], env: dict[str, str], stderr: int) -> int:
    try:
        return os.posix_spawnp(argv[0], argv, env, file_actions=[(os.POSIX_SPAWN_DUP2, stderr, 2)])
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "not installed (package fuse3)", "fusermount3") from None
