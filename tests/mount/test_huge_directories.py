"""Directories with very many entries: nobody else waits while one is removed, replaced or forgotten.

What others wait for is how long the daemon's one thread is busy without a look at its requests. Its CPU time
is counted (support/hooked.py), which the load of the machine does not change. The times of a million entries:
`python -m benchmarks --only huge`.
"""

import errno
import os
import stat
import time

import pytest

from support import syscalls
from support.wait import wait_until

MANY = 40_000
# All of them at once would be more than 0.1 s.
LONGEST_S = 0.03


def fill(directory, names, *, whiteouts=False):
    directory.mkdir(parents=True, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    first = None
    for name in names:
        if first is None or not whiteouts:
            os.mknod(name, stat.S_IFCHR if whiteouts else stat.S_IFREG | 0o644, 0, dir_fd=fd)
            first = name
        else:
            os.link(first, name, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
    os.close(fd)


NAMES = [f"f{i:05}" for i in range(MANY)]


@pytest.fixture
def mounted(layers, hooked_overlay):
    """An overlay with a directory that shows nothing, because whiteouts hide what is in the lower layer."""
    made = layers(on="tmpfs")
    fill(made.lowers[0] / "many", NAMES)
    fill(made.upper / "many", NAMES, whiteouts=True)
    overlay = hooked_overlay(made)
    overlay.mount("volatile")
    return overlay


def left(layers):
    """How many objects the work directory holds."""
    return sum(len(directories) + len(files) for _path, directories, files in os.walk(layers.work / "work"))


def test_rmdir_of_what_holds_only_whiteouts(mounted):
    os.rmdir(mounted.point / "many")
    assert os.listdir(mounted.point) == []
    wait_until(lambda: left(mounted.layers) < 5, lambda: left(mounted.layers))
    assert float(mounted.hook("longest")) < LONGEST_S
    assert stat.S_ISCHR(os.lstat(mounted.layers.upper / "many").st_mode)
    mounted.umount()


def test_rename_over_what_holds_only_whiteouts(mounted):
    os.mkdir(mounted.point / "new")
    (mounted.point / "new" / "file").touch()
    os.rename(mounted.point / "new", mounted.point / "many")
    assert os.listdir(mounted.point / "many") == ["file"]
    wait_until(lambda: left(mounted.layers) < 5, lambda: left(mounted.layers))
    assert float(mounted.hook("longest")) < LONGEST_S
    mounted.umount()


def test_rmdir_of_what_holds_an_entry_among_whiteouts(mounted):
    fill(mounted.layers.upper / "other", NAMES, whiteouts=True)
    (mounted.layers.upper / "other" / "z").touch()
    with pytest.raises(OSError, match="not empty") as caught:
        os.rmdir(mounted.point / "other")
    assert caught.value.errno == errno.ENOTEMPTY
    os.unlink(mounted.point / "other" / "z")
    os.rmdir(mounted.point / "other")
    assert os.listdir(mounted.point) == ["many"]
    assert float(mounted.hook("longest")) < LONGEST_S
    mounted.umount()


def test_forgetting(layers, hooked_overlay):
    made = layers(on="tmpfs")
    fill(made.lowers[0] / "many", NAMES)
    overlay = hooked_overlay(made)
    point = overlay.mount()
    with os.scandir(point / "many") as entries:
        for entry in entries:
            entry.stat()
    syscalls.mount(None, point, None, syscalls.MS_REMOUNT)  # drops all names
    wait_until(lambda: overlay.state()["nodes"] < 10, lambda: overlay.state()["nodes"])
    assert float(overlay.hook("longest")) < LONGEST_S
    overlay.umount()


def test_mount_over_leftovers(layers, voile_overlay):
    """The daemon was killed while it emptied what a removal had left."""
    made = layers(on="tmpfs")
    (made.lowers[0] / "file").touch()
    for name in ("#1", "#a", "other"):
        fill(made.work / "work" / name, NAMES, whiteouts=True)
    overlay = voile_overlay(made)
    point = overlay.mount()
    os.unlink(point / "file")  # makes temporary objects, and their names are not taken
    assert os.listdir(point) == []
    wait_until(lambda: left(made) < 3, lambda: left(made))
    assert stat.S_IMODE(os.stat(made.work / "work").st_mode) == 0
    overlay.umount()
    assert left(made) == 0


def test_umount_does_not_wait_for_leftovers(layers, voile_overlay):
    made = layers(on="tmpfs")
    for name in ("#1", "#2", "#3"):
        fill(made.work / "work" / name, NAMES, whiteouts=True)
    overlay = voile_overlay(made)
    overlay.mount()
    overlay.umount()
    time.sleep(0.1)
    assert left(made) > 0, "the machine is too fast for this test: more files are needed"
    overlay.mount()
    wait_until(lambda: left(made) == 0, lambda: left(made))
    overlay.umount()


def test_listings_that_are_given_up(layers, hooked_overlay):
    """Listings are begun, and given up, while what they list changes."""
    made = layers(on="tmpfs")
    names = [f"f{i:06}" for i in range(200_000)]
    (made.lowers[0] / "many").mkdir()
    (made.lowers[0] / "many" / "first").write_bytes(b"x")
    fd = os.open(made.lowers[0] / "many", os.O_RDONLY)
    for name in names:
        os.link("first", name, src_dir_fd=fd, dst_dir_fd=fd)
    os.close(fd)
    overlay = hooked_overlay(made)
    point = overlay.mount("volatile")
    with os.scandir(point / "many") as first, os.scandir(point / "many") as second:
        os.unlink(next(first))
        os.unlink(next(second))
        assert sum(1 for _ in first) + sum(1 for _ in second) > 2 * len(names) - 10
    assert len(os.listdir(point / "many")) == len(names) - 1
    assert float(overlay.hook("longest")) < LONGEST_S
    overlay.umount()
