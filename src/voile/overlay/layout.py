"""Which directories may be put together, and how they are opened.

Every message is one line with the path in it.  The rules are those of
fs/overlayfs/params.c and super.c; stricter in two points where the kernel only warns or
defers the trouble: an upper file system without extended attributes, and an upper or work
directory inside a lower layer.
"""

from __future__ import annotations

import os
import stat
from errno import EBUSY, EINVAL, ELOOP, ENODATA, ENOTDIR, EOPNOTSUPP, EPERM, EROFS

from voile.linux import fileattr, files, mount
from voile.overlay.layers import DIR_FLAGS
from voile.overlay.params import Params

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_LOWER = 500
_OVERLAYFS_MAGIC = 0x794C7630
_FUSE_MAGIC = 0x65735546


class MountError(OSError):
    """The overlay cannot be mounted as asked: an errno, one line, and the path in question."""


class Place:
    """A directory given by the user: its path, resolved path and identity."""

    __slots__ = ("role", "path", "real", "fd", "key")

    def __init__(self, role: str, path: bytes) -> None:
        self.role = role
        self.path = path
        try:
            self.real = os.path.realpath(path)
            self.fd = os.open(self.real, DIR_FLAGS)
        except OSError as exc:
            code = exc.errno or EINVAL
            reason = "is not a directory" if code == ENOTDIR else os.strerror(code)
            raise MountError(code, f"{role}: {reason}", path) from None
        st = os.fstat(self.fd)
        self.key = (st.st_dev, st.st_ino)

    def ancestors(self) -> Iterable[tuple[int, int]]:
        """The identities of all directories above."""
        path = self.real
        while path != b"/":
            path = os.path.dirname(path)
            st = os.stat(path)
            yield st.st_dev, st.st_ino

    def close(self) -> None:
        """Closes the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Layout:
    """All directories of a mount, checked."""

    __slots__ = ("lowers", "datas", "upper", "work")

    def __init__(self, params: Params) -> None:
        """Opens and checks; creates nothing.

        Raises:
            MountError: with the reason.
        """
        self.lowers: list[Place] = []
        # Data-only layers.
        self.datas: list[Place] = []
        self.upper: Place | None = None
        self.work: Place | None = None
        count = len(params.lowerdir) + len(params.datadir)
        if count > MAX_LOWER:
            message = f"too many lower directories ({count}, limit is {MAX_LOWER})"
            raise MountError(EINVAL, message, (params.lowerdir + params.datadir)[-1])
        try:
            self.lowers.extend(Place("lowerdir", path) for path in params.lowerdir)
            self.datas.extend(Place("lowerdir", path) for path in params.datadir)
            if params.upperdir is not None and params.workdir is not None:
                self.upper = Place("upperdir", params.upperdir)
                self.work = Place("workdir", params.workdir)
                self._check_upper(params, self.upper, self.work)
            self._check_overlap(params)
            for place in (*self.lowers, *([] if self.upper is None else [self.upper])):
                check_case(place)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes all descriptors."""
        for place in (*self.lowers, *self.datas, self.upper, self.work):
            if place is not None:
                place.close()

    def _check_upper(self, params: Params, upper: Place, work: Place) -> None:
        if upper.key[0] != work.key[0]:
            raise MountError(EINVAL, "workdir must be on the same file system as upperdir", work.path)
        if upper.key == work.key or upper.key in work.ancestors() or work.key in upper.ancestors():
            raise MountError(EINVAL, "workdir and upperdir must be separate subtrees", work.path)
        if params.readonly:
            return
        for place in (upper, work):
            if os.fstatvfs(place.fd).f_flag & os.ST_RDONLY:
                raise MountError(EROFS, f"{place.role} is on a read-only file system", place.path)
            if not os.access(b"/proc/self/fd/%d" % place.fd, os.W_OK | os.X_OK, effective_ids=True):
                raise MountError(EPERM, f"{place.role} is not writable", place.path)
        check_xattrs(upper, params.userxattr)
        check_whiteouts(upper, work)

    def _check_overlap(self, params: Params) -> None:
        upper_side = [place for place in (self.upper, self.work) if place is not None]
        roles: dict[tuple[int, int], Place] = {}
        for place in (*upper_side, *self.lowers, *self.datas):
            other = roles.setdefault(place.key, place)
            if other is not place:
                message = f"{place.role} is the same directory as {other.role} '{os.fsdecode(other.path)}'"
                raise MountError(ELOOP, message, place.path)
        hidden = {os.path.realpath(path) for path in params.hidden}
        for place in (*upper_side, *self.lowers, *self.datas):
            if any(place.real == path or place.real.startswith(path + b"/") for path in hidden):
                continue
            for key in place.ancestors():
                other = roles.get(key, place)
                if other is not place and (other.role == "lowerdir" or place.role == "lowerdir"):
                    message = f"{place.role} lies inside {other.role} '{os.fsdecode(other.path)}'"
                    raise MountError(ELOOP, message, place.path)


def check_xattrs(upper: Place, userxattr: bool) -> None:
    """Refuses an upper file system that cannot store what the overlay has to."""
    name = b"user.overlay.opaque" if userxattr else b"trusted.overlay.opaque"
    path = b"/proc/self/fd/%d" % upper.fd
    try:
        try:
            present: bytes | None = os.getxattr(path, name)
        except OSError as exc:
            if exc.errno != ENODATA:
                raise
            present = None
        os.setxattr(path, name, b"y" if present is None else present)
        if present is None:
            os.removexattr(path, name)
    except OSError as exc:
        if exc.errno == EOPNOTSUPP:
            kind = "user" if userxattr else "trusted"
            message = f"upperdir is on a file system without {kind}.* extended attributes"
        elif exc.errno == EPERM and not userxattr:
            message = "trusted.* attributes need root; use the option userxattr"
        else:
            message = f"upperdir: {os.strerror(exc.errno or EINVAL)}"
        raise MountError(exc.errno, message, upper.path) from None


class NoWhiteouts(MountError):
    """The upper file system makes no whiteouts."""


def check_case(place: Place) -> None:
    """Refuses a layer in which names that differ only in case are one.

    The kernel's overlayfs joins such layers (6.18); we, and the kernel's caches of a FUSE mount, tell names
    apart by their bytes.
    """
    try:
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place.fd)
        try:
            flags = fileattr.get_flags(fd)
        finally:
            os.close(fd)
    except OSError:
        return  # a file system without flags, or not ours to read
    if flags & fileattr.FS_CASEFOLD_FL:
        message = f"{place.role} is a case-insensitive directory (chattr +F), which is not supported"
        raise MountError(EINVAL, message, place.path)


def check_whiteouts(upper: Place, work: Place) -> None:
    """Refuses an upper file system that makes no whiteouts: another overlay, and most others of FUSE.

    The kernel refuses all of these (`ovl_mount_dir_check`); what can hold an upper, voile takes.
    """
    if files.statfs_type(upper.fd) not in (_OVERLAYFS_MAGIC, _FUSE_MAGIC):
        return
    name = b"#whiteout"
    try:
        try:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=work.fd)
        except FileExistsError:
            pass  # left by a mount that was killed
        os.unlink(name, dir_fd=work.fd)
    except OSError:
        message = "upperdir is on a file system without whiteouts (another overlay?)"
        raise NoWhiteouts(EINVAL, message, upper.path) from None


def private_tree(place: Place) -> int:
    """A descriptor of a lower layer's directory in a mount of our own, without what is mounted below.

    As clone_private_mount() in the kernel: the layer cannot be written to through it,
    reading sets no access times.  Without the privilege for it, the directory as it is.
    """
    noatime = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOATIME
    # The access-time setting may be locked (in a user namespace): then without it.
    return _clone(place.fd, (noatime, mount.MOUNT_ATTR__ATIME), (mount.MOUNT_ATTR_RDONLY, 0))


def private_pair(upper: Place, work: Place, params: Params) -> tuple[int, int, int]:
    """Upper and work directory in *one* mount of our own: rename(2) does not cross mounts.

    Its flags follow the options, whatever those of the upper file system's own mount are: by its access
    times the kernel reads passthrough files, not by the FUSE mount's.

    Returns:
        Their descriptors, and that of the mount (-1: without the privilege, the
        directories as they are), which is to be kept open as long.
    """
    common = os.path.commonpath((upper.real, work.real))
    tree = -1
    opened: list[int] = []
    try:
        base = os.open(common, DIR_FLAGS)
        try:
            tree = _clone(
                base, (_upper_flags(params), mount.MOUNT_ATTR__ATIME | mount.MOUNT_ATTR_NODIRATIME)
            )
        finally:
            os.close(base)
        for place in (upper, work):
            fd = os.open(os.path.relpath(place.real, common), DIR_FLAGS, dir_fd=tree)
            opened.append(fd)
            st = os.fstat(fd)
            if (st.st_dev, st.st_ino) != place.key:
                raise OSError(EBUSY, "a mount lies in between")
    except OSError:
        for fd in (*opened, tree):
            if fd >= 0:
                os.close(fd)
        return os.dup(upper.fd), os.dup(work.fd), -1
    return opened[0], opened[1], tree


def _upper_flags(params: Params) -> int:
    if params.readonly:
        # Read-only itself: the kernel lets `mount -o remount,rw` pass without asking us.
        return mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOATIME
    if params.ms_flags & mount.MS_NOATIME:
        return mount.MOUNT_ATTR_NOATIME
    strict = params.ms_flags & mount.MS_STRICTATIME
    files = mount.MOUNT_ATTR_STRICTATIME if strict else mount.MOUNT_ATTR_RELATIME
    return files | (mount.MOUNT_ATTR_NODIRATIME if params.ms_flags & mount.MS_NODIRATIME else 0)


def _clone(fd: int, *wishes: tuple[int, int]) -> int:
    """A mount of the directory alone, with the first of the attributes (to set, to clear) that may be had."""
    try:
        tree = mount.open_tree(
            fd, b"", mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC | mount.AT_EMPTY_PATH
        )
    except OSError:
        return os.dup(fd)
    for wanted, clear in wishes:
        try:
            mount.mount_setattr(tree, b"", mount.AT_EMPTY_PATH, wanted, clear)
            break
        except OSError:
            continue
    return tree
