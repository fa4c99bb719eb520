"""Where the daemon's messages go."""

import os
import socket
import traceback

from voile.server.log import Log


def test_a_traceback_goes_to_the_system_log_line_by_line(tmp_path):
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(5)
        try:
            raise KeyError("no such node")
        except KeyError as exc:
            traceback.print_exception(exc, file=Log(syslog=path))
        first = listener.recv(2000)
        assert first == b"<27>voile[%d]: Traceback (most recent call last):" % os.getpid()
        while not (record := listener.recv(2000)).endswith(b": KeyError: 'no such node'"):
            assert record.startswith(b"<27>voile[")


def test_without_a_listener_the_kernel_log(tmp_path):
    kernel = tmp_path / "kmsg"
    kernel.touch()
    log = Log(syslog=str(tmp_path / "missing"), kernel=str(kernel))
    print("one\nt\udcffwo", file=log)
    log.write("no newline")
    assert kernel.read_bytes().count(b"\n") == 2
    log.flush()
    lines = kernel.read_bytes().splitlines()
    assert [line.partition(b": ")[2] for line in lines] == [b"one", rb"t\udcffwo", b"no newline"]


def test_long_lines_are_cut_and_no_place_is_no_error(tmp_path):
    kernel = tmp_path / "kmsg"
    kernel.touch()
    Log(syslog=str(tmp_path / "missing"), kernel=str(kernel)).write("x" * 5000 + "\n")
    assert len(kernel.read_bytes()) < 1000
    Log(syslog=str(tmp_path / "missing"), kernel=str(tmp_path / "missing")).write("said to nobody\n")
