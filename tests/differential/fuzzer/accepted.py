"""The differences between the kernel and voile that are known and meant; each is one small exception here.

Kept out by never being drawn, because there is nothing to compare:
* chown(-1, -1): the kernel copies up for nothing.
* FALLOC_FL_COLLAPSE_RANGE and INSERT_RANGE: the kernel's FUSE refuses them without asking the daemon.
* layers without ACLs: the kernel says EOPNOTSUPP to setting one, voile copies up and sets it.
* read-only mounts with an upper: the kernel stores origins at lookup, voile leaves such an upper alone.
Kept out while a program is played: see player.WORTH.
"""

import os

LISTING = ("list", "relist", "rest", "resume", "dots", "getdents")
# What a directory gives that leads nowhere: it must not be followed, or is invalid.
LOST = ("EPERM", "EINVAL", "EIO", "ESTALE", "EACCES")
SPECIAL = ("char", "block", "fifo", "socket")
SEEK = (os.SEEK_DATA, os.SEEK_HOLE)


def kernel_oddity(step, outcome):
    """Whether voile is not even asked, since the kernel's answer is one that voile need not give."""
    verb = step[1]
    if verb in ("fchmod", "fchown", "futimens", "fsetxattr") and outcome == "EEXIST":
        # On an unlinked lower file: the kernel looks for its directory and gives up; voile copies up.
        return True
    # On a directory of a lower layer that is removed and still open or somebody's own: ENOTDIR and EISDIR.
    return verb in ("fchmod", "fchown", "futimens", "fsetxattr", "chmod") and outcome == "ENOTDIR"


def accepted(program, step, expected, got):
    """Whether two different outcomes of a step are both right."""
    verb = step[1]
    if verb == "fread" and (expected, got) in (("EINVAL", "EISDIR"), ("EISDIR", "EINVAL")):
        return True  # a directory; EINVAL where its last position is as high as can be
    if verb == "mread" and isinstance(expected, tuple) and isinstance(got, tuple):
        # A lower file that was mapped, then copied up and written: the kernel's mapping shows the old data
        # for ever, voile's the new data.
        return got[0] == got[1] == expected[1]
    if verb == "dots" and isinstance(got, dict):
        return all(got.values())  # the kernel's d_ino of "." and ".." is wrong here and there
    if verb == "seek" and step[4] in SEEK:
        return _holes(step[4], expected, got)
    if verb == "fsxattr" and isinstance(expected, tuple) and isinstance(got, tuple):
        # XFS says whether the upper object has attributes, which may be the overlay's own.
        return int(expected[0], 16) ^ int(got[0], 16) in (0, 0x80000000) and expected[1:] == got[1:]
    if verb == "access" and expected is False and got is True and has_flags(program):
        return True  # W_OK of what is immutable: the same
    if expected == "EPERM" and isinstance(got, str) and has_flags(program):
        return True  # FUSE's inodes know nothing of "immutable", so that other reasons are found first
    if verb == "rename" and expected == "ESTALE" and "userxattr" in program.options:
        # The names of a hard link to what can have no user.* attributes, and so no origin.
        return got is None
    if isinstance(expected, dict) and isinstance(got, dict) and expected.get("kind") in SPECIAL:
        # fchmod of a lower one that has no name any more: the kernel's copy seems to have one.
        if {**expected, "nlink": 0} == got and expected["nlink"] == 1:
            return True
    if isinstance(expected, dict) and isinstance(got, dict) and expected.get("kind") == "dir":
        if has_indexed_links(program) and {**expected, "nlink": 0} == {**got, "nlink": 0}:
            return True  # see there
    if verb in LISTING and isinstance(expected, str) and expected in LOST:
        # The kernel's getdents ends where the first entry of a buffer cannot be looked up (ovl_iterate).
        return step[0] == 0 or expected != "EACCES"
    if verb in ("list", "relist") and isinstance(expected, list) and isinstance(got, list):
        return _seen(expected, got) == _seen(got, expected)
    if isinstance(expected, dict) and isinstance(got, dict) and "atime" in expected:
        if any(step[1] == "ro" for step in program.steps) and got["atime"] == "now":
            # Nobody tells voile that it is read-only now: its own reading sets access times as before.
            return {**expected, "atime": 0} == {**got, "atime": 0}
        # What the kernel keeps of a FUSE mount (links, listings, pages that are not passed through)
        # is read without anybody being told.
        cached = expected["kind"] != "file" or "passthrough=off" in program.daemon
        read = expected["atime"] == "now" or any(step[1] == "swap" for step in program.steps)
        return cached and read and {**expected, "atime": 0} == {**got, "atime": 0}
    return False


def _does(program, steps, calls):
    layers = [program.upper or [], *program.lowers, *program.data]
    return any(step[1] in steps for step in program.steps) or any(
        call[0] in calls for layer in layers for call in layer
    )


def has_flags(program):
    """Whether chattr plays a part."""
    return _does(program, ("chattr",), ("flags",))


def has_indexed_links(program):
    """Whether there may be lower hard links with an index.

    FUSE does not say by which name a file was opened. Voile then copies up the one that was looked up last:
    this shows in the upper directory, and in the link counts of directories that are copied up for it.
    """
    return "index=on" in program.options and _does(program, ("link", "link_fd", "restack"), ("link",))


def _seen(listed, other):
    """A listing without what only this side lists and then cannot look up.

    That is on the kernel's side a whiteout where nothing is to be hidden. On voile's it is what the kernel
    leaves out of some listings, when it has looked it up for its inode number (ovl_cache_update).
    """
    names = {name for name, _ in other}
    return [item for item in listed if item[0] in names or not _is_error(item[1])]


def _is_error(kind):
    return isinstance(kind, tuple) and isinstance(kind[1], str)


def _holes(whence, expected, got):
    """The kernel's copy-up fills holes of less than 1 MiB, voile's keeps them."""
    if whence == os.SEEK_DATA:
        return got == "ENXIO" if isinstance(got, str) else isinstance(expected, int) and got >= expected
    return isinstance(expected, int) and isinstance(got, int) and got <= expected


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
