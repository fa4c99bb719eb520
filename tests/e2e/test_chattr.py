"""lsattr(1) and chattr(1) of e2fsprogs on the mount."""

import os
import shutil
import subprocess

import pytest

from support.users import in_child


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def letters(line):
    return line.split()[0].replace("-", "").replace("e", "")


@pytest.mark.skipif(not shutil.which("chattr"), reason="no e2fsprogs")
def test_chattr_and_lsattr(layers, voile_overlay):
    made = layers()
    (made.lowers[0] / "d").mkdir()
    for name in ("f", "d/g"):
        (made.lowers[0] / name).write_text("x")
        os.chown(made.lowers[0] / name, 1000, 1000)
    overlay = voile_overlay(made)
    point = overlay.mount()

    def as_root():
        assert run("chattr", "-R", "+ia", point / "d") == (0, "", "")
        status, shown, errors = run("lsattr", "-R", point)
        found = {line.split()[1]: letters(line) for line in shown.splitlines() if line and line[-1] != ":"}
        assert (status, errors) == (0, "")
        assert found == {f"{point}/d": "ia", f"{point}/d/g": "ia", f"{point}/f": ""}
        assert run("rm", "-f", point / "d/g")[0] == 1
        assert run("chattr", "+dA", point / "f") == (0, "", "")

    def as_owner():
        assert run("chattr", "+S", "-d", point / "f") == (0, "", "")
        assert letters(run("lsattr", point / "f")[1]) == "SA"
        for refused in (("+i", "f"), ("-i", "d/g"), ("-a", "d/g")):
            assert run("chattr", refused[0], point / refused[1])[0] == 1

    in_child(as_root)
    in_child(as_owner, uid=1000)
    overlay.umount()
    point = overlay.mount()

    def again():
        assert letters(run("lsattr", "-d", point / "d")[1]) == "ia"
        assert letters(run("lsattr", point / "f")[1]) == "SA"
        assert run("rm", "-rf", point / "d")[0] == 1
        assert run("chattr", "-R", "-ia", point / "d") == (0, "", "")
        assert run("rm", "-rf", point / "d") == (0, "", "")

    in_child(again)
    overlay.umount()
