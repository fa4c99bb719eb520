"""The counters of omitted syncs, against what strace(1) sees programs do."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from support.overlays import ROOT

VOILE = str(ROOT / "voile")
TRACED = "fsync,fdatasync,syncfs,write,pwrite64,pwritev,writev"
LINE = re.compile(r"^(?:\[pid +\d+\] |\d+ +)?(\w+)\((\d+)<(.*?)>.*= (\d+)$")

SQLITE = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1] + "/base.sqlite")
base.execute("create table t (n integer)")
for number in range(20):
    base.execute("insert into t values (?)", (number,))
    base.commit()
base.close()
"""
ALL_KINDS = """
import os, sys
point = sys.argv[1]
for number in range(30):
    fd = os.open(f"{point}/file-{number}", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 1000)
    os.fsync(fd)
    if number % 3 == 0:
        os.fdatasync(fd)
    os.close(fd)
directory = os.open(point, os.O_RDONLY)
for _ in range(7):
    os.fsync(directory)
for flags in (os.O_SYNC, os.O_DSYNC):
    fd = os.open(f"{point}/file-{flags}", os.O_WRONLY | os.O_CREAT | flags)
    for _ in range(5):
        os.write(fd, b"x" * 5000)
    os.close(fd)
"""
# What opens files with O_SYNC or O_DSYNC calls them so.
SYNCED = {f"file-{flags}" for flags in (os.O_SYNC, os.O_DSYNC)} | {"dd-sync"}
WORKLOADS = {
    "all kinds": [sys.executable, "-c", ALL_KINDS],
    "sqlite": [sys.executable, "-c", SQLITE],
    "dd": ["sh", "-c", 'dd if=/dev/zero of="$0/dd-sync" bs=64k count=20 oflag=dsync'],
    "dd, fsync": ["sh", "-c", 'dd if=/dev/zero of="$0/dd" bs=64k count=20 conv=fsync'],
    "sync": ["sh", "-c", 'echo x >"$0/a"; sync "$0/a"; sync -d "$0/a"; sync -f "$0/a"; sync "$0"'],
    "git": ["sh", "-c", 'cd "$0" && git init -q r && cd r && git config core.fsync all && '
                        'git config user.email a@b && git config user.name n && echo x >f && '
                        'git add f && git commit -qm one'],
}  # fmt: skip


def omitted(point):
    done = subprocess.run([VOILE, "status", "--json", point], check=True, capture_output=True, text=True)
    return Counter(json.loads(done.stdout)["omitted"])


def called(trace, point):
    """What programs have asked of the mount, by kind."""
    found = Counter()
    for line in trace.splitlines():
        match = LINE.match(line)
        if match is None or not (match[3] == str(point) or match[3].startswith(f"{point}/")):
            continue
        call, path = match[1], match[3]
        if call in ("fsync", "fdatasync") and os.path.isdir(path):
            found["fsyncdir"] += 1
        elif call in ("fsync", "fdatasync", "syncfs"):
            found[call] += 1
        elif os.path.basename(path) in SYNCED:
            found["osync"] += 1
    return found


@pytest.mark.parametrize("passthrough", ["on", "off"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_counters(layers, voile_overlay, tmp_path, name, passthrough):
    for program in {"strace", name if name == "git" else "sh"}:
        if not shutil.which(program):
            pytest.skip(f"no {program}")
    overlay = voile_overlay(layers())
    point = overlay.mount("volatile", f"passthrough={passthrough}")
    before = omitted(point)
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-o", trace, "-e", f"trace={TRACED}", *WORKLOADS[name], point]
    subprocess.run(command, check=True, capture_output=True)
    counted = omitted(point) - before
    expected = called(trace.read_text(), point)
    # sync(2) of anybody on the machine is counted as well, on fuseblk.
    assert counted.pop("syncfs", 0) >= expected.pop("syncfs", 0)
    assert counted == expected
    assert expected, "the workload syncs nothing"


def test_calibration(layers, voile_overlay):
    overlay = voile_overlay(layers())
    point = overlay.mount("volatile")
    with open(point / "file", "w") as file:
        for _ in range(10):
            os.fsync(file.fileno())
    done = subprocess.run([VOILE, "status", "--json", point], check=True, capture_output=True, text=True)
    said = json.loads(done.stdout)
    assert (said["calibration"], said["saved_s"]) == (None, None)
    command = [VOILE, "status", "--calibrate", "--json", point]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    seconds = said["calibration"]
    assert set(seconds) == {"fsync", "fdatasync", "fsyncdir"}
    assert all(0 < value < 60 for value in seconds.values())
    fsyncs, syncs = said["omitted"]["fsync"], said["omitted"]["syncfs"]
    assert fsyncs == 10
    assert said["saved_s"] == pytest.approx((fsyncs + syncs) * seconds["fsync"], abs=1e-5)
    assert sorted(p.name for p in (overlay.layers.work / "work").iterdir()) == ["incompat"]
    text = subprocess.run([VOILE, "status", point], check=True, capture_output=True, text=True).stdout
    assert "saved       about" in text


def test_nothing_to_calibrate(layers, voile_overlay):
    overlay = voile_overlay(layers())
    point = overlay.mount()
    said = subprocess.run([VOILE, "status", "--calibrate", point], capture_output=True, text=True)
    assert (said.returncode, "saved" in said.stdout) == (0, False)
