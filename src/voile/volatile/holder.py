"""The holder: a process that does nothing but keep an error probe, from one mount to the next.

Theory of operation.  The probe is a descriptor of a directory of a mount that nobody else has (see probe).
As long as one is open, that mount is there, and so is the superblock below it; and its fsync compares that
superblock's errors with those at the time when the probe was made.  So whoever can open *the same* probe
later knows of every error in between, whoever else has been told of it.

The next mount opens it through /proc/PID/fd, which needs no more than the same user, and opens the same
directory in the same mount.  That it is the same is not believed of the process, nor of its number: the mount
has a number of its own, which the kernel gives to no other one until the machine is restarted, and which the
record knows.  A process that pretends to be the holder would have to have the genuine probe, and then it is
as good.

The process is /bin/sh, waiting for ever in its builtin `read` for a pipe of which it has both ends: 0.1 MB of
its own.  It first waits for a line that says that the record is written, so it does not outlive a daemon that
is killed before.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C half of `signal`, whose other half imports enum
import os
from errno import ECHILD
from select import POLLIN, poll

from voile.linux import files
from voile.volatile.policy import SHELL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# 0: "go on" from the daemon, then the end of that file. 1: to the daemon: it runs. 3, 4: the pipe.
_SCRIPT = b"echo && read -r go && read -r never <&3"
_PROBE_FD = 5
_PATIENCE_MS = 5000


class Started:
    """A holder that waits for the word to stay."""

    __slots__ = ("_tell", "pid")

    def __init__(self, probe_fd: int, what: bytes) -> None:
        """Start it. `what` is shown by ps(1). Raises OSError."""
        told, self._tell = os.pipe()
        heard, say = os.pipe()
        read_end, write_end = os.pipe()
        try:
            self.pid = _spawn((told, say, read_end, write_end, probe_fd), what)
            os.close(say)
            say = -1
            # Its exec ends posix_spawn(3) a moment before it has closed what it got from us.
            poller = poll()
            poller.register(heard, POLLIN)
            if not poller.poll(_PATIENCE_MS) or not os.read(heard, 1):
                raise OSError(ECHILD, "the shell does not run")
        except BaseException:
            os.close(self._tell)
            raise
        finally:
            for fd in (told, heard, say, read_end, write_end):
                if fd >= 0:
                    os.close(fd)

    def stay(self) -> None:
        """It stays for good."""
        try:
            os.write(self._tell, b"\n")
        finally:
            os.close(self._tell)

    def go(self) -> None:
        """It is not needed."""
        os.close(self._tell)


class Held:
    """A probe that a holder keeps: `fd` is ours, `end` ends the holder."""

    __slots__ = ("_process", "fd", "pid")

    def __init__(self, pid: int, fd: int, process: int) -> None:
        self.pid = pid
        self.fd = fd
        self._process = process

    def take(self) -> int:
        """The descriptor, from now on the caller's."""
        fd, self.fd = self.fd, -1
        return fd

    def end(self) -> None:
        """End the process. What has been taken stays."""
        try:
            _signal.pidfd_send_signal(self._process, _signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.close()

    def close(self) -> None:
        """Leave it as it is."""
        for fd in (self.fd, self._process):
            if fd >= 0:
                os.close(fd)
        self.fd = self._process = -1


def find(pid: int, probe_mount: int) -> Held | None:
    """The probe with that mount, held by the process `pid`, which must be of the same user; None: it is not.

    It makes no difference why not: the process has ended, is another one, or must not be looked at.
    """
    if pid <= 0 or probe_mount <= 0:
        return None
    process = fd = -1
    try:
        # First: from here on, the number can be no other process's.
        process = os.pidfd_open(pid)
        if os.stat(b"/proc/%d" % pid).st_uid == os.geteuid():
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(b"/proc/%d/fd/%d" % (pid, _PROBE_FD), flags)
            same = files.statfs_type(fd) == files.OVERLAYFS_SUPER_MAGIC
            if same and files.unique_mount_id(fd) == probe_mount:
                return Held(pid, fd, process)
    except OSError:
        pass
    for each in (process, fd):
        if each >= 0:
            os.close(each)
    return None


def _spawn(fds: tuple[int, ...], what: bytes) -> int:
    """Start the shell with `fds` as its descriptors 0, 1, 3, 4 and 5, and no other but 2; its pid."""
    # In two steps, since one may have a number that another is to get.
    above = max(fds) + 10
    actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inherited() if fd > 2]
    actions += [(os.POSIX_SPAWN_DUP2, fd, above + index) for index, fd in enumerate(fds)]
    actions += [(os.POSIX_SPAWN_OPEN, 2, b"/dev/null", os.O_RDWR, 0)]
    actions += [(os.POSIX_SPAWN_DUP2, above + index, fd) for index, fd in enumerate((0, 1, 3, 4, _PROBE_FD))]
    actions += [(os.POSIX_SPAWN_CLOSE, above + index) for index in range(len(fds))]
    words = (b"sh", b"-c", _SCRIPT, b"voile-hold", b"error probe of " + what)
    # Its directory would keep a file system busy. No thread of ours goes by the current one.
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir("/")
        return os.posix_spawn(
            SHELL, words, {}, file_actions=actions, setsid=True,
            setsigmask=(), setsigdef=_signal.valid_signals(),
        )  # fmt: skip
    finally:
        os.fchdir(here)
        os.close(here)


def _inherited() -> list[int]:
    """Descriptors that a new process would get: those that the daemon's own caller has left it."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:
            pass  # listdir's own
    return found
