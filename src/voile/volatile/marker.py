"""work/incompat: features of a work directory that forbid a mount, first of all `volatile`.

A volatile mount leaves `work/incompat/volatile/dirty`, so that after a crash nobody takes a half-written
upper directory for a whole one. Any entry of `incompat` refuses a mount, by the kernel as well as by us
(fs/overlayfs/readdir.c, ovl_workdir_cleanup_recurse; fs/overlayfs/super.c, ovl_create_volatile_dirty).

`work_fd` is the directory WORKDIR/work throughout.
"""

from __future__ import annotations

import errno
import os

from voile.linux import trees

INCOMPAT = b"incompat"
_VOLATILE = b"volatile"
_DIRTY = b"dirty"

_NOT_DIRECTORY = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Incompatible(OSError):
    """The work directory has a feature that forbids a mount (EINVAL, as the kernel). `feature`: its name."""

    def __init__(self, feature: bytes, path: bytes | None = None) -> None:
        """`path`: the work directory, as the user knows it."""
        if feature == _VOLATILE:
            workdir = "WORKDIR" if path is None else os.fsdecode(path)
            message = (
                "the last mount was volatile and not synced: after a crash, files in the upper directory may "
                "be incomplete. Start over with empty upper and work directories, or, when the machine has "
                f"not crashed since, remove {workdir}/work/incompat/volatile"
            )
            if os.geteuid() != 0:  # its directories have mode 0, as the kernel makes them
                message += f" ('chmod -R u+rwx {workdir}/work' makes that possible)"
            message += "; 'voile recover' says what is known"
        else:
            message = f"overlay with incompat feature '{os.fsdecode(feature)}' cannot be mounted"
        super().__init__(errno.EINVAL, message, path)
        self.feature = feature


def check(work_fd: int, path: bytes | None = None, volatile: bool = False) -> bool:
    """Raise Incompatible when work/incompat has an entry. `path` is for the message: the work directory.

    With `volatile` that one is no reason; return whether it is there.
    """
    try:
        names = sorted(trees.look(work_fd, INCOMPAT, os.listdir))
    except OSError as error:
        # Something that is no directory has no entries: it is cleared away with the rest of work.
        if error.errno in _NOT_DIRECTORY:
            return False
        raise
    found = [os.fsencode(name) for name in names]
    others = [name for name in found if name != _VOLATILE]
    if found and not (volatile and not others):
        # Ours first: of several it is the one that somebody can do something about.
        raise Incompatible(others[0] if volatile or _VOLATILE not in found else _VOLATILE, path)
    return bool(found)


def check_left(workdir_fd: int, path: bytes, volatile: bool) -> bool:
    """As `check`, for the `work` that an earlier mount has left in a work directory, if it has.

    Anything but a directory is no reason: it is cleared away, as the kernel does it.
    """
    try:
        return trees.look(workdir_fd, b"work", lambda fd: check(fd, path, volatile))
    except OSError as error:
        if error.errno not in _NOT_DIRECTORY:
            raise
    return False


def create_volatile(work_fd: int) -> None:
    """Make work/incompat/volatile/dirty: two directories and an empty file, all of mode 0.

    The modes are set last, for mounters whom they would keep out. What exists is kept. Raises OSError.
    """
    incompat = _make_directory(work_fd, INCOMPAT)
    try:
        volatile = _make_directory(incompat, _VOLATILE)
        try:
            # Exclusively: one that is there (in an upper that is used again) cannot be opened by everybody.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            try:
                os.close(os.open(_DIRTY, flags, 0, dir_fd=volatile))
            except FileExistsError:
                pass
            os.fchmod(volatile, 0)
        finally:
            os.close(volatile)
        os.fchmod(incompat, 0)
    finally:
        os.close(incompat)


def remove_volatile(work_fd: int) -> None:
    """Remove what `create_volatile` has made: the upper directory is complete. Raises OSError.

    What else is in work/incompat stays.
    """
    try:
        trees.look(work_fd, INCOMPAT, lambda incompat: trees.remove(incompat, _VOLATILE))
        os.rmdir(INCOMPAT, dir_fd=work_fd)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise


def _make_directory(dirfd: int, name: bytes) -> int:
    try:
        os.mkdir(name, 0o700, dir_fd=dirfd)
    except FileExistsError:
        pass
    return trees.open_directory(dirfd, name)
