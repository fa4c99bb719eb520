"""A few threads for long system calls; their results are taken up in the loop's thread.

`submit(func, done)` runs ``func()`` in a thread and later, in the thread that calls `run_completions` (the
device loop), ``done(result, None)`` or ``done(None, exception)``. State is thus touched by one thread only:
*func* gets what it needs as arguments and returns what it found. An eventfd tells the loop that something is
done.
"""

from __future__ import annotations

import os
from _queue import SimpleQueue  # the C half of `queue`, whose Python half costs an import of threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class WorkerPool:
    """Up to *threads* threads, started when first needed. *outstanding* counts jobs not yet completed."""

    def __init__(self, threads: int = 4) -> None:
        self.outstanding = 0
        self._limit = threads
        self._running = 0
        self._eventfd = -1
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]]
        self._jobs = SimpleQueue()
        self._done: SimpleQueue[tuple[Callable[[Any, BaseException | None], None], Any, BaseException | None]]
        self._done = SimpleQueue()
        # The loop may pin itself to its client's CPU; that must not hold for threads made later.
        self._cpus = os.sched_getaffinity(0)

    def fileno(self) -> int:
        """The eventfd that is readable when a job is done; made on first use, closed never."""
        if self._eventfd < 0:
            self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return self._eventfd

    def submit(self, func: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        """Run *func* in a thread, then *done* in the loop. To be called in the loop's thread."""
        self.fileno()
        self.outstanding += 1
        self._jobs.put((func, done))
        if self._running < min(self._limit, self.outstanding):
            try:
                self._start()
            except RuntimeError:
                # No thread to be had (a container's limit of pids): then it takes the loop's time.
                if not self._running:
                    self._work_once()

    def soon(self, func: Callable[[], None]) -> None:
        """Call *func* in the loop, when a request that waits now has had its turn."""
        self.fileno()
        self.outstanding += 1
        self._done.put((lambda _result, _exc: func(), None, None))
        os.eventfd_write(self._eventfd, 1)

    def run_completions(self) -> None:
        """Call the *done* of every finished job. Exceptions of *done* are printed: nobody can catch them."""
        if self._eventfd < 0:
            return
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            pass
        for _ in range(self._done.qsize()):  # what these add is for the next time
            done, result, exc = self._done.get()
            self.outstanding -= 1
            try:
                done(result, exc)
            except Exception as error:
                import sys
                import traceback

                traceback.print_exception(error, file=sys.stderr)

    def drain(self) -> None:
        """Wait for all jobs and complete them."""
        from select import POLLIN, poll

        poller = poll()
        poller.register(self.fileno(), POLLIN)
        while self.outstanding:
            poller.poll()
            self.run_completions()

    def _start(self) -> None:
        import threading

        # Daemon threads: a job that hangs on dead storage must not keep the process from ending.
        threading.Thread(target=self._work, name=f"worker-{self._running}", daemon=True).start()
        self._running += 1

    def _work(self) -> None:
        os.sched_setaffinity(0, self._cpus)
        while True:
            self._work_once()

    def _work_once(self) -> None:
        func, done = self._jobs.get()
        try:
            result, error = func(), None
        except BaseException as exc:
            result, error = None, exc
        self._done.put((done, result, error))
        os.eventfd_write(self._eventfd, 1)
        # An exception refers to this frame: no cycle with it, the garbage collector may be off.
        del func, done, result, error
