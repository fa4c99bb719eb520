"""Removal of a tree by directory fds: no path is walked twice, and no symbolic link is followed."""

from __future__ import annotations

import errno
import os
import stat

from voile.linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import TypeVar

    T = TypeVar("T")

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


# Below this depth a directory is moved to the top before it is emptied: a tree may be deeper than Python's
# stack and the limit of open files allow.
_DEPTH = 100


def open_directory(dirfd: int, name: bytes) -> int:
    """Open a directory for reading, also one of our own that has no permissions (overlay work directories).

    Such a directory has mode 0700 afterwards. Its access time stays as it is where the caller may have that
    (who has it open still sees it). Raises OSError: ELOOP or ENOTDIR for anything but a directory.
    """
    try:
        return os.open(name, _OPEN | os.O_NOATIME, dir_fd=dirfd)
    except PermissionError:
        pass
    try:
        return os.open(name, _OPEN, dir_fd=dirfd)
    except PermissionError:
        files.fchmodat2(dirfd, name, 0o700, files.AT_SYMLINK_NOFOLLOW)
        return os.open(name, _OPEN, dir_fd=dirfd)


def look(dirfd: int, name: bytes, use: Callable[[int], T]) -> T:
    """Return `use(fd)` of a directory opened as by `open_directory`; its mode is as it was afterwards."""
    mode = stat.S_IMODE(os.stat(name, dir_fd=dirfd, follow_symlinks=False).st_mode)
    fd = open_directory(dirfd, name)
    try:
        return use(fd)
    finally:
        if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
            os.fchmod(fd, mode)
        os.close(fd)


def remove(dirfd: int, name: bytes) -> None:
    """Remove the entry `name` of `dirfd` with all that is below it. Nothing there is no error.

    Directories of ours are removed whatever their modes. Raises OSError for what cannot be removed.
    """
    for _ in removal(dirfd, name):
        pass


def removal(dirfd: int, name: bytes) -> Generator[None, None, None]:
    """As `remove`, entry by entry: for who has something else to do in between, or gives up."""
    too_deep = [name]
    while too_deep:
        name = too_deep.pop()
        if not _removed_at_once(dirfd, name):
            yield from _removal(dirfd, name, 0, dirfd, too_deep)


def _removal(dirfd: int, name: bytes, depth: int, top: int, too_deep: list[bytes]) -> Iterator[None]:
    """Removes a directory that is not empty."""
    fd = open_directory(dirfd, name)
    try:
        about = os.fstat(fd)
        locked = about.st_mode & 0o300 != 0o300 and about.st_uid == os.geteuid()
        if locked:
            os.fchmod(fd, 0o700)  # mode 0555 (as of a package cache) keeps its owner from unlinking
        if depth == _DEPTH:
            moved = b"#deep-%x" % about.st_ino
            os.rename(name, moved, src_dir_fd=dirfd, dst_dir_fd=top)
            too_deep.append(moved)
            return
        # Not listdir(3): a million names are 100 MB.
        with os.scandir(fd) as entries:
            for entry in entries:
                below = os.fsencode(entry.name)
                if _removed_at_once(fd, below):
                    yield
                else:
                    yield from _removal(fd, below, depth + 1, top, too_deep)
        if locked:
            os.fchmod(fd, stat.S_IMODE(about.st_mode))  # who has it open sees it
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dirfd)
    yield


def _removed_at_once(dirfd: int, name: bytes) -> bool:
    """Whether `name` is gone now: everything but a directory that is not empty."""
    try:
        os.unlink(name, dir_fd=dirfd)
        return True
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        pass
    try:
        # An empty directory needs no permissions of its own.
        os.rmdir(name, dir_fd=dirfd)
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    return False
