"""The probe that watches single files: by itself, and on a mount with probe=inode."""

import errno
import os
import subprocess

import pytest

from faults.faultyfs import BAD, GOOD, write_back
from faults.places import VOILE, voile
from faults.test_policy import status
from support import syscalls
from support.outcome import result
from support.overlays import Layers, VoileError, VoileOverlay, voile_missing
from support.users import in_child, open_dev_fuse
from support.wait import wait_until
from voile.volatile import inode_probe
from voile.volatile.inode_probe import InodeProbe
from voile.volatile.probe import ProbeUnavailable

pytestmark = pytest.mark.skipif(voile_missing() is not None, reason=str(voile_missing()))


def write(path, data=GOOD):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.pwrite(fd, data, 0)
    os.close(fd)


@pytest.fixture
def watched(fs):
    """watched(limit) -> (probe, make): make(name) makes a file that the probe watches; its path."""
    probes = []

    def start(limit=100):
        probe = InodeProbe(limit)
        probes.append(probe)

        def make(name="file"):
            path = fs.point / name
            fd = os.open(path, os.O_WRONLY | os.O_CREAT)
            probe.watch(fd)
            os.close(fd)
            return path

        return probe, make

    yield start
    for probe in probes:
        probe.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_the_errno_for_good(fs, watched, number):
    probe, make = watched()
    path = make()
    assert probe.check() == 0
    fs.lose(number, path)
    assert [probe.check() for _ in range(3)] == [number] * 3
    fs.sync()
    os.unlink(path)
    probe.tidy()
    assert (len(probe), probe.check()) == (0, number)


def test_others_may_collect_the_error(fs, watched):
    probe, make = watched()
    path = make()
    fs.lose(errno.EIO, path)
    fd = os.open(path, os.O_RDONLY)
    result(os.fsync, fd)
    os.close(fd)
    assert probe.check() == errno.EIO


def test_an_older_error_of_a_file_is_not_ours(fs, watched):
    probe, _ = watched()
    path = fs.lose(errno.EIO)
    key = probe.adopt(os.open(path, os.O_RDONLY), born=False)
    assert probe.check() == 0
    probe.opened(key)
    fs.lose(errno.ENOSPC, path)
    assert probe.check() == errno.ENOSPC


def test_nothing_is_written(fs, watched):
    probe, make = watched()
    path = make()
    rule = fs.disk.fail(errno.EIO)
    write(path, BAD)
    assert [probe.check() for _ in range(3)] == [0] * 3
    assert rule.hits == 0
    rule.remove()


def test_what_is_on_the_disk_is_given_back(fs, watched):
    probe, make = watched()
    path = make()
    write(path)
    probe.tidy()
    assert len(probe) == 1, "it is dirty"
    key = probe.adopt(os.open(path, os.O_RDONLY), born=False)
    probe.opened(key)
    write_back(path)
    probe.tidy()
    assert len(probe) == 1, "somebody may write it"
    probe.closed(key)
    probe.tidy()
    assert (len(probe), probe.dropped, probe.check()) == (0, 0, 0)


def test_an_error_is_not_lost_when_the_file_is_given_back(fs, watched):
    probe, make = watched()
    fs.lose(errno.ENOSPC, make())
    probe.tidy()
    assert (len(probe), probe.check()) == (0, errno.ENOSPC)


def test_a_deleted_file_is_given_back(fs, watched):
    probe, make = watched()
    path = make()
    write(path)
    os.unlink(path)
    probe.tidy()
    assert len(probe) == 0


def test_the_limit(fs, watched):
    probe, make = watched(3)
    paths = [make(f"file-{number}") for number in range(3)]
    for path in paths:
        write(path)
    kept = os.stat(paths[0]).st_ino
    probe.opened(kept)
    write(make("one-more"))
    assert (len(probe), probe.dropped) == (3, 1)
    fs.lose(errno.EIO, paths[1])
    assert probe.check() == 0, "given up, and counted"
    fs.lose(errno.EIO, paths[0])
    assert probe.check() == errno.EIO, "somebody has it open"


def test_a_file_that_was_given_up_is_watched_again(fs, watched):
    probe, make = watched(1)
    first = make("first")
    write(first)
    write(make("second"))
    assert probe.dropped == 1
    fs.lose(errno.ENOSPC, first)
    assert probe.check() == 0
    probe.adopt(os.open(first, os.O_RDONLY), born=False)
    assert probe.check() == errno.ENOSPC


def test_not_on_a_stacked_file_system(layers, kernel_overlay, opened):
    point = kernel_overlay(layers()).mount()
    with pytest.raises(ProbeUnavailable):
        inode_probe.create(opened(point))


# On a mount


@pytest.fixture
def mount(fs, filesystems):
    made = []

    def make(*options, prepare=lambda layers: None):
        # Not the same file system: a copy-up by reflink would write nothing.
        layers = fs.layers(lower_base=filesystems.directory("tmpfs"))
        prepare(layers)
        made.append(VoileOverlay(layers))
        made[-1].mount("volatile,fuseblk=off", *options)
        return made[-1]

    yield make
    for overlay in made:
        overlay.check()
        overlay.umount()


def lower_file(layers):
    (layers.lowers[0] / "file").write_bytes(BAD)


def upper_file(layers):
    (layers.upper / "file").write_bytes(GOOD)


def new(point):
    write(point / "file", BAD)


def chmod(point):
    os.chmod(point / "file", 0o600)  # copied up with its data


def rewrite(point):
    write(point / "file", BAD)


def truncate(point):
    os.truncate(point / "file", len(BAD))
    write(point / "file", BAD)


def shorten(point):
    # The rest of the last page is written as zeros: only its beginning has the mark.
    os.truncate(point / "file", len(BAD) - 100)


def unreadable(point):
    fd = os.open(point / "file", os.O_WRONLY | os.O_CREAT, 0o200)
    os.pwrite(fd, BAD, 0)
    os.close(fd)


CASES = {
    "a new file": (new, lambda layers: None),
    "unreadable": (unreadable, lambda layers: None),
    "copied up": (chmod, lower_file),
    "copied up to write": (rewrite, lower_file),
    "an upper one": (rewrite, upper_file),
    "truncated": (truncate, upper_file),
    "truncated, copied up": (shorten, lower_file),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("passthrough", ["on", "off"])
@pytest.mark.parametrize("kind", ["overlay", "userns", "inode"])
@pytest.mark.parametrize("case", CASES)
def test_data_written_through_the_mount(fs, mount, case, kind, passthrough):
    change, prepare = CASES[case]
    overlay = mount(f"probe={kind},poll=0,passthrough={passthrough}", prepare=prepare)
    point = overlay.point
    shown = {"userns": "overlay-userns"}.get(kind, kind)
    said = status(point)
    assert (said["probe"], said["watched"], said["not_watched"]) == (
        (shown, 0, 0) if kind == "inode" else (shown, None, None)
    )
    rule = fs.disk.fail(errno.ENOSPC)
    told = result(change, point)
    if told:  # at once, which is as good: truncate(2) of xfs and btrfs writes the rest of the file itself
        assert (case, told) == ("truncated, copied up", errno.ENOSPC)
        assert fs.kind != "ext4"
        rule.remove()
        return
    assert voile("sync", point) == (0, "")
    write_back(overlay.layers.upper / "file")
    assert rule.hits
    rule.remove()
    fd = os.open(point / "file", os.O_RDONLY)
    assert [result(os.fsync, fd) for _ in range(2)] == [errno.ENOSPC] * 2
    os.close(fd)
    directory = os.open(point, os.O_RDONLY)
    assert result(os.fsync, directory) == errno.ENOSPC
    os.close(directory)
    assert voile("sync", point)[0] == 74


@pytest.mark.parametrize("kind, seen", [("overlay", errno.EIO), ("userns", errno.EIO), ("inode", 0)])
def test_a_file_that_is_none_of_the_mounts(fs, mount, kind, seen):
    overlay = mount(f"probe={kind},poll=0")
    write(overlay.point / "file")
    fs.lose(errno.EIO)
    fd = os.open(overlay.point / "file", os.O_RDONLY)
    assert result(os.fsync, fd) == seen
    os.close(fd)


def test_descriptors_are_given_back(mount):
    """Of deleted files: or their space would stay in use; also when nothing more happens on the mount."""
    overlay = mount("probe=inode,poll=0.05")
    before = len(os.listdir(f"/proc/{overlay.pid}/fd"))
    for number in range(300):
        write(overlay.point / f"{number}")
    assert status(overlay.point)["watched"] > 0  # some may be on the disk already
    for number in range(300):
        os.unlink(overlay.point / f"{number}")
    wait_until(lambda: status(overlay.point)["watched"] == 0, "still watched")
    # Some stay for other reasons: the daemon has the /proc/PID/stat of up to eight clients (see cpu_follow).
    wait_until(lambda: len(os.listdir(f"/proc/{overlay.pid}/fd")) <= before + 20, "still open")
    assert status(overlay.point)["not_watched"] == 0


def test_what_had_to_be_given_up_is_shown(fs):
    """With a limit of 256 descriptors 32 files can be watched."""
    overlay = VoileOverlay(fs.layers())
    overlay.program = ("sh", "-c", 'ulimit -n 256; exec "$0" "$@"', VOILE)
    overlay.mount("volatile,probe=inode,poll=0")
    for number in range(100):
        write(overlay.point / f"{number}")
    said = status(overlay.point)
    assert said["watched"] <= 32
    assert said["watched"] + said["not_watched"] >= 100
    assert "written files, whose errors are not noticed" in voile("status", overlay.point)[1]
    overlay.umount()


def in_a_chroot(base):
    """Where the kernel allows no user namespaces (kernel/user_namespace.c, current_chrooted)."""
    open_dev_fuse(base / "fuse-node")
    root = base / "root"
    root.mkdir()
    syscalls.mount("/", root, None, syscalls.MS_BIND | syscalls.MS_REC)
    os.chroot(root)
    os.chdir("/")


def test_auto_falls_back_and_says_so(fs, filesystems):
    """No privilege, no user namespaces."""
    layers = fs.layers()
    uid = 65534
    for path in [layers.base, *layers.base.rglob("*")]:
        os.chown(path, uid, uid)

    def work():
        options = f"{layers.options()},volatile,userxattr"
        done = subprocess.run(
            [VOILE, "mount", "-o", options, layers.point], cwd=layers.base, capture_output=True, text=True
        )
        said = status(layers.point)
        write(layers.point / "file")
        fs.lose(errno.EIO, layers.upper / "file")
        answer = voile("sync", layers.point)[0]
        subprocess.run([VOILE, "umount", layers.point], check=True)
        return done.returncode, done.stderr, said["probe"], answer

    base = filesystems.directory()
    exit_status, stderr, kind, answer = in_child(work, uid=uid, namespace=lambda: in_a_chroot(base))
    assert (exit_status, kind, answer) == (0, "inode", 74)
    assert stderr.count("\n") == 1
    assert "warning: errors are seen only of single files" in stderr


@pytest.mark.parametrize("kind", ["overlay", "userns"])
def test_a_forced_kind_that_is_not_possible(layers, kernel_overlay, kind):
    """An unsuitable upper. (Another overlay is refused before: it makes no whiteouts.)"""
    from voile.volatile import chain, policy

    point = kernel_overlay(layers()).mount()
    fd = os.open(point, os.O_RDONLY)
    try:
        for each in (kind, policy.INODE, policy.AUTO):
            with pytest.raises(ProbeUnavailable):
                chain.create(each, fd, False, 100)
    finally:
        os.close(fd)
    assert os.listdir(point) == []


def test_unseen_error_is_no_reason_to_fall_back(fs):
    fs.lose(errno.EIO)
    overlay = VoileOverlay(fs.layers())
    with pytest.raises(VoileError, match="sync -f"):
        overlay.mount("volatile,probe=auto")


def test_needs_volatile(filesystems):
    overlay = VoileOverlay(Layers(filesystems.directory()))
    with pytest.raises(VoileError, match="'probe=inode' needs 'volatile'"):
        overlay.mount("probe=inode")
