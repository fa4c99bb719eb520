"""Nodes, lookup counts and descriptors of a running daemon: the right file by every name, nothing kept."""

import os

from support.users import in_child
from support.wait import wait_until


def drop_caches():
    """Dentries and inodes that nobody uses: the kernel forgets them."""
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("2\n")


def forgotten(overlay, nodes):
    """Waits until the daemon knows no more nodes than that (FORGETs arrive late)."""

    def few():
        drop_caches()
        return overlay.state()["nodes"] <= nodes

    wait_until(few, lambda: f"nodes are kept: {overlay.state()}")


def two_names(layers):
    """An upper file with the names a/f and b/g."""
    made = layers()
    for name in ("a", "b"):
        (made.upper / name).mkdir()
    (made.upper / "a/f").write_bytes(b"12345")
    os.link(made.upper / "a/f", made.upper / "b/g")
    return made


def test_second_name_of_an_open_file_whose_first_was_removed(layers, voile_overlay):
    """One file stays one inode to the kernel, or its caches show two states of it."""
    overlay = voile_overlay(two_names(layers))
    point = overlay.mount()
    with open(point / "a/f", "r+b", buffering=0) as f:
        os.unlink(point / "a/f")
        assert os.stat(point / "b/g").st_size == 5
        f.seek(0, os.SEEK_END)
        f.write(b"67890")
        assert os.stat(point / "b/g").st_size == 10
        assert (point / "b/g").read_bytes() == b"1234567890"
        os.chmod(point / "b/g", 0o600)
        assert os.fstat(f.fileno()).st_mode & 0o777 == 0o600
    overlay.umount()


def test_directory_of_one_name_is_forgotten_and_renamed(layers, hooked_overlay):
    """A hard-linked file is found by the name that is in use, wherever the other one has gone."""
    overlay = hooked_overlay(two_names(layers))
    point = overlay.mount()
    with open(point / "b/g", "rb"):  # keeps b, and the inode
        os.stat(point / "a/f")
        forgotten(overlay, 3)  # the root, b, the file
        os.rename(point / "a", point / "c")
        os.chmod(point / "b/g", 0o600)
        assert os.stat(point / "b/g").st_mode & 0o777 == 0o600
        assert os.stat(point / "c/f").st_ino == os.stat(point / "b/g").st_ino
        os.unlink(point / "b/g")
        assert (point / "c/f").read_bytes() == b"12345"
    overlay.umount()


def tree(root, depth, width):
    for i in range(width):
        (root / f"f{i}").write_bytes(b"%d" % i)
        if depth:
            (root / f"d{i}").mkdir()
            tree(root / f"d{i}", depth - 1, width)


def test_nothing_is_kept(layers, hooked_overlay):
    """With eight descriptors for directories all works, and when the tree is gone so is all that it took."""
    made = layers(lowers=2)
    for layer in (*made.lowers, made.upper):
        tree(layer, 2, 4)
    overlay = hooked_overlay(made)
    point = overlay.mount("redirect_dir=on,cpu_follow=off")
    overlay.hook("fdlimit.8")
    forgotten(overlay, 1)
    base = overlay.state()

    def work():
        for directory, _directories, files in os.walk(point):
            for name in files:
                path = os.path.join(directory, name)
                os.chmod(path, 0o600)
                os.link(path, path + ".link")
                os.rename(path, path + ".new")
                with open(path, "x") as new:
                    os.unlink(path)
                    new.write("open")
        for directory, directories, _files in os.walk(point, topdown=False):
            for name in directories:
                os.rename(os.path.join(directory, name), os.path.join(directory, "x" + name))
        # An open directory that is removed, a file in it, and a working directory of a working directory.
        held = [os.open(point / "xd0", os.O_RDONLY), os.open(point / "xd0/f0.new", os.O_RDWR)]
        os.chdir(point / "xd0")
        count = 0
        for directory, directories, files in os.walk(point, topdown=False):
            for name in files:
                os.unlink(os.path.join(directory, name))
                count += 1
            for name in directories:
                os.rmdir(os.path.join(directory, name))
        assert os.listdir(point) == []
        assert os.write(held[1], b"1") == 1
        os.fchmod(held[0], 0o711)
        os.chdir("/")
        return count

    assert in_child(work) == 4 * (1 + 4 + 16) * 2
    forgotten(overlay, 1)
    after = overlay.state()
    assert after.pop("calls") == base.pop("calls")
    assert after == base
    overlay.umount()


def test_removed_lower_directory_still_open(layers, hooked_overlay):
    """As on a local file system.  (On the kernel's overlayfs fchmod(2) says ENOTDIR then.)"""
    made = layers()
    (made.lowers[0] / "d").mkdir()
    os.setxattr(made.lowers[0] / "d", "user.x", b"1")
    overlay = hooked_overlay(made)
    point = overlay.mount("cpu_follow=off")
    forgotten(overlay, 1)
    base = overlay.state()["fds"]

    def use():
        fd = os.open(point / "d", os.O_RDONLY)
        os.rmdir(point / "d")
        os.fchmod(fd, 0o711)
        assert os.fstat(fd).st_mode & 0o777 == 0o711
        assert os.getxattr(fd, "user.x") == b"1"
        os.close(fd)

    in_child(use)
    assert os.listdir(point) == []
    forgotten(overlay, 1)
    assert overlay.state()["fds"] == base
    overlay.umount()
