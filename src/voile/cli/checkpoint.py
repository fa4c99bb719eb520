"""`voile checkpoint`: have everything on the disk, and know that it is there."""

from __future__ import annotations

import errno
import os

from voile.cli import mounts, report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from voile.linux.mountinfo import Mount

HELP = """usage: voile checkpoint MOUNTPOINT

Sync the upper file system, also of a volatile mount, and verify that nothing was lost since the mount. What
was changed before is on the disk then; the mount goes on as before.

Exit status: 0 all is on the disk; 1 usage or permission; 32 not a voile mount, or busy; 74 data was lost.
"""

_PROGRESS_S = 0.2


def main(words: list[bytes]) -> int:
    """Run `voile checkpoint`."""
    found = mounts.only(words, HELP)
    if isinstance(found, int):
        return found
    mount, shown = found
    return take(mount, shown)


def take(mount: Mount, shown: str) -> int:
    """Take a checkpoint, and show how it goes if stderr is a terminal; an exit status."""
    from voile.server import control

    end = _progress() if os.isatty(2) else lambda: None
    problem = None
    try:
        control.checkpoint(mount.mountpoint)
    except OSError as error:
        problem = error
    finally:
        end()
    return report.OK if problem is None else failed(mount, shown, problem)


def failed(mount: Mount, shown: str, error: OSError) -> int:
    """Say why there is no checkpoint; the exit status."""
    from voile.server.control import LostData

    if isinstance(error, LostData):
        return mounts.say_lost(shown, error)
    if error.errno == errno.EBUSY:
        report.say(f"{shown}: in use (a file is open for writing, or another checkpoint is being taken)")
    else:
        report.say(f"{shown}: {mounts.why(mount, error)}")
    return report.LOST_DATA if error.errno == errno.EIO else report.exit_status(error)


def _progress() -> Callable[[], None]:
    """Show how much of the machine's memory is waiting for the disk, until what is returned is called."""
    import threading

    stop = threading.Event()

    def show() -> None:
        while not stop.wait(_PROGRESS_S):
            os.write(2, f"\rsyncing: {_dirty_mib()} MiB dirty \x1b[K".encode())
        os.write(2, b"\r\x1b[K")

    thread = threading.Thread(target=show, daemon=True)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()

    return end


def _dirty_mib() -> int:
    kib = 0
    with open("/proc/meminfo", "rb") as file:
        for line in file:
            name, _, rest = line.partition(b":")
            if name in (b"Dirty", b"Writeback"):
                kib += int(rest.split()[0])
    return kib >> 10
