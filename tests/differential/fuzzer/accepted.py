"""The differences between the kernel and voile that are known and meant; each is one small exception here.

Kept out by never being drawn, because there is nothing to compare:
* chown(-1, -1): the kernel copies up for nothing.
* FALLOC_FL_COLLAPSE_RANGE and INSERT_RANGE: the kernel's FUSE refuses them without asking the daemon.
* layers without ACLs: the kernel says EOPNOTSUPP to setting one, voile copies up and sets it.
* read-only mounts with an upper: the kernel stores origins at lookup, voile leaves such an upper alone.
Kept out while a program is played: see player.WORTH.
"""

import errno
import os

from differential.tree import DEFAULT

LISTING = ("list", "relist", "rest", "resume", "dots", "getdents")
# What a directory gives that leads nowhere: it must not be followed, or is invalid.
LOST = ("EPERM", "EINVAL", "EIO", "ESTALE", "EACCES")


def kernel_oddity(step, outcome):
    """Whether voile is not even asked, since the kernel's answer is one that voile need not give."""
    verb = step[1]
    if verb in ("fchmod", "fchown", "futimens", "fsetxattr") and outcome in ("EEXIST", "ENOENT"):
        # On an unlinked lower file: the kernel looks for its directory and gives up (or that has gone, too);
        # voile copies up.
        return True
    if verb == "ro" and outcome == os.strerror(errno.EBUSY):
        # A file that is open and has lost its names counts (s_remove_count). FUSE goes by what stat(2) shows,
        # and that is, on both sides, the link count of the lower file.
        return True
    if verb == "copy_file_range" and outcome == "EXDEV":
        return True  # between unlike file systems: FUSE copies then
    # On a directory of a lower layer that is removed and still open or somebody's own: ENOTDIR and EISDIR.
    return verb in ("fchmod", "fchown", "futimens", "fsetxattr", "chmod") and outcome == "ENOTDIR"


def accepted(program, step, expected, got):
    """Whether two different outcomes of a step, or of a look after it, are both right."""
    if isinstance(expected, dict) and isinstance(got, dict) and "ino" in expected:
        return _look(program, expected, got)
    if expected == "EPERM" and isinstance(got, str) and has_flags(program):
        return True  # FUSE's inodes know nothing of "immutable", so that other reasons are found first
    verb = step[1]
    if verb in LISTING and isinstance(expected, str) and expected in LOST:
        # The kernel's getdents ends where the first entry of a buffer cannot be looked up (ovl_iterate).
        return step[0] == 0 or expected != "EACCES"
    rule = RULES.get(verb)
    return rule is not None and rule(program, step, expected, got)


def _look(program, expected, got):
    """What stat(2) shows."""
    different = {key for key in expected if expected[key] != got[key]}
    kind = expected["kind"]
    if different == {"nlink"} and kind == "dir":
        return has_indexed_links(program)  # see there
    if different != {"atime"}:
        return False
    if got["atime"] == "now" and ("ro" in program.options or _does(program, ("ro",))):
        return True  # FUSE tells nobody that a mount is read-only now
    if got["atime"] == "now" and _does(program, ("mmap",)):
        return True  # what a mapping is filled with is read by a READ like any other
    if expected["atime"] == "now" or _does(program, ("swap",)):
        # What the kernel keeps of a FUSE mount (links, listings, pages that are not passed through) is read
        # without anybody being told.
        if kind != "file" or "passthrough=off" in program.daemon:
            return True
        return set_back(program, expected["atime"]) or set_back(program, got["atime"])
    return False


def _read(program, step, expected, got):
    # Of a directory; EINVAL where its last position is as high as can be.
    return {expected, got} == {"EINVAL", "EISDIR"}


def _mapped(program, step, expected, got):
    # A lower file that was mapped, then copied up and written: the kernel's mapping shows the old data for
    # ever, voile's the new data.
    both = isinstance(expected, tuple) and isinstance(got, tuple)
    return both and got[0] == got[1] == expected[1]


def _dots(program, step, expected, got):
    # The kernel's d_ino of "." and ".." is wrong here and there.
    return isinstance(got, dict) and all(got.values())


def _holes(program, step, expected, got):
    """The kernel's copy-up fills holes of less than 1 MiB, voile's keeps them."""
    whence = step[4]
    if whence in (os.SEEK_DATA, os.SEEK_HOLE) and _does(program, ("swap",)):
        return True  # each side has the other's files
    if whence in (os.SEEK_DATA, os.SEEK_HOLE) and _does(program, ("fallocate",)):
        return True  # allocated and not written: it is data where pages have been read (ahead)
    if whence == os.SEEK_DATA:
        return got == "ENXIO" if isinstance(got, str) else isinstance(expected, int) and got >= expected
    if whence == os.SEEK_HOLE:
        return isinstance(expected, int) and isinstance(got, int) and got <= expected
    return False


def _xflags(program, step, expected, got):
    # XFS says whether the upper object has attributes, which may be the overlay's own.
    if not (isinstance(expected, tuple) and isinstance(got, tuple)):
        return False
    return int(expected[0], 16) ^ int(got[0], 16) == 0x80000000 and expected[1:] == got[1:]


def _access(program, step, expected, got):
    return expected is False and got is True and has_flags(program)  # W_OK of what is immutable


def _remove(program, step, expected, got):
    # FUSE knows by itself that what is no directory has no default ACL.
    return step[3] == DEFAULT and expected == "EPERM" and got is None and has_flags(program)


def _listed(program, step, expected, got):
    both = isinstance(expected, list) and isinstance(got, list)
    return both and _seen(expected, got) == _seen(got, expected)


def _seen(listed, other):
    """A listing without what only this side lists and then cannot look up.

    That is on the kernel's side a whiteout where nothing is to be hidden. On voile's it is what the kernel
    leaves out of some listings, when it has looked it up for its inode number (ovl_cache_update).
    """
    names = {name for name, _ in other}
    return [item for item in listed if item[0] in names or not _is_error(item[1])]


def _is_error(kind):
    return isinstance(kind, tuple) and isinstance(kind[1], str)


def _copied(program, step, expected, got):
    # From beyond the end nothing is to be copied, and FUSE does not ask; the kernel has seen the flag first.
    return expected == "EPERM" and got == 0 and has_flags(program)


def _linked(program, step, expected, got):
    # FUSE's inode keeps a set-id bit that a write has taken away until somebody asks for its attributes; for
    # protected_hardlinks the kernel does not ask.
    return step[0] != 0 and got == "EPERM" and expected == "EACCES"


RULES = {
    "link_fd": _linked,
    "copy_file_range": _copied,
    "fread": _read,
    "mread": _mapped,
    "dots": _dots,
    "seek": _holes,
    "fsxattr": _xflags,
    "access": _access,
    "removexattr": _remove,
    "list": _listed,
    "relist": _listed,
}


def _does(program, steps, calls=()):
    layers = [program.upper or [], *program.lowers, *program.data]
    return any(step[1] in steps for step in program.steps) or any(
        call[0] in calls for layer in layers for call in layer
    )


def set_back(program, time):
    """Whether somebody has set this time; a lower file that is open is not passed through."""
    return any(step[1] in ("utime", "futimens") and time in step for step in program.steps)


def has_flags(program):
    """Whether chattr plays a part."""
    layers = [program.upper or [], *program.lowers]
    marked = any("protattr" in str(call[2]) for layer in layers for call in layer if call[0] == "marked")
    return marked or _does(program, ("chattr",), ("flags",))


def has_indexed_links(program):
    """Whether there may be lower hard links with an index.

    FUSE does not say by which name a file was opened. Voile then copies up the one that was looked up last:
    this shows in the upper directory, and in the link counts of directories that are copied up for it.
    """
    return "index=on" in program.options and _does(program, ("link", "link_fd"), ("link",))


def without_ghosts(tree, other):
    """A snapshot without what only this side lists and then cannot look up (see _seen)."""
    # Where the kernel's listing breaks off (see LISTING) nothing is known.
    for path, entry in other.items():
        if entry.get("names") in LOST and path in tree:
            below = path + b"/"
            tree = {p: e for p, e in tree.items() if not p.startswith(below)}
            tree[path] = {**tree[path], "names": entry["names"]}
    ghosts = {path for path, entry in tree.items() if entry["kind"].startswith("error") and path not in other}
    if not ghosts:
        return tree
    kept = {path: dict(entry) for path, entry in tree.items() if path not in ghosts}
    for path in ghosts:
        directory, name = os.path.split(path)
        kept[directory]["names"] = [each for each in kept[directory]["names"] if each != name]
    return kept
