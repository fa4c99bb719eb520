"""Extended attributes and POSIX ACLs: name spaces, the overlay's own ones, inheritance."""

import os

from differential.builder import KINDS
from differential.scenario import scenario
from differential.tree import ACCESS, DEFAULT, acl


@scenario()
def name_spaces(b):
    b.low.kinds("low-").file("low-x", xattrs={"user.l": b"1", "trusted.l": b"2", "security.l": b"3"})
    b.up.kinds("up-")
    t = yield
    for name in ("low-file", "up-file", "low-dir", "up-dir", "low-x"):
        for key in ("user.a", "trusted.a", "security.a", "system.a", "odd.a", "user.", "user", ""):
            t.setxattr(name, key, b"value")
            t.getxattr(name, key)
        t.listxattr(name)
    for name in ("low-symlink", "low-fifo", "low-char", "up-symlink"):
        t.setxattr(name, "user.a", b"v")
        t.setxattr(name, "trusted.a", b"v")
        t.getxattr(name, "trusted.a")
        t.listxattr(name)


@scenario()
def by_an_ordinary_user(b):
    keys = {"user.l": b"1", "trusted.l": b"2", "security.l": b"3"}
    b.low.file("own", owner=(1000, 1000), xattrs=keys).file("theirs", xattrs=keys).file(
        "secret", b"", 0o600, (0, 0), keys
    )
    b.low.dir("sticky", 0o1777).dir("owndir", 0o755, (1000, 1000))
    t = yield
    with t.as_user(1000):
        for name in ("own", "theirs", "secret"):
            t.listxattr(name)
            for key in keys:
                t.getxattr(name, key)
                t.setxattr(name, key, b"new")
                t.removexattr(name, key)
        for name in ("sticky", "owndir"):
            t.setxattr(name, "user.x", b"y")


@scenario()
def flags_and_sizes(b):
    b.low.file("f", xattrs={"user.there": b"12345"})
    t = yield
    t.setxattr("f", "user.there", b"x", os.XATTR_CREATE)
    t.setxattr("f", "user.none", b"x", os.XATTR_REPLACE)
    t.setxattr("f", "user.there", b"new", os.XATTR_REPLACE)
    t.setxattr("f", "user.none", b"new", os.XATTR_CREATE)
    t.getxattr("f", "user.there")
    t.setxattr("f", "user.empty", b"")
    t.getxattr("f", "user.empty")
    t.setxattr("f", "user." + "n" * 250, b"v")
    t.setxattr("f", "user." + "n" * 251, b"v")
    t.getxattr("f", "user." + "n" * 251)
    t.setxattr("f", "user.big", b"b" * 65536)
    t.setxattr("f", "user.bigger", b"b" * 65537)
    t.setxattr("f", "user.page", b"b" * 3500)
    t.getxattr("f", "user.page")
    t.listxattr("f")
    t.removexattr("f", "user.page")
    t.removexattr("f", "user.page")
    t.getxattr("f", "user.page")


@scenario(on="xfs")
def large_values_on_xfs(b):
    b.low.file("f", xattrs={"user.big": b"L" * 60000})
    t = yield
    t.chmod("f", 0o600)
    t.getxattr("f", "user.big")
    t.setxattr("f", "user.max", b"m" * 65536)
    t.getxattr("f", "user.max")
    t.setxattr("f", "user.over", b"m" * 65537)
    for i in range(100):
        t.setxattr("f", f"user.number{i:03}", b"%d" % i)
    t.listxattr("f")


@scenario()
def the_overlays_own_are_hidden_and_escaped(b):
    b.low.file(
        "f",
        xattrs={
            "trusted.overlay.custom": b"lower",
            "trusted.overlayish": b"not ours",
            "user.overlay.u": b"u",
        },
    )
    b.low.dir("d", xattrs={"trusted.overlay.overlay.opaque": b"y"}).file("d/x")
    t = yield
    for name in ("f", "d"):
        t.listxattr(name)
    t.getxattr("f", "trusted.overlay.custom")
    t.getxattr("f", "trusted.overlayish")
    t.getxattr("f", "user.overlay.u")
    t.getxattr("d", "trusted.overlay.opaque")
    for key in (
        "trusted.overlay.opaque",
        "trusted.overlay.overlay.opaque",
        "trusted.overlay.",
        "trusted.overlay",
        "user.overlay.opaque",
    ):
        t.setxattr("f", key, b"set")
        t.getxattr("f", key)
        t.setxattr("d", key, b"y")
        t.getxattr("d", key)
    t.listxattr("f")
    t.listxattr("d")
    t.list("d")
    for key in (
        "trusted.overlay.opaque",
        "trusted.overlay.overlay.opaque",
        "user.overlay.opaque",
        "trusted.overlay.none",
    ):
        t.removexattr("f", key)
    t.listxattr("f")
    t.chmod("f", 0o600)
    t.setxattr("f", "trusted.overlay.redirect", b"/etc")
    t.setxattr("d", "trusted.overlay.origin", b"bogus")
    t.setxattr("d", "trusted.overlay.whiteout", b"y")
    t.list(".")


@scenario(options="userxattr")
def userxattr_mounts(b):
    b.low.file("d/a").file("d/b").file(
        "f", xattrs={"user.overlay.custom": b"hidden", "trusted.overlay.x": b"seen?"}
    )
    b.low.dir("e").file("e/x")
    b.up.dir("e", xattrs={"user.overlay.opaque": b"y"})
    t = yield
    t.list("e")
    t.listxattr("f")
    t.getxattr("f", "user.overlay.custom")
    t.getxattr("f", "trusted.overlay.x")
    for key in ("user.overlay.opaque", "trusted.overlay.opaque", "user.overlay.overlay.opaque", "user.x"):
        t.setxattr("f", key, b"y")
        t.getxattr("f", key)
    t.listxattr("f")
    t.unlink("d/a")
    t.rename("d", "d2")
    t.unlink("d/b")
    t.rmdir("d")
    t.mkdir("d")
    t.list("d")
    t.chmod("f", 0o600)
    t.same_inode("f", "f")


@scenario()
def acl_set_and_read(b):
    b.low.kinds("low-")
    b.up.kinds("up-")
    t = yield
    for kind in KINDS:
        for side in ("low-", "up-"):
            t.setxattr(side + kind, ACCESS, acl(7, 5, 1, users={1000: 6}))
            t.getxattr(side + kind, ACCESS)
            t.setxattr(side + kind, DEFAULT, acl(7, 5, 0))
            t.getxattr(side + kind, DEFAULT)
            t.lstat(side + kind)
            t.listxattr(side + kind)


@scenario()
def acl_and_chmod(b):
    b.low.file("f", mode=0o664)
    t = yield
    t.setxattr("f", ACCESS, acl(6, 4, 4, users={1000: 7}, mask=7))
    t.stat("f")
    t.chmod("f", 0o640)
    t.getxattr("f", ACCESS)
    t.stat("f")
    t.setxattr("f", ACCESS, acl(7, 5, 1))
    t.stat("f")
    t.listxattr("f")
    t.setxattr("f", ACCESS, acl(6, 4, 4, users={1000: 7}))
    t.removexattr("f", ACCESS)
    t.getxattr("f", ACCESS)
    t.stat("f")
    t.setxattr("f", ACCESS, b"rubbish")
    t.setxattr("f", ACCESS, b"")


@scenario()
def acl_decides_access(b):
    b.low.file("f", b"secret", 0o600, xattrs={}).dir("d", 0o700).file("d/in", b"inside")
    b.low.file("denied", b"no", 0o644)
    t = yield
    t.setxattr("f", ACCESS, acl(6, 0, 0, users={1000: 4}))
    t.setxattr("d", ACCESS, acl(7, 0, 0, groups={2000: 7}))
    t.setxattr("denied", ACCESS, acl(6, 4, 4, users={1000: 0}))
    with t.as_user(1000):
        t.read("f")
        t.overwrite("f", b"x")
        t.read("denied")
        t.list("d")
        t.access("f", os.R_OK)
        t.access("f", os.W_OK)
    with t.as_user(1001, 1001, [2000]):
        t.read("f")
        t.list("d")
        t.create("d/new", b"n")
        t.read("denied")


@scenario()
def acl_in_the_lower_decides_access(b):
    b.low.file("f", b"secret", 0o600, xattrs={ACCESS: acl(6, 0, 0, users={1000: 6})})
    b.low.dir("d", 0o700, xattrs={ACCESS: acl(7, 0, 0, users={1000: 5})}).file("d/in", b"inside")
    t = yield
    with t.as_user(1001):
        t.read("f")
        t.list("d")
    with t.as_user(1000):
        t.read("f")
        t.list("d")
        t.create("d/new")
        t.append("f", b"!")
        t.read("f")
    t.getxattr("f", ACCESS)


@scenario()
def default_acls_are_inherited(b):
    b.low.dir("low", 0o755, xattrs={DEFAULT: acl(7, 5, 0, users={1000: 7})})
    b.up.dir("up", 0o755, xattrs={DEFAULT: acl(7, 5, 0, users={1000: 7})})
    t = yield
    for side in ("low", "up"):
        for mask in (0o022, 0o077):
            with t.umask(mask):
                t.create(f"{side}/file{mask:o}", b"", 0o666)
                t.mkdir(f"{side}/dir{mask:o}", 0o777)
                t.mknod(f"{side}/fifo{mask:o}", 0o010666)
                t.symlink("x", f"{side}/link{mask:o}")
                fd = t.open(side, os.O_TMPFILE | os.O_RDWR, 0o666)
                t.fstat(fd)
                t.fgetxattr(fd, ACCESS)
                t.link_fd(fd, f"{side}/tmp{mask:o}")
            for kind in ("file", "dir", "fifo", "link", "tmp"):
                path = f"{side}/{kind}{mask:o}"
                t.lstat(path)
                t.getxattr(path, ACCESS)
                t.getxattr(path, DEFAULT)
            t.create(f"{side}/dir{mask:o}/below", b"", 0o666)
            t.getxattr(f"{side}/dir{mask:o}/below", ACCESS)
            t.stat(f"{side}/dir{mask:o}/below")


@scenario()
def default_acls_over_whiteouts(b):
    b.low.dir("d", xattrs={DEFAULT: acl(7, 5, 0, users={1000: 7})})
    for kind in ("file", "dir", "fifo"):
        b.low.file(f"d/{kind}")
        b.up.whiteout(f"d/{kind}")
    os.setxattr(b.up.path("d"), DEFAULT, acl(7, 5, 0, users={1000: 7}))
    t = yield
    t.create("d/file", b"", 0o666)
    t.mkdir("d/dir", 0o777)
    t.mknod("d/fifo", 0o010666)
    for kind in ("file", "dir", "fifo"):
        t.stat(f"d/{kind}")
        t.getxattr(f"d/{kind}", ACCESS)
        t.getxattr(f"d/{kind}", DEFAULT)


@scenario()
def a_default_acl_set_on_the_mount(b):
    b.low.dir("d")
    t = yield
    t.setxattr("d", DEFAULT, acl(7, 7, 4, groups={2000: 6}))
    t.create("d/f", b"", 0o600)
    t.getxattr("d/f", ACCESS)
    t.stat("d/f")
    t.removexattr("d", DEFAULT)
    t.create("d/g", b"", 0o666)
    t.getxattr("d/g", ACCESS)
    t.stat("d/g")


@scenario()
def acl_changes_by_others(b):
    b.low.file("own", owner=(1000, 1000)).file("theirs")
    t = yield
    with t.as_user(1000):
        t.setxattr("own", ACCESS, acl(6, 4, 0, users={1001: 4}))
        t.setxattr("theirs", ACCESS, acl(6, 4, 0, users={1000: 6}))
        t.getxattr("own", ACCESS)
        t.removexattr("theirs", ACCESS)
    t.stat("own")


@scenario()
def acl_and_setgid(b):
    b.low.file("f", mode=0o2755, owner=(1000, 2000))
    t = yield
    with t.as_user(1000):
        t.setxattr("f", ACCESS, acl(7, 5, 5, users={1001: 4}))
    t.stat("f")


@scenario(lowers_on="ramfs", on="ext4")
def a_layer_without_acls(b):
    b.low.file("f").dir("d").file("d/x")
    t = yield
    for name in ("f", "d", "d/x"):
        t.getxattr(name, ACCESS)
        t.getxattr(name, DEFAULT)
        t.getxattr(name, "user.none")
        t.listxattr(name)
    t.create("d/new")
    # No ACL is set here: the kernel says EOPNOTSUPP, voile copies up and sets it.
    t.removexattr("d/x", "user.none")
