"""The overlay behind FUSE: all operations, and the answers to control questions."""

from __future__ import annotations

import os
import time
from errno import EIO, EROFS

from voile.fuse import abi, replies
from voile.overlay.params import Params
from voile.overlay.super import Overlay
from voile.server.control import FS_IOC_SHUTDOWN, Control
from voile.server.dirs import DirOperations
from voile.server.failure import FailureOperations
from voile.server.ioctl import CHANGING_FILE_ATTRIBUTES, FILE_ATTRIBUTES, file_attributes
from voile.server.names import NameOperations
from voile.volatile import policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from voile.fuse.negotiation import Negotiated
    from voile.fuse.requests import Request
    from voile.volatile.probe import Probe


class OverlayOperations(NameOperations, FailureOperations, DirOperations):
    """Everything a mount answers."""

    def __init__(self, overlay: Overlay, params: Params) -> None:
        super().__init__(overlay, params)
        self.control = Control(self, os.geteuid())
        # What a sync at the end of a mount that is not volatile said.
        self.close_error: OSError | None = None

    def init(self, negotiated: Negotiated) -> None:
        super().init(negotiated)
        self.use_passthrough(self.params.passthrough and negotiated.passthrough)

    def destroy(self) -> None:
        """Lets go of the layers before umount(2) returns (on fuseblk it waits for this).

        Who unmounts the overlay may want to unmount what lies below right afterwards.
        """
        self.poll.stop()
        try:
            self.overlay.close()
        except OSError as exc:
            self.close_error = exc

    def ioctl(
        self, req: Request, fh: int, flags: int, cmd: int, arg: int, data: bytes, out_size: int
    ) -> bytes:
        if cmd in FILE_ATTRIBUTES:
            return self.file_attributes(req, cmd, data, out_size)
        if cmd == FS_IOC_SHUTDOWN:
            return self.ioctl_shutdown(req, arg)
        answer = self.control.handle(req.uid, cmd, data, req.pid)
        return answer if isinstance(answer, bytes) else self.later(req, answer, replies.ioctl_out)

    def file_attributes(self, req: Request, cmd: int, data: bytes, out_size: int) -> bytes:
        """lsattr(1), chattr(1): the gate does not know these from control questions."""
        if self.shutdown is not None:
            raise OSError(EIO, "shut down")
        if self.read_only and cmd in CHANGING_FILE_ATTRIBUTES:
            raise OSError(EROFS, os.strerror(EROFS))
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
            "error": _error(sync.errno, sync.since) if sync.errno else None,
            "errors": sync.policy.errors if overlay.volatile else None,
            "error_code": sync.policy.error_code if overlay.volatile else None,
            "read_only": self.read_only,
            "probe": sync.probe.kind,
            **_watched(sync.probe),
            "poll_s": self.poll.seconds or None,
            "syncfs": self._syncfs_quality(),
            "passthrough": self.passthrough,
            "omitted": sync.omitted(),
            "uptime_s": round(time.monotonic() - self.started, 3),
        }

    def _state(self) -> str:
        if self.shutdown is not None:
            return "shutdown"
        if self.overlay.sync.errno:
            return "failed"
        return "ok" if self.overlay.writable else "readonly"

    def sync(self) -> dict[str, Any] | Callable[[], dict[str, Any]]:
        """What `voile sync` asks: 0 or the error, without a sync on a volatile mount.

        Raises OSError EIO after a shutdown, like everything else then.
        """
        if self.shutdown is not None:
            raise OSError(EIO, "shut down")
        sync = self.overlay.sync
        status = sync.get()
        if status <= 0:
            return {"synced": False, "error": _error(-status, sync.since) if status else None}
        if not self.overlay.writable:
            return {"synced": False, "error": None}
        fd, lost = self.upper_fs_fd(), self.lost

        def work() -> dict[str, Any]:
            code = lost.sync(fd)
            return {"synced": not code, "error": _error(code, None) if code else None}

        return work

    def _syncfs_quality(self) -> str:
        """Whether syncfs(2) on the mount reaches us at all."""
        asked = self.fuse_type == "fuseblk"
        if self.negotiated is not None and self.negotiated.flags & abi.HAS_SYNCFS:
            asked = True
        return "exact" if asked and self.overlay.writable else "none"


def _text(path: bytes | None) -> str | None:
    return None if path is None else os.fsdecode(path)


def _watched(probe: Probe) -> dict[str, int | None]:
    """Files that a probe of single ones watches, and how many it had to give up."""
    if probe.kind != "inode":
        return {"watched": None, "not_watched": None}
    from voile.volatile.inode_probe import InodeProbe

    assert isinstance(probe, InodeProbe)
    return {"watched": len(probe), "not_watched": probe.dropped}


def _error(code: int, since: float | None) -> dict[str, Any]:
    from errno import errorcode

    stamp = None if since is None else policy.stamp(since)
    return {"errno": code, "name": errorcode.get(code, str(code)), "since": stamp}
