"""Have the scheduler leave the client on the CPU that it shares with the loop.

An answer wakes the client while the loop still runs. The scheduler then looks for an idle CPU for it
and, if there is one, moves it there: a wake-up between CPUs for every answer, and another for every request.
But a CPU that runs only SCHED_IDLE threads is an idle one (kernel/sched/fair.c, select_idle_sibling and
sched_idle_cpu). So the loop is of that policy while it writes an answer, and no longer: the client stays, and
runs at once. They take turns on one CPU, which makes requests two to three times as fast, although changing
the policy twice costs 3 µs.

The price: if the client goes on computing, or others want that CPU, the loop gets it back late: it has to
wait for next to nothing of a share, some milliseconds. So this is begun only when few threads of the machine
run, and stops when the loop has had to wait; the scheduler counts that (/proc/PID/schedstat).
"""

from __future__ import annotations

import os
import time

_PRIORITY = os.sched_param(0)
# Long for others, if there are any (ns a request); a client that computes meanwhile does no harm. So often in
# a row is enough.
_LONG = 250_000
_PATIENCE = 3
# Copying this many bytes takes no time that matters when the share of a CPU is next to nothing.
_LARGE = 65536
# What others must not be made to wait for again (ns).
_TOO_LONG = 20_000_000
# How long to do without it when it was no good idea (s); twice as long each time, unless it was for longer.
_FIRST_PAUSE, _LAST_PAUSE = 0.5, 16.0


class SchedIdle:
    """The policy of the calling thread. `on`: answers are to be written with `write` now. One per thread."""

    def __init__(self) -> None:
        self.on = False
        self._since = 0.0
        self._not_before = 0.0
        self._pause = _FIRST_PAUSE
        self._most = max(2, (os.cpu_count() or 1) // 2)  # threads that run: the loop, its client, others
        self._waited = 0
        self._long_ones = 0
        self._schedstat = self._loadavg = -1

    def write(self, fd: int, answer: bytes) -> int:
        """os.write, giving way to whom it wakes."""
        self._give_way()
        try:
            return os.write(fd, answer)
        finally:
            self._come_back()

    def writev(self, fd: int, answer: tuple[bytes, bytes | bytearray | memoryview]) -> int:
        """os.writev, likewise, unless copying it takes long."""
        if len(answer[1]) > _LARGE:
            return os.writev(fd, answer)
        self._give_way()
        try:
            return os.writev(fd, answer)
        finally:
            self._come_back()

    # An answer must be written, and its error told, whatever becomes of the policy.

    def _give_way(self) -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, _PRIORITY)
        except OSError:
            self._never_again()

    def _come_back(self) -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_OTHER, _PRIORITY)
        except OSError as exc:
            if self.on:
                import sys

                print(f"voile: the scheduling policy cannot be set back: {exc}", file=sys.stderr)
            self._never_again()

    def _never_again(self) -> None:
        self.on = False
        self._not_before = float("inf")

    def begin(self) -> None:
        """From now on, if there is no reason against it."""
        now = time.monotonic()
        if self.on or now < self._not_before:
            return
        self._not_before = float("inf")
        try:
            if self._schedstat < 0 and not self._prepare():
                return
            self._not_before = now + _FIRST_PAUSE  # if the machine is busy
            if self._running() <= self._most and os.sched_getscheduler(0) == os.SCHED_OTHER:
                self._waited = self._run_delay()
                self.on, self._since, self._long_ones = True, now, 0
        except (OSError, ValueError, IndexError, RuntimeError):  # the last one: no thread
            return  # something that cannot be done here: not again

    def look(self, requests: int) -> None:
        """After so many requests: has the loop had to wait for its CPU?"""
        before = self._waited
        try:
            self._waited = self._run_delay()
        except (OSError, ValueError, IndexError):
            self._never_again()
            return
        delay = self._waited - before
        self._long_ones = self._long_ones + 1 if delay > requests * _LONG else 0
        if self._long_ones >= _PATIENCE or delay > _TOO_LONG:
            now = time.monotonic()
            was_good = now - self._since > self._pause
            self._pause = _FIRST_PAUSE if was_good else min(2 * self._pause, _LAST_PAUSE)
            self._not_before = now + self._pause
            self.on = False

    def close(self) -> None:
        """The end of the loop."""
        self._never_again()
        for fd in (self._schedstat, self._loadavg):
            if fd >= 0:
                os.close(fd)
        self._schedstat = self._loadavg = -1

    def _prepare(self) -> bool:
        """Whether it can be done here at all."""
        if os.sched_getscheduler(0) != os.SCHED_OTHER or not _can_be_left():
            return False
        self._schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self._loadavg = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._schedstat, 1, 0) != b"0"  # a kernel that does not count

    def _run_delay(self) -> int:
        """Nanoseconds that this thread has waited for a CPU."""
        return int(os.pread(self._schedstat, 128, 0).split(b" ")[1])

    def _running(self) -> int:
        """How many threads of the machine have a CPU or want one, ours included."""
        return int(os.pread(self._loadavg, 128, 0).split(b" ")[3].partition(b"/")[0])


def _can_be_left() -> bool:
    """Whether one may go back from SCHED_IDLE: that takes CAP_SYS_NICE or RLIMIT_NICE (sched(7)).

    A thread tries it, which ends in any case.
    """
    import _thread

    result: list[bool] = []
    done = _thread.allocate_lock()
    done.acquire()

    def attempt() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, _PRIORITY)
            os.sched_setscheduler(0, os.SCHED_OTHER, _PRIORITY)
            result.append(True)
        except OSError:
            pass
        finally:
            done.release()

    _thread.start_new_thread(attempt, ())
    done.acquire()
    return bool(result)
