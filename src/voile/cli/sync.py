"""`voile sync`: has the upper file system of a mount lost data since the mount?"""

from __future__ import annotations

import errno

from voile.cli import mounts, report

HELP = """usage: voile sync MOUNTPOINT

Ask whether data has been lost since the mount. On a volatile mount nothing is synced; on others the upper
file system is, first. The answer is exact on every mount, also where sync -f is not asked of voile.

Exit status: 0 nothing was lost; 1 usage; 32 not a voile mount; 74 the upper file system has lost data, or the
mount has been shut down.
"""


def main(words: list[bytes]) -> int:
    """Run `voile sync`."""
    found = mounts.only(words, HELP)
    if isinstance(found, int):
        return found
    mount, shown = found

    from voile.server import control

    try:
        control.sync(mount.mountpoint)
    except control.LostData as error:
        return mounts.say_lost(shown, error)
    except OSError as error:
        report.say(f"{shown}: {mounts.why(mount, error)}")
        return report.LOST_DATA if error.errno == errno.EIO else report.exit_status(error)
    return report.OK
