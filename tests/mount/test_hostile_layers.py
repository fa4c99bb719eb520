"""Layers and work directories that somebody has prepared: it neither leaves them nor dies nor hangs."""

import errno
import os
import resource
import subprocess

import pytest

from support.users import in_child


def outcome(function):
    try:
        return function()
    except OSError as exc:
        return errno.errorcode[exc.errno]


REDIRECTS = {
    "empty": b"",
    "dot": b".",
    "dotdot": b"..",
    "slash": b"/",
    "up": b"/../outside",
    "up-later": b"/a/../../outside",
    "relative-path": b"a/b",
    "double-slash": b"//target",
    "trailing-slash": b"/target/",
    "long-name": b"n" * 300,
    "long-name-in-path": b"/" + b"n" * 300 + b"/x",
    "long": b"/x" * 3000,
    "not-utf8": b"\xff\xfe",
    "newline": b"a\nb",
    "missing": b"/nowhere/at/all",
    "file": b"/file",
    "below-a-file": b"/file/x",
    "symlink": b"/symlink",
    "through-symlink": b"/symlink/x",
    "whiteout": b"/whiteout",
    "itself": b"/d",
    "its-parent": b"/",
    "target": b"/target",
}


def use_redirected(point):
    return [
        outcome(lambda: sorted(os.listdir(point / "d"))),
        outcome(lambda: os.stat(point / "d").st_mode),
        outcome(lambda: os.stat(point / "d/in-d").st_mode),
        outcome(lambda: os.rename(point / "d", point / "e")),
        outcome(lambda: sorted(os.listdir(point))),
    ]


@pytest.mark.parametrize("redirect", REDIRECTS)
def test_redirects(redirect, layers, kernel_overlay, voile_overlay):
    seen = []
    for make in (kernel_overlay, voile_overlay):
        made = layers(lowers=2, on="xfs")
        low = made.lowers[1]
        outside = made.base / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"")
        (outside / "x").mkdir()
        (made.upper / "d").mkdir()
        for name in ("d", "target", "target/x"):
            (low / name).mkdir()
        (low / "d/in-d").write_bytes(b"")
        (low / "target/in-target").write_bytes(b"")
        (low / "file").write_bytes(b"")
        os.symlink("../outside", low / "symlink")
        os.mknod(low / "whiteout", 0o020000, 0)
        os.setxattr(made.upper / "d", "trusted.overlay.redirect", REDIRECTS[redirect])
        overlay = make(made)
        point = overlay.mount("redirect_dir=on")
        seen.append(in_child(lambda point=point: use_redirected(point)))
        overlay.check()
        overlay.umount()
    assert seen[1] == seen[0]
    assert "secret" not in str(seen)


def test_odd_work_directory(layers, hooked_overlay):
    """Nothing in it is opened or followed, also not where our own record would be."""
    for record in ("fifo", "symlink", "directory", "device"):
        made = layers()
        victim = made.base / "victim"
        victim.write_bytes(b"victim")
        place = made.work / "voile.mount"
        if record == "fifo":
            os.mkfifo(place)
        elif record == "symlink":
            os.symlink("../victim", place)
        elif record == "directory":
            (place / "x").mkdir(parents=True)
        else:
            os.mknod(place, 0o020666, os.makedev(1, 7))  # /dev/full
        os.symlink("../victim", made.work / "work")
        overlay = hooked_overlay(made)
        point = overlay.mount()
        in_child(lambda file=point / "f": file.write_bytes(b"x"))
        overlay.umount()
        assert victim.read_bytes() == b"victim"


def test_redirect_with_a_nul(layers, voile_overlay):
    """The kernel takes what comes before it; nothing that a mount has written has one."""
    for value in (b"tar\0get", b"/tar\0get"):
        made = layers()
        (made.upper / "d").mkdir()
        (made.lowers[0] / "tar").mkdir()
        os.setxattr(made.upper / "d", "trusted.overlay.redirect", value)
        overlay = voile_overlay(made)
        point = overlay.mount()
        assert in_child(lambda path=point / "d": outcome(lambda: os.listdir(path))) == "EINVAL"
        overlay.umount()


def test_deep_tree_with_few_descriptors(layers, voile_overlay):
    made = layers()
    at = made.lowers[0]
    here = os.open(at, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("f", os.O_CREAT, dir_fd=here))
    os.close(here)
    overlay = voile_overlay(made)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
    try:
        point = overlay.mount()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def use():
        here = os.open(point, os.O_RDONLY)
        for _ in range(1500):
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("2\n")
        os.chmod("f", 0o600, dir_fd=here)
        return os.stat("f", dir_fd=here).st_mode & 0o777

    try:
        assert in_child(use) == 0o600
        overlay.umount()
    finally:
        overlay.close()
        # Too deep for shutil.rmtree.
        subprocess.run(["rm", "-r", made.upper, *made.lowers], check=True)


def test_many_redirects_with_few_descriptors(layers, voile_overlay):
    made = layers()
    count = 600
    for i in range(count):
        (made.lowers[0] / f"a{i}/b/c").mkdir(parents=True)
        (made.lowers[0] / f"a{i}/b/c/in-it").write_bytes(b"")
        (made.upper / f"d{i}").mkdir()
        os.setxattr(made.upper / f"d{i}", "trusted.overlay.redirect", b"/a%d/b/c" % i)
        os.setxattr(made.upper / f"d{i}", "trusted.overlay.origin", b"")
    overlay = voile_overlay(made)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
    try:
        point = overlay.mount("redirect_dir=on")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def use():
        inos = {entry.name: entry.inode() for entry in os.scandir(point)}
        for i in range(count):
            assert os.listdir(point / f"d{i}") == ["in-it"]
            assert os.stat(point / f"d{i}").st_ino == inos[f"d{i}"], i

    in_child(use)
    overlay.umount()


@pytest.mark.parametrize("on", ["ext4", "xfs"])
def test_small_metacopy_files_without_metacopy(on, layers, kernel_overlay, voile_overlay):
    """They are refused also where their attributes take as many blocks as their data would."""
    seen = []
    for make in (kernel_overlay, voile_overlay):
        made = layers(on=on)
        for directory in (made.lowers[0] / "d", made.upper / "d"):
            directory.mkdir()
        os.setxattr(made.upper / "d", "trusted.overlay.impure", b"y")
        for name, size in (("small", 6), ("block", 4096), ("data", 0)):
            (made.lowers[0] / "d" / name).write_bytes(b"x" * 4096)
            (made.upper / "d" / name).write_bytes(b"" if size else b"y")
            os.setxattr(made.upper / "d" / name, "user.large", b"x" * 1000)
            if size:
                os.truncate(made.upper / "d" / name, size)
                os.setxattr(made.upper / "d" / name, "trusted.overlay.metacopy", b"")
        overlay = make(made)
        point = overlay.mount()
        paths = [point / "d" / name for name in ("small", "block", "data")]
        seen.append([outcome(path.read_bytes) for path in paths])
        overlay.umount()
    assert seen[0] == seen[1] == ["EPERM", "EPERM", b"y"]
