"""Whether a sync call is to be carried out, skipped, or to fail (fs/overlayfs/super.c, ovl_sync_status)."""

from __future__ import annotations

import time

from voile.volatile.policy import Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from voile.volatile.probe import Probe

_COUNTERS = ("fsync", "fdatasync", "fsyncdir", "syncfs", "osync")


class SyncStatus:
    """The sync policy of a mount, and what has become of it.

    `errno` is the latest error of the upper file system (0: none since the mount), `since` the time when the
    first one was noticed; `failed` is called then, once. `fsync`, `fdatasync`, `fsyncdir`, `syncfs`, `osync`
    count the sync calls that were answered without syncing: who skips one adds 1.
    """

    __slots__ = (
        "_answer", "errno", "failed", "fdatasync", "fsync", "fsyncdir", "osync", "policy", "probe", "since",
        "syncfs", "volatile",
    )  # fmt: skip

    def __init__(self, volatile: bool, probe: Probe, policy: Policy | None = None) -> None:
        """`probe` is asked on a volatile mount only."""
        self.volatile = volatile
        self.probe = probe
        self.policy = policy or Policy()
        self.failed: Callable[[], None] | None = None
        self.errno = 0
        self._answer = 0
        self.since: float | None = None
        self.fsync = 0
        self.fdatasync = 0
        self.fsyncdir = 0
        self.syncfs = 0
        self.osync = 0

    def get(self) -> int:
        """1: not volatile, really sync; 0: skip, all is well; -errno: the upper file system has lost data.

        Once failed, it stays failed, with the latest errno (or EIO, if the policy says so).
        """
        if not self.volatile:
            return 1
        code = self.probe.check()
        if code and code != self.errno:
            self.note(code)
        # Not `code`: errseq_t repeats after 2**19 errors, and the probe could then look healthy again.
        return self._answer

    def note(self, code: int) -> None:
        """The upper file system has lost data, says somebody who knows."""
        first = self.since is None
        if first:
            self.since = time.time()
        self.errno = code
        self._answer = -self.policy.answer(code)
        if first and self.failed is not None:
            self.failed()

    def omitted(self) -> dict[str, int]:
        """The counters by name."""
        return {name: getattr(self, name) for name in _COUNTERS}
