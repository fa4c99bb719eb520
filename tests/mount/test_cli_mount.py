"""The commands on real mounts: every way to mount, bad input, status and umount."""

import json
import os
import pwd
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

from support import mountinfo
from support.overlays import ROOT, voile_missing

VOILE = [sys.executable, "-I", "-S", str(ROOT / "voile")]
HELPER = [sys.executable, "-S", "-m", "voile.cli.mount_voile"]


@pytest.fixture
def tree(isolated, scratch):
    """A directory with l, u, w, m; at the end nothing is mounted below it and no daemon lives."""
    if reason := voile_missing():
        pytest.skip(reason)
    for name in "luwm":
        (scratch / name).mkdir()
    (scratch / "l" / "file").write_text("lower\n")
    yield scratch
    for mount in reversed(mountinfo.mounts()):
        if mount.point.startswith(f"{scratch}/"):
            call(*VOILE, "umount", mount.point)
            if mountinfo.at(mount.point):
                subprocess.run(["umount", "-l", mount.point], check=True)


def call(*command, cwd=None, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, errors="surrogateescape",
        timeout=30, **more
    )  # fmt: skip


def works(done):
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def ended(pid):
    """Gone, or a zombie that the machine's init has not collected yet."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def options(tree, *more):
    return ",".join([f"lowerdir={tree}/l,upperdir={tree}/u,workdir={tree}/w", *more])


def status(point):
    return json.loads(works(call(*VOILE, "status", "--json", point)))


@pytest.mark.parametrize(
    "command",
    [
        lambda t: [*VOILE, "mount", "-o", options(t, "volatile"), t / "m"],
        lambda t: [*VOILE, "mount", t / "m", "-o", options(t), "-o", "volatile"],
        lambda t: [*VOILE, "overlay", t / "m", "-o", options(t, "volatile")],
        lambda t: [*VOILE, "-o", options(t, "", "volatile", 'context="a:b:c0,c1"', "private", ""), t / "m"],
        lambda t: [*VOILE, "overlay", t / "m", "-o", options(t), "-o", "volatile", "-t", "voile"],
        lambda t: [*HELPER, "overlay", t / "m", "-n", "-o", options(t, "volatile", "rw")],
        lambda t: [*HELPER, "overlay", t / "m", "-s", "-o", options(t, "volatile", "nosuch=1")],
        lambda t: [
            "mount.fuse3",
            "overlay",
            t / "m",
            "-o",
            options(t),
            "-o",
            "volatile",
            "-t",
            f"{ROOT}/voile",
        ],
    ],
    ids="command several_o fuse podman containerd helper sloppy mount.fuse3".split(),
)
def test_ways_to_mount(tree, command):
    words = command(tree)
    if not shutil.which(words[0]):
        pytest.skip(f"no {words[0]}")
    assert works(call(*words)) == ""
    assert (tree / "m" / "file").read_text() == "lower\n"
    (tree / "m" / "new").write_text("x")
    assert (tree / "u" / "new").read_text() == "x"
    shown = mountinfo.at(tree / "m")
    assert shown.fstype.split(".")[0] in ("fuse", "fuseblk")
    about = status(tree / "m")
    assert about["volatile"] and about["state"] == "ok"
    assert works(call(*VOILE, "umount", tree / "m")) == ""
    assert not mountinfo.at(tree / "m")
    assert ended(about["pid"])


def test_relative_paths(tree):
    works(call(*VOILE, "mount", "-o", "lowerdir=l,upperdir=u,workdir=w", "m", cwd=tree))
    about = status(tree / "m")
    assert about["lowerdir"] == [f"{tree}/l"]
    assert (about["upperdir"], about["workdir"]) == (f"{tree}/u", f"{tree}/w")
    works(call(*VOILE, "umount", "m", cwd=tree))


def test_source_and_flags_are_in_force(tree):
    works(call(*HELPER, "SRC", tree / "m", "-o", options(tree, "noexec,nosuid,nodev,noatime")))
    shown = mountinfo.at(tree / "m")
    assert shown.source == "SRC"
    assert shown.fstype.endswith(".voile")
    assert {"noexec", "nosuid", "nodev", "noatime"} <= set(shown.options.split(","))
    works(call(*VOILE, "umount", tree / "m"))


def test_awkward_source_names(tree):
    for source in ("a/b", "work", "..", "with space", "é" * 120):
        works(call(*HELPER, source, tree / "m", "-o", options(tree)))
        assert (tree / "m" / "file").exists()
        works(call(*VOILE, "umount", tree / "m"))
        assert os.listdir(tree / "u") == []
        assert [name for name in os.listdir(tree / "w") if name.startswith("#")] == []


def test_read_only(tree):
    works(call(*VOILE, "mount", "-o", f"lowerdir={tree}/l:{tree}/u", tree / "m"))
    assert "ro" in mountinfo.at(tree / "m").options.split(",")
    with pytest.raises(OSError, match="Read-only"):
        (tree / "m" / "x").write_text("")
    assert status(tree / "m")["state"] == "readonly"
    works(call(*VOILE, "umount", tree / "m"))


def test_fake_mounts_nothing(tree):
    works(call(*HELPER, "SRC", tree / "m", "-f", "-o", options(tree, "volatile")))
    assert not mountinfo.at(tree / "m")
    assert call(*HELPER, "SRC", tree / "m", "-f", "-o", options(tree, "nosuch")).returncode == 1


def test_daemon_keeps_nothing_of_the_caller(tree):
    """A caller that reads our output to the end, or waits for a pipe of its own, gets the end."""
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    works(call(*VOILE, "mount", "-o", options(tree), tree / "m", pass_fds=[write_end]))
    os.close(write_end)
    assert os.read(read_end, 1) == b""
    os.close(read_end)
    pid = status(tree / "m")["pid"]
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}
    works(call(*VOILE, "umount", tree / "m"))


def alone_in_a_namespace(tree):
    """The pid of a daemon that is the only process in the namespace of its mount, and the mount's device."""
    words = " ".join([*VOILE, "mount", "-o", options(tree, "volatile"), f"{tree}/m"])
    asked = " ".join([*VOILE, "status", "--json", f"{tree}/m"])
    device = f"mountpoint -d {tree}/m"
    done = works(call("unshare", "-m", "sh", "-c", f"{words} && {asked} && {device}"))
    about, end = json.JSONDecoder().raw_decode(done)
    return about["pid"], tuple(map(int, done[end:].split(":")))


def test_killed_alone_in_its_namespace(tree, scratch):
    """A fuseblk mount that goes waits for its daemon, and sync(1) for the mount."""
    pid, (major, minor) = alone_in_a_namespace(tree)
    os.kill(pid, signal.SIGKILL)
    try:
        wait_for(lambda: ended(pid) and len(os.listdir(f"/proc/{pid}/task")) <= 1)
    except FileNotFoundError:
        pass
    except AssertionError:
        connections = scratch / "connections"
        connections.mkdir()
        subprocess.run(["mount", "-t", "fusectl", "none", connections], check=True)
        (connections / str(major << 20 | minor) / "abort").write_text("1")
        subprocess.run(["umount", connections], check=True)
        raise


def test_terminated_alone_in_its_namespace(tree):
    pid, _ = alone_in_a_namespace(tree)
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: ended(pid))


def test_daemon_keeps_no_other_file_system_busy(tree):
    """Nor does it take them away, where mounts are shared."""
    script = f"""
        mount --make-rshared /
        mount -t tmpfs one {tree}/l && mount -t tmpfs other {tree}/other && mount -t tmpfs twice {tree}/other
        before=$(wc -l </proc/self/mountinfo)
        {" ".join(VOILE)} mount -o {options(tree)} {tree}/m
        pid=$({" ".join(VOILE)} status --json {tree}/m | sed -n 's/.*"pid": \\([0-9]*\\).*/\\1/p')
        while grep -q -e " {tree}/l " -e " {tree}/other " /proc/$pid/mountinfo; do sleep 0.01; done
        echo $(($(wc -l </proc/self/mountinfo) - before))
        {" ".join(VOILE)} umount {tree}/m
    """
    (tree / "other").mkdir()
    assert works(call("timeout", "20", "unshare", "-m", "sh", "-c", script)) == "1\n"


def test_caller_without_standard_files(tree):
    """None of ours gets the number of one of them: the daemon gives those up."""
    for helper in (f"{' '.join(VOILE)} mount", f"PYTHONPATH={ROOT}/src {' '.join(HELPER)} none"):
        works(call("sh", "-c", f"{helper} {tree}/m -o {options(tree)} <&- >&- 2>&-"))
        assert (tree / "m" / "file").read_text() == "lower\n"
        works(call(*VOILE, "umount", tree / "m"))


def test_output_that_cannot_be_written():
    done = call("sh", "-c", f"{' '.join(VOILE)} status --json >/dev/full")
    assert done.returncode == 2
    assert done.stderr == "voile: standard output: No space left on device\n"


def test_foreground_and_signals(tree):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        with subprocess.Popen([*VOILE, "mount", "-f", "-o", options(tree), tree / "m"]) as daemon:
            wait_for(lambda: mountinfo.at(tree / "m"))
            assert status(tree / "m")["pid"] == daemon.pid
            daemon.send_signal(number)
            assert daemon.wait(20) == 0
        assert not mountinfo.at(tree / "m")


def test_debug_shows_requests(tree):
    command = [*VOILE, "mount", "-d", "-o", options(tree), tree / "m"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as daemon:
        wait_for(lambda: mountinfo.at(tree / "m"))
        os.stat(tree / "m" / "file")
        works(call(*VOILE, "umount", tree / "m"))
        assert "LOOKUP" in daemon.stderr.read()
        assert daemon.wait(20) == 0


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def refused(tree, *command, status=32, says):
    """The command fails with that exit bit and one line with those words; nothing is made or left."""
    before = listing(tree)
    done = call(*command)
    assert done.returncode == status, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("voile: "), done.stderr
    for words in says:
        assert words in done.stderr
    assert not mountinfo.at(tree / "m")
    assert listing(tree) == before


def listing(tree):
    return sorted(str(path) for path in tree.rglob("*"))


def test_bad_mount_points(tree):
    (tree / "plain").write_text("")
    mount = [*VOILE, "mount", "-o", options(tree, "volatile")]
    refused(tree, *mount, f"{tree}/none", says=[f"{tree}/none", "No such file"])
    refused(tree, *mount, f"{tree}/plain", says=[f"{tree}/plain", "Not a directory"])
    refused(tree, *mount, f"{tree}/plain/x", says=[f"{tree}/plain/x", "Not a directory"])


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda o, t: o.replace(f"{t}/l", f"{t}/none"), ["{t}/none", "No such file"]),
        (lambda o, t: o.replace(f"{t}/u", f"{t}/none"), ["{t}/none", "No such file"]),
        (lambda o, t: o.replace(f"{t}/w", f"{t}/none"), ["{t}/none", "No such file"]),
        (lambda o, t: o.replace(f"{t}/w", f"{t}/u"), ["{t}/u", "separate"]),
        (lambda o, t: o.replace(f"{t}/w", "/dev/shm"), ["/dev/shm", "same file system"]),
        (lambda o, t: o.replace(f"{t}/l", f"{t}/u"), ["{t}/u"]),
        (lambda o, t: o.replace(f"{t}/l", f"{t}"), ["inside"]),
        (lambda o, t: o.replace(f"{t}/l", ":".join([f"{t}/l"] * 501)), ["too many", "501"]),
    ],
    ids="lower upper work same other_fs overlap nested 501".split(),
)
def test_bad_layers(tree, change, says):
    bad = change(options(tree, "volatile"), tree)
    refused(tree, *VOILE, "mount", "-o", bad, f"{tree}/m", says=[words.format(t=tree) for words in says])


def test_without_proc(tree):
    mount = f"{' '.join(VOILE)} mount -o {options(tree)} {tree}/m"
    refused(tree, "unshare", "-m", "sh", "-c", f"umount -l /proc; {mount}", says=["/proc", "No such file"])


def test_upper_in_use_by_the_kernel(tree):
    (tree / "m2").mkdir()
    subprocess.run(["mount", "-t", "overlay", "-o", options(tree), "overlay", tree / "m2"], check=True)
    done = call(*VOILE, "mount", "-o", options(tree), tree / "m")
    assert done.returncode == 32
    assert f"{tree}/u: upperdir is in use by the overlay mounted on '{tree}/m2'" in done.stderr
    subprocess.run(["umount", tree / "m2"], check=True)
    works(call(*VOILE, "mount", "-o", options(tree), tree / "m"))
    works(call(*VOILE, "umount", tree / "m"))


def test_upper_in_use(tree):
    (tree / "m2").mkdir()
    works(call(*VOILE, "mount", "-o", options(tree), tree / "m"))
    done = call(*VOILE, "mount", "-o", options(tree), tree / "m2")
    assert done.returncode == 32
    assert f"{tree}/u" in done.stderr and "in use" in done.stderr
    works(call(*VOILE, "umount", tree / "m"))
    works(call(*VOILE, "mount", "-o", options(tree), tree / "m2"))
    works(call(*VOILE, "umount", tree / "m2"))


def test_upper_of_a_lazily_unmounted_mount(tree):
    (tree / "m2").mkdir()
    works(call(*VOILE, "mount", "-o", options(tree), tree / "m"))
    pidfd = os.pidfd_open(status(tree / "m")["pid"])
    with open(tree / "m" / "file"):
        works(call(*VOILE, "umount", "--lazy", tree / "m"))
        begin = time.monotonic()
        taken = call(*VOILE, "mount", "-o", options(tree), tree / "m")
        assert 1.9 < time.monotonic() - begin < 3.5
        assert taken.returncode == 0
        assert [line.partition(" is still held")[0] for line in taken.stderr.splitlines()] == [
            f"voile: warning: upperdir '{tree}/u'",
            f"voile: warning: workdir '{tree}/w'",
        ]
        assert call(*VOILE, "mount", "-o", options(tree), tree / "m2").returncode == 32
    # The old mount ends; the new one is not left without a lock.
    assert select.select([pidfd], [], [], 20)[0]
    os.close(pidfd)
    assert call(*VOILE, "mount", "-o", options(tree), tree / "m2").returncode == 32
    works(call(*VOILE, "umount", tree / "m"))
    works(call(*VOILE, "mount", "-o", options(tree), tree / "m2"))
    works(call(*VOILE, "umount", tree / "m2"))


def test_umount_of_a_busy_mount(tree):
    works(call(*VOILE, "mount", "-o", options(tree), tree / "m"))
    with open(tree / "m" / "file"):
        done = call(*VOILE, "umount", tree / "m")
        assert done.returncode == 32
        assert done.stderr.count("\n") == 1 and f"{tree}/m: in use" in done.stderr
        works(call(*VOILE, "umount", "--lazy", tree / "m"))
    assert not mountinfo.at(tree / "m")


def test_status_of_all_and_of_a_dead_one(tree):
    works(call(*VOILE, "mount", "-o", options(tree, "volatile"), tree / "m"))
    every = json.loads(works(call(*VOILE, "status", "--json")))
    assert every["version"] == 1
    (mine,) = [each for each in every["mounts"] if each["mountpoint"] == f"{tree}/m"]
    assert set(mine) == {
        "mountpoint", "lowerdir", "datadir", "upperdir", "workdir", "pid", "volatile", "metacopy", "state",
        "error", "errors", "error_code", "read_only", "probe", "watched", "not_watched",
        "checkpoint", "reused", "hold", "poll_s", "syncfs", "passthrough", "omitted", "calibration",
        "saved_s", "uptime_s",
    }  # fmt: skip
    assert set(mine["omitted"]) == {"fsync", "fdatasync", "fsyncdir", "syncfs", "osync"}
    fd = os.open(tree / "m" / "new", os.O_CREAT | os.O_WRONLY)
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    assert status(tree / "m")["omitted"]["fsync"] == 1
    assert status(tree / "m")["omitted"]["fdatasync"] == 1
    assert "1 fsync, 1 fdatasync" in works(call(*VOILE, "status", tree / "m"))
    pidfd = os.pidfd_open(mine["pid"])
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    wait_for(lambda: status(tree / "m")["state"] == "shutdown")
    os.close(pidfd)
    dead = status(tree / "m")
    assert set(dead) == set(mine) | {"version"}
    assert dead["error"]["name"] in ("ENOTCONN", "ECONNABORTED")
    assert "daemon" in works(call(*VOILE, "status", tree / "m"))
    works(call(*VOILE, "umount", tree / "m"))


@pytest.mark.parametrize("passthrough", ["on", "off"])
def test_each_sync_is_counted_once(tree, passthrough):
    works(call(*VOILE, "mount", "-o", options(tree, f"volatile,passthrough={passthrough}"), tree / "m"))
    for flag in (os.O_SYNC, os.O_DSYNC):
        fd = os.open(tree / "m" / "file", os.O_WRONLY | flag)
        os.write(fd, b"x" * 4096)
        os.fsync(fd)
        os.fdatasync(fd)
        os.close(fd)
    assert status(tree / "m")["omitted"] == {
        "fsync": 2, "fdatasync": 2, "fsyncdir": 0, "syncfs": 0, "osync": 2
    }  # fmt: skip
    works(call(*VOILE, "umount", tree / "m"))


def test_status_with_hundreds_of_layers(tree):
    """Longer than one ioctl can carry."""
    layers = []
    for number in range(400):
        layers.append(tree / f"layer-{number:03}-{'x' * 60}")
        layers[-1].mkdir()
    works(call(*VOILE, "mount", "-o", "lowerdir=" + ":".join(map(str, layers)), tree / "m"))
    assert status(tree / "m")["lowerdir"] == [str(layer) for layer in layers]
    works(call(*VOILE, "umount", tree / "m"))


def test_paths_that_are_not_utf8(tree):
    odd = os.fsencode(tree) + b"/\xff ,:\\"
    os.mkdir(odd)
    escaped = odd.replace(b"\\", b"\\\\").replace(b":", b"\\:").replace(b",", b"\\,")
    works(call(*VOILE, "mount", "-o", b"lowerdir=" + escaped, tree / "m"))
    assert os.fsencode(status(tree / "m")["lowerdir"][0]) == odd
    works(call(*VOILE, "umount", tree / "m"))


# As an ordinary user


@pytest.fixture
def user(as_user, tree):
    """user(function): called as an ordinary user (with an account) who owns the tree and has /dev/fuse."""
    if not shutil.which("fusermount3"):
        pytest.skip("no fusermount3")
    uid = pwd.getpwnam("nobody").pw_uid
    for path in [tree, *tree.rglob("*")]:
        os.chown(path, uid, uid)
    for directory in tree.parents:
        if not directory.stat().st_mode & stat.S_IXOTH:
            pytest.skip(f"{directory} is closed to others")
    return lambda function, **more: as_user(function, uid=uid, **{"fuse": True, **more})


# The interpreter of the tests may be out of a user's reach.
USER_VOILE = [str(ROOT / "voile")]


def test_user_mounts_through_fusermount3(user, tree):
    def work():
        mounted = call(*USER_VOILE, "mount", "-o", options(tree, "volatile,userxattr,noatime"), f"{tree}/m")
        assert (mounted.returncode, mounted.stderr) == (0, "")
        shown = mountinfo.at(tree / "m")
        with open(f"{tree}/m/new", "w") as file:
            file.write("x")
        about = json.loads(call(*USER_VOILE, "status", "--json", f"{tree}/m").stdout)
        done = call(*USER_VOILE, "umount", f"{tree}/m")
        return shown.fstype, shown.source, shown.options, about, done.returncode, done.stderr

    fstype, source, flags, about, returncode, stderr = user(work)
    assert (fstype, source) == ("fuse.voile", "voile")
    assert {"nosuid", "nodev", "noatime"} <= set(flags.split(","))
    assert about["state"] == "ok" and about["volatile"] and about["probe"] == "overlay-userns"
    assert (returncode, stderr) == (0, "")
    assert (tree / "u" / "new").read_text() == "x"


def test_user_follows_the_advice_after_a_volatile_mount(user, tree):
    mount = [*USER_VOILE, "mount", "-o", options(tree, "volatile,userxattr"), f"{tree}/m"]

    def work():
        works(call(*mount))
        works(call(*USER_VOILE, "umount", f"{tree}/m"))
        refused = call(*mount)
        works(call("sh", "-c", re.search("'(chmod .*?)'", refused.stderr)[1]))
        works(call("rm", "-r", re.search("remove ([^ ]*)", refused.stderr)[1]))
        works(call(*mount))
        works(call(*USER_VOILE, "umount", f"{tree}/m"))
        return refused.returncode

    assert user(work) == 32


@pytest.mark.parametrize(
    "extra, fuse, status, says",
    [
        ("volatile", True, 1, "userxattr"),
        ("userxattr,allow_other", True, 1, "user_allow_other"),
        ("userxattr", False, 1, "/dev/fuse"),
    ],
)
def test_user_is_refused(user, tree, extra, fuse, status, says):
    if extra.endswith("allow_other") and "user_allow_other" in open("/etc/fuse.conf").read().splitlines():
        pytest.skip("user_allow_other is set on this machine")
    if not fuse and os.stat("/dev/fuse").st_mode & 0o006:
        pytest.skip("/dev/fuse is open to all on this machine")
    done = user(lambda: call(*USER_VOILE, "mount", "-o", options(tree, extra), f"{tree}/m"), fuse=fuse)
    assert done.returncode == status
    assert done.stderr.count("\n") == 1 and says in done.stderr
    assert os.listdir(tree / "u") == os.listdir(tree / "w") == []


def test_kernel_overlay_on_top_and_below(tree):
    """Passthrough takes a level of the kernel's stacking limit only where it needs one."""
    for name in ("ku", "kw", "k"):
        (tree / name).mkdir()
    works(call(*VOILE, "mount", "-o", options(tree), tree / "m"))
    assert status(tree / "m")["passthrough"]
    above = f"lowerdir={tree}/m,upperdir={tree}/ku,workdir={tree}/kw"
    subprocess.run(["mount", "-t", "overlay", "none", "-o", above, tree / "k"], check=True)
    assert (tree / "k" / "file").read_text() == "lower\n"
    subprocess.run(["umount", tree / "k"], check=True)
    works(call(*VOILE, "umount", tree / "m"))

    below = f"lowerdir={tree}/l,upperdir={tree}/ku,workdir={tree}/kw"
    subprocess.run(["mount", "-t", "overlay", "none", "-o", below, tree / "k"], check=True)
    works(call(*VOILE, "mount", "-o", options(tree).replace(f"{tree}/l", f"{tree}/k"), tree / "m"))
    assert (tree / "m" / "file").read_text() == "lower\n"
    works(call(*VOILE, "umount", tree / "m"))
    subprocess.run(["umount", tree / "k"], check=True)
