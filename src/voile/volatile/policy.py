"""What a volatile mount does when its upper file system has lost data: `errors=` and `error_code=`."""

from __future__ import annotations

import errno
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Sync calls fail, everything else goes on, as on the kernel's volatile overlayfs.
CONTINUE = "continue"
# Besides, nothing can be changed any more: EROFS.
REMOUNT_RO = "remount-ro"
# Nothing works any more: EIO.
SHUTDOWN = "shutdown"
ERRORS = (CONTINUE, REMOUNT_RO, SHUTDOWN)

# Sync calls fail with the latest error of the file system, or always with EIO.
LATEST = "latest"
EIO = "eio"
ERROR_CODES = (LATEST, EIO)

# How errors are seen (see chain): by the best of the following that can be made, or by just that one.
AUTO = "auto"
OVERLAY = "overlay"  # made in process
USERNS = "userns"  # made by a child in a user namespace
INODE = "inode"  # single files are watched
PROBES = (AUTO, OVERLAY, USERNS, INODE)

# How syncfs(2) on the mount is made to answer: by the best of these that works, by just that one, or not.
FUSEBLK = "fuseblk"  # the kernel asks
CANARY = "canary"  # it is made to wait, see server.canary
NONE = "none"
SYNCFS = (AUTO, FUSEBLK, CANARY, NONE)

# The program that holds a probe between two mounts (see holder).
SHELL = b"/bin/sh"


class Policy:
    """The options, checked: `errors` is one of ERRORS, `error_code` one of ERROR_CODES."""

    __slots__ = ("error_code", "errors")

    def __init__(self, errors: str = CONTINUE, error_code: str = LATEST) -> None:
        self.errors = errors
        self.error_code = error_code

    def answer(self, code: int) -> int:
        """The errno that a sync call returns after the errno `code` of the file system."""
        return errno.EIO if self.error_code == EIO else code


def stamp(seconds: float) -> str:
    """A time as it is shown: RFC 3339, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def describe(code: int, since: float | None) -> dict[str, Any]:
    """An error as programs are told of it; `since`: when the first one was noticed."""
    return {
        "errno": code,
        "name": errno.errorcode.get(code, str(code)),
        "since": None if since is None else stamp(since),
    }


def message(code: int, since: float, upper: str, errors: str) -> str:
    """The line that is logged, once, for a failed mount. `upper`: its file system, as the user knows it."""
    name = errno.errorcode.get(code, str(code))
    consequence = {
        CONTINUE: "sync calls fail from now on",
        REMOUNT_RO: "the mount is read-only from now on",
        SHUTDOWN: "the mount is shut down",
    }[errors]
    return f"{stamp(since)}: {upper} has lost data: {os.strerror(code)} ({name}); {consequence}"
