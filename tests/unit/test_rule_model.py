"""No sequence of events on which data was lost and everything said OK; and the model notices wrong rules."""

import contextlib
import errno
import os
from unittest import mock

import pytest

from support import rule_model
from support.rule_model import Errseq, FalseAlarm, FalseOk, ModelProbe, search
from support.rule_reuse import MarkerDirectory, MarkerRule, RecordRule
from voile.server.checkpoint import Checkpoint
from voile.volatile import marker, record
from voile.volatile.sync_status import SyncStatus

# A mount counts as two, an unmount with --sync as well: eight of what a user would call events, and more.
DEPTH = 10
ALL = os.environ.get("VOILE_MATRIX") == "all"
# The kernel's marker is not synced: what a crash within seconds after the mount leaves may be as before it.
LEFT_ALONE = ("engine_removes_marker", "crash_at_once")


@pytest.fixture
def directory(tmp_path):
    made = MarkerDirectory(tmp_path)
    yield made
    made.close()


@pytest.fixture
def one_errno(monkeypatch):
    """Which of several is the latest matters only while mounted, and there the record has no part in it."""
    monkeypatch.setattr(rule_model, "ERRNOS", (errno.EIO,))


def test_reuse(directory, one_errno):
    """With the record: whatever engines do, and whenever the machine crashes.

    `make matrix` goes on for ever: there is an end to the worlds that are different (some 34,000).
    """
    begun = set()

    class Noted(RecordRule):
        def begin(self, world):
            begun.add((world.dirty, world.asking.cursor is not None, world.asking.proof))
            return super().begin(world)

    worlds, length = search(Noted(directory), None if ALL else DEPTH)
    assert length >= DEPTH
    # It is not that nothing can happen. Uppers were reused whose data was not on the disk, since the probe
    # was held, and others whose data was; never the former without a probe, but where nobody asked for proof.
    assert {(True, True, True), (False, False, True), (True, False, False)} < begun
    assert (True, False, True) not in begun
    assert any(w.mounted and w.mounted.lost and w.mounted.errno for w in worlds)
    between = [w for w in worlds if not w.mounted and not w.marker]
    assert any(w.record and w.record.state == record.SYNCED for w in between)
    assert any(w.damaged for w in between)


def test_marker(directory):
    """Without: as long as the marker is left alone. There are few worlds, so these are all, for ever."""
    worlds, length = search(MarkerRule(directory), without=LEFT_ALONE)
    assert length > DEPTH
    assert any(w.mounted and w.mounted.lost and w.mounted.errno for w in worlds)


@pytest.mark.parametrize("event", LEFT_ALONE)
def test_the_marker_is_not_enough(directory, event):
    """Engines remove it before every mount; that is what the record is for."""
    with pytest.raises(FalseOk) as caught:
        search(MarkerRule(directory), DEPTH, without=set(LEFT_ALONE) - {event})
    assert event in caught.value.args[1]


# --- rules with a mistake ---


class AnswersOnce(MarkerRule):
    """As fsync on an ordinary file: who has been told is not told again."""

    class status(SyncStatus):
        def get(self):
            code, self.probe.cursor = self.probe.errseq.check_and_advance(self.probe.cursor)
            return -code


class SnapshotAtTheFirstQuestion(MarkerRule):
    """Not at the mount."""

    class probe(ModelProbe):
        def check(self):
            if self.cursor is None:
                self.cursor = self.errseq.sample()
            return super().check()

    def snapshot(self, value):
        return None


class CheckpointRecordedBeforeVerification(RecordRule):
    class checkpoint(Checkpoint):
        def _finish(self, code):
            self._unpark()
            return self._record()


class CheckpointWithoutVerification(MarkerRule):
    class checkpoint(Checkpoint):
        def _verdict(self, code):
            return 0


class CheckpointTrustsItsOwnSync(MarkerRule):
    """Its descriptor tells of each error once, so the next checkpoint does not hear of it."""

    class checkpoint(Checkpoint):
        def _verdict(self, code):
            return code


class MarkerRemovedBeforeVerification(MarkerRule):
    class checkpoint(Checkpoint):
        def _freeze(self, code, pid):
            marker.remove_volatile(self._served.overlay.work_fd)
            return super()._freeze(code, pid)


class UnseenErrorIgnored(MarkerRule):
    """At the mount: the cursor is what is there."""

    def snapshot(self, value):
        return value


class UnseenErrorSampled(MarkerRule):
    """At the mount: it is told later, as if the mount had lost something."""

    def snapshot(self, value):
        return Errseq(value).sample()


class Forgets(MarkerRule):
    """Each question has a cursor of its own, as with a descriptor that is opened for it."""

    def sync_status(self, world):
        mounted = world.mounted._replace(cursor=Errseq(world.value).sample(), errno=0)
        return super().sync_status(world._replace(mounted=mounted))


class NewProbeInPlaceOfTheHeld(RecordRule):
    """Which is asked for errors between the mounts."""

    def enter(self, world):
        super().enter(world)
        if world.holder is not None:
            self.holder = Errseq(world.value).sample()


class ErrorsInBetweenDoNotMatter(RecordRule):
    """The holder shows that it is the same file system, and is not asked anything else."""

    def admit(self, world, proof, hold):
        with mock.patch.object(ModelProbe, "check", lambda probe: 0):
            asking = super().admit(world, proof, hold)
        return asking and asking._replace(cursor=None)


class WholeForEver(RecordRule):
    """What was synced once is taken for whole after another mount."""

    def begin(self, world):
        after = super().begin(world)
        if world.record is not None and world.record.state == record.SYNCED:
            after = after._replace(record=world.record, disk_record=world.record)
        return after


class WholeWhenFrozen(RecordRule):
    """The record says so before the unmount, which may fail."""

    @contextlib.contextmanager
    def checkpoint_of(self, world, status):
        with super().checkpoint_of(world, status) as checkpoint:
            yield checkpoint
        after = checkpoint.world
        if world.marker and not after.marker:
            checkpoint.world = after._replace(record=after.record._replace(state=record.SYNCED))


class DoubtForgotten(RecordRule):
    """A mount that was not proven to be whole, and ended well."""

    def begin(self, world):
        after = world.asking.next._replace(doubt=False)
        return super().begin(world._replace(asking=world.asking._replace(next=after)))


class FirstRecordNotSynced(RecordRule):
    """A crash soon after the mount leaves what was there before."""

    def begin(self, world):
        return super().begin(world)._replace(disk_record=world.disk_record)


FALSE_OKS = [
    AnswersOnce, SnapshotAtTheFirstQuestion, CheckpointRecordedBeforeVerification,
    CheckpointWithoutVerification, CheckpointTrustsItsOwnSync, MarkerRemovedBeforeVerification,
    UnseenErrorIgnored, Forgets, NewProbeInPlaceOfTheHeld, ErrorsInBetweenDoNotMatter, WholeForEver,
    WholeWhenFrozen, DoubtForgotten, FirstRecordNotSynced,
]  # fmt: skip


@pytest.mark.parametrize("rule", FALSE_OKS, ids=lambda rule: rule.__name__)
def test_mistake_is_noticed(directory, rule, one_errno):
    without = () if issubclass(rule, RecordRule) else LEFT_ALONE
    with pytest.raises(FalseOk) as caught:
        search(rule(directory), DEPTH, without=without, wrong=FalseOk)
    assert len(caught.value.args[1]) <= DEPTH


def test_false_alarm_is_noticed(directory):
    with pytest.raises(FalseAlarm):
        search(UnseenErrorSampled(directory), DEPTH, wrong=FalseAlarm)
