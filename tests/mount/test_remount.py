"""`-o remount`: read-only and back, by mount(8) and by voile itself; what was mounted read-only stays so."""

import errno
import os
import subprocess

import pytest

from support import mountinfo, syscalls
from support.overlays import ROOT, voile_missing

MS_RDONLY, MS_REMOUNT, MS_NOATIME = 1, 32, 1024


@pytest.fixture
def tree(isolated, scratch):
    if reason := voile_missing():
        pytest.skip(reason)
    for name in ("l", "l2", "u", "w", "m"):
        (scratch / name).mkdir()
    (scratch / "l" / "file").write_text("lower")
    (scratch / "l" / "d").mkdir()
    (scratch / "u" / "upper").write_text("upper")
    yield scratch
    while mountinfo.at(scratch / "m"):
        syscalls.umount(scratch / "m", syscalls.MNT_DETACH)


def voile(*words):
    return subprocess.run([ROOT / "voile", *words], capture_output=True, text=True)


def mount(tree, *more, upper=True):
    layers = f"lowerdir={tree}/l:{tree}/l2" + (f",upperdir={tree}/u,workdir={tree}/w" if upper else "")
    done = voile("mount", "-o", ",".join([layers, *more]), tree / "m")
    assert (done.returncode, done.stderr) == (0, "")
    return tree / "m"


def by_mount(point, options):
    """mount(8) itself, for a fuseblk mount."""
    command = ["mount", "-o", f"remount,{options}", point]
    return subprocess.run(command, capture_output=True, text=True)


def by_voile(point, options):
    return voile("mount", "-o", f"remount,{options}", point)


def by_helper(point, options):
    """As mount.fuse3 calls voile, which mount(8) runs for the type fuse.voile."""
    return voile("source", point, "-o", f"{options},remount")


def flags(point):
    return set(mountinfo.at(point).options.split(","))


def changes(point):
    """Everything that would change something; each with a name."""
    return {
        "create": lambda: os.close(os.open(point / "new", os.O_CREAT | os.O_WRONLY)),
        "mkdir": lambda: os.mkdir(point / "dir"),
        "mknod": lambda: os.mknod(point / "fifo", 0o010644),
        "symlink": lambda: os.symlink("x", point / "link"),
        "link": lambda: os.link(point / "upper", point / "hard"),
        "unlink": lambda: os.unlink(point / "upper"),
        "unlink lower": lambda: os.unlink(point / "file"),
        "rmdir": lambda: os.rmdir(point / "d"),
        "rename": lambda: os.rename(point / "upper", point / "renamed"),
        "write": lambda: os.close(os.open(point / "upper", os.O_WRONLY)),
        "write lower": lambda: os.close(os.open(point / "file", os.O_RDWR)),
        "truncate": lambda: os.truncate(point / "upper", 1),
        "chmod": lambda: os.chmod(point / "upper", 0o600),
        "chown": lambda: os.chown(point / "upper", 1, 1),
        "utime": lambda: os.utime(point / "upper", (1, 1)),
        "setxattr": lambda: os.setxattr(point / "upper", "user.x", b"x"),
        "chmod of the root": lambda: os.chmod(point, 0o700),
        "tmpfile": lambda: os.close(os.open(point, os.O_TMPFILE | os.O_RDWR)),
    }


def all_refused(point):
    for what, change in changes(point).items():
        with pytest.raises(OSError) as e:
            change()
        assert e.value.errno == errno.EROFS, what


@pytest.mark.parametrize(
    "remount, fuseblk",
    [(by_mount, "on"), (by_voile, "on"), (by_voile, "off"), (by_helper, "on"), (by_helper, "off")],
)
def test_read_only_and_back(tree, remount, fuseblk):
    point = mount(tree, f"fuseblk={fuseblk}", "nosuid")
    (point / "file").write_text("changed")
    done = remount(point, "ro")
    assert (done.returncode, done.stderr) == (0, "")
    assert {"ro", "nosuid"} <= flags(point)
    all_refused(point)
    assert (point / "file").read_text() == "changed"
    done = remount(point, "rw,noatime")
    assert (done.returncode, done.stderr) == (0, "")
    assert {"rw", "nosuid", "noatime"} <= flags(point)
    (point / "file").write_text("again")
    os.unlink(point / "upper")
    assert sorted(os.listdir(point)) == ["d", "file"] and (tree / "u" / "file").read_text() == "again"


def test_not_while_a_file_is_open_for_writing(tree):
    point = mount(tree)
    with open(point / "file", "a"):
        done = by_voile(point, "ro")
        assert done.returncode == 32 and "busy" in done.stderr and done.stderr.count("\n") == 1
    assert by_voile(point, "ro").returncode == 0


@pytest.mark.parametrize("remount", [by_voile, by_helper])
@pytest.mark.parametrize("how", ["ro", "lowers"])
def test_what_was_mounted_read_only_stays_so(tree, remount, how):
    point = mount(tree, how if how == "ro" else "xino=on", upper=how == "ro")
    done = remount(point, "rw")
    assert done.returncode == 32 and done.stderr.count("\n") == 1
    assert "mount it anew" in done.stderr and "ro" in flags(point)


@pytest.mark.parametrize("how", ["ro", "lowers"])
def test_nor_does_the_kernels_flag_let_anything_through(tree, how):
    """mount -i -o remount,rw: the kernel asks nobody."""
    if how == "lowers":
        (tree / "l" / "upper").write_text("upper")
    point = mount(tree, how if how == "ro" else "xino=on", upper=how == "ro")
    before = sorted(str(path) for path in tree.rglob("*"))
    syscalls.mount(None, point, None, MS_REMOUNT)
    assert "rw" in flags(point)
    all_refused(point)
    assert (point / "upper").read_text() == "upper"
    syscalls.umount(point)
    assert sorted(str(path) for path in tree.rglob("*") if "/m/" not in str(path)) == [
        path for path in before if "/m/" not in path
    ]


def test_only_what_voile_has_mounted(tree):
    done = by_voile(tree / "m", "ro")
    assert (done.returncode, done.stderr.count("\n")) == (32, 1) and "not mounted by voile" in done.stderr


def test_other_options_are_ignored_as_by_the_kernel(tree):
    """mount(8) gives those of /etc/fstab again."""
    point = mount(tree)
    assert by_voile(point, f"lowerdir={tree}/l2,volatile,ro,x-systemd.automount").returncode == 0
    assert "ro" in flags(point) and (point / "file").read_text() == "lower"
