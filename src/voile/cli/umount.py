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

HELP = """usage: voile umount [-l] MOUNTPOINT

Unmount, and wait until the daemon has ended. Nothing is synced for a volatile mount.

  -l, --lazy    detach now, end when nobody uses it any more

Exit status: 0 unmounted; 1 usage or permission; 32 failed.
"""

_OPTIONS: Options = {(b"-l", b"--lazy"): FLAG, (b"-h", b"--help"): FLAG}

# How long to wait for the daemon; it may live on when a copy of the mount is in another namespace.
_GRACE_MS = 2000


def main(words: list[bytes]) -> int:
    """Run `voile umount`."""
    arguments = parse(words, _OPTIONS)
    if b"-h" in arguments:
        report.tell(HELP)
        return report.OK
    if len(arguments.operands) != 1:
        raise UsageError(f"one mount point is needed, {len(arguments.operands)} operands given")
    point = arguments.operands[0]
    shown = os.fsdecode(point)
    mount = mounts.find(point)
    if mount is None:
        report.say(f"{shown}: not mounted")
        return report.MOUNT_FAILURE
    if not mounts.is_voile(mount):
        report.say(f"{shown}: mounted, but not by voile ({os.fsdecode(mount.fstype)})")
        return report.MOUNT_FAILURE
    lazy = b"-l" in arguments
    daemon = -1 if lazy else _open_daemon(mount)

    from voile.fuse import mountpoint

    try:
        mountpoint.unmount(mount.mountpoint, lazy)
    except OSError as error:
        if error.errno == errno.EBUSY:
            report.say(f"{shown}: in use (an open file, or a current directory; --lazy detaches it anyway)")
        else:
            report.say(f"{shown}: {error.strerror}")
        return report.exit_status(error)
    if daemon >= 0:
        _wait(daemon)
    return report.OK


def _open_daemon(mount: Mount) -> int:
    """Return a pidfd of the mount's daemon, -1 when it cannot be known."""
    try:
        pid = mounts.ask(mount)["pid"]
        return os.pidfd_open(pid) if pid else -1
    except (OSError, ValueError, KeyError):
        return -1


def _wait(daemon: int) -> None:
    from select import POLLIN, poll

    poller = poll()
    poller.register(daemon, POLLIN)
    poller.poll(_GRACE_MS)
    os.close(daemon)
