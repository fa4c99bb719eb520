"""What the commands say, and the exit statuses they share."""

from __future__ import annotations

import errno
import os

# Exit bits of mount(8) and its helpers, used by every command that is not `run`.
OK = 0
USAGE = 1  # or permission
SYSTEM = 2  # out of memory, cannot fork, ...
INTERNAL = 4
INTERRUPTED = 8
MOUNT_FAILURE = 32
LOST_DATA = 74  # EX_IOERR of <sysexits.h>: of all that ask whether data was lost

_SYSTEM_ERRORS = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
_PERMISSION_ERRORS = (errno.EPERM, errno.EACCES)


def say(message: str) -> None:
    """Write one line to stderr, whatever the names in it contain; bytes that are not UTF-8 as they are."""
    line = "voile: " + message.replace("\n", "\\n").replace("\r", "\\r") + "\n"
    _write(2, line)


def tell(text: str) -> None:
    """Write data to stdout; bytes that are not UTF-8 as they are. Exits when it cannot be written."""
    error = _write(1, text)
    if error is not None and error.errno != errno.EPIPE:
        say(f"standard output: {error.strerror}")
        raise SystemExit(SYSTEM)


def _write(fd: int, text: str) -> OSError | None:
    data = text.encode("utf-8", "surrogateescape")
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        return error  # who reads stderr no more cannot be told
    return None


def open_standard_files() -> None:
    """Open what the caller has closed of 0, 1 and 2: another file of ours must not get such a number.

    A command that is executed later finds them closed, as without us.
    """
    try:
        while (fd := os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)) < 3:
            pass
        os.close(fd)
    except OSError:
        pass


def describe(error: Exception) -> str:
    """Say in one line what an exception means: the path (if any) and the reason."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if isinstance(path, str | bytes)]
    return ": ".join([*paths, error.strerror])


def exit_status(error: Exception) -> int:
    """Return the exit bit of mount(8) for what went wrong in a mount or unmount."""
    number = getattr(error, "errno", None)
    if number in _SYSTEM_ERRORS:
        return SYSTEM
    if number in _PERMISSION_ERRORS:
        return USAGE
    return MOUNT_FAILURE
