"""Has syncfs(2) wait for us, on volatile mounts where the kernel does not ask us (no FUSE_SYNCFS).

Theory of operation.  syncfs(2) does two things (fs/sync.c): it has the flusher, one kernel thread for each
mount, write all dirty inodes, one after the other; then it says whether the superblock has had a writeback
error that the caller's descriptor was not told of (`s_wb_err`).  So we keep some dirty pages on the mount, of
files that exist only here.  A helper process (canary_process) has them open and mapped.

*Latches*, two of them.  The second page of the file has been written back: that WRITE is the *token*, and is
left unanswered.  Its first page is dirty, and locked, because a write(2) to it is left unanswered, too (the
*hold*; the kernel keeps the page locked until then if it is not uptodate, fs/fuse/file.c,
fuse_fill_write_pages.  So the write before that one was made to fail).  The flusher comes to this page,
and waits for its lock.  When we *release* a latch, we ask the probe, fail the token if data has been lost,
which makes it an error of the superblock, and then let go of the page.

The *bell*.  Its page is just dirty, and has been so for longer than those of the latches, so that the flusher
writes it first: by that WRITE we learn that somebody waits.  Then we go through a *cycle*: the bell is made
dirty again; one latch is released, and when it is armed again, the other one.

Why every syncfs is answered truly: at each moment one of the latches at least is armed.  A flusher that
begins then must come to that page before it ends, and cannot pass before the latch is released; whatever is
known to the probe at the release is in `s_wb_err` before the call looks there.  This does not depend on the
bell: without it the call would only wait longer, for the next *tick*, each second, at which one latch is
released and armed again (the kernel does not like pages to be locked for long).

*At rest*.  A process that waits for an answer of ours cannot be frozen when we are frozen already: no suspend
(freeze_processes), no `docker pause`.  So when nothing was opened on the mount for a second, and nobody has
called syncfs, the latches are not armed, and all of the helper waits for an eventfd.  Whoever opens something
then has to wait until they are, so that the syncfs that comes next is answered truly.  Only one on a
descriptor that was opened before is not held up; it rings the bell, like all, and the second one wakes us.
(A single one may be the kernel's: it writes what has been dirty for 30 s.)  A mount that is known to have
failed does not rest.

If the helper does not arm what was released within 250 ms, or is killed, nothing is held back until it has
caught up, or there is another one.  `working` is false then: the answers of syncfs(2) mean nothing, which the
status of the mount says.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C half of `signal`, whose other half imports enum
import os
import time
from errno import EAGAIN, ECONNABORTED, EINTR, EIO, ENODEV, ENOENT
from mmap import mmap
from select import POLLIN
from select import poll as new_poll

from voile.fuse import abi, replies
from voile.server.base import Waiting
from voile.server.canary_files import BELL_ARMED, BYE, DONE, FIRST, PAGE, READY, SPOIL, TICK, Files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from voile.server.failure import FailureOperations

# How long the helper may take to start, and to arm a latch (0.3 ms on an idle machine); how long a
# syncfs(2) must wait to prove that the latches work in this kernel (s).
_START = 2.0
_ACKNOWLEDGE = 0.25
_TRIAL = 0.004
_SOON = 0.001
# When somebody who rings twice is not the kernel, which does it after dirty_expire_centisecs.
_AGAIN = 5.0
# When the helper was killed: how often, and when, there is another one.
_LIVES = 5
_REBIRTH = 0.5
# Between the beginnings of two cycles: the flusher looks again at what is made dirty in the tick of the clock
# in which it began, and there are some that write all the time (when much is dirty in the machine).
_PACE = 0.004
# After a cycle that nobody rings for another one follow these: see `_end`.
_AFTERWARDS = (0.005, 0.03)


class _Latch:
    """A file whose first page the flusher waits for."""

    __slots__ = ("hold", "token", "written")

    def __init__(self) -> None:
        # Requests that are not answered yet (0: none), and the length of that WRITE.
        self.hold = 0
        self.token = (0, 0)
        # The flusher was faster than the hold, and has cleaned the page.
        self.written = False

    @property
    def armed(self) -> bool:
        return bool(self.hold and self.token[0])


class Canary:
    """The side of the daemon. `first`: from here on, numbers of nodes are ours."""

    first = FIRST

    def __init__(self, served: FailureOperations, target: bytes, device: tuple[int, int]) -> None:
        """`target`: where the mount can be seen; `device`: its number."""
        self._served = served
        self._session = served.session
        self._target = target
        self._device = device
        self._pid = 0
        # How often it may still be started anew.
        self._lives = _LIVES
        self._proven = False
        # The helper lives; it has not caught up.
        self._holding = False
        self._behind = False
        self._eventfds: list[int] = []
        self._clear()

    def _clear(self) -> None:
        self._files = Files(self)
        self._latches = (_Latch(), _Latch())
        # Whether the bell is said to be armed.
        self._bell = False
        # The request `READY`, while it is not answered yet.
        self._ready = 0
        # Whether the latches are not to be armed; whether there was a reason for them since the last tick;
        # who waits until they are; when the bell was rung last.
        self._resting = False
        self._busy = True
        self._waiters: list[Callable[[int], None]] = []
        self._last_ring = 0.0
        # The bell was rung before it was said to be armed; somebody waits for a cycle.
        self._early = False
        self._rung = False
        # Latches that this cycle has still to release and to see armed again; whether it has released the
        # first of them.
        self._cycle: list[_Latch] = []
        self._released = False
        self._begun = 0.0
        self._afterwards = 0
        # The order of the latches' arming.
        self._order: list[_Latch] = []
        # While we find out whether a syncfs(2) waits: None, or the time when it has waited long enough (0:
        # it has not come yet).
        self._trial: float | None = None

    @property
    def working(self) -> bool:
        """Whether syncfs(2) is answered truly now."""
        return self._holding and self._proven and not self._behind

    def start(self) -> None:
        """Start the helper and find out whether it works; requests are served meanwhile.

        In the main thread.
        """
        self._lives = _LIVES
        self._start()

    def _start(self) -> None:
        from voile.server import canary_process

        if self._pid:
            return
        self._clear()
        self._proven = self._behind = False
        poll = self._served.poll
        # Not at once: this may be in the middle of something.
        _signal.signal(_signal.SIGCHLD, lambda *_: poll.alarm(_SOON, self._reap))
        us = os.getpid()
        for fd in self._eventfds:
            os.close(fd)
        # For the bell; for the latches.
        self._eventfds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE) for _ in range(2)]
        try:
            self._pid = os.fork()
        except OSError:
            return
        if self._pid == 0:
            canary_process.main(us, self._target, self._files.prefix, self._device, self._eventfds)
        self._holding = True
        self._session.put_before(self._files.handlers(lookup=True))
        try:
            self._serve_until_proven()
        finally:
            self._session.put_before(self._files.handlers(lookup=False))
        if not self._proven:
            self._lives = 0
            self._give_up()
            os.kill(self._pid, _signal.SIGKILL)

    def dismiss(self) -> Callable[[], object]:
        """End the helper; return what waits for its end, for another thread."""
        pid, self._pid = self._pid, 0
        self._lives = 0
        self._give_up()
        if not pid:
            return lambda: None
        os.kill(pid, _signal.SIGKILL)
        return lambda: os.waitpid(pid, 0)

    def bury(self) -> None:
        """Wait for the end of the helper, after that of the mount."""
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        self._holding = False
        self._lives = 0
        self._served.poll.alarm(0, self._late)
        if self._pid:
            os.kill(self._pid, _signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0

    def _serve_until_proven(self) -> None:
        session = self._session
        # Not the session's: a request may be in that which has not been looked at yet.
        buffer = mmap(-1, len(session.buffer))
        poller = new_poll()
        poller.register(session.fd, POLLIN)
        end = time.monotonic() + _START
        blocking = os.get_blocking(session.fd)
        os.set_blocking(session.fd, False)
        try:
            while self._holding and not self._proven and time.monotonic() < end:
                if not poller.poll(1 if self._trial else 50):
                    if self._trial and time.monotonic() > self._trial:
                        self._proven, self._trial = True, None
                        self._go()
                    continue
                try:
                    size = os.readv(session.fd, [buffer])
                except OSError as error:
                    if error.errno in (ENODEV, ECONNABORTED):
                        break  # unmounted already; the loop will see that, too
                    if error.errno not in (EAGAIN, EINTR, ENOENT):
                        raise
                    continue
                session.dispatch(buffer[:size])
        finally:
            os.set_blocking(session.fd, blocking)

    # --- the cycle ---

    def _make_dirty(self) -> None:
        os.eventfd_write(self._eventfds[0], 1)

    def _rest(self) -> None:
        """Have nobody wait for us."""
        self._resting = True
        self._order.clear()
        for latch in self._latches:
            self._release(latch, rest=True)

    def _wake(self) -> None:
        if self._resting:
            self._resting = False
            os.eventfd_write(self._eventfds[1], len(self._latches))
            self._served.poll.alarm(_ACKNOWLEDGE, self._late)

    def _tick(self) -> None:
        """Once a second."""
        if self._cycle or self._rung or self._behind:
            return
        if self._resting:
            if self._failed:
                self._wake()
        elif len(self._order) < len(self._latches):
            pass  # it wakes up
        elif self._busy or self._failed:
            self._busy = False
            self._turn(self._order[:1])
        else:
            self._rest()

    def _serve_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter(0)

    def _go(self) -> None:
        """Begin a cycle, if somebody waits for one and it can be."""
        ready = self._bell and len(self._order) == len(self._latches) and self._trial is None
        if self._rung and ready and not self._cycle and not self._behind:
            wait = self._begun + _PACE - time.monotonic()
            if wait > 0:
                self._served.poll.alarm(wait, self._go)
            else:
                self._rung = False
                self._afterwards = 0
                self._turn(list(self._order))

    def _turn(self, latches: list[_Latch]) -> None:
        if latches:
            self._begun = time.monotonic()
            self._cycle = latches
            self._next()

    def _end(self) -> None:
        """After a cycle.

        If the flusher was made to wait for the CPU just when it had written the bell, that goes to the end of
        its queue, behind the latches, and is not rung by whom they stop.  So we let them pass a bit later
        once more, which brings the queue in order again.
        """
        self._served.poll.alarm(0, self._late)
        if self._rung:
            self._go()
        elif self._afterwards < len(_AFTERWARDS):
            self._afterwards += 1
            self._served.poll.alarm(_AFTERWARDS[self._afterwards - 1], self._again)

    def _again(self) -> None:
        if not self._cycle:
            self._turn(list(self._order))

    def _next(self) -> None:
        latch = self._cycle[0]
        self._released = latch.armed
        self._served.poll.alarm(_ACKNOWLEDGE, self._late)
        if latch.armed:
            self._order.remove(latch)
            self._release(latch)

    def _armed(self, latch: _Latch) -> None:
        self._order.append(latch)
        if self._cycle:
            if self._cycle[0] is latch:
                if self._released:
                    del self._cycle[0]
                if not self._cycle:
                    self._end()
                elif self._failed:
                    # An error is told once to each descriptor: who has just been let go, and shares his with
                    # others, is to be told before there is the one for the next.
                    self._served.poll.alarm(_PACE, self._next)
                else:
                    self._next()
        elif len(self._order) == len(self._latches):
            if self._behind:
                self._behind = False
                self._rung = True  # somebody may wait already
            if self._ready:
                self._get_ready()
            else:
                self._end()
            self._serve_waiters()

    def _get_ready(self) -> None:
        """Begin the trial when all is armed."""
        if self._ready and self._bell and len(self._order) == len(self._latches):
            ready, self._ready = self._ready, 0
            self._trial = 0
            self._session.reply(ready, replies.write_out(1))

    @property
    def _failed(self) -> bool:
        return self._served.overlay.sync.get() < 0 or self._served.shutdown is not None

    def _release(self, latch: _Latch, rest: bool = False) -> None:
        """Let the flusher pass, and whoever waits for it know what has happened."""
        (token, length), latch.token = latch.token, (0, 0)
        hold, latch.hold = latch.hold, 0
        if token:
            if self._failed:
                # As the kernel's volatile overlay: EIO, whatever the error was.
                self._session.fail(token, EIO)
            else:
                self._session.reply(token, replies.write_out(length))
        if hold:
            self._session.fail(hold, EAGAIN if rest else EIO)  # so that the page is not uptodate

    def _late(self) -> None:
        """The helper has not done its part in time: nobody is to wait for it."""
        if self._holding and not self._ended():
            self._behind = True
            self._cycle.clear()
            self._let_go()
            self._serve_waiters()
            self._served.poll.alarm(_ACKNOWLEDGE, self._late)

    def _let_go(self) -> None:
        self._order.clear()
        for latch in self._latches:
            self._release(latch)

    def _give_up(self) -> None:
        """Hold nothing back any more."""
        if self._holding:
            self._holding = False
            self._cycle.clear()
            self._resting = False
            self._let_go()
            self._serve_waiters()
            self._answer_ready()
            self._served.poll.alarm(0, self._late)

    def _answer_ready(self) -> None:
        ready, self._ready = self._ready, 0
        if ready:
            self._session.fail(ready, EINTR)

    def _reap(self) -> None:
        """A child has ended."""
        if self._ended():
            return
        if self._cycle or self._behind:
            self._served.poll.alarm(_ACKNOWLEDGE, self._late)
        else:
            self._end()

    def _ended(self) -> bool:
        """Whether the helper has: then there will be another one."""
        if self._pid and not os.waitpid(self._pid, os.WNOHANG)[0]:
            return False
        if self._pid:
            self._pid = 0
            self._give_up()
            if self._lives:
                self._lives -= 1
                self._served.poll.alarm(_REBIRTH, self._start)
        return True

    # --- what is heard of the files ---

    def rung(self) -> None:
        """The flusher has come to the bell."""
        now = time.monotonic()
        again, self._last_ring = now - self._last_ring < _AGAIN, now
        if not self._resting or again or self._failed:
            self._rung = self._busy = True
            self._wake()
        if self._bell:
            self._bell = False
            self._make_dirty()
        else:
            self._early = True
        if self._trial == 0:
            self._trial = now + _TRIAL

    def opening(self) -> None:
        """Something of the union is about to be opened, and syncfs(2) may follow.

        Raises:
            Waiting: not before it would be answered truly.
        """
        if self._resting or (self._holding and not self._order and not self._cycle):
            self._wake()
            if not self._behind:
                raise Waiting(self._waiters)
        self._busy = True

    def interrupted(self, unique: int) -> None:
        """A request is not to go on: the helper is being stopped or killed, which we must not delay."""
        if unique in (self._ready, *(latch.hold for latch in self._latches)):
            self._answer_ready()
            self._late()

    def latch_written(self, number: int, unique: int, offset: int, length: int, flags: int) -> bool:
        """A write to a latch. Whether it is to be answered now, with success. Raises OSError."""
        latch = self._latches[number]
        if not self._holding:
            if flags & abi.WRITE_CACHE:
                return True
            raise OSError(EIO, "not any more")
        if flags & abi.WRITE_CACHE:
            if offset < PAGE:
                latch.written = True
                return True
            latch.written = False
            latch.token = (unique, length)
        elif offset == SPOIL:
            raise OSError(EIO, "spoilt")
        elif latch.written or not latch.token[0]:
            self._release(latch)
            raise OSError(EIO, "once more")
        else:
            latch.hold = unique
        if latch.armed:
            self._armed(latch)
        return False

    def told(self, unique: int, what: int) -> bool:
        """A write to the control file. Whether it is to be answered now."""
        if not self._holding or what == BYE:
            self._lives = 0
            self._give_up()
        elif what == BELL_ARMED and self._early:
            self._early = False
            self._make_dirty()
        elif what == BELL_ARMED:
            self._bell = True
            self._go()
            self._get_ready()
        elif what == READY:
            self._ready = unique
            self._get_ready()
            return False
        elif what == DONE:
            if self._trial is not None:
                self._give_up()  # it has not waited
        elif what == TICK:
            self._tick()
        return True
