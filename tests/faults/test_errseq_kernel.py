"""Our errseq_t against the kernel's: the same steps on a failing disk and on the class, compared one by one.

The kernel has one errseq_t for each file, of which fsync tells, and one for the file system, of which syncfs
tells. An open file has a cursor for either.
"""

import errno
import os
import threading

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule, run_state_machine_as_test

from support import syscalls
from support.outcome import result
from voile.linux import files
from voile.volatile import inode_probe, probe
from voile.volatile.errseq import SEEN, Errseq

ERRNOS = (errno.EIO, errno.ENOSPC, errno.ETIMEDOUT)
# How often a lost page is recorded. ext4 does so for the request and for the page (fs/ext4/page-io.c,
# ext4_end_bio and ext4_finish_bio); who asks in between hears of it twice.
RECORDED = {"ext4": 2, "xfs": 1, "btrfs": 1}


def sync_file_range(fd):
    """As inode_probe asks: fsync's cursor, and nothing is written."""
    files.sync_file_range(fd, inode_probe._BEYOND, 1, files.SYNC_FILE_RANGE_WAIT_BEFORE)


class OpenFile:
    """A descriptor, and the cursors that its open file has in the kernel."""

    def __init__(self, fd, file, filesystem):
        self.fd = fd
        self.cursors = {"file": file.sample(), "filesystem": filesystem.sample()}


class Machine(RuleBasedStateMachine):
    """Errors and looks at them, in any order."""

    opened = Bundle("opened")
    probes = Bundle("probes")

    def __init__(self, fs):
        super().__init__()
        fs.lose(errno.EIO)
        assert fs.sync() == errno.EIO
        # Its counter is another one, which only its equality with itself could show.
        self.fs, self.filesystem, self.file = fs, Errseq(SEEN | errno.EIO), Errseq()
        self.path = fs.point / "file"
        self.path.touch()
        self.fds = []
        self.close = []

    def teardown(self):
        for fd in self.fds:
            os.close(fd)
        for one in self.close:
            one.close()
        self.path.unlink()  # the next one is another inode, with an errseq_t of its own

    def ask(self, one, which, call):
        """`call` on the descriptor says what our class says."""
        errseq = getattr(self, which)
        wanted, one.cursors[which] = errseq.check_and_advance(one.cursors[which])
        assert result(call, one.fd) == wanted

    @rule(number=st.sampled_from(ERRNOS))
    def lose(self, number):
        self.fs.lose(number, self.path)
        self.file.set(number)
        self.filesystem.set(number)

    @rule(number=st.sampled_from(ERRNOS))
    def lose_another(self, number):
        self.fs.lose(number, self.fs.point / "another")
        self.filesystem.set(number)

    @rule(target=opened)
    def open(self):
        self.fds.append(os.open(self.path, os.O_RDWR))
        return OpenFile(self.fds[-1], self.file, self.filesystem)

    @rule(target=opened, one=opened)
    def dup(self, one):
        """Another descriptor of the same open file: the cursors are shared."""
        self.fds.append(os.dup(one.fd))
        twin = OpenFile(self.fds[-1], self.file, self.filesystem)
        twin.cursors = one.cursors
        return twin

    @rule(one=opened)
    def fsync(self, one):
        self.ask(one, "file", os.fsync)

    @rule(one=opened)
    def fdatasync(self, one):
        self.ask(one, "file", os.fdatasync)

    @rule(one=opened)
    def sync_file_range(self, one):
        self.ask(one, "file", sync_file_range)

    @rule(one=opened)
    def syncfs(self, one):
        self.ask(one, "filesystem", syscalls.syncfs)

    @rule(target=probes)
    def make_probe(self):
        """Fails when the latest error has not been seen (ovl_get_upper's errseq_sample and errseq_check)."""
        cursor = self.filesystem.sample()
        directory = os.open(self.fs.point, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.close.append(probe.create(directory, where=probe.OVERLAY))
        except probe.UnseenError:
            assert self.filesystem.check(cursor)
            return None
        finally:
            os.close(directory)
        assert not self.filesystem.check(cursor)
        return self.close[-1], cursor

    @rule(made=probes)
    def check_probe(self, made):
        """Looks, and counts as nobody's having seen it."""
        if made:
            assert made[0].check() == self.filesystem.check(made[1])


def test_step_by_step(fs):
    run_state_machine_as_test(
        lambda: Machine(fs),
        settings=settings(
            max_examples=12,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


class Sampler(threading.Thread):
    """Asks one descriptor again and again. `heard`: the errnos, in order."""

    def __init__(self, call, fd, stop):
        super().__init__(daemon=True)
        self.call, self.fd, self.stop, self.heard, self.asked = call, fd, stop, [], 0

    def ask(self):
        self.asked += 1
        if number := result(self.call, self.fd):
            self.heard.append(number)

    def run(self):
        while not self.stop.is_set():
            self.ask()


def is_subsequence(part, whole):
    rest = iter(whole)
    return all(one in rest for one in part)


def hear(fs, path, opened, losses):
    """What each of some samplers has heard of errors that came while all were asking."""
    stop = threading.Event()
    calls = [syscalls.syncfs, sync_file_range, syscalls.syncfs]
    if fs.kind != "btrfs":
        # There it tells of writes that it has just waited for, too, with EIO (btrfs_wait_ordered_range).
        calls.append(os.fsync)
    samplers = [Sampler(call, opened(path, os.O_RDWR), stop) for call in calls]
    for sampler in samplers:
        sampler.start()
    try:
        for number in losses:
            fs.lose(number, path)
    finally:
        stop.set()
        for sampler in samplers:
            sampler.join()
    for sampler in samplers:
        sampler.ask()
    before = [list(sampler.heard) for sampler in samplers]
    for sampler in samplers:
        sampler.ask()
    assert [sampler.heard for sampler in samplers] == before, "an error was told twice"
    return before


def test_errors_while_others_ask(fs, opened):
    """Who was there before hears of the latest error, of others in order, and of none more often than it was
    recorded."""
    path = fs.point / "file"
    path.touch()
    for start in range(3):
        losses = [ERRNOS[(start + i) % len(ERRNOS)] for i in range(8)]
        recorded = [number for number in losses for _ in range(RECORDED[fs.kind])]
        for heard in hear(fs, path, opened, losses):
            assert heard, "an error was not told"
            assert heard[-1] == losses[-1], "it was not the latest"
            assert is_subsequence(heard, recorded), f"{heard} of {recorded}"
