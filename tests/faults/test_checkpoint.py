"""`voile checkpoint` and `voile umount --sync`: what is on the disk, what the marker says, what goes on."""

import errno
import os
import signal
import threading
import time

import pytest

from faults.faultdisk import MARKER
from faults.faultyfs import BAD, GOOD
from faults.places import PLACES, Place, voile
from faults.test_policy import status
from support import mountinfo
from support.outcome import result
from support.overlays import KernelOverlay, VoileOverlay, voile_missing
from support.wait import wait_until
from voile.server import control

pytestmark = pytest.mark.skipif(voile_missing() is not None, reason=str(voile_missing()))


def marked(layers):
    """Whether the marker of a volatile mount is there. Root may look into directories of mode 0."""
    return (layers.work / "work/incompat/volatile").exists()


def write(path, data=BAD):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.pwrite(fd, data, 0)
    os.close(fd)


def lost(point, number=errno.EIO):
    text = f"{os.strerror(number)} ({errno.errorcode[number]})"
    return 74, f"voile: {point}: the upper file system has lost data: {text}\n"


@pytest.fixture
def overlay(fs):
    mounted = VoileOverlay(fs.layers())
    mounted.mount("volatile,fuseblk=off")
    yield mounted
    if mounted.process is not None and mountinfo.at(mounted.point):
        mounted.check()
    mounted.close()


@pytest.mark.parametrize("command", ["checkpoint", "umount --sync"])
@pytest.mark.parametrize("name", PLACES)
def test_everything_is_on_the_disk(fs, as_user, name, command):
    def work(point, layers):
        rule = fs.disk.add("write", match=MARKER)
        write(point / "file")
        os.mkdir(point / "directory")
        before = voile("sync", point), rule.hits
        flushes = fs.disk.stat().flushes
        said = voile(*command.split(), point)
        hits = rule.hits
        rule.remove()
        return before, said, hits > 0, fs.disk.stat().flushes > flushes, bool(mountinfo.at(point))

    layers = fs.layers()
    place = Place(name, as_user, layers, "volatile")
    still_there = command == "checkpoint"
    assert place.run(work) == (((0, ""), 0), (0, ""), True, True, still_there)
    assert marked(layers) == still_there


def test_it_goes_on_after_a_checkpoint(fs, overlay):
    write(overlay.point / "file")
    assert status(overlay.point)["checkpoint"] is None
    assert voile("checkpoint", overlay.point) == (0, "")
    assert status(overlay.point)["checkpoint"] is not None
    write(overlay.point / "another", GOOD)
    assert status(overlay.point)["state"] == "ok"
    assert marked(overlay.layers)
    fs.lose(errno.ENOSPC)
    assert voile("checkpoint", overlay.point) == lost(overlay.point, errno.ENOSPC)


@pytest.mark.parametrize("next_one", [VoileOverlay, KernelOverlay], ids=lambda c: c.name)
@pytest.mark.parametrize("options", ["volatile", ""])
def test_after_umount_sync_it_is_an_ordinary_upper(fs, overlay, next_one, options):
    write(overlay.point / "file", GOOD)
    assert voile("umount", "--sync", overlay.point) == (0, "")
    assert overlay.process.wait(10) == 0
    assert not marked(overlay.layers)
    again = next_one(overlay.layers)
    again.mount(options)
    assert (again.point / "file").read_bytes() == GOOD
    again.umount()
    assert marked(overlay.layers) == (options == "volatile" and next_one is VoileOverlay) or (
        next_one is KernelOverlay
    )


COMMANDS = ("checkpoint", "umount --sync")


@pytest.mark.parametrize("command", COMMANDS)
def test_lost_before(fs, overlay, command):
    fs.lose(errno.ENOSPC)
    for _ in range(2):
        assert voile(*command.split(), overlay.point) == lost(overlay.point, errno.ENOSPC)
    assert mountinfo.at(overlay.point)
    assert marked(overlay.layers)
    write(overlay.point / "file", GOOD)  # nobody is kept waiting


@pytest.mark.parametrize("command", COMMANDS)
def test_lost_by_its_own_sync(fs, overlay, command):
    rule = fs.disk.fail(errno.EIO)
    write(overlay.point / "file")
    assert voile("sync", overlay.point) == (0, "")
    assert voile(*command.split(), overlay.point) == lost(overlay.point)
    assert rule.hits
    rule.remove()
    assert marked(overlay.layers)
    fd = os.open(overlay.point / "file", os.O_RDONLY)
    assert result(os.fsync, fd) == errno.EIO
    os.close(fd)
    assert voile(*command.split(), overlay.point) == lost(overlay.point), "for good"


def test_with_a_probe_of_single_files(fs):
    """The sync itself sees what that probe does not: a file outside."""
    overlay = VoileOverlay(fs.layers())
    overlay.mount("volatile,fuseblk=off,probe=inode,poll=0")
    write(overlay.point / "file", GOOD)
    fs.lose(errno.EIO)
    assert voile("sync", overlay.point) == (0, "")
    assert voile("checkpoint", overlay.point) == lost(overlay.point)
    assert voile("sync", overlay.point)[0] == 74
    overlay.umount()


def test_a_file_open_for_writing(overlay):
    fd = os.open(overlay.point / "file", os.O_RDWR | os.O_CREAT)
    exit_status, said = voile("umount", "--sync", overlay.point)
    assert (exit_status, "in use" in said) == (32, True)
    assert marked(overlay.layers)
    os.pwrite(fd, GOOD, 0)
    write(overlay.point / "another", GOOD)
    os.close(fd)
    assert voile("umount", "--sync", overlay.point) == (0, "")


def test_a_directory_in_use(overlay):
    """The unmount fails after all is done: it is undone."""
    write(overlay.point / "file", GOOD)
    fd = os.open(overlay.point, os.O_RDONLY)
    exit_status, said = voile("umount", "--sync", overlay.point)
    assert (exit_status, "in use" in said) == (32, True)
    assert marked(overlay.layers)
    write(overlay.point / "another", GOOD)
    os.close(fd)
    assert voile("umount", "--sync", overlay.point) == (0, "")
    assert not marked(overlay.layers)


def freezer(point):
    """A process that freezes the mount and then does nothing; its pid."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            control.freeze(os.fsencode(point))
            os.write(write_end, b"x")
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(write_end)
    assert os.read(read_end, 1) == b"x"
    os.close(read_end)
    return pid


def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_who_froze_it_dies(overlay):
    """Changes wait, reads do not; then all goes on, and the marker is back before the first change."""
    write(overlay.point / "file", GOOD)
    pid = freezer(overlay.point)
    assert not marked(overlay.layers)
    done = []

    def change():
        os.mkdir(overlay.point / "directory")
        done.append(marked(overlay.layers))

    assert os.listdir(overlay.point) == ["file"]  # not later: who changes a directory has it locked
    thread = threading.Thread(target=change)
    thread.start()
    assert (overlay.point / "file").read_bytes() == GOOD
    assert voile("checkpoint", overlay.point)[0] == 32
    time.sleep(0.1)
    assert not done, "it did not wait"
    end(pid)
    thread.join(10)
    assert done == [True]
    assert os.path.isdir(overlay.point / "directory")


def test_the_daemon_is_killed_while_frozen(fs, overlay):
    """The marker is not there, and need not be: all is on the disk."""
    rule = fs.disk.add("write", match=MARKER)
    write(overlay.point / "file")
    pid = freezer(overlay.point)
    overlay.kill()
    end(pid)
    assert rule.hits
    rule.remove()
    assert not marked(overlay.layers)


def test_the_disk_is_slow(fs):
    """Reading goes on while a checkpoint waits for the disk (but access times wait for ext4's journal)."""
    overlay = VoileOverlay(fs.layers())
    overlay.mount("volatile,fuseblk=off,noatime")
    write(overlay.point / "file", GOOD)
    write(overlay.point / "dirty")
    said = []
    rule = fs.disk.add("write", match=MARKER, delay=1, count=1)
    thread = threading.Thread(target=lambda: said.append(voile("checkpoint", overlay.point)))
    thread.start()
    rule.wait(1)
    count = 0
    while count < 20 and not said:
        assert (overlay.point / "file").read_bytes() == GOOD
        assert not os.path.exists(overlay.point / f"nothing-{count}")
        count += 1
    assert not said, "the checkpoint was faster than the disk"
    thread.join(30)
    assert said == [(0, "")]
    overlay.umount()


def test_not_volatile(fs):
    overlay = VoileOverlay(fs.layers())
    overlay.mount("fuseblk=off")
    rule = fs.disk.add("write", match=MARKER)
    write(overlay.point / "file")
    assert voile("checkpoint", overlay.point) == (0, "")
    assert rule.hits
    rule.remove()
    assert voile("umount", "--sync", overlay.point) == (0, "")
    assert overlay.process.wait(10) == 0


def test_after_a_shutdown(overlay):
    voile("shutdown", overlay.point)
    assert voile("checkpoint", overlay.point) == (74, f"voile: {overlay.point}: Input/output error\n")


def test_somebody_else_may_not(fs, overlay, as_user):
    overlay.layers.base.chmod(0o755)
    denied = (1, f"voile: {overlay.point}: Operation not permitted\n")
    for command in COMMANDS:
        assert as_user(lambda command=command: voile(*command.split(), overlay.point)) == denied


def test_progress_on_a_terminal(overlay):
    import pty

    write(overlay.point / "file", GOOD)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(str(VoileOverlay.program[0]), ["voile", "checkpoint", str(overlay.point)])
    said = b""
    wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0], "it does not end")
    try:
        said = os.read(terminal, 4096)
    except OSError:
        pass
    os.close(terminal)
    assert b"voile:" not in said
    assert said.replace(b"\r", b"").replace(b"\x1b[K", b"").strip() == b"" or b"MiB dirty" in said
