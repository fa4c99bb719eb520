"""work/incompat, side by side with the kernel's."""

import errno
import os
import stat

import pytest

from support import syscalls
from support.users import USER
from voile.volatile import marker


def entries(work):
    """What lies in WORKDIR/work: path -> everything about it but times and inode numbers."""
    found = {}
    for directory, names, others in os.walk(work):
        for name in [*names, *others]:
            path = os.path.join(directory, name)
            st = os.lstat(path)
            about = (stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, st.st_nlink)
            xattrs = {x: os.getxattr(path, x, follow_symlinks=False) for x in os.listxattr(path)}
            size = None if stat.S_ISDIR(st.st_mode) else st.st_size
            found[os.path.relpath(path, work)] = (*about, size, xattrs)
    return found


@pytest.fixture
def work(layers):
    """layers, and an open fd of an empty WORKDIR/work."""
    made = layers()
    (made.work / "work").mkdir()
    fd = os.open(made.work / "work", os.O_RDONLY)
    yield made, fd
    os.close(fd)


@pytest.mark.parametrize("on", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_same_as_the_kernel(layers, kernel_overlay, on):
    theirs = layers(on=on)
    overlay = kernel_overlay(theirs)
    overlay.mount("volatile")
    overlay.umount()
    ours = layers(on=on)
    (ours.work / "work").mkdir()
    fd = os.open(ours.work / "work", os.O_RDONLY)
    umask = os.umask(0o077)
    marker.create_volatile(fd)
    os.umask(umask)
    os.close(fd)
    made = entries(ours.work / "work")
    assert sorted(made) == ["incompat", "incompat/volatile", "incompat/volatile/dirty"]
    assert made == entries(theirs.work / "work")


def test_the_kernel_refuses_ours(work, kernel_overlay):
    layers, fd = work
    marker.create_volatile(fd)
    with pytest.raises(OSError) as caught:
        kernel_overlay(layers).mount()
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(marker.Incompatible):
        marker.check(fd)


def test_we_refuse_the_kernels(layers, kernel_overlay):
    made = layers()
    overlay = kernel_overlay(made)
    overlay.mount("volatile")
    overlay.umount()
    fd = os.open(made.work / "work", os.O_RDONLY)
    with pytest.raises(marker.Incompatible) as caught:
        marker.check(fd, b"/some/wk")
    os.close(fd)
    error = caught.value
    assert (error.errno, error.feature, error.filename) == (errno.EINVAL, b"volatile", b"/some/wk")
    assert "remove /some/wk/work/incompat/volatile" in error.strerror


def test_other_features(work, kernel_overlay):
    layers, fd = work
    (layers.work / "work" / "incompat" / "later").mkdir(parents=True)
    with pytest.raises(marker.Incompatible) as caught:
        marker.check(fd)
    assert caught.value.feature == b"later"
    assert caught.value.strerror == "overlay with incompat feature 'later' cannot be mounted"
    with pytest.raises(OSError) as refused:
        kernel_overlay(layers).mount()
    assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize("what", ["nothing", "empty", "file", "symlink"])
def test_nothing_in_the_way(work, kernel_overlay, what):
    layers, fd = work
    path = layers.work / "work" / "incompat"
    if what == "empty":
        path.mkdir()
    elif what == "file":
        path.write_bytes(b"")
    elif what == "symlink":
        path.symlink_to("..")
    marker.check(fd)
    overlay = kernel_overlay(layers)
    overlay.mount()
    # A kernel that cannot clear the directory mounts read-only.
    assert not os.statvfs(layers.point).f_flag & os.ST_RDONLY
    overlay.umount()


def test_marker_as_an_ordinary_user(work, as_user):
    layers, _ = work
    os.chown(layers.work / "work", USER, USER)

    def child():
        fd = os.open(layers.work / "work", os.O_RDONLY)
        marker.check(fd)
        marker.create_volatile(fd)
        try:
            marker.check(fd)
        except marker.Incompatible as error:
            return error.feature

    assert as_user(child) == b"volatile"
    volatile = layers.work / "work" / "incompat" / "volatile"
    assert stat.S_IMODE(os.stat(volatile).st_mode) == 0
    assert os.stat(volatile / "dirty").st_uid == USER


def test_marker_is_kept_when_it_exists(work):
    layers, fd = work
    (layers.work / "work" / "incompat").mkdir()
    marker.create_volatile(fd)
    before = os.stat(layers.work / "work" / "incompat" / "volatile" / "dirty").st_ino
    marker.create_volatile(fd)
    assert os.stat(layers.work / "work" / "incompat" / "volatile" / "dirty").st_ino == before


def test_failure_is_told(work):
    layers, _ = work
    syscalls.mount("x", layers.work / "work", "tmpfs", 1, "")
    read_only = os.open(layers.work / "work", os.O_RDONLY)
    with pytest.raises(OSError) as caught:
        marker.create_volatile(read_only)
    assert caught.value.errno == errno.EROFS
    os.close(read_only)
    syscalls.umount(layers.work / "work")
