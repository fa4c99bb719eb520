"""The loop: read a request from /dev/fuse, have the session answer it, until the mount is gone.

One thread. While no worker job is outstanding it blocks in read(2), the cheapest way to wait. While there is
one it polls the device and the pool's eventfd, with the device non-blocking: a request that made it readable
can be withdrawn (its caller was killed) before we read it, and a blocking read would then keep finished jobs
waiting.
"""

from __future__ import annotations

import errno
import io
import os
import select

from voile.fuse.workers import WorkerPool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from voile.fuse.cpu_follow import CpuFollow
    from voile.fuse.session import Session

# ENODEV: unmounted. ECONNABORTED: aborted through fusectl (ABORT_ERROR).
_ENDED = frozenset((errno.ENODEV, errno.ECONNABORTED))
# ENOENT: the request was withdrawn while being read (fs/fuse/dev.c fuse_dev_do_read).
_AGAIN = frozenset((errno.EAGAIN, errno.EINTR, errno.ENOENT))
_BETWEEN_CPU_CHECKS = range(16)


class Device:
    """Runs *session* until its mount is gone.

    *pool*: the pool the operations submit jobs to, if any. *follow*: CPU following, None for none.
    """

    def __init__(
        self, session: Session, pool: WorkerPool | None = None, follow: CpuFollow | None = None
    ) -> None:
        self.session = session
        self.pool = pool or WorkerPool()
        self.follow = follow
        self._nonblocking = False

    def run(self) -> None:
        """Serve until the mount is gone; then complete the jobs and call `Operations.destroy`.

        Raises OSError when the device fails in an unexpected way.
        """
        try:
            self.loop()
            self.session.gone = True
        finally:
            if self.follow is not None:
                self.follow.close()
            self.pool.drain()
            self.session.finish()

    def on_signals(self, callback: Callable[[int], None], signals: tuple[int, ...] | None = None) -> None:
        """Call *callback* with the number of each of *signals* (SIGTERM, SIGINT, SIGHUP) that arrives.

        It runs between two steps of the loop's thread, so it must neither touch the mount nor wait for an
        unmount: `mountpoint.unmount_in_thread` is what it usually calls. The loop ends when the mount is
        gone.
        """
        import signal

        for number in signals or (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda signum, frame: callback(signum))

    def loop(self) -> None:
        """Serve until the mount is gone. `run` is what callers use."""
        session, pool, follow = self.session, self.pool, self.follow
        buffer, process, request = session.buffer, session.process, session.request
        # A file object, because its readinto costs a third less than os.readv.
        read = io.FileIO(session.fd, closefd=False).readinto
        plainly = process
        giving_way = process
        if follow is not None:
            giving_way = session.answering_by(follow.idle.write, follow.idle.writev)
        while True:
            for _ in _BETWEEN_CPU_CHECKS:
                if pool.outstanding or self._nonblocking:
                    self._wait()
                    process = plainly  # our own threads may want this CPU
                try:
                    n = read(buffer)
                except OSError as exc:
                    if exc.errno in _ENDED:
                        return
                    if exc.errno not in _AGAIN:
                        raise
                    continue
                if n is not None:  # else there is nothing to read, after all
                    process(n)
            if follow is not None:
                follow.note(request.pid, len(_BETWEEN_CPU_CHECKS))
                process = giving_way if follow.idle.on else plainly

    def _wait(self) -> None:
        """Complete jobs until a request is there, or until no job is left."""
        pool, fd = self.pool, self.session.fd
        if not self._nonblocking:
            os.set_blocking(fd, False)
            self._nonblocking = True
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.register(pool.fileno(), select.POLLIN)
        while pool.outstanding:
            ready = poller.poll()
            pool.run_completions()
            if any(number == fd for number, _ in ready):
                break
        if not pool.outstanding:
            os.set_blocking(fd, True)
            self._nonblocking = False
