"""One live mount per upper and work directory.

The kernel marks the inodes (`ovl_inuse_trylock`); we lock the directories with flock(2),
which ends with the daemon however it ends.  Container engines unmount and mount the same
upper at once, while the old daemon may still be ending, and unmount lazily: so a lock is
waited for, and when its holder's mount is gone from its mount table it is taken over:
whoever does so gets the lock as soon as the old holder ends.

The holder writes who it is (pid and device number of its mount) beside the work directory's
``work``.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from errno import EBUSY

from voile.linux import mountinfo, trees

RECORD = b"voile.mount"
WAIT_S = 2.0
_STEP_S = 0.01


class InUse(OSError):
    """The directory belongs to a live mount (EBUSY)."""


def take(fd: int, workdir_fd: int, what: str, path: bytes, deadline: float) -> bool:
    """Locks the directory `fd` for as long as it, or a copy inherited by fork, stays open.

    `deadline` (time.monotonic) is until when to wait for another holder: `WAIT_S` from now.

    Returns:
        False when its holder is a mount that is detached, and still has the lock: `take_later`.

    Raises:
        InUse: its holder is a live mount, or cannot be told from one.
    """
    _refuse_kernel_overlay(fd, what, path)
    while not _lock(fd):
        if time.monotonic() >= deadline:
            break
        time.sleep(_STEP_S)
    else:
        return True
    if _holder_is_detached(workdir_fd):
        return False
    raise InUse(EBUSY, f"{what} is in use by another mount", path)


def _refuse_kernel_overlay(fd: int, what: str, path: bytes) -> None:
    """Kernel overlayfs takes no lock that we could see: its mounts are looked for in the mount table.

    It would itself only warn, and what both then do to the directory is undefined.
    """
    # By name only: to stat(2) other people's paths can take for ever.
    real = os.readlink(b"/proc/self/fd/%d" % fd)
    for mount in mountinfo.read():
        if mount.fstype != b"overlay":
            continue
        for option in mount.super_options.split(b","):
            if option in (b"upperdir=" + real, b"workdir=" + real):
                where = os.fsdecode(mount.mountpoint)
                raise InUse(EBUSY, f"{what} is in use by the overlay mounted on '{where}'", path)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def take_later(fd: int) -> None:
    """Has a thread wait for the lock of the detached mount, whose end must not leave ours without one."""
    import threading

    threading.Thread(target=fcntl.flock, args=(fd, fcntl.LOCK_EX), name="inuse", daemon=True).start()


def record(workdir_fd: int, major: int, minor: int, tid: int) -> None:
    """Writes down who holds the lock: a thread that sees the mount, and the mount's device number."""
    # Whatever is there may be a fifo or a device: it must not even be opened.
    trees.remove(workdir_fd, RECORD)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(RECORD, flags, 0o600, dir_fd=workdir_fd)
    try:
        os.write(fd, b"%d %d %d\n" % (tid, major, minor))
    finally:
        os.close(fd)


def erase(workdir_fd: int, tid: int) -> None:
    """Removes the record of that thread at unmount; another's is left alone."""
    holder = _read(workdir_fd)
    if holder is not None and holder[0] == tid:
        os.unlink(RECORD, dir_fd=workdir_fd)


def _read(workdir_fd: int) -> tuple[int, int, int] | None:
    try:
        if not stat.S_ISREG(os.stat(RECORD, dir_fd=workdir_fd, follow_symlinks=False).st_mode):
            return None
        fd = os.open(RECORD, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=workdir_fd)
    except OSError:
        return None
    try:
        pid, major, minor = (int(word) for word in os.read(fd, 100).split())
        return pid, major, minor
    except ValueError:
        return None
    finally:
        os.close(fd)


def _holder_is_detached(workdir_fd: int) -> bool:
    """Whether the lock's holder is known, and its mount is in its mount table no more.

    A holder that cannot be looked at (another pid namespace) counts as live.
    """
    holder = _read(workdir_fd)
    if holder is None:
        return False
    pid, major, minor = holder
    try:
        mounts = mountinfo.read(b"/proc/%d/mountinfo" % pid)
    except OSError:
        return False
    return all(mount.device != (major, minor) for mount in mounts)
