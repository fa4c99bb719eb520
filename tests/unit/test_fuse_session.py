"""The promise of a session: one answer to each request, whatever the file system does."""

import errno
import os
import socket
import struct
import threading

import pytest
from unit.test_fuse_requests import RECORDED

from voile.fuse import abi
from voile.fuse.device import Device
from voile.fuse.requests import DEFERRED
from voile.fuse.session import Config, Operations, Session
from voile.fuse.workers import WorkerPool


class Scripted(Operations):
    """Its lookup does what the test says."""

    def __init__(self):
        self.behave = lambda: b"body"
        self.destroyed = 0
        self.seen = []
        self.verdict = errno.EIO

    def lookup(self, req, name):
        self.seen.append((req.copy(), name))
        return self.behave()

    def destroy(self):
        self.destroyed += 1

    def unexpected(self, req, raw, exc):
        self.seen.append(bytes(raw))
        return self.verdict


@pytest.fixture
def kernel():
    """(our end of the device, a session at the other, its operations), after INIT."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        operations = Scripted()
        session = Session(theirs.fileno(), operations)
        ours.send(RECORDED["INIT"])
        session.handshake()
        assert len(ours.recv(4096)) == 16 + abi.INIT_OUT.size
        ours.settimeout(5)
        yield ours, session, operations


def feed(session, raw):
    session.buffer[: len(raw)] = raw
    session.process(len(raw))


def answer(ours):
    data = ours.recv(1 << 21)
    length, error, unique = abi.OUT_HEADER.unpack_from(data)
    assert length == len(data)
    return error, unique, data[16:]


def nothing_sent(ours):
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        ours.recv(10)
    ours.settimeout(5)


UNIQUE = abi.IN_HEADER.unpack_from(RECORDED["LOOKUP"])[2]


@pytest.mark.parametrize(
    "body", [b"", b"small", b"x" * 100_000, memoryview(b"view"), bytearray(b"array"), None]
)
def test_bodies(kernel, body):
    ours, session, operations = kernel
    operations.behave = lambda: body
    feed(session, RECORDED["LOOKUP"])
    assert answer(ours) == (0, UNIQUE, bytes(body or b""))


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ESTALE])
def test_oserror_is_its_errno(kernel, number):
    ours, session, operations = kernel

    def fail():
        raise OSError(number, "x")

    operations.behave = fail
    feed(session, RECORDED["LOOKUP"])
    assert answer(ours) == (-number, UNIQUE, b"")
    assert len(operations.seen) == 1


@pytest.mark.parametrize(
    "error", [KeyError("x"), OSError("no errno"), OSError(600, "kernel-internal"), OSError(-5, "")]
)
def test_anything_else_is_unexpected(kernel, error):
    ours, session, operations = kernel

    def fail():
        raise error

    operations.behave = fail
    feed(session, RECORDED["LOOKUP"])
    assert answer(ours) == (-errno.EIO, UNIQUE, b"")
    assert operations.seen[-1] == RECORDED["LOOKUP"]


def test_unexpected_can_take_over_and_run_it_again(kernel):
    ours, session, operations = kernel
    operations.verdict = None
    operations.behave = lambda: 1 // 0
    feed(session, RECORDED["LOOKUP"])
    nothing_sent(ours)
    raw = operations.seen[-1]
    feed(session, RECORDED["STATFS"])  # the buffer is used for something else meanwhile
    answer(ours)
    operations.behave = lambda: b"second"
    session.dispatch(raw)
    assert answer(ours) == (0, UNIQUE, b"second")


def test_deferred(kernel):
    ours, session, operations = kernel
    operations.behave = lambda: DEFERRED
    feed(session, RECORDED["LOOKUP"])
    nothing_sent(ours)
    session.reply(UNIQUE, b"late")
    assert answer(ours) == (0, UNIQUE, b"late")
    session.fail(UNIQUE, 9999)
    assert answer(ours) == (-errno.EIO, UNIQUE, b"")


@pytest.mark.parametrize("opcode", [18_000, 60, 63, 64, 7, abi.POLL, abi.GETLK])
def test_unknown_opcodes(kernel, opcode):
    ours, session, _ = kernel
    feed(session, abi.IN_HEADER.pack(40, opcode, 5, 1, 0, 0, 0, 0))
    assert answer(ours) == (-errno.ENOSYS, 5, b"")


def test_extensions_do_not_belong_to_the_name(kernel):
    ours, session, operations = kernel
    raw = bytearray(RECORDED["LOOKUP"] + b"e" * 16)
    header = list(abi.IN_HEADER.unpack_from(raw))
    header[0], header[7] = len(raw), 2
    abi.IN_HEADER.pack_into(raw, 0, *header)
    feed(session, raw)
    answer(ours)
    assert operations.seen[0][1] == b"directory"


def test_request_object(kernel):
    ours, session, operations = kernel
    feed(session, RECORDED["LOOKUP"])
    answer(ours)
    req = operations.seen[0][0]
    assert (req.opcode, req.unique, req.nodeid, req.uid, req.gid) == (abi.LOOKUP, UNIQUE, 1, 0, 0)
    assert "LOOKUP" in repr(req)


def test_replies_the_kernel_refuses():
    """EINVAL: the caller gets EIO. ENOENT: nobody waits any more."""
    sent = []

    class Refusing(Session):
        def fail(self, unique, error):
            sent.append((unique, error))

    readonly = os.open("/dev/null", os.O_RDONLY)
    session = Refusing(readonly, Scripted())
    session._reply_failed(7, OSError(errno.ENOENT, "x"))
    assert not sent
    session._reply_failed(7, OSError(errno.EINVAL, "x"))
    assert sent == [(7, errno.EIO)]
    os.close(readonly)


def test_destroy_once(kernel):
    ours, session, operations = kernel
    feed(session, RECORDED["DESTROY"])
    assert answer(ours)[0] == 0
    session.finish()
    assert operations.destroyed == 1


def test_trace():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        lines = []
        session = Session(theirs.fileno(), Scripted(), Config(trace=lines.append))
        ours.send(RECORDED["INIT"])
        session.handshake()
        feed(session, RECORDED["LOOKUP"])
    assert "LOOKUP" in lines[0] and "4 bytes" in lines[1]


def test_notifications(kernel):
    ours, session, _ = kernel
    session.notify_inval_inode(5, -1, 0)
    assert answer(ours) == (abi.NOTIFY_INVAL_INODE, 0, abi.NOTIFY_INVAL_INODE_OUT.pack(5, -1, 0))
    session.notify_inval_entry(5, b"name", abi.EXPIRE_ONLY)
    assert answer(ours) == (abi.NOTIFY_INVAL_ENTRY, 0, abi.NOTIFY_INVAL_ENTRY_OUT.pack(5, 4, 1) + b"name\0")
    session.notify_delete(5, 6, b"name")
    assert answer(ours) == (abi.NOTIFY_DELETE, 0, abi.NOTIFY_DELETE_OUT.pack(5, 6, 4) + b"name\0")
    session.notify_store(5, 4096, b"data")
    assert answer(ours) == (abi.NOTIFY_STORE, 0, abi.NOTIFY_STORE_OUT.pack(5, 4096, 4) + b"data")


def test_worker_pool():
    pool, results = WorkerPool(2), []
    for i in range(20):
        pool.submit(
            lambda i=i: 10 // (i - 5), lambda result, exc, i=i: results.append((i, result, type(exc)))
        )
    assert pool.outstanding == 20
    pool.drain()
    assert pool.outstanding == 0
    wanted = {(i, 10 // (i - 5), type(None)) for i in range(20) if i != 5} | {(5, None, ZeroDivisionError)}
    assert set(results) == wanted


def test_device_switches_between_blocking_and_polling(kernel):
    """A request that starts a job, one that comes while it runs, and the job's late answer; then the end."""
    ours, session, operations = kernel
    pool = WorkerPool(1)
    release_read, release_write = os.pipe()

    def behave():
        if len(operations.seen) == 1:
            pool.submit(lambda: os.read(release_read, 1), lambda data, exc: session.reply(1000, data))
            return DEFERRED
        os.write(release_write, b"!")
        return b"second"

    operations.behave = behave
    ours.send(RECORDED["LOOKUP"])
    ours.send(RECORDED["LOOKUP"])
    device = Device(session, pool)
    real, process = session.process, []

    def ending(n):
        real(n)
        process.append(n)
        if len(process) == 3:
            raise StopIteration

    session.process = ending
    os.set_blocking(session.fd, True)

    def talk():
        assert {answer(ours), answer(ours)} == {(0, UNIQUE, b"second"), (0, 1000, b"!")}
        ours.send(RECORDED["STATFS"])

    thread = threading.Thread(target=talk)
    thread.start()
    with pytest.raises(StopIteration):
        device.run()
    thread.join()
    assert os.get_blocking(session.fd) and operations.destroyed == 1
    os.close(release_read)
    os.close(release_write)


class Following:
    """Stands in for CpuFollow: always gives way, and counts the answers that did."""

    def __init__(self):
        self.idle = self
        self.on = True
        self.answers = 0

    def write(self, fd, answer):
        self.answers += 1
        return os.write(fd, answer)

    def writev(self, fd, answer):
        self.answers += 1
        return os.writev(fd, answer)

    def note(self, pid, requests):
        assert requests == 16

    def close(self):
        pass


def test_the_loop_gives_way_unless_its_own_threads_work(kernel):
    ours, session, operations = kernel
    pool, follow = WorkerPool(1), Following()
    release_read, release_write = os.pipe()
    operations.behave = lambda: b"x"
    os.set_blocking(session.fd, True)
    counts = []

    def ask(times):
        for _ in range(times):
            ours.send(RECORDED["LOOKUP"])
            answer(ours)
        counts.append(follow.answers)

    def job():
        pool.submit(lambda: os.read(release_read, 1), lambda data, exc: session.reply(1000, data))
        return b"x"

    def talk():
        ask(16)  # the first look at the CPUs comes after these
        ask(16)
        operations.behave = lambda: b"x" * 10_000  # by writev
        ask(8)
        operations.behave = job
        ask(1)
        operations.behave = lambda: b"x"
        ask(20)
        os.write(release_write, b"!")
        answer(ours)
        ask(1 + 16)
        ours.close()

    thread = threading.Thread(target=talk)
    thread.start()
    with pytest.raises((OSError, struct.error)):  # a socket ends in another way than the device
        Device(session, pool, follow).run()
    thread.join()
    first, second, third, started, busy, idle = counts
    assert (first, second - first, third - second) == (0, 16, 8)
    assert started - third == 1 and busy == started, "answers while a job was under way"
    assert idle > busy
