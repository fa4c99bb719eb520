"""Where a daemon without a terminal says what went wrong: the system log, or the kernel's.

The daemon speaks only of bugs (an unexpected exception, with its traceback) and of lost
data, so nothing here is on a path that has to be fast.
"""

from __future__ import annotations

import os

SYSLOG = "/dev/log"
KERNEL = "/dev/kmsg"
# LOG_DAEMON | LOG_ERR of <syslog.h>
_PRIORITY = 3 << 3 | 3
# The kernel cuts a record at 1024 - 32 bytes (kernel/printk/printk.c, LOG_LINE_MAX).
_LONGEST = 900


class Log:
    """Stands in for sys.stderr: each line becomes a record.  Never raises.

    Args:
        syslog: the socket of the system log.
        kernel: used where nobody listens there.
    """

    def __init__(self, syslog: str = SYSLOG, kernel: str = KERNEL) -> None:
        self._paths = (syslog, kernel)
        self._rest = ""

    def write(self, text: str) -> int:
        """Takes part of a line, or several."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line:
                self._record(line)
        return len(text)

    def flush(self) -> None:
        """Ends a line that is not complete."""
        if self._rest:
            self._record(self._rest)
            self._rest = ""

    def _record(self, line: str) -> None:
        text = line.encode("utf-8", "backslashreplace")[:_LONGEST]
        record = b"<%d>voile[%d]: %s" % (_PRIORITY, os.getpid(), text)
        syslog, kernel = self._paths
        if not _send(syslog, record):
            _append(kernel, record + b"\n")


def _send(path: str, record: bytes) -> bool:
    import socket

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as log:
            log.connect(path)
            log.send(record)
    except OSError:
        return False
    return True


def _append(path: str, record: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # no place to say it
    try:
        os.write(fd, record)
    except OSError:
        pass
    finally:
        os.close(fd)
