"""Small things about processes: prctl, their memory, and the CPU they are on."""

from __future__ import annotations

import os

from voile.linux import libc
from voile.linux.libc import addressof, c_int, c_size_t, c_ulong, c_void_p, check

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36

_prctl = libc.function("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_process_vm_readv = libc.long_function(
    "process_vm_readv", c_int, c_void_p, c_ulong, c_void_p, c_ulong, c_ulong
)


def leave_sched_idle() -> None:
    """Take the usual scheduling policy, if this thread has been started by one that is SCHED_IDLE.

    The loop is for the length of a write(2), and a signal handler may run then (see fuse.sched_idle).
    """
    try:
        if os.sched_getscheduler(0) == os.SCHED_IDLE:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        pass


def set_parent_death_signal(signal: int) -> None:
    """Have the kernel send `signal` to this process when the *thread* that started it ends.

    The parent may have ended before: compare os.getppid() after the call.
    """
    check(_prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0))


def set_name(name: bytes) -> None:
    """The thread's name in ps and top; the kernel keeps 15 bytes of it."""
    buffer = bytearray(name[:15] + b"\0")
    check(_prctl(PR_SET_NAME, addressof(libc.view(buffer)), 0, 0, 0))


def set_dumpable(on: bool) -> None:
    """Whether others of the same user may look into this process (/proc/PID/fd and the like, ptrace(2))."""
    check(_prctl(PR_SET_DUMPABLE, int(on), 0, 0, 0))


def set_child_subreaper(on: bool = True) -> None:
    """Become (or stop being) the parent of orphaned descendants."""
    check(_prctl(PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0))


def process_vm_readv(pid: int, address: int, length: int) -> bytes:
    """`length` bytes of another process's memory.

    Raises OSError: EFAULT when the range is not readable as a whole, ESRCH, EPERM (ptrace access is needed).
    """
    buffer = bytearray(length)
    data = libc.view(buffer)
    local = libc.array(c_size_t, [addressof(data), length])
    remote = libc.array(c_size_t, [address, length])
    count = check(_process_vm_readv(pid, local, 1, remote, 1, 0))
    if count != length:
        raise OSError(14, os.strerror(14))
    return bytes(buffer)


def cpu_in_stat(line: bytes) -> int:
    """The CPU on which a thread ran last, from the contents of its /proc/PID/stat."""
    # Field 2, the name in parentheses, may hold anything: count from the last ")". Field 39 is the CPU.
    return int(line[line.rindex(b")") + 2 :].split(b" ", 37)[36])


def cpu_of(pid: int) -> int:
    """The CPU on which `pid` ran last. Raises OSError when there is no such process."""
    fd = os.open(b"/proc/%d/stat" % pid, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return cpu_in_stat(os.read(fd, 1024))
    finally:
        os.close(fd)
