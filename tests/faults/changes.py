"""Single changes of an overlay, each one system call: test_crash_points kills or fails every step of them.

CHANGES[name] is a function of the mount point.  `build` makes the layers they work on.
"""

import os

from support import syscalls
from support.overlays import KernelOverlay
from support.syscalls import FS_APPEND_FL, FS_IMMUTABLE_FL, FS_NOATIME_FL, RENAME_EXCHANGE
from support.users import in_child

BIG = 600 * 1024  # copied up in another thread also on a volatile mount
ACL = bytes.fromhex(
    "02000000 01000700ffffffff 02000700e7030000 04000500ffffffff 10000700ffffffff 20000500ffffffff"
)


def build(layers):
    """Two lower layers and an upper one with every kind of object and whiteout that the changes need."""
    top, bottom = layers.lowers
    upper = layers.upper
    for layer in (top, bottom, upper):
        for directory in ("d", "m", "m/sub", "hollow", "other"):
            (layer / directory).mkdir()
    for layer, mark in ((top, b"top"), (bottom, b"bottom"), (upper, b"upper")):
        (layer / "m" / mark.decode()).write_bytes(mark)
    for name in ("file", "file2", "d/file", "hidden", "d/hidden", "hiddendir-was-file"):
        (bottom / name).write_bytes(name.encode() * 1000)
        os.setxattr(bottom / name, "user.x", b"value")
    (bottom / "big").write_bytes(b"big" * (BIG // 3))
    (bottom / "deep/er").mkdir(parents=True)
    (bottom / "deep/er/file").write_bytes(b"deep")
    os.symlink("target", bottom / "symlink")
    os.mkfifo(bottom / "fifo", 0o640)
    (bottom / "hiddendir").mkdir()
    (bottom / "hiddendir" / "in it").write_bytes(b"")
    (bottom / "lowerdir").mkdir()
    (bottom / "lowerdir" / "in it").write_bytes(b"lower")
    (bottom / "emptydir").mkdir()
    (bottom / "hollow" / "gone").write_bytes(b"must not come back")
    (bottom / "hollow" / "gone too").mkdir()
    (top / "file2").write_bytes(b"the upper of two lower ones")
    for name in ("hidden", "d/hidden", "hiddendir", "nothing below", "hollow/gone", "hollow/gone too"):
        os.mknod(upper / name, 0o020000, 0)
    (upper / "plain").write_bytes(b"plain")
    (upper / "plain2").write_bytes(b"plain 2")
    (upper / "file2").write_bytes(b"upper, with lower ones below")
    (upper / "plaindir").mkdir()
    (upper / "plaindir" / "in it").write_bytes(b"plain")
    (upper / "emptyplain").mkdir()
    (upper / "only whiteouts").mkdir()
    os.mknod(upper / "only whiteouts" / "w", 0o020000, 0)
    for layer in (bottom, upper):
        (layer / "heir").mkdir()
        os.chown(layer / "heir", 0, 50)
        os.chmod(layer / "heir", 0o2775)
        os.setxattr(layer / "heir", "system.posix_acl_default", ACL)
    (upper / "protected").write_bytes(b"protected")
    os.setxattr(upper / "protected", "trusted.overlay.protattr", b"ai")
    (bottom / "log").write_bytes(b"log")
    syscalls.set_flags(bottom / "log", FS_APPEND_FL | FS_NOATIME_FL)
    (bottom / "heir" / "hidden").write_bytes(b"")
    os.mknod(upper / "heir" / "hidden", 0o020000, 0)


def build_metacopy(layers):
    """As `build`, with files in the upper layer that have no data there."""
    build(layers)
    bottom, upper = layers.lowers[1], layers.upper
    for name, size in (("small", 10_000), ("large", BIG)):
        for old, new in ((name, name), (f"old {name}", f"moved {name}")):
            (bottom / "m" / old).write_bytes(name.encode() * (size // 5))
            (upper / "m" / new).touch(0o640)
            os.truncate(upper / "m" / new, size)
            os.setxattr(upper / "m" / new, "trusted.overlay.metacopy", b"")
            if old != new:
                os.setxattr(upper / "m" / new, "trusted.overlay.redirect", old.encode())
                os.mknod(upper / "m" / old, 0o020000, 0)
    os.link(upper / "m" / "small", upper / "m" / "small too")
    os.setxattr(upper / "m" / "small", "trusted.overlay.redirect", b"/m/small")


def build_indexed(layers):
    """Hard links below, some of them copied up by all, some by one of their names, or removed but for one."""
    bottom = layers.lowers[-1]
    (bottom / "d").mkdir()
    for family in ("lower", "some", "all", "last"):
        (bottom / f"{family}1").write_bytes(family.encode() * 1000)
        os.setxattr(bottom / f"{family}1", "user.x", b"value")
        os.link(bottom / f"{family}1", bottom / f"{family}2")
        os.link(bottom / f"{family}1", bottom / f"d/{family}3")
    (bottom / "big1").write_bytes(b"big" * (BIG // 3))
    os.link(bottom / "big1", bottom / "d/big2")
    os.symlink("target", bottom / "symlink1")
    os.link(bottom / "symlink1", bottom / "symlink2", follow_symlinks=False)
    os.mkfifo(bottom / "fifo1", 0o640)
    os.link(bottom / "fifo1", bottom / "fifo2")
    (layers.upper / "plain").write_bytes(b"plain")
    os.mknod(layers.upper / "hidden", 0o020000, 0)
    overlay = KernelOverlay(layers)
    point = overlay.mount("index=on,redirect_dir=on")

    def work():
        os.chmod(point / "some1", 0o600)
        for name in ("all1", "all2", "d/all3"):
            os.chmod(point / name, 0o600)
        for name in ("last1", "d/last3"):
            os.unlink(point / name)

    in_child(work)
    overlay.umount()


def rename(old, new, flags=0):
    return lambda point: syscalls.renameat2(point / old, point / new, flags)


def _truncating_open(name):
    return lambda point: os.close(os.open(point / name, os.O_WRONLY | os.O_TRUNC))


def _writing_open(name):
    return lambda point: os.close(os.open(point / name, os.O_WRONLY))


def _create(name):
    return lambda point: os.close(os.open(point / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


CHANGES = {
    "chmod": lambda p: os.chmod(p / "deep/er/file", 0o600),
    "chmod-dir": lambda p: os.chmod(p / "lowerdir", 0o700),
    "chown-symlink": lambda p: os.chown(p / "symlink", 1, 2, follow_symlinks=False),
    "chown-fifo": lambda p: os.chown(p / "fifo", 1, 2),
    "setxattr": lambda p: os.setxattr(p / "file", "user.y", b"new"),
    "removexattr": lambda p: os.removexattr(p / "file", "user.x"),
    "chattr": lambda p: syscalls.set_flags(p / "deep/er/file", FS_IMMUTABLE_FL),
    "chattr-dir": lambda p: syscalls.set_flags(p / "lowerdir", FS_APPEND_FL),
    "chattr-off": lambda p: syscalls.set_flags(p / "protected", 0),
    "append": lambda p: os.close(os.open(p / "log", os.O_WRONLY | os.O_APPEND)),
    "truncate": lambda p: os.truncate(p / "file", 10),
    "open": _writing_open("d/file"),
    "open-big": _writing_open("big"),
    "open-truncating": _truncating_open("file"),
    "create": _create("d/new"),
    "create-over-whiteout": _create("d/hidden"),
    "create-in-heir": _create("heir/hidden"),
    "mkdir": lambda p: os.mkdir(p / "deep/new"),
    "mkdir-over-whiteout": lambda p: os.mkdir(p / "hiddendir"),
    "mkdir-in-heir": lambda p: os.mkdir(p / "heir/hidden"),
    "symlink-over-whiteout": lambda p: os.symlink("x", p / "hidden"),
    "mkfifo-over-whiteout": lambda p: os.mkfifo(p / "hidden"),
    "link-of-lower": lambda p: os.link(p / "file", p / "deep/link"),
    "link-over-whiteout": lambda p: os.link(p / "plain", p / "d/hidden"),
    "unlink-lower": lambda p: os.unlink(p / "deep/er/file"),
    "unlink-both": lambda p: os.unlink(p / "file2"),
    "unlink-upper": lambda p: os.unlink(p / "plain"),
    "rmdir-lower": lambda p: os.rmdir(p / "emptydir"),
    "rmdir-upper": lambda p: os.rmdir(p / "emptyplain"),
    "rmdir-hollow": lambda p: os.rmdir(p / "hollow"),
    "rmdir-only-whiteouts": lambda p: os.rmdir(p / "only whiteouts"),
    "rename-lower": rename("file", "new"),
    "rename-lower-deep": rename("deep/er/file", "d/new"),
    "rename-over-lower": rename("plain", "file"),
    "rename-over-both": rename("file", "file2"),
    "rename-over-whiteout": rename("file", "hidden"),
    "rename-upper": rename("plain", "plain3"),
    "rename-upper-over-whiteout": rename("plain", "hidden"),
    "rename-big": rename("big", "other/big"),
    "rename-dir": rename("plaindir", "m/new"),
    "rename-dir-over-whiteout": rename("plaindir", "hiddendir"),
    "rename-dir-over-hollow": rename("plaindir", "hollow"),
    "rename-dir-over-only-whiteouts": rename("plaindir", "only whiteouts"),
    "rename-dir-over-lower": rename("plaindir", "emptydir"),
    "redirect": rename("lowerdir", "new"),
    "redirect-elsewhere": rename("m/sub", "other/sub"),
    "redirect-merged": rename("m", "other/m"),
    "redirect-over-whiteout": rename("m", "hiddendir"),
    "redirect-over-hollow": rename("lowerdir", "hollow"),
    "exchange-files": rename("file", "plain", RENAME_EXCHANGE),
    "exchange-dirs": rename("m", "d", RENAME_EXCHANGE),
    "exchange-file-and-dir": rename("d/file", "lowerdir", RENAME_EXCHANGE),
    "exchange-upper-and-lower-dir": rename("plaindir", "m/sub", RENAME_EXCHANGE),
}

# Looking at flags takes several requests.
MAY_HAVE_FLAGS = ("/deep/er/file", "/lowerdir", "/protected", "/log")

# With metacopy=on, on the layers of `build_metacopy`.
METACOPY_CHANGES = {
    "meta-chmod": lambda p: os.chmod(p / "deep/er/file", 0o600),
    "meta-setxattr": lambda p: os.setxattr(p / "d/file", "user.y", b"new"),
    "meta-link": lambda p: os.link(p / "file", p / "deep/link"),
    "meta-rename": rename("d/file", "d/new"),
    "meta-rename-elsewhere": rename("big", "other/big"),
    "meta-rename-over": rename("file", "m/small"),
    "meta-rename-moved": rename("m/moved small", "other/small"),
    "meta-exchange": rename("d/file", "m/moved small", RENAME_EXCHANGE),
    "meta-unlink": lambda p: os.unlink(p / "m/small"),
    "meta-open": _writing_open("m/moved small"),
    "meta-open-hard-link": _writing_open("m/small too"),
    "meta-open-large": _writing_open("m/large"),
    "meta-truncate": lambda p: os.truncate(p / "m/small", 10),
    "meta-truncate-large": lambda p: os.truncate(p / "m/moved large", 10),
    "meta-open-truncating": _truncating_open("m/small"),
}

# With index=on, on the layers of `build_indexed`.
INDEXED_CHANGES = {
    "index-chmod": lambda p: os.chmod(p / "lower1", 0o600),
    "index-chmod-by-another-name": lambda p: os.chmod(p / "d/some3", 0o640),
    "index-setxattr": lambda p: os.setxattr(p / "d/lower3", "user.y", b"new"),
    "index-open": _writing_open("lower2"),
    "index-open-big": _writing_open("d/big2"),
    "index-truncate": lambda p: os.truncate(p / "lower1", 10),
    "index-chown-symlink": lambda p: os.chown(p / "symlink2", 1, 2, follow_symlinks=False),
    "index-chown-fifo": lambda p: os.chown(p / "fifo1", 1, 2),
    "index-link": lambda p: os.link(p / "lower1", p / "d/new"),
    "index-link-of-some": lambda p: os.link(p / "some2", p / "d/new"),
    "index-link-over-whiteout": lambda p: os.link(p / "all2", p / "hidden"),
    "index-unlink": lambda p: os.unlink(p / "lower2"),
    "index-unlink-big": lambda p: os.unlink(p / "big1"),
    "index-unlink-some": lambda p: os.unlink(p / "some1"),
    "index-unlink-another-name": lambda p: os.unlink(p / "d/some3"),
    "index-unlink-one-of-all": lambda p: os.unlink(p / "all2"),
    "index-unlink-last": lambda p: os.unlink(p / "last2"),
    "index-rename": rename("lower1", "d/new"),
    "index-rename-another-name": rename("some2", "d/new"),
    "index-rename-last": rename("last2", "new"),
    "index-rename-over": rename("plain", "lower2"),
    "index-rename-over-another-name": rename("plain", "some2"),
    "index-rename-over-last": rename("plain", "last2"),
    "index-rename-over-others": rename("lower1", "d/some3"),
    "index-rename-last-over-lower": rename("last2", "d/lower3"),
    "index-exchange": rename("lower1", "d/some3", RENAME_EXCHANGE),
}
