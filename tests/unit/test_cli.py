"""Command lines: options, help, typos. Nothing is mounted."""

import os
import subprocess
import sys

import pytest

from support.overlays import ROOT
from voile.cli import main as cli
from voile.cli.arguments import FLAG, VALUE, parse
from voile.overlay.params import UsageError

OPTIONS = {(b"-o", b"--options"): VALUE, (b"-f",): FLAG, (b"-d",): FLAG, (b"--json",): FLAG}


def test_parse():
    found = parse([b"-fd", b"a", b"-ox=1", b"--options", b"y", b"--options=z", b"--", b"-b"], OPTIONS)
    assert b"-f" in found and b"-d" in found and b"--json" not in found
    assert found.all(b"-o") == [b"x=1", b"y", b"z"]
    assert found.last(b"-o") == b"z"
    assert found.operands == [b"a", b"-b"]


def test_command_follows():
    found = parse([b"-f", b"sh", b"-c", b"--json", b"--"], OPTIONS, command_follows=True)
    assert found.operands == [b"sh", b"-c", b"--json", b"--"]
    found = parse([b"-f", b"--", b"-weird"], OPTIONS, command_follows=True)
    assert found.operands == [b"-weird"]


@pytest.mark.parametrize(
    "words, message",
    [
        ([b"-x"], "unknown option '-x'"),
        ([b"-fx"], "unknown option '-x'"),
        ([b"--jsonn"], "unknown option '--jsonn'"),
        ([b"--json=1"], "takes no value"),
        ([b"-o"], "needs a value"),
        ([b"--options"], "needs a value"),
    ],
)
def test_bad_words(words, message):
    with pytest.raises(UsageError, match=message):
        parse(words, OPTIONS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help(command, capfd):
    assert cli.main([command, "--help"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("usage: voile " + command)
    assert not err
    assert max(map(len, out.splitlines())) <= 110


def test_version_and_general_help(capfd):
    assert cli.main(["--version"]) == 0
    assert capfd.readouterr().out.startswith("voile 0.")
    assert cli.main(["--help"]) == 0
    out = capfd.readouterr().out
    assert all(f"voile {command}" in out for command in cli.COMMANDS)


@pytest.mark.parametrize(
    "words, status, message",
    [
        ([], 1, "a command is needed"),
        (["moutn"], 1, "did you mean 'mount'?"),
        (["discrad", "x"], 1, "did you mean 'discard'?"),
        (["xyzzy"], 1, "unknown command 'xyzzy'"),
        (["-x"], 1, "unknown option '-x'"),
        (["mount"], 1, "one mount point needed"),
        (["mount", "a", "b", "-o", "lowerdir=x"], 1, "one mount point needed"),
        (["mount", "m"], 1, "'lowerdir' is missing"),
        (["mount", "-o", "lowerdir=/,frobnicate", "m"], 1, "unknown option 'frobnicate'"),
        (["SRC", "m", "-o", "frobnicate"], 1, "unknown option 'frobnicate'"),
        (["-o", "lowerdir=x", "a", "b", "c"], 1, "a source and a mount point needed"),
        (["umount"], 1, "one mount point is needed"),
        (["umount", "/nowhere"], 32, "not a mount point"),
        (["umount", "/proc"], 32, "not by voile"),
        (["status", "a", "b"], 1, "at most one"),
        (["status", "/proc"], 32, "not a voile mount"),
        (["status", "/nowhere"], 32, "not a mount point"),
        (["status", "--watch"], 1, "--watch needs a mount point"),
        (["status", "--calibrate"], 1, "--calibrate needs a mount point"),
        (["sync"], 1, "one mount point is needed"),
        (["sync", "/proc"], 32, "not a voile mount"),
        (["sync", "/nowhere"], 32, "not a mount point"),
        (["shutdown"], 1, "one mount point is needed"),
        (["shutdown", "/proc"], 32, "not a voile mount"),
        (["shutdown", "/nowhere"], 32, "not a mount point"),
        (["checkpoint"], 1, "one mount point is needed"),
        (["checkpoint", "/proc"], 32, "not a voile mount"),
        (["checkpoint", "/nowhere"], 32, "not a mount point"),
        (["umount", "-l", "--sync", "/proc"], 32, "not by voile"),
        (["list", "x"], 1, "no operands"),
        (["discard"], 1, "the name of a sandbox"),
        (["discard", "nosuch"], 1, "no sandbox is named 'nosuch'"),
        (["discard", "--work", "w"], 1, "one upper directory and its work directory"),
        (["discard", "/nowhere", "--work", "w"], 1, "/nowhere: upperdir: No such file"),
        (["recover"], 1, "one upper directory and its work directory"),
        (["recover", "/nowhere"], 1, "one upper directory and its work directory"),
        (["recover", "/nowhere", "--work", "/nowhere"], 32, "/nowhere: upperdir: No such file"),
        (["run", "-o", "hold=on", "true"], 125, "a sandbox is used once"),
        (["run"], 125, "a command is needed"),
        (["run", "--nam", "x", "true"], 125, "unknown option '--nam'"),
        (["run", "-o", "bogus", "true"], 125, "unknown option 'bogus'"),
        (["run", "-o", "upperdir=/x", "true"], 125, "chosen by run"),
        (["run", "-o", "fsync=strict", "true"], 125, "always volatile"),
        (["run", "--lower", "/nowhere", "true"], 125, "/nowhere: No such file"),
        (["run", "--lower", "/etc/passwd", "true"], 125, "/etc/passwd: Not a directory"),
        (["run", "--lower", "/", "true"], 125, "'/' cannot be overlaid"),
        (["run", "--name", "../x", "true"], 125, "cannot be a sandbox name"),
    ],
)
def test_one_line_for_what_is_wrong(words, status, message, capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("VOILE_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == status
    out, err = capfd.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert err.startswith("voile: ") and message in err
    assert os.listdir(tmp_path) == []


def test_names_that_are_not_utf8(capfdbinary):
    assert cli.main(["umount", os.fsdecode(b"/no\xffwhere\n")]) == 32
    assert capfdbinary.readouterr().err == b"voile: /no\xffwhere\\n: not a mount point\n"


def test_python_m():
    command = [sys.executable, "-m", "voile", "--version"]
    done = subprocess.run(command, cwd=ROOT / "src", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_launcher_from_anywhere(tmp_path):
    (tmp_path / "link").symlink_to(ROOT / "voile")
    for command in ([ROOT / "voile"], [tmp_path / "link"], [sys.executable, ROOT / "voile"]):
        done = subprocess.run([*command, "--version"], cwd="/", capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    found = subprocess.run(
        ["voile", "--version"],
        env={**os.environ, "PATH": f"{ROOT}:{os.environ['PATH']}"},
        capture_output=True,
    )
    assert found.returncode == 0


def test_launcher_without_python(tmp_path):
    done = subprocess.run(
        ["/bin/sh", ROOT / "voile"],
        env={"VOILE_PYTHON": "/nowhere", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "voile: Python 3.11 or newer is needed, and none was found\n"


def test_start_imports_next_to_nothing():
    """Start-up time is a feature: each of these modules would cost milliseconds."""
    script = (
        "import sys; sys.path.insert(0, 'src'); before = set(sys.modules)\n"
        "import voile.cli.mount, voile.server.process, voile.server.operations, voile.fuse.session\n"
        "heavy = 'typing dataclasses logging argparse pathlib subprocess json re enum shutil tempfile'\n"
        "print(*sorted(set(heavy.split()) & set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")
