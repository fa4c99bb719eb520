"""Every cell of sync_table, measured: what sync calls return after lost data, here and elsewhere."""

import errno
import json
import os
import shutil
import subprocess
import sys
from ctypes.util import find_library

import pytest

from faults import sync_client, sync_table
from faults.faultyfs import GOOD
from support.overlays import ROOT, KernelOverlay, VoileOverlay, voile_missing

# Not EIO: whether the errno is the one that was lost shows.
LOST = errno.ENOSPC
NAMES = {0: sync_table.OK, LOST: sync_table.E, errno.EIO: sync_table.EIO}


def kernel(layers):
    return KernelOverlay(layers), "volatile"


def voile(options):
    def make(layers):
        if reason := voile_missing():
            pytest.skip(reason)
        return VoileOverlay(layers), f"volatile,{options}"

    return make


class FuseOverlayfs:
    def __init__(self, layers):
        self.layers = layers

    def mount(self, options):
        data = f"{self.layers.options()},{options}"
        command = ["fuse-overlayfs", "-o", data, self.layers.point]
        subprocess.run(command, cwd=self.layers.base, check=True, stderr=subprocess.DEVNULL)
        return self.layers.point

    def umount(self):
        subprocess.run(["umount", self.layers.point], check=True)

    close = umount


def fuse_overlayfs(layers):
    if not shutil.which("fuse-overlayfs"):
        pytest.skip("no fuse-overlayfs")
    return FuseOverlayfs(layers), "volatile"


class NoOverlay:
    """The file system with the "upper" directory itself."""

    def __init__(self, layers):
        self.layers = layers

    def mount(self, options):
        return self.layers.upper

    def umount(self):
        pass

    close = umount


MAKE = {
    "kernel": kernel,
    "voile": voile("passthrough=on"),
    "voile, passthrough=off": voile("passthrough=off"),
    "voile, plain fuse": voile("fuseblk=off,passthrough=off"),
    "fuse-overlayfs": fuse_overlayfs,
    "eatmydata": lambda layers: (NoOverlay(layers), ""),
    "none": lambda layers: (NoOverlay(layers), ""),
}


def ask(fs, point, upper, preload):
    """What the client hears: {call: (first, again, new, other)}, with the names of sync_table."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([f"{ROOT}/tests", f"{ROOT}/src"])}
    if preload:
        environment["LD_PRELOAD"] = preload
    command = [sys.executable, sync_client.__file__]
    client = subprocess.Popen(
        command, cwd=point, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert client.stdout.readline() == "\n", "it could not open the files"
        for number in range(len(sync_client.CALLS)):
            fs.lose(LOST, upper / sync_client.names(number)[0])
        said, _ = client.communicate("\n", timeout=30)
    finally:
        client.kill()
        client.wait()
    return {call: tuple(NAMES.get(n, n) for n in cell) for call, cell in json.loads(said).items()}


@pytest.mark.parametrize("system", sync_table.SYSTEMS)
def test_calls(fs, system):
    preload = find_library("eatmydata") if system == "eatmydata" else None
    if system == "eatmydata" and not preload:
        pytest.skip("no libeatmydata")
    overlay, options = MAKE[system](fs.layers())
    try:
        point = overlay.mount(options)
        for number in range(len(sync_client.CALLS)):
            for name in sync_client.names(number):
                (point / name).parent.mkdir()
                (point / name).write_bytes(GOOD)
        assert fs.sync() == 0
        got = ask(fs, point, overlay.layers.upper, preload)
    finally:
        overlay.umount()
    assert got == sync_table.column(system)



@pytest.mark.parametrize("ours", ["voile", "voile, passthrough=off", "voile, plain fuse"])
def test_never_worse_than_the_kernel(ours):
    """Where the kernel's volatile overlayfs reports lost data, so do we, and the same errno."""
    kernels, got = sync_table.column("kernel"), sync_table.column(ours)
    for call, cell in kernels.items():
        for here, there in zip(got[call], cell, strict=True):
            assert there in (sync_table.OK, here), call


def test_every_cell_has_a_measurement():
    assert list(sync_table.TABLE) == list(sync_client.CALLS)
    assert list(sync_table.SYSTEMS) == list(MAKE)
    assert {len(cells) for cells in sync_table.TABLE.values()} == {len(MAKE)}


def test_the_documentation_has_this_table():
    assert sync_table.markdown() in (ROOT / "docs/explanation/honest-sync.md").read_text()
