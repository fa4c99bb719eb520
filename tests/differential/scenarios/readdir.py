"""Merged directory listings: what is in them, and what happens to a listing while the directory changes."""

import os

from differential.builder import KINDS
from differential.scenario import scenario
from support import syscalls


@scenario(lowers=3)
def merged(b):
    b.lows[2].file("d/a").file("d/b").dir("d/sub/x").symlink("d/l", "a")
    b.lows[1].file("d/b").file("d/c").whiteout("d/a").dir("d/sub/y")
    b.lows[0].file("d/e").whiteout("d/c").fifo("d/p")
    b.up.file("d/f").dir("d/sub/z").whiteout("d/l")
    t = yield
    t.list("d")
    t.list("d/sub")
    t.list(".")
    t.dots("d")
    t.dots("d/sub")


@scenario()
def types_of_all_kinds(b):
    b.low.kinds("d/low-")
    b.up.kinds("d/up-").kinds("p/pure-")
    t = yield
    t.list("d")
    t.list("p")
    t.list("d/low-dir")
    for kind in KINDS:
        t.chmod("d/low-" + kind, 0o600) if kind != "symlink" else t.chown("d/low-symlink", 1, 1)
    t.list("d")


@scenario()
def many_entries(b):
    for i in range(1500):
        b.low.file(f"d/low-{i:05}-{'x' * (i % 60)}", b"")
    for i in range(300):
        b.up.file(f"d/up-{i}", b"").whiteout(f"d/low-{i * 3:05}-{'x' * (i * 3 % 60)}")
    t = yield
    t.list("d")


@scenario()
def names_while_the_directory_shrinks(b):
    for i in range(400):
        b.low.file(f"d/f{i:04}", b"")
        b.up.file(f"d/u{i:04}", b"")
    t = yield
    fd = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
    seen = []
    while part := syscalls.getdents(fd, 1024):
        for name, *_ in part:
            if name not in (b".", b".."):
                seen.append(name)
                os.unlink(b"d/" + name)
    os.close(fd)
    t.note("each once", (len(seen), len(set(seen))))
    t.list("d")
    t.rmdir("d")


@scenario()
def names_while_the_directory_grows(b):
    for i in range(300):
        b.low.file(f"d/f{i:04}", b"")
    t = yield
    fd = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
    seen, made = [], 0
    while part := syscalls.getdents(fd, 1024):
        seen += [n for n, *_ in part]
        if made < 200:
            for _ in range(20):
                made += 1
                t.create(f"d/new{made:04}")
    old = [n for n in seen if n.startswith(b"f")]
    t.note("the old ones each once", (len(old), len(set(old))))
    t.note("the new ones at most once", len(seen) == len(set(seen)))
    os.lseek(fd, 0, os.SEEK_SET)
    again = []
    while part := syscalls.getdents(fd, 4096):
        again += [n for n, *_ in part]
    t.note("rewinddir sees all", (len(again), len(set(again))))
    os.close(fd)


@scenario(lowers=2)
def offsets_can_be_returned_to(b):
    for i in range(100):
        b.lows[1].file(f"d/low{i:03}", b"")
        b.lows[0].file(f"d/mid{i:03}", b"")
        b.up.file(f"d/up{i:03}", b"").file(f"pure/p{i:03}", b"")
    t = yield
    for directory in ("d", "pure"):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        entries = []
        while part := syscalls.getdents(fd, 2048):
            entries += part
        t.note("complete", (len(entries), len({e[0] for e in entries})))
        good = 0
        for i in range(0, len(entries) - 1, 7):
            os.lseek(fd, entries[i][2], os.SEEK_SET)
            good += syscalls.getdents(fd, 2048)[0][0] == entries[i + 1][0]
        t.note("seekdir leads to the next entry", (good, len(range(0, len(entries) - 1, 7))))
        os.lseek(fd, 0, os.SEEK_SET)
        t.note("first", syscalls.getdents(fd, 2048)[0][0] == entries[0][0])
        os.close(fd)


@scenario()
def an_open_listing_of_a_removed_directory(b):
    b.low.dir("d")
    b.up.dir("u")
    t = yield
    for name in ("d", "u"):
        fd = t.open(name, os.O_RDONLY | os.O_DIRECTORY)
        t.rmdir(name)
        try:
            t.note("listing", sorted(n for n, *_ in syscalls.getdents(fd)))
        except OSError as e:
            t.note("listing", e.errno)
        t.note("still a directory", os.fstat(fd).st_mode & 0o170000)
        t.note("nlink", os.fstat(fd).st_nlink)
        t.close(fd)


@scenario()
def two_listings_at_once(b):
    for i in range(60):
        b.low.file(f"d/low{i}", b"")
        b.up.file(f"d/up{i}", b"")
    t = yield
    fds = [os.open("d", os.O_RDONLY | os.O_DIRECTORY) for _ in range(2)]
    seen = [[], []]
    first = syscalls.getdents(fds[0], 512)
    seen[0] += first
    t.create("d/new")
    t.unlink("d/low5")
    for i in (1, 0):
        while part := syscalls.getdents(fds[i], 512):
            seen[i] += part
    t.note("the second sees the change", [n in {e[0] for e in seen[1]} for n in (b"new", b"low5")])
    t.note("none twice", [len(s) == len({e[0] for e in s}) for s in seen])
    for fd in fds:
        os.close(fd)


@scenario()
def listing_after_each_change(b):
    b.low.file("d/a").file("d/b").file("d/c").dir("d/s").file("e/x")
    t = yield
    t.list("d")
    t.create("d/n")
    t.list("d")
    t.unlink("d/a")
    t.list("d")
    t.create("d/a")
    t.list("d")
    t.rename("d/b", "d/b2")
    t.list("d")
    t.rename("e/x", "d/x")
    t.list("d")
    t.list("e")
    t.rmdir("d/s")
    t.mkdir("d/s")
    t.list("d")
    t.list("d/s")
    t.link("d/c", "d/c2")
    t.symlink("c", "d/l")
    t.list("d")


@scenario()
def d_ino_after_copy_up_and_rename(b):
    b.low.kinds("d/").file("e/f")
    t = yield
    for kind in KINDS:
        t.chown("d/" + kind, 3, 3)
    t.rename("d/file", "d/file2")
    t.rename("e/f", "d/f")
    t.create("d/new")
    inodes = {n: ino for n, ino, _, _ in syscalls.list_directory("d")}
    names = sorted(n for n in inodes if n not in (b".", b".."))
    t.note("d_ino is st_ino", [(n, inodes[n] == os.lstat(b"d/" + n).st_ino) for n in names])


@scenario(options="xino=on", lowers_on="tmpfs")
def xino_on_two_file_systems(b):
    b.low.file("d/a").file("d/b")
    b.up.file("d/c")
    t = yield
    t.list("d")
    t.overwrite("d/a", b"A")
    t.list("d")
    t.one_device(".", "d", "d/a", "d/b", "d/c")
    t.same_inode("b", "d/b")
    t.chmod("d/b", 0o600)
    t.same_inode("b", "d/b")


@scenario()
def getdents_with_a_tiny_buffer(b):
    b.low.file("d/" + "n" * 255, b"").file("d/s", b"")
    t = yield
    fd = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        t.note("10 bytes", len(syscalls.getdents(fd, 10)))
    except OSError as e:
        t.note("10 bytes", e.errno)
    names = []
    while part := syscalls.getdents(fd, 300):
        names += [n for n, *_ in part]
    t.note("names", sorted(names))
    os.close(fd)


@scenario()
def reading_a_directory_as_a_file(b):
    b.low.dir("d").file("f")
    t = yield
    fd = t.open("d")
    t.fread(fd, 10)
    t.open("d", os.O_WRONLY)
    t.open("d", os.O_RDWR)
    t.open("f", os.O_RDONLY | os.O_DIRECTORY)
    t.open("d", os.O_CREAT | os.O_RDONLY)
    t.open("d/", os.O_CREAT | os.O_WRONLY)
    t.truncate("d", 0)
