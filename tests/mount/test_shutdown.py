"""`voile shutdown` and FS_IOC_SHUTDOWN: who may, what fails then, and what still works."""

import errno
import fcntl
import json
import os
import shutil
import struct
import subprocess

import pytest

from support import mountinfo, syscalls
from support.outcome import result
from support.overlays import ROOT, VoileError
from support.users import USER, in_child

VOILE = str(ROOT / "voile")
FS_IOC_SHUTDOWN = 0x8004587D
DEFAULT, LOGFLUSH, NOLOGFLUSH = 0, 1, 2


def ioctl(point, flags):
    fd = os.open(point, os.O_RDONLY)
    try:
        return result(fcntl.ioctl, fd, FS_IOC_SHUTDOWN, struct.pack("I", flags))
    finally:
        os.close(fd)


def status(point):
    done = subprocess.run([VOILE, "status", "--json", point], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def voile(*words):
    done = subprocess.run([VOILE, *map(os.fspath, words)], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def marker(layers):
    return os.path.lexists(layers.work / "work/incompat/volatile")


@pytest.fixture(params=["volatile", "volatile,fuseblk=off", "volatile,passthrough=off", ""])
def mounted(request, layers, voile_overlay):
    """A mount with an open, passed-through file `fd`, about to be shut down."""
    overlay = voile_overlay(layers())
    overlay.mount(request.param)
    (overlay.point / "file").write_bytes(b"data")
    overlay.fd = os.open(overlay.point / "file", os.O_RDWR)
    yield overlay
    result(os.close, overlay.fd)


def is_shut_down(overlay):
    point, fd = overlay.point, overlay.fd
    return (
        {
            result(call, *args)
            for call, *args in (
                (os.pread, fd, 4, 0),
                (os.pwrite, fd, b"x", 0),
                (os.fsync, fd),
                (os.fstat, fd),
                (os.stat, point / "file"),
                (os.listdir, point),
                (os.mkdir, point / "new"),
                (syscalls.syncfs, fd) if status(point)["syncfs"] == "exact" else (os.statvfs, point),
            )
        }
        == {errno.EIO}
    )  # fmt: skip


def end(overlay):
    """umount(8) works, and so does what comes after it."""
    volatile = status(overlay.point)["volatile"]
    result(os.close, overlay.fd)
    subprocess.run(["umount", overlay.point], check=True)
    assert overlay.process.wait(20) == 0
    assert marker(overlay.layers) == volatile
    assert (overlay.layers.upper / "file").read_bytes() == b"data"


def test_command(mounted):
    assert voile("shutdown", mounted.point) == (0, "")
    assert is_shut_down(mounted)
    assert status(mounted.point)["state"] == "shutdown"
    assert status(mounted.point)["pid"] == mounted.pid
    assert voile("shutdown", mounted.point) == (0, ""), "it is already"
    assert voile("sync", mounted.point) == (74, f"voile: {mounted.point}: Input/output error\n")
    end(mounted)


@pytest.mark.parametrize("flags", [DEFAULT, LOGFLUSH, NOLOGFLUSH])
def test_ioctl(mounted, flags):
    assert ioctl(mounted.point, flags) == 0
    assert is_shut_down(mounted)
    end(mounted)


def test_ioctl_of_a_file(mounted):
    assert result(fcntl.ioctl, mounted.fd, FS_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH)) == 0
    assert is_shut_down(mounted)
    end(mounted)


def test_xfs_io(mounted):
    if not shutil.which("xfs_io"):
        pytest.skip("no xfs_io (xfsprogs)")
    subprocess.run(["xfs_io", "-x", "-c", "shutdown", mounted.point], check=True)
    assert is_shut_down(mounted)
    end(mounted)


def test_wrong_flags(mounted):
    assert ioctl(mounted.point, 3) == errno.EINVAL
    fd = os.open(mounted.point, os.O_RDONLY)
    assert result(fcntl.ioctl, fd, FS_IOC_SHUTDOWN, 0) == errno.EFAULT  # an address
    os.close(fd)
    assert (mounted.point / "file").read_bytes() == b"data"


def test_voile_umount(mounted):
    voile("shutdown", mounted.point)
    result(os.close, mounted.fd)
    assert voile("umount", mounted.point) == (0, "")
    assert not mountinfo.at(mounted.point)


def test_many_files(layers, voile_overlay):
    """What the kernel has cached is dropped, however much it is."""
    overlay = voile_overlay(layers())
    point = overlay.mount("volatile")
    for number in range(3000):
        (point / f"{number}").touch()
    fds = [os.open(point / f"{number}", os.O_RDWR) for number in range(0, 3000, 10)]
    assert voile("shutdown", point) == (0, "")
    assert {result(os.stat, point / f"{number}") for number in range(3000)} == {errno.EIO}
    assert {result(os.pwrite, fd, b"x", 0) for fd in fds} == {errno.EIO}
    for fd in fds:
        result(os.close, fd)


def drop_sys_admin():
    """As root, without CAP_SYS_ADMIN: root of a container."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("Ii", 0x20080522, 0)
    data = bytearray(24)
    buffer = (ctypes.c_char * 24).from_buffer(data)
    assert libc.capget(header, buffer) == 0
    words = list(struct.unpack("6I", data))
    for index in range(3):
        words[index] &= ~(1 << 21)
    assert libc.capset(header, struct.pack("6I", *words)) == 0


def test_permission(layers, voile_overlay):
    made = layers()
    made.base.chmod(0o755)
    overlay = voile_overlay(made)
    point = overlay.mount("volatile")
    (point / "file").write_bytes(b"data")
    assert in_child(lambda: ioctl(point, NOLOGFLUSH), uid=USER) == errno.EPERM
    assert in_child(lambda: voile("shutdown", point), uid=USER) == (
        1,
        f"voile: {point}: Operation not permitted\n",
    )

    def contained():
        drop_sys_admin()
        return ioctl(point, NOLOGFLUSH)

    assert in_child(contained) == errno.EPERM

    def of_his_own_namespace():
        # All capabilities, but in a user namespace that has no say over the mount.
        syscalls.set_dumpable()
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        return ioctl(point, NOLOGFLUSH)

    assert in_child(of_his_own_namespace, uid=USER) == errno.EPERM
    assert (point / "file").read_bytes() == b"data"
    assert in_child(lambda: ioctl(point, NOLOGFLUSH)) == 0
    assert result(os.stat, point / "file") == errno.EIO


def test_default_syncs_what_is_not_volatile(layers, voile_overlay):
    """Anything else says it when it could not; here: it does not hang and does not fail."""
    overlay = voile_overlay(layers())
    point = overlay.mount()
    (point / "file").write_bytes(b"data" * 1000)
    assert ioctl(point, DEFAULT) == 0
    assert result(os.stat, point / "file") == errno.EIO
    try:
        overlay.umount()
    except VoileError as error:
        pytest.fail(f"it complains: {error}")
