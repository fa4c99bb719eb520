"""metacopy=on: metadata without data in the upper and in lower layers, and data-only layers."""

import os
import stat

from differential.scenario import scenario
from differential.tree import Fd, acl
from support.syscalls import RENAME_EXCHANGE

ON = "metacopy=on,redirect_dir=on"
INDEX = "metacopy=on,redirect_dir=on,index=on"
META, REDIRECT = "trusted.overlay.metacopy", "trusted.overlay.redirect"
SIZE = 10_000
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def meta(layer, path, redirect=None, size=SIZE, value=b"", **more):
    """A metacopy file made by hand."""
    xattrs = {META: value} | ({REDIRECT: redirect} if redirect is not None else {})
    layer.file(path, b"", xattrs=xattrs, **more)
    os.truncate(layer.path(path), size)


def data(mark, size=SIZE):
    return (mark * size)[:size]


def numbers(t, *paths):
    """st_blocks, exactly: those of the data."""
    for path in paths:
        try:
            t.note(f"blocks of {path}", os.stat(path).st_blocks)
        except OSError as e:
            t.note(f"blocks of {path}", e.errno)


@scenario(options=ON, name="changes_of_metadata")
@scenario(options=ON, name="changes_of_metadata_on_xfs", on="xfs")
@scenario(options=ON, name="changes_of_metadata_across", lowers_on="xfs")
@scenario(options=ON + ",volatile", name="changes_of_metadata_volatile")
@scenario(options="metacopy=on", name="changes_of_metadata_alone")
@scenario(options=INDEX, name="changes_of_metadata_indexed")
@scenario(name="changes_of_metadata_off")
def changes_of_metadata(b):
    names = ("chmod", "chown", "utime", "setxattr", "removexattr", "acl", "link", "rename")
    for name in names:
        b.low.file(f"d/{name}", data(name.encode()), 0o640, (3, 4), {"user.x": b"value"})
    b.low.file("d/empty", b"").sparse("d/holes", 1 << 20, (1 << 19, b"data")).file(
        "d/big", data(b"big", 700_000)
    )
    b.low.file("d/setid", data(b"s"), 0o6755).file("d/read", data(b"r"))
    t = yield
    t.chmod("d/chmod", 0o600)
    t.chown("d/chown", 5, 6)
    t.utime("d/utime", 5, 6)
    t.setxattr("d/setxattr", "user.y", b"new")
    t.removexattr("d/removexattr", "user.x")
    t.setxattr("d/acl", "system.posix_acl_access", acl(users={1000: 7}))
    t.link("d/link", "d/linked")
    t.rename("d/rename", "d/renamed")
    for name in ("empty", "holes", "big"):
        t.chmod(f"d/{name}", 0o604)
    t.chown("d/setid", 7, 8)
    for name in (*names, "linked", "renamed", "empty", "holes", "big", "setid"):
        t.stat(f"d/{name}")
        t.listxattr(f"d/{name}")
        t.read(f"d/{name}")
    numbers(t, *(f"d/{name}" for name in (*names, "linked", "renamed", "big", "setid")))
    t.same_inode("chmod", "d/chmod")
    t.list("d")


@scenario(options=ON, name="data_follows_metadata")
@scenario(options=INDEX, name="data_follows_metadata_indexed")
def data_follows_metadata(b):
    for name in (
        "write",
        "append",
        "truncate",
        "shrink",
        "grow",
        "zero",
        "otrunc",
        "rdwr",
        "fallocate",
        "copy",
    ):
        b.low.file(f"d/{name}", data(name.encode()), 0o640, (3, 4), {"user.x": b"value"})
    b.low.file("d/capable", data(b"c"), 0o755, xattrs={"security.capability": CAPABILITY})
    b.low.file("d/setid", data(b"s"), 0o6755).file("d/empty", b"").file("d/big", data(b"big", 700_000))
    b.low.sparse("d/holes", 1 << 20, (1 << 19, b"data"))
    t = yield
    everything = sorted(os.listdir("d"))
    for name in everything:
        t.same_inode(name, f"d/{name}")
        t.utime(f"d/{name}", 5, 6)
    t.overwrite("d/write", b"new", 10)
    t.append("d/append", b"new")
    t.truncate("d/truncate", SIZE)
    t.truncate("d/shrink", 100)
    t.truncate("d/grow", 2 * SIZE)
    t.truncate("d/zero", 0)
    t.create("d/otrunc", b"new", flags=os.O_TRUNC)
    for name in ("rdwr", "capable", "setid", "empty", "big", "holes"):
        t.close(t.open(f"d/{name}", os.O_RDWR))
    f = t.open("d/fallocate", os.O_RDWR)
    t.fallocate(f, 3, 0, 4096)
    t.close(f)
    f, g = t.open("d/copy", os.O_RDWR), t.open("d/rdwr")
    t.copy_file_range(g, f, 100, 0, 50)
    t.close(f)
    t.close(g)
    for name in everything:
        t.same_inode(name, f"d/{name}")
        t.stat(f"d/{name}")
        t.listxattr(f"d/{name}")
        t.read(f"d/{name}")
    t.append("d/empty", b"x")
    t.read("d/empty")


@scenario(options=ON, name="open_before_the_data_is_copied_up")
@scenario(options=INDEX, name="open_before_the_data_is_copied_up_indexed")
def open_before_the_data_is_copied_up(b):
    for name in ("a", "b", "c", "gone", "renamed"):
        b.low.file(name, data(name.encode()))
    t = yield
    for name in ("a", "b", "c", "gone", "renamed"):
        t.chmod(name, 0o600)
    early = t.open("a")
    t.pread(early, 8, 0)
    t.overwrite("a", b"NEW", 0)
    t.pread(early, 8, 0)
    t.fstat(early)
    t.truncate("a", 3)
    t.fread(early, 100)
    t.fsync(early)
    t.close(early)
    early = t.open("b")
    t.lseek(early, 0, os.SEEK_HOLE)
    t.lseek(early, 0, os.SEEK_DATA)
    t.fchmod(early, 0o640)
    t.fsync(early)
    t.fdatasync(early)
    t.pread(early, 8, SIZE - 4)
    t.close(early)
    early = t.open("gone")
    t.unlink("gone")
    t.fchmod(early, 0o604)
    t.fsetxattr(early, "user.a", b"1")
    t.pread(early, 8, 0)
    t.fstat(early)
    again = Fd(os.open(f"/proc/self/fd/{early:d}", os.O_RDWR))
    t.pwrite(again, b"NEW", 2)
    t.pread(early, 8, 0)
    os.close(again)
    t.close(early)
    early = t.open("renamed")
    t.rename("renamed", "elsewhere")
    t.pread(early, 8, 0)
    t.overwrite("elsewhere", b"NEW")
    t.pread(early, 8, 0)
    t.close(early)
    t.create("gone", b"another")
    t.read("gone")


@scenario(options=ON, name="names_of_metacopy_files")
@scenario(options=INDEX, name="names_of_metacopy_files_indexed")
def names_of_metacopy_files(b):
    for name in ("same", "other", "twice", "back", "linked", "over", "under", "x", "y", "in lower dir"):
        b.low.file(f"d/{name}", data(name.encode()))
    b.low.file("d/hard1", data(b"hard")).link("d/hard1", "d/hard2").dir("e").file("moved/f", data(b"f"))
    b.low.file("e/" + "n" * 240, data(b"long")).file("deep/" + "m" * 240 + "/f", data(b"deep"))
    b.up.file("d/target", b"upper").whiteout("d/white")
    b.low.file("d/white", b"white")
    t = yield
    t.rename("d/same", "d/same2")
    t.rename("d/other", "e/other2")
    t.rename("d/twice", "d/twice2")
    t.rename("d/twice2", "e/twice3")
    t.rename("e/twice3", "e/twice4")
    t.rename("d/back", "d/back2")
    t.rename("d/back2", "d/back")
    t.link("d/linked", "d/link2")
    t.link("d/link2", "e/link3")
    t.rename("d/link2", "e/link4")
    t.unlink("d/linked")
    t.rename("d/over", "d/target")
    t.rename("d/under", "d/white")
    t.rename("d/x", "e/y", RENAME_EXCHANGE) if os.path.exists("e/y") else t.rename(
        "d/x", "d/y", RENAME_EXCHANGE
    )
    t.chmod("d/hard1", 0o600)
    t.rename("d/hard1", "d/hard3")
    t.rename("d/hard2", "e/hard4")
    t.rename("moved", "moved2")
    t.chmod("moved2/f", 0o600)
    t.rename("moved2/f", "moved2/g")
    t.rename("moved2/g", "e/g")
    t.rename("e/" + "n" * 240, "d/long")
    t.rename("deep/" + "m" * 240 + "/f", "deep/f")  # too long for a redirect
    t.link("deep/" + "m" * 240 + "/f", "deep/l")
    for d in ("d", "e", "moved2", "deep", "."):
        t.list(d)
        for name in sorted(os.listdir(d)):
            path = os.path.join(d, name)
            if os.path.isfile(path):
                t.stat(path)
                t.read(path)
    numbers(t, "d/same2", "e/other2", "e/link3", "e/link4", "d/hard3")
    t.append("e/link3", b"more")
    t.read("e/link4")
    t.append("e/g", b"more")
    t.read("e/g")
    t.unlink("d/same2")
    t.create("d/same", b"new")
    t.read("d/same")


@scenario(options=ON, lowers=3, name="in_lower_layers")
@scenario(options=INDEX, lowers=3, name="in_lower_layers_indexed")
def in_lower_layers(b):
    top, middle, bottom = b.lows
    meta(top, "f")
    meta(middle, "f")
    bottom.file("f", data(b"f"))
    meta(top, "skips")
    bottom.file("skips", data(b"skips"))
    meta(top, "relative", b"target")
    middle.file("relative", b"not this")
    middle.file("target", data(b"target"))
    meta(top, "d/relative", b"t")
    meta(middle, "d/t", b"u")
    bottom.file("d/u", data(b"u")).file("u", b"not this")
    meta(top, "d/absolute", b"/target")
    meta(top, "d/bottom", b"/d/u")
    meta(top, "chain", b"/d/chain")
    meta(middle, "d/chain", b"other")
    bottom.file("d/other", data(b"other"))
    meta(top, "opaque", b"/o/f")
    middle.file("o/f", data(b"o")).opaque("o")
    meta(top, "opaque2", b"/o/m")
    meta(middle, "o/m", b"/d/u")
    meta(top, "whiteout")
    middle.whiteout("whiteout")
    bottom.file("whiteout", data(b"w"))
    meta(top, "smaller")
    middle.file("smaller", b"small")
    meta(top, "linked")
    middle.file("linked", data(b"linked")).link("linked", "linked2")
    bottom.file("hard", data(b"hard")).link("hard", "hard2")
    meta(middle, "hard")
    top.link("f", "f2")  # two names of one metacopy file
    middle.file("f2", data(b"f"))
    bottom.dir("merged/sub").file("merged/sub/f", data(b"sub"))
    middle.dir("moved", xattrs={REDIRECT: b"merged"})
    meta(middle, "moved/sub/f")
    meta(top, "empty", b"/void", 0)
    middle.file("void", b"")
    t = yield
    names = (
        sorted(os.listdir(".")) + [f"d/{n}" for n in sorted(os.listdir("d"))] + ["moved/sub/f", "o/f", "o/m"]
    )
    files = [n for n in names if not os.path.isdir(n)]
    for name in files:
        t.stat(name)
        t.read(name)
        t.listxattr(name)
    numbers(t, *files)
    for name in files:
        t.chmod(name, 0o600)
        t.stat(name)
    numbers(t, *files)
    for name in files[::2]:
        t.rename(name, name + ".new")
        t.read(name + ".new")
    for name in files[1::2]:
        t.append(name, b"more")
        t.read(name)


def broken(b):
    """Metacopy files without data, and with redirects of all kinds that lead nowhere."""
    top, bottom = b.lows
    bottom.file("file", data(b"file")).file("sub/f", data(b"sub")).symlink("link", "sub").symlink(
        "self", "self"
    )
    bottom.fifo("fifo").whiteout("white").symlink("out", "/etc/passwd")
    redirects = {
        "none": None, "rel": b"nothing", "abs": b"/nothing", "dir": b"/sub", "reldir": b"sub",
        "link": b"/link", "through": b"/link/f", "below": b"/file/x", "fifo": b"/fifo", "white": b"/white",
        "dots": b"/sub/../file", "up": b"/../file", "dot": b"/./file", "slashes": b"//file",
        "trail": b"/file/",
        "empty": b"", "root": b"/", "parent": b"..", "slash": b"a/b", "self": b"/self", "out": b"/out",
        "loop": b"/loop", "loop2": b"loop2", "long": b"/" + b"n" * 300, "good": b"/file",
    }  # fmt: skip
    for name, redirect in redirects.items():
        meta(top, "top/" + name, redirect)
        meta(bottom, "bottom/" + name, redirect)
    for kind in ("dir", "fifo", "symlink", "whiteout"):
        meta(top, "on/" + kind)
        getattr(bottom, kind)("on/" + kind, *(["file"] if kind == "symlink" else []))
    digest = b"\0\x24\0\1" + b"d" * 32
    for name, value in {"v3": b"\0\4\0", "v4": b"\0\4\0\0", "v5": b"\1\5\0\0x", "v36": digest}.items():
        meta(top, "value/" + name, value=value)
        bottom.file("value/" + name, data(b"value"))
    top.file("plain", b"plain", xattrs={REDIRECT: b"/file"})
    top.symlink("symlink", "plain", xattrs={META: b""})


def look_at_all(t):
    for d in ("top", "bottom", "on", "value", "."):
        t.list(d)
        for name in sorted(os.listdir(d)):
            path = f"{d}/{name}"
            t.stat(path)
            if not (os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)):
                t.read(path)


@scenario(options=ON, lowers=2)
def without_data(b):
    broken(b)
    t = yield
    look_at_all(t)
    for name in ("good", "loop", "dots"):
        t.chmod(f"top/{name}", 0o600)
        t.unlink(f"top/{name}")
        t.rename(f"top/{name}", "new")
        t.create(f"top/{name}", b"", flags=0)


@scenario(options=ON, lowers=2, datas=2)
def data_only_layers(b):
    broken(b)
    first, second = b.datas
    for name in ("file", "sub/f", "nothing", "loop"):
        first.file(name, data(b"DATA " + name.encode()))
    second.file("file", b"hidden").file("link/f", data(b"second")).file("fifo", data(b"second fifo"))
    first.symlink("link", "sub").fifo("fifo").symlink("out", "/etc/passwd").whiteout("white")
    second.file("white", data(b"second white")).dir("self").file("only", b"never listed")
    meta(b.low, "short", b"/sub/short")
    first.file("sub/short", b"short")
    meta(b.low, "quirk", b"/sub/quirk")  # the bottom layer has /sub, but no quirk in it
    first.file("sub/quirk", data(b"quirk"))
    meta(b.lows[1], "top/deep", b"/file")
    meta(b.low, "chained")
    meta(b.lows[1], "chained", b"/sub/f")
    t = yield
    look_at_all(t)
    numbers(t, "bottom/good", "short", "chained", "bottom/none", "bottom/through")
    for name in sorted(os.listdir("bottom")):
        t.chmod(f"bottom/{name}", 0o600)
        t.stat(f"bottom/{name}")
        t.close(t.open(f"bottom/{name}", os.O_WRONLY))
        t.truncate(f"bottom/{name}", 0)
        t.rename(f"bottom/{name}", f"bottom/{name}.new")
        t.link(f"bottom/{name}", f"bottom/{name}.link")
    t.chmod("chained", 0o600)
    t.rename("chained", "chained2")
    t.read("chained2")
    t.append("chained2", b"more")
    t.read("chained2")
    t.lstat("only")


@scenario(lowers=2, datas=1, name="data_only_layers_without_metacopy")
@scenario(options="redirect_dir=nofollow", lowers=2, datas=1, name="data_only_layers_nofollow")
@scenario(options="redirect_dir=on", lowers=2, datas=1, name="data_only_layers_redirect")
@scenario(lowers=2, datas=1, upper=False, name="data_only_layers_read_only")
@scenario(options="metacopy=on", lowers=2, datas=1, upper=False, name="data_only_layers_read_only_on")
def data_only_layers_without_metacopy(b):
    broken(b)
    b.datas[0].file("file", data(b"DATA")).file("nothing", data(b"nothing"))
    t = yield
    look_at_all(t)
    for name in ("good", "abs", "loop"):
        t.chmod(f"bottom/{name}", 0o600)
        t.read(f"bottom/{name}")
        t.append(f"bottom/{name}", b"more")
        t.stat(f"bottom/{name}")


@scenario(options=ON)
def access_times(b):
    b.low.file("read", data(b"read")).file("noatime", data(b"noatime"))
    t = yield
    for name in ("read", "noatime"):
        t.utime(name, 5, 6)
        t.atime(name)
    t.read("read")
    t.atime("read")
    f = t.open("noatime", os.O_RDONLY | os.O_NOATIME)
    t.fread(f, 10)
    t.atime("noatime")
    t.close(f)
    t.close(t.open("read", os.O_RDWR))
    t.atime("read")


@scenario(lowers=2, options="metacopy=on", upper=False)
def read_only(b):
    meta(b.low, "f")
    b.lows[1].file("f", data(b"f"))
    meta(b.low, "g", b"/d/g")
    b.lows[1].file("d/g", data(b"g"))
    t = yield
    for name in ("f", "g"):
        t.stat(name)
        t.read(name)
        f = t.open(name)
        t.pread(f, 10, 5000)
        t.lseek(f, 0, os.SEEK_HOLE)
        t.close(f)
    numbers(t, "f", "g")


@scenario(options=ON, lowers=2, name="hard_links")
@scenario(options=INDEX, lowers=2, name="hard_links_indexed")
def hard_links(b):
    for d in "abcdefgh":
        b.low.file(f"{d}/1", data(d.encode())).link(f"{d}/1", f"{d}/2").link(f"{d}/1", f"{d}/sub/3")
    meta(b.low, "i/1", b"/j/data")
    b.low.link("i/1", "i/2").link("i/1", "i/3")
    b.lows[1].file("j/data", data(b"below")).link("j/data", "j/other")
    t = yield

    def look(d):
        t.list(d)
        for name in sorted(os.listdir(d)):
            if not os.path.isdir(f"{d}/{name}"):
                t.stat(f"{d}/{name}")
                t.read(f"{d}/{name}")
                numbers(t, f"{d}/{name}")
        for name in ("1", "2", "sub/3"):
            t.same_inode(d, f"{d}/{name}")

    for d in "abcdefgh":
        t.same_inode(d, f"{d}/1")
        t.chmod(f"{d}/1", 0o600)
        look(d)
    t.append("a/2", b"more")
    t.unlink("b/1")
    t.append("b/sub/3", b"more")
    t.rename("c/2", "c/moved")
    t.chown("c/moved", 3, 4)
    t.rename("d/1", "e/from-d")
    t.append("d/2", b"more")
    t.link("e/2", "f/from-e")
    t.truncate("e/sub/3", 5)
    early = t.open("f/2")
    t.overwrite("f/2", b"NEW")
    t.pread(early, 10, 0)
    t.close(early)
    t.unlink("g/1")
    t.unlink("g/2")
    t.unlink("g/sub/3")
    t.create("g/1", b"new")
    t.create("h/2", b"new", flags=os.O_TRUNC)
    for d in "abcdefgh":
        look(d)
    for name in ("1", "2", "3"):
        t.stat(f"i/{name}")
    t.chmod("i/1", 0o600)
    t.rename("i/2", "i/renamed")
    for name in ("1", "renamed", "3"):
        t.stat(f"i/{name}")
        t.read(f"i/{name}")
    t.append("i/3", b"more")
    for name in ("1", "renamed", "3"):
        t.stat(f"i/{name}")
        t.read(f"i/{name}")


@scenario(options=ON)
def a_redirect_that_is_too_long(b):
    long = "deep/" + "n" * 200 + "/" + "m" * 200
    b.low.file(f"{long}/f", data(b"f")).file(f"{long}/g", data(b"g"))
    b.up.dir("to")
    t = yield
    t.link(f"{long}/f", "to/f")
    t.rename(f"{long}/g", "to/g")
    t.rename(f"{long}/g", f"{long}/h")
    t.read(f"{long}/h")


@scenario(lowers=2, name="refused")
@scenario(lowers=2, on="tmpfs", name="refused_on_tmpfs")
def refused(b):
    """Without metacopy=on, also where a block of attributes looks like data."""
    sizes = (1, 100, 1000, 4000, SIZE, 100_000)
    for size in sizes:
        for name, redirect in ((f"d/{size}", None), (f"d/more{size}", b"/x" * 60)):
            meta(b.low, name, redirect, size)
            b.lows[1].file(name, data(b"x", size))
        os.setxattr(b.low.path(f"d/more{size}"), "user.long", b"v" * 200)
    b.low.dir("d", xattrs={"trusted.overlay.impure": b"y"}).file("d/plain", b"plain")
    t = yield
    for name in ("plain", *(str(size) for size in sizes), *(f"more{size}" for size in sizes)):
        t.stat(f"d/{name}")
        t.read(f"d/{name}")
        t.chmod(f"d/{name}", 0o600)
        t.unlink(f"d/{name}")
