"""The failing disk itself: what is asked of it happens, and nothing else."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from faults.faultdisk import MARKER, FaultDisk
from support.overlays import ROOT
from support.wait import wait_until

MIB = 1 << 20
BLOCK = 4096
BAD = MARKER.encode().ljust(BLOCK, b".")


@pytest.fixture
def disk(filesystems, tmp_path_factory):
    disk = FaultDisk(64 * MIB, tmp_path_factory.mktemp("disk"))
    yield disk
    disk.close()


@pytest.fixture
def raw(disk):
    """The block device, past the page cache."""
    fd = os.open(disk.device, os.O_RDWR | os.O_DIRECT)
    yield fd
    os.close(fd)


def write(fd, data, offset=0):
    """One O_DIRECT write, from memory that is aligned for it."""
    import mmap

    with mmap.mmap(-1, len(data)) as buffer:
        buffer[:] = data
        return os.pwritev(fd, [buffer], offset)


def read(fd, size, offset=0):
    import mmap

    with mmap.mmap(-1, size) as buffer:
        assert os.preadv(fd, [buffer], offset) == size
        return buffer[:]


def test_keeps_what_is_written(disk, raw):
    data = os.urandom(3 * MIB)
    assert write(raw, data, 5 * MIB) == len(data)
    assert read(raw, len(data), 5 * MIB) == data
    assert read(raw, BLOCK, 20 * MIB) == bytes(BLOCK)
    assert os.lseek(raw, 0, os.SEEK_END) == 64 * MIB


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ETIMEDOUT, errno.ENOLINK])
def test_errno_of_a_write(disk, raw, number):
    rule = disk.fail(number)
    write(raw, b"good".ljust(BLOCK))
    with pytest.raises(OSError) as caught:
        write(raw, BAD, BLOCK)
    assert caught.value.errno == number
    assert rule.hits == 1
    assert read(raw, 2 * BLOCK) == b"good".ljust(BLOCK) + bytes(BLOCK)


def test_errno_of_a_read(disk, raw):
    disk.fail(errno.EIO, "read", start=BLOCK, end=2 * BLOCK)
    read(raw, BLOCK)
    read(raw, BLOCK, 2 * BLOCK)
    for offset, size in (BLOCK, BLOCK), (0, 4 * BLOCK):
        with pytest.raises(OSError) as caught:
            read(raw, size, offset)
        assert caught.value.errno == errno.EIO


def test_errno_of_a_flush(disk, raw):
    disk.fail(errno.EIO, "flush", count=1)
    with pytest.raises(OSError) as caught:
        os.fsync(raw)
    assert caught.value.errno == errno.EIO
    os.fsync(raw)  # count=1


def test_byte_range_and_count(disk, raw):
    disk.add("write", errno=errno.EIO, start=MIB, end=2 * MIB, count=2)
    write(raw, BAD, 0)
    write(raw, BAD, 2 * MIB)
    for _ in range(2):
        with pytest.raises(OSError):
            write(raw, BAD, MIB)
    write(raw, BAD, MIB)
    assert read(raw, BLOCK, MIB) == BAD


def test_heal(disk, raw):
    disk.fail(errno.EIO)
    with pytest.raises(OSError):
        write(raw, BAD)
    disk.heal()
    write(raw, BAD)
    assert read(raw, BLOCK) == BAD


def test_first_matching_rule_decides(disk, raw):
    first = disk.fail(errno.ENOSPC, count=1)
    second = disk.fail(errno.EIO)
    for number in errno.ENOSPC, errno.EIO:
        with pytest.raises(OSError) as caught:
            write(raw, BAD)
        assert caught.value.errno == number
    assert (first.hits, second.hits) == (1, 1)


def test_hold_and_wait(disk, raw):
    done = threading.Event()
    thread = threading.Thread(target=lambda: (os.fsync(raw), done.set()))
    with disk.holding("flush") as rule:
        thread.start()
        assert rule.wait(1) == 1
        assert not done.is_set()
    thread.join(30)
    assert done.is_set()


def test_held_write_then_error(disk, raw):
    caught = []

    def run():
        try:
            write(raw, BAD)
        except OSError as exc:
            caught.append(exc.errno)

    thread = threading.Thread(target=run)
    with disk.holding("write", errno=errno.EIO, match=MARKER) as rule:
        thread.start()
        rule.wait(1)
        assert not caught
    thread.join(30)
    assert caught == [errno.EIO]


def test_delay(disk, raw):
    import time

    disk.add("flush", delay=0.05)
    before = time.monotonic()
    os.fsync(raw)
    assert time.monotonic() - before >= 0.05


def test_counters_of_the_kernel(disk, raw):
    before = disk.stat()
    write(raw, BAD)
    os.fsync(raw)
    after = disk.stat()
    assert after.writes > before.writes  # a flush counts as a write as well
    assert after.sectors_written == before.sectors_written + 8
    assert after.flushes == before.flushes + 1


def test_unknown_command(disk):
    with pytest.raises(RuntimeError, match="unknown command"):
        disk.ask(cmd="explode")


ABANDON = """
import os, signal, subprocess, sys
from pathlib import Path
from faults.faultdisk import FaultDisk
from faults.faultyfs import GOOD, FaultyFilesystem
from support import syscalls
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
fs = FaultyFilesystem("ext4", sys.argv[1])
other = FaultDisk(1 << 20, fs.point)
(fs.point / "file").write_bytes(GOOD)
fs.disk.add("flush", hold=True)
print(fs.disk.process.pid, other.process.pid, fs.disk.device, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_goes_when_the_test_is_killed(tmp_path, isolated):
    """Nothing is left of it, and nothing hangs (a disk that does not answer would stop every sync(1))."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", ABANDON, str(tmp_path)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    *pids, device = done.stdout.split()
    for pid in pids:
        wait_until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), f"diskserver {pid} is still there")
    backing = f"/sys/block/{os.path.basename(device)}/loop/backing_file"
    assert not os.path.exists(backing) or str(tmp_path) not in open(backing).read()
