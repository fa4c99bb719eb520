"""What becomes of a mount when its upper file system has lost data, or when somebody shuts it down."""

from __future__ import annotations

import os
from _thread import start_new_thread
from errno import EINVAL, EPERM

from voile.fuse import replies
from voile.fuse.device import Device
from voile.server.control import Late
from voile.server.files import FileOperations
from voile.server.poll import Poll
from voile.volatile import policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from voile.fuse.requests import Deferred, Request
    from voile.overlay.params import Params
    from voile.overlay.super import Overlay
    from voile.server.shutdown import Shutdown


class FailureOperations(FileOperations):
    """`errors=`, the poll, the log, and shutting down."""

    def __init__(self, overlay: Overlay, params: Params) -> None:
        super().__init__(overlay, params)
        self.shutdown: Shutdown | None = None
        # Whether errors=remount-ro has come into force.
        self.read_only = not overlay.writable
        overlay.sync.failed = self._failed
        if overlay.volatile and params.errors != policy.CONTINUE:
            # Not when it happens: this program may lie on the disk that fails.
            from voile.server import gate, shutdown  # noqa: F401
        self.poll = Poll(params.poll if overlay.volatile else 0, self._look, Device.loop.__code__)

    def _look(self, quiet: bool) -> None:
        """Told by the poll; `quiet`: no request is being worked on."""
        if self.overlay.sync.get():
            self.poll.stop()  # there is no way back
        elif quiet:
            self.overlay.sync.probe.tidy()

    def _failed(self) -> None:
        """Told by the sync status, once, that data has been lost."""
        if self.shutdown is not None:
            return
        errors = self.overlay.sync.policy.errors
        if errors == policy.REMOUNT_RO:
            from voile.server import gate

            self.read_only = True
            gate.read_only(self.session)
        elif errors == policy.SHUTDOWN:
            start_new_thread(self._begin_shutdown().sweep, ())
        self._log(errors)

    def regate(self) -> None:
        """Let through what has waited, as far as the mount is still open."""
        from voile.server import gate

        if self.shutdown is None:
            (gate.read_only if self.read_only else gate.open_all)(self.session)

    def _log(self, errors: str) -> None:
        import sys

        sync = self.overlay.sync
        try:
            from voile.server.log import Log

            line = policy.message(sync.errno, sync.since or 0, self._upper_file_system(), errors)
            # The system log says itself who speaks.
            print(line if isinstance(sys.stderr, Log) else f"voile: {line}", file=sys.stderr, flush=True)
        except Exception:
            pass  # nobody listens, or what is needed for it lies on the disk that fails

    def _upper_file_system(self) -> str:
        from voile.linux import mountinfo

        upper = self.params.upperdir or b""
        name = f"the file system of '{os.fsdecode(upper)}'"
        try:
            # The main thread may have left the namespace that the directories are in.
            found = mountinfo.containing(upper, self.seen.mountinfo) if self.seen is not None else None
        except OSError:
            found = None
        return name if found is None else f"{name} ({os.fsdecode(found.fstype + b' on ' + found.source)})"

    def _begin_shutdown(self) -> Shutdown:
        """From now on all requests fail; the rest is up to the caller. In any thread."""
        from voile.server.shutdown import Shutdown

        if self.shutdown is None:
            self.shutdown = Shutdown(self)
        self.shutdown.begin()
        return self.shutdown

    def ioctl_shutdown(self, req: Request, address: int) -> Deferred:
        """Answers FS_IOC_SHUTDOWN, whose argument is at `address` of the caller's memory."""
        from voile.server import shutdown

        self._may_shut_down(req.uid, req.pid)
        work = self._shut_down(shutdown.flags_of(req.pid, address))
        return self.later(req, work, lambda _: replies.ioctl_out(b""))

    def shut_down(self, uid: int, pid: int) -> Late:
        """What `voile shutdown` asks for; returns what does the rest, in another thread.

        Raises OSError EPERM.
        """
        from voile.server import shutdown

        self._may_shut_down(uid, pid)
        return Late(self._shut_down(shutdown.NOLOGFLUSH))

    def _may_shut_down(self, uid: int, pid: int) -> None:
        from voile.server import shutdown

        if not shutdown.permitted(uid, pid, os.geteuid()):
            raise OSError(EPERM, os.strerror(EPERM))

    def _shut_down(self, flags: int) -> Callable[[], dict[str, Any]]:
        from voile.server import shutdown

        if flags not in (shutdown.DEFAULT, shutdown.LOGFLUSH, shutdown.NOLOGFLUSH):
            raise OSError(EINVAL, os.strerror(EINVAL))
        self.poll.stop()
        # A volatile mount has promised to sync nothing; a journal, which LOGFLUSH means, we have none.
        sync_first = flags == shutdown.DEFAULT and self.overlay.writable and not self.overlay.volatile
        fd = self.upper_fs_fd() if sync_first else -1
        if not sync_first:
            self._begin_shutdown()

        def work() -> dict[str, Any]:
            code = self.lost.sync(fd) if sync_first else 0
            self._begin_shutdown().sweep()
            if code:
                raise OSError(code, os.strerror(code))
            return {}

        return work
