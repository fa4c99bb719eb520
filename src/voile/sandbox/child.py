"""A command as if voile were not there: exit status, signals, job control.

Theory of operation.  The command stays in our process group, so that the terminal and the shell
that started us see one job.  Ctrl-C, Ctrl-\\ and Ctrl-Z reach it directly, from the kernel; so does
SIGWINCH.  We block all of these and take them with sigwaitinfo(2), which leaves no window between
"look" and "wait".  What another *process* sent to us is passed on.  We stop only when the command
has really stopped (it may catch Ctrl-Z, or belong to a process group of its own by then, as an
interactive shell does), by the same signal; when we are continued, we continue it.
"""

from __future__ import annotations

import errno
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NOT_FOUND = 127
NOT_EXECUTABLE = 126

_PASSED_ON = frozenset(
    (
        signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
        signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH, signal.SIGALRM,
    )
)  # fmt: skip
_WAITED = _PASSED_ON | {signal.SIGCHLD}

# Set to "ignore" by the Python interpreter; a program expects them as they are after login.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class ExecError(Exception):
    """The command could not be started. `status` is the exit status that shells give for the reason."""

    def __init__(self, command: bytes, error: int) -> None:
        super().__init__(f"{os.fsdecode(command)}: {os.strerror(error)}")
        self.status = NOT_FOUND if error in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE


def run(
    command: list[bytes], prepare: Callable[[], dict[bytes, bytes]], started: Callable[[], None]
) -> int:
    """Run `command` and return its exit status (128+N when signal N killed it).

    `prepare` is called in the child just before the exec and returns the environment; `started` when the
    command runs. Raises ExecError when the command cannot be executed, OSError when `prepare` failed.
    """
    ignores_children = signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    # Inherited "ignore" would have the kernel reap the child behind our back.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    original = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED)
    try:
        pid = _spawn(command, prepare, original, ignores_children)
        started()
        status = _wait(pid)
    finally:
        # Ctrl-C was the command's: it must not hit us now that the command has ended.
        while signal.sigtimedwait(_WAITED, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, original)
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status)
    return os.WEXITSTATUS(status)


def _spawn(
    command: list[bytes],
    prepare: Callable[[], dict[bytes, bytes]],
    mask: set[signal.Signals] | set[int],
    ignores_children: bool,
) -> int:
    # Closed by a successful exec; otherwise it tells which step failed, and why.
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        step = b"p"
        try:
            environment = prepare()
            for ignored in _IGNORED_BY_PYTHON:
                signal.signal(ignored, signal.SIG_DFL)
            if ignores_children:
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            step = b"x"
            _exec(command, environment)
        except OSError as error:
            os.write(tell, b"%s%d" % (step, error.errno or errno.EIO))
        finally:
            os._exit(125)
    os.close(tell)
    with os.fdopen(told, "rb") as report:
        failure = report.read()
    if failure:
        os.waitpid(pid, 0)
        number = int(failure[1:])
        if failure[:1] == b"x":
            raise ExecError(command[0], number)
        raise OSError(number, os.strerror(number))
    return pid


def _exec(command: list[bytes], environment: dict[bytes, bytes]) -> None:
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    # A script without "#!": shells and execvp(3) run it with sh.
    path = command[0] if b"/" in command[0] else _which(command[0], environment)
    os.execve(b"/bin/sh", [b"sh", path, *command[1:]], environment)


def _which(name: bytes, environment: dict[bytes, bytes]) -> bytes:
    for directory in environment.get(b"PATH", os.fsencode(os.defpath)).split(b":"):
        path = os.path.join(directory, name)
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    return name


def _wait(pid: int) -> int:
    """Wait for the end of the child `pid`; return its wait status."""
    session_leader = os.getsid(0) == os.getpid()
    while True:
        info = signal.sigwaitinfo(_WAITED)
        if info.si_signo == signal.SIGCHLD:
            status = _follow(pid)
            if status is not None:
                return status
            continue
        # si_code <= 0: sent by a process. The kernel's own (the terminal's) have reached the command as well,
        # except the hang-up of a terminal whose session we lead.
        from_process = info.si_code <= 0 and info.si_pid != pid
        if from_process or (info.si_signo == signal.SIGHUP and session_leader):
            os.kill(pid, info.si_signo)  # not reaped yet, so the number is still its own


def _follow(pid: int) -> int | None:
    """Do what the command did: stop, and go on. Its wait status when it has ended."""
    stopped = False
    while True:
        changed, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        if not changed:
            if stopped:
                # Only we were continued: fg sends SIGCONT to our group, and it leads one of its own.
                os.kill(pid, signal.SIGCONT)
            return None
        if os.WIFCONTINUED(status):
            # Not by us: it may have been stopped again meanwhile, and must then stay so.
            stopped = False
        elif os.WIFSTOPPED(status):
            _stop_too(pid, os.WSTOPSIG(status))
            stopped = True
        else:
            return status


def _stop_too(pid: int, number: int) -> None:
    """The command was stopped by the signal `number`: stop likewise, and return when continued."""
    terminal = _open_terminal()
    try:
        group = os.getpgid(pid)
        was_in_front = terminal >= 0 and os.tcgetpgrp(terminal) == group != os.getpgrp()
        os.kill(os.getpid(), number)
        if number in _PASSED_ON:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))  # stops here
            signal.pthread_sigmask(signal.SIG_BLOCK, (number,))
        # The shell has put *us* in front (fg); if the command leads a group of its own, that is its place.
        if was_in_front and os.tcgetpgrp(terminal) == os.getpgrp():
            os.tcsetpgrp(terminal, group)
    except ProcessLookupError:
        pass
    finally:
        if terminal >= 0:
            os.close(terminal)


def _open_terminal() -> int:
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return -1
