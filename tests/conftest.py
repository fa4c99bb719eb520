"""One run of the tests lives in one private mount namespace; what it leaves behind fails it."""

import os
import shutil
import zlib

import pytest

from support.filesystems import Filesystems
from support.namespace import ISOLATION
from support.overlays import HookedOverlay, KernelOverlay, Layers, VoileOverlay, voile_missing
from support.users import USER, in_child, open_dev_fuse


def pytest_configure(config):
    ISOLATION.enter()


def pytest_collection_modifyitems(config, items):
    """About one in n cases of what is marked `sampled(n)`, unless all are wanted, or some by name."""
    named = config.option.keyword or any("::" in argument for argument in config.args)
    if named or os.environ.get("VOILE_TESTS") == "all":
        return
    kept, left_out = [], []
    for item in items:
        mark = item.get_closest_marker("sampled")
        chosen = mark is None or zlib.crc32(item.nodeid.encode()) % mark.args[0] == 0
        (kept if chosen else left_out).append(item)
    if left_out:
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)


def pytest_sessionfinish(session, exitstatus):
    session.config.leftovers = ISOLATION.leftovers()
    if session.config.leftovers:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    if getattr(config, "leftovers", None):
        terminalreporter.section("left behind by the tests", red=True)
        for line in config.leftovers:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def isolated():
    """Skips what needs to mount when the run could not get a mount namespace."""
    if not ISOLATION.isolated:
        pytest.skip("needs root (CAP_SYS_ADMIN) to mount")


@pytest.fixture(scope="session")
def filesystems(isolated):
    """Scratch file systems by kind: ext4, xfs, btrfs, tmpfs, ramfs (no ACLs, no xattrs)."""
    made = Filesystems()
    yield made
    made.close()


@pytest.fixture
def scratch(filesystems):
    """An empty directory on ext4."""
    return filesystems.directory("ext4")


@pytest.fixture
def scratch_on(filesystems):
    """scratch_on(kind): an empty directory on that kind of file system."""
    return filesystems.directory


@pytest.fixture
def layers(filesystems):
    """layers(lowers=1, upper=True, on="ext4", lowers_on=None, datas=0) -> Layers: empty directories."""

    made = []

    def make(lowers=1, upper=True, on="ext4", lowers_on=None, datas=0):
        made.append(filesystems.directory(on))
        if lowers_on:
            made.append(filesystems.directory(lowers_on))
        lower_base = made[-1] if lowers_on else None
        return Layers(made[-2] if lowers_on else made[-1], lowers, upper, lower_base, datas)

    yield make
    for directory in made:
        shutil.rmtree(directory, ignore_errors=True)


def _factory(cls):
    made = []

    def make(layers):
        made.append(cls(layers))
        return made[-1]

    yield make
    for overlay in made:
        overlay.close()


@pytest.fixture
def kernel_overlay(layers):
    """kernel_overlay(layers) -> .mount(*options) -> mount point, .umount()"""
    yield from _factory(KernelOverlay)


@pytest.fixture
def voile_overlay(layers):
    """voile_overlay(layers) -> .mount(*options) -> mount point, .umount(), .pid, .output(), .kill()"""
    if reason := voile_missing():
        pytest.skip(reason)
    yield from _factory(VoileOverlay)


@pytest.fixture
def hooked_overlay(layers):
    """As voile_overlay, with hooks: .hook("crash.3"), .state() (see support/hooked.py)"""
    if reason := voile_missing():
        pytest.skip(reason)
    yield from _factory(HookedOverlay)


@pytest.fixture
def as_user(isolated, filesystems):
    """as_user(function, fuse=False): function() in a child with an ordinary user's credentials, no groups.

    With fuse=True the child gets a mount namespace of its own in which everybody may open /dev/fuse.
    """
    node = os.fspath(filesystems.base / "fuse-node")

    def run(function, *, fuse=False, uid=USER, timeout=60):
        namespace = (lambda: open_dev_fuse(node)) if fuse else None
        return in_child(function, uid=uid, namespace=namespace, timeout=timeout)

    return run
