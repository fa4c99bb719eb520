"""errseq_t, bit for bit: how Linux makes sure that a writeback error reaches everybody who should know of it.

Theory of operation (lib/errseq.c). A 32-bit value holds the latest error and a counter:

    31                                13   12    11          0
    +-----------------------------------+------+-------------+
    | counter                           | SEEN | errno       |
    +-----------------------------------+------+-------------+

Whoever wants to hear of errors keeps a *cursor*: the value as it was. Another value later means that there
was an error in between, even when it is the same errno again. The counter moves on only when somebody has
seen the value (that is what SEEN says), for otherwise nobody can tell the difference. An error that nobody
has seen is reported to those who come after it as well: their sample is 0.

After 2**19 errors, each of them seen, the value repeats. The kernel accepts that, and so do we.

Errnos are positive here (the kernel's functions take and return negative ones).
"""

from __future__ import annotations

MAX_ERRNO = 4095
ERRNO_MASK = 0xFFF
SEEN = 1 << 12
COUNTER_INCREMENT = 1 << 13
_MASK_32 = 0xFFFFFFFF


class Errseq:
    """One errseq_t. `value` is the raw 32 bits."""

    __slots__ = ("value",)

    def __init__(self, value: int = 0) -> None:
        """Start with `value`; 0 is "never an error"."""
        self.value = value

    def set(self, error: int) -> int:
        """Record an errno; the new value (errseq_set). Raises ValueError when it is no errno."""
        if not 0 < error <= MAX_ERRNO:
            raise ValueError(f"not an errno: {error}")
        old = self.value
        new = old & ~(ERRNO_MASK | SEEN) | error
        if old & SEEN:
            new = new + COUNTER_INCREMENT & _MASK_32
        self.value = new
        return new

    def sample(self) -> int:
        """A cursor to look for errors from: 0 when the latest one has not been seen yet (errseq_sample)."""
        return self.value if self.value & SEEN else 0

    def check(self, since: int) -> int:
        """The latest errno if there was an error after the cursor `since`, or 0 (errseq_check)."""
        return 0 if self.value == since else self.value & ERRNO_MASK

    def check_and_advance(self, since: int) -> tuple[int, int]:
        """As `check`, with the cursor for the next time: an error is reported once for each cursor.

        It has been seen then (errseq_check_and_advance).
        """
        if self.value == since:
            return 0, since
        self.value |= SEEN
        return self.value & ERRNO_MASK, self.value
