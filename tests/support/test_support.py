"""The test equipment itself."""

import os

import pytest

from support import mountinfo
from support.users import USER, ChildFailed, in_child


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "ramfs"])
def test_filesystem_kinds(scratch_on, kind):
    path = scratch_on(kind) / "f"
    path.write_bytes(b"x")
    if kind != "ramfs":
        os.setxattr(path, "trusted.overlay.t", b"y")
    assert mountinfo.at(path.parent.parent).fstype == kind


def test_kernel_overlay(layers, kernel_overlay):
    tree = layers(lowers=2)
    (tree.lowers[1] / "f").write_bytes(b"below")
    (tree.lowers[0] / "f").write_bytes(b"above")
    overlay = kernel_overlay(tree)
    point = overlay.mount("redirect_dir=on")
    assert (point / "f").read_bytes() == b"above"
    (point / "f").write_bytes(b"new")
    overlay.umount()
    assert (tree.upper / "f").read_bytes() == b"new"


def test_child_as_user(as_user):
    assert as_user(lambda: (os.getuid(), os.geteuid())) == (USER, USER)
    assert as_user(lambda: os.access("/dev/fuse", os.R_OK | os.W_OK), fuse=True)


def test_child_that_fails_or_hangs():
    with pytest.raises(ChildFailed, match="ZeroDivisionError"):
        in_child(lambda: 1 // 0)
    with pytest.raises(ChildFailed, match="no answer"):
        in_child(lambda: os.read(os.pipe()[0], 1), timeout=1)
