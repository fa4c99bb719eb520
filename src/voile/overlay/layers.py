"""Layers, and the directories in them.

Theory of operation
-------------------
A `Layer` is one directory tree given at mount.  A `RealDir` is one directory of
one layer; it knows its parent and its name, not its path, and opens its O_PATH
descriptor on demand, **one component at a time and never through a symlink**, so
nothing in a hostile layer can lead out of it.  Every access to an object of a
layer is a `RealDir` descriptor and one name.

Descriptors are a cache: `FdCache` closes the oldest when there are too many, but
only between two requests and before a copy-up (`FdCache.trim`), so that no operation
loses a descriptor it is using.  Directories that were removed while somebody still uses
them are pinned: they could not be found again by name.
"""

from __future__ import annotations

import os
from itertools import islice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DIR_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
DIR_READ = (DIR_FLAGS & ~os.O_PATH) | os.O_RDONLY


class Layer:
    """One layer of the union.

    `index` is 0 for the upper directory and counts lower layers from 1, top to
    bottom.  `fsid` numbers the file systems below the mount, the lower ones from 1
    and the upper's 0, as `ovl_get_fsid` does.
    """

    __slots__ = ("index", "path", "fsid", "dev", "uuid", "root", "mount_fd", "decodes", "xwhiteouts")

    def __init__(self, index: int, path: bytes, root_fd: int, fsid: int, mount_fd: int) -> None:
        self.index = index
        self.path = path
        self.fsid = fsid
        self.dev = os.fstat(root_fd).st_dev
        self.uuid: bytes | None = None
        self.root = RealDir(self, None, b"")
        self.root.fd = root_fd
        self.mount_fd = mount_fd
        # Whether open_by_handle_at() works here (it needs CAP_DAC_READ_SEARCH).
        self.decodes = True
        # Whether a directory marked opaque=x has been met here: only then listings look for whiteouts that
        # are attributes (ovl_layer_set_xwhiteouts).
        self.xwhiteouts = False

    def close(self) -> None:
        """Closes the root; `mount_fd` belongs to the file system."""
        if self.root.fd >= 0:
            os.close(self.root.fd)
            self.root.fd = -1


class RealDir:
    """A directory of a layer: a parent, a name, and now and then a descriptor."""

    __slots__ = ("layer", "parent", "name", "fd", "pinned", "aufs", "impure")

    def __init__(self, layer: Layer, parent: RealDir | None, name: bytes) -> None:
        self.layer = layer
        self.parent = parent
        self.name = name
        self.fd = -1
        self.pinned = False
        # What the AUFS whiteouts in it hide, once somebody has asked (see aufs.hidden_names).
        self.aufs: frozenset[bytes] | None = None
        # Of a lower one, once asked: whether it was an upper one that holds what was copied up.
        self.impure: bool | None = None


class FdCache:
    """Opens the descriptors of `RealDir` objects and bounds their number.

    Args:
        limit: how many descriptors may stay open between two requests.
    """

    __slots__ = ("limit", "full", "_open")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # More than that are open. An attribute, because every request on a directory looks.
        self.full = False
        # Oldest first. What is closed must go from here at once, or its memory stays in use.
        self._open: dict[RealDir, None] = {}

    def fd(self, real: RealDir) -> int:
        """The O_PATH descriptor of `real`.

        Raises:
            OSError: as openat(2), where the directory is gone.
        """
        if real.fd >= 0:
            return real.fd
        chain = [real]
        above = real.parent
        while above is not None and above.fd < 0:
            chain.append(above)
            above = above.parent
        passed: RealDir | None = None
        for each in reversed(chain):
            assert each.parent is not None, "a layer's root is always open"
            self._add(each, os.open(each.name, DIR_FLAGS, dir_fd=each.parent.fd))
            if passed is not None and self.full:
                self._close(passed)  # a tree may be deeper than there are descriptors
            passed = each
        return real.fd

    def adopt(self, real: RealDir, fd: int) -> None:
        """Takes an already open O_PATH descriptor as that of `real`."""
        if real.fd >= 0:
            os.close(fd)
            return
        self._add(real, fd)

    def _add(self, real: RealDir, fd: int) -> None:
        real.fd = fd
        self._open[real] = None
        self.full = len(self._open) > self.limit

    def trim(self) -> None:
        """Closes the oldest descriptors down to three quarters of the limit."""
        excess = len(self._open) - self.limit * 3 // 4
        for real in list(islice(self._open, max(excess, 0))):
            del self._open[real]
            if not real.pinned:
                self._close(real)
        self.full = len(self._open) > self.limit

    def pin(self, real: RealDir) -> None:
        """Opens `real` and keeps it so until `drop`: its name is about to go."""
        self.fd(real)
        real.pinned = True

    def drop(self, reals: Sequence[RealDir]) -> None:
        """Closes directories nobody needs any more."""
        for real in reals:
            if real.parent is not None:
                self._close(real)

    def close(self) -> None:
        """Closes everything at unmount."""
        for real in list(self._open):
            self._close(real)

    def _close(self, real: RealDir) -> None:
        if real.fd >= 0:
            os.close(real.fd)
            real.fd = -1
            self._open.pop(real, None)
            self.full = len(self._open) > self.limit
