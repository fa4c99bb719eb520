"""`voile run`, `list` and `discard` with real commands, as root and as an ordinary user."""

import fcntl
import json
import os
import pwd
import re
import signal
import stat
import subprocess
import time

import pytest

from support import mountinfo
from support.overlays import ROOT, voile_missing

VOILE = str(ROOT / "voile")


class Place:
    """A directory to run over, a state directory, and who does it."""

    def __init__(self, base, state, act):
        self.tree = base / "tree"
        self.state = state
        self._act = act

    def voile(self, *words, cwd=None, **more):
        environment = {**os.environ, "VOILE_STATE": str(self.state), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}

        def work():
            return subprocess.run(
                [VOILE, *words], cwd=cwd or self.tree, env=environment, capture_output=True, text=True, **more
            )

        return self._act(work)

    def run(self, script, *options, **more):
        """A shell script in a sandbox; its exit status is 0 unless the test says otherwise."""
        return self.voile("run", *options, "--", "sh", "-c", script, **more)

    def wait(self):
        """Until no sandbox is in use."""
        for sandbox in self.state.iterdir() if self.state.exists() else ():
            lock = os.open(sandbox, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.close(lock)


@pytest.fixture(params=["root", "user"])
def place(request, isolated, scratch, as_user):
    if reason := voile_missing():
        pytest.skip(reason)
    (scratch / "tree" / "sub").mkdir(parents=True)
    (scratch / "tree" / "file").write_text("lower\n")
    (scratch / "tree" / "doomed").write_text("lower\n")
    act = lambda work: work()  # noqa: E731
    if request.param == "user":
        uid = pwd.getpwnam("nobody").pw_uid
        for path in [scratch, *scratch.rglob("*")]:
            os.chown(path, uid, uid)
        if not all(path.stat().st_mode & stat.S_IXOTH for path in [*scratch.parents, *ROOT.parents]):
            pytest.skip("some directory is closed to others")
        act = lambda work: as_user(work, uid=uid, fuse=True)  # noqa: E731
    before = len(mountinfo.mounts())
    place = Place(scratch, scratch / "state", act)
    yield place
    place.wait()
    assert len(mountinfo.mounts()) == before


def contents(tree):
    return {
        str(path.relative_to(tree)): path.read_text() if path.is_file() else None for path in tree.rglob("*")
    }


def test_nothing_changes_below(place):
    before = contents(place.tree)
    script = "echo more >>file; rm doomed; mkdir new; echo x >new/x; mv sub moved; cat file; id -u; pwd"
    done = place.run(script)
    assert done.returncode == 0
    assert done.stdout == f"lower\nmore\n{os.stat(place.tree).st_uid}\n{place.tree}\n"
    assert contents(place.tree) == before
    assert done.stderr.splitlines()[0].startswith("voile: sandbox tree-1: 3 added, 1 changed, 2 deleted; ")
    assert done.stderr.splitlines()[1].startswith("voile: verdict: ok")
    upper = place.state / "tree-1" / "upper"
    assert (upper / "file").read_text() == "lower\nmore\n"
    assert stat.S_ISCHR(os.lstat(upper / "doomed").st_mode)


def test_ids_stay_and_no_privilege_is_gained(place):
    done = place.run("id -u; id -g; grep CapEff /proc/self/status; touch mine; stat -c '%u %g' mine . file")
    uid = os.stat(place.tree).st_uid
    lines = done.stdout.splitlines()
    assert lines[:2] == [str(uid), str(uid)]
    assert uid == 0 or int(lines[2].split()[1], 16) == 0
    assert lines[3:] == [f"{uid} {uid}"] * 3


@pytest.mark.parametrize(
    "words, status, says",
    [
        (["sh", "-c", "exit 42"], 42, "verdict: ok"),
        (["sh", "-c", "kill -9 $$"], 137, "verdict: ok"),
        (["sh", "-c", "kill -TERM $$"], 143, "verdict: ok"),
        (["no-such-command"], 127, "no-such-command: No such file or directory\n"),
        (["./no/such"], 127, "./no/such: No such file or directory\n"),
        (["./file"], 126, "./file: Permission denied\n"),
        (["./sub"], 126, "./sub: Permission denied\n"),
    ],
)
def test_exit_status(place, words, status, says):
    done = place.voile("run", "--", *words)
    assert done.returncode == status
    assert says in done.stderr
    if status in (126, 127):  # nothing ran, nothing is kept
        assert done.stderr.count("\n") == 1
        assert os.listdir(place.state) == []


def test_script_without_an_interpreter_line(place):
    done = place.run("echo 'echo ran $1' >script; chmod +x script; exec ./script word")
    assert done.stdout == "ran word\n"
    (place.tree / "plain").write_text("echo plain $1\n")
    (place.tree / "plain").chmod(0o755)
    assert place.voile("run", "./plain", "word").stdout == "plain word\n"


def test_signals_and_descriptors_are_as_without_voile(place):
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    signals = "grep -E 'Sig(Blk|Ign)' /proc/self/status"
    script = f"{signals}; python3 -c 'import os; os.write({write_end}, b\"through\\n\")'"
    plain = place._act(
        lambda: subprocess.run(
            ["sh", "-c", script], capture_output=True, text=True, pass_fds=[write_end], cwd="/"
        )
    )
    done = place.run(script, pass_fds=[write_end])
    os.close(write_end)
    assert done.stdout == plain.stdout
    with open(read_end) as file:  # ends, because the daemon has not kept the other end
        assert file.read() == "through\nthrough\n"


def test_name_in_the_environment(place):
    assert place.run("echo $VOILE_SANDBOX", "--name", "my-own.1").stdout == "my-own.1\n"


def test_name_cannot_be_used_again(place):
    assert place.run("true", "--name", "again").returncode == 0
    done = place.run("true", "--name", "again")
    assert done.returncode == 125
    assert done.stderr.count("\n") == 1 and "voile discard again" in done.stderr
    assert place.voile("discard", "again").returncode == 0
    assert place.run("true", "--name", "again").returncode == 0


def test_lower_and_current_directory(place):
    done = place.run("pwd; echo x >here; ls ..", "--lower", "..", cwd=place.tree / "sub")
    assert done.stdout.splitlines() == [f"{place.tree}/sub", "doomed", "file", "sub"]
    assert not (place.tree / "sub" / "here").exists()
    done = place.run("pwd; cat tree/file; echo x >>tree/file", "--lower", "tree", cwd=place.tree.parent)
    assert done.stdout == f"{place.tree.parent}\nlower\n"
    assert (place.tree / "file").read_text() == "lower\n"


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "2>/dev/full"])
def test_exit_status_when_nothing_can_be_said(place, streams):
    def work():
        environment = {**os.environ, "VOILE_STATE": str(place.state)}
        command = ["sh", "-c", f"{VOILE} run -- sh -c 'exit 3' {streams}"]
        return subprocess.run(command, cwd=place.tree, env=environment).returncode

    assert place._act(work) == 3


def test_state_directory_below_the_tree_does_not_show(place):
    place.state = place.tree / "deep" / "state"
    place.state.parent.mkdir()
    os.chown(place.state.parent, os.stat(place.tree).st_uid, -1)
    done = place.run("find . | sort; ls deep/state")
    assert done.stdout.splitlines() == [".", "./deep", "./doomed", "./file", "./sub"]
    assert place.state.exists()
    assert place.run("ls -a deep").stdout.split() == [".", ".."]
    done = place.voile("run", "true", cwd=place.state)
    assert done.returncode == 125 and "state directory" in done.stderr


def test_nested(place):
    done = place.run(f"echo one >file; {VOILE} run -- sh -c 'cat file; echo two >file' 2>&1; cat file")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "one"
    assert done.stdout.splitlines()[-1] == "one"
    assert "1 changed" in done.stdout


def test_background_processes_keep_the_tree(place):
    """They never see the covered directory, not even after voile has ended."""
    os.mkfifo(place.tree.parent / "go")
    os.mkfifo(place.tree.parent / "done")
    os.chmod(place.tree.parent / "go", 0o666)
    os.chmod(place.tree.parent / "done", 0o666)
    outside = place.tree.parent
    script = (
        f"(read x <{outside}/go; cd /; echo late >{place.tree}/late; echo >{outside}/done) >/dev/null 2>&1 &"
    )
    done = place.run(script, "--name", "bg")
    assert done.returncode == 0
    assert "still use it" in done.stderr
    refused = place.voile("discard", "bg")
    assert refused.returncode == 1 and "in use" in refused.stderr
    (about,) = json.loads(place.voile("list", "--json").stdout)["sandboxes"]
    assert about["running"] and about["lower"] == str(place.tree)
    (outside / "go").write_text("x\n")
    (outside / "done").read_text()
    place.wait()
    assert not (place.tree / "late").exists()
    assert (place.state / "bg" / "upper" / "late").read_text() == "late\n"


def test_list_and_discard(place):
    assert place.voile("list").stdout == ""
    assert json.loads(place.voile("list", "--json").stdout) == {"version": 1, "sandboxes": []}
    place.run("exit 3", "--name", "one")
    place.run(
        "mkdir closed; echo x >closed/x; chmod 0 closed; mkdir r; echo >r/x; chmod 555 r", "--name", "two"
    )
    shown = place.voile("list").stdout.splitlines()
    assert shown[0].split() == ["NAME", "STATE", "CREATED", "LOWER", "COMMAND"]
    assert [line.split()[0] for line in shown[1:]] == ["one", "two"]
    one, two = json.loads(place.voile("list", "--json").stdout)["sandboxes"]
    assert one["lower"] == str(place.tree) and one["command"] == ["sh", "-c", "exit 3"]
    assert one["exit_status"] == 3 and one["verdict"] == "ok" and not one["running"]
    assert two["exit_status"] == 0
    done = place.voile("discard", "one", "nosuch", "two")
    assert done.returncode == 1
    assert done.stderr == "voile: no sandbox is named 'nosuch'\n"
    assert os.listdir(place.state) == []


def test_list_while_the_command_runs(place):
    """Also when the state directory lies below the tree, and is covered by it."""
    place.state = place.tree / "state"
    os.mkfifo(place.tree.parent / "go", 0o666)
    os.chmod(place.tree.parent / "go", 0o666)
    environment = {**os.environ, "VOILE_STATE": str(place.state)}

    def work():
        command = [VOILE, "run", "sh", "-c", f"echo ready; read x <{place.tree.parent}/go"]
        with subprocess.Popen(
            command, cwd=place.tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as voile:
            assert voile.stdout.readline() == b"ready\n"
            while not (place.state / "tree-1" / "meta.json").exists():
                time.sleep(0.005)
            listed = subprocess.run([VOILE, "list", "--json"], env=environment, capture_output=True)
            (place.tree.parent / "go").write_text("x\n")
        return json.loads(listed.stdout)["sandboxes"]

    (about,) = place._act(work)
    assert about["running"] and about["exit_status"] is None
    assert about["lower"] == str(place.tree) and about["command"][0] == "sh"


def test_omitted_syncs_are_counted(place):
    code = "import os; fd = os.open('x', os.O_CREAT | os.O_WRONLY)\nfor i in range(7): os.fsync(fd)"
    done = place.voile("run", "python3", "-c", code)
    count = int(re.search("; ([0-9]+) syncs omitted", done.stderr)[1])
    assert count >= 7  # or more: somebody else's sync(1)


def test_killed_daemon(place):
    """The command succeeded, but nobody can say whether its data is there."""
    script = "read pid _ </proc/self/stat; echo ready >&2; read go; true"
    environment = {**os.environ, "VOILE_STATE": str(place.state)}

    def work():
        with subprocess.Popen(
            [VOILE, "run", "sh", "-c", script], cwd=place.tree, env=environment, stdin=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        ) as voile:  # fmt: skip
            assert voile.stderr.readline() == "ready\n"
            (daemon,) = [pid for pid in children(voile.pid) if os.getsid(pid) == pid]
            os.kill(daemon, signal.SIGKILL)
            _, said = voile.communicate("\n")
        return voile.returncode, said

    status, said = place._act(work)
    assert status == 125
    assert "UNKNOWN" in said


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


@pytest.mark.parametrize("place", ["root"], indirect=True)
def test_no_fuse_no_traces(place):
    def work():
        import support.syscalls as syscalls

        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/dev", "tmpfs", 0, "")
        return place.voile("run", "true", stdin=subprocess.PIPE)

    from support.users import in_child

    done = in_child(work)
    assert done.returncode == 125
    assert done.stderr.count("\n") == 1 and "/dev/fuse" in done.stderr
    assert os.listdir(place.state) == []


def test_failed_upper(isolated, filesystems, scratch):
    """The file system of the state directory is a disk that is smaller than it says."""
    small = filesystems.base / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "small", small], check=True)
    try:
        disk = small / "disk"
        disk.mkdir()
        with open(small / "image", "wb") as file:
            file.truncate(128 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", small / "image"], check=True)
        subprocess.run(["mount", "-o", "loop,errors=continue", small / "image", disk], check=True)
        try:
            place = Place(scratch, disk / "state", lambda work: work())
            place.tree.mkdir()
            # Outside the tree, so it is a real one: it makes the kernel write now.
            fill = f"head -c 60M /dev/urandom >big; sync -f {disk}"
            done = place.run(fill + "; true")
            assert done.returncode == 74, done.stderr
            assert "FAILED: the upper file system has lost data (E" in done.stderr
            (about, *_) = json.loads(place.voile("list", "--json").stdout)["sandboxes"]
            # None: the disk has lost the record of it as well.
            assert about["verdict"] in ("failed", None)
        finally:
            place.wait()
            deadline = time.monotonic() + 20
            while subprocess.run(["umount", disk], capture_output=True).returncode:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("place", ["root"], indirect=True)
def test_other_file_systems_below_are_named(place):
    subprocess.run(["mount", "-t", "tmpfs", "none", place.tree / "sub"], check=True)
    try:
        (place.tree / "sub" / "elsewhere").write_text("")
        done = place.run("ls sub; echo x >sub/new")
        assert done.stdout == ""
        assert f"voile: note: '{place.tree}/sub' is another file system" in done.stderr
        assert os.listdir(place.tree / "sub") == ["elsewhere"]
    finally:
        subprocess.run(["umount", place.tree / "sub"], check=True)


@pytest.mark.parametrize("place", ["root"], indirect=True)
def test_state_on_an_overlay_is_refused_with_advice(place, scratch):
    """As in a container, whose root is an overlay: no error probe can be made there."""
    for name in ("l", "u", "w", "container"):
        (scratch / name).mkdir()
    layers = f"lowerdir={scratch}/l,upperdir={scratch}/u,workdir={scratch}/w"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", scratch / "container"], check=True)
    try:
        place.state = scratch / "container" / "state"
        done = place.run("true")
        assert done.returncode == 125
        assert done.stderr.count("\n") == 1
        assert "set VOILE_STATE to a directory on another file system" in done.stderr
        place.wait()
    finally:
        subprocess.run(["umount", scratch / "container"], check=True)
