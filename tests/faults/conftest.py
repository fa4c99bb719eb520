"""Fixtures: file systems on failing disks, and an overlay of either kind on them."""

import os
import shutil

import pytest

from faults import matrix
from faults.faultyfs import KINDS, FaultyFilesystem
from support.overlays import KernelOverlay, VoileError, VoileOverlay, voile_missing

OVERLAYS = {"kernel": KernelOverlay, "voile": VoileOverlay}


@pytest.fixture(scope="module", autouse=True)
def data_is_lost_here():
    """A voile that says so is right."""
    VoileOverlay.may_lose = True
    yield
    VoileOverlay.may_lose = False


def overlay_class(name):
    if name == "voile" and (reason := voile_missing()):
        pytest.skip(reason)
    return OVERLAYS[name]


def umount_after_loss(overlay):
    """Unmount, not volatile, after data was lost; whether the daemon (in the foreground) said so."""
    try:
        overlay.umount()
    except VoileError as exc:
        status, text = exc.args
        assert status == 2
        assert len(text.splitlines()) == 1
        assert f"{overlay.layers.upper}: the upper file system has lost data" in text
        return True
    return False


def make_filesystem(filesystems, kind):
    if not shutil.which(f"mkfs.{kind}", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
        pytest.skip(f"no mkfs.{kind}")
    number = len(list(filesystems.base.glob("faulty-*")))
    directory = filesystems.base / f"faulty-{number}"
    directory.mkdir()
    return FaultyFilesystem(kind, directory)


@pytest.fixture(params=KINDS)
def fs(request, filesystems):
    """A fresh file system on a failing disk, of every kind."""
    made = make_filesystem(filesystems, request.param)
    yield made
    made.close()


@pytest.fixture
def other_fs(filesystems):
    """Another one."""
    made = make_filesystem(filesystems, "ext4")
    yield made
    made.close()


@pytest.fixture(params=OVERLAYS)
def overlay_kind(request):
    """The kernel's overlayfs is the oracle: what holds for voile is checked to hold there."""
    return overlay_class(request.param)


@pytest.fixture
def overlay(fs, overlay_kind):
    """overlay(layers) -> KernelOverlay or VoileOverlay on `fs`, closed before it."""
    made = []

    def make(layers):
        made.append(overlay_kind(layers))
        return made[-1]

    yield make
    for one in reversed(made):
        one.close()


@pytest.fixture
def opened():
    """opened(path, flags=O_RDONLY) -> descriptor, closed at the end (open files would keep all busy)."""
    fds = []

    def open_it(path, flags=os.O_RDONLY):
        fds.append(os.open(path, flags))
        return fds[-1]

    open_it.fds = fds
    yield open_it
    for fd in fds:
        os.close(fd)


def pytest_terminal_summary(terminalreporter):
    if matrix.ALL and matrix.KEPT:
        terminalreporter.section(f"fault matrix, Linux {os.uname().release}")
        terminalreporter.line(matrix.table(matrix.KEPT))
