"""Calls on files that few programs make: statx, leases, handles, maps of extents, odd flags."""

import errno
import fcntl
import mmap
import os
import struct

from differential.scenario import scenario
from differential.tree import Fd, when
from support import syscalls

BOTH = ("low", "up")


def in_both(b, data=b"0123456789" * 2000, **arguments):
    b.low.file("low", data, **arguments)
    b.up.file("up", data, **arguments)


def outcome(t, what, function, *args):
    """Logs what a function returns, or its errno."""
    try:
        value = function(*args)
    except OSError as e:
        value = errno.errorcode.get(e.errno, e.errno)
    t.note(what, value)
    return value


# ---------------------------------------------------------------- statx


@scenario()
def statx_of_everything(b):
    b.low.kinds("low-")
    b.up.kinds("up-")
    t = yield
    for side in ("low-", "up-"):
        for kind in ("file", "dir", "symlink", "fifo", "char"):
            path = side + kind
            before = syscalls.statx(path)
            t.note("btime", when(before.btime))
            t.note("mask", hex(before.mask & 0xFFF))
            t.note("type and mode", oct(before.mode))
            t.note("mount", before.mnt_id == syscalls.statx(".").mnt_id)
            t.chown(path, 5, 5)
            after = syscalls.statx(path)
            t.note("btime after a change", (when(after.btime), after.btime != before.btime))
            t.note("same btime on the same object", syscalls.statx(path).btime == after.btime)


@scenario()
def birth_times_of_what_is_made(b):
    t = yield
    t.create("f")
    t.mkdir("d")
    for path in ("f", "d"):
        st = syscalls.statx(path)
        t.utime(path, 5, 5)
        t.note("btime", (when(st.btime), syscalls.statx(path).btime == st.btime))
    fd = t.open("f")
    t.rename("f", "g")
    t.note("after a rename", syscalls.statx("g").btime == syscalls.statx(fd).btime)


# ---------------------------------------------------------------- leases and locks


@scenario()
def leases(b):
    in_both(b)
    t = yield
    for path in BOTH:
        reader = t.open(path)
        for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK):
            outcome(t, "lease", fcntl.fcntl, reader, fcntl.F_SETLEASE, kind)
            outcome(t, "which", fcntl.fcntl, reader, fcntl.F_GETLEASE)
        with_write = t.open(path, os.O_RDWR)
        for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK):
            outcome(t, "lease of a writer", fcntl.fcntl, with_write, fcntl.F_SETLEASE, kind)
        t.close(reader)
        t.close(with_write)


@scenario()
def a_lease_is_broken(b):
    in_both(b)
    t = yield
    import signal

    signal.signal(signal.SIGIO, signal.SIG_IGN)
    for path in BOTH:
        reader = t.open(path)
        outcome(t, "lease", fcntl.fcntl, reader, fcntl.F_SETLEASE, fcntl.F_RDLCK)

        def others(path=path):
            t.open(path)
            t.open(path, os.O_WRONLY | os.O_NONBLOCK)
            t.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_TRUNC)

        t.elsewhere(others)
        outcome(t, "now", fcntl.fcntl, reader, fcntl.F_GETLEASE)
        t.close(reader)
        t.elsewhere(others)


@scenario()
def locks_across_a_copy_up(b):
    for number in range(3):
        b.low.file(f"f{number}", b"x" * 100)
    t = yield
    for number, take in enumerate(("flock", "lockf", "ofd")):
        path = f"f{number}"
        reader = t.open(path)
        if take == "flock":
            t.flock(reader, fcntl.LOCK_SH | fcntl.LOCK_NB)
        elif take == "lockf":
            t.lockf(reader, fcntl.LOCK_SH | fcntl.LOCK_NB, 10, 0)
        else:
            t.ofd_lock(reader, fcntl.F_RDLCK)
        t.overwrite(path, b"y", 50)

        def others(path=path):
            mine = t.open(path, os.O_RDWR)
            t.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
            t.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
            t.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 50)
            t.ofd_lock(mine, fcntl.F_WRLCK)
            t.note("who holds it", struct.unpack("hhqqi4x", fcntl.fcntl(mine, fcntl.F_GETLK, LOCK))[0])

        t.elsewhere(others)
        t.close(reader)
        t.elsewhere(others)


LOCK = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)


# ---------------------------------------------------------------- handles


def handle(path):
    return len(syscalls.file_handle(path)[1]) > 0


@scenario()
def file_handles(b):
    in_both(b)
    b.low.dir("low-dir")
    b.up.dir("up-dir")
    t = yield
    for path in (*BOTH, "low-dir", "up-dir", "."):
        outcome(t, "handle", handle, path)
        identity = syscalls.file_handle(path, syscalls.AT_HANDLE_FID)
        t.chmod(path, 0o700)
        t.note("the same", syscalls.file_handle(path, syscalls.AT_HANDLE_FID) == identity)
        # It tells objects apart (for fanotify), and opens nothing.
        root = os.open(".", os.O_RDONLY)
        outcome(t, "open", syscalls.open_by_handle_at, root, *identity)
        os.close(root)


# ---------------------------------------------------------------- ranges


@scenario()
def all_modes_of_fallocate(b):
    in_both(b, bytes(range(256)) * 400)
    t = yield
    keep = syscalls.FALLOC_FL_KEEP_SIZE
    punch, zero = syscalls.FALLOC_FL_PUNCH_HOLE, syscalls.FALLOC_FL_ZERO_RANGE
    for path in BOTH:
        fd = t.open(path, os.O_RDWR)
        for mode in (0, keep, punch | keep, zero, zero | keep, punch, punch | zero | keep):
            for offset, length in ((0, 4096), (4096, 8192), (100, 50), (90_000, 100_000), (1 << 20, 10)):
                t.fallocate(fd, mode, offset, length)
                t.fstat(fd)
                t.pread(fd, 200_000, 0)
        t.read(path)


@scenario()
def fallocate_by_the_wrong(b):
    in_both(b)
    b.low.fifo("fifo").dir("dir")
    t = yield
    keep = syscalls.FALLOC_FL_KEEP_SIZE
    for path in BOTH:
        fd = t.open(path, os.O_WRONLY | os.O_APPEND)
        t.fallocate(fd, 0, 0, 100_000)
        t.fallocate(fd, keep | syscalls.FALLOC_FL_PUNCH_HOLE, 0, 4096)
        t.fstat(fd)
        t.fallocate(t.open(path), 0, 0, 10)
        t.fallocate(t.open(path, os.O_PATH), 0, 0, 10)
    t.fallocate(t.open("fifo", os.O_RDWR), 0, 0, 10)
    t.fallocate(t.open("dir"), 0, 0, 10)


@scenario()
def holes_at_the_ends(b):
    MIB = 1 << 20
    for layer, name in ((b.low, "low"), (b.up, "up")):
        layer.sparse(name + "-all", 8 * MIB)
        layer.sparse(name + "-end", 8 * MIB, (0, b"x" * MIB))
        layer.sparse(name + "-begin", 8 * MIB, (7 * MIB, b"x" * MIB))
        layer.sparse(name + "-none", 2 * MIB, (0, b"x" * 2 * MIB))
        layer.file(name + "-empty", b"")
    t = yield
    for side in BOTH:
        for kind in ("all", "end", "begin", "none", "empty"):
            reader = t.open(f"{side}-{kind}")
            writer = t.open(f"{side}-{kind}", os.O_RDWR)
            for fd in (reader, writer):
                for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                    for at in (0, 1, MIB, 7 * MIB + 5, 8 * MIB - 1, 8 * MIB, 9 * MIB):
                        t.lseek(fd, at, whence)
            t.unlink(f"{side}-{kind}")
            t.lseek(reader, 0, os.SEEK_DATA)
            t.lseek(reader, 0, os.SEEK_HOLE)


@scenario()
def copies_of_ranges(b):
    in_both(b, bytes(range(251)) * 40_000)  # 10 MB
    b.low.file("to", b"t" * 1000)
    t = yield
    for path in BOTH:
        source = t.open(path)
        fd = t.open("new-" + path, os.O_RDWR | os.O_CREAT)
        for _ in range(4):
            t.copy_file_range(source, fd, 4 << 20)
        t.fstat(fd)
        t.pread(fd, 20 << 20, 0)
        t.copy_file_range(source, fd, 0, 0, 0)
        t.copy_file_range(source, fd, 10, 1 << 40, 0)
        t.copy_file_range(source, fd, 10, 0, 1 << 25)
        t.fstat(fd)
        t.copy_file_range(source, t.open("to", os.O_WRONLY | os.O_APPEND), 10, 0, 0)
        t.copy_file_range(source, t.open("to"), 10, 0, 0)
        t.copy_file_range(source, t.open("."), 10, 0, 0)
        t.copy_file_range(t.open("."), fd, 10, 0, 0)
        both = t.open(path, os.O_RDWR)
        t.copy_file_range(both, both, 1 << 20, 0, 5 << 20)
        t.copy_file_range(both, both, 1 << 20, 0, 1 << 19)
        t.copy_file_range(both, source, 100, 0, 200)
        t.copy_file_range(source, both, 100, 0, 50)
        t.copy_file_range(source, both, 100, 0, 200)
        t.read(path)
        # To and from another file system.
        elsewhere = Fd(os.memfd_create("elsewhere"))
        os.write(elsewhere, b"from elsewhere")
        t.copy_file_range(elsewhere, both, 10, 0, 0)
        t.copy_file_range(source, elsewhere, 10, 0, 0)
        os.close(elsewhere)


# ---------------------------------------------------------------- O_DIRECT, O_TMPFILE, flags of rename


@scenario()
def direct_io_of_all_sizes(b):
    in_both(b, b"d" * 16384)
    t = yield
    page = mmap.mmap(-1, 8192)
    for path in BOTH:
        fd = t.open(path, os.O_RDWR | os.O_DIRECT)
        for size, offset in ((4096, 0), (8192, 4096), (4096, 12288), (4096, 16384), (4096, 20480)):
            with memoryview(page)[:size] as part:
                outcome(t, "read", os.preadv, fd, [part], offset)
                outcome(t, "write", os.pwritev, fd, [part], offset)
        t.fstat(fd)
        other = t.open(path, os.O_RDWR)
        t.pwrite(other, b"buffered", 100)
        outcome(t, "read", os.preadv, fd, [page], 0)
        t.note("sees", page[95:115])
        page[0:6] = b"direct"
        outcome(t, "write", os.pwritev, fd, [page], 0)
        t.pread(other, 10, 0)
        t.close(fd)
        t.read(path)


@scenario()
def files_without_a_name(b):
    b.low.dir("low-dir", 0o2775, (0, 5)).file("low-dir/x")
    b.up.dir("up-dir", 0o755)
    t = yield
    for side in ("low-dir", "up-dir", "."):
        for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_EXCL, os.O_RDWR | os.O_APPEND, os.O_RDONLY):
            fd = t.open(side, os.O_TMPFILE | flags, 0o6666)
            if fd is None:
                continue
            t.write(fd, b"tmp")
            t.fstat(fd)
            t.fsetxattr(fd, "user.x", b"y")
            t.fchmod(fd, 0o640)
            t.link_fd(fd, f"{side}/linked{flags}")
            t.link_fd(fd, f"{side}/again{flags}")
            t.link_fd(fd, f"{side}/again{flags}")
            t.fstat(fd)
            t.write(fd, b"more")
            t.close(fd)
            t.read(f"{side}/linked{flags}")
            t.lstat(f"{side}/linked{flags}")
        t.list(side)
    t.open("low-dir/x", os.O_TMPFILE | os.O_RDWR)
    t.open("none", os.O_TMPFILE | os.O_RDWR)


@scenario()
def flags_of_rename(b):
    in_both(b)
    b.low.dir("d")
    t = yield
    for flags in (4, 5, 3, 6, 8, 1 << 31):
        for path in (*BOTH, "d", "none"):
            t.rename(path, "new", flags)
    with t.as_user(1000):
        t.rename("low", "new", 4)


@scenario()
def odd_flags_of_open(b):
    in_both(b)
    b.low.dir("dir").symlink("link", "low")
    t = yield
    for path in (*BOTH, "dir", "link"):
        for flags in (
            os.O_NOFOLLOW,
            os.O_DIRECTORY,
            os.O_PATH | os.O_NOFOLLOW,
            os.O_NOATIME,
            os.O_NONBLOCK,
            os.O_ASYNC,
            os.O_SYNC,
            os.O_RDWR | os.O_CREAT | os.O_EXCL,
            os.O_CREAT | os.O_DIRECTORY,
            os.O_ACCMODE,
        ):
            t.close(t.open(path, flags))
    with t.as_user(1000):
        t.open("low", os.O_NOATIME)
        t.open("dir", os.O_NOATIME)


@scenario()
def access_times_and_o_noatime(b):
    for layer, side in ((b.low, "low"), (b.up, "up")):
        for number in range(2):
            layer.file(f"{side}{number}", b"x").dir(f"{side}dir{number}").file(f"{side}dir{number}/f")
        b.low.dir(f"{side}both0").file(f"{side}both0/f").dir(f"{side}both1").file(f"{side}both1/f")
        b.up.dir(f"{side}both0").dir(f"{side}both1")
    t = yield
    for side in ("low", "up"):
        for number, flag in enumerate((os.O_NOATIME, 0)):
            for path in (f"{side}{number}", f"{side}dir{number}", f"{side}both{number}"):
                t.utime(path, 5, 10**18)
                fd = t.open(path, flag)
                if "d" in path or "both" in path:
                    os.listdir(fd)
                else:
                    t.pread(fd, 1, 0)
                t.close(fd)
                t.atime(path)
