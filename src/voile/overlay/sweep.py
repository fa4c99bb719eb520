"""Emptying the work directory: of what is in it when a mount begins, and of what a change leaves there.

Theory of operation
-------------------
A directory that goes may hold a million whiteouts.  It disappears by one rename into
``work/work``; emptying it there can take seconds.  So what is small is removed at once, the rest
in another thread, one directory after the other.  The end of the mount does not wait for that: the
next mount goes on with it (the kernel's does before it mounts, `ovl_workdir_cleanup`).
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from errno import ELOOP, ENOENT, ENOTDIR

from voile.linux import trees
from voile.volatile import marker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.overlay.super import Overlay

# So many entries are removed before the change that leaves them is answered …
AT_ONCE = 256
# … and before a mount is.
AT_MOUNT = 10_000


class Sweeper:
    """Removes temporary objects from ``work/work``."""

    __slots__ = ("_ofs", "_left", "_running", "_stopped", "_working")

    def __init__(self, ofs: Overlay) -> None:
        self._ofs = ofs
        # The names of what another thread is to remove.
        self._left: list[bytes] = []
        self._running = False
        self._stopped = False
        # Held by that thread while it uses the work directory's descriptor.
        self._working = allocate_lock()

    def discard(self, temp: bytes) -> None:
        """Removes a temporary object with all that is in it; it may be gone already.

        What cannot be removed stays there until the next mount: it is no reason to say that a
        change failed which has been made (ovl_cleanup).
        """
        removal = trees.removal(self._ofs.work_fd, temp)
        try:
            for count, _ in enumerate(removal, 1):
                if count == AT_ONCE and self._ofs.submit is not None:
                    removal.close()
                    self._left.append(temp)
                    self.go_on()
        except OSError:
            pass

    def clear(self, marked: bool = False) -> None:
        """Removes the directory ``work`` that a former mount has left, but for what holds too much.

        `marked`: its marker of a volatile mount is to stay, as it is still true.

        Raises:
            OSError: something cannot be removed.
        """
        workdir_fd = self._ofs.workdir_fd
        try:
            fd = trees.open_directory(workdir_fd, b"work")
        except OSError as exc:
            if exc.errno not in (ENOENT, ENOTDIR, ELOOP):
                raise
            trees.remove(workdir_fd, b"work")
            return
        try:
            self._left = _clear(fd, marked)
        finally:
            os.close(fd)
        if not self._left and not marked:
            os.rmdir(b"work", dir_fd=workdir_fd)

    def highest(self) -> int:
        """The highest number of a temporary object that `clear` has left."""
        return max((int(name[1:], 16) for name in self._left), default=0)

    def go_on(self) -> None:
        """Has another thread remove what is left."""
        if self._left and not self._running and self._ofs.submit is not None:
            self._running = True
            self._ofs.submit(self._sweep, self._swept)

    def _sweep(self) -> None:
        with self._working:
            while self._left and not self._stopped:
                self._remove(self._left.pop())

    def _remove(self, name: bytes) -> None:
        removal = trees.removal(self._ofs.work_fd, name)
        try:
            for _ in removal:
                if self._stopped:
                    removal.close()
        except OSError:
            pass

    def _swept(self, _result: object, _exc: BaseException | None) -> None:
        self._running = False
        self.go_on()

    def stop(self) -> None:
        """At the end of the mount: leaves the rest to the next one."""
        self._stopped = True
        with self._working:
            self._left.clear()


def _clear(fd: int, marked: bool) -> list[bytes]:
    """Empties a ``work``; the names of the temporary objects that hold too much to be waited for."""
    left: list[bytes] = []
    count = 0
    for entry in os.listdir(fd):
        name = os.fsencode(entry)
        if marked and name == marker.INCOMPAT:
            continue
        removal = trees.removal(fd, name)
        for _ in removal:
            count += 1
            if count >= AT_MOUNT and _is_temporary(name):
                removal.close()
                left.append(name)
    return left


def _is_temporary(name: bytes) -> bool:
    """Whether `Overlay.temp_name` could have made it."""
    return name[:1] == b"#" and 1 < len(name) < 16 and not name[1:].strip(b"0123456789abcdef")
