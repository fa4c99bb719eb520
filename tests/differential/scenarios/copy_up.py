"""Copy-up: what triggers it, what it keeps, what it does to the directories above."""

import fcntl
import os

from differential.builder import KINDS
from differential.scenario import scenario
from differential.tree import ACCESS, DEFAULT, acl

XATTRS = {"user.a": b"one", "user.b": b"\0\xff", "user.empty": b"", "trusted.t": b"T", "security.s": b"S"}

TRIGGERS = {
    "chmod": lambda t, p: t.chmod(p, 0o604),
    "chown": lambda t, p: t.chown(p, 11, 12),
    # Not chown(-1, -1): the kernel copies up for nothing, voile does not.
    "utime": lambda t, p: t.utime(p, 10**18 + 1, 10**18 + 2),
    "touch": lambda t, p: t.touch(p),
    "setxattr": lambda t, p: t.setxattr(p, "trusted.new", b"v"),
    "removexattr": lambda t, p: t.removexattr(p, "trusted.t"),
    "removexattr_missing": lambda t, p: t.removexattr(p, "trusted.none"),
    "link": lambda t, p: t.link(p, "d/e/linked"),
    "rename": lambda t, p: t.rename(p, "d/e/renamed"),
    "rename_away": lambda t, p: t.rename(p, "elsewhere"),
    "unlink": lambda t, p: t.unlink(p),
    "stat_only": lambda t, p: t.stat(p),
}


def one_trigger(trigger):
    def run(b):
        b.low.kinds("d/e/", owner=(21, 22))
        for kind in KINDS:
            if not b.low.ordinary:
                os.setxattr(b.low.path("d/e/" + kind), "trusted.t", b"T", follow_symlinks=False)
        t = yield
        for kind in KINDS:
            TRIGGERS[trigger](t, "d/e/" + kind)
            t.lstat("d/e/" + kind)
            t.listxattr("d/e/" + kind)
            if trigger in ("link", "rename", "rename_away"):
                new = "elsewhere" if trigger == "rename_away" else "d/e/" + trigger.rstrip("e") + "ed"
                t.lstat(new)
                t.rename(new, f"{new}-{kind}")
        t.stat("d/e")
        t.stat("d")

    scenario(name="every_kind_by_" + trigger)(run)


for _trigger in TRIGGERS:
    one_trigger(_trigger)

OPENS = {
    "rdonly": os.O_RDONLY,
    "wronly": os.O_WRONLY,
    "rdwr": os.O_RDWR,
    "append": os.O_WRONLY | os.O_APPEND,
    "trunc": os.O_WRONLY | os.O_TRUNC,
    "rdonly_trunc": os.O_RDONLY | os.O_TRUNC,
    "creat": os.O_RDWR | os.O_CREAT,
    "excl": os.O_RDWR | os.O_CREAT | os.O_EXCL,
    "sync": os.O_WRONLY | os.O_SYNC,
    "path": os.O_PATH,
}


def one_open(name, flags):
    def run(b):
        b.low.file("d/f", b"0123456789" * 1000, 0o644, (21, 22), XATTRS)
        t = yield
        fd = t.open("d/f", flags)
        t.fstat(fd)
        t.pread(fd, 10, 5)
        t.write(fd, b"new")
        t.pread(fd, 10, 0)
        t.fstat(fd)
        t.close(fd)
        t.stat("d/f")
        t.stat("d")

    scenario(name="open_" + name)(run)


for _name, _flags in OPENS.items():
    one_open(_name, _flags)


@scenario()
def keeps_all_attributes(b):
    b.low.file("f", b"x" * 5000, 0o6751, (21, 22), XATTRS).dir("d", 0o3771, (23, 24), XATTRS).file("d/f")
    b.low.symlink("l", "target", (25, 26), {"trusted.t": b"L"}).fifo("p", 0o622, (27, 28))
    t = yield
    for name in ("f", "d", "l", "p"):
        t.setxattr(name, "trusted.trigger", b"")
        t.lstat(name)
        t.atime(name)
        for key in [*XATTRS, "trusted.t"]:
            t.getxattr(name, key)
    t.ctime_is_now("f")


@scenario()
def keeps_acls(b):
    some = acl(users={1000: 5}, mask=7)
    b.low.file("f", mode=0o640, xattrs={ACCESS: some}).dir("d", xattrs={ACCESS: some, DEFAULT: some}).file(
        "d/f"
    )
    t = yield
    for name in ("f", "d"):
        t.chown(name, 5, 5)
        t.getxattr(name, ACCESS)
        t.getxattr(name, DEFAULT)
        t.stat(name)
    t.create("d/new")
    t.getxattr("d/new", ACCESS)


@scenario()
def large_xattrs(b):
    b.low.file("f", xattrs={"user.big": b"B" * 3000, **{f"user.n{i}": b"%d" % i for i in range(20)}})
    t = yield
    t.chmod("f", 0o600)
    t.listxattr("f")
    t.getxattr("f", "user.big")


@scenario()
def sparse_files_stay_sparse(b):
    b.low.sparse("holes", 32 << 20, (0, b"head"), (8 << 20, b"middle"), ((32 << 20) - 4, b"tail"))
    b.low.sparse("all", 16 << 20).sparse("end", 5 << 20, (0, b"x" * 5000)).file("none", b"y" * (1 << 20))
    t = yield
    for name in ("holes", "all", "end", "none"):
        t.append(name, b"!")
        t.blocks(name)
        t.stat(name)


@scenario(on="xfs")
def sparse_on_xfs(b):
    b.low.sparse("holes", 32 << 20, (0, b"head"), (8 << 20, b"middle"), ((32 << 20) - 4, b"tail"))
    t = yield
    t.append("holes", b"!")
    t.blocks("holes")


@scenario(on="btrfs", ino=False)
def sparse_on_btrfs(b):
    b.low.sparse("holes", 32 << 20, (0, b"head"), (8 << 20, b"middle"), ((32 << 20) - 4, b"tail"))
    t = yield
    t.append("holes", b"!")
    t.blocks("holes")


@scenario(lowers_on="tmpfs")
def large_file_from_another_file_system(b):
    b.low.file("f", bytes(range(256)) * 40_000, owner=(1, 2), xattrs={"trusted.x": b"y"})
    t = yield
    t.overwrite("f", b"!", 5_000_000)
    t.stat("f")


@scenario()
def parents_keep_their_times(b):
    b.low.dir("a", 0o2770, (5, 6)).dir("a/b", 0o1777, (7, 8), {"user.b": b"B"}).file("a/b/c/f").file(
        "a/b/other"
    )
    t = yield
    t.append("a/b/c/f", b"more")
    for name in ("a", "a/b", "a/b/c", "."):
        t.stat(name)
    t.atime("a/b")
    t.getxattr("a/b", "user.b")
    t.list("a/b")
    t.create("a/b/c/new")
    t.stat("a/b/c")
    t.stat("a/b")


@scenario(lowers=2)
def attributes_of_a_merged_directory_are_the_topmost(b):
    b.lows[1].dir("d", 0o700, (1, 1), {"user.x": b"bottom", "user.y": b"y"}).file("d/f")
    b.lows[0].dir("d", 0o755, (2, 2), {"user.x": b"top"}).file("d/g")
    t = yield
    t.stat("d")
    t.listxattr("d")
    t.chmod("d", 0o711)
    t.stat("d")
    t.listxattr("d")
    t.getxattr("d", "user.x")


@scenario()
def an_open_reader_sees_what_is_written_after_the_copy_up(b):
    b.low.file("f", b"before")
    t = yield
    reader = t.open("f")
    t.pread(reader, 10, 0)
    t.overwrite("f", b"AFTER!")
    t.pread(reader, 10, 0)
    t.append("f", b" and more")
    t.pread(reader, 40, 0)
    t.fstat(reader)
    t.lseek(reader, 0, os.SEEK_END)
    fresh = t.open("f")
    t.pread(fresh, 40, 0)
    t.truncate("f", 3)
    t.pread(reader, 40, 0)
    t.pread(fresh, 40, 0)
    t.chmod("f", 0o600)
    t.fstat(reader)
    t.unlink("f")
    t.pread(reader, 40, 0)
    t.fstat(reader)


@scenario()
def attributes_through_a_read_only_descriptor(b):
    b.low.file("f", b"data").dir("d", 0o755).file("d/x")
    t = yield
    fd = t.open("f")
    t.fchmod(fd, 0o600)
    t.fstat(fd)
    t.fchown(fd, 5, 6)
    t.futimens(fd, 10**18, 10**18 + 5)
    t.fsetxattr(fd, "user.via", b"fd")
    t.fstat(fd)
    t.fgetxattr(fd, "user.via")
    t.pread(fd, 10, 0)
    t.ftruncate(fd, 1)
    t.same_inode("f", fd)
    t.same_inode("f", "f")
    dirfd = t.open("d", os.O_RDONLY | os.O_DIRECTORY)
    t.fchmod(dirfd, 0o700)
    t.fstat(dirfd)
    t.fsync(dirfd)
    t.stat("d")


@scenario()
def truncation(b):
    for name in ("zero", "less", "same", "more", "open0"):
        b.low.file(name, b"0123456789", 0o644, (5, 6), {"user.k": b"kept"})
    t = yield
    t.truncate("zero", 0)
    t.truncate("less", 4)
    t.truncate("same", 10)
    t.truncate("more", 100_000)
    t.close(t.open("open0", os.O_WRONLY | os.O_TRUNC))
    for name in ("zero", "less", "same", "more", "open0"):
        t.stat(name)
        t.read(name)
        t.getxattr(name, "user.k")


@scenario()
def of_what_only_the_owner_may_touch(b):
    b.low.file("mine", b"x", 0o400, (1000, 1000)).file("theirs", b"x", 0o644).dir("d", 0o755, (1000, 1000))
    b.low.file("d/root-owned", b"y", 0o600).file("writable", b"w", 0o666, (0, 0)).file(
        "none", b"z", 0, (1000, 1000)
    )
    t = yield
    with t.as_user(1000):
        t.chmod("mine", 0o600)
        t.append("mine", b"more")
        t.append("theirs", b"no")
        t.chmod("theirs", 0o666)
        t.append("writable", b"yes")
        t.chmod("none", 0o600)
        t.rename("d/root-owned", "d/renamed")
        t.link("writable", "d/link")
        t.unlink("d/renamed")
        t.utime("writable", 1, 1)
        t.touch("writable")
        t.touch("theirs")
    for name in ("mine", "writable", "none", "theirs"):
        t.stat(name)


@scenario()
def hard_links_break(b):
    b.low.file("a", b"linked").link("a", "b").link("a", "c")
    t = yield
    t.same_inode("x", "a")
    t.same_inode("x", "b")
    t.stat("a")
    t.overwrite("a", b"LINKED")
    for name in "abc":
        t.read(name)
        t.stat(name)


@scenario()
def of_an_empty_file(b):
    b.low.file("e", b"", 0o600, (3, 4))
    t = yield
    t.append("e", b"")
    t.stat("e")
    t.append("e", b"x")
    t.read("e")


@scenario()
def while_a_lock_is_held(b):
    b.low.file("f", b"x")
    t = yield
    fd = t.open("f")
    t.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    t.overwrite("f", b"y")
    other = t.open("f", os.O_RDWR)
    t.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    t.flock(fd, fcntl.LOCK_UN)
    t.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def on_file_systems(kind, below):
    def run(b):
        b.low.kinds("d/", owner=(5, 6)).file(
            "d/data", b"z" * 100_000, xattrs={"user.u": b"U"} if below != "ramfs" else {}
        )
        t = yield
        for name in KINDS:
            t.chown("d/" + name, 7, 8)
        t.append("d/data", b"end")
        t.stat("d/data")
        t.rename("d/file", "d/file2")
        t.unlink("d/fifo")
        t.create("d/new", b"n")
        t.list("d")
        t.same_inode("x", "d/data")
        t.chmod("d/data", 0o600)
        t.same_inode("x", "d/data")
        t.getxattr("d/dir", ACCESS)
        t.listxattr("d/dir")

    scenario(
        name=f"{kind}_over_{below}", on=kind, lowers_on=None if kind == below else below, ino=kind != "btrfs"
    )(run)


for _kind in ("ext4", "xfs", "btrfs", "tmpfs"):
    for _below in ("ext4", "xfs", "btrfs", "tmpfs", "ramfs"):
        on_file_systems(_kind, _below)
