"""The differences between the kernel and voile that are known and meant; each is one small exception here.

Kept out by never being drawn (fuzz_draw), because there is nothing to compare:
* chown(-1, -1): the kernel copies up for nothing.
* FALLOC_FL_COLLAPSE_RANGE and INSERT_RANGE: the kernel's FUSE refuses them without asking the daemon.
* layers without ACLs: the kernel says EOPNOTSUPP to setting one, voile copies up and sets it.
* read-only mounts with an upper: the kernel stores origins at lookup, voile leaves such an upper alone.
* set-group-id without the group's execute bit on files: FUSE's rule for writes by others is the coarser one.
Kept out while a program is played: see Player._worth.
"""

import os

SEEK = (os.SEEK_DATA, os.SEEK_HOLE)


def kernel_oddity(step, outcome):
    """Whether voile is not even asked, since the kernel's answer is one that voile need not give."""
    verb = step[1]
    if verb in ("fchmod", "fchown", "futimens", "fsetxattr") and outcome == "EEXIST":
        # On an unlinked lower file: the kernel looks for its directory and gives up; voile copies up.
        return True
    # On a directory of a lower layer that is removed and still open or somebody's own: ENOTDIR and EISDIR.
    return verb in ("fchmod", "fchown", "futimens", "fsetxattr", "chmod") and outcome == "ENOTDIR"


def accepted(step, expected, got):
    """Whether two different outcomes of a step are both right."""
    verb = step[1]
    if verb == "mread" and isinstance(expected, tuple) and isinstance(got, tuple):
        # A lower file that was mapped, then copied up and written: the kernel's mapping shows the old data
        # for ever, voile's the new data.
        return got[0] == got[1] == expected[1]
    if verb == "dots" and isinstance(got, dict):
        return all(got.values())  # the kernel's d_ino of "." and ".." is wrong here and there
    if verb == "seek" and step[4] in SEEK:
        return _holes(step[4], expected, got)
    if verb in ("list", "relist") and isinstance(expected, list) and isinstance(got, list):
        # Whiteouts where nothing is to be hidden: the kernel lists them, and says ENOENT to everything else.
        return [item for item in expected if "ENOENT" not in str(item[1])] == got
    return False


def _holes(whence, expected, got):
    """The kernel's copy-up fills holes of less than 1 MiB, voile's keeps them."""
    if whence == os.SEEK_DATA:
        return got == "ENXIO" if isinstance(got, str) else isinstance(expected, int) and got >= expected
    return isinstance(expected, int) and isinstance(got, int) and got <= expected


def without_ghosts(tree):
    """A snapshot of the kernel's mount without the whiteouts it lists where nothing is to be hidden."""
    ghosts = {path for path, entry in tree.items() if entry["kind"] == "error ENOENT"}
    if not ghosts:
        return tree
    names = {}
    for path in ghosts:
        directory, name = os.path.split(path)
        names.setdefault(directory, set()).add(name)
    kept = {path: dict(entry) for path, entry in tree.items() if path not in ghosts}
    for directory, gone in names.items():
        kept[directory]["names"] = [name for name in kept[directory]["names"] if name not in gone]
    return kept
