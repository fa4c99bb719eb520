"""Mounts that write nothing, and what a limited `timeout` means."""

import os
import stat
import subprocess

import pytest

from support.overlays import ROOT, voile_missing


@pytest.fixture
def tree(isolated, scratch):
    if reason := voile_missing():
        pytest.skip(reason)
    for name in ("l", "u", "w", "m"):
        (scratch / name).mkdir()
    (scratch / "l" / "file").write_text("lower\n")
    yield scratch


def options(tree, *more):
    return ",".join([f"lowerdir={tree}/l,upperdir={tree}/u,workdir={tree}/w", *more])


def mount(tree, *more):
    return subprocess.run(
        [ROOT / "voile", "mount", "-o", options(tree, *more), tree / "m"], capture_output=True, text=True
    )


def umount(tree):
    subprocess.run(["umount", tree / "m"], check=True)


def test_the_marker_refuses_a_read_only_mount_too(tree):
    """As in the kernel: what may be incomplete is not shown as if it were whole."""
    assert mount(tree, "volatile").returncode == 0
    umount(tree)
    kernel = subprocess.run(["mount", "-t", "overlay", "-o", options(tree, "ro"), "overlay", tree / "m"])
    assert kernel.returncode == 32
    refused = mount(tree, "ro")
    assert (refused.returncode, refused.stderr.count("\n")) == (32, 1)
    assert "the last mount was volatile" in refused.stderr
    for path in ("w/work", "w/work/incompat"):
        assert stat.S_IMODE(os.stat(tree / path).st_mode) == 0


def test_an_upper_that_is_mounted_read_only_is_in_use(tree):
    assert mount(tree, "ro").returncode == 0
    (tree / "m2").mkdir()
    command = [ROOT / "voile", "mount", "-o", options(tree), tree / "m2"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 32 and "in use" in refused.stderr
    umount(tree)
    assert os.listdir(tree / "w") == []


def test_a_limited_timeout_shows_changes_of_the_layers(tree):
    assert mount(tree, "timeout=0").returncode == 0
    try:
        path = tree / "m" / "file"
        assert path.read_text() == "lower\n"
        (tree / "l" / "file").write_text("LOWER\n")
        assert path.read_text() == "LOWER\n"
        (tree / "l" / "new").write_text("")
        assert sorted(os.listdir(tree / "m")) == ["file", "new"]
    finally:
        umount(tree)
