"""What voile says of a failed upper file system: `voile status` and the verdict of `voile run`."""

import datetime
import errno
import json
import os
import pwd
import subprocess
import threading

import pytest

from faults.faultyfs import GOOD
from support import syscalls
from support.overlays import ROOT, VoileOverlay, voile_missing

pytestmark = pytest.mark.skipif(voile_missing() is not None, reason=str(voile_missing()))

VOILE = str(ROOT / "voile")


def status(point):
    done = subprocess.run([VOILE, "status", "--json", point], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture
def mounted(fs):
    overlay = VoileOverlay(fs.layers())
    overlay.mount("volatile")
    (overlay.point / "file").write_bytes(GOOD)
    yield overlay
    overlay.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_status(mounted, fs, number):
    said = status(mounted.point)
    assert (said["state"], said["error"]) == ("ok", None)
    assert (said["volatile"], said["probe"], said["syncfs"]) == (True, "overlay", "exact")
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    fs.lose(number)
    said = status(mounted.point)
    assert said["state"] == "failed"
    error = said["error"]
    since = datetime.datetime.fromisoformat(error.pop("since"))
    assert before <= since <= datetime.datetime.now(datetime.UTC)
    assert error == {"errno": number, "name": errno.errorcode[number]}
    assert "probe" in said
    # The time is that of the first error, the errno that of the latest.
    fs.sync()
    fs.lose(errno.EIO)
    error = status(mounted.point)["error"]
    assert (error["errno"], datetime.datetime.fromisoformat(error["since"])) == (errno.EIO, since)


def test_text_for_people(mounted, fs):
    fs.lose(errno.EIO)
    done = subprocess.run([VOILE, "status", mounted.point], capture_output=True, text=True, check=True)
    assert "EIO" in done.stdout
    assert "failed" in done.stdout.lower()


def test_omitted_syncs_are_counted(mounted):
    file = os.open(mounted.point / "file", os.O_RDWR)
    osync = os.open(mounted.point / "file", os.O_WRONLY | os.O_SYNC)
    directory = os.open(mounted.point, os.O_RDONLY)
    before = status(mounted.point)["omitted"]
    calls = {
        "fsync": lambda: os.fsync(file),
        "fdatasync": lambda: os.fdatasync(file),
        "fsyncdir": lambda: os.fsync(directory),
        "osync": lambda: os.pwrite(osync, GOOD, 0),
    }
    for count, call in enumerate(calls.values(), 1):
        for _ in range(count):
            call()
    after = status(mounted.point)["omitted"]
    assert {name: after[name] - before[name] for name in calls} == {
        name: count for count, name in enumerate(calls, 1)
    }
    syscalls.syncfs(directory)
    assert status(mounted.point)["omitted"]["syncfs"] > before["syncfs"]  # or more: sync(1)
    for fd in file, osync, directory:
        os.close(fd)


class Sandbox:
    """`voile run` as root or as an ordinary user; tree and state directory on the file system `fs`."""

    def __init__(self, fs, as_user, user):
        self.fs = fs
        self.base = fs.point / "place"
        self.tree = self.base / "tree"
        self.tree.mkdir(parents=True)
        os.mkfifo(self.base / "ready")
        os.mkfifo(self.base / "go")
        self.act = lambda work: work()
        if user:
            uid = pwd.getpwnam("nobody").pw_uid
            for path in [self.base, *self.base.rglob("*")]:
                os.chown(path, uid, uid)
            self.act = lambda work: as_user(work, uid=uid, fuse=True)

    def run(self, meanwhile, exit_status=0):
        """A command during which meanwhile() happens; the finished process."""

        def other_side():
            with open(self.base / "ready") as f:
                f.read()
            try:
                meanwhile()
            finally:
                with open(self.base / "go", "w") as f:
                    f.write("go\n")

        thread = threading.Thread(target=other_side, daemon=True)
        thread.start()
        script = f'echo new >new; echo x >"$0/ready"; read x <"$0/go"; exit {exit_status}'
        environment = {**os.environ, "VOILE_STATE": str(self.base / "state")}
        command = [VOILE, "run", "--", "sh", "-c", script, str(self.base)]
        done = self.act(
            lambda: subprocess.run(command, cwd=self.tree, env=environment, capture_output=True, text=True)
        )
        thread.join(30)
        assert not thread.is_alive(), done.stderr
        return done


@pytest.fixture(params=["root", "user"])
def sandbox(request, fs, as_user):
    return Sandbox(fs, as_user, request.param == "user")


def test_run_succeeds(sandbox):
    done = sandbox.run(lambda: None)
    assert done.returncode == 0, done.stderr
    assert "verdict: ok" in done.stderr


def test_run_on_a_file_system_that_fails(sandbox, fs):
    done = sandbox.run(lambda: fs.lose(errno.EIO))
    assert done.returncode == 74, done.stderr
    assert "verdict: FAILED" in done.stderr
    assert "EIO" in done.stderr
    assert (sandbox.base / "state" / "tree-1" / "upper" / "new").read_text() == "new\n"


def test_run_of_a_command_that_fails_itself(sandbox, fs):
    done = sandbox.run(lambda: fs.lose(errno.EIO), exit_status=3)
    assert done.returncode == 3
    assert "verdict: FAILED" in done.stderr


def test_run_with_an_unseen_error(sandbox, fs):
    fs.lose(errno.EIO)
    done = sandbox.act(
        lambda: subprocess.run(
            [VOILE, "run", "--", "true"],
            cwd=sandbox.tree,
            env={**os.environ, "VOILE_STATE": str(sandbox.base / "state")},
            capture_output=True,
            text=True,
        )
    )
    assert done.returncode == 125
    assert "sync -f" in done.stderr
    assert str(fs.point) in done.stderr
