"""Steps to draw, in groups. Each program prefers some groups to others."""

import os

from differential.fuzzer.draws import Draw, integers, just, one_of, sampled, tuples, weighted
from differential.fuzzer.names import (
    any_attribute,
    attribute,
    bits,
    data,
    default_acl,
    dir_mode,
    directory,
    file_mode,
    flags,
    gid,
    length,
    offset,
    path,
    somewhere,
    times,
    uid,
)
from differential.fuzzer.program import Pick, Slot
from support import syscalls as sys


def pick(what, fallback):
    """Mostly something that is there."""
    there = tuples(sampled(what), integers(0, 997), fallback).map(lambda made: Pick(*made))
    return weighted([(1, fallback), (6, there)])


new = pick(["new"], path)
path = pick(["file"] * 4 + ["any", "new"], path)
directory = pick(["dir"], directory)
somewhere = pick(["file", "file", "any", "dir", "new"], somewhere)
anywhere = one_of(somewhere, somewhere, somewhere, just(b"."))
new_slot = integers(0, 3).map(Slot)
new_dir_slot = integers(4, 5).map(Slot)
new_map_slot = integers(6, 7).map(Slot)
slot = pick(["open"], new_slot)
dir_slot = pick(["open"], new_dir_slot)
map_slot = pick(["mmap"], new_map_slot)

FLAGS = [
    os.O_RDONLY,
    os.O_RDONLY,
    os.O_RDWR,
    os.O_RDWR,
    os.O_RDWR,
    os.O_WRONLY | os.O_APPEND,
    os.O_RDWR | os.O_APPEND,
    os.O_RDWR | os.O_CREAT,
    os.O_RDWR | os.O_TRUNC,
    os.O_RDONLY | os.O_TRUNC,
    os.O_RDONLY | os.O_CREAT,
    os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    os.O_RDWR | os.O_SYNC,
    os.O_RDWR | os.O_DSYNC,
    os.O_RDONLY | os.O_NOFOLLOW,
    os.O_RDONLY | os.O_NOATIME,
    os.O_PATH,
    os.O_ACCMODE,  # neither reads nor writes, but may do both
]
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
open_flags = sampled([flags | os.O_NONBLOCK for flags in FLAGS])  # a FIFO must not hold us
rename_flags = sampled([0, 0, 0, sys.RENAME_NOREPLACE, sys.RENAME_EXCHANGE, sys.RENAME_WHITEOUT])
at_what = sampled(["stat", "create", "mkdir", "unlink", "rmdir", "rename"])
at_name = sampled([b"f", b"g", b"a", b"b", b"c", b".."])
KEEP, PUNCH, ZERO = sys.FALLOC_FL_KEEP_SIZE, sys.FALLOC_FL_PUNCH_HOLE, sys.FALLOC_FL_ZERO_RANGE
fallocate_mode = sampled([0, KEEP, PUNCH | KEEP, ZERO, ZERO | KEEP])


def verb(name, *arguments, weight=1):
    return weight, tuples(sampled([0, 0, 0, 1, 2]), just(name), *arguments)


def spread(weight, draw):
    """A step whose last argument is a pair: both become arguments."""
    return weight, draw.map(lambda step: (*step[:-1], *step[-1]))


def name_of(pairs):
    return pairs.map(lambda pair: pair[0])


GROUPS = {
    "names": [
        verb("create", new, data, file_mode, weight=2),
        verb("mkdir", new, dir_mode, weight=2),
        verb("unlink", somewhere),
        verb("unlink", path, weight=2),
        verb("rmdir", somewhere),
        verb("rmdir", directory, weight=2),
        verb("link", path, new),
        verb("symlink", sampled([b"f", b"a", b"b/g", b"nowhere", b"s" * 300]), new),
        verb("mknod", new, sampled([0o010644, 0o140600, 0o100600])),
        verb("mknod", new, just(0o020666), sampled([259, 0])),
        verb("umask", sampled([0, 0o22, 0o77])),
    ],
    "renames": [
        verb("rename", somewhere, somewhere, rename_flags),
        verb("rename", directory, new, rename_flags),
        verb("rename", directory, directory, rename_flags),
        verb("rename", path, path, rename_flags),
        verb("rename", path, new, rename_flags),
    ],
    "links": [
        verb("link", path, new, weight=2),
        verb("unlink", path),
        verb("rename", path, path, rename_flags),
        verb("look", path),
        verb("chmod", path, file_mode),
        verb("truncate", path, sampled([0, 5, 5000])),
    ],
    "attributes": [
        verb("chmod", anywhere, file_mode),
        verb("chmod", directory, dir_mode),
        verb("chown", anywhere, uid, gid),
        spread(*verb("utime", anywhere, times)),
        verb("touch", anywhere),
        verb("truncate", path, sampled([0, 5, 5000])),
        verb("access", anywhere, bits),
    ],
    "xattrs": [
        spread(*verb("setxattr", anywhere, any_attribute, weight=2)),
        spread(*verb("setxattr", directory, default_acl)),
        verb("removexattr", anywhere, name_of(any_attribute)),
        verb("getxattr", anywhere, name_of(any_attribute)),
        verb("xattrs", anywhere),
    ],
    "flags": [
        verb("chattr", anywhere, one_of(just(0), flags)),
        verb("flags", anywhere),
        verb("fsxattr", anywhere),
        verb("chmod", anywhere, file_mode),
        verb("unlink", path),
        verb("rename", path, new, rename_flags),
    ],
    "looks": [
        verb("list", one_of(directory, just(b"."))),
        verb("read", path),
        verb("readlink", path),
        verb("look", somewhere),
        verb("dots", directory),
        verb("statfs", somewhere),
    ],
    "open": [
        verb("open", new_slot, somewhere, open_flags),
        verb("open", new_slot, path, open_flags, weight=3),
        verb("open", new_slot, one_of(directory, just(b".")), just(os.O_TMPFILE | os.O_RDWR)),
        verb("close", slot),
        verb("link_fd", slot, new),
        verb("flook", slot),
        verb("fsync", slot),
        verb("fdatasync", slot),
        verb("syncfs", slot),
    ],
    "data": [
        verb("pread", slot, length, offset),
        verb("fread", slot, length),
        verb("pwrite", slot, data, offset),
        verb("write", slot, data),
        verb("ftruncate", slot, offset),
        verb("seek", slot, offset, sampled([os.SEEK_SET, os.SEEK_DATA, os.SEEK_HOLE, os.SEEK_END])),
        verb("fallocate", slot, fallocate_mode, offset, length),
        verb("copy_file_range", slot, slot, length, offset, offset),
        verb("sendfile", slot, slot, offset, length),
    ],
    "fattributes": [
        verb("fchmod", slot, file_mode),
        verb("fchown", slot, uid, gid),
        spread(*verb("futimens", slot, times)),
        spread(*verb("fsetxattr", slot, attribute)),
        verb("fgetxattr", slot, name_of(attribute)),
    ],
    "locks": [
        verb("flock", slot, sampled([5, 6, 8])),  # LOCK_NB with SH, EX; UN
        verb("lockf", slot, sampled([5, 6, 8]), sampled([0, 10]), sampled([0, 5])),
        verb("ofd_lock", slot, sampled([0, 1, 2])),
    ],
    "directories": [
        verb("open", new_dir_slot, anywhere, sampled([DIRECTORY, DIRECTORY, DIRECTORY | os.O_NOATIME])),
        verb("getdents", dir_slot),
        verb("rest", dir_slot),
        verb("resume", dir_slot),
        verb("relist", dir_slot),
        verb("at", dir_slot, at_what, at_name, weight=3),
        verb("fchmod", dir_slot, dir_mode),
        verb("fsync", dir_slot),
        verb("flook", dir_slot),
    ],
    "maps": [
        verb("mmap", new_map_slot, slot, just(8192), sampled([True, False]), sampled([True, False])),
        verb("mread", map_slot, offset, length),
        verb("mwrite", map_slot, offset, data),
        verb("msync", map_slot),
        verb("munmap", map_slot),
    ],
}
FORGET = (0, "forget")


def step(rng, features):
    """The Draw of a program's steps: how much of what differs from program to program."""
    weights = [(rng.choice((0, 1, 1, 2, 5)), weighted(group)) for group in GROUPS.values()]
    weights.append((1, weighted(GROUPS["names"])))
    on_mount = [(0, name) for name in ("remount", "restack", "swap", "kill", "ro", "rw") if name in features]
    some = sum(weight for weight, _ in weights)
    weights.append((some * rng.choice((0, 0.01, 0.03)), sampled(on_mount)))
    weights.append((some * rng.choice((0, 0.01, 0.05)), just(FORGET)))
    return weighted(weights)


def steps(features):
    def draw(rng):
        one = step(rng, features)
        return [one.draw(rng) for _ in range(rng.choice((10, 40, 100, 150, 250)))]

    return Draw(draw)
