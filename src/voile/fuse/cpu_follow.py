"""Keep the loop on the CPU of its client.

A request and its answer cost 5 µs when both processes run on one CPU and ten times that when each answer has
to wake an idle one. The scheduler cannot know that the two never run at the same time; we can. Now and then
(the device asks after every 16th request: reading /proc costs about 3 µs) compare the client's CPU with ours,
and after three mismatches in a row move there, and see that the client stays (see sched_idle).
"""

from __future__ import annotations

import os

from voile.fuse.sched_idle import SchedIdle
from voile.linux.process import cpu_in_stat

_PATIENCE = 3
_MAX_OPEN = 8


class CpuFollow:
    """Follows the clients whose thread ids are given to `note`. One per loop; affects the calling thread."""

    def __init__(self) -> None:
        self._allowed = os.sched_getaffinity(0)
        self._cpu = -1  # where we are pinned; -1: wherever the scheduler likes
        self._mismatches = 0
        self._stats: dict[int, int] = {}  # thread id → fd of its stat file, oldest first
        #: How the loop lets the client stay where it is.
        self.idle = SchedIdle()

    def note(self, pid: int, requests: int) -> None:
        """So many *requests* have been answered, the last one of thread *pid* (0: unknown)."""
        if self.idle.on:
            self.idle.look(requests)
        if pid == 0:
            return
        cpu = self._cpu_of(pid)
        if cpu < 0 or cpu == self._cpu:
            self._mismatches = 0
            return
        self._mismatches += 1
        if self._mismatches >= _PATIENCE:
            self._mismatches = 0
            if cpu in self._allowed:
                try:
                    os.sched_setaffinity(0, (cpu,))
                except OSError:  # the CPU went offline or out of our cpuset
                    return
                self._cpu = cpu
                self.idle.begin()

    def _cpu_of(self, pid: int) -> int:
        fd = self._stats.get(pid, -1)
        try:
            if fd < 0:
                fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
                if len(self._stats) >= _MAX_OPEN:
                    self._drop(next(iter(self._stats)))
                self._stats[pid] = fd
            return cpu_in_stat(os.pread(fd, 1024, 0))
        except (OSError, ValueError, IndexError):  # gone (ESRCH), or not visible from here
            self._drop(pid)
            return -1

    def _drop(self, pid: int) -> None:
        fd = self._stats.pop(pid, -1)
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Close the cached files and give the thread its CPUs back."""
        self.idle.close()
        for pid in list(self._stats):
            self._drop(pid)
        if self._cpu >= 0:
            self._cpu = -1
            os.sched_setaffinity(0, self._allowed)
