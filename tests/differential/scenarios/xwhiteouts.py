"""Whiteouts as attributes: what `overlay.whiteout` on an empty file hides, and what becomes of it."""

from differential.scenario import scenario
from support import syscalls

XWHITEOUT = {"trusted.overlay.whiteout": b"y"}
MARK = {"trusted.overlay.opaque": b"x"}


def xwhiteout(layer, path, mark=True):
    """Such a whiteout; `mark`: its directory says that it may hold some."""
    layer.file(path, b"", xattrs=XWHITEOUT)
    if mark:
        layer.dir(path.rpartition("/")[0] or ".", xattrs=MARK)


@scenario(lowers=3)
def in_each_layer_with_and_without_the_mark(b):
    layers = {"bottom": b.lows[2], "middle": b.lows[1], "top": b.lows[0], "up": b.up}
    for name, layer in layers.items():
        for mark in (True, False):
            d = f"{name}-{'marked' if mark else 'plain'}"
            xwhiteout(layer, f"{d}/w", mark)
            xwhiteout(layer, f"{d}/over", mark)
            layer.file(f"{d}/full", b"not empty", xattrs=XWHITEOUT)
            layer.file(f"{d}/empty", b"")
            layer.symlink(f"{d}/link", "w")
            for other in layers.values():
                if other is not layer:
                    other.file(f"{d}/w").file(f"{d}/own-{list(layers.values()).index(other)}")
                if other is layer:
                    break
            for other in layers.values():
                if other is not layer:
                    other.dir(d)
    t = yield
    for name in layers:
        for mark in ("marked", "plain"):
            d = f"{name}-{mark}"
            for entry in ("w", "over", "full", "empty", "link"):
                t.lstat(f"{d}/{entry}")
            t.list(d)


@scenario(lowers=2)
def in_directories_of_one_layer_alone(b):
    for layer, name in ((b.lows[1], "bottom"), (b.lows[0], "top"), (b.up, "up")):
        for mark in (True, False):
            d = f"{name}-{mark}"
            xwhiteout(layer, f"{d}/w", mark)
            layer.file(f"{d}/f", b"f")
    t = yield
    for name in ("bottom", "top", "up"):
        for mark in (True, False):
            d = f"{name}-{mark}"
            t.lstat(f"{d}/w")
            t.list(d)
            t.unlink(f"{d}/f")
            t.rmdir(d)
            t.list(".")


@scenario(lowers=1)
def in_the_only_lower(b):
    xwhiteout(b.low, "d/w")
    xwhiteout(b.low, "w", mark=False)
    xwhiteout(b.low, "e/w", mark=False)
    t = yield
    for name in ("d/w", "w", "e/w"):
        t.lstat(name)
        t.unlink(name)
        t.create(name, b"new")
        t.read(name)
        t.unlink(name)
        t.lstat(name)
    t.list(".")
    t.list("d")
    t.list("e")


@scenario(lowers=2)
def marked_in_another_layer(b):
    b.lows[1].file("d/a").file("d/b").file("d/c").file("e/a")
    b.lows[0].dir("d", xattrs=MARK)
    xwhiteout(b.up, "d/a", mark=False)
    xwhiteout(b.lows[0], "d/b", mark=False)
    xwhiteout(b.lows[0], "e/a", mark=False)
    xwhiteout(b.lows[1], "d/z", mark=False)
    t = yield
    for name in ("d/a", "d/b", "d/c", "e/a", "d/z"):
        t.lstat(name)
    t.list("d")
    t.list("e")


@scenario(lowers=3)
def in_the_root(b):
    b.lows[2].file("a").file("b").file("c")
    xwhiteout(b.lows[1], "a")
    xwhiteout(b.lows[0], "b", mark=False)
    xwhiteout(b.up, "c", mark=False)
    xwhiteout(b.lows[2], "z", mark=False)
    t = yield
    for name in ("a", "b", "c", "z"):
        t.lstat(name)
    t.list(".")
    for name in ("a", "b", "c", "z"):
        t.create(name, b"again")
        t.lstat(name)
    t.list(".")


def _things(b, prefix):
    """Names under which something is hidden, in the upper and in a lower layer."""
    for kind in ("file", "dir", "none"):
        for place in (b.up, b.lows[0]):
            for make in range(8):
                name = f"d/{prefix}{kind}-{'up' if place is b.up else 'low'}-{make}"
                if kind == "file":
                    b.lows[1].file(name, b"below")
                elif kind == "dir":
                    b.lows[1].file(name + "/inside", b"below")
                xwhiteout(place, name)
                yield name, make


@scenario(lowers=2)
def made_anew(b):
    names = list(_things(b, ""))
    b.lows[1].file("source", b"s").dir("emptydir").file("lowdir/f")
    b.up.file("upsource", b"u").dir("updir")
    for i in range(12):
        b.up.file(f"moves/file{i}", b"m").dir(f"moves/dir{i}")
        b.lows[1].file(f"lowmoves/file{i}", b"m")
    t = yield
    moved = 0
    for name, make in names:
        if make == 0:
            t.create(name, b"new")
        elif make == 1:
            t.mkdir(name)
        elif make == 2:
            t.symlink("target", name)
        elif make == 3:
            t.mknod(name, 0o010644)
        elif make == 4:
            t.link("source", name)
        elif make == 5:
            t.rename(f"moves/file{moved}", name)
        elif make == 6:
            t.rename(f"moves/dir{moved}", name)
        elif make == 7:
            t.rename(f"lowmoves/file{moved}", name)
            moved += 1
        t.lstat(name)
        t.list(name)
    t.list("d")
    t.list("moves")
    t.list("lowmoves")


@scenario(lowers=2)
def removed_again(b):
    names = list(_things(b, ""))
    t = yield
    for name, make in names:
        t.unlink(name)
        t.rmdir(name)
        t.create(name, b"1") if make % 2 else t.mkdir(name)
        t.unlink(name) if make % 2 else t.rmdir(name)
        t.lstat(name)
        t.rename(name, name + "x", syscalls.RENAME_EXCHANGE)
    t.list("d")
    t.rmdir("d")


@scenario(lowers=2)
def directories_that_hold_them_are_removed(b):
    for where, layer in (("up", b.up), ("low", b.lows[0]), ("bottom", b.lows[1])):
        for mark in (True, False):
            xwhiteout(layer, f"{where}-{mark}-alone/w", mark)
            xwhiteout(layer, f"{where}-{mark}-merged/w", mark)
            xwhiteout(layer, f"{where}-{mark}-hiding/w", mark)
            b.lows[1].dir(f"{where}-{mark}-merged")
            if layer is not b.lows[1]:
                b.lows[1].file(f"{where}-{mark}-hiding/w", b"hidden")
            b.up.dir(f"target-{where}-{mark}").file(f"onto-{where}-{mark}/f")
            xwhiteout(layer, f"over-{where}-{mark}/w", mark)
    b.up.opaque("opaque")
    xwhiteout(b.up, "opaque/w", mark=False)
    t = yield
    for where in ("up", "low", "bottom"):
        for mark in (True, False):
            for how in ("alone", "merged", "hiding"):
                d = f"{where}-{mark}-{how}"
                t.list(d)
                t.rmdir(d)
                t.lstat(d)
            if where != "up":  # over what is purely upper the kernel fails after having marked the source
                t.rename(f"onto-{where}-{mark}", f"over-{where}-{mark}")
            t.list(f"over-{where}-{mark}")
    t.rmdir("opaque")
    t.list(".")


@scenario(lowers=3, options="redirect_dir=on")
def on_the_way_of_a_redirect(b):
    b.lows[2].file("a/b/f", b"deep").file("old/g", b"g").file("c/h")
    xwhiteout(b.lows[1], "a/b", mark=False)
    xwhiteout(b.lows[1], "old", mark=False)
    xwhiteout(b.lows[1], "c", mark=True)
    b.lows[0].dir("new", xattrs={"trusted.overlay.redirect": b"/a/b"}).file("new/own")
    b.lows[0].dir("moved", xattrs={"trusted.overlay.redirect": b"old"}).file("moved/own")
    b.lows[0].dir("c").file("c/own")
    t = yield
    for d in ("new", "moved", "c"):
        t.list(d)
        t.rename(d, d + "2")
        t.list(d + "2")


@scenario(lowers=2)
def copied_up_around(b):
    b.lows[1].file("d/a").file("d/b", b"b").file("d/sub/x")
    xwhiteout(b.lows[0], "d/a")
    xwhiteout(b.lows[0], "d/sub/x")
    b.lows[0].file("d/full", b"data", xattrs=XWHITEOUT).file("d/empty", b"")
    t = yield
    t.chmod("d", 0o700)
    t.list("d")
    t.chmod("d/sub", 0o700)
    t.chmod("d/full", 0o600)
    t.truncate("d/full", 0)
    t.lstat("d/full")
    t.chmod("d/empty", 0o600)
    t.list("d")
    t.list("d/sub")
    t.listxattr("d")


@scenario(lowers=2)
def of_files_that_are_cut_through_the_mount(b):
    """The attribute does not come through the mount, so an upper file that becomes empty keeps it."""
    b.up.file("d/full", b"data", xattrs=XWHITEOUT)
    b.up.file("e/full", b"data", xattrs=XWHITEOUT).dir("e", xattrs=MARK)
    t = yield
    for name in ("d/full", "e/full"):
        t.truncate(name, 0)
        t.lstat(name)
        t.list(name[0])
        t.overwrite(name, b"no whiteout at the next mount")
