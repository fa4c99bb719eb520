"""Questions through an ioctl: both sides, without a mount."""

import errno
import fcntl
import json

import pytest

from voile.server import control
from voile.server.control import COMMAND, SIZE, Control


class State:
    def __init__(self, size):
        self.text = "x" * size
        self.asked = 0

    def status(self):
        self.asked += 1
        return {"text": self.text, "asked": self.asked}


@pytest.fixture
def connect(monkeypatch):
    """connect(daemon): ioctls go to it."""

    def make(daemon, uid=0):
        def ioctl(fd, command, buffer):
            assert len(buffer) == SIZE
            buffer[:] = daemon.handle(uid, command, bytes(buffer))
            return 0

        monkeypatch.setattr(fcntl, "ioctl", ioctl)

    return make


def test_size_fits_into_the_command():
    assert COMMAND >> 16 & 0x3FFF == SIZE
    assert COMMAND >> 30 == 3


@pytest.mark.parametrize("size", [0, 100, 8100, 8128, 8200, 50_000, 3_000_000])
def test_answers_of_any_length(connect, size):
    state = State(size)
    daemon = Control(state, 1000)
    connect(daemon)
    assert json.loads(control.ask(3)) == {"text": "x" * size, "asked": 1}
    assert daemon._answers == {}


def test_two_askers_in_turns(connect):
    daemon = Control(State(30_000), 1000)
    first = bytearray(control._HEAD.pack(b"voil", 1, control.STATUS, 0, 0).ljust(SIZE, b"\0"))
    reply = daemon.handle(0, COMMAND, bytes(first))
    connect(daemon)
    assert json.loads(control.ask(3))["asked"] == 2
    head = control._HEAD.unpack_from(reply)
    second = control._HEAD.pack(b"voil", 1, control.STATUS, head[3], head[2]).ljust(SIZE, b"\0")
    assert control._HEAD.unpack_from(daemon.handle(0, COMMAND, second))[3] == head[3]


def test_forgotten_answer_is_asked_anew(connect):
    daemon = Control(State(30_000), 1000)
    real = daemon.handle
    calls = []

    def forgetful(uid, command, data):
        calls.append(1)
        if len(calls) == 2:
            daemon._answers.clear()
        return real(uid, command, data)

    class Forgetful:
        handle = staticmethod(forgetful)

    connect(Forgetful)
    assert json.loads(control.ask(3))["asked"] == 2


def test_abandoned_answers_are_bounded():
    daemon = Control(State(30_000), 1000)
    question = control._HEAD.pack(b"voil", 1, control.STATUS, 0, 0).ljust(SIZE, b"\0")
    for _ in range(100):
        daemon.handle(0, COMMAND, question)
    assert len(daemon._answers) <= 8


def refused(daemon, *arguments):
    with pytest.raises(OSError) as caught:
        daemon.handle(*arguments)
    return caught.value.errno


def test_refusals():
    daemon = Control(State(1), 1000)
    good = control._HEAD.pack(b"voil", 1, control.STATUS, 0, 0).ljust(SIZE, b"\0")
    assert refused(daemon, 0, 0x5401, b"") == errno.ENOTTY
    assert refused(daemon, 0, COMMAND, good[:-1]) == errno.ENOTTY
    assert refused(daemon, 1001, COMMAND, good) == errno.EPERM
    assert refused(daemon, 0, COMMAND, b"nope" + good[4:]) == errno.EINVAL
    stale = control._HEAD.pack(b"voil", 1, control.STATUS, 7, 100).ljust(SIZE, b"\0")
    assert refused(daemon, 0, COMMAND, stale) == errno.ESTALE
    newer = control._HEAD.pack(b"voil", 1, 99, 0, 0).ljust(SIZE, b"\0")
    assert refused(daemon, 0, COMMAND, newer) == errno.EINVAL
    assert daemon.handle(1000, COMMAND, good)


def test_version(connect):
    from voile import __version__

    connect(Control(State(1), 0))
    assert control.ask(3, control.VERSION) == __version__.encode()
