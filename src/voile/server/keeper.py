"""Keeps the mount out of the mount namespace of the daemon's main thread.

Theory of operation.  A fuseblk mount that goes asks its daemon for a last answer (DESTROY) and waits for it,
even when killed.  A process that dies first closes its files and then leaves its mount namespace; but the
kernel carries out what both have put off in reverse order (task_work).  So when a daemon that is the last in
the namespace of its own mount is killed, it waits for its own answer, for ever, with its /dev/fuse still open
and its superblock locked; sync(1) then hangs in the whole machine.

Therefore two threads.  The main thread, which has /dev/fuse, moves to a mount namespace of its own, with no
more in it than it needs, so that it does not keep other file systems busy.  The *keeper* stays where the
mount is, and has no files.  However they are killed, the main thread closes /dev/fuse, and the keeper's wait
ends.  The keeper is also who unmounts when a signal asks for it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C half of `signal`, whose other half imports enum
import _thread
import os
import sys

from voile.fuse import mountpoint
from voile.linux import mount as linux_mount
from voile.linux import mountinfo, namespaces

# What the daemon still opens by name: /proc/self/fd, the system log, modules that are imported late.
_NEEDED = (b"/proc", b"/dev", b"/run")


class Keeper:
    """The thread that stays. `tid`: its number, whose /proc/TID/mountinfo shows the mount."""

    def __init__(self, target: bytes) -> None:
        """Start it, and move the calling thread out. Raises OSError; then everything is as before."""
        self._target = target
        self._error: OSError | None = None
        self._ready = _locked()
        self._moved = _locked()
        self._order = _locked()
        self.tid = 0
        self._left = False
        _thread.start_new_thread(self._keep, ())
        self._ready.acquire()
        try:
            if self._error is not None:
                raise self._error
            _leave(target)
            self._left = True
        finally:
            self._moved.release()
            self._ready.acquire()  # it has let go of the mount

    def unmount(self) -> None:
        """Have the mount taken down, lazily. For signal handlers: does not wait."""
        if self._order.locked():
            self._order.release()

    def tidy(self, *programs: bytes) -> None:
        """Let go of the mounts that nobody needs here. Takes a while: the kernel waits for each one.

        `programs` will be started from here.
        """
        points = [mount.mountpoint for mount in mountinfo.read(b"/proc/thread-self/mountinfo")]
        needed = [*_NEEDED, *(os.path.realpath(os.fsencode(entry)) for entry in sys.path if entry)]
        needed += map(os.path.realpath, programs)
        for point in reversed(points):
            if not any(_below(place, point) for place in needed):
                try:
                    linux_mount.umount2(point, linux_mount.MNT_DETACH | linux_mount.UMOUNT_NOFOLLOW)
                except OSError:
                    continue  # went with the one above it

    def _keep(self) -> None:
        root = -1
        try:
            _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())  # they are for the loop
            namespaces.unshare(namespaces.CLONE_FILES)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            # While the main thread drops its copy of the mount, that must not be the last one.
            root = os.open(self._target, os.O_PATH | os.O_CLOEXEC)
            self.tid = _thread.get_native_id()
        except OSError as error:
            self._error = error
        self._ready.release()
        self._moved.acquire()
        if root >= 0:
            os.close(root)
        self._ready.release()
        while self._left:
            self._order.acquire()
            try:
                mountpoint.unmount(self._target, lazy=True)
            except OSError:
                pass  # somebody has been faster


def _locked() -> _thread.LockType:
    lock = _thread.allocate_lock()
    lock.acquire()
    return lock


def _leave(target: bytes) -> None:
    """Move into a new mount namespace without the mount on `target`."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    home = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        try:
            # Or what is unmounted here is so where we come from. EINVAL under chroot(1).
            linux_mount.mount(None, b"/", None, linux_mount.MS_REC | linux_mount.MS_PRIVATE)
            linux_mount.umount2(target, linux_mount.MNT_DETACH)
        except OSError:
            namespaces.setns(home, namespaces.CLONE_NEWNS)
            os.fchdir(root)
            os.chroot(".")
            os.chdir("/")
            raise
    finally:
        os.close(home)
        os.close(root)


def _below(path: bytes, directory: bytes) -> bool:
    return (path + b"/").startswith(directory.rstrip(b"/") + b"/")
