"""What a sandbox changed, read from its upper layer.

An entry of the upper is *deleted* when it is a whiteout, *changed* when the lower tree has an
entry of that name at that place, else *added*.  Under an opaque directory (removed and made
again) the lower names that are gone count as deleted too.  A directory that is only there
because something below it changed is no change itself: its mode and owner are the lower's.
"""

from __future__ import annotations

import os
import stat

from voile.overlay import whiteout, xattrs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Counts:
    """How many entries were added, changed and deleted."""

    __slots__ = ("added", "changed", "deleted")

    def __init__(self) -> None:
        self.added = 0
        self.changed = 0
        self.deleted = 0


def count(upper: bytes, lower: bytes, userxattr: bool, hidden: Sequence[bytes] = ()) -> Counts:
    """Compare the upper layer `upper` with the tree `lower` below it.

    `userxattr` and `hidden` as at the mount.  Raises OSError when a layer cannot be read.
    """
    counts = Counts()
    unseen = frozenset(hidden)
    names = xattrs.Names(userxattr)
    pending: list[tuple[bytes, bytes | None, bool]] = [(upper, lower, False)]
    while pending:
        # `old_directory` differs from the place of `directory` below a renamed one; None: nothing is below.
        # `replaced`: in or below an opaque directory, where the lower tree does not show through.
        directory, old_directory, replaced = pending.pop()
        replaced = replaced or xattrs.get(directory, names.opaque) == b"y"
        seen = set()
        for entry in os.scandir(directory):
            path = os.fsencode(entry.path)
            name = os.fsencode(entry.name)
            seen.add(name)
            old = None if old_directory is None else _lstat(old_directory + b"/" + name, unseen)
            _one(counts, entry.stat(follow_symlinks=False), old)
            if not entry.is_dir(follow_symlinks=False):
                continue
            redirect = xattrs.get(path, names.redirect)
            below = None
            if redirect is not None:
                # A name stands beside the directory's old place; a path begins at the root of the overlay.
                base = lower if redirect[:1] == b"/" else (old_directory or lower) + b"/"
                below = base + redirect
            elif old is not None and old_directory is not None and stat.S_ISDIR(old.st_mode):
                below = old_directory + b"/" + name
            pending.append((path, below, replaced and redirect is None))
        if replaced and old_directory is not None:
            names_below = (name for name in os.listdir(old_directory) if name not in seen)
            counts.deleted += sum(old_directory + b"/" + name not in unseen for name in names_below)
    return counts


def _one(counts: Counts, about: os.stat_result, old: os.stat_result | None) -> None:
    if whiteout.is_whiteout(about):
        counts.deleted += 1
    elif old is None:
        counts.added += 1
    elif not (
        stat.S_ISDIR(about.st_mode)
        and (about.st_mode, about.st_uid, about.st_gid) == (old.st_mode, old.st_uid, old.st_gid)
    ):
        counts.changed += 1


def _lstat(path: bytes, unseen: frozenset[bytes]) -> os.stat_result | None:
    try:
        return None if path in unseen else os.lstat(path)
    except OSError:  # also a name that the lower file system cannot have
        return None
