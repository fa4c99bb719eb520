"""The daemon dies, or a call fails, at every step of every change: the tree is the old one or the new one.

What a change consists of is counted in the daemon (support/hooked.py), so a new step is a new case here.
"""

import errno
import hashlib
import os
import stat

import pytest

from faults.changes import (
    CHANGES,
    INDEXED_CHANGES,
    MAY_HAVE_FLAGS,
    METACOPY_CHANGES,
    build,
    build_indexed,
    build_metacopy,
)
from support import fsck, syscalls
from support.users import in_child

ALL = CHANGES | METACOPY_CHANGES | INDEXED_CHANGES


def layout(name):
    """How a change's layers are built, and the options of the mount."""
    if name in METACOPY_CHANGES:
        return build_metacopy, "redirect_dir=on,metacopy=on"
    if name in INDEXED_CHANGES:
        return build_indexed, "redirect_dir=on,index=on"
    return build, "redirect_dir=on"


def picture(point):
    """All that callers see of a tree, but for times."""
    found = {}

    def look(path, shown):
        st = os.lstat(path)
        entry = [oct(st.st_mode), st.st_uid, st.st_gid]
        if stat.S_ISREG(st.st_mode):
            with open(path, "rb") as f:
                entry += [st.st_nlink, hashlib.sha1(f.read()).hexdigest()]
        elif stat.S_ISLNK(st.st_mode):
            entry.append(os.readlink(path))
        if shown in MAY_HAVE_FLAGS:
            entry.append(syscalls.get_flags(path) & syscalls.FS_USER_FL)
        for name in sorted(os.listxattr(path, follow_symlinks=False)):
            entry.append((name, os.getxattr(path, name, follow_symlinks=False)))
        found[shown] = entry
        if stat.S_ISDIR(st.st_mode):
            for name in sorted(os.listdir(path)):
                # The kernel's overlayfs lists whiteouts in directories that are not merged.
                if os.path.lexists(f"{path}/{name}"):
                    look(f"{path}/{name}", f"{shown}/{name}")

    look(str(point), "")
    return found


def seen(point):
    return in_child(lambda: picture(point))


def attempt(change, point):
    """The errno of a change, or None."""

    def run():
        try:
            change(point)
        except OSError as exc:
            return exc.errno
        return None

    return in_child(run)


def look_again(overlay, options):
    """What a fresh mount of the layers shows."""
    point = overlay.mount(options)
    tree = seen(point)
    overlay.umount()
    return tree


def left_in_work(layers):
    left = [name for name in os.listdir(layers.work / "work") if name != "incompat"]
    if (layers.work / "index").exists():
        # The kernel keeps a whiteout there, to make more of it.
        left += [line for line in fsck.complaints(layers, "index=on") if "#" not in line]
    return left


def states(name, layers, hooked_overlay):
    """The tree before and after a change, and the steps it takes."""
    change, (build, options) = ALL[name], layout(name)
    made = layers(lowers=2)
    build(made)
    overlay = hooked_overlay(made)
    point = overlay.mount(options)
    old = seen(point)
    overlay.hook("crash.0")
    assert attempt(change, point) is None
    steps = overlay.state()["calls"]
    new = seen(point)
    overlay.umount()
    assert steps, "it changes nothing"
    return old, new, steps


# What is done to one temporary object: one of a row of these is enough.
DULL = {"chmod", "chown", "copy_file_range", "fchmod", "fchmodat2", "fchown", "ficlone", "ftruncate", "utime"}


# `make crash-points` tries every step of every change; `make test` every third, with index or metacopy every
# sixth, of about half of the changes.
EVERY = os.environ.get("VOILE_CRASH_POINTS") == "all"


def worth_trying(name, steps):
    """The numbers and names of steps to kill or fail at."""
    before = ""
    every = 1 if EVERY else 6 if name.startswith(("index-", "meta-")) else 3
    for number, step in enumerate(steps, 1):
        if not {step, before} <= DULL and (number + len(name)) % every == 0:
            yield number, step
        before = step


def difference(tree, expected):
    return {
        path: (tree.get(path), expected.get(path))
        for path in tree | expected
        if tree.get(path) != expected.get(path)
    }


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ALL)
def test_killed_at_every_step(name, layers, hooked_overlay, kernel_overlay):
    change, (build, options) = ALL[name], layout(name)
    old, new, steps = states(name, layers, hooked_overlay)
    for number, step in worth_trying(name, steps):
        made = layers(lowers=2)
        build(made)
        overlay = hooked_overlay(made)
        point = overlay.mount(options)
        seen(point)  # a first look may store origins
        overlay.hook(f"crash.{number}")
        attempt(change, point)
        assert overlay.process.wait(20) == 99, "the daemon has not come to this step"
        overlay.close()
        tree = look_again(hooked_overlay(made), options)
        assert tree in (old, new), f"killed before {step} (step {number} of {steps}): {difference(tree, old)}"
        assert left_in_work(made) == []
        theirs = look_again(kernel_overlay(made), options)
        # An empty file that is still marked: to the kernel its data is the old one.
        assert theirs == tree or (name == "meta-open-truncating" and theirs in (old, new))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("error", [errno.ENOSPC])
@pytest.mark.parametrize("name", ALL)
def test_failing_at_every_step(name, error, layers, hooked_overlay):
    """An error in the middle: the caller is told the truth, and the change can be tried again."""
    change, (build, options) = ALL[name], layout(name)
    old, new, steps = states(name, layers, hooked_overlay)
    for number, step in worth_trying(name, steps):
        where = f"{step} fails (step {number} of {steps})"
        made = layers(lowers=2)
        build(made)
        overlay = hooked_overlay(made)
        point = overlay.mount(options)
        seen(point)
        overlay.hook(f"fail.{number}.{error}")
        failed = attempt(change, point)
        overlay.check()
        tree = seen(point)
        expected = new if failed is None else old
        if name.endswith("open-truncating") and tree != old:
            expected = new  # as with ovl_copy_up_flags(): a copy without data is the truncation
        assert tree == expected, f"{where}, errno {failed}: {difference(tree, expected)}"
        if failed is not None:
            assert attempt(change, point) is None, f"{where}: it cannot be tried again"
            tree = seen(point)
            assert tree == new, f"{where}, tried again: {difference(tree, new)}"
        overlay.umount()
        # What cannot be removed is removed by the next mount.
        assert step in ("unlink", "rmdir") or left_in_work(made) == [], where
        assert look_again(hooked_overlay(made), options) == new, where
