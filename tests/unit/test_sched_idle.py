"""Giving way to the client: on a real scheduler, in a process of its own for each test."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from voile.fuse.sched_idle import SchedIdle
from voile.linux.process import leave_sched_idle


def in_child(body):
    """Run `body` in a child, which may change its policy; what it raises fails the test."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            body()
            status = 0
        except pytest.skip.Exception as skipped:
            print(skipped, file=sys.stderr)
            status = 77
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 77:
        pytest.skip("the policy cannot be left again here: it takes CAP_SYS_NICE")
    assert status == 0


@contextlib.contextmanager
def busy(cpu, count):
    """Threads that want `cpu` all the time."""
    command = ["taskset", "-c", str(cpu), "sh", "-c", "while :; do :; done"]
    hogs = [subprocess.Popen(command) for _ in range(count)]
    try:
        time.sleep(0.2)
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def started():
    """One that is on, whatever else this machine does."""
    idle = SchedIdle()
    idle._most = 1 << 20
    idle.begin()
    if not idle.on:
        pytest.skip("no CAP_SYS_NICE")
    return idle


def test_the_policy_lasts_for_the_answer_only():
    def body():
        os.nice(3)
        idle = started()
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
        reading, writing = os.pipe()
        seen = []

        def look(number, frame):
            seen.append(os.sched_getscheduler(0))

        # The write of a full pipe waits; meanwhile a signal has us look.
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 4096)
        os.set_blocking(writing, True)
        signal.signal(signal.SIGALRM, look)
        for write, answer in ((idle.write, b"a"), (idle.writev, (b"a", b"b"))):
            drain = os.fork()
            if drain == 0:
                time.sleep(0.4)
                os.read(reading, 1 << 16)
                os._exit(0)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            assert write(writing, answer) == len(b"".join(answer) if write == idle.writev else answer)
            os.waitpid(drain, 0)
            assert seen.pop() == os.SCHED_IDLE and os.sched_getscheduler(0) == os.SCHED_OTHER
            os.set_blocking(writing, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writing, b"x" * 4096)
            os.set_blocking(writing, True)
        assert os.nice(0) == 3

    in_child(body)


def test_the_policy_ends_when_the_answer_is_refused():
    def body():
        idle = started()
        for write, answer in ((idle.write, b"a"), (idle.writev, (b"a", b"b"))):
            with pytest.raises(OSError):
                write(-1, answer)
            assert os.sched_getscheduler(0) == os.SCHED_OTHER

    in_child(body)


def test_it_stops_when_the_loop_has_to_wait_and_comes_back_later():
    def body():
        cpu = min(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpu})
        idle = started()
        idle.look(16)
        idle.look(16)
        assert idle.on, "nobody else wanted the CPU"
        with busy(cpu, 2):
            end = time.monotonic() + 20
            while idle.on and time.monotonic() < end:
                for _ in range(3_000_000):
                    pass
                idle.look(16)
        assert not idle.on
        idle.begin()
        assert not idle.on, "at once"
        time.sleep(1.1)
        idle.begin()
        assert idle.on

    in_child(body)


def test_not_on_a_busy_machine():
    def body():
        started().close()  # it could be done
        idle = SchedIdle()
        cpus = os.cpu_count()
        with busy(min(os.sched_getaffinity(0)), max(3, cpus)):
            idle.begin()
            assert not idle.on
        idle.close()

    in_child(body)


def test_not_where_it_could_not_be_left():
    """Without the capability the way to SCHED_IDLE leads in one direction only."""
    if os.getuid() != 0:
        pytest.skip("gives up root")

    def body():
        import resource

        resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
        os.setresuid(65534, 65534, 65534)
        idle = SchedIdle()
        idle._most = 1 << 20
        idle.begin()
        assert not idle.on and os.sched_getscheduler(0) == os.SCHED_OTHER
        idle.begin()
        assert not idle.on
        idle.close()

    in_child(body)


@pytest.mark.parametrize("policy", [os.SCHED_BATCH, os.SCHED_FIFO])
def test_a_policy_that_somebody_chose_stays(policy):
    def body():
        started().close()
        os.sched_setscheduler(0, policy, os.sched_param(1 if policy == os.SCHED_FIFO else 0))
        idle = SchedIdle()
        idle._most = 1 << 20
        idle.begin()
        assert not idle.on and os.sched_getscheduler(0) == policy

    in_child(body)


def test_closed_twice_and_for_good():
    def body():
        idle = started()
        idle.close()
        idle.close()
        idle.begin()
        assert not idle.on

    in_child(body)


def test_an_answer_is_written_also_where_the_policy_cannot_be_changed_any_more():
    """Once written it must not count as refused: that would be silent, or answered twice."""
    if os.getuid() != 0:
        pytest.skip("gives up root")

    def body():
        import resource

        idle = started()
        reading, writing = os.pipe()
        resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
        os.setresuid(65534, 65534, 65534)
        assert idle.write(writing, b"one") == 3  # goes to SCHED_IDLE, and cannot leave it
        assert not idle.on
        assert idle.writev(writing, (b"t", b"wo")) == 3
        assert os.read(reading, 9) == b"onetwo"
        with pytest.raises(OSError, match="Bad file descriptor"):
            idle.write(-1, b"x")

    in_child(body)


def test_threads_that_a_signal_handler_starts_have_the_usual_policy():
    def body():
        started()
        done = threading.Event()
        seen = []

        def work():
            leave_sched_idle()
            seen.append(os.sched_getscheduler(0))
            done.set()

        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        threading.Thread(target=work).start()
        assert done.wait(30)
        assert seen == [os.SCHED_OTHER]

    in_child(body)


def test_a_policy_that_somebody_chooses_later_stays():
    def body():
        started()
        idle = SchedIdle()
        idle._most = 1 << 20
        assert idle._prepare()
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        idle.begin()
        assert not idle.on and os.sched_getscheduler(0) == os.SCHED_BATCH

    in_child(body)
