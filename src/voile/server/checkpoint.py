"""The one place where a volatile mount syncs: `voile checkpoint`, and `voile umount --sync`.

Theory of operation.  Both sync the whole upper file system, by syncfs(2) on a descriptor that is open since
the mount: its cursor tells of every error since then, and the probe is asked as well.  Walking the upper
directory and syncing single files is not done: nobody knows which ones are dirty.

A checkpoint syncs twice.  The first time nobody is kept waiting, and nearly everything is written.  For the
second, changes are parked (see gate); readers go on.

Before an unmount the mount is *frozen*: changes are parked, nobody may have a file open for writing, all is
synced, and the marker of the volatile mount is removed.  If the unmount fails, it is *thawed*: the marker
first, then the changes.  So whenever the marker is not there, the upper is complete, whatever is killed when.
The record says so only after the unmount (see volatile.record): until then it says "mounted".
Who froze and ends without an unmount leaves nobody waiting: that is watched.
"""

from __future__ import annotations

import os
import time
from errno import EBUSY, EIO
from select import POLLERR, POLLIN, poll

from voile.linux import files
from voile.server import gate
from voile.server.control import Late
from voile.volatile import marker, policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from voile.server.failure import FailureOperations

    Answer = dict[str, Any]

# How long a mount stays frozen for somebody whose end cannot be seen from here.
_PATIENCE_MS = 30_000


class Checkpoint:
    """Of the mount that `served` answers.

    `frozen`: everything is on the disk, and nothing changes until it is thawed or unmounted.
    """

    def __init__(self, served: FailureOperations) -> None:
        self._served = served
        # Changes that wait, since when, and since which freezing or checkpoint.
        self._parked: list[Callable[[int], None]] | None = None
        self._since = 0.0
        self._number = 0
        self._recording = False
        self.frozen = False

    @property
    def parked(self) -> list[Callable[[int], None]] | None:
        """Where changes have to wait; None: they need not."""
        return self._parked

    def take(self) -> Late:
        """Have everything up to now on the disk. Raises OSError EBUSY while another one is taken."""
        self._check_idle()
        return Late(self._sync, self._again)

    def freeze(self, pid: int) -> Late:
        """Get ready for an unmount by the process `pid` (0: unknown).

        Raises OSError EBUSY: a file is open for writing, or being copied up, or as `take`.
        """
        self._check_idle()
        served = self._served
        if served.pool.outstanding or any(
            file.flags & os.O_ACCMODE != os.O_RDONLY for file in served.files.values()
        ):
            raise OSError(EBUSY, os.strerror(EBUSY))
        self._park()
        return Late(self._sync, lambda code: self._freeze(code, pid))

    def thaw(self) -> Answer:
        """There was no unmount: go on."""
        if self.frozen and self._served.overlay.work_fd >= 0:
            self.frozen = False
            self._served.overlay.creds.mounter()
            marker.create_volatile(self._served.overlay.work_fd)
            self._unpark()
        return {}

    def _check_idle(self) -> None:
        if self._served.shutdown is not None:
            raise OSError(EIO, "shut down")
        if self._parked is not None or self._recording:
            raise OSError(EBUSY, os.strerror(EBUSY))

    def _sync(self) -> int:
        """In a thread: the errno, or 0."""
        try:
            files.syncfs(self._served.upper_fs_fd())
        except OSError as error:
            return error.errno or EIO
        return 0

    def _verdict(self, code: int) -> int:
        """What a sync and the probe say together: an errno, or 0."""
        sync = self._served.overlay.sync
        if code:
            sync.note(code)
        return -sync.get()

    def _again(self, code: int) -> Answer | Late:
        code = self._verdict(code)
        if code:
            return self._failed(code)
        self._check_idle()
        self._park()
        return Late(self._sync, self._finish)

    def _finish(self, code: int) -> Answer | Late:
        self._unpark()
        code = self._verdict(code)
        return self._failed(code) if code else self._record()

    def _freeze(self, code: int, pid: int) -> Answer | Late:
        code = self._verdict(code)
        if code:
            self._unpark()
            return self._failed(code)
        try:
            self._served.overlay.creds.mounter()
            marker.remove_volatile(self._served.overlay.work_fd)
        except OSError:
            self._unpark()
            raise
        self.frozen = True
        self._guard(pid)
        return self._record()

    def _record(self) -> Answer | Late:
        """Write the checkpoint down, on the disk as well. Raises OSError."""
        overlay = self._served.overlay
        stamp = policy.stamp(self._since)  # what came later may be on the disk as well, or not
        answer: Answer = {"error": None, "checkpoint": stamp}
        if overlay.continuity is None:
            return answer
        overlay.creds.mounter()
        before = overlay.continuity.now.checkpoint
        update = overlay.continuity.update(stamp)
        self._recording = True

        def write() -> OSError | None:
            try:
                update.commit(durable=True)
            except OSError as error:
                return error
            finally:
                update.close()
            return None

        def written(error: OSError | None) -> Answer:
            self._recording = False
            if error is not None:
                if overlay.continuity is not None:
                    overlay.continuity.now.checkpoint = before
                raise error
            return answer

        return Late(write, written)

    def _failed(self, code: int) -> Answer:
        return {"error": policy.describe(code, self._served.overlay.sync.since)}

    def _park(self) -> None:
        self._number += 1
        self._since = time.time()
        self._parked = []
        gate.park(self._served.session, self._parked)

    def _unpark(self) -> None:
        waiters, self._parked = self._parked, None
        self._served.regate()
        for waiter in waiters or ():
            waiter(0)

    def _guard(self, pid: int) -> None:
        """Thaw when the process ends and the mount is still there."""
        number, device = self._number, self._served.session.fd
        try:
            caller = os.pidfd_open(pid)
        except (OSError, ValueError):
            caller = -1

        def wait() -> None:
            poller = poll()
            if caller >= 0:
                poller.register(caller, POLLIN)
            poller.register(device, 0)  # POLLERR when the mount is gone
            ready = poller.poll(None if caller >= 0 else _PATIENCE_MS)
            if caller >= 0:
                os.close(caller)
            if any(event & POLLERR for _fd, event in ready):
                raise ConnectionAbortedError

        def over(_result: None, error: BaseException | None) -> None:
            if error is None and number == self._number:
                self.thaw()

        self._served.pool.submit(wait, over)
