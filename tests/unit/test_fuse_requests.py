"""Requests recorded from a kernel (tests/mount/record_requests.py) → calls of the file system's methods."""

import os
from pathlib import Path

import pytest

from voile.fuse import abi, replies, requests
from voile.fuse.negotiation import WANTED, Config, ProtocolError, negotiate
from voile.fuse.requests import DEFERRED, Request, SetattrIn
from voile.fuse.session import Operations

RECORDED = {
    name: bytes.fromhex(data)
    for name, data in (
        line.split() for line in Path(__file__).with_name("fuse_requests.txt").read_text().splitlines()
    )
}
NODE = object()  # stands for a node id or handle that differs from recording to recording
ANSWERS = {
    "write": 13,
    "copy_file_range": 10,
    "getxattr": b"value",
    "listxattr": b"user.name\0",
    "ioctl": b"data",
}
ANSWERS |= dict.fromkeys(("lookup", "getattr", "create", "open", "read", "readdir", "statfs"), b"reply")

EXPECTED = {
    "ACCESS": ("access", os.R_OK),
    "BATCH_FORGET": ("forget", NODE, 1),
    "COPY_FILE_RANGE": ("copy_file_range", NODE, 3, NODE, NODE, 5, 10, 0),
    "COPY_FILE_RANGE_64": ("copy_file_range", NODE, 3, NODE, NODE, 5, 10, 0),
    # The kernel adds O_LARGEFILE (0x8000) to the flags of each open.
    "CREATE": ("create", b"file", os.O_CREAT | os.O_EXCL | os.O_RDWR | 0x8000, 0o100640, 0o022, 0),
    "FALLOCATE": ("fallocate", NODE, 4096, 8192, 0),
    "FLUSH": ("flush", NODE, NODE),
    "FORGET": ("forget", NODE, 1),
    "FSYNC": ("fsync", NODE, True),
    "FSYNCDIR": ("fsyncdir", NODE, False),
    "GETATTR": ("getattr", 0, None),
    "GETXATTR": ("getxattr", b"user.name", 128),
    "INTERRUPT": ("interrupt", NODE),
    "IOCTL": ("ioctl", NODE, 0, 0xC0107601, NODE, b"0123456789abcdef", 16),
    "LINK": ("link", NODE, b"hard"),
    "LISTXATTR": ("listxattr", 256),
    "LOOKUP": ("lookup", b"directory"),
    "LSEEK": ("lseek", NODE, 100, os.SEEK_HOLE),
    "MKDIR": ("mkdir", b"directory", 0o750, 0o022),
    "MKNOD": ("mknod", b"fifo", 0o010644, 0, 0o022),
    "OPEN": ("open", os.O_RDONLY | os.O_NONBLOCK | 0x8000, 0),
    "OPENDIR": ("opendir", os.O_RDONLY | 0x8000),
    "READ": ("read", NODE, 0, 8192, 0, os.O_RDONLY | 0x8000),
    "READDIR": ("readdir", NODE, 0, 32768, os.O_RDONLY | 0x8000),
    "READDIRPLUS": ("readdirplus", NODE, 0, 32768, os.O_RDONLY | 0x8000),
    "READLINK": ("readlink",),
    "RELEASE": ("release", NODE, os.O_RDWR | 0x8000, 0, 0),
    "RELEASEDIR": ("releasedir", NODE),
    "REMOVEXATTR": ("removexattr", b"user.name"),
    "RENAME": ("rename", b"hard", 1, b"renamed", 0),
    "RENAME2": ("rename", b"renamed", 1, b"exchanged", 1),
    "RMDIR": ("rmdir", b"directory"),
    "SETXATTR": ("setxattr", b"user.name", b"va\0lue", os.XATTR_CREATE, 0),
    "STATFS": ("statfs",),
    "STATX": ("statx", 0, None, 0, 0xFFF),
    "SYMLINK": ("symlink", b"link", b"target/of/link"),
    "SYNCFS": ("syncfs",),
    "TMPFILE": ("tmpfile", b"/", os.O_TMPFILE | os.O_RDWR | 0x8000, 0o100600, 0o022, 0),
    "UNLINK": ("unlink", b"exchanged"),
    "WRITE": ("write", NODE, 0, b"hello, kernel", 0, os.O_RDWR | 0x8000),
}


class Recorder(Operations):
    def __init__(self):
        self.calls = []


def _method(name):
    def method(self, *args):
        args = [bytes(a) if isinstance(a, memoryview) else a for a in args]
        self.calls.append((name, *(a for a in args if not isinstance(a, Request))))
        return ANSWERS.get(name)

    return method


for _, (_name, _) in requests.BINDERS.items():
    setattr(Recorder, _name, _method(_name))


def handle(name, flags=WANTED):
    raw = RECORDED[name]
    size, opcode, unique, nodeid, uid, gid, pid, _ = abi.IN_HEADER.unpack_from(raw)
    assert size == len(raw)
    recorder = Recorder()
    req = Request(opcode, unique, nodeid, uid, gid, pid)
    return recorder.calls, requests.bind(recorder, flags)[opcode](req, raw, size)


def test_all_opcodes_are_recorded():
    assert set(RECORDED) == set(EXPECTED) | {"INIT", "DESTROY", "SETATTR"}


@pytest.mark.parametrize("name", EXPECTED)
def test_arguments(name):
    calls, _ = handle(name)
    (call, expected) = calls[0], EXPECTED[name]
    assert len(call) == len(expected)
    assert [got for got, want in zip(call, expected) if want is not NODE] == [
        w for w in expected if w is not NODE
    ]


def test_setattr():
    [(name, args)], _ = handle("SETATTR")
    assert name == "setattr" and isinstance(args, SetattrIn)
    assert args.valid == abi.FATTR_ATIME | abi.FATTR_MTIME and args.fh is None
    assert (args.atime_ns, args.mtime_ns) == (-1_500_000_000, 1_700_000_000_123_456_789)


def test_batch_forget_calls_forget_for_each():
    calls, body = handle("BATCH_FORGET")
    assert len(calls) > 1 and {name for name, *_ in calls} == {"forget"} and body is DEFERRED


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("FORGET", DEFERRED),
        ("INTERRUPT", DEFERRED),
        ("UNLINK", None),
        ("LOOKUP", b"reply"),
        ("WRITE", b"\x0d\0\0\0\0\0\0\0"),
        ("COPY_FILE_RANGE", b"\x0a\0\0\0\0\0\0\0"),
        ("COPY_FILE_RANGE_64", b"\x0a\0\0\0\0\0\0\0"),
        ("GETXATTR", b"value"),
        ("LISTXATTR", b"user.name\0"),
        ("IOCTL", bytes(16) + b"data"),
    ],
)
def test_bodies(name, body):
    assert handle(name)[1] == body


def test_setxattr_without_the_extension():
    raw = bytearray(RECORDED["SETXATTR"])
    del raw[48:56]
    recorder = Recorder()
    requests.bind(recorder, WANTED & ~abi.SETXATTR_EXT)[abi.SETXATTR](Request(), bytes(raw), len(raw))
    assert recorder.calls == [("setxattr", b"user.name", b"va\0lue", os.XATTR_CREATE, 0)]


def test_fh_is_passed_when_valid():
    raw = bytearray(RECORDED["GETATTR"])
    abi.GETATTR_IN.pack_into(raw, 40, abi.GETATTR_FH, 77)
    recorder = Recorder()
    requests.bind(recorder, WANTED)[abi.GETATTR](Request(), bytes(raw), len(raw))
    assert recorder.calls == [("getattr", 1, 77)]


def test_missing_methods_are_enosys():
    class Empty(Operations):
        pass

    table = requests.bind(Empty(), WANTED)
    answered = {o for o, handler in enumerate(table) if handler is not requests.not_implemented}
    assert answered == {abi.FORGET, abi.BATCH_FORGET, abi.INTERRUPT, abi.STATFS}
    assert requests.lacking(Empty()) == abi.DO_READDIRPLUS | abi.READDIRPLUS_AUTO | abi.HAS_SYNCFS
    assert requests.lacking(Recorder()) == 0


@pytest.mark.parametrize("size", [0, 5, 6])
def test_xattr_sizes(size):
    body = replies.xattr_out(b"value", size)
    assert body == (b"value" if size else abi.GETXATTR_OUT.pack(5))


def test_xattr_too_large():
    with pytest.raises(OSError, match="larger") as caught:
        replies.xattr_out(b"value", 4)
    assert caught.value.errno == 34


def test_init():
    negotiated, reply = negotiate(RECORDED["INIT"][40:], Config())
    major, minor, _, flags, _, _, max_write, gran, max_pages, _, flags2, depth, _ = abi.INIT_OUT.unpack(reply)
    assert (major, minor, max_write, gran, max_pages, depth) == (7, 45, 1 << 20, 1, 256, 2)
    assert negotiated.passthrough and negotiated.minor == 45
    assert flags | flags2 << 32 == negotiated.flags == negotiated.offered & WANTED


def test_init_of_other_kernels():
    def body(major, minor, flags):
        return abi.INIT_IN.pack(major, minor, 131072, flags & 0xFFFFFFFF, flags >> 32)

    negotiated, reply = negotiate(body(7, 31, abi.MAX_PAGES), Config())
    assert negotiated.flags == abi.MAX_PAGES and abi.INIT_OUT.unpack(reply)[11] == 0
    # Without INIT_EXT the second word of flags is not defined.
    assert negotiate(body(7, 36, abi.PASSTHROUGH), Config())[0].flags == 0
    assert negotiate(body(7, 36, 0), Config())[0].max_write == 32 * 4096
    assert negotiate(body(8, 0, 0), Config())[0] is None
    with pytest.raises(ProtocolError, match=r"7\.30"):
        negotiate(body(7, 30, 0), Config())
