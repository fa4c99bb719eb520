"""errseq_t against a reference that keeps the whole history, and against values worked out by hand."""

import errno

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule

from voile.volatile.errseq import COUNTER_INCREMENT, ERRNO_MASK, MAX_ERRNO, SEEN, Errseq

ERRNOS = st.sampled_from([errno.EIO, errno.ENOSPC, errno.EDQUOT, 1, MAX_ERRNO])


class History:
    """What errseq_t promises, with unlimited memory: every error, and how many of them somebody has seen."""

    def __init__(self, errors):
        self.errors = errors
        self.seen = len(errors)

    def set(self, error):
        self.errors.append(error)

    def sample(self):
        # With an unseen error at the end: any position before it will do, for it has to be reported.
        return self.seen

    def check(self, since):
        return self.errors[-1] if len(self.errors) > since else 0

    def check_and_advance(self, since):
        error = self.check(since)
        if error:
            self.seen = len(self.errors)
            since = self.seen
        return error, since


class Model(RuleBasedStateMachine):
    """Any number of cursors, on one value."""

    cursors = Bundle("cursors")

    @initialize(
        target=cursors,
        start=st.sampled_from([0, SEEN | errno.EIO, 0xFFFFFFFF, 0xFFFFFFFF & ~COUNTER_INCREMENT]),
    )
    def begin(self, start):
        # The later ones are about to wrap around.
        self.errseq = Errseq(start)
        self.history = History([start & ERRNO_MASK] if start else [])
        self.number = 0
        return self.keep(self.errseq.sample(), self.history.sample())

    def keep(self, real, reference):
        return [real, reference]  # a list: the cursor can be advanced in place

    @rule(error=ERRNOS)
    def set(self, error):
        assert self.errseq.set(error) == self.errseq.value
        self.history.set(error)

    @rule(target=cursors)
    def sample(self):
        return self.keep(self.errseq.sample(), self.history.sample())

    @rule(cursor=cursors)
    def check(self, cursor):
        before = self.errseq.value
        assert self.errseq.check(cursor[0]) == self.history.check(cursor[1])
        assert self.errseq.value == before

    @rule(cursor=cursors)
    def check_and_advance(self, cursor):
        real, cursor[0] = self.errseq.check_and_advance(cursor[0])
        reference, cursor[1] = self.history.check_and_advance(cursor[1])
        assert real == reference
        assert self.errseq.check(cursor[0]) == 0
        assert 0 <= self.errseq.value <= 0xFFFFFFFF


TestModel = Model.TestCase


def test_never_an_error():
    errseq = Errseq()
    assert errseq.sample() == 0
    assert errseq.check(0) == 0
    assert errseq.check_and_advance(0) == (0, 0)
    assert errseq.value == 0


def test_values():
    errseq = Errseq()
    assert errseq.set(5) == 5
    assert errseq.set(28) == 28, "nobody has looked: the counter stays"
    assert errseq.sample() == 0
    assert errseq.check_and_advance(0) == (28, SEEN | 28)
    assert errseq.sample() == SEEN | 28
    assert errseq.set(28) == COUNTER_INCREMENT | 28, "the same errno again is another error"
    assert errseq.check(SEEN | 28) == 28


def test_error_is_reported_once_per_cursor():
    errseq = Errseq()
    first = second = errseq.sample()
    errseq.set(errno.EIO)
    error, first = errseq.check_and_advance(first)
    assert error == errno.EIO
    assert errseq.check_and_advance(first)[0] == 0
    assert errseq.check_and_advance(second)[0] == errno.EIO


def test_wrap_around():
    last = Errseq(0xFFFFE000 | SEEN | errno.EIO)
    assert last.set(errno.ENOSPC) == errno.ENOSPC, "the counter starts again, the other bits are untouched"


def test_value_repeats_after_all_of_the_counter():
    errseq = Errseq(SEEN | errno.EIO)
    cursor = errseq.sample()
    for _ in range(2**19 - 1):
        errseq.set(errno.EIO)
        errseq.value |= SEEN
        assert errseq.value != cursor
    errseq.set(errno.EIO)
    errseq.value |= SEEN
    assert errseq.value == cursor


@pytest.mark.parametrize("error", [0, -5, MAX_ERRNO + 1])
def test_no_errno(error):
    errseq = Errseq(SEEN | 5)
    with pytest.raises(ValueError):
        errseq.set(error)
    assert errseq.value == SEEN | 5
