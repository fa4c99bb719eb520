"""The protocol on real mounts: every operation, both mount types, sync errors, and failures of ours."""

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from mount.mirrorfs import IOCTL_ECHO, IOCTL_WAIT, Mirror

from support import mountinfo
from support.users import NOBODY, USER, ChildFailed
from voile.fuse import abi, mountpoint
from voile.linux import files, namespaces

PR_SET_DUMPABLE = 4
EXAMPLE = Path(__file__).parents[2] / "examples" / "memfs.py"


@pytest.fixture
def mirror(scratch, tmp_path):
    """mirror(**switches) -> Mirror, unmounted at the end."""
    made = []

    def make(**switches):
        point = tmp_path / f"mnt{len(made)}"
        point.mkdir()
        made.append(Mirror(scratch, point, **switches))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(params=["fuse", "fuseblk"])
def either(request, mirror):
    """A mirror mounted as plain fuse and as fuseblk."""
    made = mirror(fuseblk=request.param == "fuseblk")
    assert made.type == request.param
    return made


def names(calls):
    return [call[0] for call in calls]


def test_mount_shows_type_and_source(mirror):
    plain, block = mirror(), mirror(fuseblk=True)
    shown = {m.point: m for m in mountinfo.mounts()}
    assert shown[os.fsdecode(plain.point)].fstype == "fuse.mirror"
    assert shown[os.fsdecode(plain.point)].source == "mirror"
    assert shown[os.fsdecode(block.point)].fstype == "fuseblk.mirror"
    assert shown[os.fsdecode(block.point)].source.startswith("/dev/loop")


def test_init_agrees_on_what_was_offered(mirror):
    (name, minor, flags, max_write) = mirror().calls()[0]
    assert name == "init" and minor >= abi.MINIMUM_MINOR_VERSION and max_write == 1 << 20
    for flag in (
        abi.MAX_PAGES,
        abi.DO_READDIRPLUS,
        abi.HAS_IOCTL_DIR,
        abi.HANDLE_KILLPRIV_V2,
        abi.SETXATTR_EXT,
    ):
        assert flags & flag
    assert not flags & (abi.WRITEBACK_CACHE | abi.POSIX_LOCKS | abi.FLOCK_LOCKS)


def test_tree_operations(either):
    path = either.path
    os.mkdir(path("d"), 0o750)
    fd = os.open(path("d/f"), os.O_CREAT | os.O_RDWR, 0o640)
    os.write(fd, b"hello")
    os.close(fd)
    os.symlink("f", path("d/s"))
    os.link(path("d/f"), path("d/h"))
    os.mkfifo(path("d/p"))
    os.mknod(path("d/c"), stat.S_IFCHR | 0o600, os.makedev(259, 70_000))
    assert Path(path("d/s")).read_bytes() == b"hello"
    assert os.readlink(path("d/s")) == "f"
    assert os.stat(path("d/f")).st_nlink == 2
    assert os.stat(path("d/c")).st_rdev == os.makedev(259, 70_000)
    assert sorted(os.listdir(path("d"))) == ["c", "f", "h", "p", "s"]
    assert stat.S_IMODE(os.stat(path("d")).st_mode) == 0o750
    with pytest.raises(OSError) as caught:
        os.rmdir(path("d"))
    assert caught.value.errno == errno.ENOTEMPTY
    os.rename(path("d/f"), path("g"))
    for name in "shpc":
        os.unlink(path(f"d/{name}"))
    os.rmdir(path("d"))
    assert os.listdir(either.path()) == os.listdir(either.root.decode())


def test_rename_flags(mirror):
    one = mirror()
    for name in "ab":
        Path(one.path(name)).write_text(name)
    dirfd = os.open(one.path(), os.O_RDONLY)
    with pytest.raises(FileExistsError):
        files.renameat2(dirfd, b"a", dirfd, b"b", files.RENAME_NOREPLACE)
    files.renameat2(dirfd, b"a", dirfd, b"b", files.RENAME_EXCHANGE)
    os.close(dirfd)
    assert Path(one.path("a")).read_text() == "b"
    assert ("rename", b"a", b"b", files.RENAME_EXCHANGE) in one.calls()


def test_attributes(either):
    target = either.path("f")
    Path(target).write_bytes(b"0123456789")
    os.chmod(target, 0o4711)
    os.chown(target, 12, 34)
    os.truncate(target, 4)
    os.utime(target, ns=(-86_400_000_000_001, 1_700_000_000_123_456_789))
    st, real = os.stat(target), os.stat(os.path.join(either.root.decode(), "f"))
    assert (st.st_uid, st.st_gid, st.st_size) == (12, 34, 4)
    assert (st.st_atime_ns, st.st_mtime_ns) == (-86_400_000_000_001, 1_700_000_000_123_456_789)
    for field in ("st_ino", "st_mode", "st_nlink", "st_blocks", "st_ctime_ns", "st_mtime_ns", "st_atime_ns"):
        assert getattr(st, field) == getattr(real, field)


def test_birth_time_comes_through_statx(mirror):
    one = mirror()
    Path(one.path("f")).write_bytes(b"x")
    fd = os.open(one.path(), os.O_RDONLY)
    answer = files.statx(fd, b"f", 0, 0xFFF)
    os.close(fd)
    assert answer.btime_ns == 1_234_567_890_123_456_789
    assert answer.size == 1


def test_xattrs(either):
    target = either.path("f")
    Path(target).touch()
    os.setxattr(target, "user.a", b"one\0two")
    os.setxattr(target, "user.b", b"x" * 3000)
    os.setxattr(target, "user.empty", b"")
    assert os.getxattr(target, "user.a") == b"one\0two"
    assert os.getxattr(target, "user.b") == b"x" * 3000
    assert os.getxattr(target, "user.empty") == b""
    assert sorted(n for n in os.listxattr(target) if n.startswith("user.")) == [
        "user.a",
        "user.b",
        "user.empty",
    ]
    with pytest.raises(OSError) as caught:
        os.setxattr(target, "user.a", b"", os.XATTR_CREATE)
    assert caught.value.errno == errno.EEXIST
    os.removexattr(target, "user.a")
    with pytest.raises(OSError) as caught:
        os.getxattr(target, "user.a")
    assert caught.value.errno == errno.ENODATA


@pytest.mark.parametrize("passthrough", [False, True])
def test_data(mirror, passthrough):
    one = mirror(passthrough=passthrough)
    content = os.urandom(5 << 20)
    with open(one.path("f"), "w+b", buffering=0) as f:
        assert f.write(content) == len(content)
        f.seek(0)
        assert f.read() == content
        with mmap.mmap(f.fileno(), 0) as mapped:
            mapped[100:103] = b"abc"
            mapped.flush()
    assert Path(one.root.decode(), "f").read_bytes() == content[:100] + b"abc" + content[103:]
    calls = one.calls()
    assert ("write" in names(calls)) is not passthrough
    if not passthrough:
        assert max(call[2] for call in calls if call[0] == "write") == 1 << 20


def test_data_by_worker_threads(mirror):
    one = mirror(deferred_reads=True, direct_io=True)
    Path(one.path("f")).write_bytes(b"0123456789" * 1000)
    wrong = []

    def client(number):
        fd = os.open(one.path("f"), os.O_RDONLY)
        for i in range(200):
            offset = (number * 37 + i) % 9000
            if os.pread(fd, 10, offset) != (b"0123456789" * 2)[offset % 10 :][:10]:
                wrong.append(offset)
            os.path.exists(one.path(f"none-{number}-{i}"))
        os.close(fd)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_file_extras(mirror):
    one = mirror()
    fd = os.open(one.path("f"), os.O_CREAT | os.O_RDWR)
    os.posix_fallocate(fd, 0, 1 << 16)
    os.ftruncate(fd, 1 << 20)
    os.pwrite(fd, b"end", (1 << 20) - 3)
    assert os.lseek(fd, 1 << 16, os.SEEK_DATA) > 1 << 16
    other = os.open(one.path("g"), os.O_CREAT | os.O_RDWR)
    assert os.copy_file_range(fd, other, 1 << 20, 0) == 1 << 20
    unnamed = os.open(one.path(), os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(unnamed, b"unnamed")
    for number in (fd, other, unnamed):
        os.close(number)
    called = names(one.calls())
    assert {"fallocate", "copy_file_range", "tmpfile", "flush", "release"} <= set(called)
    assert os.path.getsize(one.path("g")) == 1 << 20


@pytest.mark.parametrize("passthrough", [False, True])
def test_syncs_reach_the_operations(mirror, passthrough):
    one = mirror(fuseblk=True, passthrough=passthrough)
    fd = os.open(one.path("f"), os.O_CREAT | os.O_RDWR)
    dirfd = os.open(one.path(), os.O_RDONLY)
    os.write(fd, b"x")
    one.calls()
    os.fsync(fd)
    os.fdatasync(fd)
    os.fsync(dirfd)
    files.syncfs(fd)
    wanted = [("fsync", False), ("fsync", True), ("fsyncdir", False), ("syncfs", abi.ROOT_ID)]
    assert [call for call in one.calls() if "sync" in call[0]] == wanted
    os.close(fd)
    os.close(dirfd)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.ENOLINK])
def test_sync_errors_reach_the_caller_each_time(mirror, error):
    one = mirror(fuseblk=True, passthrough=True, sync_error=error)
    fd = os.open(one.path("f"), os.O_CREAT | os.O_RDWR)
    dirfd = os.open(one.path(), os.O_RDONLY)
    for call, number in ((os.fsync, fd), (os.fdatasync, fd), (os.fsync, dirfd), (files.syncfs, dirfd)):
        for _ in range(3):
            with pytest.raises(OSError) as caught:
                call(number)
            assert caught.value.errno == error
    os.close(fd)
    os.close(dirfd)


def test_ioctl_on_files_and_directories(either):
    Path(either.path("f")).touch()
    for name in ("f", ""):
        fd = os.open(either.path(name), os.O_RDONLY)
        data = bytearray(b"0123456789abcdef")
        fcntl.ioctl(fd, IOCTL_ECHO, data)
        assert data == b"fedcba9876543210"
        with pytest.raises(OSError) as caught:
            fcntl.ioctl(fd, 0x8004587D, bytearray(4))
        assert caught.value.errno == errno.ENOTTY
        os.close(fd)


def test_large_directory_both_ways(mirror):
    one = mirror()
    wanted = {f"{'long' * (i % 50)}-{i}" for i in range(3000)}
    for name in wanted:
        Path(one.root.decode(), name).touch()
    assert set(os.listdir(one.path())) - {"lost+found"} == wanted  # READDIRPLUS begins, READDIR may follow
    assert set(os.listdir(one.path())) - {"lost+found"} == wanted  # from the cache


def test_forget_frees_nodes(mirror):
    one = mirror()
    for i in range(500):
        Path(one.root.decode(), f"f{i}").touch()
    for i in range(500):
        os.stat(one.path(f"f{i}"))
    Path("/proc/sys/vm/drop_caches").write_text("2")
    os.stat(one.path())
    deadline = time.monotonic() + 10
    count = 0
    while count < 500 and time.monotonic() < deadline:
        count += names(one.calls()).count("forgotten")
    assert count >= 500


def test_exceptions_become_eio_and_the_mount_lives(mirror, capfd):
    one = mirror()
    for name in ("raise-keyerror", "bad-reply"):
        with pytest.raises(OSError) as caught:
            os.stat(one.path(name))
        assert caught.value.errno == errno.EIO
    os.stat(one.path())
    assert "KeyError" in capfd.readouterr().err


def test_killed_daemon_leaves_errors_not_hangs(scratch, tmp_path):
    point = tmp_path / "own"
    point.mkdir()
    one = Mirror(scratch, point)
    fd = os.open(one.path("f"), os.O_CREAT | os.O_RDWR)
    os.kill(one.pid, signal.SIGKILL)
    os.waitpid(one.pid, 0)
    with pytest.raises(OSError) as caught:
        os.fsync(fd)
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    with pytest.raises(OSError):
        os.close(fd)
    mountpoint.unmount(one.point)


def test_interrupted_caller(mirror):
    """A caller that is killed while its request waits in a worker: the late answer is dropped."""
    one = mirror(deferred_reads=True, direct_io=True)
    Path(one.path("f")).write_bytes(b"x" * 100)
    for _ in range(20):
        child = subprocess.Popen(
            ["dd", f"if={one.path('f')}", "of=/dev/null", "bs=1"], stderr=subprocess.DEVNULL
        )
        child.kill()
        child.wait()
    assert Path(one.path("f")).read_bytes() == b"x" * 100


def test_interrupt_reaches_the_operations(mirror):
    """A signal to a caller whose request is held back: INTERRUPT, and its answer lets the caller go."""
    one = mirror()
    pid = os.fork()
    if pid == 0:
        fcntl.ioctl(os.open(one.path(), os.O_RDONLY), IOCTL_WAIT)
    while ("ioctl", hex(IOCTL_WAIT), abi.IOCTL_DIR, b"", 0) not in one.calls():
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert "interrupt" in names(one.calls())


def test_destroy_is_called_before_umount_returns(mirror, scratch, tmp_path):
    point = tmp_path / "own"
    point.mkdir()
    one = Mirror(scratch, point, fuseblk=True)
    one.close()
    assert names(one.calls())[-1] == "destroy"


def test_cpu_follow(mirror):
    one = mirror(cpu_follow=True, attr_valid=0)
    cpus = sorted(os.sched_getaffinity(0))
    try:
        for cpu in cpus:
            os.sched_setaffinity(0, {cpu})
            for _ in range(200):
                os.stat(one.path())
            assert os.sched_getaffinity(one.pid) == {cpu}
    finally:
        os.sched_setaffinity(0, cpus)


def test_missing_device(monkeypatch):
    monkeypatch.setattr(mountpoint, "DEVICE", b"/nonexistent/fuse")
    with pytest.raises(FileNotFoundError) as caught:
        mountpoint.open_device()
    assert caught.value.filename == "/nonexistent/fuse" and "\n" not in str(caught.value)


def test_mount_on_missing_directory(isolated, tmp_path):
    fd = mountpoint.open_device()
    with pytest.raises(FileNotFoundError) as caught:
        mountpoint.mount(fd, os.fsencode(tmp_path / "none"), source=b"x", subtype=b"x")
    os.close(fd)
    assert os.fsencode(caught.value.filename) == os.fsencode(tmp_path / "none")


def test_fusermount3(isolated, tmp_path):
    """The helper's mount works, and the device it hands over is not inherited by programs we start."""
    fd = mountpoint.via_fusermount3(os.fsencode(tmp_path), [b"fsname=a,b\\c", b"subtype=voiletest"])
    assert not os.get_inheritable(fd)
    shown = next(m for m in mountinfo.mounts() if m.point == str(tmp_path))
    assert (shown.fstype, shown.source) == ("fuse.voiletest", "a,b\\c")
    mountpoint.unmount(os.fsencode(tmp_path), lazy=True)
    os.close(fd)
    with pytest.raises(OSError) as caught:
        mountpoint.via_fusermount3(os.fsencode(tmp_path / "none"), [])
    assert "none" in str(caught.value)


def test_example(isolated, tmp_path):
    assert len(EXAMPLE.read_text().splitlines()) <= 100
    env = {**os.environ, "PYTHONPATH": str(EXAMPLE.parents[1] / "src")}
    child = subprocess.Popen([sys.executable, EXAMPLE, tmp_path], env=env)
    while not any(m.point == str(tmp_path) for m in mountinfo.mounts()):
        assert child.poll() is None
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"x" * 300_000)
    (tmp_path / "d" / "f").rename(tmp_path / "g")
    assert (tmp_path / "g").read_bytes() == b"x" * 300_000
    os.truncate(tmp_path / "g", 5)
    os.chmod(tmp_path / "g", 0o600)
    assert (tmp_path / "g").stat().st_mode == stat.S_IFREG | 0o600
    assert sorted(os.listdir(tmp_path)) == ["d", "g"]
    (tmp_path / "d").rmdir()
    (tmp_path / "g").unlink()
    assert os.listdir(tmp_path) == []
    child.terminate()
    assert child.wait(10) == 0


def test_validity_is_honoured(mirror):
    """What was given unlimited validity is not asked for again."""
    one = mirror()
    Path(one.path("f")).touch()
    os.stat(one.path("f"))
    Path(one.root.decode(), "f").write_bytes(b"changed behind the mount")
    assert os.stat(one.path("f")).st_size == 0


def mirror_as_user(**switches):
    """An ordinary user's mirror: (type shown, what arrived in its directory, owner of the new file)."""
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as point:
        one = Mirror(root, point, **switches)
        try:
            Path(one.path("f")).write_bytes(b"mine")
            shown = next(m for m in mountinfo.mounts() if m.point == point)
            return shown.fstype, Path(root, "f").read_bytes(), os.stat(one.path("f")).st_uid
        finally:
            one.close()


def test_ordinary_user_through_the_helper(as_user):
    seen = as_user(lambda: mirror_as_user(helper=True), fuse=True, uid=NOBODY)  # it wants a user with a name
    assert seen == ("fuse.mirror", b"mine", NOBODY)


def test_user_namespace(as_user):
    """mount(2) is allowed to the owner of a user namespace; passthrough is not, and says EPERM."""

    def body(**switches):
        ctypes.CDLL(None).prctl(
            PR_SET_DUMPABLE, 1
        )  # lost with the change of user: /proc/self would be root's
        namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
        namespaces.write_id_maps("self", [(USER, USER, 1)], [(USER, USER, 1)])
        return mirror_as_user(**switches)

    assert as_user(body, fuse=True) == ("fuse.mirror", b"mine", USER)
    with pytest.raises(ChildFailed, match="Operation not permitted"):
        as_user(lambda: body(passthrough=True), fuse=True)
