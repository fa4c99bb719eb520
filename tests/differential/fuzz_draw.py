"""Programs for hypothesis to draw: small pools of names, so that steps meet each other."""

import os

from hypothesis import strategies as st

from differential.fuzz_program import Program, Slot
from differential.fuzz_scout import Pick
from differential.tree import ACCESS, DEFAULT, acl
from support import syscalls as sys

NAMES = [b"f", b"g", b"a", b"b", b"c", b"h", b"\xff\xfe\x80 ", b"o,d:d\\", b"n" * 255]
LONG = b"L" * 200
DIRECTORIES = [b"a", b"b", b"a/b", b"a/a", b"c", b"b/c", b"a/b/c", b"a/a/b/a", LONG, LONG + b"/" + b"M" * 200]
PATHS = [
    *NAMES,
    *[d + b"/" + name for d in DIRECTORIES[:3] for name in NAMES],
    *[d + b"/" + name for d in DIRECTORIES[3:] for name in NAMES[:4]],
]
path = st.sampled_from(PATHS)
directory = st.sampled_from(DIRECTORIES)
somewhere = st.one_of(path, directory)
maybe_root = st.one_of(somewhere, st.just(b"."))

data = st.sampled_from([b"x", b"hello world\n", b"0123456789abcdef" * 256, b"page" * 2048, b""])
file_mode = st.sampled_from([0o644, 0o600, 0o666, 0o755, 0o444, 0o000, 0o4755, 0o2775, 0o2644, 0o6777])
dir_mode = st.sampled_from([0o755, 0o777, 0o777, 0o777, 0o1777, 0o2775, 0o700, 0o500])
owner = st.sampled_from([(0, 0), (1000, 1000), (2000, 1000), (2000, 3000)])
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
attribute = st.sampled_from(
    [
        ("user.a", b"1"),
        ("user.b", b"v" * 300),
        ("trusted.t", b"t"),
        ("security.capability", CAPABILITY),
        (ACCESS, acl(6, 4, 0, users={1000: 7})),
        (ACCESS, acl(7, 5, 5)),
        ("trusted.overlay.opaque", b"y"),
        ("trusted.overlay.overlay.origin", b""),
        ("user.overlay.redirect", b"a"),
    ]
)
default_acl = st.just((DEFAULT, acl(7, 5, 0, users={2000: 5})))
any_attribute = st.one_of(attribute, default_acl)
# In layers only what is no business of the overlay's, or rightly its own.
plain_attribute = attribute.filter(lambda pair: "overlay" not in pair[0])
times = st.sampled_from([(1, 2), (10**18, 1_234_567_890_123_456_789), (0, 0)])


def attributes(values):
    return st.one_of(st.none(), st.lists(values, max_size=2).map(dict))


# ---------------------------------------------------------------- layers

entry = st.one_of(
    st.tuples(st.just("file"), somewhere, data, file_mode, owner, attributes(plain_attribute)),
    st.tuples(st.just("dir"), somewhere, dir_mode, owner, attributes(plain_attribute | default_acl)),
    st.tuples(st.just("file"), somewhere, data),
    st.tuples(st.just("dir"), directory),
    st.tuples(st.just("dir"), directory),
    st.tuples(st.just("symlink"), somewhere, st.sampled_from([b"f", b"a", b"nowhere", b"b/g", b"a/b"])),
    st.tuples(st.just("link"), path, path),
    st.tuples(st.sampled_from(["fifo", "socket", "char", "block"]), path),
    st.tuples(st.just("sparse"), path, st.just(200_000), st.just((70_000, b"data"))),
    st.tuples(st.just("big"), path),
)
hiding = st.one_of(
    st.tuples(st.just("whiteout"), somewhere),
    st.tuples(st.just("opaque"), directory),
    st.tuples(st.just("moved"), directory, somewhere, st.booleans()),
    st.tuples(st.just("xwhiteout"), directory, st.sampled_from(NAMES)),
)


def long_list(items, parts):
    """hypothesis draws short lists; several of them make a long one."""
    return st.tuples(*[st.lists(items, max_size=12)] * parts).map(
        lambda lists: [x for one in lists for x in one]
    )


lowest = long_list(entry, 4)
upper_ones = long_list(st.one_of(entry, entry, hiding), 2)

# ---------------------------------------------------------------- steps


def pick(what, fallback):
    """Mostly something that is there."""
    return st.one_of(
        fallback,
        *[st.builds(Pick, st.sampled_from(what), st.integers(0, 40), fallback)] * 4,
    )


path, plain_path = pick(["file"] * 4 + ["any", "new"], path), path
directory, plain_directory = pick(["dir"], directory), directory
somewhere = pick(["file", "file", "any", "dir", "new"], somewhere)
maybe_root = st.one_of(somewhere, somewhere, somewhere, st.just(b"."))
new = pick(["new"], plain_path)
new_slot = st.integers(0, 3).map(Slot)
new_dir_slot = st.integers(4, 5).map(Slot)
new_map_slot = st.integers(6, 7).map(Slot)
slot = pick(["open"], new_slot)
dir_slot = pick(["open"], new_dir_slot)
map_slot = pick(["mmap"], new_map_slot)
offset = st.sampled_from([0, 1, 4096, 5000, 70_000])
length = st.sampled_from([1, 10, 4096, 10_000])
FLAGS = [
    os.O_RDONLY,
    os.O_RDWR,
    os.O_RDWR,
    os.O_WRONLY | os.O_APPEND,
    os.O_RDWR | os.O_CREAT,
    os.O_RDWR | os.O_TRUNC,
    os.O_RDONLY | os.O_TRUNC,
    os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    os.O_RDWR | os.O_SYNC,
    os.O_RDONLY | os.O_NOFOLLOW,
    os.O_RDONLY | os.O_NOATIME,
    os.O_PATH,
]
open_flags = st.sampled_from(FLAGS).map(lambda flags: flags | os.O_NONBLOCK)  # a FIFO must not hold us
rename_flags = st.sampled_from([0, 0, 0, sys.RENAME_NOREPLACE, sys.RENAME_EXCHANGE, sys.RENAME_WHITEOUT])
uid = st.sampled_from([0, 1000, 2000])
gid = st.sampled_from([-1, 0, 1000, 3000])
at_what = st.sampled_from(["stat", "create", "mkdir", "unlink", "rmdir", "rename"])
at_name = st.sampled_from([b"f", b"g", b"a", b"b", b"c", b".."])
KEEP, PUNCH, ZERO = sys.FALLOC_FL_KEEP_SIZE, sys.FALLOC_FL_PUNCH_HOLE, sys.FALLOC_FL_ZERO_RANGE
fallocate_mode = st.sampled_from([0, KEEP, PUNCH | KEEP, ZERO, ZERO | KEEP])


def verb(name, *arguments):
    return st.tuples(st.sampled_from([0, 0, 0, 1, 2]), st.just(name), *arguments)


def spread(pair):
    """A step whose last argument is a pair: both become arguments."""
    return (*pair[:-1], *pair[-1])


on_names = st.one_of(
    verb("create", new, data, file_mode),
    verb("mkdir", new, dir_mode),
    verb("unlink", somewhere),
    verb("rmdir", somewhere),
    verb("rename", somewhere, somewhere, rename_flags),
    verb("rename", directory, new, rename_flags),
    verb("rename", directory, directory, rename_flags),
    verb("rename", path, path, rename_flags),
    verb("rename", path, new, rename_flags),
    verb("link", path, new),
    verb("symlink", st.sampled_from([b"f", b"a", b"b/g", b"nowhere"]), new),
    verb("mknod", new, st.sampled_from([0o010644, 0o140600, 0o100600])),
    verb("mknod", new, st.just(0o020666), st.sampled_from([259, 0])),
    verb("unlink", path),
    verb("rmdir", directory),
)
on_attributes = st.one_of(
    verb("chmod", maybe_root, file_mode),
    verb("chmod", directory, dir_mode),
    verb("chown", maybe_root, uid, gid),
    verb("utime", maybe_root, times).map(spread),
    verb("touch", maybe_root),
    verb("truncate", path, st.sampled_from([0, 5, 5000])),
    verb("setxattr", maybe_root, any_attribute).map(spread),
    verb("setxattr", directory, default_acl).map(spread),
    verb("removexattr", maybe_root, any_attribute.map(lambda pair: pair[0])),
    verb("getxattr", maybe_root, any_attribute.map(lambda pair: pair[0])),
    verb("access", maybe_root, st.integers(0, 7)),
)
on_looks = st.one_of(
    verb("list", st.one_of(directory, st.just(b"."))),
    verb("read", path),
    verb("readlink", path),
    verb("xattrs", maybe_root),
    verb("look", somewhere),
    verb("dots", directory),
)
on_open = st.one_of(
    verb("open", new_slot, somewhere, open_flags),
    verb("open", new_slot, path, open_flags),
    verb("open", new_slot, path, open_flags),
    verb("close", slot),
    verb("pread", slot, length, offset),
    verb("fread", slot, length),
    verb("pwrite", slot, data, offset),
    verb("write", slot, data),
    verb("ftruncate", slot, offset),
    verb("fchmod", slot, file_mode),
    verb("fchown", slot, uid, gid),
    verb("futimens", slot, times).map(spread),
    verb("fsetxattr", slot, attribute).map(spread),
    verb("fgetxattr", slot, attribute.map(lambda pair: pair[0])),
    verb("flook", slot),
    verb("fsync", slot),
    verb("fdatasync", slot),
    verb("syncfs", slot),
    verb("seek", slot, offset, st.sampled_from([os.SEEK_SET, os.SEEK_DATA, os.SEEK_HOLE, os.SEEK_END])),
    verb("fallocate", slot, fallocate_mode, offset, length),
    verb("copy_file_range", slot, slot, length, offset, offset),
    verb("flock", slot, st.sampled_from([5, 6, 8])),  # LOCK_NB with SH, EX; UN
    verb("open", new_slot, st.one_of(directory, st.just(b".")), st.just(os.O_TMPFILE | os.O_RDWR)),
    verb("link_fd", slot, new),
)
on_directories = st.one_of(
    verb("open", new_dir_slot, maybe_root, st.just(os.O_RDONLY | os.O_DIRECTORY)),
    verb("getdents", dir_slot),
    verb("relist", dir_slot),
    verb("at", dir_slot, at_what, at_name),
    verb("at", dir_slot, at_what, at_name),
    verb("at", dir_slot, at_what, at_name),
    verb("fchmod", dir_slot, dir_mode),
    verb("fsync", dir_slot),
    verb("flook", dir_slot),
)
on_maps = st.one_of(
    verb("mmap", new_map_slot, slot, st.just(8192), st.booleans(), st.booleans()),
    verb("mread", map_slot, offset, length),
    verb("mwrite", map_slot, offset, data),
    verb("msync", map_slot),
    verb("munmap", map_slot),
)
on_mount = st.sampled_from([(0, "forget"), (0, "forget"), (0, "remount"), (0, "restack")])
step = st.one_of(
    on_names, on_names, on_attributes, on_open, on_open, on_looks, on_directories, on_maps, on_mount
)

steps = long_list(step, 8)

# ---------------------------------------------------------------- options

# As features come (index=on, metacopy=on, data-only layers), their values join here.
REDIRECT = ["redirect_dir=on"] * 3 + ["", "redirect_dir=off", "redirect_dir=follow", "redirect_dir=nofollow"]
XINO = ["", "xino=on", "xino=off", "xino=auto"]
DAEMON = [(), (), (), ("passthrough=off",), ("timeout=0",), ("fuseblk=off",)]
PLACES = [
    ("tmpfs", None),
    ("tmpfs", None),
    ("tmpfs", None),
    ("ext4", None),
    ("tmpfs", "ext4"),
    ("ext4", "tmpfs"),
    ("tmpfs", "big-tmpfs"),
    ("xfs", None),
    ("btrfs", None),
    ("btrfs", "tmpfs"),
]


@st.composite
def options(draw):
    found = [draw(st.sampled_from(["volatile", ""])), draw(st.sampled_from(XINO))]
    if draw(st.integers(0, 9)) == 9:
        # With user.* attributes, which anybody may set, redirects are never followed.
        found += ["userxattr", draw(st.sampled_from(["", "redirect_dir=nofollow"]))]
    else:
        found.append(draw(st.sampled_from(REDIRECT)))
    return tuple(word for word in found if word)


@st.composite
def programs(draw):
    upper_place, lower_place = draw(st.sampled_from(PLACES))
    return Program(
        options=draw(options()),
        daemon=draw(st.sampled_from(DAEMON)),
        on=upper_place,
        lowers_on=lower_place,
        upper=draw(st.one_of(st.just([]), upper_ones)),
        lowers=[*draw(st.lists(upper_ones, max_size=4)), draw(lowest)],
        steps=draw(steps),
        looks=draw(st.sampled_from([True, True, True, False])),
    )
