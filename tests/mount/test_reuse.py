"""reuse=auto and hold=on: when a volatile upper may be used again, and in which words it is refused.

Errors of the disk in between: tests/faults/test_reuse.py.
"""

import contextlib
import mmap
import os
import shutil
import signal
import subprocess
import time

import pytest

from faults.places import Place, voile
from support import holders, mountinfo, syscalls
from support.overlays import ROOT, KernelOverlay, VoileError, VoileOverlay, voile_missing
from support.reuse import HELD, refused
from support.users import USER
from support.wait import wait_until
from voile.overlay import recover as overlay_recover
from voile.server import control
from voile.volatile import record

pytestmark = pytest.mark.skipif(voile_missing() is not None, reason=str(voile_missing()))

AUTO = "volatile,reuse=auto"
#: What a mount without a holder is refused for, where there is writeback.
UNPROVEN = "nobody has held the error probe (option hold=on)"


@pytest.fixture
def made(layers):
    """layers(…), and no holder of theirs is left at the end."""
    all_of_them = []

    def make(**what):
        all_of_them.append(layers(**what))
        return all_of_them[-1]

    yield make
    for each in all_of_them:
        holders.end(each)


@pytest.fixture
def used(made):
    """used(options, **layers) -> layers with a file in the upper, mounted once with the options."""

    def use(options, **what):
        directories = made(**what)
        cycle(directories, options)
        return directories

    return use


def cycle(layers, *options):
    """Mount, add a file, unmount."""
    overlay = VoileOverlay(layers)
    overlay.mount(*options)
    try:
        name = f"file{len(os.listdir(overlay.point))}"
        (overlay.point / name).write_text(name)
        overlay.umount()
    finally:
        overlay.close()


def warned(layers, options="volatile"):
    """What a mount says that works."""
    overlay = VoileOverlay(layers)
    try:
        overlay.mount(options)
        said = overlay.output()
        syscalls.umount(overlay.point)
        assert overlay.process.wait(10) == 0
        overlay.process = None
    finally:
        overlay.close()
    return said


def unmark(layers):
    """As a container engine does before each mount."""
    shutil.rmtree(layers.work / "work/incompat/volatile")


def recover(layers, *words):
    return voile("recover", layers.upper, "--work", layers.work, *words)


# Allowed.


@pytest.mark.parametrize("on", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_held(made, voile_overlay, on):
    """Mount after mount, on one probe."""
    layers = made(on=on)
    probes = set()
    for number in range(3):
        overlay = voile_overlay(layers)
        overlay.mount(HELD, "fuseblk=off" if number == 1 else "")
        status = control.status(os.fsencode(overlay.point))
        assert (status["reused"], status["hold"], status["state"]) == (number > 0, True, "ok")
        holders.wait(layers)
        assert sorted(os.listdir(overlay.point)) == [f"file{n}" for n in range(number)]
        (overlay.point / f"file{number}").write_text("x")
        overlay.umount()
        found = holders.read(layers)
        assert found["state"] == "unmounted"
        holders.wait(layers, int(found["holder"]))
        probes.add(found["probe_mount"])
        assert (layers.work / "work/incompat/volatile").exists()
    assert len(probes) == 1


def test_memory_needs_no_holder(used):
    layers = used(AUTO, on="tmpfs")
    cycle(layers, AUTO)
    assert sorted(os.listdir(layers.upper)) == ["file0", "file1"]
    holders.wait(layers)


@pytest.mark.parametrize("marked", [True, False])
def test_the_record_counts_with_and_without_the_marker(used, marked):
    layers = used(HELD)
    if not marked:
        unmark(layers)
    cycle(layers, HELD)
    holders.end(layers)
    if not marked:
        unmark(layers)
    assert "held the error probe, is not there any more" in refused(layers)


def test_after_umount_sync_even_after_a_restart(used):
    layers = used(HELD)
    overlay = VoileOverlay(layers)
    overlay.mount(HELD)
    assert voile("umount", "--sync", overlay.point) == (0, "")
    overlay.process.wait(10)
    assert holders.read(layers)["state"] == "synced"
    holders.wait(layers)
    holders.edit(layers, boot="another", mount=1, device="1:1")
    cycle(layers, AUTO)


def test_the_superblock_lives_on_with_its_holder(made, filesystems, tmp_path):
    """Unmounted and mounted again, it is the same one as long as the probe is held, and so provably whole."""
    point = filesystems.make("ext4", filesystems.base / f"again-{os.getpid()}-{time.time_ns()}")
    source = mountinfo.at(point).source
    layers = type(made())(point / "layers")
    try:
        cycle(layers, HELD)
        syscalls.umount(point)
        syscalls.mount(source, point, "ext4", 0, "")
        cycle(layers, HELD)
        holders.end(layers)
        said = refused(layers)
        assert "held the error probe, is not there any more" in said
    finally:
        holders.end(layers)
        syscalls.umount(point)


# Refused.


def test_without_a_holder_it_is_refused(used):
    layers = used(AUTO)
    said = refused(layers)
    assert said.startswith(f"voile: {layers.upper}: cannot be used again, it may be incomplete: ")
    assert UNPROVEN in said
    paths = f"{layers.upper} --work {layers.work}"
    assert f"'voile discard {paths}'" in said
    assert f"'voile recover {paths} --accept-loss'" in said
    assert (layers.work / "work/incompat/volatile").exists()


def test_another_boot(used):
    for on in ("ext4", "tmpfs"):
        layers = used(HELD, on=on)
        holders.edit(layers, boot="4a2d826c-7d9b-4ad6-9ec3-7f92fe28bc81")
        assert "the machine has been restarted since that mount" in refused(layers)


def test_the_daemon_was_killed(made):
    layers = made()
    overlay = VoileOverlay(layers)
    overlay.mount(HELD)
    (overlay.point / "file").write_text("x")
    overlay.kill()
    overlay.close()
    assert holders.read(layers)["state"] == "mounted"
    assert "has not ended by an unmount" in refused(layers)


def test_a_detached_mount_has_not_ended(made):
    """Its end, later, does not touch the record of the mount that has taken the directories over."""
    layers = made()
    first, second = VoileOverlay(layers), VoileOverlay(layers)
    first.mount(HELD)
    fd = os.open(first.point / "file", os.O_RDWR | os.O_CREAT)
    syscalls.umount(first.point, syscalls.MNT_DETACH)
    assert "has not ended by an unmount, or not yet" in refused(layers)
    unmark(layers)
    second.mount("volatile")
    assert second.output().count("taking it over") == 2
    mine = holders.read(layers)["id"]
    os.close(fd)
    assert first.process.wait(10) == 0
    first.process = None
    assert (holders.read(layers)["id"], holders.read(layers)["state"]) == (mine, "mounted")
    syscalls.umount(second.point)
    assert second.process.wait(10) == 0
    second.process = None
    assert (holders.read(layers)["id"], holders.read(layers)["state"]) == (mine, "unmounted")
    assert "in doubt" in refused(layers)


def test_it_was_shut_down(made):
    layers = made()
    overlay = VoileOverlay(layers)
    overlay.mount(HELD)
    assert voile("shutdown", overlay.point) == (0, "")
    overlay.umount()
    assert "was shut down" in refused(layers)
    holders.wait(layers)


def test_the_holder_was_killed(used):
    layers = used(HELD)
    pid = int(holders.read(layers)["holder"])
    holders.wait(layers, pid)
    holders.end(layers)
    assert f"the process {pid}, which held the error probe, is not there any more" in refused(layers)


@pytest.mark.parametrize("damage", ["empty", "torn", "zeros", "older", "fifo", "directory"])
def test_a_damaged_record(used, damage):
    layers = used(HELD)
    path = layers.work / "voile.volatile"
    contents = path.read_bytes()
    new = {"empty": b"", "torn": contents[:-10], "zeros": bytes(len(contents))}
    path.unlink()
    if damage == "older":
        path.write_bytes(contents.replace(b"unmounted", b"mounted"))
    elif damage == "fifo":
        os.mkfifo(path)
    elif damage == "directory":
        path.mkdir()
    else:
        path.write_bytes(new[damage])
    why = "it is no regular file" if damage in ("fifo", "directory") else "it is damaged"
    assert why in refused(layers)
    unmark(layers)
    assert why in refused(layers)
    said = warned(layers)
    assert said.count("\n") == 1 and why in said
    assert "in doubt" in refused(layers)


def test_no_record(used):
    """The kernel, say, has made the last mount."""
    layers = used("volatile")
    (layers.work / "voile.volatile").unlink()
    assert "there is no record of the last volatile mount" in refused(layers)
    unmark(layers)
    cycle(layers, HELD)


def test_a_copy(used, made):
    """The record of a copied pair of directories is of the original."""
    layers = used(HELD)
    copy = made()
    for name in ("up", "wk"):
        shutil.rmtree(copy.base / name)
        subprocess.run(["cp", "-a", layers.base / name, copy.base / name], check=True)
    assert "the record is of other directories" in refused(copy)
    cycle(layers, HELD)


def test_another_tmpfs(made, filesystems):
    """The same contents, the same paths, perhaps even the same device number: another mount."""
    point = filesystems.base / "instance"
    point.mkdir()
    syscalls.mount("voile-test", point, "tmpfs", 0, "")
    layers = type(made())(point / "layers")
    cycle(layers, AUTO)
    cycle(layers, AUTO)
    syscalls.mount(point, point, None, syscalls.MS_BIND)
    assert "the directories are reached through another mount" in refused(layers, AUTO)
    syscalls.umount(point)
    cycle(layers, AUTO)
    syscalls.umount(point)
    point.rmdir()


def test_another_image_with_the_same_uuid(made, filesystems):
    point = filesystems.make("ext4", filesystems.base / f"image-{time.time_ns()}", size=64 << 20)
    image = filesystems.base / f"{point.name}.img"
    layers = type(made())(point / "layers")
    cycle(layers, HELD)
    subprocess.run(["sync", "-f", point], check=True)
    subprocess.run(["cp", "--sparse=always", image, f"{image}.copy"], check=True)
    syscalls.umount(point)
    subprocess.run(["mount", "-o", "loop", f"{image}.copy", point], check=True)
    try:
        assert "the file system is another one now" in refused(layers)
    finally:
        holders.end(layers)
        syscalls.umount(point)


def aborted(point):
    """umount -f -l: unlike an unmount it throws away what the kernel has not written yet."""
    syscalls.umount(point, 1 | syscalls.MNT_DETACH)


@pytest.mark.parametrize("options", ["", "fuseblk=off"])
@pytest.mark.parametrize("mapped", [True, False])
def test_an_aborted_connection(made, options, mapped):
    """A page of a shared mapping is lost with it: that is not unmounted."""
    layers = made()
    overlay = VoileOverlay(layers)
    overlay.mount(HELD, options, "passthrough=off")
    fd = os.open(overlay.point / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 4096)
    if mapped:
        page = mmap.mmap(fd, 4096)
        page[0] = 1
        aborted(overlay.point)
        overlay.process.wait(10)
        page.close()
        with contextlib.suppress(OSError):
            os.close(fd)
    else:
        os.close(fd)
        wait_until(lambda: not open_files(overlay), "the daemon was not told of the close")
        aborted(overlay.point)
        overlay.process.wait(10)
    overlay.process = None
    overlay.close()
    state = holders.read(layers)["state"]
    # Aborted, a fuseblk mount says no goodbye, either; with nothing open, that makes no difference.
    assert state == ("mounted" if mapped else "unmounted")
    if mapped:
        assert "has not ended by an unmount" in refused(layers)


def open_files(overlay):
    links = (os.path.join(f"/proc/{overlay.pid}/fd", name) for name in os.listdir(f"/proc/{overlay.pid}/fd"))
    return [link for link in links if os.readlink(link).endswith("/file")]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("hook", ["crash.{}", "fail.{}.28"])
@pytest.mark.parametrize("options", ["", "fuseblk=off"])
def test_every_step_of_the_end(made, hooked_overlay, options, hook):
    """The daemon dies, or a change fails, at each of them: whole and known to be so, or refused."""
    ends = []
    for step in range(1, 20):
        layers = made()
        overlay = hooked_overlay(layers)
        overlay.mount(HELD, options)
        (overlay.point / "file").write_text("x")
        overlay.hook(hook.format(step))
        syscalls.umount(overlay.point)
        ended = overlay.process.wait(10)
        overlay.process = None
        overlay.close()
        found = holders.read(layers)
        said = found["state"] == "unmounted"
        whole = said and ended == 0
        holders.wait(layers, *([int(found["holder"])] if whole else []))
        if whole:
            cycle(layers, HELD)
            holders.end(layers)
        else:
            assert ("is not there any more" if said else "has not ended by an unmount") in refused(layers)
        ends.append((ended, said))
        if ends[-3:] == [(0, True)] * 3:
            break
    crash = 99 if "crash" in hook else 0
    assert (crash, False) in ends, "it has not been tried"
    assert ends[-1] == (0, True)
    assert crash == 0 or (crash, True) in ends


# Spoofing. Whoever may write to the work directory may write to the upper as well; these are about others.


def test_a_record_that_somebody_else_has_written(used):
    layers = used(HELD)
    os.chown(layers.work / "voile.volatile", USER, USER)
    assert "somebody else has written it" in refused(layers)
    os.chown(layers.work / "voile.volatile", 0, 0)
    os.chmod(layers.work / "voile.volatile", 0o620)
    assert "somebody else has written it" in refused(layers)


def pretend(fd, uid=0):
    """A process that has the descriptor where a holder has its probe."""
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(fd, 5)
            os.setresuid(uid, uid, uid)
            signal.pause()
        finally:
            os._exit(1)
    return pid


def test_a_process_that_only_pretends(used, made):
    """The probe is known by its mount's number, which the kernel gives only once."""
    layers, other = used(HELD), used(HELD, on="tmpfs")
    wrong_probe = os.open(f"/proc/{holders.read(other)['holder']}/fd/5", os.O_RDONLY)
    holders.end(layers)
    for fd in (wrong_probe, os.open(layers.work, os.O_RDONLY)):
        pid = pretend(fd)
        time.sleep(0.1)
        holders.edit(layers, holder=pid)
        assert "held the error probe, is not there any more" in refused(layers)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(fd)


def test_a_process_of_another_user(used):
    """It has the genuine probe, and could do no harm; but there is no reason to look at it."""
    layers = used(HELD)
    fd = os.open(f"/proc/{holders.read(layers)['holder']}/fd/5", os.O_RDONLY)
    pid = pretend(fd, USER)
    os.close(fd)
    holders.end(layers)
    time.sleep(0.1)
    holders.edit(layers, holder=pid)
    said = refused(layers) if os.stat(f"/proc/{pid}").st_uid == USER else None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if said is None:
        pytest.skip("a process that has changed its user belongs to root in /proc")
    assert "is not there any more" in said


# Without reuse=auto all is as before, but for what has to be said.


def test_the_default_is_the_marker(used):
    layers = used(HELD)
    assert "remove" in refused(layers, "volatile")
    unmark(layers)
    assert warned(layers) == ""
    holders.wait(layers)  # it is ended by the next mount, whatever that is


def test_the_default_does_not_clear_a_doubt(used):
    layers = used(HELD)
    unmark(layers)
    cycle(layers, "volatile,hold=on")
    assert "in doubt before that mount already" in refused(layers)
    unmark(layers)
    cycle(layers, "")  # not volatile, and synced at its end
    assert "in doubt" in refused(layers)
    assert recover(layers, "--accept-loss")[0] == 0
    cycle(layers, HELD)
    cycle(layers, HELD)


@pytest.mark.parametrize("options", ["volatile", "", "ro"])
def test_what_a_restart_may_have_taken_is_said(used, options):
    """A container engine has removed the marker."""
    layers = used("volatile")
    unmark(layers)
    holders.edit(layers, boot="another")
    said = warned(layers, options)
    assert said.count("\n") == 1
    assert "was never synced, and the machine has been restarted since: files in the upper" in said


def test_a_mount_that_fails_changes_nothing(used, made):
    layers = used(HELD + ",index=on")
    before = holders.read(layers)
    holders.wait(layers, int(before["holder"]))
    other = made()
    overlay = VoileOverlay(layers)
    with pytest.raises(VoileError):
        overlay.mount(HELD, f"index=on,lowerdir={other.lowers[0]}")
    overlay.close()
    assert holders.read(layers) == before
    holders.wait(layers, int(before["holder"]))
    cycle(layers, HELD + ",index=on")


def test_the_kernel_does_not_care(used, voile_overlay):
    layers = used(HELD)
    unmark(layers)
    before = (layers.work / "voile.volatile").read_bytes()
    overlay = KernelOverlay(layers)
    overlay.mount()
    assert (overlay.point / "file0").read_text() == "file0"
    overlay.umount()
    assert (layers.work / "voile.volatile").read_bytes() == before
    done = subprocess.run([ROOT / "voile", "check", layers.upper, "--work", layers.work], capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"")


# The holder.


def test_the_holder(used):
    layers = used(HELD)
    pid = int(holders.read(layers)["holder"])
    holders.wait(layers, pid)
    fds = {int(name): os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
    assert [fd for fd, target in fds.items() if not target.startswith(("pipe:", "/dev/null"))] == [5]
    assert os.getsid(pid) == pid
    with open(f"/proc/{pid}/environ", "rb") as f:
        assert not f.read().replace(b"\0", b"").replace(b"PWD=/", b"").replace(b"_=/bin/sh", b"")
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    with open(f"/proc/{pid}/smaps_rollup") as f:
        private = sum(int(line.split()[1]) for line in f if line.startswith("Private"))
    assert private < 1000


def test_descriptors_of_the_caller_do_not_leak(made):
    layers = made()
    leak = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leak, True)
    process = subprocess.Popen(
        [ROOT / "voile", "mount", "-f", "-o", f"{layers.options()},{HELD}", layers.point],
        cwd=layers.base,
        close_fds=False,
    )
    os.close(leak)
    wait_until(lambda: mountinfo.at(layers.point), "not mounted")
    assert voile("umount", layers.point) == (0, "")
    process.wait(10)
    pid = int(holders.read(layers)["holder"])
    assert "/etc/passwd" not in {os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")}


# An ordinary user.


@pytest.mark.parametrize("name", ["fusermount3", "userns"])
def test_as_an_ordinary_user(made, as_user, name):
    layers = made()
    place = Place(name, as_user, layers, HELD)
    words = place.options, layers.point

    def work(point, layers):
        (point / "file").write_text("x")
        first = voile("umount", point)
        holders.wait(layers, int(holders.read(layers)["holder"]))
        second = voile("mount", "-o", *words)
        assert second == (0, ""), second
        reused = control.status(os.fsencode(point))["reused"]
        third = voile("umount", point)
        holders.end(layers)
        last = voile("mount", "-o", *words)
        accepted = recover(layers, "--accept-loss")
        return first, second, reused, third, last, accepted[0], voile("mount", "-o", *words)

    *good, last, accepted, again = place.run(work)
    assert (accepted, again) == (0, (0, ""))
    assert good == [(0, ""), (0, ""), True, (0, "")]
    assert last[0] == 32 and "is not there any more" in last[1]


# voile recover, voile discard


def test_recover_accepts(used):
    layers = used("volatile")
    status, said = recover(layers)
    assert status == 74
    assert f"{layers.upper}: at risk: " in said and UNPROVEN in said and "no checkpoint exists" in said
    assert (layers.work / "work/incompat/volatile").exists()
    assert not (layers.work / "voile.accepted").exists()
    status, said = recover(layers, "--accept-loss")
    assert status == 0 and UNPROVEN in said
    assert UNPROVEN in (layers.work / "voile.accepted").read_text()
    assert os.stat(layers.work / "voile.accepted").st_mode & 0o777 == 0o600
    assert not (layers.work / "work/incompat/volatile").exists()
    assert recover(layers)[1].endswith("there is nothing to recover\n")
    cycle(layers, "volatile")


def test_recover_what_is_whole(used):
    layers = used(HELD)
    status, said = recover(layers)
    assert (status, said.endswith(": nothing was lost, and everything is on the disk\n")) == (0, True)
    holders.wait(layers)
    assert holders.read(layers)["checkpoint"] != record.NOTHING
    cycle(layers, AUTO)


def test_recover_tells_of_the_checkpoint(made):
    layers = made()
    overlay = VoileOverlay(layers)
    overlay.mount("volatile")
    (overlay.point / "file").write_text("x")
    assert voile("checkpoint", overlay.point) == (0, "")
    when = control.status(os.fsencode(overlay.point))["checkpoint"]
    assert when == holders.read(layers)["checkpoint"]
    overlay.kill()
    overlay.close()
    holders.edit(layers, boot="another")
    status, said = recover(layers)
    assert (status, f"a checkpoint of {when} exists: what came after is at risk" in said) == (74, True)


def test_recover_and_discard_leave_a_mounted_one_alone(made):
    layers = made()
    overlay = VoileOverlay(layers)
    overlay.mount("volatile")
    (overlay.point / "file").write_text("x")
    for command in ("recover", "discard"):
        status, said = voile(command, layers.upper, "--work", layers.work)
        assert status != 0 and "in use" in said
    assert os.listdir(layers.upper) == ["file"]
    overlay.umount()


def test_recover_what_the_kernel_has_left(made):
    layers = made()
    overlay = KernelOverlay(layers)
    overlay.mount("volatile")
    overlay.umount()
    assert "there is no record" in recover(layers)[1]
    assert recover(layers, "--accept-loss")[0] == 0
    overlay.mount()
    overlay.umount()


def test_discard(used):
    layers = used(HELD)
    os.setxattr(layers.upper, "trusted.overlay.opaque", b"y")
    assert voile("discard", layers.upper, "--work", layers.work) == (0, "")
    assert (os.listdir(layers.upper), os.listdir(layers.work)) == ([], [])
    holders.wait(layers)
    assert not os.listxattr(layers.upper)
    cycle(layers, HELD)


@pytest.mark.parametrize("marked", [True, False])
def test_a_discard_that_ends_in_the_middle(used, monkeypatch, marked):
    """What is half emptied is not mounted, although the probe is still held."""
    layers = used(HELD)
    if not marked:
        unmark(layers)
    leftover = overlay_recover.Leftover(os.fsencode(layers.upper), os.fsencode(layers.work))

    def fail(*_):
        raise InterruptedError

    monkeypatch.setattr(overlay_recover, "_empty", fail)
    with pytest.raises(InterruptedError):
        leftover.empty()
    leftover.close()
    assert "has not ended by an unmount" in refused(layers)
    assert "the last mount was volatile" in refused(layers, "volatile")
    assert voile("discard", layers.upper, "--work", layers.work) == (0, "")
    holders.wait(layers)


def test_root_recovers_what_a_user_has_left(used):
    layers = used("volatile")
    os.chown(layers.work / "voile.volatile", USER, USER)
    assert "somebody else has written it" in recover(layers)[1]
    assert recover(layers, "--accept-loss")[0] == 0
    about = os.stat(layers.work / "voile.volatile")
    assert (about.st_uid, about.st_mode & 0o777) == (USER, 0o600)


def test_discard_takes_only_what_is_known(used):
    layers = used("volatile")
    status, said = voile("discard", layers.lowers[0], "--work", layers.work)
    assert status == 1 and "not known as the upper directory" in said
    (layers.upper / "below").mkdir()
    syscalls.mount(layers.lowers[0], layers.upper / "below", None, syscalls.MS_BIND)
    status, said = voile("discard", layers.upper, "--work", layers.work)
    syscalls.umount(layers.upper / "below")
    assert status == 1 and "something is mounted in it" in said
    assert sorted(os.listdir(layers.upper)) == ["below", "file0"]


def test_run_takes_neither(tmp_path):
    for option in ("hold=on", "reuse=auto"):
        status, said = voile("run", "--lower", tmp_path, "-o", option, "--", "true")
        assert (status, "a sandbox is used once" in said) == (125, True)


def test_no_exact_probe_no_holder(made):
    layers = made()
    status, said = voile("mount", "-o", f"{layers.options()},{HELD},probe=inode", layers.point)
    assert status == 1 and "conflicting options: hold=on and probe=inode" in said
