"""The record: what is known of the last volatile mount of an upper and a work directory.

It lies in the work directory beside ``work``: the marker is removed by container engines before each mount,
and what is in ``work`` by the kernel's overlayfs.  Lines of a name and a value, and a checksum.  It is
replaced as a whole, by a rename; only a checkpoint syncs it.  So after a crash there may be an older one, or
one without its contents, and none of these can say "whole": they are of another boot, or have no valid sum.

Whoever replaces a record has it locked (flock(2) on the file itself), because a detached mount can still be
ending while the next one has taken its directories over.
"""

from __future__ import annotations

import binascii
import fcntl
import os
import stat
import time
from errno import EBUSY, EINVAL

from voile.linux import files, trees

NAME = b"voile.volatile"
_NEW = b"voile.volatile.new"
_HEAD = b"voile volatile 1\n"
_LONGEST = 4096
_WAIT_S = 2.0
_STEP_S = 0.01

# What became of the mount: it is there, or its daemon was killed; it was unmounted; it was shut down first;
# it was unmounted by `umount --sync`; somebody has accepted whatever may be lost.
MOUNTED = "mounted"
UNMOUNTED = "unmounted"
SHUT_DOWN = "shutdown"
SYNCED = "synced"
ACCEPTED = "accepted"
STATES = (MOUNTED, UNMOUNTED, SHUT_DOWN, SYNCED, ACCEPTED)
#: Nothing is left that a crash could take.
SETTLED = (SYNCED, ACCEPTED)

NOTHING = "-"
_NUMBERS = ("mount", "error", "probe_mount", "holder")
# Of the directories and their file system.
_IDENTITY = ("boot", "device", "uuid", "mount", "upper", "work")
_REST = ("state", "time", "error", "since", "probe", "probe_mount", "holder", "checkpoint", "doubt")
FIELDS = ("id", *_IDENTITY, *_REST)


class Unreadable(Exception):
    """There is a record, and nothing can be learned from it; `str()` says why."""


class Record:
    """One record. Texts are "-" and numbers 0 where there is nothing to say.

    id                  another one for each mount
    boot                the kernel's boot id
    device, uuid        of the file system of the directories
    mount               the unique number of the mount that they were reached through
    upper, work         the directories' inode numbers and times of birth
    state, time         one of STATES, since when
    error, since        the errno of lost data, and when it was noticed
    probe, probe_mount  the kind of the error probe, and the unique number of its mount
    holder              the process that keeps the probe
    checkpoint          up to when everything is on the disk, verified
    doubt               why the upper may have been incomplete before that mount began
    """

    __slots__ = FIELDS

    def __init__(self) -> None:
        self.id = self.boot = self.device = self.uuid = self.upper = self.work = NOTHING
        self.mount = self.error = self.probe_mount = self.holder = 0
        self.state, self.time = MOUNTED, NOTHING
        self.since = self.probe = self.checkpoint = self.doubt = NOTHING

    @classmethod
    def of(cls, upper_fd: int, work_fd: int) -> Record:
        """A new one of these directories (readable descriptors). Raises OSError."""
        self = cls()
        self.id = os.urandom(8).hex()
        self.boot = _boot_id()
        number = os.fstat(work_fd).st_dev
        self.device = f"{os.major(number)}:{os.minor(number)}"
        uuid = files.fs_uuid(work_fd)
        self.uuid = uuid.hex() if uuid else NOTHING
        self.mount = files.unique_mount_id(work_fd)
        self.upper, self.work = _inode(upper_fd), _inode(work_fd)
        return self

    def encode(self) -> bytes:
        """The contents of the file."""
        lines = [_HEAD, *(f"{name} {getattr(self, name)}\n".encode() for name in FIELDS)]
        data = b"".join(lines)
        return data + b"sum %08x\n" % binascii.crc32(data)

    @classmethod
    def decode(cls, data: bytes) -> Record:
        """The opposite. Raises Unreadable."""
        body, found, total = data.rpartition(b"sum ")
        if not found or total != b"%08x\n" % binascii.crc32(body):
            raise Unreadable("it is damaged (after a crash?)")
        head, *lines = body.splitlines(keepends=True)
        if head != _HEAD:
            raise Unreadable("it is of another version of voile")
        self = cls()
        try:
            values = dict(line.decode().rstrip("\n").split(" ", 1) for line in lines)
            for name in FIELDS:
                setattr(self, name, int(values[name]) if name in _NUMBERS else values[name])
        except (ValueError, KeyError):
            raise Unreadable("it is damaged") from None
        if self.state not in STATES:
            raise Unreadable("it is damaged")
        return self

    def same_directories(self, other: Record) -> bool:
        """Whether both are of the same upper and work directory, as far as they themselves are concerned."""
        return (self.upper, self.work) == (other.upper, other.work)


def exists(workdir_fd: int) -> bool:
    """Whether there is one, readable or not."""
    try:
        os.stat(NAME, dir_fd=workdir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def read(workdir_fd: int) -> Record | None:
    """The record in a work directory, or None.

    Raises Unreadable: also when somebody else has written it, or could have; OSError.
    """
    # Whatever is there may be a fifo or a device: it must not even be opened.
    try:
        regular = stat.S_ISREG(os.stat(NAME, dir_fd=workdir_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return None
    if not regular:
        raise Unreadable("it is no regular file")
    try:
        fd = os.open(NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=workdir_fd)
    except PermissionError:
        raise Unreadable("somebody else has written it") from None
    try:
        about = os.fstat(fd)
        if about.st_uid != os.geteuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Unreadable("somebody else has written it, or could have")
        return Record.decode(os.read(fd, _LONGEST))
    finally:
        os.close(fd)


class Update:
    """A new record, written beside the old one; `commit` puts it in its place, `close` must follow.

    The parts are for different threads: `commit` creates nothing, so it may run in any.
    """

    __slots__ = ("_directory", "_done", "_lock", "_new")

    def __init__(self, workdir_fd: int, new: Record, first: bool = False) -> None:
        """Take the lock and write. `first`: the old record is that of another mount.

        Raises OSError: EBUSY when the old one is another mount's and should not, or is locked for too long.
        """
        self._new = self._directory = -1
        self._done = False
        self._lock = _lock(workdir_fd)
        try:
            if not first and (self._lock < 0 or _id(self._lock) != new.id):
                raise OSError(EBUSY, "another mount has taken the directories over", NAME)
            self._directory = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=workdir_fd)
            trees.remove(workdir_fd, _NEW)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._new = os.open(_NEW, flags, 0o600, dir_fd=workdir_fd)
            os.fchmod(self._new, 0o600)
            os.write(self._new, new.encode())
        except BaseException:
            self.close()
            raise

    def commit(self, durable: bool = False) -> None:
        """Replace the old record. `durable`: both files and directory are synced. Raises OSError."""
        if durable:
            os.fsync(self._new)
        if self._lock < 0 and exists(self._directory):
            trees.remove(self._directory, NAME)  # no file, but perhaps a directory, in the way
        if self._lock >= 0:
            self._exchange()
        else:
            os.rename(_NEW, NAME, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._done = True
        if durable:
            os.fsync(self._directory)

    def give_to(self, owner: int) -> None:
        """Change the owner. Raises OSError."""
        os.fchown(self._new, owner, -1)

    def _exchange(self) -> None:
        """Not a rename over the old one: that makes ext4 write the new file to the disk (auto_da_alloc)."""
        try:
            files.renameat2(self._directory, _NEW, self._directory, NAME, files.RENAME_EXCHANGE)
        except OSError as error:
            if error.errno != EINVAL:  # a file system that cannot
                raise
            os.rename(_NEW, NAME, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            return
        try:
            os.unlink(_NEW, dir_fd=self._directory)
        except OSError:
            pass  # the next one removes it; the new one is in its place

    def close(self) -> None:
        """Give the lock back; what was not committed is removed."""
        if self._new >= 0 and not self._done:
            try:
                os.unlink(_NEW, dir_fd=self._directory)
            except OSError:
                pass  # the next one removes it
        for fd in (self._new, self._directory, self._lock):
            if fd >= 0:
                os.close(fd)
        self._new = self._directory = self._lock = -1


def write(
    workdir_fd: int, new: Record, *, first: bool = False, durable: bool = False, owner: int | None = None
) -> None:
    """Replace the record at once; `owner` is to have it. Raises OSError, as `Update`."""
    update = Update(workdir_fd, new, first)
    try:
        if owner is not None and owner != os.geteuid():
            update.give_to(owner)
        update.commit(durable)
    finally:
        update.close()


def remove(workdir_fd: int) -> None:
    """Remove it, if there is one. Raises OSError."""
    lock = _lock(workdir_fd)
    try:
        trees.remove(workdir_fd, NAME)
    finally:
        if lock >= 0:
            os.close(lock)


def _lock(workdir_fd: int) -> int:
    """The descriptor of the record that is there, locked; -1 when none is. Raises OSError EBUSY."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            if not stat.S_ISREG(os.stat(NAME, dir_fd=workdir_fd, follow_symlinks=False).st_mode):
                return -1
            fd = os.open(NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=workdir_fd)
        except (FileNotFoundError, PermissionError):
            return -1
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Or it has been replaced meanwhile.
            if os.fstat(fd).st_nlink:
                return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                raise OSError(EBUSY, "the record of the last volatile mount is locked", NAME) from None
            time.sleep(_STEP_S)
        os.close(fd)


def _id(fd: int) -> str:
    try:
        return Record.decode(os.pread(fd, _LONGEST, 0)).id
    except Unreadable:
        return NOTHING


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", "rb", buffering=0) as file:
        return file.read(64).decode().strip()


def _inode(fd: int) -> str:
    found = files.statx(fd, b"", files.AT_EMPTY_PATH)
    return f"{found.ino}/{found.btime_ns if found.mask & files.STATX_BTIME else 0}"
