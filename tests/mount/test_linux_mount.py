"""Mounts, loop devices and file handles, for real."""

import os
import stat
import time
from pathlib import Path

import pytest

from support.namespace import ISOLATION
from voile.linux import files, loop, mount, mountinfo, namespaces

pytestmark = pytest.mark.usefixtures("isolated")


def test_mount_and_umount(scratch):
    target = os.fsencode(scratch) + b"/a b\\c\n#"
    os.mkdir(target)
    mount.mount(b"some thing", target, b"tmpfs", mount.MS_NOSUID | mount.MS_NODEV, b"size=64k,mode=700")
    try:
        mount_id = files.statx(files.AT_FDCWD, target, 0, files.STATX_MNT_ID).mnt_id
        found = mountinfo.find(mount_id)
        assert (found.mountpoint, found.fstype, found.source) == (target, b"tmpfs", b"some thing")
        assert {b"nosuid", b"nodev"} <= set(found.options)
        assert b"size=64k" in found.super_options
        with pytest.raises(OSError) as caught:
            mount.mount(b"x", target + b"/none", b"tmpfs", 0, None)
        assert caught.value.filename == target + b"/none"
    finally:
        mount.umount2(target, mount.UMOUNT_NOFOLLOW)
    with pytest.raises(OSError):
        mount.umount2(target)


def test_mount_api(scratch):
    point = os.fsencode(scratch)
    fs = mount.fsopen(b"tmpfs")
    mount.fsconfig_string(fs, b"size", b"64k")
    mount.fsconfig_string(fs, b"source", b"new-api")
    mount.fsconfig_create(fs)
    tree = mount.fsmount(fs, attributes=mount.MOUNT_ATTR_NOEXEC)
    os.close(fs)
    mount.move_mount(tree, b"", mount.AT_FDCWD, point, mount.MOVE_MOUNT_F_EMPTY_PATH)
    try:
        assert not os.get_inheritable(tree)
        mount.mount_setattr(tree, b"", mount.AT_EMPTY_PATH, mount.MOUNT_ATTR_RDONLY, mount.MOUNT_ATTR_NOEXEC)
        found = mountinfo.find(files.statx(tree, b"", files.AT_EMPTY_PATH, files.STATX_MNT_ID).mnt_id)
        assert (found.mountpoint, found.source) == (point, b"new-api")
        assert b"ro" in found.options and b"noexec" not in found.options
        clone = mount.open_tree(mount.AT_FDCWD, point, mount.OPEN_TREE_CLONE)
        assert os.fstat(clone).st_dev == os.fstat(tree).st_dev
        os.close(clone)
    finally:
        os.close(tree)
        mount.umount2(point)


def test_fsconfig_errors():
    fs = mount.fsopen(b"tmpfs")
    with pytest.raises(OSError) as caught:
        mount.fsconfig_flag(fs, b"no_such_option")
    assert caught.value.filename == b"no_such_option"
    with pytest.raises(OSError):
        mount.fsconfig_fd(fs, b"size", 0)
    os.close(fs)
    with pytest.raises(OSError):
        mount.fsopen(b"no_such_fs")


def backing_file(device):
    return Path(f"/sys/block/{os.path.basename(os.fsdecode(device))}/loop/backing_file")


def wait_until_gone(path):
    """Autoclear is asynchronous."""
    deadline = time.monotonic() + 10
    while path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_loop_over_memory():
    path, fd = loop.attach_memfd(b"voile test", 1 << 20)
    ISOLATION.note_loop(os.fsdecode(path))
    try:
        assert stat.S_ISBLK(os.fstat(fd).st_mode)
        assert os.stat(path).st_rdev == os.fstat(fd).st_rdev
        assert "memfd:voile test" in backing_file(path).read_text()
        assert os.lseek(fd, 0, os.SEEK_END) == 1 << 20
        assert os.pwrite(fd, b"x" * 4096, 0) == 4096
    finally:
        os.close(fd)
    wait_until_gone(backing_file(path))


def test_loop_of_size_0_and_two_at_once():
    first, first_fd = loop.attach_memfd(b"one")
    second, second_fd = loop.attach_memfd(b"two")
    ISOLATION.note_loop(os.fsdecode(first))
    ISOLATION.note_loop(os.fsdecode(second))
    assert first != second
    os.close(first_fd)
    os.close(second_fd)
    wait_until_gone(backing_file(first))
    wait_until_gone(backing_file(second))


def test_loop_makes_its_node(scratch, as_user):
    def child():
        # A /dev with nothing but the control device, as in a container.
        namespaces.unshare(namespaces.CLONE_NEWNS)
        control = os.stat("/dev/loop-control").st_rdev
        mount.mount(b"dev", b"/dev", b"tmpfs", 0, None)
        os.mknod("/dev/loop-control", 0o600 | stat.S_IFCHR, control)
        path, fd = loop.attach_memfd(b"node")
        st = os.stat(path)
        os.close(fd)
        return (
            stat.S_ISBLK(st.st_mode),
            os.major(st.st_rdev),
            os.fsencode(f"/dev/loop{os.minor(st.st_rdev)}") == path,
        )

    assert as_user(child, uid=0) == (True, 7, True)


def test_file_handles(scratch):
    directory = os.open(scratch, os.O_RDONLY)
    os.close(os.open(scratch / "f", os.O_CREAT))
    mount_id, handle_type, handle = files.name_to_handle_at(directory, b"f")
    assert mount_id == files.statx(directory, b"", files.AT_EMPTY_PATH, files.STATX_MNT_ID).mnt_id
    fd = files.open_by_handle_at(directory, handle_type, handle, os.O_PATH)
    assert os.fstat(fd).st_ino == os.stat(scratch / "f").st_ino
    assert files.name_to_handle_at(fd, b"", files.AT_EMPTY_PATH)[2] == handle
    os.close(fd)
    os.unlink(scratch / "f")
    with pytest.raises(OSError, match="Stale"):
        files.open_by_handle_at(directory, handle_type, handle, os.O_PATH)
    os.close(directory)


@pytest.mark.parametrize(
    ("kind", "magic"),
    [
        ("ext4", files.EXT4_SUPER_MAGIC),
        ("xfs", files.XFS_SUPER_MAGIC),
        ("btrfs", files.BTRFS_SUPER_MAGIC),
        ("tmpfs", files.TMPFS_MAGIC),
    ],
)
def test_kinds(scratch_on, kind, magic):
    scratch = scratch_on(kind)
    directory = os.open(scratch, os.O_RDONLY)
    assert files.statfs_type(directory) == magic
    uuid = files.fs_uuid(directory)
    assert uuid is None or len(uuid) == 16
    fd = os.open(scratch / "f", os.O_RDWR | os.O_CREAT)
    files.fallocate(fd, 0, 0, 1 << 16)
    assert os.fstat(fd).st_size == 1 << 16
    assert os.fstat(fd).st_blocks >= 128
    files.fallocate(fd, files.FALLOC_FL_PUNCH_HOLE | files.FALLOC_FL_KEEP_SIZE, 0, 1 << 16)
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
    clone = os.open(scratch / "g", os.O_RDWR | os.O_CREAT)
    if kind in ("xfs", "btrfs"):
        os.pwrite(fd, b"some data", 0)
        files.ficlone(clone, fd)
        assert os.pread(clone, 9, 0) == b"some data"
    else:
        with pytest.raises(OSError):
            files.ficlone(clone, fd)
    for each in (fd, clone, directory):
        os.close(each)
