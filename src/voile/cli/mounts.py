"""Which voile mounts there are, as this process sees them."""

from __future__ import annotations

import errno
import os

from voile.cli import report
from voile.cli.arguments import FLAG, Options, parse
from voile.linux import mountinfo
from voile.overlay.params import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from voile.cli.arguments import Arguments

_HELP_ONLY: Options = {(b"-h", b"--help"): FLAG}
_UNREACHABLE = (errno.ENOTCONN, errno.ECONNABORTED)


def is_voile(mount: mountinfo.Mount) -> bool:
    """Whether mountinfo says that it is ours (a mount with another subtype= is not recognised)."""
    return mount.fstype in (b"fuse.voile", b"fuseblk.voile")


def find(point: bytes) -> mountinfo.Mount | None:
    """Return the topmost mount whose mount point is exactly `point`, None when there is none."""
    # Never by stat(2): a mount whose daemon hangs would hang us.
    parent, name = os.path.split(os.path.abspath(point))
    path = os.path.join(os.path.realpath(parent), name)
    for candidate in (path, os.path.realpath(path) if _is_link(path) else path):
        found = [mount for mount in mountinfo.read() if mount.mountpoint == candidate]
        if found:
            return found[-1]
    return None


def named(arguments: Arguments) -> tuple[mountinfo.Mount | None, str]:
    """The mount that the only operand of a command names, and that operand for messages.

    That there is no mount, None, has been said.  Raises UsageError for more or fewer operands.
    """
    if len(arguments.operands) != 1:
        raise UsageError(f"one mount point is needed, {len(arguments.operands)} operands given")
    shown = os.fsdecode(arguments.operands[0])
    mount = find(arguments.operands[0])
    if mount is None:
        report.say(f"{shown}: not a mount point")
    return mount, shown


def only(words: list[bytes], usage: str) -> tuple[mountinfo.Mount, str] | int:
    """As `named`, of a command that has no options but --help, and `usage` for that; or its exit status."""
    arguments = parse(words, _HELP_ONLY)
    if b"-h" in arguments:
        report.tell(usage)
        return report.OK
    mount, shown = named(arguments)
    return report.MOUNT_FAILURE if mount is None else (mount, shown)


def _is_link(path: bytes) -> bool:
    try:
        return os.path.islink(path)
    except OSError:
        return False


def ask(mount: mountinfo.Mount) -> dict[str, Any]:
    """Return the status object of a mount; for one whose daemon is gone, one that says so.

    Raises OSError: ENOTTY and others when it is not voile, EPERM when it is somebody else's.
    """
    from voile.server import control

    try:
        return control.status(mount.mountpoint)
    except OSError as error:
        if error.errno not in _UNREACHABLE or not is_voile(mount):
            raise
        return _dead(mount, error)


def why(mount: mountinfo.Mount, error: OSError) -> str:
    """Say why a question could not be asked."""
    if is_voile(mount):
        return error.strerror or str(error)
    return f"not a voile mount ({os.fsdecode(mount.fstype)})"


def say_lost(shown: str, error: OSError) -> int:
    """Say that data was lost, by the words and the name of the errno; the exit status for it."""
    name = errno.errorcode.get(error.errno or 0, error.errno)
    report.say(f"{shown}: the upper file system has lost data: {error.strerror} ({name})")
    return report.LOST_DATA


def _dead(mount: mountinfo.Mount, error: OSError) -> dict[str, Any]:
    number = error.errno or errno.ENOTCONN
    return {
        "mountpoint": os.fsdecode(mount.mountpoint),
        "lowerdir": [],
        "datadir": [],
        "upperdir": None,
        "workdir": None,
        "pid": None,
        "volatile": False,
        "metacopy": False,
        "state": "shutdown",
        "error": {"errno": number, "name": errno.errorcode.get(number, ""), "since": None},
        "errors": None,
        "error_code": None,
        "read_only": True,
        "probe": "none",
        "watched": None,
        "not_watched": None,
        "checkpoint": None,
        "reused": False,
        "hold": False,
        "poll_s": None,
        "syncfs": "none",
        "passthrough": False,
        "omitted": dict.fromkeys(("fsync", "fdatasync", "fsyncdir", "syncfs", "osync"), 0),
        "calibration": None,
        "saved_s": None,
        "uptime_s": None,
    }
