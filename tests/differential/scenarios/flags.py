"""The flags of chattr(1): kept, copied up, shown and obeyed."""

import os

from differential.builder import KINDS
from differential.scenario import scenario
from support.syscalls import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FS_APPEND_FL,
    FS_IMMUTABLE_FL,
    FS_NOATIME_FL,
    FS_NODUMP_FL,
    FS_SYNC_FL,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
)

IMM, APP, DUMP, ATIME, SYNC = FS_IMMUTABLE_FL, FS_APPEND_FL, FS_NODUMP_FL, FS_NOATIME_FL, FS_SYNC_FL
EACH = {"i": IMM, "a": APP, "ia": IMM | APP, "d": DUMP, "A": ATIME, "S": SYNC, "dAS": DUMP | ATIME | SYNC}
STRICT = {"i": IMM, "a": APP, "ia": IMM | APP}


def make(layer, prefix=""):
    for letters in EACH:
        layer.file(f"{prefix}{letters}", b"0123456789").dir(f"{prefix}dir-{letters}")
        layer.file(f"{prefix}dir-{letters}/f", b"inside").dir(f"{prefix}dir-{letters}/sub")


def try_file(t, path):
    """Everything that the flags of a file may forbid."""
    for flags in (
        os.O_WRONLY,
        os.O_RDWR,
        os.O_WRONLY | os.O_APPEND,
        os.O_WRONLY | os.O_TRUNC,
        os.O_RDONLY | os.O_TRUNC,
        os.O_WRONLY | os.O_APPEND | os.O_TRUNC,
        os.O_WRONLY | os.O_CREAT,
    ):
        t.close(t.open(path, flags))
    t.append(path, b"appended")
    t.overwrite(path, b"over")
    t.truncate(path, 3)
    t.truncate(path, 100)
    t.chmod(path, 0o600)
    t.chown(path, 5, 6)
    t.utime(path, 10**18, 10**18)
    t.touch(path)
    t.setxattr(path, "user.x", b"y")
    t.setxattr(path, "trusted.x", b"y")
    t.removexattr(path, "user.x")
    t.removexattr(path, "user.none")
    t.getxattr(path, "user.x")
    t.link(path, path + "-link")
    t.rename(path, path + "-new")
    t.rename(path + "-new", path)
    t.create("victim", b"v", flags=0)
    t.rename("victim", path)
    t.rename("victim", path, RENAME_EXCHANGE)
    t.rename("victim", path, RENAME_NOREPLACE)
    t.unlink("victim")
    t.unlink(path + "-link")
    t.flags(path)
    t.read(path)
    t.lstat(path)


def try_dir(t, path):
    """Everything that the flags of a directory may forbid."""
    t.create(f"{path}/new", b"n")
    t.create(f"{path}/f", b"n", flags=0)
    t.mkdir(f"{path}/newdir")
    t.mkdir(f"{path}/sub")
    t.mknod(f"{path}/fifo", 0o010644)
    t.symlink("x", f"{path}/symlink")
    t.link(f"{path}/f", f"{path}/link")
    t.close(t.open(path, os.O_TMPFILE | os.O_RDWR))
    t.append(f"{path}/f", b"more")
    t.chmod(f"{path}/f", 0o600)
    t.rename(f"{path}/f", f"{path}/g")
    t.rename(f"{path}/f", "g")
    t.create("other")
    t.rename("other", f"{path}/other")
    t.rename("other", f"{path}/f")
    t.rename("other", f"{path}/f", RENAME_EXCHANGE)
    t.unlink("other")
    t.unlink(f"{path}/f")
    t.unlink(f"{path}/none")
    t.rmdir(f"{path}/sub")
    t.unlink(f"{path}/other")
    t.chmod(path, 0o700)
    t.chown(path, 5, 6)
    t.touch(path)
    t.utime(path, 10**18, 10**18)
    t.setxattr(path, "user.x", b"y")
    t.rename(path, path + "-new")
    t.rename(path + "-new", path)
    t.flags(path)
    t.list(path)


def clear(t, letters, prefix=""):
    t.chattr(prefix + letters, 0)
    t.chattr(f"{prefix}dir-{letters}", 0)


@scenario(options="metacopy=on,index=on")
def of_files_whose_data_stays_below(b):
    for name in ("f", "g", "h", "i"):
        b.low.file(name, b"0123456789" * 1000)
    b.low.link("h", "link").chattr("i", ATIME | SYNC)
    t = yield
    t.chattr("f", DUMP)
    t.chmod("g", 0o600)
    for path in ("g", "h", "i"):
        t.chattr(path, DUMP | IMM)
        t.fsxattr(path)
        t.chmod(path, 0o640)
        t.append(path, b"more")
    for path in ("f", "g", "h", "link", "i"):
        t.flags(path)
        t.read(path)
    t.chattr("h", DUMP)
    t.set_fsxattr("g", 0x40)
    t.append("link", b"more")
    for path in ("f", "g", "h", "link", "i"):
        t.flags(path)
        t.fsxattr(path)


for _letters, _flags in STRICT.items():
    for _options in ("metacopy=on", "index=on", "metacopy=on,index=on"):

        @scenario(name=f"with_{_options.replace(',', '_')}_{_letters}", options=_options)
        def with_options(b, letters=_letters, flags=_flags):
            make(b.low)
            make(b.low, "other-")
            b.low.link(letters, "link").link("other-" + letters, "other-link")
            b.low.chattr(letters, flags).chattr(f"dir-{letters}", flags)
            t = yield
            for path in (letters, "link", "other-" + letters, "other-link"):
                try_file(t, path)
            t.chattr("other-" + letters, flags | DUMP | ATIME)
            for path in (letters, "link", "other-" + letters, "other-link"):
                try_file(t, path)
            try_dir(t, f"dir-{letters}")
            clear(t, letters)
            clear(t, letters, "other-")
            for path in (letters, "link", "other-" + letters, "other-link"):
                try_file(t, path)

for _letters, _flags in EACH.items():

    @scenario(name=f"of_lower_objects_{_letters}")
    def of_lower_objects(b, letters=_letters, flags=_flags):
        make(b.low)
        b.low.chattr(letters, flags).chattr(f"dir-{letters}", flags)
        t = yield
        t.flags(letters)
        t.flags(f"dir-{letters}")
        try_file(t, letters)
        try_dir(t, f"dir-{letters}")
        clear(t, letters)
        try_file(t, letters)
        try_dir(t, f"dir-{letters}")

    @scenario(name=f"set_on_the_mount_{_letters}", options="redirect_dir=on")
    def set_on_the_mount(b, letters=_letters, flags=_flags):
        make(b.low, "low-")
        make(b.up, "up-")
        t = yield
        t.create("new-" + letters, b"0123456789")
        t.mkdir("new-dir-" + letters)
        t.create(f"new-dir-{letters}/f", b"inside")
        t.mkdir(f"new-dir-{letters}/sub")
        for prefix in ("low-", "up-", "new-"):
            t.chattr(prefix + letters, flags)
            t.chattr(f"{prefix}dir-{letters}", flags)
            t.ctime_is_now(prefix + letters)
            t.lstat(prefix + letters)
            try_file(t, prefix + letters)
            try_dir(t, f"{prefix}dir-{letters}")
        clear(t, letters, "up-")
        try_file(t, "up-" + letters)


@scenario()
def removal_of_lower_objects(b):
    for letters, flags in EACH.items():
        b.low.file(letters).chattr(letters, flags).dir("dir-" + letters).chattr("dir-" + letters, flags)
    t = yield
    for letters in EACH:
        t.unlink(letters)
        t.rmdir("dir-" + letters)
        t.lstat(letters)
        t.lstat("dir-" + letters)


@scenario()
def rename_over_lower_objects(b):
    for letters, flags in EACH.items():
        b.low.file(letters).chattr(letters, flags).dir("dir-" + letters).chattr("dir-" + letters, flags)
    t = yield
    for letters in EACH:
        t.create("file")
        t.rename("file", letters)
        t.mkdir("dir")
        t.rename("dir", "dir-" + letters)
        t.unlink("file")
        t.rmdir("dir")
        t.flags(letters)
        t.flags("dir-" + letters)


@scenario()
def found_in_the_upper(b):
    """What the kernel has stored there in another mount, and what nobody should have."""
    for number, value in enumerate((b"i", b"a", b"ai", b"ia", b"aa", b"x", b"ix", b"", b"aix")):
        xattrs = {"trusted.overlay.protattr": value}
        b.up.file(f"f{number}", b"0123456789", xattrs=xattrs)
        b.up.dir(f"d{number}", xattrs=xattrs).file(f"d{number}/f").dir(f"d{number}/sub")
        b.low.dir(f"d{number}")
    t = yield
    for number in range(9):
        t.flags(f"f{number}")
        t.listxattr(f"f{number}")
        try_file(t, f"f{number}")
        try_dir(t, f"d{number}")
        t.chattr(f"f{number}", 0)
        t.chattr(f"d{number}", 0)
        t.flags(f"f{number}")
        t.overwrite(f"f{number}", b"new")


for _letters, _flags in STRICT.items():

    @scenario(name=f"set_in_the_upper_itself_{_letters}")
    def set_in_the_upper_itself(b, letters=_letters, flags=_flags):
        """By somebody else, or an old kernel: they are in the way of the overlay, too."""
        make(b.up)
        b.up.chattr(letters, flags).chattr(f"dir-{letters}", flags)
        t = yield
        try_file(t, letters)
        try_dir(t, f"dir-{letters}")
        clear(t, letters)
        try_file(t, letters)
        try_dir(t, f"dir-{letters}")


@scenario()
def of_a_lower_layer_that_was_an_upper(b):
    b.low.file("f", xattrs={"trusted.overlay.protattr": b"i"})
    b.low.dir("d", xattrs={"trusted.overlay.protattr": b"i"})
    t = yield
    t.flags("f")
    t.flags("d")
    t.append("f", b"more")
    t.create("d/new")


@scenario()
def who_may_change_them(b):
    b.low.file("own", b"x", 0o644, (1000, 1000)).file("others", b"x", 0o666)
    b.low.file("own-i", b"x", 0o644, (1000, 1000)).chattr("own-i", IMM)
    b.low.dir("dir", 0o755, (1000, 1000)).file("low", b"x", 0o666, (5, 5))
    t = yield
    with t.as_user(1000):
        for path in ("own", "others", "own-i", "dir"):
            for flags in (DUMP, ATIME, IMM, APP, DUMP | IMM, 0):
                t.chattr(path, flags)
                t.flags(path)
        t.overwrite("own-i", b"y")
        t.unlink("dir")
        t.chmod("own-i", 0o600)
        t.fsxattr("own")
        t.set_fsxattr("own", 0x80)
        t.set_fsxattr("own", 0x8)
        t.set_fsxattr("others", 0x80)
        t.fsxattr("own")


@scenario()
def as_extended_flags(b):
    """FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR."""
    for name in ("i", "a", "d"):
        b.low.file(name).dir("dir-" + name)
    b.low.chattr("i", IMM).chattr("a", APP).chattr("d", DUMP)
    t = yield
    for name in ("i", "a", "d", "dir-i"):
        t.fsxattr(name)
        t.chmod(name, 0o600)
    for xflags in (0x8, 0x10, 0x18, 0x20, 0x40, 0x80, 0xE0, 0x2, 0x4, 0x200, 1 << 30, 0):
        for name in ("d", "dir-d"):
            t.set_fsxattr(name, xflags)
            t.fsxattr(name)
            t.flags(name)
            t.chmod(name, 0o600)
    t.set_fsxattr("d", 0, 0, 0, 7, 0)
    t.fsxattr("d")
    t.set_fsxattr("d", 0x800, 4096, 0, 0, 0)
    t.set_fsxattr("d", 0, 4096, 0, 0, 0)


@scenario()
def flags_that_cannot_be_set(b):
    b.low.file("f").dir("d")
    t = yield
    for flags in (0x1000, 0x80000, 0x20000000, 0x10000, 0x800000, 0x20000, 1 << 31, 0x4, 0x100, 0x4000):
        for path in ("f", "d"):
            t.chattr(path, flags)
            t.chattr(path, flags | IMM)
            t.chmod(path, 0o600)
            t.chattr(path, 0)


@scenario()
def of_other_kinds(b):
    b.low.kinds("low-")
    b.up.kinds("up-")
    t = yield
    for prefix in ("low-", "up-"):
        for kind in KINDS:
            if kind not in ("socket", "block", "char"):
                t.flags(prefix + kind)
                t.chattr(prefix + kind, DUMP)
                t.fsxattr(prefix + kind)


# FS_IOC_GETVERSION and SETVERSION, FIEMAP, FIBMAP, FITRIM, FS_IOC_FIEMAP, EXT4_IOC_GETSTATE, BTRFS_IOC_SYNC,
# FS_IOC_GETFSUUID, FS_IOC_GET_ENCRYPTION_POLICY, and those of lsattr(1) as a 32-bit program gives them.
IOCTLS = (
    (0x80087601, 8), (0x40087602, 8), (0xC0185879, 24), (0x80086601 ^ 0xC0000, 4), (0x40046602, 4),
    (0x40046629, 4), (0x9408, 0), (0x400C6615, 12), (0x8008669A, 8), (0x1234, 0), (0xC0FF5601, 255),
)  # fmt: skip


@scenario()
def other_ioctls(b):
    b.low.file("low", b"x").dir("low-dir")
    b.up.file("up", b"x").dir("up-dir")
    t = yield
    for path in ("low", "low-dir", "up", "up-dir"):
        for command, size in IOCTLS:
            t.ioctl(path, command, size)


# No F_SETFL that takes O_APPEND away from a file that may only be appended to: the kernel's FUSE allows it,
# and voile refuses the write.
@scenario()
def of_files_that_are_open(b):
    for where, layer in (("low", b.low), ("up", b.up)):
        for letters in STRICT:
            layer.file(f"{where}-{letters}", b"0123456789" * 1000)
    t = yield
    for where in ("low", "up"):
        for letters, flags in STRICT.items():
            path = f"{where}-{letters}"
            fd, appends = t.open(path, os.O_RDWR), t.open(path, os.O_RDWR | os.O_APPEND)
            t.chattr(path, flags)
            t.pwrite(fd, b"still", 0)
            t.write(appends, b"more")
            t.ftruncate(fd, 9000)
            t.fallocate(fd, 0, 0, 20_000)
            t.fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 40_000)
            t.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096)
            t.copy_file_range(fd, fd, 10, 0, 5000)
            t.fchmod(fd, 0o600)
            t.fchown(fd, 5, 6)
            t.futimens(fd, 10**18, 10**18)
            t.fsetxattr(fd, "user.x", b"y")
            t.link_fd(fd, path + "-link")
            t.pread(fd, 100, 0)
            t.fstat(fd)
            t.close(fd)
            t.close(appends)
            t.read(path)


@scenario()
def of_a_file_that_appends_and_is_open(b):
    b.low.file("f", b"start")
    t = yield
    t.chattr("f", APP)
    fd = t.open("f", os.O_RDWR | os.O_APPEND)
    t.write(fd, b"one")
    t.pwrite(fd, b"two", 0)
    t.pread(fd, 100, 0)
    t.fstat(fd)
    t.ftruncate(fd, 0)
    t.fsync(fd)
    t.close(fd)
    t.read("f")


@scenario(lowers=2)
def of_merged_directories(b):
    b.lows[0].dir("d").file("d/top")
    b.lows[1].dir("d").file("d/bottom").chattr("d", IMM)
    b.lows[0].dir("e").file("e/top").chattr("e", IMM)
    b.lows[1].dir("e").file("e/bottom")
    b.up.dir("g")
    b.lows[0].dir("g").chattr("g", IMM)
    t = yield
    for path in ("d", "e", "g"):
        t.flags(path)
        t.create(path + "/new")
        t.unlink(path + "/bottom")
        t.append(path + "/top", b"more")
        t.flags(path)


@scenario()
def below_an_immutable_directory(b):
    b.low.dir("d").dir("d/sub").file("d/sub/f", b"x").chattr("d", IMM)
    t = yield
    t.append("d/sub/f", b"more")
    t.create("d/sub/new")
    t.create("d/new")
    t.flags("d")
    t.unlink("d/sub/f")
    t.rename("d/sub/new", "out")
    t.rename("out", "d/back")
    t.list("d/sub")


@scenario(upper=False, lowers=2)
def on_a_read_only_mount(b):
    b.lows[0].file("f").chattr("f", IMM).dir("d").chattr("d", APP)
    t = yield
    for path in ("f", "d"):
        t.flags(path)
        t.chattr(path, 0)
        t.chattr(path, DUMP)
        t.chmod(path, 0o600)


for _on, _lower in (("tmpfs", None), ("xfs", None), ("btrfs", None), ("ext4", "tmpfs"), ("tmpfs", "xfs")):

    @scenario(name=f"on_{_on}_over_{_lower}", on=_on, lowers_on=_lower)
    def on_others(b):
        make(b.low)
        for letters, flags in EACH.items():
            if "S" not in letters:
                b.low.chattr(letters, flags).chattr("dir-" + letters, flags)
        t = yield
        for letters in EACH:
            t.flags(letters)
            t.append(letters, b"more")
            t.touch("dir-" + letters)
            t.create(f"dir-{letters}/new")
            t.chmod(letters, 0o600)
            t.flags(letters)
            t.flags("dir-" + letters)
            t.chattr(letters, 0)
            t.flags(letters)
            t.fsxattr(letters)
            t.chattr(letters, DUMP | ATIME | IMM)
            t.flags(letters)


@scenario(lowers_on="ramfs")
def over_a_file_system_without_them(b):
    b.low.file("f").dir("d")
    t = yield
    for path in ("f", "d"):
        t.flags(path)
        t.chattr(path, DUMP)
        t.fsxattr(path)
        t.chmod(path, 0o700)
        t.flags(path)
        t.chattr(path, IMM)
        t.flags(path)
