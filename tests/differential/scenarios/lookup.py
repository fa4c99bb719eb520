"""Finding names: precedence of layers, whiteouts, opaque directories, odd names, symlinks."""

import os

from differential.builder import KINDS
from differential.scenario import scenario


@scenario()
def each_kind(b):
    b.low.kinds("", owner=(7, 8))
    t = yield
    for kind in KINDS:
        t.lstat(kind)
        t.listxattr(kind)
    t.read("file")
    t.readlink("symlink")
    t.read("dir/inside")
    t.stat("symlink")


@scenario()
def each_kind_in_the_upper(b):
    b.up.kinds("", owner=(7, 8))
    t = yield
    for kind in KINDS:
        t.lstat(kind)
    t.list(".")


@scenario(lowers=3)
def topmost_layer_wins(b):
    for i, layer in enumerate([*b.lows, b.up]):
        layer.file("everywhere", b"from %d" % i, mode=0o600 + i)
        layer.file(f"only{i}", b"%d" % i)
        if i % 2:
            layer.file("some", b"some %d" % i)
        layer.dir("d", mode=0o700 + i).file(f"d/f{i}").file("d/all", b"all %d" % i)
    t = yield
    for name in ("everywhere", "only0", "only1", "only2", "only3", "some", "d/all"):
        t.read(name)
        t.stat(name)
    t.stat("d")
    t.list("d")


@scenario(lowers=2)
def kinds_over_kinds(b):
    for below in KINDS:
        for above in KINDS:
            b.lows[1].kinds(f"{below}-{above}-x-")
            os.rename(b.lows[1].path(f"{below}-{above}-x-{below}"), b.lows[1].path(f"{below}-{above}"))
            b.lows[0].kinds(f"{below}-{above}-y-")
            os.rename(b.lows[0].path(f"{below}-{above}-y-{above}"), b.lows[0].path(f"{below}-{above}"))
    t = yield
    for below in KINDS:
        for above in KINDS:
            t.lstat(f"{below}-{above}")
    t.list("dir-dir")
    t.list("file-dir")


@scenario(lowers=3)
def a_file_between_directories_ends_the_merge(b):
    b.lows[2].file("d/bottom")
    b.lows[1].file("d", b"a file")
    b.lows[0].file("d/top")
    b.lows[2].file("e/bottom")
    b.lows[1].symlink("e", "/tmp")
    b.up.file("e/top")
    t = yield
    t.list("d")
    t.list("e")
    t.stat("d/bottom")
    t.stat("e/bottom")


@scenario(lowers=2)
def whiteouts_hide(b):
    b.lows[1].kinds("low-").file("d/a").file("d/b").dir("d/sub").file("d/sub/x")
    for kind in KINDS:
        b.lows[0].whiteout("low-" + kind)
    b.lows[0].whiteout("d/a").whiteout("d/sub").whiteout("nothing-below")
    t = yield
    for kind in KINDS:
        t.lstat("low-" + kind)
    t.list(".")
    t.list("d")
    t.stat("d/sub/x")
    t.lstat("nothing-below")


@scenario(lowers=2)
def whiteouts_in_the_upper_hide(b):
    b.lows[1].file("a").file("d/b")
    b.lows[0].file("a").file("d/c")
    b.up.whiteout("a").whiteout("d/b").whiteout("d/c")
    t = yield
    t.stat("a")
    t.list("d")
    t.rmdir("d")
    t.list(".")


@scenario(lowers=3)
def opaque_directories_hide(b):
    b.lows[2].file("d/bottom").file("e/bottom").file("e/s/bottom")
    b.lows[1].opaque("d").file("d/middle").file("e/s/middle")
    b.lows[0].file("d/top").file("e/top")
    b.up.opaque("e/s").file("e/s/up")
    t = yield
    t.list("d")
    t.list("e")
    t.list("e/s")
    t.stat("d/bottom")
    t.stat("e/s/bottom")


@scenario(lowers=2)
def opaque_value_x_and_xattr_whiteouts(b):
    b.lows[1].file("d/a").file("d/b").file("d/c")
    b.lows[0].dir("d", xattrs={"trusted.overlay.opaque": b"x"})
    b.lows[0].file("d/a", b"", xattrs={"trusted.overlay.whiteout": b"y"})
    b.lows[0].file("d/b", b"", xattrs={})
    t = yield
    t.list("d")
    t.stat("d/a")
    t.stat("d/b")
    t.stat("d/c")
    t.create("d/a", b"again")
    t.list("d")


@scenario(lowers=2)
def opaque_of_another_value_means_nothing(b):
    b.lows[1].file("d/bottom")
    b.lows[0].dir("d", xattrs={"trusted.overlay.opaque": b"n"}).file("d/top")
    t = yield
    t.list("d")


@scenario()
def negative(b):
    b.low.file("f").dir("d")
    t = yield
    t.stat("nothing")
    t.stat("d/nothing")
    t.stat("d/nothing/deeper")
    t.stat("f/below")
    t.stat("f/")
    t.unlink("nothing")
    t.rmdir("nothing")
    t.create("nothing", b"1")
    t.read("nothing")
    t.unlink("nothing")
    t.stat("nothing")
    t.mkdir("nothing")
    t.stat("nothing")


@scenario()
def longest_names(b):
    name = "n" * 255
    b.low.file(name, b"long").dir("d").file("f")
    t = yield
    t.read(name)
    t.stat(name + "x")
    t.create(name + "x")
    t.mkdir(name + "x")
    t.symlink("t", name + "x")
    t.link("f", name + "x")
    t.rename("f", name + "x")
    t.unlink(name + "x")
    t.overwrite(name, b"L")
    t.rename(name, "m" * 255)
    t.list(".")
    t.create("d/" + "ü" * 127)
    t.create("d/" + "ü" * 128)


@scenario()
def longest_path(b):
    b.low.dir("d")
    t = yield
    part = "p" * 200
    depth = 0
    t.chdir("d")
    for _ in range(25):  # 5,000 bytes: more than PATH_MAX, reached step by step
        t.mkdir(part)
        t.chdir(part)
        depth += 1
    t.create("end", b"deep")
    t.read("end")
    t.list(".")
    t.rename("end", "end2")
    t.chmod("end2", 0o600)
    for _ in range(8):
        t.chdir("..")
    t.stat(".")
    t.stat("/".join([part] * 7))
    t.list(".")
    # In two pieces, so that the snapshots can name everything.
    t.rename(part, "../" * (depth - 8) + "cut")
    t.chdir("../" * (depth - 8))
    t.list("cut")


@scenario()
def deep_lower_path(b):
    path = "/".join("p" * 200 for _ in range(15))
    b.low.file(path + "/f", b"deep")
    t = yield
    t.read(path + "/f")
    t.overwrite(path + "/f", b"D")
    t.read(path + "/f")


@scenario()
def names_that_are_not_text(b):
    names = [
        b"\xff\xfe",
        b"a\nb",
        b"tab\t",
        b"sp ace",
        b"back\\slash",
        b"q'\"",
        b"\x01",
        b"\xc3\xa9",
        b"%s",
        b"a:b,c",
    ]
    for i, name in enumerate(names):
        b.low.file(name, b"%d" % i).dir(b"d" + name)
    t = yield
    t.list(".")
    for name in names:
        t.read(name)
        t.chmod(name, 0o600)
        t.create(b"d" + name + b"/" + name, name)
        t.rename(name, name + b"\xee")
        t.symlink(name, b"link" + name)
    t.list(".")


@scenario(lowers=2)
def symlinks_that_lead_out_of_the_layer(b):
    b.low.symlink("absolute", "/etc/hostname").symlink("up", "../../../../../etc/hostname")
    b.low.symlink("dir", "/etc").symlink("loop", "loop").symlink("a", "b").symlink("b", "a").file("f")
    b.lows[1].file("dir/below").symlink("inside", "dir/below").symlink("dangling", "nowhere")
    t = yield
    for name in ("absolute", "up", "dir", "inside", "dangling", "loop", "a"):
        t.readlink(name)
        t.lstat(name)
    t.stat("loop")
    t.stat("a")
    t.stat("dangling")
    t.stat("dir/below")
    t.chown("absolute", 1, 1)
    t.chown("dir", 2, 2)
    t.rename("dir", "dir2")
    t.readlink("dir2")
    t.create("dangling", b"made", flags=0)
    t.read("nowhere")


@scenario(lowers=2)
def a_directory_name_that_is_a_symlink_in_another_layer(b):
    b.lows[1].file("target/f").symlink("d", "target")
    b.lows[0].file("d/g")
    t = yield
    t.list("d")
    t.stat("d/f")
    t.create("d/h", b"h")
    t.list("target")


@scenario()
def dot_dot(b):
    b.low.file("a/b/c/f", b"x").file("g", b"g")
    t = yield
    t.read("a/b/../b/c/../../../g")
    t.chdir("a/b/c")
    t.read("../../../g")
    t.rename("../../b", "../../b2")
    t.stat("../../b2/c/f")
    t.list("..")
    t.dots(".")
    t.stat(".")


@scenario(lowers=300)
def three_hundred_lowers(b):
    for i, layer in enumerate(b.lows):
        layer.file(f"d/f{i}", b"%d" % i).file("same", b"same %d" % i)
        if i % 7 == 3:
            layer.whiteout(f"d/f{i + 1}")
        if i == 200:
            layer.opaque("o")
        layer.file(f"o/{i}")
    t = yield
    t.read("same")
    t.list("d")
    t.list("o")
    t.read("d/f299")
    t.overwrite("d/f299", b"x")
    t.unlink("d/f150")
    t.list("d")


@scenario(upper=False, lowers=2)
def read_only_without_an_upper(b):
    b.lows[1].file("d/a", b"a").file("f", b"f").kinds("k-")
    b.lows[0].file("d/b", b"b").whiteout("k-fifo")
    t = yield
    t.read("d/a")
    t.list(".")
    t.list("d")
    read_only_steps(t)


@scenario(options="ro")
def read_only_with_an_upper(b):
    b.low.file("d/a", b"a").file("f", b"f")
    b.up.file("d/b", b"b").whiteout("f2")
    t = yield
    t.list("d")
    read_only_steps(t)


def read_only_steps(t):
    t.create("new")
    t.mkdir("new")
    t.symlink("x", "new")
    t.mknod("new", 0o010644)
    t.link("f", "new")
    t.unlink("f")
    t.rmdir("d")
    t.rename("f", "g")
    t.chmod("f", 0o600)
    t.chown("f", 1, 1)
    t.utime("f", 1, 1)
    t.truncate("f", 0)
    t.setxattr("f", "user.x", b"y")
    t.removexattr("f", "user.x")
    t.open("f", os.O_RDWR)
    t.open("f", os.O_RDONLY | os.O_TRUNC)
    t.access("f", os.W_OK)
    t.statfs()
    fd = t.open("f")
    t.fsync(fd)
    t.syncfs(fd)


@scenario(lowers=2)
def redirects_in_lower_layers(b):
    b.lows[1].file("old/f", b"moved").file("a/b/g", b"deep").file("merged/x").file("c/h")
    b.lows[0].dir("new", xattrs={"trusted.overlay.redirect": b"old"}).whiteout("old")
    b.lows[0].dir("top", xattrs={"trusted.overlay.redirect": b"/a/b"}).file("top/own").whiteout("a/b")
    b.lows[0].dir("merged/sub", xattrs={"trusted.overlay.redirect": b"/c"}).whiteout("c")
    t = yield
    t.list(".")
    t.read("new/f")
    t.list("top")
    t.list("merged")
    t.list("merged/sub")
    t.overwrite("new/f", b"M")
    t.overwrite("top/g", b"D")
    t.list("top")


@scenario(options="redirect_dir=nofollow", lowers=2)
def redirects_not_followed(b):
    b.lows[1].file("old/f", b"moved")
    b.lows[0].dir("new", xattrs={"trusted.overlay.redirect": b"old"}).file("new/own")
    t = yield
    t.list("new")
    t.stat("new/f")


@scenario(lowers=2)
def bad_redirects(b):
    b.lows[1].file("old/f", b"moved")
    b.lows[0].dir("empty", xattrs={"trusted.overlay.redirect": b""})
    b.lows[0].dir("relative", xattrs={"trusted.overlay.redirect": b"old/../old"})
    b.lows[0].dir("missing", xattrs={"trusted.overlay.redirect": b"/no/such"})
    b.lows[0].dir("file", xattrs={"trusted.overlay.redirect": b"/old/f"})
    b.lows[0].file("own")
    t = yield
    for name in ("empty", "relative", "missing", "file"):
        t.stat(name)
        fd = t.open(name, os.O_RDONLY | os.O_DIRECTORY)
        t.close(fd)
    for name in ("empty", "relative", "missing", "file"):
        t.rmdir(name)


@scenario(lowers=2)
def root_of_the_mount(b):
    b.lows[0].dir(".", mode=0o751, owner=(3, 4))
    b.up.dir(".", mode=0o715, owner=(5, 6), xattrs={"user.root": b"r"})
    t = yield
    t.stat(".")
    t.getxattr(".", "user.root")
    t.chmod(".", 0o700)
    t.chown(".", 8, 9)
    t.setxattr(".", "user.more", b"m")
    t.utime(".", 10**18, 10**18)
    t.stat(".")
    t.rmdir(".")
    t.rename(".", "x")


@scenario(options="userxattr", lowers=2)
def what_anybody_can_write_is_not_followed(b):
    """user.* attributes: no redirects, no metacopy files; trusted.* ones are nobody's here."""
    b.lows[1].file("old/f", b"moved").file("pure/old/f").file("own", b"own" * 1000)
    b.lows[1].file("data", b"0123456789" * 1000)
    b.lows[0].dir("relative", xattrs={"user.overlay.redirect": b"old"}).file("relative/own")
    b.lows[0].dir("absolute", xattrs={"user.overlay.redirect": b"/old"})
    b.lows[0].dir("trusted", xattrs={"trusted.overlay.redirect": b"old"}).file("trusted/own")
    b.lows[0].sparse("data", 10_000)
    os.setxattr(b.lows[0].path("data"), "user.overlay.metacopy", b"")
    b.lows[0].sparse("own", 3000)
    os.setxattr(b.lows[0].path("own"), "trusted.overlay.metacopy", b"")
    b.up.dir("pure/upper", xattrs={"user.overlay.redirect": b"old"})
    t = yield
    for name in ("relative", "absolute", "trusted", "pure/upper"):
        t.stat(name)
        t.list(name)
        t.stat(name + "/f")
        t.rename(name, name + "2")
    for name in ("data", "own"):
        t.stat(name)
        t.read(name)
        t.chmod(name, 0o600)
        t.read(name)
    t.listxattr("own")
    t.list(".")


@scenario()
def inode_numbers_stay_over_copy_up(b):
    b.low.kinds("").file("d/e/f").file("h1").link("h1", "h2")
    t = yield
    names = [*KINDS, "d", "d/e", "d/e/f", "."]
    for name in names:
        t.same_inode(name, name)
    for name in names:
        t.chown(name, 5, 5)
    for name in names:
        t.same_inode(name, name)
    t.one_device(*names)
    t.rename("file", "file2")
    t.same_inode("file", "file2")
    t.rename("d/e/f", "d/f")
    t.same_inode("d/e/f", "d/f")
    t.same_inode("h", "h1")
    t.same_inode("h", "h2")
