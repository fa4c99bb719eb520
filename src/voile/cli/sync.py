"""`voile sync`: has the upper file system of a mount lost data since the mount?"""

from __future__ import annotations

import errno

from voile.cli import mounts, report
from voile.cli.arguments import FLAG, Options, parse

HELP = """usage: voile sync MOUNTPOINT

Ask whether data has been lost since the mount. On a volatile mount nothing is synced; on others the upper
file system is, first. The answer is exact on every mount, also where sync -f is not asked of voile.

Exit status: 0 nothing was lost; 1 usage; 32 not a voile mount; 74 the upper file system has lost data, or the
mount has been shut down.
"""

_OPTIONS: Options = {(b"-h", b"--help"): FLAG}


def main(words: list[bytes]) -> int:
    """Run `voile sync`."""
    arguments = parse(words, _OPTIONS)
    if b"-h" in arguments:
        report.tell(HELP)
        return report.OK
    mount, shown = mounts.named(arguments)
    if mount is None:
        return report.MOUNT_FAILURE

    from voile.server import control

    try:
        control.sync(mount.mountpoint)
    except control.LostData as error:
        report.say(f"{shown}: the upper file system has lost data: {lost(error)}")
        return report.LOST_DATA
    except OSError as error:
        report.say(f"{shown}: {mounts.why(mount, error)}")
        return report.LOST_DATA if error.errno == errno.EIO else report.exit_status(error)
    return report.OK


def lost(error: OSError) -> str:
    """Say what an errno of lost data is, in words and by name."""
    return f"{error.strerror} ({errno.errorcode.get(error.errno or 0, error.errno)})"
