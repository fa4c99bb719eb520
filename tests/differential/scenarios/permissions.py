"""Callers that are not root: what they may do, and to whom belongs what they make."""

import os

from differential.scenario import scenario


@scenario()
def reading_and_searching(b):
    b.low.file("open", b"o", 0o644).file("closed", b"c", 0o600).file("group", b"g", 0o640, (0, 2000))
    b.low.dir("d700", 0o700).file("d700/f").dir("d711", 0o711).file("d711/f").dir("d744", 0o744).file(
        "d744/f"
    )
    t = yield
    with t.as_user(1000, 1000, [2000]):
        for name in ("open", "closed", "group", "d700/f", "d711/f", "d744/f"):
            t.read(name)
            t.stat(name)
            t.access(name, os.R_OK)
            t.access(name, os.W_OK)
        for name in ("d700", "d711", "d744"):
            t.open(name, os.O_RDONLY | os.O_DIRECTORY)
            t.stat(name)
            t.access(name, os.X_OK)
    with t.as_user(1000):
        t.read("group")


@scenario()
def writing(b):
    for side, layer in (("low", b.low), ("up", b.up)):
        layer.file(f"{side}-644", mode=0o644).file(f"{side}-666", mode=0o666).file(
            f"{side}-own", owner=(1000, 1000)
        )
        layer.file(f"{side}-own-ro", mode=0o444, owner=(1000, 1000)).dir(f"{side}-dir", 0o755).dir(
            f"{side}-open", 0o777
        )
        layer.file(f"{side}-dir/f", mode=0o666).file(f"{side}-open/f", mode=0o600)
    t = yield
    with t.as_user(1000):
        for side in ("low", "up"):
            for name in ("644", "666", "own", "own-ro"):
                t.append(f"{side}-{name}", b"+")
                t.truncate(f"{side}-{name}", 1)
                t.chmod(f"{side}-{name}", 0o640)
                t.chown(f"{side}-{name}", 1001, -1)
            t.create(f"{side}-dir/new")
            t.create(f"{side}-open/new", b"mine")
            t.stat(f"{side}-open/new")
            t.unlink(f"{side}-dir/f")
            t.append(f"{side}-dir/f", b"+")
            t.unlink(f"{side}-open/f")
            t.mkdir(f"{side}-open/dir")
            t.symlink("x", f"{side}-open/link")
            t.link(f"{side}-666", f"{side}-open/hard")
            t.mknod(f"{side}-open/fifo", 0o010644)
            t.mknod(f"{side}-open/char", 0o020644, os.makedev(1, 3))
            t.mknod(f"{side}-open/whiteout", 0o020644, 0)
            t.rename(f"{side}-open/new", f"{side}-open/newer")
            t.rename(f"{side}-open/newer", f"{side}-dir/newer")
            t.rmdir(f"{side}-open/dir")
            t.list(f"{side}-open")


@scenario()
def executing(b):
    b.low.file("x755", b"#!/bin/sh\nexit 7\n", 0o755).file("x644", b"#!/bin/sh\n", 0o644).file(
        "x700", b"#!/bin/sh\n", 0o700
    )
    t = yield

    def status(name):
        pid = os.fork()
        if pid == 0:
            try:
                os.execv("./" + name, [name])
            except OSError as e:
                os._exit(e.errno)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    for name in ("x755", "x644", "x700"):
        t.note("root runs " + name, status(name))
    with t.as_user(1000):
        for name in ("x755", "x644", "x700"):
            t.note("user runs " + name, status(name))
            t.access(name, os.X_OK)
    t.chmod("x644", 0o755)
    t.note("after chmod", status("x644"))
    t.append("x755", b"exit 9\n")
    t.note("after a change", status("x755"))


@scenario()
def sticky_directories(b):
    for side, layer in (("low", b.low), ("up", b.up)):
        layer.dir(f"{side}", 0o1777).file(f"{side}/root", mode=0o666).file(f"{side}/own", owner=(1000, 1000))
        layer.file(f"{side}/other", mode=0o666, owner=(1001, 1001)).dir(f"{side}/dir", owner=(1001, 1001))
    t = yield
    with t.as_user(1000):
        for side in ("low", "up"):
            for name in ("root", "other"):
                t.unlink(f"{side}/{name}")
                t.rename(f"{side}/{name}", f"{side}/renamed")
                t.append(f"{side}/{name}", b"+")
            t.rmdir(f"{side}/dir")
            t.rename(f"{side}/own", f"{side}/other")
            t.rename(f"{side}/own", f"{side}/renamed")
            t.unlink(f"{side}/renamed")
            t.create(f"{side}/own", b"again")


@scenario()
def protected_symlinks_and_fifos(b):
    b.low.dir("d", 0o1777).symlink("d/link", "../target", (1001, 1001)).file("target", mode=0o666).fifo(
        "d/fifo", 0o666, (1001, 1001)
    )
    b.low.file("d/file", mode=0o666, owner=(1001, 1001))
    t = yield
    with t.as_user(1000):
        t.read("d/link")
        t.create("d/file", b"", flags=0)
        t.create("d/fifo", b"", flags=os.O_NONBLOCK)
        t.link("target", "d/hard")


@scenario()
def setgid_directories(b):
    for side, layer in (("low", b.low), ("up", b.up)):
        layer.dir(side, 0o2777, (0, 2000))
        for kind in ("file", "dir"):
            b.low.file(f"{side}/hidden-{kind}")
            b.up.dir(side, 0o2777, (0, 2000)).whiteout(f"{side}/hidden-{kind}")
    t = yield
    for side in ("low", "up"):
        for who, groups in ((0, []), (1000, []), (1001, [2000])):
            with t.as_user(who, who, groups):
                t.create(f"{side}/file{who}", b"x", 0o2775)
                t.create(f"{side}/sfile{who}", b"", 0o2745)
                t.mkdir(f"{side}/dir{who}")
                t.mknod(f"{side}/fifo{who}", 0o010644)
                t.symlink("x", f"{side}/link{who}")
                t.create(f"{side}/dir{who}/below", b"")
                t.create(f"{side}/hidden-file", b"x", 0o2775)
                t.mkdir(f"{side}/hidden-dir", 0o2777)
            for kind in ("file", "sfile", "dir", "fifo", "link"):
                t.lstat(f"{side}/{kind}{who}")
            t.stat(f"{side}/dir{who}/below")
            for kind in ("file", "dir"):
                t.stat(f"{side}/hidden-{kind}")
            t.unlink(f"{side}/hidden-file")
            t.rmdir(f"{side}/hidden-dir")


@scenario()
def setgid_bit_by_a_non_member(b):
    b.low.file("f", mode=0o755, owner=(1000, 2000)).dir("d", 0o755, (1000, 2000))
    t = yield
    with t.as_user(1000):
        t.chmod("f", 0o2755)
        t.chmod("d", 0o2755)
    t.stat("f")
    t.stat("d")
    with t.as_user(1000, 1000, [2000]):
        t.chmod("f", 0o2755)
        t.chmod("d", 0o2755)
    t.stat("f")
    t.stat("d")
    with t.as_user(1000):
        t.chmod("f", 0o4755)
        t.chmod("f", 0o1755)
    t.stat("f")


@scenario()
def chown_by_users(b):
    b.low.file("f", mode=0o755, owner=(1000, 1000)).file("theirs")
    t = yield
    # Not chown(-1, -1): the kernel copies up for nothing, voile does not.
    with t.as_user(1000, 1000, [2000]):
        t.chown("f", 1001, -1)
        t.chown("f", -1, 2000)
        t.chown("f", -1, 3000)
        t.chown("f", 1000, 1000)
        t.chown("theirs", -1, 1000)
    t.stat("f")


@scenario()
def owner_of_what_is_made(b):
    b.low.dir("d", 0o777).file("d/was").file("d/was-dir")
    b.up.whiteout("d/was").whiteout("d/was-dir").dir("d", 0o777)
    t = yield
    with t.as_user(1000, 1001):
        t.create("d/file")
        t.mkdir("d/dir")
        t.symlink("x", "d/link")
        t.mknod("d/fifo", 0o010644)
        t.create("d/was")
        t.mkdir("d/was-dir")
        fd = t.open("d", os.O_TMPFILE | os.O_RDWR)
        t.fstat(fd)
    for name in ("file", "dir", "link", "fifo", "was", "was-dir"):
        t.lstat("d/" + name)


@scenario()
def an_open_file_outlives_a_permission(b):
    b.low.file("f", b"data", 0o644, (1000, 1000))
    t = yield
    with t.as_user(1000):
        reader, writer = t.open("f"), t.open("f", os.O_RDWR)
        t.chmod("f", 0)
        t.pread(reader, 10, 0)
        t.pwrite(writer, b"DATA", 0)
        t.pread(reader, 10, 0)
        t.open("f")
        t.ftruncate(writer, 2)
    t.read("f")


@scenario()
def noatime_flag(b):
    b.low.file("own", owner=(1000, 1000)).file("theirs", mode=0o644)
    t = yield
    with t.as_user(1000):
        t.close(t.open("own", os.O_RDONLY | os.O_NOATIME))
        t.close(t.open("theirs", os.O_RDONLY | os.O_NOATIME))


@scenario()
def a_directory_without_search_permission_for_its_owner(b):
    b.low.dir("d", 0o600, (1000, 1000)).file("d/f", owner=(1000, 1000))
    t = yield
    with t.as_user(1000):
        t.stat("d/f")
        t.create("d/g")
        t.chmod("d", 0o700)
        t.stat("d/f")
        t.create("d/g")
        t.rename("d/f", "d/h")


@scenario()
def rename_permissions(b):
    b.low.dir("ro", 0o755).file("ro/f").dir("rw", 0o777).file("rw/f").dir("rw/theirs", 0o755).dir(
        "rw/own", 0o755, (1000, 1000)
    )
    t = yield
    with t.as_user(1000):
        t.rename("ro/f", "rw/g")
        t.rename("rw/f", "ro/g")
        t.rename("rw/f", "rw/g")
        t.rename("rw/theirs", "rw/theirs2")
        t.mkdir("rw/target")
        t.rename("rw/theirs", "rw/target/x")
        t.rename("rw/own", "rw/target/x")
    t.list("rw")
