"""chmod, chown, times, set-id bits, statfs."""

import mmap
import os

from differential.builder import KINDS
from differential.scenario import scenario

LAYERS = ("lower", "upper")


def kinds_in(b, where, **arguments):
    (b.low if where == "lower" else b.up).kinds("d/", **arguments)


for _where in LAYERS:

    @scenario(name=f"chmod_{_where}")
    def chmod(b, where=_where):
        kinds_in(b, where)
        t = yield
        for kind in KINDS:
            if kind != "symlink":
                for mode in (0, 0o777, 0o4711, 0o2755, 0o1700, 0o7777, 0o644):
                    t.chmod("d/" + kind, mode)
                    t.stat("d/" + kind)
        t.chmod("d/symlink", 0o600)  # follows
        t.stat("d/file")

    @scenario(name=f"chown_{_where}")
    def chown(b, where=_where):
        kinds_in(b, where)
        t = yield
        for kind in KINDS:
            t.chown("d/" + kind, 100, -1)
            t.lstat("d/" + kind)
            t.chown("d/" + kind, -1, 200)
            t.chown("d/" + kind, 2**31 + 5, 2**32 - 2)
            t.lstat("d/" + kind)
            t.ctime_is_now("d/" + kind)

    @scenario(name=f"times_{_where}")
    def times(b, where=_where):
        kinds_in(b, where)
        t = yield
        for kind in KINDS:
            path = "d/" + kind
            for at, mt in (
                (1, 2),
                (10**18 + 999_999_999, 10**18 + 1),
                (-(10**9), -1),
                (0, 0),
                (4 * 10**18, 4 * 10**18),
            ):
                t.utime(path, at, mt)
                t.lstat(path)
                t.atime(path)
            t.touch(path) if kind != "symlink" else None
            t.lstat(path)
            t.atime(path)

    @scenario(name=f"suid_is_lost_on_change_{_where}")
    def suid_is_lost_on_change(b, where=_where):
        layer = b.low if where == "lower" else b.up
        for mode in (0o6755, 0o4711, 0o2755, 0o2644, 0o6644):
            for action in ("write", "truncate", "chown", "chgrp", "open-trunc", "same-owner", "fallocate"):
                layer.file(f"{action}-{mode:o}", b"x" * 10, mode, (1000, 1000))
        layer.dir("dir", 0o6755, (1000, 1000))
        t = yield
        for mode in (0o6755, 0o4711, 0o2755, 0o2644, 0o6644):
            with t.as_user(1000, 1000, [2000]):
                t.overwrite(f"write-{mode:o}", b"y")
                t.truncate(f"truncate-{mode:o}", 5)
                t.chown(f"chgrp-{mode:o}", -1, 2000)
                t.chown(f"same-owner-{mode:o}", 1000, 1000)
                t.close(t.open(f"open-trunc-{mode:o}", os.O_WRONLY | os.O_TRUNC))
                t.fallocate(t.open(f"fallocate-{mode:o}", os.O_WRONLY), 0, 0, 100)
            t.chown(f"chown-{mode:o}", 5, 5)
            for action in ("write", "truncate", "chown", "chgrp", "open-trunc", "same-owner", "fallocate"):
                t.stat(f"{action}-{mode:o}")
        t.chown("dir", 5, 5)
        t.stat("dir")
        with t.as_user(1000):
            t.chmod("dir", 0o755)
        t.stat("dir")

    for _daemon in ("", "passthrough=off"):

        @scenario(name=f"sgid_of_a_foreign_group_{_where}{'_' + _daemon if _daemon else ''}", daemon=_daemon)
        def sgid_of_a_foreign_group(b, where=_where):
            """A set-group-id file that its group may not execute: the bit is for members of the group."""
            layer = b.low if where == "lower" else b.up
            for mode in (0o2644, 0o6644, 0o2755, 0o2766, 0o2640):
                for action in SGID_ACTIONS:
                    layer.file(f"{action}-{mode:o}-in", b"x" * 10_000, mode, (1000, 3000))
                    layer.file(f"{action}-{mode:o}-out", b"x" * 10_000, mode, (1000, 3000))
            b.low.file("source", b"from" * 1000)
            t = yield
            for mode in (0o2644, 0o6644, 0o2755, 0o2766, 0o2640):
                for member in ("in", "out"):
                    with t.as_user(1000, 1000, [2000, 3000] if member == "in" else [2000]):
                        for action in SGID_ACTIONS:
                            name = f"{action}-{mode:o}-{member}"
                            sgid_action(t, action, name)
                            t.stat(name)

    @scenario(name=f"suid_and_root_writes_{_where}")
    def suid_and_root_writes(b, where=_where):
        layer = b.low if where == "lower" else b.up
        for action in ("write", "truncate", "append"):
            layer.file(action, b"x" * 10, 0o6755, (1000, 1000), {"security.capability": CAPABILITY})
        t = yield
        t.overwrite("write", b"y")
        t.truncate("truncate", 5)
        t.append("append", b"z")
        for action in ("write", "truncate", "append"):
            t.stat(action)
            t.getxattr(action, "security.capability")


SGID_ACTIONS = (
    "write", "append", "truncate", "ftruncate", "open-trunc", "fallocate", "copy", "chgrp", "same-owner",
    "chown", "nothing-chown", "chmod", "mmap",
)  # fmt: skip


def sgid_action(t, action, name):
    """Something that may take the set-id bits away from a file."""
    if action == "write":
        t.overwrite(name, b"y")
    elif action == "append":
        t.append(name, b"y")
    elif action == "truncate":
        t.truncate(name, 5)
    elif action == "open-trunc":
        t.close(t.open(name, os.O_WRONLY | os.O_TRUNC))
    elif action == "chgrp":
        t.chown(name, -1, 2000)
    elif action == "same-owner":
        t.chown(name, 1000, -1)
    elif action == "chown":
        t.chown(name, 1000, 1000)
    elif action == "nothing-chown":
        t.chown(name, 1000, 3000)
    elif action == "chmod":
        t.chmod(name, 0o2644)
    else:
        fd = t.open(name, os.O_RDWR)
        if action == "fallocate":
            t.fallocate(fd, 0, 0, 20_000)
        elif action == "copy":
            t.copy_file_range(t.open("source"), fd, 100, 0, 0)
        elif action == "ftruncate":
            t.ftruncate(fd, 5)
        elif fd is not None:
            with mmap.mmap(fd, 4096) as shared:
                shared[0:4] = b"mmap"
        t.close(fd)


PRIVILEGED = {"suid": (0o4755, None), "cap": (0o755, "cap"), "both": (0o6777, "cap"), "none": (0o777, None)}
CHANGES = [each for each in SGID_ACTIONS if each not in ("same-owner", "chown", "nothing-chown")]

for _daemon in ("", "passthrough=off", "volatile"):
    for _uid in (0, 1000, 5000):

        @scenario(
            name=f"privileges_go_uid_{_uid}{'_' + _daemon if _daemon else ''}",
            daemon=_daemon if _daemon != "volatile" else "",
            options="volatile" if _daemon == "volatile" else "",
        )
        def privileges_go(b, uid=_uid, daemon=_daemon):
            """Set-id bits and file capabilities, whoever changes the file."""
            # Without passthrough what was written through a mapping is a write(2) in the end.
            changes = [each for each in CHANGES if each != "mmap" or daemon != "passthrough=off"]
            for layer, side in ((b.low, "low"), (b.up, "up")):
                for kind, (mode, cap) in PRIVILEGED.items():
                    xattrs = {"security.capability": CAPABILITY} if cap else None
                    for action in changes:
                        layer.file(f"{side}-{action}-{kind}", b"x" * 10_000, mode, (1000, 1000), xattrs)
            b.low.file("source", b"from" * 1000)
            t = yield
            for side in ("low", "up"):
                for kind in PRIVILEGED:
                    for action in changes:
                        name = f"{side}-{action}-{kind}"
                        with t.as_user(uid, uid, [2000]):
                            try:
                                sgid_action(t, action, name)
                            except OSError as e:
                                t.note("failed", e.errno)
                        t.stat(name)
                        t.getxattr(name, "security.capability")


# cap_net_raw=ep, VFS_CAP_REVISION_2
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


@scenario()
def file_capabilities_go_with_a_change(b):
    for action in ("write", "truncate", "chown", "chmod", "rename", "nothing"):
        b.low.file(action, b"x", 0o755, xattrs={"security.capability": CAPABILITY})
        b.up.file("up-" + action, b"x", 0o755, xattrs={"security.capability": CAPABILITY})
    t = yield
    for prefix in ("", "up-"):
        t.overwrite(prefix + "write", b"y")
        t.truncate(prefix + "truncate", 0)
        t.chown(prefix + "chown", 1, 1)
        t.chmod(prefix + "chmod", 0o700)
        t.rename(prefix + "rename", prefix + "renamed")
        for action in ("write", "truncate", "chown", "chmod", "renamed", "nothing"):
            t.getxattr(prefix + action, "security.capability")


@scenario()
def utimensat_permissions(b):
    for name in ("own", "writable", "readable"):
        mode = 0o666 if name == "writable" else 0o644
        b.low.file(name, b"", mode, (1000, 1000) if name == "own" else (0, 0))
    t = yield
    with t.as_user(1000):
        for name in ("own", "writable", "readable"):
            t.utime(name, 5, 5)
            t.touch(name)
    for name in ("own", "writable", "readable"):
        t.stat(name)


@scenario()
def omitted_times(b):
    b.low.file("f", b"x")
    t = yield
    t.touch("f")
    t.stat("f")
    fd = t.open("f", os.O_RDWR)
    t.futimens(fd, 5, 6)
    t.fstat(fd)
    t.atime("f")
    t.pwrite(fd, b"y", 0)
    t.fstat(fd)
    t.futimens(fd, 7, 8)
    t.close(fd)
    t.stat("f")


@scenario()
def times_after_each_change(b):
    for i in range(8):
        b.low.file(f"low{i}", b"12345").dir(f"lowdir{i}").file(f"lowdir{i}/x")
        b.up.file(f"up{i}", b"12345").dir(f"updir{i}").file(f"updir{i}/x")
    t = yield
    for side in ("low", "up"):
        t.chmod(f"{side}0", 0o600)
        t.truncate(f"{side}1", 2)
        t.overwrite(f"{side}2", b"z")
        t.setxattr(f"{side}3", "user.x", b"y")
        t.link(f"{side}4", f"{side}4link")
        t.truncate(f"{side}5", 5)
        t.close(t.open(f"{side}6", os.O_WRONLY))
        t.chown(f"{side}7", 1, 1)
        for i in range(8):
            t.stat(f"{side}{i}")
            t.ctime_is_now(f"{side}{i}")
        t.create(f"{side}dir0/new")
        t.unlink(f"{side}dir1/x")
        t.mkdir(f"{side}dir2/new")
        t.symlink("x", f"{side}dir3/new")
        t.link(f"{side}0", f"{side}dir4/new")
        t.chmod(f"{side}dir5/x", 0o600)
        t.rename(f"{side}dir6/x", f"{side}dir6/y")
        t.setxattr(f"{side}dir7", "user.x", b"y")
        for i in range(8):
            t.stat(f"{side}dir{i}")


@scenario()
def modes_and_umask(b):
    b.low.dir("d")
    t = yield
    for mask in (0, 0o022, 0o077, 0o777, 0o027):
        with t.umask(mask):
            t.create(f"d/file{mask:o}", b"", 0o666)
            t.create(f"d/exec{mask:o}", b"", 0o7777)
            t.mkdir(f"d/dir{mask:o}", 0o777)
            t.mkdir(f"d/sticky{mask:o}", 0o1777)
            t.mknod(f"d/fifo{mask:o}", 0o010666)
            t.symlink("t", f"d/link{mask:o}")
            fd = t.open("d", os.O_TMPFILE | os.O_RDWR, 0o666)
            t.fstat(fd)
            t.close(fd)
        for kind in ("file", "exec", "dir", "sticky", "fifo", "link"):
            t.lstat(f"d/{kind}{mask:o}")


@scenario()
def statfs_is_of_the_upper(b):
    b.low.file("f").dir("d")
    t = yield
    t.statfs(".")
    t.statfs("d")
    t.statfs("f")


@scenario(lowers_on="tmpfs")
def statfs_with_a_lower_elsewhere(b):
    b.low.file("f")
    t = yield
    t.statfs(".")
    t.statfs("f")


@scenario(upper=False, lowers=2)
def statfs_without_an_upper(b):
    b.low.file("f")
    t = yield
    t.statfs(".")


@scenario()
def sizes_and_blocks(b):
    b.low.file("low", b"x" * 12345).sparse("holes", 1 << 20)
    b.up.file("up", b"y" * 54321)
    t = yield
    for name in ("low", "holes", "up"):
        st = os.stat(name)
        t.note(name, (st.st_size, st.st_blocks, st.st_blksize))


@scenario()
def devices_and_their_numbers(b):
    for major, minor in ((1, 3), (255, 255), (256, 256), (4095, 1048575), (0, 1)):
        b.low.char(f"c{major}-{minor}", (major, minor)).block(f"b{major}-{minor}", (major, minor))
    t = yield
    for major, minor in ((1, 3), (255, 255), (256, 256), (4095, 1048575), (0, 1)):
        for kind, bits in (("c", 0o020000), ("b", 0o060000)):
            t.stat(f"{kind}{major}-{minor}")
            t.chmod(f"{kind}{major}-{minor}", 0o600)
            t.stat(f"{kind}{major}-{minor}")
            t.mknod(f"new-{kind}{major}-{minor}", bits | 0o600, os.makedev(major, minor))
            t.stat(f"new-{kind}{major}-{minor}")
    t.pread(t.open("new-c1-3", os.O_RDWR), 5, 0)


@scenario()
def fifos_and_sockets_work(b):
    import socket

    b.low.fifo("low-fifo").file("f")
    b.up.fifo("up-fifo")
    t = yield
    for name in ("low-fifo", "up-fifo"):
        fd = t.open(name, os.O_RDWR | os.O_NONBLOCK)
        t.write(fd, b"through")
        t.fread(fd, 20)
        t.close(fd)
        t.stat(name)
    server = socket.socket(socket.AF_UNIX)
    server.bind("sock")
    server.listen()
    t.stat("sock")
    client = socket.socket(socket.AF_UNIX)
    client.connect("sock")
    client.close()
    server.close()
    t.unlink("sock")
