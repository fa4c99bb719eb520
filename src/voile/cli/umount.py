"""`voile umount`: unmount, and wait until the daemon has let go of the layers."""

from __future__ import annotations

import errno
import os

from voile.cli import mounts, report
from voile.cli.arguments import FLAG, Options, parse
from voile.overlay.params import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.linux.mountinfo import Mount

HELP = """usage: voile umount [-l] [--sync] MOUNTPOINT

Unmount, and wait until the daemon has ended. Nothing is synced for a volatile mount without --sync.

  -l, --lazy    detach now, end when nobody uses it any more
  --sync        sync, verify that nothing was lost since the mount, and only then unmount: the upper of a
                volatile mount is an ordinary one then, without the marker

Exit status: 0 unmounted; 1 usage or permission; 32 failed; 74 data was lost (still mounted, marker in place).
"""

_OPTIONS: Options = {(b"-l", b"--lazy"): FLAG, (b"--sync",): FLAG, (b"-h", b"--help"): FLAG}

# How long to wait for the daemon; it may live on when a copy of the mount is in another namespace.
_GRACE_MS = 2000
# How long to wait for closed files to be closed in the daemon as well: the kernel tells it a moment later.
_RELEASE_S = 1.0


def main(words: list[bytes]) -> int:
    """Run `voile umount`."""
    arguments = parse(words, _OPTIONS)
    if b"-h" in arguments:
        report.tell(HELP)
        return report.OK
    mount, shown = mounts.named(arguments)
    if mount is None:
        return report.MOUNT_FAILURE
    if not mounts.is_voile(mount):
        report.say(f"{shown}: mounted, but not by voile ({os.fsdecode(mount.fstype)})")
        return report.MOUNT_FAILURE
    lazy = b"-l" in arguments
    sync = b"--sync" in arguments
    if lazy and sync:
        raise UsageError("--lazy and --sync exclude each other: who still uses it could still change it")
    daemon = -1 if lazy else _open_daemon(mount)
    status = _freeze(mount, shown) if sync else report.OK
    if status == report.OK:
        status = _unmount(mount, shown, lazy, thaw=sync)
    if status == report.OK and daemon >= 0 and not _wait(daemon) and sync:
        report.say(f"{shown}: unmounted here, but still in use elsewhere: not synced for good")
        return report.MOUNT_FAILURE
    return status


def _unmount(mount: Mount, shown: str, lazy: bool, thaw: bool) -> int:
    from voile.fuse import mountpoint

    try:
        mountpoint.unmount(mount.mountpoint, lazy)
    except OSError as error:
        if thaw:
            from voile.server import control

            try:
                control.thaw(mount.mountpoint)
            except OSError:
                pass  # it does so anyway when we end
        if error.errno == errno.EBUSY:
            report.say(f"{shown}: in use (an open file, or a current directory; --lazy detaches it anyway)")
        else:
            report.say(f"{shown}: {error.strerror}")
        return report.exit_status(error)
    return report.OK


def _freeze(mount: Mount, shown: str) -> int:
    """Sync, so that nothing is left to do; then again, while changes wait for the unmount."""
    import time

    from voile.cli import checkpoint
    from voile.server import control

    status = checkpoint.take(mount, shown)
    if status != report.OK:
        return status
    until = time.monotonic() + _RELEASE_S
    while True:
        try:
            control.freeze(mount.mountpoint)
        except OSError as error:
            if error.errno == errno.EBUSY and time.monotonic() < until:
                time.sleep(0.01)
                continue
            return checkpoint.failed(mount, shown, error)
        return report.OK


def _open_daemon(mount: Mount) -> int:
    """Return a pidfd of the mount's daemon, -1 when it cannot be known."""
    try:
        pid = mounts.ask(mount)["pid"]
        return os.pidfd_open(pid) if pid else -1
    except (OSError, ValueError, KeyError):
        return -1


def _wait(daemon: int) -> bool:
    from select import POLLIN, poll

    poller = poll()
    poller.register(daemon, POLLIN)
    ended = bool(poller.poll(_GRACE_MS))
    os.close(daemon)
    return ended
