"""Nodes, lookup counts and descriptors of a running daemon: the right file by every name, nothing kept."""

import ctypes
import os
import struct

from support.users import in_child
from support.wait import wait_until

IN_MODIFY, IN_CREATE = 2, 0x100


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


def test_watched_objects_are_found_again(layers, hooked_overlay):
    """An inotify watch keeps an inode, but not the way to it; it sees what is done after a rename of that."""
    libc = ctypes.CDLL(None, use_errno=True)
    made = layers()
    for layer in (made.lowers[0], made.upper):
        (layer / "d/e").mkdir(parents=True)
    (made.lowers[0] / "d/e/low").write_bytes(b"1")
    (made.upper / "d/e/up").write_bytes(b"1")
    overlay = hooked_overlay(made)
    point = overlay.mount("redirect_dir=on")
    watch = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    watches = [
        libc.inotify_add_watch(watch, bytes(point / path), IN_MODIFY | IN_CREATE)
        for path in ("d/e", "d/e/low", "d/e/up")
    ]
    forgotten(overlay, 1 + len(watches))
    os.rename(point / "d", point / "x")
    (point / "x/e/low").write_bytes(b"2")
    (point / "x/e/up").write_bytes(b"2")
    (point / "x/e/new").mkdir()
    events, seen = os.read(watch, 4096), set()
    while events:
        number, _mask, _cookie, length = struct.unpack_from("=iIII", events)
        seen.add(number)
        events = events[16 + length :]
    assert seen == set(watches)
    os.close(watch)
    forgotten(overlay, 1)
    assert overlay.state()["hooked"] == 0
    overlay.umount()


def test_inode_number_that_is_used_again(layers, hooked_overlay):
    """Without file handles st_ino of what is copied up is remembered: no longer than the file is there."""
    made = layers()
    (made.lowers[0] / "low").write_bytes(b"1")
    overlay = hooked_overlay(made)
    point = overlay.mount()
    overlay.hook("nohandles")
    os.chmod(point / "low", 0o600)
    real = os.stat(made.upper / "low").st_ino
    os.unlink(point / "low")
    forgotten(overlay, 1)  # the daemon has closed it, too
    made_now = {name: point / name for name in map(str, range(50))}
    for path in made_now.values():
        path.write_bytes(b"")
    (again,) = (name for name in made_now if os.stat(made.upper / name).st_ino == real)
    number = os.stat(made_now[again]).st_ino
    forgotten(overlay, 1)
    assert os.stat(made_now[again]).st_ino == number
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
