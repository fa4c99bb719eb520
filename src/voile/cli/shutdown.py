"""`voile shutdown`: make everything on a mount fail, until it is unmounted."""

from __future__ import annotations

from voile.cli import mounts, report

HELP = """usage: voile shutdown MOUNTPOINT

Everything on the mount fails with EIO from now on, also for files that are open. Nothing is synced.
Unmounting works; the marker of a volatile mount stays.

Exit status: 0 shut down; 1 usage or permission; 32 not a voile mount.
"""


def main(words: list[bytes]) -> int:
    """Run `voile shutdown`."""
    found = mounts.only(words, HELP)
    if isinstance(found, int):
        return found
    mount, shown = found

    from voile.server import control

    try:
        control.shutdown(mount.mountpoint)
    except OSError as error:
        report.say(f"{shown}: {mounts.why(mount, error)}")
        return report.exit_status(error)
    return report.OK
