"""Whether the upper directory of a volatile mount is provably whole when the next one begins.

What has to hold, and how it is known, is argued in docs/explanation/reuse.md.  In short: the same boot and
the same superblock, so that nothing that was only in memory can be gone; a last mount that ended by an
unmount; and not one writeback error from its beginning until now.  The last can be known only from the very
probe that was made for that mount (see holder), or where there is no writeback.  What cannot be known counts
against it.
"""

from __future__ import annotations

import errno
import os

from voile.linux import files
from voile.volatile import holder, record
from voile.volatile.probe import Probe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.volatile.holder import Held
    from voile.volatile.record import Record
    from voile.volatile.sync_status import SyncStatus

# `reuse=`
OFF = "off"
AUTO = "auto"
REUSE = (OFF, AUTO)

_MARKED_SINCE = "there is a marker of a volatile mount that the record does not know (another program's?)"


class NotProven(OSError):
    """The upper directory of the last volatile mount may be incomplete (EINVAL); the message says why."""

    def __init__(self, reasons: list[str], upper: bytes, work: bytes) -> None:
        """The paths are as the user knows them."""
        paths = f"{os.fsdecode(upper)} --work {os.fsdecode(work)}"
        message = (
            f"cannot be used again, it may be incomplete: {'; '.join(reasons)}. Start over ('voile discard "
            f"{paths}'), or accept what may be lost ('voile recover {paths} --accept-loss')"
        )
        super().__init__(errno.EINVAL, message, upper)
        self.reasons = reasons


class Verdict:
    """What is against using an upper directory again, and the probe that was held for it, if any."""

    __slots__ = ("held", "reasons")

    def __init__(self, reasons: list[str], held: Held | None = None) -> None:
        self.reasons = reasons
        self.held = held


def judge(last: Record, now: Record, work_fd: int, marked: bool) -> Verdict:
    """Compare the record of the last mount with one of the directories as they are now.

    `marked`: the marker of a volatile mount is there.
    """
    held = holder.find(last.holder, last.probe_mount) if last.boot == now.boot else None
    reasons = []
    if last.doubt != record.NOTHING:
        reasons.append(f"it was in doubt before that mount already ({last.doubt})")
    if last.state in record.SETTLED:
        return Verdict([*reasons, _MARKED_SINCE] if marked else reasons, held)
    reasons = _end(last) + reasons
    if last.boot != now.boot:
        reasons.append(f"the machine has been restarted since that mount ({last.time})")
        return Verdict(reasons)
    reasons += _place(last, now)
    memory = files.statfs_type(work_fd) == files.TMPFS_MAGIC
    code = _since(held, last)
    if code:
        name = errno.errorcode.get(code, str(code))
        reasons.append(f"the file system has lost data between the two mounts ({name})")
    if held is not None:
        return Verdict(reasons, held)
    if not memory:
        reasons.append(_no_holder(last, now))
    elif not now.mount or last.mount != now.mount:
        reasons.append(_another_mount(now))
    return Verdict(reasons, held)


def _since(held: Held | None, last: Record) -> int:
    """The errno that the held probe tells, or 0."""
    return 0 if held is None else Probe(held.fd, last.probe).check()


def _end(last: Record) -> list[str]:
    reasons = []
    if last.state == record.MOUNTED:
        reasons.append(f"the last mount ({last.time}) has not ended by an unmount, or not yet")
    elif last.state == record.SHUT_DOWN:
        reasons.append(f"the last mount was shut down ({last.time})")
    if last.error:
        name = errno.errorcode.get(last.error, str(last.error))
        reasons.append(f"the last mount had lost data ({name}, first seen {last.since})")
    return reasons


def _place(last: Record, now: Record) -> list[str]:
    if not last.same_directories(now):
        return ["the record is of other directories (was it copied?)"]
    if (last.device, last.uuid) != (now.device, now.uuid):
        return [f"the file system is another one now (device {now.device}, was {last.device})"]
    return []


def _no_holder(last: Record, now: Record) -> str:
    if last.holder:
        return (
            f"the process {last.holder}, which held the error probe, is not there any more (or cannot be "
            "looked at from here), so errors between the two mounts cannot be ruled out"
        )
    again = "" if now.mount and last.mount == now.mount else "; it may even have been mounted anew"
    return (
        "an error of the file system between the two mounts cannot be ruled out, since nobody has held the "
        f"error probe (option hold=on){again}"
    )


def _another_mount(now: Record) -> str:
    if not now.mount:
        return "this kernel cannot tell whether the tmpfs is still the same (Linux 6.8)"
    return "the directories are reached through another mount, so the tmpfs is not provably the same"


class Continuity:
    """From the last volatile mount of an upper and a work directory to this one.

    `reused`: the last one's upper is in use again, proven to be whole. `warnings`: lines for the user.
    """

    __slots__ = (
        "_asked", "_damaged", "_held", "_hold", "_last", "_workdir_fd", "now", "reused", "warnings",
    )  # fmt: skip

    def __init__(self, upper_fd: int, work_fd: int, hold: bool) -> None:
        """Readable descriptors of both; changes nothing. Raises OSError."""
        self._hold = hold
        self._held: Held | None = None
        self._last: Record | None = None
        self._damaged = False
        self._asked = False
        self._workdir_fd = -1
        self.now = record.Record.of(upper_fd, work_fd)
        self.reused = False
        self.warnings: list[str] = []

    @property
    def checkpoint(self) -> str | None:
        """Up to when everything is on the disk, verified."""
        return None if self.now.checkpoint == record.NOTHING else self.now.checkpoint

    def look(self, work_fd: int) -> None:
        """Reads the last record, only to warn (and to know of a holder): `reuse=off`."""
        try:
            last = self._last = record.read(work_fd)
        except record.Unreadable as why:
            self._damaged = True
            self.now.doubt = f"the record of the mount before could not be used: {why}"
            self.warnings.append(f"the record of the last volatile mount cannot be used: {why}")
            return
        if last is None:
            return
        self.now.doubt = last.doubt
        if last.state in record.SETTLED:
            self._go_on_from(last)
            return
        if last.doubt == record.NOTHING:
            self.now.doubt = f"a mount since {last.time} did not ask for proof (reuse=off)"
        reasons = []
        if last.boot != self.now.boot:
            reasons.append("was never synced, and the machine has been restarted since")
        else:
            self._held = holder.find(last.holder, last.probe_mount)
        code = last.error or _since(self._held, last)
        if code:
            when = "had" if last.error else "was followed by an error of the file system, which has"
            reasons.append(f"{when} lost data ({errno.errorcode.get(code, code)})")
        if reasons:
            what = f"the last mount ({last.time}) {', and '.join(reasons)}"
            self.warnings.append(f"{what}: files in the upper directory may be incomplete")

    def admit(self, work_fd: int, marked: bool, upper: bytes, work: bytes) -> Probe | None:
        """`reuse=auto`: the probe of the last mount, if it was held for this one.

        Raises NotProven; OSError.
        """
        self._asked = True
        try:
            last = self._last = record.read(work_fd)
        except record.Unreadable as why:
            reason = f"the record of the last volatile mount cannot be used: {why}"
            raise NotProven([reason], upper, work) from None
        if last is None:
            if marked:
                raise NotProven(["there is no record of the last volatile mount"], upper, work)
            return None
        verdict = judge(last, self.now, work_fd, marked)
        if verdict.reasons:
            if verdict.held is not None:
                verdict.held.close()
            raise NotProven(verdict.reasons, upper, work)
        self._go_on_from(last)  # and there is no doubt to carry on
        self._held = verdict.held
        self.reused = last.state not in record.SETTLED
        if self._held is None or not self.reused:
            return None
        return Probe(self._held.take(), last.probe)

    def _go_on_from(self, last: Record) -> None:
        # A work directory may have got another upper directory, once nothing was left to be refused.
        if last.same_directories(self.now):
            self.now.checkpoint = last.checkpoint

    def begin(self, workdir_fd: int, probe: Probe) -> None:
        """The directories are about to be used. Raises OSError: it cannot be written down."""
        self._workdir_fd = workdir_fd
        now = self.now
        now.time = _stamp()
        now.probe = probe.kind
        now.probe_mount = files.unique_mount_id(probe.fd) if probe.fd >= 0 else 0
        # Until it has been ended (`settle`), or nobody would know of it after a kill.
        now.holder = self._held.pid if self._held is not None else 0
        # A crash must not bring back what would let the next mount pass: the marker is not synced.
        passes = self._asked if self._last is None else self._last.state in record.SETTLED
        record.write(workdir_fd, now, first=True, durable=passes)

    def abort(self) -> None:
        """The mount has failed after `begin`: as before. Raises OSError."""
        if self._workdir_fd >= 0:
            if self._last is not None:
                record.write(self._workdir_fd, self._last, first=True)
            elif not self._damaged:  # nor is ours "whole"
                record.remove(self._workdir_fd)

    def settle(self) -> None:
        """The mount works: the holder of the last one is not needed any more."""
        if self._held is not None and self._workdir_fd >= 0:
            self._held.end()
            self._held = None
            self.now.holder = 0

    def end(self, state: str, sync: SyncStatus, path: bytes) -> None:
        """The mount has ended: write down how, and have its probe held. Raises OSError.

        `state`: MOUNTED when something that was written to it can still have been on its way. `path`: the
        work directory. What cannot be written leaves the record as it is, and that says "mounted".
        """
        now = self.now
        if state == record.MOUNTED:
            return
        now.state, now.time, now.holder = state, _stamp(), 0
        if state == record.SYNCED:
            record.write(self._workdir_fd, now, durable=True)
            return
        sync.get()
        now.error = sync.errno
        if sync.since is not None:
            now.since = _stamp(sync.since)
        started = None
        if self._hold and state == record.UNMOUNTED and not sync.errno:
            started = _start(sync.probe.fd, path)
            now.holder = started.pid if started is not None else 0
        try:
            record.write(self._workdir_fd, now)
        except BaseException:
            if started is not None:
                started.go()
            raise
        if started is not None:
            started.stay()

    def synced(self) -> None:
        """A mount that is not volatile has ended, and its sync has found nothing. Raises OSError."""
        if self.now.doubt == record.NOTHING:
            record.remove(self._workdir_fd)
        else:
            self.now.state, self.now.time = record.SYNCED, _stamp()
            record.write(self._workdir_fd, self.now)

    def update(self, checkpoint: str) -> record.Update:
        """A record of a checkpoint, to be committed. Raises OSError."""
        before, self.now.checkpoint = self.now.checkpoint, checkpoint
        try:
            return record.Update(self._workdir_fd, self.now)
        except BaseException:
            self.now.checkpoint = before
            raise

    def close(self) -> None:
        """Let go of everything; a holder that has not been ended stays."""
        if self._held is not None:
            self._held.close()
            self._held = None


def _start(probe_fd: int, path: bytes) -> holder.Started | None:
    """A holder, or None: the next mount will be refused, but this one has ended well."""
    try:
        return holder.Started(probe_fd, path)
    except OSError as error:
        import sys

        what = f"{os.fsdecode(path)}: the error probe cannot be held: {error.strerror}"
        print(f"voile: {what}", file=sys.stderr)
        return None


def _stamp(seconds: float | None = None) -> str:
    import time

    from voile.volatile.policy import stamp

    return stamp(time.time() if seconds is None else seconds)
