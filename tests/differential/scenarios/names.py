"""Making and removing names: over nothing, lower and upper objects, whiteouts; hard links; O_TMPFILE."""

import os
import stat

from differential.builder import KINDS
from differential.scenario import scenario

MAKERS = {
    "create": lambda t, p: t.create(p, b"created", 0o640),
    # O_NONBLOCK: there are fifos among the targets.
    "open_creat": lambda t, p: t.create(p, b"opened", 0o640, flags=os.O_NONBLOCK),
    "mkdir": lambda t, p: t.mkdir(p, 0o750),
    "symlink": lambda t, p: t.symlink("to somewhere", p),
    "mknod_file": lambda t, p: t.mknod(p, stat.S_IFREG | 0o640),
    "mknod_fifo": lambda t, p: t.mknod(p, stat.S_IFIFO | 0o640),
    "mknod_socket": lambda t, p: t.mknod(p, stat.S_IFSOCK | 0o640),
    "mknod_char": lambda t, p: t.mknod(p, stat.S_IFCHR | 0o640, os.makedev(5, 6)),
    "mknod_block": lambda t, p: t.mknod(p, stat.S_IFBLK | 0o640, os.makedev(7, 300)),
    "link_upper": lambda t, p: t.link("up-source", p),
    "link_lower": lambda t, p: t.link("low-source", p),
    "link_symlink": lambda t, p: t.link("low-symlink", p),
}


def one_maker(name, make):
    def run(b):
        b.low.file("low-source", b"low", 0o604, (3, 4), {"user.x": b"y"}).symlink(
            "low-symlink", "target", (5, 5)
        )
        b.up.file("up-source", b"up")
        for kind in KINDS:
            b.low.kinds(f"in/low-{kind}-").kinds(f"in/hidden-{kind}-")
        for kind in KINDS:
            b.up.whiteout(f"in/hidden-{kind}-{kind}")
        b.up.whiteout("in/bare-whiteout").file("in/up-file").dir("in/up-dir").symlink("in/up-symlink", "/etc")
        t = yield
        make(t, "in/new")
        t.lstat("in/new")
        for kind in KINDS:
            make(t, f"in/low-{kind}-{kind}")
            make(t, f"in/hidden-{kind}-{kind}")
            t.lstat(f"in/hidden-{kind}-{kind}")
        t.list("in/hidden-dir-dir")
        for path in (
            "in/bare-whiteout",
            "in/up-file",
            "in/up-dir",
            "in/up-symlink",
            "no/such/dir",
            "up-source/x",
        ):
            make(t, path)
        t.list("in")
        t.stat("low-source")
        t.stat("up-source")

    scenario(name=name)(run)


for _name, _make in MAKERS.items():
    one_maker(_name, _make)


@scenario(lowers=2)
def unlink_everything(b):
    for layer, prefix in ((b.lows[1], "bottom-"), (b.lows[0], "top-"), (b.up, "up-")):
        layer.kinds("d/" + prefix)
    for kind in KINDS:
        b.lows[1].kinds(f"d/both-{kind}-")
        b.up.kinds(f"d/both-{kind}-")
    t = yield
    for prefix in ("bottom-", "top-", "up-"):
        for kind in KINDS:
            t.unlink(f"d/{prefix}{kind}")
            t.rmdir(f"d/{prefix}{kind}")
            t.lstat(f"d/{prefix}{kind}")
    for kind in KINDS:
        t.unlink(f"d/both-{kind}-file")
        t.lstat(f"d/both-{kind}-file")
        t.unlink(f"d/both-{kind}-file")
    t.list("d")


@scenario()
def directories_removed_and_made_again(b):
    b.low.file("d/a").file("d/s/b").dir("empty")
    t = yield
    t.rmdir("d")
    t.unlink("d/a")
    t.rmdir("d")
    t.unlink("d/s/b")
    t.rmdir("d/s")
    t.rmdir("d")
    t.stat("d")
    t.mkdir("d", 0o700)
    t.list("d")
    t.stat("d/a")
    t.create("d/a", b"new a")
    t.mkdir("d/s")
    t.list("d/s")
    t.rmdir("empty")
    t.create("empty", b"a file now")
    t.read("empty")
    t.unlink("empty")
    t.mkdir("empty")
    t.rmdir("empty")
    t.stat("empty")


@scenario()
def files_removed_and_made_again(b):
    b.low.file("f", b"lower", 0o600, (5, 5), {"user.x": b"y"})
    t = yield
    for i in range(3):
        t.unlink("f")
        t.stat("f")
        t.create("f", b"again %d" % i)
        t.read("f")
        t.stat("f")
        t.listxattr("f")
    t.unlink("f")


@scenario(lowers=2)
def rmdir_of_a_directory_with_whiteouts_only(b):
    b.lows[1].file("d/a").file("d/b").file("e/x")
    b.lows[0].whiteout("d/a").whiteout("d/b").dir("e")
    b.up.whiteout("e/x")
    t = yield
    t.list("d")
    t.rmdir("d")
    t.rmdir("e")
    t.list(".")


@scenario()
def errors_of_names(b):
    b.low.file("f").dir("d").file("d/x").symlink("l", "d")
    t = yield
    t.mkdir("f/x")
    t.create("f/x")
    t.unlink("d")
    t.rmdir("f")
    t.rmdir("l")
    t.rmdir("d")
    t.unlink("d/")
    t.unlink("f/")
    t.mkdir("d")
    t.mkdir("l")
    t.mkdir("new/")
    t.rmdir("d/.")
    t.rmdir("d/..")
    t.unlink("d/..")
    t.mkdir(".")
    t.symlink("", "empty")
    t.symlink("x" * 4095, "longest")
    t.readlink("longest")
    t.symlink("x" * 4096, "too-long")
    t.link("d", "dirlink")
    t.link("nothing", "x")
    t.link("f", "f")
    t.rename("", "x")
    t.rename("d", "d/x/y")
    t.rename("d", "d/sub")
    t.create("")
    t.mknod("dir-by-mknod", stat.S_IFDIR | 0o755)
    t.mknod("whiteout-by-hand", stat.S_IFCHR | 0o600, 0)
    t.list(".")


@scenario()
def link_counts_in_the_upper(b):
    b.up.file("a", b"x").link("a", "b")
    b.low.dir("d")
    t = yield
    t.stat("a")
    t.same_inode("i", "a")
    t.same_inode("i", "b")
    t.link("a", "d/c")
    t.stat("b")
    t.same_inode("i", "d/c")
    t.overwrite("d/c", b"y")
    t.read("a")
    t.rename("a", "z")
    t.unlink("b")
    t.stat("z")
    t.chmod("z", 0o600)
    t.stat("d/c")
    t.rename("z", "d/c")  # two names of one inode: nothing happens
    t.stat("z")
    t.stat("d/c")
    t.unlink("z")
    t.unlink("d/c")
    t.list("d")


@scenario()
def link_to_a_lower_file(b):
    b.low.file("f", b"data", 0o640, (5, 6), {"user.x": b"y"}).dir("d").symlink("l", "f").fifo("p")
    t = yield
    t.same_inode("f", "f")
    t.link("f", "d/f2")
    for name in ("f", "d/f2"):
        t.stat(name)
        t.same_inode("f", name)
        t.getxattr(name, "user.x")
    t.append("d/f2", b"+")
    t.read("f")
    t.unlink("f")
    t.stat("d/f2")
    t.link("l", "l2")
    t.readlink("l2")
    t.lstat("l2")
    t.link("p", "p2")
    t.lstat("p2")
    t.link("d/f2", "f")
    t.read("f")
    t.link("d/f2", "f")


@scenario()
def link_counts_of_lower_hard_links(b):
    b.low.file("a", b"x").link("a", "b").link("a", "d/c")
    t = yield
    for name in ("a", "b", "d/c"):
        t.stat(name)
    t.unlink("a")
    t.stat("b")
    t.link("b", "e")
    t.stat("b")
    t.stat("e")
    t.stat("d/c")
    t.rename("d/c", "d/d")
    t.stat("d/d")
    t.unlink("b")
    t.stat("e")


@scenario()
def directory_link_counts(b):
    b.low.dir("d/a").dir("d/b").dir("pure-lower/x")
    b.up.dir("pure-upper/x").dir("pure-upper/y")
    t = yield
    for name in (".", "d", "pure-lower", "pure-upper"):
        t.stat(name)
    t.mkdir("d/c")
    t.mkdir("pure-upper/z")
    t.mkdir("new")
    t.mkdir("new/sub")
    for name in (".", "d", "pure-lower", "pure-upper", "new"):
        t.stat(name)
    t.rmdir("new/sub")
    t.stat("new")
    t.rename("pure-upper/x", "new/x")
    t.stat("pure-upper")
    t.stat("new")


@scenario()
def nameless_files(b):
    b.low.dir("d", 0o2777, (5, 6)).file("d/exists")
    t = yield
    fd = t.open("d", os.O_TMPFILE | os.O_RDWR, 0o640)
    t.fstat(fd)
    t.pwrite(fd, b"nameless", 0)
    t.pread(fd, 20, 0)
    t.list("d")
    t.link_fd(fd, "d/exists")
    t.link_fd(fd, "d/named")
    t.fstat(fd)
    t.read("d/named")
    t.link_fd(fd, "second")
    t.stat("second")
    t.pwrite(fd, b"NAME", 0)
    t.close(fd)
    t.read("second")
    fd = t.open(".", os.O_TMPFILE | os.O_WRONLY, 0o600)
    t.fchmod(fd, 0o644)
    t.fsetxattr(fd, "user.x", b"y")
    t.close(fd)
    fd = t.open(".", os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    t.link_fd(fd, "never")
    t.close(fd)
    t.open(".", os.O_TMPFILE | os.O_RDONLY)
    t.open("d/exists", os.O_TMPFILE | os.O_RDWR)
    with t.as_user(1000):
        t.open(".", os.O_TMPFILE | os.O_RDWR)
        fd = t.open("d", os.O_TMPFILE | os.O_RDWR, 0o666)
        t.fstat(fd)
        t.link_fd(fd, "d/by-user")
        t.close(fd)
    t.stat("d/by-user")


@scenario()
def open_flags_on_creation(b):
    b.low.file("f", b"lower").symlink("l", "f").symlink("dangling", "made").dir("d")
    t = yield
    t.open("f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    t.open("l", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    t.open("l", os.O_RDONLY | os.O_NOFOLLOW)
    t.open("dangling", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    t.create("dangling", b"through", flags=0)
    t.read("made")
    fd = t.open("new", os.O_CREAT | os.O_RDONLY, 0o444)
    t.fstat(fd)
    t.write(fd, b"x")
    fd = t.open("strict", os.O_CREAT | os.O_RDWR | os.O_EXCL, 0)
    t.write(fd, b"x")
    t.fstat(fd)
    t.open("odd", os.O_CREAT | os.O_WRONLY | os.O_DIRECTORY)
    t.stat("odd")
    t.create("suid", b"x", 0o6755)
    t.stat("suid")
    t.create("f", b"", flags=os.O_TRUNC)
    t.stat("f")


@scenario()
def a_big_tree_removed(b):
    for i in range(5):
        for j in range(5):
            b.low.file(f"t/{i}/{j}/low").file(f"t/{i}/{j}/both")
            b.up.file(f"t/{i}/{j}/both").file(f"t/{i}/{j}/up")
    t = yield
    # The order of a listing is the file system's own business.
    for directory, names, files in sorted(os.walk("t", topdown=False), reverse=True):
        for name in sorted(files):
            t.unlink(os.path.join(directory, name))
        for name in sorted(names):
            t.rmdir(os.path.join(directory, name))
    t.rmdir("t")
    t.list(".")
    t.mkdir("t")
    t.list("t")
