"""No sequence of events on which data was lost and everything said OK; and the model notices wrong rules."""

import pytest

from support.rule_model import (
    Errseq,
    FalseAlarm,
    FalseOk,
    MarkerDirectory,
    ModelProbe,
    Record,
    Rule,
    search,
)
from voile.server.checkpoint import Checkpoint
from voile.volatile import marker
from voile.volatile.sync_status import SyncStatus

DEPTH = 8


@pytest.fixture
def directory(tmp_path):
    made = MarkerDirectory(tmp_path)
    yield made
    made.close()


def test_the_rule(directory):
    search(Rule(directory), DEPTH)


def test_the_rule_for_ever(directory):
    """There are not many different worlds: no new one comes up after a dozen events, so this is all of it."""
    worlds, length = search(Rule(directory))
    assert length > DEPTH
    # It is not that nothing can happen.
    assert any(w.mounted and w.mounted.lost and w.mounted.errno for w in worlds)
    assert any(w.mounted is None and w.record and w.record.whole and not w.marker for w in worlds)
    assert any(w.damaged and not w.marker and not w.mounted for w in worlds)


def test_an_upper_can_be_reused(directory):
    """With its data not on the disk yet, where somebody has held the superblock in the meantime."""
    reused = []

    class Noted(Rule):
        def reusable(self, record, held):
            answer = super().reusable(record, held)
            if answer:
                reused.append(record)
            return answer

    search(Noted(directory), DEPTH)
    assert {record.whole for record in reused} == {True, False}


class MarkerOnly(Rule):
    """Without a record: the marker alone says whether an upper may be mounted, as the kernel has it."""

    records = False


def test_the_marker_is_enough_when_it_is_left_alone(directory):
    search(MarkerOnly(directory), without=("engine_removes_marker",))


def test_the_marker_is_not_enough_when_somebody_removes_it(directory):
    """As container engines do, before every mount."""
    with pytest.raises(FalseOk) as caught:
        search(MarkerOnly(directory), DEPTH)
    assert "engine_removes_marker" in caught.value.args[1]


# --- rules with a mistake ---


class AnswersOnce(Rule):
    """As fsync on an ordinary file: who has been told is not told again."""

    class status(SyncStatus):
        def get(self):
            code, self.probe.cursor = self.probe.errseq.check_and_advance(self.probe.cursor)
            return -code


class SnapshotAtTheFirstQuestion(Rule):
    """Not at the mount."""

    class probe(ModelProbe):
        def check(self):
            if self.cursor is None:
                self.cursor = self.errseq.sample()
            return super().check()

    def snapshot(self, value):
        return None


class SnapshotAfterTheDecision(Rule):
    """A mount asks the holder of the superblock, and takes its own cursor a moment later."""

    snapshot_first = False


class CheckpointRecordedBeforeVerification(Rule):
    class checkpoint(Checkpoint):
        def _again(self, code):
            self.time = 1.0
            return super()._again(code)


class CheckpointWithoutVerification(Rule):
    class checkpoint(Checkpoint):
        def _verdict(self, code):
            return 0


class CheckpointTrustsItsOwnSync(Rule):
    """Its descriptor tells of each error once, so the next checkpoint does not hear of it."""

    class checkpoint(Checkpoint):
        def _verdict(self, code):
            return code


class MarkerRemovedBeforeVerification(Rule):
    class checkpoint(Checkpoint):
        def _freeze(self, code, pid):
            marker.remove_volatile(self._served.overlay.work_fd)
            return super()._freeze(code, pid)


class UnseenErrorIgnored(Rule):
    """At the mount: the cursor is what is there."""

    def snapshot(self, value):
        return value


class UnseenErrorSampled(Rule):
    """At the mount: it is told later, as if the mount had lost something."""

    def snapshot(self, value):
        return Errseq(value).sample()


class Forgets(Rule):
    """Each question has a cursor of its own, as with a descriptor that is opened for it."""

    def sync_status(self, world):
        mounted = world.mounted._replace(cursor=Errseq(world.value).sample(), errno=0)
        return super().sync_status(world._replace(mounted=mounted))


class ReuseWithoutHolder(Rule):
    """As if nobody could have heard of an error in between."""

    def reusable(self, record, held):
        return super().reusable(record, held or 0)


class ReuseAfterAnError(Rule):
    def reusable(self, record, held):
        return super().reusable(record, held and 0)


class WholeForEver(Rule):
    """What was whole once is taken for whole after another mount."""

    def recorded(self):
        return Record(whole=True)


class WholeAfterThaw(Rule):
    """An unmount with --sync failed, and writing went on."""

    def thawed(self, record):
        return record


FALSE_OKS = [
    AnswersOnce, SnapshotAtTheFirstQuestion, SnapshotAfterTheDecision, CheckpointRecordedBeforeVerification,
    CheckpointWithoutVerification, CheckpointTrustsItsOwnSync, MarkerRemovedBeforeVerification,
    UnseenErrorIgnored, Forgets, ReuseWithoutHolder, ReuseAfterAnError, WholeForEver,
    WholeAfterThaw,
]  # fmt: skip


@pytest.mark.parametrize("rule", FALSE_OKS, ids=lambda rule: rule.__name__)
def test_mistake_is_noticed(directory, rule):
    with pytest.raises(FalseOk) as caught:
        search(rule(directory), DEPTH, wrong=FalseOk)
    assert len(caught.value.args[1]) <= DEPTH


def test_false_alarm_is_noticed(directory):
    with pytest.raises(FalseAlarm):
        search(UnseenErrorSampled(directory), DEPTH, wrong=FalseAlarm)
