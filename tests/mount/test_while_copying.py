"""What happens to a file while its copy-up is under way in another thread, held there by a hook."""

import errno
import os
import signal
import stat

import pytest

from support.syscalls import RENAME_EXCHANGE, renameat2
from support.users import in_child
from support.wait import wait_until

SIZE = 1 << 20
DATA = bytes(range(256)) * (SIZE // 256)


@pytest.fixture(params=["volatile", "", "volatile,metacopy=on"])
def mounted(request, layers, hooked_overlay):
    """An overlay with a large lower file d/e/big, and the hooks in its daemon."""
    made = layers()
    (made.lowers[0] / "d/e").mkdir(parents=True)
    (made.lowers[0] / "d/e/big").write_bytes(DATA)
    (made.lowers[0] / "d/e/other").write_bytes(DATA)
    (made.lowers[0] / "full").mkdir()
    (made.lowers[0] / "full/file").write_bytes(b"")
    overlay = hooked_overlay(made)
    point = overlay.mount(",".join(filter(None, [request.param, "redirect_dir=on,cpu_follow=off"])))
    overlay.step = 1 if "metacopy=on" in request.param else 3  # one of those in the thread
    if "metacopy=on" in request.param:
        # Then it is the data alone that is copied up, into files that are there.
        os.chmod(point / "d/e/big", 0o640)
        os.chmod(point / "d/e/other", 0o640)
    yield overlay
    if overlay.process is not None and overlay.process.poll() is None:
        overlay.hook("go")


class Child:
    """A process that does something on the mount, and waits there."""

    def __init__(self, function):
        self.pid = os.fork()
        if self.pid == 0:
            code = 255
            try:
                signal.alarm(0)
                try:
                    function()
                    code = 0
                except OSError as exc:
                    code = exc.errno
            finally:
                os._exit(code)

    def result(self):
        """The errno, or 0."""
        _pid, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def write(path, data=b"!", offset=0):
    def run():
        fd = os.open(path, os.O_WRONLY)
        os.pwrite(fd, data, offset)
        os.close(fd)

    return run


def begin(overlay, *functions, hold="hold"):
    """Starts callers, one when the other waits for the copy-up that the first one has begun."""
    overlay.hook(hold)
    children = []
    for function in functions:
        children.append(Child(function))
        wait_until(lambda: overlay.state()["waiting"] == len(children), lambda: overlay.state())
    return children


def finish(overlay, children):
    overlay.hook("go")
    results = [child.result() for child in children]
    overlay.check()
    return results


def test_renamed_with_its_parents(mounted):
    """The parent directories move while the data is copied: it arrives where they are."""
    point = mounted.point
    children = begin(mounted, write(point / "d/e/big"))
    os.rename(point / "d/e", point / "d/x")
    os.rename(point / "d", point / "y")
    os.mkdir(point / "d")
    assert finish(mounted, children) == [0]
    assert (point / "y/x/big").read_bytes() == b"!" + DATA[1:]
    assert (mounted.layers.upper / "y/x/big").read_bytes() == b"!" + DATA[1:]
    assert os.listdir(point / "d") == []
    mounted.umount()


def test_exchanged_parents(mounted):
    point = mounted.point
    children = begin(mounted, write(point / "d/e/big"))
    renameat2(point / "d/e", point / "full", RENAME_EXCHANGE)
    assert finish(mounted, children) == [0]
    assert (point / "full/big").read_bytes() == b"!" + DATA[1:]
    assert sorted(os.listdir(point / "d/e")) == ["file"]
    mounted.umount()


WAITERS = {
    "unlink": lambda d: os.unlink(d / "big"),
    "rename": lambda d: os.rename(d / "big", d / "new"),
    "rename-over": lambda d: os.rename(d / "other", d / "big"),
    "link": lambda d: os.link(d / "big", d / "new"),
    "truncate": lambda d: os.truncate(d / "big", 5),
    "chmod": lambda d: os.chmod(d / "big", 0o600),
    "write": lambda d: write(d / "big", b"?", 7)(),
    "open-truncating": lambda d: os.close(os.open(d / "big", os.O_WRONLY | os.O_TRUNC)),
}


@pytest.mark.parametrize("what", WAITERS)
def test_asked_for_while_copied(what, mounted):
    """Others who change the file wait for the copy, and then come after the first one, or before it."""
    directory = mounted.point / "d/e"
    children = begin(mounted, write(directory / "big"), lambda: WAITERS[what](directory))
    assert finish(mounted, children) == [0, 0]
    written = b"!" + DATA[1:]
    expected = {
        "unlink": {"other": DATA},
        "rename": {"new": written, "other": DATA},
        "rename-over": {"big": DATA},
        "link": {"big": written, "new": written, "other": DATA},
        "truncate": {"big": written[:5], "other": DATA},
        "chmod": {"big": written, "other": DATA},
        "write": {"big": written[:7] + b"?" + written[8:], "other": DATA},
        "open-truncating": {"big": None, "other": DATA},
    }[what]
    found = {name: (directory / name).read_bytes() for name in os.listdir(directory)}
    if expected.get("big", b"") is None:
        # Who comes first is not said.
        assert found["big"] in (b"", b"!"), len(found["big"])
        expected["big"] = found["big"]
    assert found == expected
    mounted.umount()


def test_readers_go_on(mounted):
    """Nobody waits who only reads; what was open before shows the new data after."""
    path = mounted.point / "d/e/big"
    reader = os.open(path, os.O_RDONLY)
    children = begin(mounted, write(path))
    assert os.stat(path).st_size == SIZE
    assert in_child(lambda: path.read_bytes()) == DATA
    assert finish(mounted, children) == [0]
    assert os.pread(reader, SIZE, 0) == b"!" + DATA[1:]
    os.close(reader)
    mounted.umount()


def test_read_under_way_while_others_copy_up(layers, hooked_overlay):
    """A read that a thread has not begun yet is not one of a descriptor that is another file's meanwhile."""
    made = layers()
    size = 128 << 10
    for name in ("file", "other"):
        with open(made.lowers[0] / name, "wb") as file:
            file.write(name[:1].encode() * size)
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    overlay = hooked_overlay(made)
    point = overlay.mount("volatile,cpu_follow=off")
    fd = os.open(point / "file", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
    overlay.hook("holdlater")
    got, answer = os.pipe()

    def read():
        os.write(answer, os.pread(fd, 4096, 0))

    child = Child(read)
    wait_until(lambda: overlay.state()["outstanding"] == 1, lambda: overlay.state())
    os.chmod(point / "file", 0o600)  # copies up
    assert os.pread(fd, 4096, size // 2) == b"f" * 4096
    others = [os.open(point / "other", os.O_RDONLY) for _ in range(3)]
    assert finish(overlay, [child]) == [0]
    assert os.read(got, 8192) == b"f" * 4096
    for each in (fd, got, answer, *others):
        os.close(each)
    overlay.umount()


def test_open_unlinked_lower_file_is_written(mounted):
    """The copy of a file that has lost its name is complete, and goes with its last user."""
    point = mounted.point
    reader = os.open(point / "d/e/big", os.O_RDONLY)
    os.unlink(point / "d/e/big")

    def change():
        os.close(os.open(f"/proc/self/fd/{reader}", os.O_WRONLY))
        os.fchmod(reader, 0o611)

    children = begin(mounted, change)
    (point / "d/e/big").write_bytes(b"another")
    assert finish(mounted, children) == [0]
    assert os.fstat(reader).st_mode & 0o777 == 0o611
    assert os.pread(reader, SIZE, 0) == DATA
    os.close(reader)
    assert (point / "d/e/big").read_bytes() == b"another"
    mounted.umount()


def test_killed_caller(mounted):
    """A caller that is killed while it waits ends when the copy does; the copy is a whole one."""
    point = mounted.point
    base = mounted.state()
    children = begin(mounted, write(point / "d/e/big"), write(point / "d/e/big", b"?", 7))
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
    assert finish(mounted, children) == [-signal.SIGKILL] * 2
    data = (point / "d/e/big").read_bytes()
    assert data[8:] == DATA[8:]
    state = mounted.state()
    assert (state["files"], state["outstanding"]) == (base["files"], 0)
    mounted.umount()


def test_failing_copy(mounted):
    """Everybody who waits is told; the next one may try again."""
    point = mounted.point
    children = begin(mounted, write(point / "d/e/big"), lambda: os.unlink(point / "d/e/big"))
    mounted.hook(f"fail.{mounted.step}.{errno.ENOSPC}")
    assert finish(mounted, children) == [errno.ENOSPC] * 2
    assert sorted(os.listdir(mounted.layers.upper / "d/e")) == (["big", "other"] if mounted.step == 1 else [])
    children = begin(mounted, write(point / "d/e/big"))
    assert finish(mounted, children) == [0]
    assert (point / "d/e/big").read_bytes() == b"!" + DATA[1:]
    mounted.umount()


def test_bug_in_a_copy(mounted):
    """Also an exception that nobody has thought of ends the wait."""
    children = begin(
        mounted, write(mounted.point / "d/e/big"), lambda: os.chmod(mounted.point / "d/e/big", 0o600)
    )
    mounted.hook(f"fail.{mounted.step}.-1")
    mounted.hook("go")
    assert [child.result() for child in children] == [errno.EIO] * 2
    wait_until(lambda: "ZeroDivisionError" in mounted.output(), mounted.output)
    mounted.log.truncate(0)
    assert os.stat(mounted.point / "d/e/big").st_size == SIZE
    mounted.umount()


def test_no_threads(mounted):
    """Where the system gives us no thread, the work is done all the same."""
    mounted.hook("nothreads")
    children = [Child(write(mounted.point / "d/e/big"))]
    assert finish(mounted, children) == [0]
    assert (mounted.point / "d/e/big").read_bytes() == b"!" + DATA[1:]
    mounted.umount()


def test_daemon_dies(mounted):
    """Who waits for it gets an error."""
    children = begin(mounted, write(mounted.point / "d/e/big"), lambda: os.unlink(mounted.point / "d/e/big"))
    mounted.kill()
    assert {child.result() for child in children} <= {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}
    mounted.close()


def test_unmounted_lazily(mounted):
    """Parked requests keep the mount; it ends with the last of them."""
    from support import syscalls

    children = begin(mounted, write(mounted.point / "d/e/big"))
    upper = mounted.layers.upper
    fd = os.open(mounted.point, os.O_RDONLY)
    syscalls.umount(mounted.point, syscalls.MNT_DETACH)
    try:
        os.getxattr(f"/proc/self/fd/{fd}", "user.hook.go")
    except OSError as exc:
        assert exc.errno == errno.ENODATA
    os.close(fd)
    assert [child.result() for child in children] == [0]
    assert mounted.process.wait(20) == 0
    assert mounted.output() == ""
    assert (upper / "d/e/big").read_bytes() == b"!" + DATA[1:]


@pytest.mark.parametrize("mounted", [""], indirect=True)
def test_a_directory_is_synced_while_others_are_served(mounted):
    """On a mount that is not volatile its copy is durable before it shows."""
    point = mounted.point
    functions = [lambda: os.mkdir(point / "d/new"), lambda: os.chmod(point / "full", 0o700)]
    children = begin(mounted, *functions, hold="holddirs")
    assert sorted(os.listdir(point)) == ["d", "full"]
    assert os.stat(point / "d").st_mode == os.stat(mounted.layers.lowers[0] / "d").st_mode
    assert os.listdir(mounted.layers.upper) == []
    assert finish(mounted, children) == [0, 0]
    assert sorted(os.listdir(point / "d")) == ["e", "new"]
    assert stat.S_IMODE(os.stat(mounted.layers.upper / "full").st_mode) == 0o700
