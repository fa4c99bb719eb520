"""Mounting volatile: the error nobody has seen, and the mark of a mount that was never synced."""

import errno
import os
import stat

import pytest

from faults.conftest import umount_after_loss
from faults.faultyfs import GOOD
from support.overlays import KernelOverlay, VoileError, VoileOverlay

MOUNT_FAILURE = 32


def refused(overlay, *options):
    """The text of a refused mount: voile's message, or the name of the kernel's errno."""
    try:
        overlay.mount(*options)
    except VoileError as exc:
        status, text = exc.args
        assert status == MOUNT_FAILURE, (status, text)
        assert len(text.splitlines()) == 1, text
        return text
    except OSError as exc:
        return errno.errorcode[exc.errno]
    overlay.umount()
    pytest.fail("it was mounted")


def test_unseen_error(fs, overlay, overlay_kind):
    layers = fs.layers()
    fs.lose(errno.EIO)
    text = refused(overlay(layers), "volatile")
    if overlay_kind is VoileOverlay:
        assert "sync -f" in text
        assert str(fs.point) in text
        assert fs.disk.device in text
    else:
        assert text == "EIO"
    # Refusing has not marked it as seen: the one who asks is told.
    assert fs.sync() == errno.EIO


def test_unseen_error_leaves_nothing_behind(fs, overlay):
    layers = fs.layers()
    fs.lose(errno.EIO)
    before = sorted(layers.base.rglob("*"))
    refused(overlay(layers), "volatile")
    # The kernel makes work/work before it looks.
    left = [p for p in sorted(layers.base.rglob("*")) if p not in before]
    assert [p for p in left if p != layers.work / "work"] == []


def test_the_command_of_the_message_clears_it(fs, overlay):
    import shlex
    import subprocess

    layers = fs.layers()
    fs.lose(errno.EIO)
    mounted = overlay(layers)
    text = refused(mounted, "volatile")
    command = f"sync -f {shlex.quote(str(fs.point))}"
    assert text == "EIO" or command in text
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert said.returncode != 0  # it reports the error
    again = overlay(layers)
    again.mount("volatile")
    (again.point / "file").write_bytes(GOOD)
    with open(again.point / "file") as f:
        os.fsync(f.fileno())
    again.umount()


def test_not_volatile_mounts_with_an_unseen_error(fs, overlay):
    fs.lose(errno.EIO)
    mounted = overlay(fs.layers())
    mounted.mount()
    (mounted.point / "file").write_bytes(GOOD)
    # Somebody is told: at this unmount, or (kernel) at the next syncfs.
    told = umount_after_loss(mounted)
    assert told or fs.sync() == errno.EIO


def test_readonly_mount_with_an_unseen_error(fs, overlay):
    """Without an upper directory there is nothing to lose."""
    fs.lose(errno.EIO)
    layers = fs.layers(lowers=2, upper=False)
    mounted = overlay(layers)
    mounted.mount()
    assert os.listdir(mounted.point) == []
    mounted.umount()


def marks(work):
    """The tree below work/work: {path: (type, mode)}."""
    found = {}
    for path in (work / "work").rglob("*"):
        st = path.lstat()
        found[str(path.relative_to(work))] = (stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode))
    return found


def test_mark_is_the_kernels(fs):
    found = []
    for kind in KernelOverlay, VoileOverlay:
        mounted = kind(fs.layers())
        try:
            mounted.mount("volatile")
            running = marks(mounted.layers.work)
            mounted.umount()
        finally:
            mounted.close()
        found.append((running, marks(mounted.layers.work)))
    assert found[0] == found[1]
    assert found[0][0]["work/incompat/volatile"][0] == stat.S_IFDIR


@pytest.mark.parametrize("option", ["volatile", ""])
@pytest.mark.parametrize("second", [KernelOverlay, VoileOverlay], ids=lambda c: f"then-{c.name}")
def test_mark_refuses_the_next_mount(fs, overlay, second, option):
    layers = fs.layers()
    mounted = overlay(layers)
    mounted.mount("volatile")
    (mounted.point / "file").write_bytes(GOOD)
    mounted.umount()
    again = second(layers)
    try:
        text = refused(again, option)
    finally:
        again.close()
    if second is VoileOverlay:
        assert "volatile" in text
        assert str(layers.work / "work/incompat/volatile") in text
    else:
        assert text == "EINVAL"
    assert marks(layers.work)["work/incompat/volatile"][0] == stat.S_IFDIR, "the refusal has removed it"
    assert (layers.upper / "file").read_bytes() == GOOD


def test_removing_the_mark_mounts_again(fs, overlay):
    layers = fs.layers()
    mounted = overlay(layers)
    mounted.mount("volatile")
    (mounted.point / "file").write_bytes(GOOD)
    mounted.umount()
    # What containers/storage does before every mount.
    volatile = layers.work / "work/incompat/volatile"
    if (volatile / "dirty").exists():
        (volatile / "dirty").unlink()
    volatile.rmdir()
    again = overlay(layers)
    again.mount("volatile")
    assert (again.point / "file").read_bytes() == GOOD
    again.umount()


def test_unknown_incompatible_feature(fs, overlay, overlay_kind):
    layers = fs.layers()
    (layers.work / "work/incompat/somethingnew").mkdir(parents=True)
    text = refused(overlay(layers))
    if overlay_kind is VoileOverlay:
        assert "somethingnew" in text
    else:
        assert text == "EINVAL"


def test_not_volatile_leaves_no_mark(fs, overlay):
    layers = fs.layers()
    for _ in range(2):
        mounted = overlay(layers)
        mounted.mount()
        assert marks(layers.work) == {}
        mounted.umount()
