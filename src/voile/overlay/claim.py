"""What a mount takes hold of in its upper and work directory, before it changes anything.

That is: two locks, so that no other mount has them; what the last mount has left, which may forbid this one;
and the error probe, which refuses an unseen error.
"""

from __future__ import annotations

import os
import resource
import time
from errno import EINVAL

from voile.linux import files
from voile.overlay import inuse
from voile.overlay.layers import DIR_READ
from voile.volatile import chain, marker, policy, probe, record
from voile.volatile.sync_status import SyncStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.overlay.layout import Place
    from voile.overlay.params import Params
    from voile.volatile.probe import Probe
    from voile.volatile.reuse import Continuity


class Claim:
    """`upper_fd` and `work_fd`: the directories, open for reading, and locked as long (-1: not claimed)."""

    __slots__ = (
        "params", "volatile", "warnings", "upper_fd", "work_fd", "marked", "continuity", "sync",
        "_take_later",
    )  # fmt: skip

    def __init__(self, params: Params, volatile: bool) -> None:
        self.params = params
        self.volatile = volatile
        # Lines for the user.
        self.warnings: list[str] = []
        self.upper_fd = self.work_fd = -1
        # A marker of the last volatile mount is there, and no reason to refuse.
        self.marked = False
        # None: not volatile, and no volatile mount before that is on record.
        self.continuity: Continuity | None = None
        self.sync = SyncStatus(False, probe.NoProbe())
        self._take_later: list[int] = []

    def take(self, upper: Place, work: Place) -> None:
        """Everything that can refuse an upper and a work directory. `close` undoes it, also after a failure.

        Raises:
            OSError: `inuse.InUse`, `marker.Incompatible`, `reuse.NotProven`, `probe.UnseenError` or
                `probe.ProbeUnavailable`.
        """
        deadline = time.monotonic() + inuse.WAIT_S
        self.upper_fd = self._lock(upper, work, deadline)
        self.work_fd = self._lock(work, work, deadline)
        held = self._look_back(work, upper)
        if self.volatile:
            rules = policy.Policy(self.params.errors, self.params.error_code)
            self.sync = SyncStatus(True, held or self._make_probe(), rules)

    def mounted(self) -> None:
        """The mount is there."""
        for fd in self._take_later:
            inuse.take_later(fd)

    def close(self) -> None:
        """Lets go of everything."""
        self.sync.probe.close()
        if self.continuity is not None:
            self.continuity.close()
        for fd in (self.upper_fd, self.work_fd):
            if fd >= 0:
                os.close(fd)
        self.upper_fd = self.work_fd = -1

    def _lock(self, place: Place, work: Place, deadline: float) -> int:
        fd = os.open(b".", DIR_READ, dir_fd=place.fd)
        try:
            if not inuse.take(fd, work.fd, place.role, place.path, deadline):
                self._take_later.append(fd)
                what = f"{place.role} '{os.fsdecode(place.path)}'"
                self.warnings.append(f"{what} is still held by a detached mount; taking it over")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _look_back(self, work: Place, upper: Place) -> Probe | None:
        """Refuses what the last mount has left incomplete; the error probe that was held for this one."""
        wanted = self.volatile and self.params.reuse != "off"
        self.marked = marker.check_left(work.fd, work.path, wanted)
        if not self.volatile and not record.exists(work.fd):
            return None
        from voile.volatile import reuse

        self.continuity = reuse.Continuity(self.upper_fd, self.work_fd, self.params.hold)
        if wanted:
            return self.continuity.admit(work.fd, self.marked, upper.path, work.path)
        self.continuity.look(work.fd)
        self.warnings += [f"{os.fsdecode(work.path)}: {each}" for each in self.continuity.warnings]
        return None

    def _make_probe(self) -> Probe:
        soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        made = chain.create(self.params.probe, self.work_fd, self.params.userxattr, soft // 8)
        exact = made.kind != policy.INODE
        if self.params.hold and not (exact and files.unique_mount_id(made.fd)):
            made.close()
            what = "a kernel that numbers mounts (Linux 6.8)" if exact else "the exact error probe"
            raise probe.ProbeUnavailable(EINVAL, f"hold=on needs {what}", self.params.workdir)
        if not exact and self.params.probe == policy.AUTO:
            self.warnings.append("errors are seen only of single files; 'voile status' says of how many")
        return made
