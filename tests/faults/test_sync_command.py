"""`voile sync` and its Python call: 0 or the errno, on every kind of mount and at every privilege."""

import errno
import os

import pytest

from faults.faultdisk import MARKER
from faults.faultyfs import BAD, GOOD
from faults.places import PLACES, Place, voile
from support.overlays import voile_missing
from voile.server import control

pytestmark = pytest.mark.skipif(voile_missing() is not None, reason=str(voile_missing()))
LOST = {number: f"the upper file system has lost data: {os.strerror(number)} ({name})"
        for number, name in ((errno.EIO, "EIO"), (errno.ENOSPC, "ENOSPC"))}  # fmt: skip


@pytest.fixture(params=PLACES)
def place(request, as_user):
    return lambda layers, *options: Place(request.param, as_user, layers, *options)


@pytest.mark.parametrize("number", LOST, ids=errno.errorcode.get)
def test_volatile(fs, place, number):
    layers = fs.layers()

    def work(point, layers):
        (point / "file").write_bytes(GOOD)
        before = [voile("sync", point) for _ in range(2)]
        fs.lose(number, layers.upper / "file")
        return before, [voile("sync", point) for _ in range(2)]

    before, after = place(layers, "volatile").run(work)
    assert before == [(0, "")] * 2
    assert after == [(74, f"voile: {layers.point}: {LOST[number]}\n")] * 2


def test_volatile_syncs_nothing(fs, place):
    def work(point, layers):
        rule = fs.disk.add("write", match=MARKER)
        (point / "file").write_bytes(BAD)
        said = voile("sync", point)
        hits = rule.hits
        rule.remove()
        return said, hits

    assert place(fs.layers(), "volatile").run(work) == ((0, ""), 0)


def test_not_volatile(fs, place):
    """The data is on the disk afterwards; an error since the mount is told to everybody who asks."""

    def work(point, layers):
        (point / "file").write_bytes(GOOD)
        before = fs.disk.stat()
        first = voile("sync", point)
        flushed = fs.disk.stat().flushes > before.flushes
        fs.lose(errno.ENOSPC, layers.upper / "file")
        after = [voile("sync", point) for _ in range(2)]
        return first, flushed, after

    layers = fs.layers()
    first, flushed, after = place(layers).run(work)
    assert (first, flushed) == ((0, ""), True)
    assert after == [(74, f"voile: {layers.point}: {LOST[errno.ENOSPC]}\n")] * 2


def test_not_volatile_finds_what_is_still_dirty(fs, place):
    def work(point, layers):
        rule = fs.disk.fail(errno.EIO)
        path = point / "file"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.pwrite(fd, BAD, 0)
        os.close(fd)
        said = voile("sync", point)
        rule.remove()
        return said

    layers = fs.layers()
    assert place(layers).run(work) == (74, f"voile: {layers.point}: {LOST[errno.EIO]}\n")


def test_python_call(fs, place):
    def work(point, layers):
        (point / "file").write_bytes(GOOD)
        answers = [control.sync(os.fsencode(point))]
        fs.lose(errno.EIO, layers.upper / "file")
        try:
            control.sync(os.fsencode(point))
        except control.LostData as error:
            answers.append(error.errno)
        return answers

    assert place(fs.layers(), "volatile").run(work) == [False, errno.EIO]


def test_somebody_else_may_ask(fs, as_user):
    """What fsync(2) tells everybody is no secret."""
    layers = fs.layers()
    layers.base.chmod(0o755)

    def work(point, layers):
        point_of_all = os.fsencode(point)
        first = as_user(lambda: control.sync(point_of_all))
        fs.lose(errno.EIO)
        return first, as_user(lambda: voile("sync", point)[0]), as_user(lambda: voile("status", point)[0])

    assert Place("fuseblk", as_user, layers, "volatile").run(work) == (False, 74, 1)


def test_read_only(fs, as_user):
    layers = fs.layers()
    assert Place("plain", as_user, layers, "ro").run(lambda point, _: voile("sync", point)) == (0, "")
