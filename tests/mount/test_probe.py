"""The probe on real file systems, with errors that really happened."""

import ctypes
import errno
import os
import subprocess
import time

import pytest

from support.namespace import ISOLATION
from support.users import USER
from voile.linux import files, loop, mount, mountinfo, namespaces, process
from voile.volatile import probe

MIB = 1 << 20
pytestmark = pytest.mark.usefixtures("isolated")


def loop_is_attached(device):
    return os.path.exists(f"/sys/block/{os.path.basename(os.fsdecode(device))}/loop/backing_file")


class FullDisk:
    """ext4 on a disk that stores nothing new while `fail()` is in force.

    The disk is a sparse file on a small tmpfs: what is written to it fails when the tmpfs is full. Without a
    journal ext4 goes on after that, as it does when data alone is lost.
    """

    def __init__(self, base):
        self.base = base
        self.point = base / "fs"
        self.point.mkdir()
        self.store = base / "store"
        self.store.mkdir()
        mount.mount(b"store", os.fsencode(self.store), b"tmpfs", 0, b"size=16m")
        image = self.store / "image"
        with open(image, "wb") as f:
            f.truncate(128 * MIB)
        command = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^has_journal", "-E", "nodiscard", image]
        environment = dict(os.environ, PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        subprocess.run(command, check=True, env=environment, capture_output=True)
        fd = os.open(image, os.O_RDWR)
        self.device, device_fd = loop.attach_file(fd)
        ISOLATION.note_loop(os.fsdecode(self.device))
        mount.mount(self.device, os.fsencode(self.point), b"ext4", 0, b"errors=continue")
        os.close(device_fd)
        os.close(fd)
        self.files = 0

    def fail(self):
        """From now on new blocks cannot be stored."""
        with open(self.store / "filler", "wb", buffering=0) as f:
            with pytest.raises(OSError, match="space"):
                while True:
                    f.write(b"\1" * 4096)

    def heal(self):
        os.unlink(self.store / "filler")

    def lose(self):
        """Lose the data of a new file without telling anybody: no sync call collects the error."""
        self.files += 1
        path = self.point / f"lost-{self.files}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.write(fd, os.urandom(65536))
        # Starts the writeback; awaits it on another open file, whose error it is then to collect.
        files.sync_file_range(fd, 0, 0, files.SYNC_FILE_RANGE_WRITE)
        other = os.open(path, os.O_RDONLY)
        try:
            files.sync_file_range(other, 0, 0, files.SYNC_FILE_RANGE_WAIT_BEFORE)
        except OSError:
            pass
        os.close(other)
        os.close(fd)

    def directory(self):
        path = self.point / "work"
        path.mkdir(exist_ok=True)
        os.chmod(path, 0o777)
        return path

    def close(self):
        mount.umount2(os.fsencode(self.point))
        # The loop device lets go of the image some time after its last user.
        deadline = time.monotonic() + 10
        while loop_is_attached(self.device):
            assert time.monotonic() < deadline, "something keeps the file system busy"
            time.sleep(0.005)
        mount.umount2(os.fsencode(self.store))
        os.rmdir(self.point)
        os.rmdir(self.store)


@pytest.fixture
def disk(scratch):
    made = FullDisk(scratch)
    yield made
    made.close()


@pytest.fixture
def opened():
    """opened(path) -> fd"""
    fds = []

    def make(path):
        fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


def mounts():
    return [(m.id, m.mountpoint) for m in mountinfo.read()]


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_healthy(scratch_on, opened, kind):
    scratch = scratch_on(kind)
    before = mounts()
    made = probe.create(opened(scratch))
    assert made.kind == "overlay"
    assert made.check() == 0
    assert mounts() == before, "it is in nobody's mount table"
    assert os.listdir(scratch) == [], "and nothing is left of it"
    assert not os.get_inheritable(made.fd)
    made.close()
    made.close()
    assert made.check() == errno.EBADF, "a probe that cannot tell does not say that all is well"


def test_through_an_o_path_fd_and_an_odd_name(scratch):
    odd = scratch / "a:b,c\\d e\n"
    odd.mkdir()
    fd = os.open(odd, os.O_PATH)
    made = probe.create(fd)
    assert made.check() == 0
    made.close()
    os.close(fd)


def test_error_after(disk, opened):
    before = opened(disk.point)
    first = probe.create(opened(disk.directory()))
    assert first.check() == 0
    disk.fail()
    disk.lose()
    code = first.check()
    assert code == errno.ENOSPC
    assert first.check() == code, "for good"
    # Healed first: what a sync would then fail to write is metadata, and that is another error (EIO).
    disk.heal()
    with pytest.raises(OSError):
        files.syncfs(before)
    for path in disk.point.glob("lost-*"):
        path.unlink()
    files.syncfs(before)
    assert first.check() == code, "also when somebody was told, the disk healed and the file is gone"
    second = probe.create(opened(disk.directory()))
    assert second.check() == 0, "it begins now"
    first.close()
    second.close()


def test_unseen_error(disk, opened):
    directory = opened(disk.directory())
    disk.fail()
    disk.lose()
    disk.heal()
    with pytest.raises(probe.UnseenError) as caught:
        probe.create(directory)
    error = caught.value
    assert error.errno == errno.EIO
    assert error.filename == os.fsencode(disk.point / "work")
    assert f"ext4 file system {os.fsdecode(disk.device)}" in error.strerror
    assert f"'sync -f {disk.point}'" in error.strerror
    assert os.listdir(disk.point / "work") == []
    # Any fd will do: nobody has seen it, so the first one to ask is told.
    subprocess.run(["sync", "-f", disk.point], check=False, capture_output=True)
    made = probe.create(directory)
    assert made.check() == 0
    disk.fail()
    disk.lose()
    assert made.check() == errno.ENOSPC
    made.close()
    disk.heal()


def dumpable():
    """After a change of uid /proc/self belongs to root until the next exec; this stands for that."""
    ctypes.CDLL(None).prctl(process.PR_SET_DUMPABLE, 1, 0, 0, 0)


def test_ordinary_user(disk, as_user):
    directory = disk.directory()
    os.chmod(directory, 0o700)
    os.chown(directory, USER, USER)
    os.chmod(disk.point, 0o777)
    disk_full = disk.store / "filler"
    os.chmod(disk.store, 0o1777)

    def child():
        dumpable()
        before = mounts()
        fd = os.open(directory, os.O_RDONLY)
        made = probe.create(fd)
        states = [
            made.kind,
            made.check(),
            os.listdir(directory),
            mounts() == before,
            os.get_inheritable(made.fd),
        ]
        disk.fail()
        disk.lose()
        states.append(made.check())
        disk.heal()
        states.append(made.check())
        try:
            probe.create(fd)
        except probe.UnseenError as error:
            states += [error.errno, "sync -f" in error.strerror, os.listdir(directory)]
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        return states

    full = errno.ENOSPC
    healthy = ["overlay-userns", 0, [], True, False]
    assert as_user(child) == [*healthy, full, full, errno.EIO, True, []]
    assert not disk_full.exists()


@pytest.mark.parametrize("uid", [0, USER])
@pytest.mark.parametrize("userxattr", [False, True])
def test_inside_a_user_namespace(scratch, as_user, uid, userxattr):
    os.chown(scratch, uid, uid)

    def child():
        dumpable()
        namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
        namespaces.write_id_maps("self", [(0, uid, 1)], [(0, uid, 1)])
        fd = os.open(scratch, os.O_RDONLY)
        made = probe.create(fd, userxattr=userxattr)
        return made.kind, made.check(), os.listdir(scratch)

    assert as_user(child, uid=uid) == ("overlay", 0, [])


def test_own_id_in_a_user_namespace(scratch, as_user):
    """As `voile run` does it: the user keeps his uid."""
    os.chown(scratch, USER, USER)

    def child():
        dumpable()
        namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
        namespaces.write_id_maps("self", [(USER, USER, 1)], [(USER, USER, 1)])
        made = probe.create(os.open(scratch, os.O_RDONLY), userxattr=True)
        return made.kind, made.check(), os.listdir(scratch)

    assert as_user(child) == ("overlay", 0, [])


def test_user_namespace_without_a_mount_namespace(scratch, as_user):
    os.chown(scratch, USER, USER)

    def child():
        dumpable()
        namespaces.unshare(namespaces.CLONE_NEWUSER)
        namespaces.write_id_maps("self", [(0, USER, 1)], [(0, USER, 1)])
        made = probe.create(os.open(scratch, os.O_RDONLY), userxattr=True)
        return made.kind, made.check(), os.listdir(scratch)

    assert as_user(child) == ("overlay-userns", 0, [])


def test_no_user_namespaces(scratch, as_user):
    os.chown(scratch, USER, USER)

    def child():
        # Not dumpable: /proc/self belongs to root, and the maps cannot be written.
        try:
            probe.create(os.open(scratch, os.O_RDONLY))
        except probe.ProbeUnavailable as error:
            return (
                error.errno in (errno.EACCES, errno.EPERM),
                error.strerror,
                error.filename,
                os.listdir(scratch),
            )

    told, message, path, left = as_user(child)
    assert told and "user namespace" in message
    assert (path, left) == (os.fsencode(scratch), [])


def test_the_helper_dies(scratch, as_user):
    os.chown(scratch, USER, USER)

    def child():
        namespaces.unshare = lambda flags: os._exit(3)
        try:
            probe.create(os.open(scratch, os.O_RDONLY))
        except probe.ProbeUnavailable as error:
            return error.strerror, os.listdir(scratch)

    message, left = as_user(child)
    assert "helper process died" in message
    assert left == []


def test_unsuitable_upper(layers, kernel_overlay, opened):
    point = kernel_overlay(layers()).mount()
    with pytest.raises(probe.ProbeUnavailable) as caught:
        probe.create(opened(point))
    assert caught.value.errno == errno.EINVAL
    assert os.listdir(point) == []


def test_directory_that_cannot_be_written(scratch, as_user):
    def child():
        try:
            probe.create(os.open(scratch, os.O_RDONLY))
        except probe.ProbeUnavailable:
            return "unavailable"
        except OSError as error:
            return error.errno

    assert as_user(child) == errno.EACCES


@pytest.mark.parametrize("uid", [0, USER])
def test_remains_of_a_predecessor(scratch, as_user, uid):
    os.chown(scratch, uid, uid)

    def child():
        dumpable()
        remains = scratch / f"#probe{os.getpid():x}-workdir"
        (remains / "work" / "incompat" / "volatile").mkdir(parents=True)
        (remains / "work" / "incompat" / "volatile" / "dirty").write_bytes(b"")
        os.chmod(remains / "work" / "incompat", 0)
        os.chmod(remains / "work", 0)
        made = probe.create(os.open(scratch, os.O_RDONLY))
        return made.check(), os.listdir(scratch)

    assert as_user(child, uid=uid) == (0, [])


def test_nothing_is_written(scratch, opened):
    """10,000 questions, not one flush."""
    source = mountinfo.find(
        files.statx(files.AT_FDCWD, os.fsencode(scratch), 0, files.STATX_MNT_ID).mnt_id
    ).source
    made = probe.create(opened(scratch))
    (scratch / "dirty").write_bytes(b"x" * MIB)

    def flushes():
        with open(f"/sys/block/{os.path.basename(os.fsdecode(source))}/stat") as f:
            return int(f.read().split()[15])

    before = flushes()
    for _ in range(10_000):
        assert made.check() == 0
    assert flushes() == before
    made.close()


def test_file_system_is_free_after_close(disk, opened):
    made = probe.create(opened(disk.directory()))
    made.close()
    # The fixture unmounts, and the end of the run looks for the loop device.
