"""syncfs(2) on volatile mounts about which the kernel does not ask: answered truly, and without a trace."""

import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from faults.faultyfs import GOOD
from faults.places import Place, voile
from faults.test_policy import status
from support import syscalls
from support.outcome import result
from support.overlays import voile_missing
from support.wait import wait_until

pytestmark = pytest.mark.skipif(voile_missing() is not None, reason=str(voile_missing()))

PLACES = ("plain", "fusermount3", "userns")


@pytest.fixture(params=PLACES)
def place(request, other_fs, as_user):
    """place(*options): a volatile mount without FUSE_SYNCFS on a failing disk."""

    def make(*options, layers=None):
        if layers is None:
            layers = other_fs.layers()
            layers.base.chmod(0o755)
            (layers.lowers[0] / "lower").write_bytes(GOOD)
        return Place(request.param, as_user, layers, "volatile", *options)

    return make


def helpers(daemon):
    """The canary processes that a daemon has."""
    return [pid for pid in _children(daemon) if _stat(pid)[1] == "voile-canary"]


def _children(pid):
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _stat(entry)[3] == str(pid)]


def _stat(pid):
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ["", "", "", ""]
    number, _, rest = text.partition(" (")
    name, _, rest = rest.rpartition(") ")
    return [number, name, *rest.split()]


def alive(pid):
    return _stat(pid)[2] not in ("", "Z")


def in_threads(calls):
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def syncfs_at(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return result(syscalls.syncfs, fd)
    finally:
        os.close(fd)


def test_the_first_one_after_a_failure_says_so(place, other_fs):
    """Nobody has looked before: the poll is off."""

    def work(point, layers):
        fd = os.open(point, os.O_RDONLY)
        before = [result(syscalls.syncfs, fd) for _ in range(5)]
        quality = status(point)["syncfs"]
        other_fs.lose(errno.ENOSPC, layers.base / "outside")
        os.close(os.open(point, os.O_RDONLY))
        first = result(syscalls.syncfs, fd)
        os.close(fd)
        return quality, before, first, syncfs_at(point)

    assert place("poll=0").run(work) == ("canary", [0] * 5, errno.EIO, errno.EIO)


def test_it_stays_failed_for_everybody(place, other_fs):
    """Each with a descriptor of his own, old or new: see honest-sync.md for one that is shared."""

    def work(point, layers):
        (point / "file").write_bytes(GOOD)
        got = []

        def ask(old):
            for _ in range(30):
                got.append(result(syscalls.syncfs, old))
                got.append(syncfs_at(point))
                got.append(syncfs_at(point / "lower"))

        olds = [os.open(point / "file", os.O_RDWR) for _ in range(4)]
        other_fs.lose(errno.EIO, layers.base / "outside")
        in_threads([lambda old=old: ask(old) for old in olds])
        for old in olds:
            os.close(old)
        return len(got), set(got), status(point)["syncfs"]

    assert place().run(work) == (360, {errno.EIO}, "canary")


def waits_for_the_daemon(helper):
    """Whether a thread of it waits for an answer: it could not be frozen after the daemon."""
    tasks = Path(f"/proc/{helper}/task")
    return any("request_wait" in (task / "wchan").read_text() for task in tasks.iterdir())


@pytest.mark.parametrize("opens", [True, False])
def test_at_rest(other_fs, as_user, opens):
    """Idle mounts do not stand in the way of a suspend. Who opens something is told the truth at once.

    Only root can see what the helper waits for.
    """
    layers = other_fs.layers()
    (layers.lowers[0] / "lower").write_bytes(GOOD)

    def work(point, layers):
        daemon = status(point)["pid"]
        (helper,) = helpers(daemon)
        fd = os.open(point, os.O_RDONLY)
        active = waits_for_the_daemon(helper)
        wait_until(lambda: not waits_for_the_daemon(helper), "it does not rest")
        other_fs.lose(errno.EIO, layers.base / "outside")
        if opens:
            os.close(os.open(point / "lower", os.O_RDONLY))
        first = result(syscalls.syncfs, fd)
        wait_until(lambda: waits_for_the_daemon(helper), "it rests")
        os.close(os.open(point, os.O_RDONLY))  # returns when the traps are armed
        second = result(syscalls.syncfs, fd)
        os.close(fd)
        return active, first if opens else errno.EIO, second, syncfs_at(point), status(point)["syncfs"]

    expected = (True, errno.EIO, errno.EIO, errno.EIO, "canary")
    assert Place("plain", as_user, layers, "volatile", "poll=0").run(work) == expected


def test_no_false_alarm(place):
    def work(point, layers):
        got = set()

        def ask():
            for number in range(20):
                (point / f"file{number}").write_bytes(GOOD)
                got.add(syncfs_at(point))

        in_threads([ask] * 4)
        return got

    assert place().run(work) == {0}


@pytest.mark.parametrize("errors", ["remount-ro", "shutdown"])
def test_with_a_policy(place, other_fs, errors):
    def work(point, layers):
        fd = os.open(point, os.O_RDONLY)
        before = result(syscalls.syncfs, fd)
        other_fs.lose(errno.ENOSPC, layers.base / "outside")
        after = {result(syscalls.syncfs, fd) for _ in range(20)}
        os.close(fd)
        return before, after, status(point)["syncfs"]

    assert place(f"errors={errors}").run(work) == (0, {errno.EIO}, "canary")


def test_it_does_not_show(place):
    def work(point, layers):
        found = sorted(name for _, _, names in os.walk(point) for name in names)
        used = subprocess.run(["du", "-s", "--inodes", point], capture_output=True, text=True).stdout
        of_all = os.statvfs(point)
        return found, used, of_all.f_files, of_all.f_ffree, of_all.f_bfree, sorted(os.listdir(layers.upper))

    with_it = place()
    seen = with_it.run(work)
    shutil.rmtree(with_it.layers.work / "work")
    assert seen[0] == ["lower"]
    assert seen == place("syncfs=none", layers=with_it.layers).run(work)


def test_the_helper_goes_with_the_mount(place):
    def work(point, layers):
        daemon = status(point)["pid"]
        (helper,) = helpers(daemon)
        fd = os.open(point, os.O_RDONLY)
        os.close(fd)
        began = time.monotonic()
        assert voile("umount", point) == (0, "")
        wait_until(lambda: not alive(daemon), "the daemon lives")
        return alive(helper), time.monotonic() - began < 5

    assert place().run(work) == (False, True)


def test_lazy_unmount_ends_it(place):
    def work(point, layers):
        daemon = status(point)["pid"]
        (helper,) = helpers(daemon)
        assert voile("umount", "--lazy", point)[0] == 0
        wait_until(lambda: not alive(daemon) and not alive(helper), "somebody lives")

    place().run(work)


def test_the_daemon_killed(place):
    def work(point, layers):
        daemon = status(point)["pid"]
        (helper,) = helpers(daemon)
        fd = os.open(point, os.O_RDONLY)
        os.kill(daemon, signal.SIGKILL)
        wait_until(lambda: not alive(daemon) and not alive(helper), "somebody lives")
        os.close(fd)

    place().run(work)


def test_all_killed_at_once(place):
    def work(point, layers):
        daemon = status(point)["pid"]
        (helper,) = helpers(daemon)
        os.kill(helper, signal.SIGSTOP)
        asker = subprocess.Popen(["sync", "-f", point], stderr=subprocess.DEVNULL)
        os.kill(daemon, signal.SIGKILL)
        os.kill(helper, signal.SIGKILL)
        wait_until(lambda: not alive(daemon) and not alive(helper), "somebody lives")
        asker.wait(10)

    place().run(work)


def test_forced_unmount(other_fs, as_user):
    def work(point, layers):
        daemon = status(point)["pid"]
        (helper,) = helpers(daemon)
        subprocess.run(["umount", "-i", "-f", point], check=True)
        wait_until(lambda: not alive(daemon) and not alive(helper), "somebody lives")

    Place("plain", as_user, other_fs.layers(), "volatile").run(work)


def test_the_helper_killed(place, other_fs):
    """Nobody waits for it, the status says so, and then there is another one."""

    def work(point, layers):
        daemon = status(point)["pid"]
        (helper,) = helpers(daemon)
        os.kill(helper, signal.SIGKILL)
        wait_until(lambda: not alive(helper), "the helper lives")
        wait_until(lambda: status(point)["syncfs"] == "none", "the daemon has not noticed")
        between = syncfs_at(point)
        wait_until(lambda: status(point)["syncfs"] == "canary", "there is no other one")
        healthy = syncfs_at(point)
        other_fs.lose(errno.EIO, layers.base / "outside")
        return between, healthy, syncfs_at(point), len(helpers(daemon))

    assert place("poll=0").run(work) == (0, 0, errno.EIO, 1)


def test_requests_while_there_is_a_new_helper(place):
    """None is lost when the daemon starts another one in between."""

    def work(point, layers):
        (helper,) = helpers(status(point)["pid"])
        os.kill(helper, signal.SIGKILL)
        number = 0
        while number < 2000 or status(point)["syncfs"] != "canary":
            (point / "file").write_bytes(GOOD)
            assert not (point / f"none{number}").exists()
            number += 1
        return (point / "file").read_bytes() == GOOD

    assert place().run(work)


def test_read_only_and_back(other_fs, as_user):
    """What the helper has open for writing is not in the way."""

    def work(point, layers):
        (point / "file").write_bytes(GOOD)
        got = [voile("mount", "-o", "remount,ro", point), status(point)["syncfs"], syncfs_at(point)]
        got += [voile("mount", "-o", "remount,rw", point), status(point)["syncfs"], syncfs_at(point)]
        fd = os.open(point / "file", os.O_RDWR)
        got += [voile("mount", "-o", "remount,ro", point)[0], status(point)["syncfs"]]
        os.close(fd)
        other_fs.lose(errno.EIO, layers.base / "outside")
        return [*got, syncfs_at(point)]

    good = (0, "")
    expected = [good, "none", 0, good, "canary", 0, 32, "canary", errno.EIO]
    assert Place("plain", as_user, other_fs.layers(), "volatile").run(work) == expected


def test_the_helper_stopped(place):
    """Nobody waits for it longer than a moment; it is as good as new when it goes on."""

    def work(point, layers):
        (helper,) = helpers(status(point)["pid"])
        os.kill(helper, signal.SIGSTOP)
        began = time.monotonic()
        answers = {syncfs_at(point) for _ in range(3)}
        took = time.monotonic() - began
        said = status(point)["syncfs"]
        os.kill(helper, signal.SIGCONT)
        wait_until(lambda: status(point)["syncfs"] == "canary", "it has not caught up")
        return answers, took < 5, said, syncfs_at(point)

    assert place().run(work) == ({0}, True, "none", 0)


def test_no_canary_where_none_is_needed(other_fs, as_user):
    layers = other_fs.layers()

    def work(point, layers):
        state = status(point)
        return state["syncfs"], helpers(state["pid"])

    assert Place("plain", as_user, layers).run(work) == ("none", [])
    assert Place("plain", as_user, layers, "volatile,ro").run(work) == ("none", [])
    assert Place("fuseblk", as_user, layers, "volatile").run(work) == ("exact", [])
