"""What a volatile mount does by itself when data is lost: errors=, error_code=, poll=, the log, --watch."""

import errno
import fcntl
import json
import mmap
import os
import re
import signal
import struct
import subprocess
import time
from types import SimpleNamespace

import pytest

from faults.faultyfs import GOOD
from faults.places import PLACES, VOILE, Place, voile
from support.outcome import result
from support.overlays import Layers, VoileOverlay, voile_missing
from support.wait import wait_until

pytestmark = pytest.mark.skipif(voile_missing() is not None, reason=str(voile_missing()))


FS_IOC_SETFLAGS = 0x40086602
FS_NODUMP_FL = 0x40
# Nobody looks but those who ask. Not fuseblk: on that sync(2) asks, and anybody on the machine may call it.
# No canary: it looks once a second.
NO_POLL = "poll=0,fuseblk=off,syncfs=none"


def status(point):
    done = subprocess.run([VOILE, "status", "--json", point], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture
def mount(fs):
    """mount(*options) -> a volatile overlay; closed at the end, when it must have said nothing unexpected."""
    made = []

    def make(*options):
        layers = fs.layers()
        (layers.lowers[0] / "lower").write_bytes(GOOD)
        (layers.lowers[0] / "directory").mkdir()
        (layers.lowers[0] / "directory" / "inside").write_bytes(GOOD)
        made.append(VoileOverlay(layers))
        made[-1].mount("volatile", *options)
        (made[-1].point / "file").write_bytes(GOOD)
        return made[-1]

    yield make
    for overlay in made:
        overlay.check()
        overlay.umount()


def open_some(point):
    return SimpleNamespace(
        upper=os.open(point / "file", os.O_RDWR),
        lower=os.open(point / "lower", os.O_RDONLY),
        directory=os.open(point / "directory", os.O_RDONLY),
    )


def close(opened):
    for fd in vars(opened).values():
        result(os.close, fd)  # EIO after a shutdown; closed it is


@pytest.mark.parametrize("how", ["fsync", "poll"])
def test_it_is_logged_once(fs, mount, how):
    overlay = mount("poll=0.05" if how == "poll" else NO_POLL)
    fs.lose(errno.ENOSPC)
    if how == "fsync":
        time.sleep(0.2)
        assert overlay.log_line() is None, "nobody has looked"
        with open(overlay.point / "file") as file:
            assert [result(os.fsync, file) for _ in range(3)] == [errno.ENOSPC] * 3
    line = wait_until(overlay.log_line, "nothing was logged")
    assert f"'{overlay.layers.upper}' ({fs.kind} on {fs.disk.device}) has lost data" in line
    assert "No space left on device (ENOSPC); sync calls fail from now on" in line
    # Whatever comes after it: `overlay.output` leaves out one line, the rest is checked at the end.
    fs.sync()
    fs.lose(errno.EIO)
    assert status(overlay.point)["error"]["name"] == "EIO"


def test_the_default_is_to_look_every_second(fs, mount):
    overlay = mount()
    assert status(overlay.point)["poll_s"] == 1
    fs.lose(errno.EIO)
    wait_until(overlay.log_line, "nothing was logged")


def test_no_poll_without_need(fs):
    """Where nothing can be lost, or errors are told to those who sync, no timer runs."""
    for options in ("ro", "", "volatile,poll=0"):
        overlay = VoileOverlay(fs.layers())
        overlay.mount(options)
        assert status(overlay.point)["poll_s"] is None
        overlay.umount()


def test_the_first_look_is_the_last(fs, mount):
    """A failed mount needs no timer."""
    overlay = mount("poll=0.01,fuseblk=off,syncfs=none")

    def interruptions():
        text = open(f"/proc/{overlay.pid}/status").read()
        return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", text, re.MULTILINE)[1])

    before = interruptions()
    wait_until(lambda: interruptions() > before + 3, "it does not look")
    fs.lose(errno.EIO)
    wait_until(overlay.log_line, "nothing was logged")
    before = interruptions()
    time.sleep(0.3)
    assert interruptions() - before < 10


def test_error_code_eio(fs, mount):
    overlay = mount("error_code=eio", NO_POLL)
    opened = open_some(overlay.point)
    fs.lose(errno.ENOSPC)
    assert [result(os.fsync, fd) for fd in vars(opened).values()] == [errno.EIO] * 3
    assert voile("sync", overlay.point)[0] == 74
    assert status(overlay.point)["error"]["name"] == "ENOSPC", "the truth can still be asked for"
    close(opened)


CHANGES = {
    "create": lambda point, fds: os.open(point / "new", os.O_CREAT | os.O_WRONLY),
    "mkdir": lambda point, fds: os.mkdir(point / "new"),
    "symlink": lambda point, fds: os.symlink("x", point / "new"),
    "mknod": lambda point, fds: os.mknod(point / "new", 0o10644),
    "link": lambda point, fds: os.link(point / "file", point / "new"),
    "rename": lambda point, fds: os.rename(point / "file", point / "new"),
    "unlink": lambda point, fds: os.unlink(point / "file"),
    "rmdir": lambda point, fds: os.rmdir(point / "empty"),
    "chmod": lambda point, fds: os.chmod(point / "file", 0o600),
    "chown": lambda point, fds: os.chown(point / "file", 1, 1),
    "utime": lambda point, fds: os.utime(point / "file"),
    "truncate": lambda point, fds: os.truncate(point / "file", 1),
    "setxattr": lambda point, fds: os.setxattr(point / "file", "user.new", b"x"),
    "removexattr": lambda point, fds: os.removexattr(point / "file", "user.old"),
    "chattr": lambda point, fds: fcntl.ioctl(fds.upper, FS_IOC_SETFLAGS, struct.pack("i", FS_NODUMP_FL)),
    "open for writing": lambda point, fds: os.open(point / "file", os.O_WRONLY),
    "open with O_TRUNC": lambda point, fds: os.open(point / "file", os.O_RDONLY | os.O_TRUNC),
    "open a lower file for writing": lambda point, fds: os.open(point / "lower", os.O_RDWR),
    "ftruncate": lambda point, fds: os.ftruncate(fds.upper, 1),
    "fallocate": lambda point, fds: os.posix_fallocate(fds.upper, 0, 100_000),
    "copy_file_range": lambda point, fds: os.copy_file_range(fds.lower, fds.upper, 10),
}


def test_remount_ro(fs, mount):
    overlay = mount("errors=remount-ro", "poll=0.05", "passthrough=off")
    point = overlay.point
    opened = open_some(point)
    os.mkdir(point / "empty")
    os.setxattr(point / "file", "user.old", b"x")
    said = status(point)
    assert (said["errors"], said["read_only"], said["state"]) == ("remount-ro", False, "ok")
    fs.lose(errno.ENOSPC)
    assert "read-only from now on" in wait_until(overlay.log_line, "nothing was logged")
    got = {name: result(change, point, opened) for name, change in CHANGES.items()}
    assert got == dict.fromkeys(CHANGES, errno.EROFS)
    assert result(os.pwrite, opened.upper, b"x", 0) == errno.EROFS, "a file that was open for writing"
    # Everything else goes on.
    assert (point / "file").read_bytes() == os.pread(opened.lower, len(GOOD), 0) == GOOD
    assert os.listdir(opened.directory) == ["inside"]
    assert result(os.fsync, opened.upper) == errno.ENOSPC
    said = status(point)
    assert (said["read_only"], said["state"]) == (True, "failed")
    assert "read-only since then" in voile("status", point)[1]
    close(opened)


def test_remount_ro_and_passthrough(fs, mount):
    """A file that was open for writing, and passed through, can still be written: the kernel does not ask."""
    overlay = mount("errors=remount-ro", NO_POLL)
    opened = open_some(overlay.point)
    fs.lose(errno.EIO)
    assert result(os.fsync, opened.upper) == errno.EIO
    assert status(overlay.point)["passthrough"]
    assert result(os.pwrite, opened.upper, b"x", 0) == 0
    assert result(os.ftruncate, opened.upper, 1) == errno.EROFS
    assert result(os.open, overlay.point / "file", os.O_RDWR) == errno.EROFS
    close(opened)


LOOKS = {
    "stat": lambda point, fds: os.stat(point / "file"),
    "stat of what is not there": lambda point, fds: os.stat(point / "none"),
    "stat below": lambda point, fds: os.stat(point / "directory" / "inside"),
    "open": lambda point, fds: os.close(os.open(point / "lower", os.O_RDONLY)),
    "listdir": lambda point, fds: os.listdir(point),
    "statvfs": lambda point, fds: os.statvfs(point),
    "getxattr": lambda point, fds: os.getxattr(point / "file", "user.old"),
    "read": lambda point, fds: os.pread(fds.upper, 10, 0),
    "read of a lower file": lambda point, fds: os.pread(fds.lower, 10, 0),
    "write": lambda point, fds: os.pwrite(fds.upper, b"x", 0),
    "fstat": lambda point, fds: os.fstat(fds.upper),
    "fstat of a lower file": lambda point, fds: os.fstat(fds.lower),
    "fstat of a directory": lambda point, fds: os.fstat(fds.directory),
    "list an open directory": lambda point, fds: os.listdir(fds.directory),
    "fsync": lambda point, fds: os.fsync(fds.upper),
    "fsync of a directory": lambda point, fds: os.fsync(fds.directory),
}


def use(point, opened):
    """Have the kernel remember as much as it can."""
    os.setxattr(point / "file", "user.old", b"x")
    os.mkdir(point / "empty")
    for look in LOOKS.values():
        result(look, point, opened)


def after_shutdown(point, opened):
    return {
        name: errno.errorcode.get(result(call, point, opened), 0)
        for name, call in {**LOOKS, **CHANGES}.items()
    }


ALL_EIO = dict.fromkeys([*LOOKS, *CHANGES], "EIO")


@pytest.mark.parametrize("passthrough", ["on", "off"])
@pytest.mark.parametrize("how", ["poll", "fsync"])
def test_shutdown(fs, mount, how, passthrough):
    poll = "poll=0.05" if how == "poll" else NO_POLL
    overlay = mount("errors=shutdown", poll, f"passthrough={passthrough}")
    point = overlay.point
    opened = open_some(point)
    use(point, opened)
    fs.lose(errno.ENOSPC)
    if how == "fsync":
        assert result(os.fsync, opened.upper) == errno.ENOSPC
    assert "the mount is shut down" in wait_until(overlay.log_line, "nothing was logged")
    # What is cached or passes through takes a moment.
    wait_until(lambda: after_shutdown(point, opened) == ALL_EIO, lambda: after_shutdown(point, opened))
    said = status(point)
    assert (said["state"], said["error"]["name"]) == ("shutdown", "ENOSPC")
    assert said["pid"] == overlay.pid
    close(opened)


def test_policy_of_an_ordinary_user(fs, as_user):
    """Through fusermount3: the daemon sees its mount, too."""

    def work(point, layers):
        (point / "file").write_bytes(GOOD)
        (point / "directory").mkdir()
        (point / "directory" / "inside").write_bytes(GOOD)
        (point / "lower").write_bytes(GOOD)
        opened = open_some(point)
        use(point, opened)
        fs.lose(errno.EIO, layers.upper / "file")
        wait_until(lambda: after_shutdown(point, opened) == ALL_EIO, lambda: after_shutdown(point, opened))
        said = status(point)
        close(opened)
        return said["state"], said["error"]["name"]

    place = Place("fusermount3", as_user, fs.layers(), "volatile,errors=shutdown,poll=0.05")
    assert place.run(work) == ("shutdown", "EIO")


@pytest.mark.parametrize("name", PLACES)
def test_the_owner_may_shut_down(filesystems, as_user, name):
    def work(point, layers):
        (point / "file").write_bytes(GOOD)
        fd = os.open(point / "file", os.O_RDWR)
        said = voile("shutdown", point)
        got = [result(os.pwrite, fd, b"x", 0), result(os.stat, point / "file")]
        result(os.close, fd)
        return said, got, voile("umount", point)

    layers = Layers(filesystems.directory())
    assert Place(name, as_user, layers, "volatile").run(work) == ((0, ""), [errno.EIO] * 2, (0, ""))


def test_status_watch(fs, mount):
    overlay = mount("poll=0.05")
    watching = subprocess.Popen(
        [VOILE, "status", "--watch", "--json", overlay.point], stdout=subprocess.PIPE, text=True
    )
    assert json.loads(watching.stdout.readline())["state"] == "ok"
    fs.lose(errno.EIO)
    said = json.loads(watching.stdout.readline())
    assert (said["state"], said["error"]["name"]) == ("failed", "EIO")
    watching.send_signal(signal.SIGINT)
    assert watching.wait(10) == 0


def test_status_watch_ends_with_the_mount(fs):
    overlay = VoileOverlay(fs.layers())
    overlay.mount("volatile")
    command = [VOILE, "status", "--watch", overlay.point]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert watching.stdout.readline() == f"{overlay.point}: ok, volatile\n"
    wait_until(lambda: result(overlay.umount) == 0, "it keeps the mount busy")
    assert watching.wait(10) == 0


def test_mapped_pages_are_taken_away(fs, mount):
    """Without passthrough: SIGBUS."""
    overlay = mount("errors=shutdown", NO_POLL, "passthrough=off")
    opened = open_some(overlay.point)
    mapped = mmap.mmap(opened.upper, len(GOOD))
    assert mapped[:] == GOOD
    fs.lose(errno.EIO)
    assert result(os.fsync, opened.upper) == errno.EIO
    wait_until(lambda: result(os.fstat, opened.lower) == errno.EIO, "not swept")

    def touch():
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            os._exit(mapped[0] & 0)
        return os.WTERMSIG(os.waitpid(pid, 0)[1])

    wait_until(lambda: touch() == signal.SIGBUS, "still mapped")
    mapped.close()
    close(opened)
