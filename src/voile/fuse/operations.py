"""`Operations`: the base class of a file system.

A method gets the request's header (`requests.Request`, valid during the call only) and its decoded arguments,
and returns the reply's body as made by `replies`, or None where the reply is empty, or raises OSError: its
errno is the answer. It may return `requests.DEFERRED` and answer later with `Session.reply(unique, body)` or
`Session.fail(unique, errno)`. Any other exception goes to `unexpected`.

A method that a subclass does not override is never called: its opcode is answered with ENOSYS. What the
kernel then does (fs/fuse/*.c, 6.18) is noted per method; "never asked again" holds for the life of the mount.
"""

from __future__ import annotations

import errno
import os

from voile.fuse import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn, TypeAlias

    from voile.fuse.negotiation import Negotiated
    from voile.fuse.requests import Deferred, Request, SetattrIn

    Body = bytes  # a reply with a body; DEFERRED is bytes, too
    Done: TypeAlias = "Deferred | None"  # an empty reply
    Count: TypeAlias = "int | Deferred"
    Data: TypeAlias = "bytes | bytearray | memoryview"


def _missing() -> NoReturn:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


class Operations:
    """What a file system answers. Names and paths are bytes; errors are OSError."""

    def init(self, negotiated: Negotiated) -> None:
        """The kernel's INIT has been read and is about to be answered with *negotiated*."""

    def destroy(self) -> None:
        """The mount is gone: called once, by DESTROY (fuseblk: umount(2) waits for it) or at the device's
        end.
        """

    def unexpected(self, req: Request, raw: memoryview, exc: BaseException) -> int | None:
        """A method raised something else than OSError: return the errno to answer, None to answer later.

        *raw* is the whole request, valid during this call; ``bytes(raw)`` can be given to `Session.dispatch`
        later, which runs the request anew. The default writes a traceback to stderr and answers EIO.
        """
        import sys
        import traceback

        print(f"voile: {req!r}: unexpected error", file=sys.stderr)
        traceback.print_exception(exc, file=sys.stderr)
        return errno.EIO

    # --- names ---

    def lookup(self, req: Request, name: bytes) -> Body:
        """→ `entry_out`; `negative_entry` lets the kernel remember that there is no such name."""
        _missing()

    def forget(self, nodeid: int, nlookup: int) -> None:
        """The kernel drops *nlookup* lookups of *nodeid*. No reply."""

    def batch_forget(self, many: Iterator[tuple[int, int]]) -> None:
        """As `forget`, for up to 65,000 pairs of *nodeid* and *nlookup*."""
        for nodeid, nlookup in many:
            self.forget(nodeid, nlookup)

    def readlink(self, req: Request) -> Body:
        """→ the target, without a trailing NUL."""
        _missing()

    def symlink(self, req: Request, name: bytes, target: bytes) -> Body:
        """→ `entry_out`"""
        _missing()

    def mknod(self, req: Request, name: bytes, mode: int, rdev: int, umask: int) -> Body:
        """→ `entry_out`. *umask* is not applied to *mode* (DONT_MASK): a default ACL overrides it."""
        _missing()

    def mkdir(self, req: Request, name: bytes, mode: int, umask: int) -> Body:
        """→ `entry_out`; *umask* as for `mknod`."""
        _missing()

    def unlink(self, req: Request, name: bytes) -> Done:
        """→ None"""
        _missing()

    def rmdir(self, req: Request, name: bytes) -> Done:
        """→ None"""
        _missing()

    def rename(self, req: Request, name: bytes, newdir: int, newname: bytes, flags: int) -> Done:
        """→ None. RENAME and RENAME2; *flags* as for renameat2(2).

        EINVAL for flags; ENOSYS to a rename with flags means never asked again and EINVAL to the caller.
        """
        _missing()

    def link(self, req: Request, oldnodeid: int, newname: bytes) -> Body:
        """→ `entry_out`. ``req.nodeid`` is the directory. ENOSYS (since 6.14): EPERM, never asked again."""
        _missing()

    # --- attributes ---

    def getattr(self, req: Request, flags: int, fh: int | None) -> Body:
        """→ `attr_out`. *fh* when the caller did fstat(2) on an open file."""
        _missing()

    def statx(self, req: Request, flags: int, fh: int | None, sx_flags: int, sx_mask: int) -> Body:
        """→ `statx_out`. Sent when the birth time is wanted. ENOSYS: GETATTR instead, never asked again."""
        _missing()

    def setattr(self, req: Request, args: SetattrIn) -> Body:
        """→ `attr_out`"""
        _missing()

    def access(self, req: Request, mask: int) -> Done:
        """→ None. Not sent with default_permissions, which POSIX_ACL implies. ENOSYS: allowed, for ever."""
        _missing()

    def statfs(self, req: Request) -> Body:
        """→ `statfs_out`. The default shows a file system of size 0."""
        return abi.KSTATFS.pack(0, 0, 0, 0, 0, 4096, 255, 4096)

    def setxattr(self, req: Request, name: bytes, value: bytes, flags: int, setxattr_flags: int) -> Done:
        """→ None. *flags* as for setxattr(2). ENOSYS: EOPNOTSUPP, never asked again."""
        _missing()

    def getxattr(self, req: Request, name: bytes, size: int) -> Body:
        """→ the whole value, whatever *size*: the session answers its length or ERANGE.

        ENOSYS: EOPNOTSUPP, never asked again.
        """
        _missing()

    def listxattr(self, req: Request, size: int) -> Body:
        """→ all names, each with a trailing NUL; *size* as for `getxattr`. ENOSYS as for `getxattr`."""
        _missing()

    def removexattr(self, req: Request, name: bytes) -> Done:
        """→ None. ENOSYS: EOPNOTSUPP, never asked again."""
        _missing()

    # --- files ---

    def open(self, req: Request, flags: int, open_flags: int) -> Body:
        """→ `open_out`. *flags* as for open(2); *open_flags* are abi.OPEN_*.

        ENOSYS: this and all later opens succeed with fh 0, cached data is kept, never asked again.
        """
        _missing()

    def create(self, req: Request, name: bytes, flags: int, mode: int, umask: int, open_flags: int) -> Body:
        """→ `create_out`. ENOSYS: MKNOD and OPEN instead, never asked again."""
        _missing()

    def tmpfile(self, req: Request, name: bytes, flags: int, mode: int, umask: int, open_flags: int) -> Body:
        """→ `create_out` of an unnamed file in ``req.nodeid``. ENOSYS: EOPNOTSUPP, never asked again."""
        _missing()

    def read(self, req: Request, fh: int, offset: int, size: int, read_flags: int, flags: int) -> Data:
        """→ at most *size* bytes; fewer mean the end of the file. *flags* are the file's O_* flags."""
        _missing()

    def write(
        self, req: Request, fh: int, offset: int, data: memoryview, write_flags: int, flags: int
    ) -> Count:
        """→ the number of bytes written. *data* is valid during the call only (also before DEFERRED: copy
        it).
        """
        _missing()

    def flush(self, req: Request, fh: int, lock_owner: int) -> Done:
        """→ None. Every close(2). ENOSYS: success, never asked again."""
        _missing()

    def release(self, req: Request, fh: int, flags: int, release_flags: int, lock_owner: int) -> Done:
        """→ None. The last close; errors are ignored. On fuseblk close(2) waits for it."""
        _missing()

    def fsync(self, req: Request, fh: int, datasync: bool) -> Done:
        """→ None. ENOSYS: success, never asked again (so never say ENOSYS when a sync can fail)."""
        _missing()

    def fallocate(self, req: Request, fh: int, offset: int, length: int, mode: int) -> Done:
        """→ None. ENOSYS: EOPNOTSUPP, never asked again."""
        _missing()

    def lseek(self, req: Request, fh: int, offset: int, whence: int) -> Body:
        """→ `lseek_out`, for SEEK_DATA and SEEK_HOLE. ENOSYS: the kernel takes the file as free of holes."""
        _missing()

    def copy_file_range(
        self,
        req: Request,
        fh_in: int,
        off_in: int,
        nodeid_out: int,
        fh_out: int,
        off_out: int,
        length: int,
        flags: int,
    ) -> Count:
        """→ the number of bytes copied. ENOSYS: copied through the page cache, never asked again."""
        _missing()

    def ioctl(
        self, req: Request, fh: int, flags: int, cmd: int, arg: int, data: bytes, out_size: int
    ) -> Body:
        """→ at most *out_size* bytes (restricted ioctls: sizes as encoded in *cmd*). ENOSYS: ENOTTY."""
        _missing()

    # --- directories ---

    def opendir(self, req: Request, flags: int) -> Body:
        """→ `open_out`. ENOSYS: success with fh 0, the listing is cached, never asked again."""
        _missing()

    def readdir(self, req: Request, fh: int, offset: int, size: int, flags: int) -> Body:
        """→ `DirentBuffer(size, False).bytes()`; empty at the end. *flags*: as for open(2)."""
        _missing()

    def readdirplus(self, req: Request, fh: int, offset: int, size: int, flags: int) -> Body:
        """→ `DirentBuffer(size, True).bytes()`; empty at the end. Without it DO_READDIRPLUS is off."""
        _missing()

    def releasedir(self, req: Request, fh: int) -> Done:
        """→ None"""
        _missing()

    def fsyncdir(self, req: Request, fh: int, datasync: bool) -> Done:
        """→ None. ENOSYS as for `fsync`."""
        _missing()

    # --- the file system ---

    def syncfs(self, req: Request) -> Done:
        """→ None. Sent to fuseblk mounts (6.18) and with HAS_SYNCFS. ENOSYS: never asked again."""
        _missing()

    def interrupt(self, unique: int) -> None:
        """A signal hit the caller of the request *unique*, which is still being worked on. No reply."""
