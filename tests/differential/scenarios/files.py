"""Open files: data, sizes, holes, locks, files without a name, syncs on ordinary and volatile mounts."""

import array
import fcntl
import mmap
import os
import termios

from differential.scenario import scenario
from support.syscalls import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
)

SEEK_DATA, SEEK_HOLE = os.SEEK_DATA, os.SEEK_HOLE


def in_both(b, name, data):
    b.low.file("low-" + name, data)
    b.up.file("up-" + name, data)


@scenario()
def reading_and_writing(b):
    in_both(b, "f", b"0123456789")
    t = yield
    for side in ("low-f", "up-f"):
        fd = t.open(side, os.O_RDWR)
        t.fread(fd, 4)
        t.write(fd, b"abc")
        t.fread(fd, 10)
        t.fread(fd, 10)
        t.pwrite(fd, b"far", 100_000)
        t.pread(fd, 10, 50_000)
        t.fstat(fd)
        t.pread(fd, 10, 200_000)
        t.pwrite(fd, b"", 5)
        t.lseek(fd, -3, os.SEEK_END)
        t.fread(fd, 10)
        t.lseek(fd, -1, os.SEEK_SET)
        t.ftruncate(fd, 5)
        t.pread(fd, 100, 0)
        t.ftruncate(fd, 8)
        t.pread(fd, 100, 0)
        t.ftruncate(fd, -1)
        t.close(fd)
        t.fread(fd, 1)


@scenario()
def wrong_access_modes(b):
    in_both(b, "f", b"0123456789")
    t = yield
    for side in ("low-f", "up-f"):
        reader, writer, path = t.open(side), t.open(side, os.O_WRONLY), t.open(side, os.O_PATH)
        t.write(reader, b"x")
        t.fread(writer, 1)
        t.ftruncate(reader, 1)
        t.fallocate(reader, 0, 0, 10)
        t.fread(path, 1)
        t.fchmod(path, 0o600)
        t.fstat(path)


@scenario()
def appending_from_two(b):
    in_both(b, "f", b"start")
    t = yield
    for side in ("low-f", "up-f"):
        one, two = t.open(side, os.O_WRONLY | os.O_APPEND), t.open(side, os.O_RDWR | os.O_APPEND)
        for i in range(5):
            t.write(one, b"1%d" % i)
            t.write(two, b"2%d" % i)
        t.pwrite(two, b"P", 0)
        t.read(side)
        t.truncate(side, 3)
        t.write(one, b"after")
        t.read(side)


@scenario()
def large_writes_and_reads(b):
    b.low.file("low", bytes(range(256)) * 20_000)
    t = yield
    block = bytes(range(255, -1, -1)) * 16_384  # 4 MiB
    fd = t.open("low", os.O_RDWR)
    t.pwrite(fd, block, 1_000_003)
    t.pread(fd, 6 << 20, 0)
    new = t.open("new", os.O_RDWR | os.O_CREAT)
    for i in range(4):
        t.pwrite(new, block, i * len(block) + i)
    t.fstat(new)
    t.pread(new, 16 << 20, 7)
    t.close(new)
    t.read("new")


@scenario()
def offsets_beyond_what_files_may_have(b):
    in_both(b, "f", b"x")
    t = yield
    for side in ("low-f", "up-f"):
        fd = t.open(side, os.O_RDWR)
        t.pwrite(fd, b"x", 1 << 40)
        t.fstat(fd)
        t.ftruncate(fd, 1 << 62)
        t.pwrite(fd, b"x", 1 << 62)
        t.truncate(side, 1 << 33)
        t.pread(fd, 10, (1 << 33) - 5)
        t.ftruncate(fd, 1)


@scenario()
def memory_maps(b):
    in_both(b, "f", b"m" * 8192)
    t = yield
    for side in ("low-f", "up-f"):
        fd = t.open(side, os.O_RDWR)
        with mmap.mmap(fd, 8192) as shared:
            shared[0:5] = b"by-mm"
            shared.flush()
            t.pread(fd, 10, 0)
            t.pwrite(fd, b"by-write", 4096)
            t.note("map sees", shared[4096:4104])
        os.close(fd)
        t.read(side)
        fd = os.open(side, os.O_RDONLY)
        with mmap.mmap(fd, 8192, prot=mmap.PROT_READ) as shared:
            t.overwrite(side, b"ANEW")
            t.note("read-only map sees", shared[:4])
        with mmap.mmap(fd, 8192, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as private:
            private[0:4] = b"priv"
        os.close(fd)
        t.read(side)


@scenario()
def direct_io(b):
    in_both(b, "f", b"d" * 8192)
    t = yield
    buffer = mmap.mmap(-1, 4096)
    for side in ("low-f", "up-f"):
        fd = t.open(side, os.O_RDWR | os.O_DIRECT)
        t.note("read", os.preadv(fd, [buffer], 4096))
        buffer[:6] = b"direct"
        t.note("write", os.pwritev(fd, [buffer], 0))
        t.close(fd)
        t.read(side)


@scenario()
def holes(b):
    # Pieces of 1 MiB: the kernel's copy-up does not look for smaller holes, voile's does.
    pieces = [(1 << 20, b"x" * (1 << 20)), (3 << 20, b"y" * (1 << 20))]
    b.low.sparse("low", 5 << 20, *pieces)
    b.up.sparse("up", 5 << 20, *pieces)
    t = yield
    for name in ("low", "up"):
        for flags in (os.O_RDONLY, os.O_RDWR):
            fd = t.open(name, flags)
            for at in (0, 1 << 20, (2 << 20) - 1, 2 << 20, (3 << 20) + 5000, 4 << 20, (5 << 20) - 1, 5 << 20):
                t.lseek(fd, at, SEEK_DATA)
                t.lseek(fd, at, SEEK_HOLE)
            t.lseek(fd, -1, SEEK_DATA)
            t.lseek(fd, 5, 9)
            t.close(fd)


# Not FALLOC_FL_COLLAPSE_RANGE and INSERT_RANGE: the kernel's FUSE refuses them without asking the daemon.
@scenario()
def preallocation(b):
    in_both(b, "f", b"z" * 20_000)
    t = yield
    for side in ("low-f", "up-f"):
        fd = t.open(side, os.O_RDWR)
        t.fallocate(fd, 0, 0, 100_000)
        t.fstat(fd)
        t.fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 1 << 20)
        t.fstat(fd)
        t.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 8192)
        t.pread(fd, 20_000, 0)
        t.lseek(fd, 0, SEEK_HOLE)
        t.fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, 100)
        t.pread(fd, 200, 0)
        t.fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 10)
        t.fallocate(fd, 0, -1, 10)
        t.fallocate(fd, 0, 0, 0)
        t.fallocate(fd, 0x1000, 0, 10)
        t.fallocate(fd, 0, 1 << 50, 1 << 50)
        t.close(fd)
        t.stat(side)
    t.fallocate(t.open(".", os.O_RDONLY), 0, 0, 10)


@scenario()
def copy_file_range(b):
    in_both(b, "from", bytes(range(256)) * 1000)
    in_both(b, "to", b"t" * 1000)
    t = yield
    for source in ("low-from", "up-from"):
        for target in ("low-to", "up-to", "new"):
            one, two = t.open(source), t.open(target, os.O_RDWR | os.O_CREAT)
            t.copy_file_range(one, two, 100_000, 10, 5)
            t.fstat(two)
            t.copy_file_range(one, two, 1000)
            t.copy_file_range(one, two, 10, 1 << 30, 0)
            t.copy_file_range(two, one, 10)
            t.pread(two, 1 << 20, 0)
            t.close(two)
        t.copy_file_range(one, one, 10, 0, 5)
        fd = t.open(source, os.O_RDWR)
        t.copy_file_range(fd, fd, 100, 0, 5)
        t.copy_file_range(fd, fd, 100, 0, 1000)
        t.read(source)


@scenario()
def open_and_unlinked(b):
    in_both(b, "f", b"0123456789")
    t = yield
    for side in ("low-f", "up-f"):
        fd, reader = t.open(side, os.O_RDWR), t.open(side)
        t.unlink(side)
        t.stat(side)
        t.fstat(fd)
        t.pread(fd, 20, 0)
        t.pwrite(fd, b"still", 2)
        t.pread(reader, 20, 0)
        t.ftruncate(fd, 4)
        t.fstat(fd)
        t.fchmod(fd, 0o600)
        t.fchown(fd, 5, 6)
        t.futimens(fd, 10**18, 10**18)
        t.fsetxattr(fd, "user.x", b"y")
        t.fgetxattr(fd, "user.x")
        t.fallocate(fd, 0, 0, 100)
        t.lseek(fd, 0, os.SEEK_END)
        t.fstat(reader)
        t.fsync(fd)
        t.link_fd(fd, "back")
        t.create(side, b"another")
        t.fstat(fd)
        t.pread(fd, 4, 0)
        t.read(side)
        t.close(fd)
        t.close(reader)


@scenario()
def a_lower_file_read_after_its_removal(b):
    b.low.file("f", b"lower data", 0o644, (5, 6), {"user.x": b"y"})
    t = yield
    fd = t.open("f")
    t.same_inode("f", fd)
    t.unlink("f")
    t.pread(fd, 20, 0)
    t.fstat(fd)
    t.same_inode("f", fd)
    t.fgetxattr(fd, "user.x")
    # No fchmod here: the kernel's fails with EEXIST (it cannot copy up what has no name); voile's works.
    t.lseek(fd, 0, os.SEEK_END)
    t.close(fd)
    t.list(".")


@scenario()
def overwritten_by_a_rename_while_open(b):
    in_both(b, "f", b"old contents")
    t = yield
    for side in ("low-f", "up-f"):
        fd = t.open(side, os.O_RDWR)
        t.create("tmp", b"new contents")
        t.rename("tmp", side)
        t.read(side)
        t.pread(fd, 20, 0)
        t.fstat(fd)
        t.pwrite(fd, b"OLD", 0)
        t.read(side)
        t.close(fd)


@scenario()
def an_unlinked_hard_link_that_is_open(b):
    b.low.file("a", b"x")
    t = yield
    t.link("a", "b")
    fd = t.open("a", os.O_RDWR)
    t.unlink("a")
    t.fstat(fd)
    t.pwrite(fd, b"y", 0)
    t.read("b")
    t.unlink("b")
    t.fstat(fd)
    t.pread(fd, 5, 0)


@scenario()
def removed_directories_that_are_in_use(b):
    b.low.dir("d")
    b.up.dir("e")
    t = yield
    root = os.getcwd()
    for name in ("d", "e"):
        t.chdir(name)
        t.rmdir("../" + name)
        t.list(".")
        t.create("new")
        t.mkdir("new")
        t.stat(".")
        t.stat("..")
        # No chmod("."): the kernel says ENOTDIR for the lower one, whose name is a whiteout now.
        t.mkdir("../" + name)
        t.list(".")
        os.chdir(root)
        t.stat(name)


@scenario()
def locks_between_processes(b):
    in_both(b, "f", b"x" * 100)
    t = yield
    for side in ("low-f", "up-f"):
        fd = t.open(side, os.O_RDWR)
        t.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

        def others(side=side):
            mine = t.open(side, os.O_RDWR)
            t.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
            t.flock(mine, fcntl.LOCK_SH | fcntl.LOCK_NB)
            t.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
            t.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 50)
            t.ofd_lock(mine, fcntl.F_WRLCK)

        t.elsewhere(others)
        t.flock(fd, fcntl.LOCK_UN)
        t.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
        t.elsewhere(others)
        t.lockf(fd, fcntl.LOCK_UN, 10, 0)
        t.ofd_lock(fd, fcntl.F_RDLCK)
        t.elsewhere(others)
        second = t.open(side)
        t.close(second)
        t.ofd_lock(fd, fcntl.F_UNLCK)
        t.elsewhere(others)
        t.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        t.close(fd)


@scenario()
def syncs_on_an_ordinary_mount(b):
    in_both(b, "f", b"x")
    b.low.dir("d").file("d/x")
    t = yield
    for side in ("low-f", "up-f", "d", "."):
        fd = t.open(side)
        t.fsync(fd)
        t.fdatasync(fd)
        t.syncfs(fd)
        t.close(fd)
    fd = t.open("low-f", os.O_RDWR | os.O_SYNC)
    t.pwrite(fd, b"y", 0)
    t.fsync(fd)
    fd = t.open("up-f", os.O_RDWR | os.O_DSYNC)
    t.pwrite(fd, b"y", 0)
    t.fdatasync(fd)


@scenario(options="volatile")
def volatile_mounts(b):
    in_both(b, "f", b"x")
    b.low.dir("d").file("d/x")
    t = yield
    for side in ("low-f", "up-f", "d", "."):
        fd = t.open(side)
        t.fsync(fd)
        t.fdatasync(fd)
        t.syncfs(fd)
        t.close(fd)
    for flag in (os.O_SYNC, os.O_DSYNC):
        fd = t.open("low-f", os.O_RDWR | flag)
        t.pwrite(fd, b"y", 0)
        t.pread(fd, 5, 0)
        t.fsync(fd)
        t.note("the flag shows", bool(fcntl.fcntl(fd, fcntl.F_GETFL) & flag))
        t.close(fd)
    t.create("new", b"n")
    t.rename("d/x", "d/y")
    t.unlink("up-f")


@scenario(options="noatime")
def noatime_mounts(b):
    in_both(b, "f", b"x")
    t = yield
    for side in ("low-f", "up-f"):
        t.utime(side, 5, 5)
        t.read(side)
        t.atime(side)


@scenario(options="noatime", lowers=2)
def sqlite_like_access(b):
    b.low.file("db", b"\0" * 16384)
    t = yield
    fd = t.open("db", os.O_RDWR)
    for i in range(20):
        t.create("db-journal", b"journal")
        journal = t.open("db-journal", os.O_RDWR)
        t.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0x40000000)
        t.fsync(journal)
        t.pwrite(fd, b"%d" % i * 100, (i % 4) * 4096)
        t.fsync(fd)
        t.close(journal)
        t.unlink("db-journal")
    t.fstat(fd)


@scenario()
def ioctls_and_odd_calls(b):
    in_both(b, "f", b"12345")
    t = yield
    for side in ("low-f", "up-f"):
        fd = os.open(side, os.O_RDWR)
        waiting = array.array("i", [0])
        try:
            fcntl.ioctl(fd, termios.FIONREAD, waiting)
            t.note("FIONREAD", waiting[0])
        except OSError as e:
            t.note("FIONREAD", e.errno)
        try:
            termios.tcgetattr(fd)
        except termios.error as e:
            t.note("isatty", e.args[0])
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        t.note("sendfile", os.sendfile(os.open("sent-" + side, os.O_WRONLY | os.O_CREAT), fd, 0, 5))
        os.close(fd)
    t.read("sent-low-f")
