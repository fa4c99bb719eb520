"""The overlay behind FUSE: all operations, and the answers to control questions."""

from __future__ import annotations

import os
import time
from errno import EIO, ENODATA, EOPNOTSUPP, EROFS

from voile.fuse import abi, replies
from voile.fuse.requests import DEFERRED
from voile.overlay.params import Params
from voile.overlay.super import Overlay
from voile.server.base import Waiting
from voile.server.control import FS_IOC_SHUTDOWN, Control, Late, one_piece
from voile.server.dirs import DirOperations
from voile.server.failure import FailureOperations
from voile.server.ioctl import CHANGING_FILE_ATTRIBUTES, FILE_ATTRIBUTES, file_attributes
from voile.server.names import NameOperations
from voile.volatile import policy, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from voile.fuse.negotiation import Negotiated
    from voile.fuse.requests import Deferred, Request
    from voile.server.canary import Canary
    from voile.server.checkpoint import Checkpoint
    from voile.volatile.probe import Probe


class OverlayOperations(NameOperations, FailureOperations, DirOperations):
    """Everything a mount answers."""

    def __init__(self, overlay: Overlay, params: Params) -> None:
        super().__init__(overlay, params)
        self.checkpoint: Checkpoint | None = None
        # Seconds that real syncs take.
        self.calibration: dict[str, float] | None = None
        self.control = Control(self, os.geteuid())
        # Where syncfs(2) reaches us only in a roundabout way.
        self.canary: Canary | None = None
        self._hatched = False
        # What a sync at the end of a mount that is not volatile said.
        self.close_error: OSError | None = None

    def init(self, negotiated: Negotiated) -> None:
        super().init(negotiated)
        self.use_passthrough(self.params.passthrough and negotiated.passthrough)

    def unexpected(self, req: Request, raw: memoryview, exc: BaseException) -> int | None:
        """What the kernel asks of files that are not in the union: attributes, say."""
        if self.canary is not None and req.nodeid >= self.canary.first:
            return ENODATA
        return super().unexpected(req, raw, exc)

    def hatch(self, target: bytes, device: tuple[int, int] | None) -> None:
        """Makes syncfs(2) ask us where it does not. In the main thread.

        `target` and `device`: where the mount is seen, and its number; None: nowhere.
        Raises OSError when it cannot be done, and was asked for.
        """
        self._hatched = True
        if not self._needs_canary():
            return
        if device is not None:
            from voile.server.canary import Canary

            self.canary = Canary(self, target, device)
            self.canary.start()
        if self.params.syncfs == policy.CANARY and not (self.canary and self.canary.working):
            raise OSError(EOPNOTSUPP, "option 'syncfs=canary': it does not work here", target)

    def _needs_canary(self) -> bool:
        return self.overlay.volatile and not self._is_asked() and self.params.syncfs != policy.NONE

    @property
    def _opens_directories(self) -> bool:
        # The canary hears who opens something.
        wanted = self._needs_canary() if not self._hatched else self.canary is not None
        return wanted or super()._opens_directories

    def dismiss_canary(self) -> dict[str, Any] | Late:
        """What a remount asks for: that nothing is open for writing."""
        if self.canary is None:
            return {}
        return Late(self.canary.dismiss(), lambda _: {})

    def new_canary(self) -> dict[str, Any] | Late:
        """What it asks for when the mount is writable (again)."""
        canary = self.canary
        if canary is None or canary.working or self.shutdown is not None:
            return {}

        def finish(_: None) -> dict[str, Any]:
            canary.start()
            return {}

        return Late(lambda: None, finish)

    def destroy(self) -> None:
        """Lets go of the layers before umount(2) returns (on fuseblk it waits for this).

        Who unmounts the overlay may want to unmount what lies below right afterwards.
        """
        self.poll.stop()
        try:
            self.overlay.close(self._how_it_ended())
        except OSError as exc:
            self.close_error = exc

    def _how_it_ended(self) -> str:
        """For the record: whether something that was written to the mount may not have reached us.

        Only pages of shared mappings are written late: when the file is closed at the latest (fs/fuse/file.c,
        fuse_vma_close), and with DESTROY all are. Without it, an unmount cannot be told from an abort, which
        throws them away; but who has nothing open for writing has nothing mapped for it. (A RELEASE that the
        unmount has overtaken counts as open.)
        """
        if self.shutdown is not None:
            return record.SHUT_DOWN
        if self.checkpoint is not None and self.checkpoint.frozen:
            return record.SYNCED
        if self.session.said_goodbye or (self.session.gone and not self.caches_writes()):
            return record.UNMOUNTED
        return record.MOUNTED

    def ioctl(
        self, req: Request, fh: int, flags: int, cmd: int, arg: int, data: bytes, out_size: int
    ) -> bytes:
        if cmd in FILE_ATTRIBUTES:
            return self.file_attributes(req, cmd, data, out_size)
        if cmd == FS_IOC_SHUTDOWN:
            return self.ioctl_shutdown(req, arg)
        answer = self.control.handle(req.uid, cmd, data, req.pid)
        return answer if isinstance(answer, bytes) else self._answer_late(req.unique, answer)

    def _answer_late(self, unique: int, late: Late) -> Deferred:
        """Answers a control question in as many steps as it takes."""

        def done(result: Any, exc: BaseException | None) -> None:
            try:
                if exc is not None:
                    raise exc
                answer = late.finish(result)
            except OSError as error:
                self.session.fail(unique, error.errno or EIO)
                return
            if isinstance(answer, Late):
                self._answer_late(unique, answer)
            else:
                self.session.reply(unique, replies.ioctl_out(one_piece(answer)))

        self.pool.submit(late.work, done)
        return DEFERRED

    def file_attributes(self, req: Request, cmd: int, data: bytes, out_size: int) -> bytes:
        """lsattr(1), chattr(1): the gate does not know these from control questions."""
        if self.shutdown is not None:
            raise OSError(EIO, "shut down")
        if cmd in CHANGING_FILE_ATTRIBUTES:
            if self.read_only:
                raise OSError(EROFS, os.strerror(EROFS))
            if self.checkpoint is not None and self.checkpoint.parked is not None:
                raise Waiting(self.checkpoint.parked)
        return file_attributes(self.overlay, self.node(req.nodeid), cmd, data, out_size)

    def status(self) -> dict[str, Any]:
        """What `voile status` shows, but for the mount point, which only the asker knows."""
        overlay, params = self.overlay, self.params
        sync = overlay.sync
        if self.shutdown is None:
            sync.get()
        return {
            "lowerdir": [os.fsdecode(path) for path in params.lowerdir],
            "datadir": [os.fsdecode(path) for path in params.datadir],
            "upperdir": _text(params.upperdir),
            "workdir": _text(params.workdir),
            "pid": os.getpid(),
            "volatile": overlay.volatile,
            "metacopy": overlay.metacopy,
            "state": self._state(),
            "error": policy.describe(sync.errno, sync.since) if sync.errno else None,
            "errors": sync.policy.errors if overlay.volatile else None,
            "error_code": sync.policy.error_code if overlay.volatile else None,
            "read_only": self.read_only,
            "probe": sync.probe.kind,
            **_watched(sync.probe),
            "checkpoint": self._last_checkpoint(),
            "reused": self.overlay.continuity is not None and self.overlay.continuity.reused,
            "hold": self.overlay.volatile and params.hold,
            "poll_s": self.poll.seconds or None,
            "syncfs": self._syncfs_quality(),
            "passthrough": self.passthrough,
            "omitted": sync.omitted(),
            "calibration": self.calibration,
            "saved_s": self._saved(),
            "uptime_s": round(time.monotonic() - self.started, 3),
        }

    def _state(self) -> str:
        if self.shutdown is not None:
            return "shutdown"
        if self.overlay.sync.errno:
            return "failed"
        return "ok" if self.overlay.writable else "readonly"

    def _last_checkpoint(self) -> str | None:
        continuity = self.overlay.continuity
        return continuity.checkpoint if continuity is not None and self.overlay.volatile else None

    def sync(self) -> dict[str, Any] | Late:
        """What `voile sync` asks: 0 or the error, without a sync on a volatile mount.

        Raises OSError EIO after a shutdown, like everything else then.
        """
        if self.shutdown is not None:
            raise OSError(EIO, "shut down")
        sync = self.overlay.sync
        status = sync.get()
        if status <= 0:
            return {"synced": False, "error": policy.describe(-status, sync.since) if status else None}
        if not self.overlay.writable:
            return {"synced": False, "error": None}
        fd, lost = self.upper_fs_fd(), self.lost

        def work() -> dict[str, Any]:
            code = lost.sync(fd)
            return {"synced": not code, "error": policy.describe(code, None) if code else None}

        return Late(work)

    def take_checkpoint(self) -> dict[str, Any] | Late:
        """What `voile checkpoint` asks for. A mount that is not volatile is synced."""
        return self._checkpoint().take() if self.overlay.volatile else self.sync()

    def freeze(self, pid: int) -> dict[str, Any] | Late:
        """What `voile umount --sync` asks for first. A mount that is not volatile syncs at the end anyway."""
        return self._checkpoint().freeze(pid) if self.overlay.volatile else {"error": None}

    def thaw(self) -> dict[str, Any]:
        """What it asks for when it could not unmount."""
        return self._checkpoint().thaw() if self.overlay.volatile else {}

    def calibrate(self) -> dict[str, Any] | Late:
        """What `voile status --calibrate` asks for: how long real syncs take."""
        if self.shutdown is not None:
            raise OSError(EIO, "shut down")
        if self.read_only:
            raise OSError(EROFS, os.strerror(EROFS))
        if not self.overlay.volatile:
            return {}
        from voile.server import calibrate

        directory = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.overlay.work_fd)
        name = self.overlay.temp_name()

        def work() -> dict[str, float]:
            try:
                return calibrate.measure(directory, name)
            finally:
                os.close(directory)

        def finish(found: dict[str, float]) -> dict[str, Any]:
            self.calibration = found
            return {}

        return Late(work, finish)

    def _saved(self) -> float | None:
        if self.calibration is None:
            return None
        from voile.server import calibrate

        return round(calibrate.saved(self.overlay.sync.omitted(), self.calibration), 6)

    def _checkpoint(self) -> Checkpoint:
        from voile.server.checkpoint import Checkpoint

        if self.checkpoint is None:
            self.checkpoint = Checkpoint(self)
        return self.checkpoint

    def _syncfs_quality(self) -> str:
        """Whether syncfs(2) on the mount reaches us at all."""
        if not self.overlay.writable:
            return "none"
        if self._is_asked():
            return "exact"
        return "canary" if self.canary is not None and self.canary.working else "none"

    def _is_asked(self) -> bool:
        """Whether the kernel sends a request."""
        agreed = self.negotiated.flags if self.negotiated is not None else 0
        return self.fuse_type == "fuseblk" or bool(agreed & abi.HAS_SYNCFS)


def _text(path: bytes | None) -> str | None:
    return None if path is None else os.fsdecode(path)


def _watched(probe: Probe) -> dict[str, int | None]:
    """Files that a probe of single ones watches, and how many it had to give up."""
    if probe.kind != "inode":
        return {"watched": None, "not_watched": None}
    from voile.volatile.inode_probe import InodeProbe

    assert isinstance(probe, InodeProbe)
    return {"watched": len(probe), "not_watched": probe.dropped}
