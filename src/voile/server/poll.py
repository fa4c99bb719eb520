"""Looks at the error probe now and then, also when nobody syncs.

A signal from a timer, since it costs nothing while requests are served: the loop waits in read(2), which the
signal interrupts. (A second thread, even one that sleeps, makes each system call and each turn of the
interpreter lock a bit slower; a timerfd would need a poll(2) before each request.) The handler runs in the
thread of the loop, between two steps of whatever that does.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C half of `signal`, whose other half imports enum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

# When an alarm comes at the wrong moment (s).
_SOON = 0.01


class Poll:
    """Calls `look` every `seconds`, from `start` to `stop`, in the main thread. It must not raise.

    It is told whether the thread was in the code `waits`: then it was not in the middle of anything.
    """

    def __init__(self, seconds: float, look: Callable[[bool], object], waits: CodeType) -> None:
        self.seconds = seconds
        self._look = look
        self._waits = waits
        self._on = False
        self._listens = False
        self._alarm: Callable[[], object] | None = None

    def start(self) -> None:
        """Begin, unless the period is 0. In the main thread."""
        if self.seconds:
            self._on = True
            self._listen()
            first = self.seconds if self._alarm is None else _SOON
            _signal.setitimer(_signal.ITIMER_REAL, first, self.seconds)

    def stop(self) -> None:
        """No more calls."""
        if self._on:
            self._on = False
            if self._alarm is None:
                _signal.setitimer(_signal.ITIMER_REAL, 0)

    def alarm(self, seconds: float, ring: Callable[[], object]) -> None:
        """Call `ring` once, after that time, when nothing else is being done; 0: not any more.

        There is one such alarm at a time. In the main thread.
        """
        self._alarm = ring if seconds else None
        self._listen()
        period = self.seconds if self._on else 0
        _signal.setitimer(_signal.ITIMER_REAL, seconds or period, period)

    def _listen(self) -> None:
        if not self._listens:
            self._listens = True
            _signal.signal(_signal.SIGALRM, self._tick)

    def _tick(self, _number: int, frame: FrameType | None) -> None:
        quiet = frame is not None and frame.f_code is self._waits
        ring = self._alarm
        if ring is not None:
            if quiet:
                self._alarm = None
                ring()
            else:
                self.alarm(_SOON, ring)
        if self._on:  # a last signal may be on its way
            self._look(quiet)
