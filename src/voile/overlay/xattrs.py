"""Extended attributes of the overlay format, and plain ones of the layers.

Theory of operation
-------------------
The kernel keeps its private data in ``trusted.overlay.NAME``, or in
``user.overlay.NAME`` when mounted with ``userxattr`` (fs/overlayfs/overlayfs.h,
``ovl_xattr_table``).  Callers of the mount never see these: a name that begins
with the private prefix is *escaped* by doubling ``overlay.``, so that an overlay
can be a layer of another overlay (fs/overlayfs/xattrs.c).

Objects are addressed by a directory fd and one name, never followed.  Where no system
call takes these (before Linux 6.13), they become a path below ``/proc/self/fd``.
"""

from __future__ import annotations

import os
from errno import EINVAL, ENODATA, EOPNOTSUPP

from voile.linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

ACL_ACCESS = b"system.posix_acl_access"
ACL_DEFAULT = b"system.posix_acl_default"
CAPABILITY = b"security.capability"
# The shortest value of `metacopy` that is not empty (struct ovl_metacopy without a digest).
METACOPY_MIN = 4

# Errors that mean "no such attribute here": the object has none, or its file
# system knows no attributes at all (ovl_path_getxattr treats both the same).
_ABSENT = (ENODATA, EOPNOTSUPP)


class Names:
    """The spelling of every private attribute for one mount."""

    __slots__ = (
        "prefix",
        "escaped",
        "opaque",
        "redirect",
        "origin",
        "impure",
        "nlink",
        "upper",
        "metacopy",
        "whiteout",
        "protattr",
    )

    def __init__(self, userxattr: bool) -> None:
        self.prefix = b"user.overlay." if userxattr else b"trusted.overlay."
        self.escaped = self.prefix + b"overlay."
        self.opaque = self.prefix + b"opaque"
        self.redirect = self.prefix + b"redirect"
        self.origin = self.prefix + b"origin"
        self.impure = self.prefix + b"impure"
        self.nlink = self.prefix + b"nlink"
        self.upper = self.prefix + b"upper"
        self.metacopy = self.prefix + b"metacopy"
        self.whiteout = self.prefix + b"whiteout"
        self.protattr = self.prefix + b"protattr"

    def to_layer(self, name: bytes) -> bytes:
        """The name on a layer for the name a caller of the mount uses.

        Raises:
            OSError: EINVAL for the bare prefix, as for every attribute without a name.
        """
        if name == self.prefix:
            raise OSError(EINVAL, "an attribute name is missing")
        if name.startswith(self.prefix):
            return self.escaped + name[len(self.prefix) :]
        return name

    def to_caller(self, names: Iterable[bytes]) -> list[bytes]:
        """What a caller of the mount sees of the names found on a layer."""
        visible = []
        for name in names:
            if name.startswith(self.prefix):
                if not name.startswith(self.escaped):
                    continue
                name = self.prefix + name[len(self.escaped) :]
            visible.append(name)
        return visible


def proc_path(dir_fd: int, name: bytes) -> bytes:
    """A path for the object `name` in the directory `dir_fd`."""
    return b"/proc/self/fd/%d/%s" % (dir_fd, name)


def proc_fd(fd: int) -> bytes:
    """A path for the object that `fd` (also an O_PATH one) refers to."""
    return b"/proc/self/fd/%d" % fd


def listing(path: bytes, follow: bool = False) -> list[bytes]:
    """All attribute names of `path`; none where the file system has no attributes."""
    try:
        return [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=follow)]
    except OSError as exc:
        if exc.errno in _ABSENT:
            return []
        raise


def listing_at(dir_fd: int, name: bytes, flags: int = files.AT_SYMLINK_NOFOLLOW) -> list[bytes]:
    """As `listing`, for `name` in a directory."""
    try:
        return files.listxattrat(dir_fd, name, flags)
    except OSError as exc:
        if exc.errno in _ABSENT:
            return []
        raise


def get_at(
    dir_fd: int, name: bytes, attribute: bytes, flags: int = files.AT_SYMLINK_NOFOLLOW
) -> bytes | None:
    """As `get`, for `name` in a directory."""
    try:
        return files.getxattrat(dir_fd, name, attribute, flags)
    except OSError as exc:
        if exc.errno in _ABSENT:
            return None
        raise


def get(path: bytes, name: bytes, follow: bool = False) -> bytes | None:
    """The value of one attribute, or None where it is absent."""
    try:
        return os.getxattr(path, name, follow_symlinks=follow)
    except OSError as exc:
        if exc.errno in _ABSENT:
            return None
        raise
