"""`voile shutdown`: make everything on a mount fail, until it is unmounted."""

from __future__ import annotations

from voile.cli import mounts, report
from voile.cli.arguments import FLAG, Options, parse

HELP = """usage: voile shutdown MOUNTPOINT

Everything on the mount fails with EIO from now on, also for files that are open. Nothing is synced.
Unmounting works; the marker of a volatile mount stays.

Exit status: 0 shut down; 1 usage or permission; 32 not a voile mount.
"""

_OPTIONS: Options = {(b"-h", b"--help"): FLAG}


def main(words: list[bytes]) -> int:
    """Run `voile shutdown`."""
    arguments = parse(words, _OPTIONS)
    if b"-h" in arguments:
        report.tell(HELP)
        return report.OK
    mount, shown = mounts.named(arguments)
    if mount is None:
        return report.MOUNT_FAILURE

    from voile.server import control

    try:
        control.shutdown(mount.mountpoint)
    except OSError as error:
        report.say(f"{shown}: {mounts.why(mount, error)}")
        return report.exit_status(error)
    return report.OK
