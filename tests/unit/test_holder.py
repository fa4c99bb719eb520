"""The process that holds a probe; here it holds something else, which is never taken for one."""

import os
import select
import signal

import pytest

from voile.linux import files
from voile.volatile import holder


@pytest.fixture
def started(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    made = holder.Started(fd, b"/some/wk")
    os.close(fd)
    pidfd = os.pidfd_open(made.pid)
    yield made, pidfd
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    os.close(pidfd)
    os.waitpid(made.pid, 0)


def ended(pidfd, timeout):
    return bool(select.select([pidfd], [], [], timeout)[0])


def test_it_stays_when_it_is_told_to(started):
    made, pidfd = started
    made.stay()
    assert not ended(pidfd, 0.3)


def test_it_ends_with_a_daemon_that_is_killed_before(started):
    made, pidfd = started
    assert not ended(pidfd, 0.1)
    made.go()  # what the kernel does then
    assert ended(pidfd, 10)


def test_only_the_genuine_probe_is_found(started, tmp_path):
    made, pidfd = started
    made.stay()
    fd = os.open(tmp_path, os.O_RDONLY)
    number = files.unique_mount_id(fd)
    os.close(fd)
    assert number, "this kernel does not number mounts"
    for mount in (number, number + 1, 0):
        assert holder.find(made.pid, mount) is None
    assert holder.find(0, number) is None
    assert not ended(pidfd, 0)


def test_no_shell(tmp_path, monkeypatch):
    monkeypatch.setattr(holder, "SHELL", b"/nowhere/sh")
    before = os.listdir("/proc/self/fd")
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(FileNotFoundError):
        holder.Started(fd, b"wk")
    os.close(fd)
    assert os.listdir("/proc/self/fd") == before
