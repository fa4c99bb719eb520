"""index=on in a running daemon: copies under way, names that come and go, mounts where it cannot be."""

import os
import subprocess

import pytest
from mount.test_nodes import forgotten
from mount.test_while_copying import DATA, begin, finish, write

from support import fsck
from support.namespace import become_root_of_a_user_namespace
from support.overlays import VoileOverlay
from support.syscalls import RENAME_EXCHANGE, renameat2
from support.users import USER
from support.wait import wait_until

ON = "index=on,redirect_dir=on"


@pytest.fixture(params=["volatile", ""])
def mounted(request, layers, hooked_overlay):
    """One large file with the names a, d/e/b and d/c, and another with the names x and y."""
    made = layers()
    low = made.lowers[0]
    (low / "d/e").mkdir(parents=True)
    (low / "a").write_bytes(DATA)
    (low / "x").write_bytes(DATA)
    os.link(low / "a", low / "d/e/b")
    os.link(low / "a", low / "d/c")
    os.link(low / "x", low / "y")
    overlay = hooked_overlay(made)
    overlay.mount(",".join(filter(None, [request.param, ON, "cpu_follow=off"])))
    yield overlay
    if overlay.process is not None and overlay.process.poll() is None:
        overlay.hook("go")


def names(point):
    return sorted(
        os.path.relpath(os.path.join(where, name), point)
        for where, _dirs, files in os.walk(point)
        for name in files
    )


def check(overlay):
    """What is left is in order."""
    overlay.umount()
    assert fsck.complaints(overlay.layers, ON) == []


WAITERS = {
    "unlink": (lambda p: os.unlink(p / "d/c"), ["a", "d/e/b"]),
    "unlink-the-same": (lambda p: os.unlink(p / "a"), ["d/c", "d/e/b"]),
    "rename": (lambda p: os.rename(p / "d/c", p / "new"), ["a", "d/e/b", "new"]),
    "rename-over": (lambda p: os.rename(p / "x", p / "d/c"), ["a", "d/e/b"]),
    "exchange": (lambda p: renameat2(p / "y", p / "d/c", RENAME_EXCHANGE), ["a", "d/e/b", "y"]),
    "link": (lambda p: os.link(p / "d/e/b", p / "new"), ["a", "d/c", "d/e/b", "new"]),
    "chmod": (lambda p: os.chmod(p / "d/c", 0o600), ["a", "d/c", "d/e/b"]),
    "write": (lambda p: write(p / "d/e/b", b"?", 7)(), ["a", "d/c", "d/e/b"]),
}


@pytest.mark.parametrize("what", WAITERS)
def test_other_names_while_it_is_copied(what, mounted):
    """Who changes the file by another name waits for the copy."""
    point = mounted.point
    change, left = WAITERS[what]
    reader = os.open(point / "d/c", os.O_RDONLY)
    children = begin(mounted, write(point / "a"), lambda: change(point))
    assert os.pread(reader, 100, 50) == DATA[50:150]
    assert finish(mounted, children) == [0, 0]
    assert os.pread(reader, 1, 0) == b"!"
    os.close(reader)
    expected = b"!" + DATA[1:]
    if what == "write":
        expected = expected[:7] + b"?" + expected[8:]
    assert {(point / name).read_bytes() for name in left} == {expected}
    assert {os.stat(point / name).st_nlink for name in left} == {len(left)}
    assert len({os.stat(point / name).st_ino for name in left}) == 1
    others = [name for name in names(point) if name not in left]
    assert {(point / name).read_bytes() for name in others} == {DATA}
    check(mounted)


def test_directories_move_while_it_is_copied(mounted):
    """The name by which it is copied up lies elsewhere when that is done."""
    point = mounted.point
    children = begin(mounted, write(point / "d/e/b"))
    os.rename(point / "d/e", point / "d/x")
    os.rename(point / "d", point / "z")
    assert finish(mounted, children) == [0]
    assert (point / "z/x/b").read_bytes() == (point / "a").read_bytes() == b"!" + DATA[1:]
    assert os.path.lexists(mounted.layers.upper / "z/x/b")
    assert os.stat(point / "z/c").st_nlink == 3
    check(mounted)


def test_open_by_every_name(mounted):
    """Descriptors from before the copy see the new data, whatever name they were opened by."""
    point = mounted.point
    readers = [os.open(point / name, os.O_RDONLY) for name in ("a", "d/e/b", "d/c")]
    children = begin(mounted, write(point / "d/c"))
    assert finish(mounted, children) == [0]
    for name in ("a", "d/e/b", "d/c"):
        os.unlink(point / name)
    assert {os.pread(fd, 3, 0) for fd in readers} == {b"!" + DATA[1:3]}
    assert {os.fstat(fd).st_nlink for fd in readers} == {0}
    for fd in readers:
        os.close(fd)
    check(mounted)
    assert os.listdir(mounted.layers.work / "index") == []


def test_nothing_is_kept(mounted):
    """Nodes of files that have one or several names are forgotten, with what leads to them."""
    point = mounted.point
    state = mounted.state()
    for _ in range(3):
        os.chmod(point / "d/c", 0o600)
        for name in names(point):
            os.stat(point / name)
        os.link(point / "a", point / "new")
        os.unlink(point / "new")
    os.unlink(point / "x")
    os.unlink(point / "y")
    forgotten(mounted, state["nodes"])
    wait_until(lambda: mounted.state()["hooked"] == 0, lambda: mounted.state())
    now = mounted.state()
    # A first copy in another thread may make an eventfd.
    before, after = ([fd for fd in each["fds"] if "eventfd" not in fd] for each in (state, now))
    assert (now["by_ino"], now["by_entry"], after) == (0, 0, before)
    assert (point / "a").read_bytes() == DATA
    check(mounted)


def test_removed_names_that_nobody_has_asked_for(mounted):
    point = mounted.point
    for name in ("d/c", "a"):
        os.unlink(point / name)
        forgotten(mounted, 1)
    assert os.stat(point / "d/e/b").st_nlink == 1
    assert (point / "d/e/b").read_bytes() == DATA
    os.unlink(point / "d/e/b")
    check(mounted)
    assert len(os.listdir(mounted.layers.work / "index")) == 0


def test_where_handles_lead_nowhere(layers, kernel_overlay, voile_overlay):
    """A lower layer on an overlay: as in the kernel, a warning says that there is no index."""
    below, made = layers(), layers()
    (below.lowers[0] / "a").touch()
    os.link(below.lowers[0] / "a", below.lowers[0] / "b")
    made.lowers[0] = kernel_overlay(below).mount()
    overlay = voile_overlay(made)
    point = overlay.mount(ON)
    said = overlay.output()
    assert "warning" in said and "index=off" in said and said.count("\n") == 1
    os.chmod(point / "a", 0o600)
    assert os.stat(point / "b").st_mode & 0o777 != 0o600
    assert not (made.work / "index").exists()
    overlay.log.truncate(0)
    overlay.umount()


def test_by_an_ordinary_user(layers, as_user):
    """Nobody may open file handles in a user namespace."""
    made = layers()
    subprocess.run(["chown", "-R", str(USER), made.base], check=True)

    def inside():
        become_root_of_a_user_namespace()
        overlay = VoileOverlay(made)
        overlay.mount("userxattr,index=on")
        said = overlay.output()
        overlay.log.truncate(0)
        overlay.umount()
        return said

    said = as_user(inside, fuse=True)
    assert "index=off" in said and said.count("\n") == 1


def test_failed_mount_leaves_nothing(layers, voile_overlay):
    """The mount fails after the directories have been taken into use."""
    made = layers()
    overlay = voile_overlay(made)
    command = [*overlay.program, "mount", "-f", "-o", f"{made.options()},{ON}", made.base / "not there"]
    assert subprocess.run(command, cwd=made.base, capture_output=True).returncode != 0
    assert os.listxattr(made.upper) == []
    assert not (made.work / "index").exists()
