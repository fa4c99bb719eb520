"""A volatile upper used again on a disk that fails: no error between two mounts goes unnoticed.

What has nothing to do with errors of the disk: tests/mount/test_reuse.py.
"""

import contextlib
import errno
import fcntl
import os
import struct

import pytest

from faults.faultyfs import BAD, GOOD
from faults.places import voile
from support import holders, mountinfo, syscalls
from support.outcome import result
from support.overlays import VoileError, VoileOverlay, voile_missing
from support.reuse import HELD, refused
from voile.server import control

pytestmark = pytest.mark.skipif(voile_missing() is not None, reason=str(voile_missing()))

FS_IOC_SHUTDOWN = 0x8004587D


@pytest.fixture
def layers(fs):
    made = fs.layers()
    yield made
    holders.end(made)


@contextlib.contextmanager
def mounted(layers, *options):
    overlay = VoileOverlay(layers)
    overlay.mount(*options)
    try:
        yield overlay
        if mountinfo.at(overlay.point):
            overlay.umount()
    finally:
        overlay.close()


def use(layers, options=HELD):
    """Mount, write, unmount."""
    with mounted(layers, options) as overlay:
        (overlay.point / "file").write_bytes(GOOD)


def recover(layers, *words):
    return voile("recover", layers.upper, "--work", layers.work, *words)


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_between_two_mounts(fs, layers, seen, number):
    """Whoever has been told of it, and wherever the file lies: the probe that is held knows."""
    use(layers)
    fs.lose(number)
    if seen:
        assert fs.sync() == number
        assert fs.sync() == 0
    why = f"the file system has lost data between the two mounts ({errno.errorcode[number]})"
    assert why in refused(layers)
    assert why in refused(layers), "the refusal has made it forget"
    assert why in recover(layers)[1]
    assert recover(layers, "--accept-loss")[0] == 0
    assert why in (layers.work / "voile.accepted").read_text()
    use(layers)
    use(layers)


def test_without_a_holder_it_cannot_be_known(fs, layers):
    use(layers, "volatile,reuse=auto")
    fs.lose(errno.EIO)
    assert fs.sync() == errno.EIO
    assert "nobody has held the error probe" in refused(layers, "volatile,reuse=auto")


def test_one_error_sequence_for_both_mounts(fs, layers):
    """After the second mount has begun, too; and what the first one has seen is not forgotten."""
    use(layers)
    with mounted(layers, HELD) as overlay:
        fd = os.open(overlay.point / "file", os.O_RDONLY)
        assert result(os.fsync, fd) == 0
        fs.lose(errno.EIO)
        assert result(os.fsync, fd) == errno.EIO
        os.close(fd)
    assert fs.sync() == errno.EIO
    holders.wait(layers)  # there is nothing left to be proven
    assert "the last mount had lost data (EIO, first seen 2" in refused(layers)


def test_an_error_that_the_mount_was_not_asked_about(fs, layers):
    """It is looked for once more at the end."""
    with mounted(layers, HELD, "poll=0"):
        fs.lose(errno.EIO)
    assert fs.sync() == errno.EIO
    assert "the last mount had lost data (EIO" in refused(layers)


def test_data_of_the_first_mount_that_is_lost_after_its_end(fs, layers):
    with mounted(layers, HELD) as overlay:
        fd = os.open(overlay.point / "file", os.O_WRONLY | os.O_CREAT)
        os.pwrite(fd, BAD, 0)
        os.close(fd)
    rule = fs.disk.fail(errno.EIO)
    assert fs.sync() == errno.EIO
    assert rule.hits
    rule.remove()
    assert "has lost data between the two mounts (EIO)" in refused(layers)


def said_without_marker(layers):
    """By a mount after somebody has removed the marker."""
    (layers.work / "work/incompat/volatile/dirty").unlink()
    (layers.work / "work/incompat/volatile").rmdir()
    overlay = VoileOverlay(layers)
    overlay.mount("volatile")
    said = overlay.output()
    overlay.close()
    return said


def test_the_default_says_what_the_last_mount_had_lost(fs, layers):
    with mounted(layers, "volatile"):
        fs.lose(errno.ENOSPC)
    assert fs.sync() == errno.ENOSPC
    said = said_without_marker(layers)
    assert "had lost data (ENOSPC): files in the upper directory may be incomplete" in said


def test_the_default_says_what_a_held_probe_knows(fs, layers):
    use(layers)
    fs.lose(errno.ENOSPC)
    assert fs.sync() == errno.ENOSPC
    said = said_without_marker(layers)
    assert "followed by an error of the file system, which has lost data (ENOSPC)" in said


def test_recover_clears_an_unseen_error(fs, layers):
    """Also where nothing was mounted before."""
    fs.lose(errno.EIO)
    assert "has lost data before and nobody was told" in refused(layers)
    status, said = recover(layers)
    assert (status, "has lost data before, and nobody has been told" in said) == (74, True)
    assert recover(layers)[0] == 74, "looking has told somebody"
    status, said = recover(layers, "--accept-loss")
    assert (status, "(EIO)" in said) == (0, True)
    use(layers)


def test_recover_on_a_disk_that_still_fails(fs, layers):
    with mounted(layers, "volatile") as overlay:
        fd = os.open(overlay.point / "file", os.O_WRONLY | os.O_CREAT)
        os.pwrite(fd, GOOD, 0)
        os.close(fd)
    rule = fs.disk.fail(errno.EIO, match="")
    status, said = recover(layers, "--accept-loss")
    rule.remove()
    assert (status, "Input/output error" in said) == (74, True), said
    assert (layers.work / "work/incompat/volatile").exists()


def test_recover_what_is_whole_and_then_is_not(fs, layers):
    """The sync itself finds the loss: nothing is said to be whole, and nothing is removed."""
    with mounted(layers, HELD) as overlay:
        fd = os.open(overlay.point / "file", os.O_WRONLY | os.O_CREAT)
        os.pwrite(fd, BAD, 0)
        os.close(fd)
    fs.disk.fail(errno.EIO)
    status, said = recover(layers)
    assert (status, "data has been lost" in said) == (74, True)
    assert (layers.work / "work/incompat/volatile").exists()
    assert "has lost data between the two mounts (EIO)" in refused(layers)


def test_a_checkpoint_is_recorded_when_it_is_true(fs, layers):
    with mounted(layers, "volatile") as overlay:
        (overlay.point / "file").write_bytes(GOOD)
        assert holders.read(layers)["checkpoint"] == "-"
        assert voile("checkpoint", overlay.point) == (0, "")
        first = holders.read(layers)["checkpoint"]
        assert control.status(os.fsencode(overlay.point))["checkpoint"] == first != "-"
        fs.lose(errno.EIO)
        assert voile("checkpoint", overlay.point)[0] == 74
        assert voile("umount", "--sync", overlay.point)[0] == 74
        assert holders.read(layers)["checkpoint"] == first
    assert holders.read(layers)["checkpoint"] == first


def test_a_checkpoint_survives_a_power_cut(fs, layers):
    """The record of it is on the disk: it is read back from there."""
    with mounted(layers, "volatile") as overlay:
        (overlay.point / "file").write_bytes(GOOD)
        rule = fs.disk.add("write", match="checkpoint 2")
        assert voile("checkpoint", overlay.point) == (0, "")
        assert rule.hits
        rule.remove()


def test_a_file_system_that_was_shut_down(fs, layers):
    """Nothing can be made on it any more; and only mounting it anew would help."""
    use(layers)
    holders.wait(layers, int(holders.read(layers)["holder"]))
    fd = os.open(fs.point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", 2))
    except OSError as exc:
        assert exc.errno == errno.ENOTTY
        pytest.skip(f"{fs.kind} has no FS_IOC_SHUTDOWN")
    finally:
        os.close(fd)
    overlay = VoileOverlay(layers)
    with pytest.raises((VoileError, OSError)):
        overlay.mount(HELD)
    overlay.close()


@pytest.mark.parametrize("before", ["nothing", "synced", "synced, then without proof"])
def test_a_crash_soon_after_the_mount(fs, layers, before):
    """What it leaves must not be the record of before, with which all would be well."""
    auto = "volatile,reuse=auto"
    if before != "nothing":
        with mounted(layers, auto) as overlay:
            (overlay.point / "old").write_bytes(GOOD)
            assert voile("umount", "--sync", overlay.point) == (0, "")
    assert fs.sync() == 0
    with mounted(layers, "volatile" if before.endswith("proof") else auto) as overlay:
        (overlay.point / "file").write_bytes(GOOD)
        with open(overlay.point / "file") as file:
            assert result(os.fsync, file.fileno()) == 0
        power_cut(fs, overlay)
    assert not (layers.upper / "file").exists()
    assert "may be incomplete" in refused(layers, auto)


def power_cut(fs, overlay):
    """The machine dies, nothing more is written, and comes up again."""
    fs.disk.add("write", errno=errno.EIO)
    fs.disk.add("flush", errno=errno.EIO)
    overlay.kill()
    syscalls.umount(overlay.point, syscalls.MNT_DETACH)
    fs.umount()
    fs.disk.heal()
    fs.mount()
