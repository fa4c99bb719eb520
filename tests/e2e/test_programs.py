"""Real programs in `voile run`: the same output and the same tree as on a plain directory."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from differential import snapshot
from e2e.jobs import JOBS
from support.overlays import ROOT, voile_missing
from support.users import USER

# What differs between two runs of the same job on any file system: it holds times or inode numbers.
VOLATILE_FILES = (".git/index", ".git/logs", "clone/.git/index", "clone/.git/logs", ".git/FETCH_HEAD")

# Runs inside: the job, then the tree as seen there, to a file outside.
WRAPPER = """
set -eu
sh -euc "$JOB"
exec "$PYTHON" "$SNAPSHOT" "$RESULT"
"""
TAKE_SNAPSHOT = """
import os, sys, json
sys.path.insert(0, {tests!r})
from differential import snapshot
found = {{}}
for path, entry in snapshot.merged(b".").items():
    name = os.fsdecode(path)
    keep = [entry["kind"], entry.get("mode"), entry.get("size"), entry.get("content")]
    if entry["kind"] != "dir":
        keep.append(entry["nlink"])
    else:
        keep.append([os.fsdecode(n) for n in entry["names"]])
    keep += [entry.get("d_type wrong"), entry.get("d_ino wrong")]
    found[name] = [x if not isinstance(x, bytes) else os.fsdecode(x) for x in keep]
json.dump(found, open(sys.argv[1], "w"), default=repr)
"""


class Stage:
    """One directory, and a job in it. Both runs use the same path, which ends up in what programs write."""

    def __init__(self, base, job):
        self.base, self.tree = base, base / "tree"
        self.tree.mkdir(parents=True)
        prepare, self.script, _ = JOBS[job]
        prepare(self.tree)
        (base / "snap.py").write_text(TAKE_SNAPSHOT.format(tests=str(ROOT / "tests")))

    def run(self, python, *before):
        """The job's output and the tree it leaves."""
        environment = dict(
            os.environ,
            JOB=self.script,
            PYTHON=python,
            SNAPSHOT=str(self.base / "snap.py"),
            RESULT=str(self.base / "result"),
            VOILE_STATE=str(self.base / "state"),
            LC_ALL="C.UTF-8",
            PYTHONDONTWRITEBYTECODE="1",
            SOURCE_DATE_EPOCH="1000000000",
        )
        command = [*before, "sh", "-c", WRAPPER]
        return subprocess.run(
            command, cwd=self.tree, env=environment, capture_output=True, text=True, timeout=100
        )

    def result(self):
        found = json.loads((self.base / "result").read_text())
        return {n: e for n, e in found.items() if not n.removeprefix("./").startswith(VOLATILE_FILES)}


# dpkg as root only: it chowns to root, which is EINVAL in a user namespace without root, on any file system.
CASES = [(job, who) for job in JOBS for who in ("root", "user") if (job, who) != ("dpkg", "user")]


@pytest.mark.parametrize("job, who", CASES)
def test_like_on_a_plain_directory(job, who, scratch, as_user):
    if reason := voile_missing():
        pytest.skip(reason)
    if missing := [c for c in JOBS[job][2] if not shutil.which(c)]:
        pytest.skip(f"{missing[0]} is not installed")

    def act(work):
        return work() if who == "root" else as_user(work, fuse=True, timeout=110)

    pythons = [p for p in (sys.executable, "/usr/bin/python3") if act(lambda p=p: os.access(p, os.X_OK))]
    if job == "pip":
        pythons = [
            p for p in pythons if act(lambda p=p: subprocess.run([p, "-c", "import pip"]).returncode == 0)
        ]
    if not pythons:
        pytest.skip("no Python with pip that this user may run")
    if not act(lambda: os.access(ROOT / "voile", os.X_OK)):
        pytest.skip("the checkout is closed to others")

    outcomes = []
    for words in ([], [str(ROOT / "voile"), "run", "--"]):
        stage = Stage(scratch / "stage", job)
        if who == "user":
            subprocess.run(["chown", "-R", f"{USER}:{USER}", stage.base], check=True)
        before = snapshot.raw(stage.tree)
        done = act(lambda stage=stage, words=words: stage.run(pythons[0], *words))
        assert done.returncode == 0, done.stdout + done.stderr
        outcomes.append((done.stdout, stage.result()))
        if words:
            assert snapshot.differences(before, snapshot.raw(stage.tree)) == []
        shutil.rmtree(stage.base)
    assert outcomes[1][0] == outcomes[0][0]
    assert outcomes[1][1] == outcomes[0][1]
