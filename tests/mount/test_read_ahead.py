"""What is not passed through is read in large requests."""

import os
import subprocess
from pathlib import Path

import pytest

from support.overlays import ROOT, voile_missing


def test_read_ahead(isolated, scratch):
    if reason := voile_missing():
        pytest.skip(reason)
    for name in ("l", "u", "w", "m"):
        (scratch / name).mkdir()
    options = f"lowerdir={scratch}/l,upperdir={scratch}/u,workdir={scratch}/w"
    subprocess.run([ROOT / "voile", "mount", "-o", options, scratch / "m"], check=True)
    try:
        device = os.stat(scratch / "m").st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        found = list(Path("/sys/class/bdi").glob(number + "*"))
        names = {path.name: path for path in found}
        bdi = names.get(f"{number}-fuseblk") or names[number]
        assert (bdi / "read_ahead_kb").read_text() == "1024\n"
    finally:
        subprocess.run(["umount", scratch / "m"], check=True)
