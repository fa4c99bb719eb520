"""How long real syncs take on the upper file system: for an estimate of what a volatile mount saves.

This does sync: a few times a small new file in the work directory, and that directory. So it is done only
when somebody asks for it.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 5
_BLOCK = b"\0" * 4096
# What each kind of omitted call is taken for. syncfs would write everything: its time says nothing of another
# moment, so it counts as an fsync, which is less.
_AS = {
    "fsync": "fsync",
    "fdatasync": "fdatasync",
    "fsyncdir": "fsyncdir",
    "syncfs": "fsync",
    "osync": "fdatasync",
}


def measure(directory: int, name: bytes) -> dict[str, float]:
    """Median seconds of "fsync", "fdatasync" and "fsyncdir" of the directory with that open descriptor.

    `name` is that of a scratch file in it. Raises OSError, also that of a sync.
    """
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    other = name + b"-"
    try:

        def append() -> None:
            os.write(fd, _BLOCK)

        def change_directory() -> None:
            os.link(name, other, src_dir_fd=directory, dst_dir_fd=directory)
            os.unlink(other, dir_fd=directory)

        return {
            "fsync": _median(append, lambda: os.fsync(fd)),
            "fdatasync": _median(append, lambda: os.fdatasync(fd)),
            "fsyncdir": _median(change_directory, lambda: os.fsync(directory)),
        }
    finally:
        os.close(fd)
        os.unlink(name, dir_fd=directory)


def saved(omitted: dict[str, int], seconds: dict[str, float]) -> float:
    """Seconds that the omitted calls would have taken, one after the other."""
    return sum(count * seconds[_AS[kind]] for kind, count in omitted.items())


def _median(change: Callable[[], None], sync: Callable[[], None]) -> float:
    taken = []
    for _ in range(ROUNDS):
        change()
        begin = time.monotonic()
        sync()
        taken.append(time.monotonic() - begin)
    return sorted(taken)[ROUNDS // 2]
