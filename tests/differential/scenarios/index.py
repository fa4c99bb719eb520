"""index=on: hard links of lower layers stay hard links over their copy-up."""

import os

from differential.builder import KINDS
from differential.scenario import scenario
from support.syscalls import RENAME_EXCHANGE

ON = "index=on"
ALL = ON + ",redirect_dir=on"


def family(layer, *names, data=b"0123456789", owner=(21, 22)):
    """One file of several names."""
    first, *others = names
    layer.file(first, data, 0o644, owner, {"user.a": b"A"})
    for name in others:
        layer.link(first, name)
    return layer


def look(t, *names):
    for name in names:
        t.lstat(name)
        t.same_inode("f", name)


CHANGES = {
    "chmod": lambda t, p: t.chmod(p, 0o604),
    "chown": lambda t, p: t.chown(p, 11, 12),
    "utime": lambda t, p: t.utime(p, 10**18 + 1, 10**18 + 2),
    "setxattr": lambda t, p: t.setxattr(p, "user.b", b"v"),
    "removexattr": lambda t, p: t.removexattr(p, "user.a"),
    "overwrite": lambda t, p: t.overwrite(p, b"NEW", 2),
    "append": lambda t, p: t.append(p, b"more"),
    "truncate": lambda t, p: t.truncate(p, 3),
    "truncate_to_nothing": lambda t, p: t.truncate(p, 0),
    "open_truncating": lambda t, p: t.close(t.open(p, os.O_WRONLY | os.O_TRUNC)),
    "open_for_writing": lambda t, p: t.close(t.open(p, os.O_RDWR)),
    "link": lambda t, p: t.link(p, "new"),
    "unlink": lambda t, p: t.unlink(p),
    "rename": lambda t, p: t.rename(p, "new"),
    "rename_elsewhere": lambda t, p: t.rename(p, "e/new"),
    "rename_over_upper": lambda t, p: t.rename(p, "up"),
    "rename_over_lower": lambda t, p: t.rename(p, "low"),
    "renamed_over_by_upper": lambda t, p: t.rename("up", p),
    "renamed_over_by_lower": lambda t, p: t.rename("low", p),
    "rename_over_another_name": lambda t, p: t.rename(p, "c"),
    "exchange_with_lower": lambda t, p: t.rename(p, "low", RENAME_EXCHANGE),
    "exchange_with_upper_directory": lambda t, p: t.rename("updir", p, RENAME_EXCHANGE),
    "exchange_with_another_name": lambda t, p: t.rename(p, "c", RENAME_EXCHANGE),
}


def one_change(change, when):
    def run(b):
        family(b.low, "a", "d/b", "c")
        family(b.low, "x", "d/y", data=b"others")
        b.low.file("low").dir("e")
        b.up.file("up").dir("updir").file("updir/f")
        t = yield
        if when == "after":
            # Its names are known before, and it is copied up by another one.
            look(t, "c", "d/b", "a")
            t.chmod("a", 0o640)
            look(t, "a", "c", "d/b")
        CHANGES[change](t, "d/b")
        for name in ("d/b", "a", "c", "new", "e/new", "up", "low"):
            t.lstat(name)
            t.read(name)
            t.listxattr(name)
        look(t, "a", "d/b", "c")
        t.stat("d")
        t.dots("d")
        t.stat(".")
        t.list("d")

    # link(2) does not say of which name; so by itself the name that was looked up last is meant.
    scenario(options=ALL, name=f"{change}_{when}_copy_up")(run)


for _change in CHANGES:
    for _when in ("by", "after"):
        one_change(_change, _when)


@scenario(options=ON)
def every_kind(b):
    b.low.kinds("k/")
    for kind in KINDS:
        if kind != "dir":
            b.low.link("k/" + kind, "k/" + kind + "2").link("k/" + kind, "other/" + kind)
    t = yield
    for kind in KINDS:
        if kind != "dir":
            names = ["k/" + kind, "k/" + kind + "2", "other/" + kind]
            t.chown(names[1], 31, 32)
            look(t, *names)
            t.unlink(names[1])
            look(t, *names)
            t.rename(names[2], "other/renamed")
            look(t, *names, "other/renamed")
            t.unlink("other/renamed")
            look(t, *names)
            t.unlink(names[0])
            t.list("k")


@scenario(options=ON)
def until_nothing_is_left(b):
    family(b.low, "a", "b", "d/c")
    family(b.low, "p", "q")
    t = yield
    for name in ("b", "a", "d/c"):
        t.unlink(name)
        look(t, "a", "b", "d/c")
    t.unlink("p")
    t.link("q", "r")
    look(t, "p", "q", "r")
    t.unlink("q")
    look(t, "p", "q", "r")
    t.create("q")
    t.unlink("r")
    look(t, "p", "q", "r")
    t.list()


@scenario(options=ON)
def more_names(b):
    family(b.low, "a", "b")
    t = yield
    for number in range(4):
        t.link("a", f"n{number}")
        look(t, "a", "b", f"n{number}")
    t.unlink("a")
    t.unlink("b")
    look(t, "n0", "n3")
    t.overwrite("n1", b"!")
    t.read("n2")
    for number in range(3):
        t.unlink(f"n{number}")
        t.lstat("n3")
    t.unlink("n3")
    t.list()


@scenario(options=ON)
def names_that_are_used_again(b):
    family(b.low, "a", "b", "c")
    t = yield
    t.unlink("a")
    t.link("b", "a")
    look(t, "a", "b", "c")
    t.unlink("b")
    t.create("b", b"another")
    look(t, "a", "b", "c")
    t.rename("c", "b")
    look(t, "a", "b", "c")
    t.symlink("nowhere", "c")
    t.rename("a", "c")
    look(t, "a", "b", "c")


@scenario(options=ON)
def two_files(b):
    family(b.low, "a", "b")
    family(b.low, "x", "y", data=b"xy")
    t = yield
    t.rename("a", "x")
    look(t, "a", "b", "x", "y")
    t.rename("y", "b")
    look(t, "a", "b", "x", "y")
    t.rename("x", "b", RENAME_EXCHANGE)
    look(t, "a", "b", "x", "y")
    t.read("x")
    t.read("b")


@scenario(options=ON)
def open_files(b):
    family(b.low, "a", "b", "c")
    t = yield
    reader = t.open("a")
    t.pread(reader, 20, 0)
    writer = t.open("b", os.O_RDWR)
    t.pwrite(writer, b"!!", 0)
    t.pread(reader, 20, 0)
    t.fstat(reader)
    third = t.open("c")
    t.pread(third, 20, 0)
    for name in ("a", "c", "b"):
        t.unlink(name)
        t.fstat(reader)
    t.pwrite(writer, b"gone", 2)
    t.pread(third, 20, 0)
    t.fchmod(third, 0o600)
    t.fsetxattr(reader, "user.z", b"Z")
    t.fgetxattr(writer, "user.z")
    t.fstat(reader)
    t.list()


@scenario(options=ON)
def open_lower_file_unlinked_by_its_names(b):
    family(b.low, "a", "b")
    t = yield
    reader = t.open("a")
    t.unlink("a")
    t.pread(reader, 20, 0)
    t.fstat(reader)
    t.overwrite("b", b"NEW")
    t.pread(reader, 20, 0)
    t.unlink("b")
    t.fchmod(reader, 0o611)
    t.fstat(reader)
    t.pread(reader, 20, 0)


@scenario(options=ON, raw=False)
def descriptors_of_other_names(b):
    """fchmod(2) and the like: a request does not say of which open file, so not of which name."""
    family(b.low, "a", "b")
    t = yield
    a, other = t.open("a"), t.open("b")
    t.fchmod(other, 0o600)
    t.ftruncate(a, 1)
    t.futimens(a, 10**18, 10**18 + 5)
    t.fstat(other)
    t.fstat(a)
    t.same_inode("f", a)
    t.same_inode("f", other)
    look(t, "a", "b")


@scenario(options=ALL, lowers=3)
def links_over_several_layers(b):
    family(b.lows[1], "a", "d/b")
    os.link(b.lows[1].path("a"), b.lows[0].path("d/top"))
    os.link(b.lows[1].path("a"), b.lows[2].path("d/bottom"))
    b.lows[0].whiteout("d/b")
    b.lows[2].file("a", b"hidden")
    t = yield
    names = ("a", "d/b", "d/top", "d/bottom")
    look(t, *names)
    t.append("d/bottom", b"+")
    look(t, *names)
    t.read("a")
    t.rename("d", "e")
    t.unlink("e/top")
    look(t, "a", "e/bottom", "e/top")
    t.overwrite("a", b"A")
    t.unlink("a")
    t.unlink("e/bottom")
    t.list("e")


@scenario(options=ALL, clean=False)
def names_that_the_union_does_not_show(b):
    """Who hid them did not know of the index: they are counted."""
    family(b.low, "a", "b", "d/c", "d/x")
    b.up.whiteout("b").opaque("d").file("d/own")
    t = yield
    look(t, "a", "b", "d/c")
    t.chmod("a", 0o600)
    look(t, "a")
    t.link("a", "d/c")
    look(t, "a", "d/c")
    t.unlink("a")
    look(t, "d/c")


@scenario(options=ALL)
def directories_with_links_move(b):
    family(b.low, "d/e/a", "f/b", "d/c")
    t = yield
    look(t, "d/e/a", "f/b", "d/c")
    t.rename("d", "g")
    look(t, "g/e/a", "f/b", "g/c")
    t.append("g/e/a", b"!")
    t.read("f/b")
    t.rename("f", "g/f")
    look(t, "g/e/a", "g/f/b", "g/c")
    t.unlink("g/f/b")
    t.rmdir("g/f")
    look(t, "g/e/a", "g/f/b", "g/c")
    t.rename("g/e/a", "g/c")
    t.unlink("g/c")
    t.rename("g/e/a", "top")
    t.rmdir("g/e")
    look(t, "top", "g/c")


@scenario(options=ON)
def parents_keep_their_times(b):
    b.low.dir("d", 0o2770, (5, 6))
    family(b.low, "d/a", "e/b", "e/f/c")
    t = yield
    look(t, "e/b", "e/f/c", "d/a")
    t.chmod("d/a", 0o600)
    for name in ("d", "e", "e/f", "."):
        t.stat(name)
    t.unlink("e/f/c")
    for name in ("d", "e", "."):
        t.stat(name)
    t.list("d")
    t.list("e")


@scenario(options=ON)
def purely_upper_links(b):
    b.up.file("a").link("a", "b").dir("d")
    b.low.file("low")
    t = yield
    look(t, "a", "b")
    t.link("a", "d/c")
    t.unlink("b")
    t.chmod("low", 0o600)
    t.link("low", "low2")
    t.rename("low2", "d/low2")
    look(t, "a", "b", "d/c", "low", "d/low2")
    t.unlink("low")
    look(t, "d/low2")


@scenario(options=ON)
def large_and_sparse(b):
    b.low.sparse("a", 8 << 20, (0, b"head"), (3 << 20, b"x" * 700_000)).link("a", "b").link("a", "c")
    t = yield
    t.unlink("c")
    t.append("b", b"!")
    look(t, "a", "b")
    t.read("a")


@scenario(options=ON)
def directories_are_opaque_from_the_start(b):
    """No lower layer may be added to later, so a new directory hides what would be there."""
    b.low.dir("d")
    t = yield
    t.mkdir("new")
    t.mkdir("d/new")
    t.list("d")


@scenario(options=ON + ",volatile")
def on_a_volatile_mount(b):
    family(b.low, "a", "b", "d/c")
    t = yield
    t.append("a", b"x")
    look(t, "a", "b", "d/c")
    t.unlink("b")
    t.rename("d/c", "d/e")
    look(t, "a", "b", "d/e")


@scenario(options=ON + ",userxattr")
def with_userxattr(b):
    family(b.low, "a", "b", "d/c")
    t = yield
    t.append("a", b"x")
    look(t, "a", "b", "d/c")
    t.unlink("b")
    t.rename("d/c", "d/e")
    look(t, "a", "b", "d/e")


@scenario(options=ON + ",uuid=off")
def without_a_uuid(b):
    family(b.low, "a", "b").file("f")
    t = yield
    t.append("a", b"x")
    t.append("f", b"x")
    look(t, "a", "b", "f")


@scenario(options="uuid=off")
def without_a_uuid_nor_an_index(b):
    family(b.low, "a", "b").file("d/f")
    t = yield
    t.append("a", b"x")
    t.append("d/f", b"x")
    t.stat("d/f")
    t.stat("d")


def elsewhere(kind, **where):
    def run(b):
        family(b.low, "a", "b", "d/c")
        b.low.symlink("l", "a").link("l", "d/l")
        t = yield
        t.append("a", b"x")
        look(t, "a", "b", "d/c")
        t.unlink("b")
        t.chown("d/l", 1, 2)
        t.rename("d/c", "d/e")
        look(t, "a", "b", "d/e", "l", "d/l")
        t.unlink("a")
        t.unlink("d/e")
        t.list("d")

    scenario(options=ON, name="on_" + kind, **where)(run)


elsewhere("xfs", on="xfs")
elsewhere("btrfs", on="btrfs", ino=False)
elsewhere("tmpfs", on="tmpfs")
elsewhere("lower_on_xfs", lowers_on="xfs")
