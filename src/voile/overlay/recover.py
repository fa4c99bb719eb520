"""What the last volatile mount has left: looked at, accepted, or emptied, while nobody has it mounted.

Accepting is done in an order in which a kill at any point leaves the directories refused, or done: first it
is logged, then all is synced, then the record says so, and the marker goes last.
"""

from __future__ import annotations

import errno
import os
import time
from errno import EBUSY, EINVAL

from voile.linux import files, mountinfo, trees
from voile.overlay import inuse
from voile.overlay.layout import MountError, Place
from voile.volatile import marker, policy, probe, record, reuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.volatile.holder import Held

#: What has been accepted, a line each, beside the record.
LOG = b"voile.accepted"

_NO_RECORD = "there is no record of the last volatile mount"
_UNSEEN = "the file system has lost data before, and nobody has been told"
_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OVERLAY = ("trusted.overlay.", "user.overlay.")


class Leftover:
    """An upper and a work directory between two mounts.

    reasons     why the upper is not provably whole; empty: it is, or there is nothing to prove
    last        the record of the last volatile mount, or None
    marked      the marker of a volatile mount is there
    """

    def __init__(self, upper: bytes, work: bytes) -> None:
        """Takes the directories as a mount would; nothing is changed.

        Raises OSError: MountError, inuse.InUse, marker.Incompatible for another mark than a volatile mount's.
        """
        self.upper = os.path.abspath(upper)
        self.work = os.path.abspath(work)
        self._fds: list[int] = []
        self._held: Held | None = None
        self.last: record.Record | None = None
        try:
            self._open()
            self._now = record.Record.of(self.upper_fd, self.work_fd)
            self.marked = marker.check_left(self.work_fd, self.work, volatile=True)
            self.reasons = self._judge()
        except BaseException:
            self.close()
            raise

    @property
    def upper_fd(self) -> int:
        """A readable descriptor."""
        return self._fds[0]

    @property
    def work_fd(self) -> int:
        """A readable descriptor."""
        return self._fds[1]

    def close(self) -> None:
        """Gives the directories back; who holds a probe goes on."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        if self._held is not None:
            self._held.close()
            self._held = None

    def settle(self, log: list[str]) -> int:
        """Has all that is there on the disk, and the next mount not refused. `log`: what is being accepted.

        Returns the errno that a sync told, once, or 0: of data that was lost before.
        Raises OSError: it still fails, or, with nothing to accept, data was lost after all.
        """
        if log:
            self._log(log)
        code = self._sync()
        if code and not log:
            raise OSError(code, f"data has been lost: {os.strerror(code)}")
        if code:
            self._log([f"the sync says {errno.errorcode.get(code, code)}"])
            again = self._sync()
            if again:
                raise OSError(again, f"it still cannot be synced: {os.strerror(again)}")
        self._write(log)
        if self._held is not None:
            self._held.end()
            self._held = None
        if self.marked:
            trees.look(self.work_fd, b"work", marker.remove_volatile)
        return code

    def empty(self) -> None:
        """Removes all that is in both directories.

        Raises OSError: MountError when these are not known to belong together, or something is mounted there.
        """
        if self.last is None or not self.last.same_directories(self._now):
            message = "not known as the upper directory of that work directory: remove it yourself"
            raise MountError(EINVAL, message, self.upper)
        for each in mountinfo.read():
            for path in (self.upper, self.work):
                if each.mountpoint.startswith(os.path.realpath(path) + b"/"):
                    raise MountError(EBUSY, "something is mounted in it", each.mountpoint)
        self._doom(self.last)
        _empty(self.upper_fd, ())
        for name in os.listxattr(self.upper_fd):
            if name.startswith(_OVERLAY):
                os.removexattr(self.upper_fd, name)
        if self._held is not None:
            self._held.end()
            self._held = None
        # The marker and the record last.
        _empty(self.work_fd, (b"work", record.NAME))
        _empty(self.work_fd, (record.NAME,))
        record.remove(self.work_fd)

    def _doom(self, last: record.Record) -> None:
        """What is half emptied must not be mounted, with whatever options."""
        last.state, last.checkpoint = record.MOUNTED, record.NOTHING
        record.write(self.work_fd, last, first=True)
        try:
            trees.look(self.work_fd, b"work", marker.create_volatile)
        except FileNotFoundError:
            pass

    def _open(self) -> None:
        places = []
        try:
            for role, path in (("upperdir", self.upper), ("workdir", self.work)):
                places.append(Place(role, path))
                self._fds.append(os.open(b".", _READ, dir_fd=places[-1].fd))
            deadline = time.monotonic() + inuse.WAIT_S
            for place, fd in zip(places, self._fds):
                if not inuse.take(fd, self.work_fd, place.role, place.path, deadline):
                    raise inuse.InUse(EBUSY, f"{place.role} is in use by a detached mount", place.path)
        finally:
            for place in places:
                place.close()

    def _judge(self) -> list[str]:
        reasons = []
        try:
            self.last = record.read(self.work_fd)
            if self.last is not None:
                verdict = reuse.judge(self.last, self._now, self.work_fd, self.marked)
                reasons, self._held = verdict.reasons, verdict.held
            elif self.marked:
                reasons = [_NO_RECORD]
        except record.Unreadable as why:
            reasons = [f"the record of the last volatile mount cannot be used: {why}"]
        try:
            probe.create(self.work_fd, userxattr=os.geteuid() != 0).close()
        except probe.UnseenError:
            reasons.append(_UNSEEN)
        except OSError:
            pass  # not to be known here
        return reasons

    def _sync(self) -> int:
        """The errno of a real sync, or of the probe that was held, or 0."""
        try:
            files.syncfs(self.upper_fd)
        except OSError as exc:
            return exc.errno or errno.EIO
        return 0 if self._held is None or self.reasons else probe.Probe(self._held.fd, "").check()

    def _log(self, lines: list[str]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(LOG, flags, 0o600, dir_fd=self.work_fd)
        try:
            for line in lines:
                os.write(fd, f"{policy.stamp(time.time())} {line}\n".encode("utf-8", "surrogateescape"))
            os.fsync(fd)
        finally:
            os.close(fd)

    def _write(self, log: list[str]) -> None:
        now = self._now
        now.time = policy.stamp(time.time())
        owner = self._record_owner()
        now.state = record.ACCEPTED if log else record.SYNCED
        if not log:
            now.checkpoint = now.time
        elif self.last is not None:
            now.checkpoint = self.last.checkpoint
        # Where root recovers what is somebody's: or his next mount would not believe it.
        record.write(self.work_fd, now, first=True, durable=True, owner=owner)

    def _record_owner(self) -> int:
        try:
            return os.stat(record.NAME, dir_fd=self.work_fd, follow_symlinks=False).st_uid
        except FileNotFoundError:
            return os.geteuid()


def _empty(fd: int, but: tuple[bytes, ...]) -> None:
    for name in os.listdir(fd):
        if os.fsencode(name) not in but:
            trees.remove(fd, os.fsencode(name))
