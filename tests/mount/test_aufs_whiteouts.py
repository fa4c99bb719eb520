"""The whiteouts of AUFS, as in image layers unpacked for a mount program: `aufs_whiteouts=on`."""

import errno
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

from support import mountinfo, syscalls
from support.overlays import ROOT, voile_missing


def fill(root, *names):
    """Files, directories (with a slash at the end) and symbolic links (with "@")."""
    for name in names:
        path = root / name.rstrip("/@")
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        elif name.endswith("@"):
            path.symlink_to("nowhere")
        else:
            path.write_text(name)


def shown(point):
    """Every path on the mount; each listed name can be looked up."""
    found = []
    for directory, names, files in os.walk(point):
        for name in names + files:
            os.lstat(os.path.join(directory, name))
            found.append(os.path.relpath(os.path.join(directory, name), point))
    return sorted(found)


def build(made):
    top, middle, bottom = made.lowers
    fill(bottom, "a", "b", "c", "d", "stays", "gone/in", "opaque/old", "opaque/sub/old", "part/one")
    fill(bottom, ".wh.nothing", "deep/x/y/z", "upgone", "updir/old", "replaced/old", "part/two")
    fill(middle, "from-the-middle", "again/mid", "part/three")
    # Of whatever kind; and what AUFS keeps for itself.
    fill(top, ".wh.a", ".wh.b/", ".wh.c@", ".wh.gone", ".wh..wh.plnk/123", ".wh..wh.aufs", ".wh..wh.orph/")
    fill(top, "opaque/.wh..wh..opq", "opaque/new", "opaque/sub/new", "part/.wh.one", "part/.wh.three")
    fill(top, "deep/x/.wh.y", "replaced/new", ".wh.replaced")
    fill(made.upper, ".wh.upgone", "updir/.wh..wh..opq", "updir/new")


ALL = (
    "d deep deep/x again again/mid from-the-middle opaque opaque/new opaque/sub opaque/sub/new part part/two "
    "stays updir updir/new"
).split()
# A layer's own directory beside the whiteout of its name: a new one. fuse-overlayfs 1.10 shows none.
OURS = sorted([*ALL, "replaced", "replaced/new"])


@pytest.fixture
def made(layers):
    made = layers(3)
    build(made)
    return made


@pytest.fixture
def point(made, voile_overlay):
    return voile_overlay(made).mount("aufs_whiteouts=on")


def test_they_hide(point):
    assert shown(point) == OURS
    assert not os.path.lexists(point / ".wh.a")
    for name in "a b c gone gone/in opaque/old part/one deep/x/y upgone .wh..wh.plnk".split():
        assert not os.path.lexists(point / name), name


@contextmanager
def fuse_overlayfs(made):
    if not (program := shutil.which("fuse-overlayfs")):
        pytest.skip("no fuse-overlayfs")
    command = [program, "-o", made.options(), made.point]
    subprocess.run(command, cwd=made.base, check=True, capture_output=True)
    try:
        yield made.point
    finally:
        syscalls.umount(made.point)


def test_as_fuse_overlayfs(made):
    """Except that it hides a directory beside a whiteout of its name in the same layer."""
    with fuse_overlayfs(made) as point:
        assert shown(point) == sorted(ALL)


def test_what_fuse_overlayfs_has_written(made, voile_overlay):
    with fuse_overlayfs(made) as point:
        os.unlink(point / "d")
        (point / "d").mkdir()
        (point / "opaque" / "new").write_text("changed")
        shutil.rmtree(point / "part")
        (point / "part").mkdir()
        shutil.rmtree(point / "opaque" / "sub")
        os.rename(point / "stays", point / "gone")
        names = shown(point)
    replaced = {"replaced", "replaced/new"}
    assert shown(voile_overlay(made).mount("aufs_whiteouts=on")) == sorted({*names} | replaced)
    assert "part/two" not in names and "d" in names


def test_off_unless_asked_for(made, voile_overlay):
    names = shown(voile_overlay(made).mount())
    assert {".wh.a", "a", "opaque/.wh..wh..opq", "opaque/old", ".wh..wh.plnk/123"} <= set(names)


def test_a_directory_that_shows_nothing_is_empty(made, point):
    os.unlink(point / "part" / "two")
    assert os.listdir(point / "part") == []
    os.rmdir(point / "part")
    os.unlink(point / "updir" / "new")
    os.rmdir(point / "updir")
    os.rmdir(point / "deep" / "x")
    assert not {"part", "updir", "deep/x"} & set(shown(point))


def test_hidden_names_are_made_anew(point):
    (point / "a").write_text("new")
    (point / "gone").mkdir()
    os.rename(point / "d", point / "b")
    os.symlink("x", point / "part" / "one")
    os.link(point / "stays", point / "deep" / "x" / "y")
    (point / "upgone").mkdir()
    os.unlink(point / "a")
    (point / "a").mkdir()
    expected = {*OURS, "a", "gone", "b", "part/one", "deep/x/y", "upgone"} - {"d"}
    assert shown(point) == sorted(expected)


def test_what_was_made_anew_is_there_after_a_remount(made, voile_overlay):
    overlay = voile_overlay(made)
    point = overlay.mount("aufs_whiteouts=on")
    (point / "gone").mkdir()
    (point / "gone" / "mine").write_text("")
    os.unlink(point / "stays")
    names = shown(point)
    overlay.umount()
    assert names == sorted({*OURS, "gone", "gone/mine"} - {"stays"})
    assert shown(overlay.mount("aufs_whiteouts=on")) == names


@pytest.mark.parametrize("name", [".wh.x", ".wh..wh..opq", "part/.wh.two", ".wh."])
def test_none_is_made(point, name):
    path = point / name
    makers = {
        "open": lambda: os.close(os.open(path, os.O_CREAT | os.O_WRONLY)),
        "mkdir": lambda: os.mkdir(path),
        "mknod": lambda: os.mknod(path, 0o010644),
        "symlink": lambda: os.symlink("x", path),
        "link": lambda: os.link(point / "stays", path),
        "rename": lambda: os.rename(point / "stays", path),
    }
    for what, make in makers.items():
        with pytest.raises(OSError) as e:
            make()
        assert e.value.errno == errno.EINVAL, what
    for what in (os.unlink, os.rmdir, os.stat):
        with pytest.raises(FileNotFoundError):
            what(path)
    assert shown(point) == OURS


def test_in_the_root(layers, voile_overlay):
    made = layers(3)
    fill(made.lowers[0], "top")
    fill(made.lowers[1], "middle", ".wh..wh..opq")
    fill(made.lowers[2], "bottom")
    assert shown(voile_overlay(made).mount("aufs_whiteouts=on")) == ["middle", "top"]


def test_mark_of_fuse_overlayfs(layers, voile_overlay):
    """What it writes where it may not set the kernel's attribute."""
    made = layers(2)
    fill(made.lowers[0], "d/new", "e/new")
    fill(made.lowers[1], "d/old", "e/old")
    os.setxattr(made.lowers[0] / "d", "user.fuseoverlayfs.opaque", b"y")
    os.setxattr(made.lowers[0] / "e", "user.fuseoverlayfs.opaque", b"n")
    assert shown(voile_overlay(made).mount("aufs_whiteouts=on")) == ["d", "d/new", "e", "e/new", "e/old"]


@pytest.mark.parametrize(
    "words, on", [("-o % {m}", True), ("-o %,aufs_whiteouts=off {m}", False), ("source {m} -o %", False)]
)
def test_default_for_container_engines(made, words, on):
    """PROGRAM -o OPTIONS TARGET is their call; with a source it is mount(8)'s."""
    if reason := voile_missing():
        pytest.skip(reason)
    filled = [word.replace("%", made.options()).replace("{m}", str(made.point)) for word in words.split()]
    subprocess.run([sys.executable, "-I", "-S", ROOT / "voile", *filled], cwd=made.base, check=True)
    try:
        assert (shown(made.point) == OURS) == on
    finally:
        subprocess.run([sys.executable, "-I", "-S", ROOT / "voile", "umount", made.point], check=True)
    assert not mountinfo.at(made.point)
