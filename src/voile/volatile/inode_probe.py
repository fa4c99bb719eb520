"""A probe for where the exact one cannot be made: watches single files.

Theory of operation.  sync_file_range(2) with WAIT_BEFORE, on a range far behind the end of a file, waits for
nothing, starts nothing, and returns the writeback error of that *open file* (lib/errseq.c, through
file_check_and_advance_wb_err).  So every file that is about to be written gets a descriptor of our own, which
nobody else asks, and a check asks them all, 0.6 µs each in the kernel and as much again in here.

What it finds is recorded in one errseq_t, of which `check` tells.

A descriptor is given back when nothing can happen to it any more: nobody has the file open for writing, and
cachestat(2) counts no page that is dirty or on its way to the disk.  And when the file is deleted, or its
space would stay in use.  There is a limit to their number: beyond it, the oldest that nobody has open is
closed.  An error of such a file is not noticed, so it is counted (`dropped`) and shown in the status.

What this cannot see, and the exact probe can: files that nobody wrote through the mount, and errors of before
the mount that nobody has been told of.  And it does not work on stacked file systems: their files have no
error state of their own.
"""

from __future__ import annotations

import errno
import os

from voile.linux import files
from voile.volatile.errseq import Errseq
from voile.volatile.probe import Probe, ProbeUnavailable

LIMIT = 1024
# From so many files on it is worth looking for those that need no watching any more.
_TIDY_AT = 64
# Far behind every file, and still a valid position.
_BEYOND = 1 << 40
_STACKED = frozenset((0x794C7630, 0xF15F))  # overlayfs, ecryptfs
# Not errors of the file.
_OURS = frozenset((errno.EBADF, errno.EINVAL, errno.ESPIPE, errno.ENOSYS))


class _Watched:
    __slots__ = ("fd", "writers")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        # How many have it open for writing.
        self.writers = 0


class InodeProbe(Probe):
    """Watches the files that it is told of.

    `reason`: why there is no better probe, or None. `dropped` counts files that had to be given up.
    """

    __slots__ = ("_dropped", "_errors", "_files", "_limit", "_tidy_at", "dropped", "reason")

    def __init__(self, limit: int = LIMIT, reason: str | None = None) -> None:
        """Watch at most `limit` files at a time."""
        super().__init__(-1, "inode")
        self.reason = reason
        self.dropped = 0
        self._dropped: set[int] = set()
        self._errors = Errseq()
        self._files: dict[int, _Watched] = {}
        self._limit = limit
        self._tidy_at = min(_TIDY_AT, limit)

    def __len__(self) -> int:
        return len(self._files)

    def check(self) -> int:
        # A copy, since a signal may bring another check; that one changes nothing.
        for watched in list(self._files.values()):
            self._ask(watched.fd)
        return self._errors.check(0)

    def watch(self, fd: int) -> None:
        """A new file, which was made through the mount, is about to be written. `fd` stays the caller's."""
        self.adopt(reopen(fd), born=True)

    def adopt(self, fd: int, born: bool) -> int:
        """Watch the file that `fd`, ours from now on, is open on; the key for `opened` and `closed`.

        `born`: it was made through the mount, so every error of it counts; not so those that a file had when
        we first saw it.
        """
        ino = os.fstat(fd).st_ino
        if ino in self._files:
            os.close(fd)
            return ino
        if not born and ino not in self._dropped:
            self._last_error(fd)
        self._dropped.discard(ino)
        if len(self._files) >= self._tidy_at:
            self.tidy()
            self._tidy_at = min(self._limit, max(_TIDY_AT, 2 * len(self._files)))
        if len(self._files) >= self._limit and not self._drop_oldest():
            self._drop(ino, fd)
        else:
            self._files[ino] = _Watched(fd)
        return ino

    def opened(self, ino: int) -> None:
        """Somebody has the file open for writing."""
        watched = self._files.get(ino)
        if watched is not None:
            watched.writers += 1

    def closed(self, ino: int) -> None:
        """Somebody has closed it again."""
        watched = self._files.get(ino)
        if watched is not None and watched.writers:
            watched.writers -= 1

    def tidy(self) -> None:
        """Give back the descriptors that need not be held. Not while a check is running."""
        for ino, watched in list(self._files.items()):
            if not watched.writers and (os.fstat(watched.fd).st_nlink == 0 or _settled(watched.fd)):
                del self._files[ino]
                self._ask(watched.fd)  # after the last of its pages
                os.close(watched.fd)

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1].fd)

    def _drop_oldest(self) -> bool:
        for ino, watched in self._files.items():
            if not watched.writers:
                del self._files[ino]
                self._drop(ino, watched.fd)
                return True
        return False

    def _drop(self, ino: int, fd: int) -> None:
        self._ask(fd)
        os.close(fd)
        self._dropped.add(ino)
        self.dropped += 1

    def _ask(self, fd: int) -> None:
        code = self._last_error(fd)
        if code:
            self._errors.set(code)

    @staticmethod
    def _last_error(fd: int) -> int:
        try:
            files.sync_file_range(fd, _BEYOND, 1, files.SYNC_FILE_RANGE_WAIT_BEFORE)
        except OSError as error:
            code = error.errno or errno.EIO
            return 0 if code in _OURS else code
        return 0


def create(directory_fd: int, limit: int = LIMIT, reason: str | None = None) -> InodeProbe:
    """A probe for files of the file system of `directory_fd`. Raises ProbeUnavailable on a stacked one."""
    if files.statfs_type(directory_fd) in _STACKED:
        path = os.readlink(b"/proc/self/fd/%d" % directory_fd)
        message = reason or "no error probe for a stacked file system"
        raise ProbeUnavailable(errno.EINVAL, message, path)
    return InodeProbe(limit, reason)


def reopen(fd: int) -> int:
    """A descriptor with an error state of its own; the same one where the file must not be read."""
    try:
        return os.open(b"/proc/self/fd/%d" % fd, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        return os.dup(fd)


def _settled(fd: int) -> bool:
    """Whether all that was written is on the disk, or lost. False where the kernel cannot tell."""
    try:
        _cached, dirty, writeback = files.cachestat(fd)
    except OSError:
        return False
    return not dirty and not writeback
