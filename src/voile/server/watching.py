"""The overlay behind FUSE, telling a probe that watches single files (see inode_probe) which are written.

Only mounts with such a probe are served by this: for all others it costs nothing.
"""

from __future__ import annotations

import os

from voile.fuse import abi
from voile.server.operations import OverlayOperations
from voile.volatile.inode_probe import InodeProbe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.fuse.requests import Request, SetattrIn
    from voile.overlay.inode import Node
    from voile.overlay.params import Params
    from voile.overlay.super import Overlay
    from voile.server.files import File


class WatchingOperations(OverlayOperations):
    """As OverlayOperations. Copy-up tells the probe itself, of the new file."""

    def __init__(self, overlay: Overlay, params: Params) -> None:
        super().__init__(overlay, params)
        assert isinstance(overlay.sync.probe, InodeProbe)
        self._probe = overlay.sync.probe
        # Files that are open for writing: the probe's key, by handle.
        self._written: dict[int, int] = {}
        self._creating = False

    def create(self, req: Request, name: bytes, flags: int, mode: int, umask: int, open_flags: int) -> bytes:
        self._creating = True
        try:
            return super().create(req, name, flags, mode, umask, open_flags)
        finally:
            self._creating = False

    def tmpfile(self, req: Request, name: bytes, flags: int, mode: int, umask: int, open_flags: int) -> bytes:
        self._creating = True
        try:
            return super().tmpfile(req, name, flags, mode, umask, open_flags)
        finally:
            self._creating = False

    def open(self, req: Request, flags: int, open_flags: int) -> bytes:
        self._creating = False  # also from `create`, of a file that is there after all
        return super().open(req, flags, open_flags)

    def _opened(self, file: File, fresh: bool) -> tuple[int, int, int]:
        if file.flags & os.O_ACCMODE == os.O_RDONLY and not file.flags & os.O_TRUNC:
            return super()._opened(file, fresh)
        # Before the first write, or its error could be taken for an older one.
        key = self._watch(file.node, self._creating)
        opened = super()._opened(file, fresh)
        self._probe.opened(key)
        self._written[opened[0]] = key
        return opened

    def release(self, req: Request, fh: int, flags: int, release_flags: int, lock_owner: int) -> None:
        super().release(req, fh, flags, release_flags, lock_owner)
        key = self._written.pop(fh, None)
        if key is not None:
            self._probe.closed(key)

    def setattr(self, req: Request, args: SetattrIn) -> bytes:
        if args.valid & abi.FATTR_SIZE and args.fh is None:
            node = self.node(req.nodeid)
            if node.is_upper:  # else it is copied up
                self._watch(node, False)
        return super().setattr(req, args)

    def _watch(self, node: Node, born: bool) -> int:
        try:
            fd = self.overlay.open_real(node, os.O_RDONLY)
        except PermissionError:
            fd = self.overlay.open_real(node, os.O_WRONLY)
        return self._probe.adopt(fd, born)
