"""rename(2) and renameat2(2): every kind of source over every kind of target, with and without redirects."""

import os

from differential.scenario import scenario
from support.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT

SOURCES = (
    *("file-lower", "file-upper", "file-copied", "symlink-lower", "symlink-upper"),
    *("dir-lower", "dir-upper", "dir-merged", "emptydir-lower", "whiteout", "nothing"),
)
TARGETS = (
    *("nothing", "whiteout", "file-lower", "file-upper", "symlink-lower", "emptydir-lower", "emptydir-upper"),
    *("emptydir-merged", "dir-lower", "dir-upper", "dir-merged", "dir-hollow"),
)
FLAGS = {"plain": 0, "noreplace": RENAME_NOREPLACE, "exchange": RENAME_EXCHANGE, "whiteout": RENAME_WHITEOUT}


def place(b, path, what):
    """Build one object of the matrix."""
    kind, _, where = what.partition("-")
    content = f"{path} {what}".encode()
    if what == "whiteout":
        b.low.file(path, content)
        b.up.whiteout(path)
    elif kind == "file":
        if where != "upper":
            b.low.file(path, b"lower " + content, 0o640, (3, 4))
        if where != "lower":
            b.up.file(path, content, 0o604, (5, 6))
    elif kind == "symlink":
        (b.low if where == "lower" else b.up).symlink(path, content)
    elif kind in ("dir", "emptydir"):
        for layer, present in ((b.low, where in ("lower", "merged", "hollow")), (b.up, where != "lower")):
            if not present:
                continue
            layer.dir(path, 0o750, (7, 8), {"user.dir": content[:200]})
            side = "low" if layer is b.low else "up"
            if where == "hollow":  # everything in it is whited out
                layer.file(f"{path}/gone") if layer is b.low else layer.whiteout(f"{path}/gone")
            elif kind == "dir":
                layer.file(f"{path}/{side}", content).file(f"{path}/both", side.encode()).dir(
                    f"{path}/sub/{side}"
                )


def matrix(flag, redirect, source):
    targets = list(TARGETS)
    if flag == "plain" and source.startswith(("dir", "emptydir")):
        # ENOTEMPTY on both, but the kernel has copied up and marked the source by then.
        targets.remove("dir-upper")

    def run(b):
        for target in targets:
            # In one directory, and from one directory (lower) to another (in both layers).
            place(b, f"same/{target}/s", source)
            place(b, f"same/{target}/t", target)
            place(b, f"from/{target}/s", source)
            place(b, f"to/{target}/t", target)
            for directory in (f"same/{target}", f"from/{target}", f"to/{target}"):
                b.low.dir(directory)
            b.up.dir(f"to/{target}")
        t = yield
        for target in targets:
            for old, new in (
                (f"same/{target}/s", f"same/{target}/t"),
                (f"from/{target}/s", f"to/{target}/t"),
            ):
                for path in (old, new):
                    if os.path.lexists(path):
                        t.same_inode(path, path)
                before = os.lstat(old).st_ino if os.path.lexists(old) else None
                t.rename(old, new, FLAGS[flag])
                for path in (old, new):
                    t.lstat(path)
                    if os.path.isdir(path) and not os.path.islink(path):
                        t.list(path)
                after = os.lstat(new).st_ino if os.path.lexists(new) else None
                t.note("the inode went along", (before == after, before is None))
            t.list(f"same/{target}")
            t.list(f"from/{target}")
            t.list(f"to/{target}")

    scenario(name=f"{flag}_redirect_{redirect}_{source}", options=f"redirect_dir={redirect}")(run)


for _flag in FLAGS:
    for _redirect in ("on", "off"):
        for _source in SOURCES:
            if _flag in ("noreplace", "whiteout") and _redirect == "off" and not _source.startswith("dir"):
                continue  # redirects matter for directories only; the flags are covered by the others
            matrix(_flag, _redirect, _source)


@scenario(options="redirect_dir=on")
def a_lower_directory_moves(b):
    b.low.file("d/f", b"x").file("d/s/g", b"y").dir("other")
    t = yield
    t.rename("d", "e")
    t.list(".")
    t.list("e")
    t.read("e/s/g")
    t.stat("d")
    t.overwrite("e/f", b"X")
    t.create("e/s/new", b"n")
    t.unlink("e/s/g")
    t.list("e/s")
    t.rename("e", "other/e")
    t.list("other/e")
    t.mkdir("d")
    t.list("d")
    t.create("d/f", b"not the old one")
    t.list("other/e/s")


@scenario(options="redirect_dir=on")
def renames_in_a_row(b):
    b.low.file("a/b/c/f", b"deep").file("x/y", b"xy")
    t = yield
    t.rename("a/b/c", "a/b/c2")
    t.rename("a/b", "a/b2")
    t.rename("a", "a2")
    t.read("a2/b2/c2/f")
    t.rename("a2/b2/c2", "x/c3")
    t.read("x/c3/f")
    t.rename("x", "a2/b2/x")
    t.list("a2/b2/x")
    t.read("a2/b2/x/c3/f")
    t.rename("a2/b2/x/c3", "c4")
    t.rename("c4", "a")
    t.read("a/f")
    t.chmod("a/f", 0o600)
    t.list(".")


@scenario(options="redirect_dir=on")
def there_and_back(b):
    b.low.file("d/f", b"x").file("e/g")
    t = yield
    t.rename("d", "d2")
    t.rename("d2", "d")
    t.list("d")
    t.rename("d", "e/d")
    t.rename("e/d", "d")
    t.list("d")
    t.list("e")
    t.list(".")


@scenario(options="redirect_dir=on")
def directories_exchanged(b):
    b.low.file("a/fa", b"a").file("b/fb", b"b").file("f", b"file")
    b.up.file("c/fc", b"c")
    t = yield
    t.rename("a", "b", RENAME_EXCHANGE)
    t.list("a")
    t.list("b")
    t.rename("a", "c", RENAME_EXCHANGE)
    t.list("a")
    t.list("c")
    t.rename("a", "f", RENAME_EXCHANGE)
    t.list("f")
    t.read("a")
    t.rename("c", "nothing", RENAME_EXCHANGE)
    t.rename("c", "c/fb", RENAME_EXCHANGE)


@scenario(options="redirect_dir=on", lowers=3)
def through_several_lowers(b):
    for i, layer in enumerate(b.lows):
        layer.file(f"d/f{i}", b"%d" % i).file("d/s/x", b"x%d" % i)
    b.lows[1].opaque("d/s")
    t = yield
    t.rename("d", "moved")
    t.list("moved")
    t.list("moved/s")
    t.rename("moved/s", "s")
    t.list("s")
    t.list("moved")
    t.read("s/x")


@scenario(options="redirect_dir=on")
def long_names_in_redirects(b):
    deep = "/".join(["n" * 100] * 4)
    b.low.file(deep + "/d/f", b"x").file("short/f")
    t = yield
    t.rename(deep + "/d", deep + "/e")
    t.rename(deep + "/e", "top")
    t.read("top/f")
    t.rename("short", "s" * 255)
    t.list("s" * 255)


@scenario(options="redirect_dir=on")
def odd_characters_in_redirects(b):
    for name in ("a b", "a:b", "a,b", "a\\b", "a\nb"):
        b.low.file(f"{name}/sub/f", name.encode())
    t = yield
    for name in ("a b", "a:b", "a,b", "a\\b", "a\nb"):
        t.rename(name, "new " + name)
        t.rename(f"new {name}/sub", "sub " + name)
        t.read(f"sub {name}/f")


@scenario(options="redirect_dir=on")
def an_open_directory_keeps_working(b):
    b.low.file("d/f", b"x").file("d/g", b"y")
    t = yield
    fd = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
    t.rename("d", "e")
    t.note("by the descriptor", sorted(os.listdir(fd)))
    t.create("e/new")
    os.chdir(fd)
    t.create("by-cwd", b"c")
    t.list(".")
    t.chdir("..")
    t.list("e")
    os.close(fd)


@scenario()
def open_files_keep_working(b):
    b.low.file("low", b"low").file("victim", b"victim")
    b.up.file("up", b"up")
    t = yield
    low, up, victim = t.open("low"), t.open("up", os.O_RDWR), t.open("victim", os.O_RDWR)
    t.rename("low", "low2")
    t.rename("up", "victim")
    t.pread(low, 10, 0)
    t.pread(up, 10, 0)
    t.pread(victim, 10, 0)
    t.pwrite(up, b"UP", 0)
    t.pwrite(victim, b"gone", 0)
    t.fstat(victim)
    t.read("victim")
    t.same_inode("low", low)
    t.same_inode("low", "low2")


@scenario()
def times_of_the_directories(b):
    b.low.file("a/f").dir("b").file("a/g")
    t = yield
    t.rename("a/f", "b/f")
    for name in ("a", "b", "b/f", "."):
        t.stat(name)
    t.ctime_is_now("b/f")
    t.rename("a/g", "a/h")
    t.stat("a")


@scenario(options="redirect_dir=on")
def dot_dot_of_a_moved_directory(b):
    b.low.file("a/d/f").dir("b")
    t = yield
    t.chdir("a/d")
    t.rename("../d", "../../b/d")
    t.list("..")
    t.stat("../d")
    t.chdir("../..")
    t.dots("b/d")
    t.dots("b")


@scenario(options="redirect_dir=follow")
def redirect_follow_is_not_on(b):
    b.low.file("d/f")
    b.up.dir("u")
    t = yield
    t.rename("d", "e")
    t.rename("u", "v")
    t.rename("d", "u2", RENAME_EXCHANGE)
    t.list(".")


@scenario(options="redirect_dir=nofollow")
def redirect_nofollow(b):
    b.low.file("d/f")
    t = yield
    t.rename("d", "e")
    t.list(".")


@scenario()
def whole_names(b):
    b.low.file("f").dir("d").symlink("l", "d")
    t = yield
    t.rename("f", "f")
    t.rename("d", "d")
    t.rename("f", "d/")
    t.rename("f/", "g")
    t.rename("l/", "m")
    t.rename(".", "x")
    t.rename("d", "..")
    t.rename("d/.", "x")
    t.rename("f", "new/")
    t.rename("d", "new/")
    t.rename("f", "g", RENAME_EXCHANGE | RENAME_NOREPLACE)
    t.rename("f", "g", 8)
    t.list(".")
