"""1, 0 or -errno, for good."""

import errno
import time

from voile.volatile.probe import NoProbe, Probe
from voile.volatile.sync_status import SyncStatus


class FakeProbe(Probe):
    """A probe that says what it is told to."""

    def __init__(self):
        super().__init__(-1, "overlay")
        self.error = 0
        self.asked = 0

    def check(self):
        self.asked += 1
        return self.error


def test_not_volatile():
    probe = FakeProbe()
    assert SyncStatus(False, probe).get() == 1
    assert probe.asked == 0


def test_healthy():
    status = SyncStatus(True, FakeProbe())
    assert status.get() == 0
    assert (status.errno, status.since) == (0, None)


def test_latest_errno_for_good():
    probe = FakeProbe()
    status = SyncStatus(True, probe)
    before = time.time()
    probe.error = errno.EIO
    assert status.get() == -errno.EIO
    since = status.since
    assert before <= since <= time.time()
    probe.error = errno.ENOSPC
    assert status.get() == -errno.ENOSPC
    assert status.since == since, "the first error"
    probe.error = 0
    assert status.get() == -errno.ENOSPC, "errseq_t repeats after 2**19 errors: failed is failed"
    assert status.errno == errno.ENOSPC


def test_counters():
    status = SyncStatus(True, NoProbe())
    status.fsync += 2
    status.osync += 1
    assert status.omitted() == {"fsync": 2, "fdatasync": 0, "fsyncdir": 0, "syncfs": 0, "osync": 1}


def test_no_probe():
    probe = NoProbe()
    assert (probe.kind, probe.check()) == ("none", 0)
    probe.close()
