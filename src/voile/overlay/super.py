"""Mount and unmount: the overlay as a whole (`struct ovl_fs`).

Order of a mount: all checks, then the error probe (which refuses an unseen error), then
the private mounts of the layers.  Up to here nothing is changed.  `activate` takes the
directories into use: it cleans ``work`` and writes the volatile marker.  `close` ends an
active overlay, `abort` one whose mount failed, without a trace.
"""

from __future__ import annotations

import os
import resource
from errno import EINVAL

from voile.linux import creds as linux_creds
from voile.linux import files, trees
from voile.overlay import aufs, inuse, xattrs
from voile.overlay.claim import Claim
from voile.overlay.creds import Creds
from voile.overlay.inode import Dir, Node, NodeTable
from voile.overlay.layers import DIR_FLAGS, DIR_READ, FdCache, Layer, RealDir
from voile.overlay.layout import Layout, MountError, Place, private_pair, private_tree
from voile.overlay.params import Params
from voile.overlay.sweep import Sweeper
from voile.overlay.whiteout import Maker
from voile.volatile import marker, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from voile.overlay.index import Index
    from voile.overlay.metacopy import Metacopy
    from voile.overlay.readdir import Look

    Submit = Callable[[Callable[[], Any], Callable[[Any, BaseException | None], None]], None]

__all__ = ["LostData", "MountError", "Overlay"]

_FILEID_INO32_GEN = 1
# Odd, so that no two numbers become one by the multiplication (Knuth's multiplicative hash).
_MIX = 0x9E3779B97F4A7C15
# What a caller may ask of an open file that is passed on to the real one.  Not O_DIRECT: the kernel does that
# itself in passthrough, and our buffers are not aligned for it.
_OPEN_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_NOATIME | os.O_SYNC | os.O_DSYNC
_SYNC_FLAGS = os.O_SYNC | os.O_DSYNC


class LostData(OSError):
    """The upper file system has lost data while it was mounted, says the sync at unmount."""


class FileSystem:
    """One file system below the mount."""

    __slots__ = ("fsid", "dev", "fd", "uuid", "decodes", "ino32")

    def __init__(self, fsid: int, dev: int, root_fd: int) -> None:
        self.fsid = fsid
        self.dev = dev
        self.fd = os.open(b".", DIR_READ, dir_fd=root_fd)
        self.uuid = files.fs_uuid(self.fd)
        self.decodes = self.ino32 = False
        self._try_handles()

    def _try_handles(self) -> None:
        """`ovl_can_decode_fh`: whether file handles work, and are those of 32-bit inode numbers."""
        try:
            _mount, kind, handle = files.name_to_handle_at(self.fd, b"", files.AT_EMPTY_PATH)
            os.close(files.open_by_handle_at(self.fd, kind, handle, os.O_PATH))
        except OSError:
            return
        self.decodes = True
        self.ino32 = kind == _FILEID_INO32_GEN and len(handle) == 8


class Overlay:
    """A union of layers, ready to be served.

    Attributes that a server sets: `submit` (hands long work to another thread, see
    copy_up), `soon` (runs something when those who wait have been served) and `changed`
    (told of nodes whose attributes changed without a request).
    """

    __slots__ = (
        "params", "names", "filesystems", "upper_layer", "lowers", "fds", "nodes", "root",
        "work_fd", "workdir_fd", "upper_fd", "index", "sync", "namelen", "samefs", "hidden", "creds",
        "whiteouts", "sweeper", "submit", "soon", "looks", "changed", "births_known", "origins",
        "warnings", "writable", "volatile", "follows_redirects", "metacopy", "meta", "data_layers", "aufs",
        "continuity",
        "_ino_shift", "_temp", "_tree_fd", "_claim", "_holder", "_made_work", "_active",
    )  # fmt: skip

    upper_layer: Layer

    def __init__(self, params: Params) -> None:
        """See `open`, which is what callers use."""
        self.params = params
        self.names = xattrs.Names(params.userxattr)
        self.filesystems: dict[int, FileSystem] = {}
        self.lowers: list[Layer] = []
        soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.fds = FdCache(max(64, min(8192, soft // 4)))
        self.work_fd = self.workdir_fd = self.upper_fd = self._tree_fd = -1
        # None: without index=on.
        self.index: Index | None = None
        self.writable = params.upperdir is not None and not params.readonly
        self.volatile = params.volatile and self.writable
        self.aufs = params.aufs_whiteouts
        self.follows_redirects = params.redirect_dir in ("on", "follow")
        # Whether metadata are copied up alone; and all about such files, where there may be any.
        self.metacopy = params.metacopy
        self.meta: Metacopy | None = None
        # Layers that hold data of metacopy files of other layers, and show nothing by themselves.
        self.data_layers: list[Layer] = []
        self._claim = Claim(params, self.volatile)
        self.sync, self.continuity = self._claim.sync, self._claim.continuity
        self.hidden: set[tuple[int, int]] = set()
        self.creds = Creds()
        self.whiteouts = Maker(self)
        self.sweeper = Sweeper(self)
        self.submit: Submit | None = None
        self.soon: Callable[[Callable[[], None]], None] | None = None
        # Looks at directories that may be empty, and take long.
        self.looks: dict[Dir, Look] = {}
        self.changed: Callable[[Node], None] = lambda node: None
        # Whether callers remember times of birth, which a copy-up changes.
        self.births_known = False
        # Upper st_ino → constant st_ino, where origins cannot be decoded.
        self.origins: dict[int, int] = {}
        self.warnings = self._claim.warnings
        self._temp = 0
        self._holder = 0
        self._made_work = False
        self._active = False

    @classmethod
    def open(cls, params: Params) -> Overlay:
        """Checks and opens everything; changes nothing yet.

        Raises:
            OSError: `MountError`, `inuse.InUse`, `marker.Incompatible`, `reuse.NotProven`,
                `probe.UnseenError` or `probe.ProbeUnavailable`: `strerror` is one line for the user.
        """
        self = cls(params)
        if not os.path.exists(b"/proc/self/fd"):
            raise MountError(EINVAL, "/proc is not mounted", b"/proc")
        layout = Layout(params)
        try:
            if layout.upper is not None and layout.work is not None:
                self._claim.take(layout.upper, layout.work)
                self.sync, self.continuity = self._claim.sync, self._claim.continuity
            self._open_layers(layout)
        except BaseException:
            self._close_all()
            raise
        finally:
            layout.close()
        return self

    def _open_layers(self, layout: Layout) -> None:
        if layout.upper is not None and layout.work is not None:
            self.upper_fd, self.workdir_fd, self._tree_fd = private_pair(
                layout.upper, layout.work, self.params
            )
            self.upper_layer = self._layer(0, layout.upper, os.dup(self.upper_fd))
        for index, place in enumerate(layout.lowers, 1):
            self.lowers.append(self._layer(index, place, private_tree(place)))
        for index, place in enumerate(layout.datas, 1 + len(self.lowers)):
            self.data_layers.append(self._layer(index, place, private_tree(place)))
        if self.metacopy or self.data_layers:
            from voile.overlay.metacopy import Metacopy

            self.meta = Metacopy(self)
        self.samefs = len(self.filesystems) == 1
        self._ino_shift = self._xino_shift()
        layers = [*self.lowers, *self.data_layers]
        if self.upper_fd >= 0:
            layers.append(self.upper_layer)
        self.namelen = max(os.fstatvfs(layer.root.fd).f_namemax for layer in layers)
        for path in self.params.hidden:
            st = os.stat(path)
            self.hidden.add((st.st_dev, st.st_ino))
        self._settle_uuid()
        if self.params.index:
            from voile.overlay.index import Index

            self.index = Index.open(self)
        self._make_root()

    def _settle_uuid(self) -> None:
        """uuid=off: file handles carry none, so that they last when the file system gets another."""
        if self.params.uuid != "off" or self.upper_fd < 0:
            return
        if not self.samefs:
            self.warnings.append("uuid=off needs a single file system; falling back to uuid=null")
            return
        for layer in (self.upper_layer, *self.lowers):
            layer.uuid = None

    def _xino_shift(self) -> int:
        """How far the number of a file system is shifted in st_ino (`ovl_get_layers`).

        One bit between it and the real number is reserved for the kernel's numbers that do not last.
        """
        if all(each.ino32 for each in self.filesystems.values()):
            return 33
        return 64 - max(each.fsid for each in self.filesystems.values()).bit_length()

    def _layer(self, index: int, place: Place, root_fd: int) -> Layer:
        dev = place.key[0]
        known = self.filesystems.get(dev)
        if known is None:
            # 0 is the upper's also where there is none.
            fsid = len(self.filesystems) + (self.upper_fd < 0)
            known = self.filesystems[dev] = FileSystem(fsid, dev, root_fd)
        layer = Layer(index, place.path, root_fd, known.fsid, known.fd)
        layer.uuid, layer.decodes = known.uuid, known.decodes
        return layer

    def _make_root(self) -> None:
        upper = self.upper_layer.root if self.upper_fd >= 0 else None
        lowers = self._visible_roots(upper)
        # Unlike every other merged directory the root shows its upper's number (ovl_get_root).
        top = upper if upper is not None else lowers[0]
        ino = self.map_ino(top.layer, os.fstat(top.fd).st_ino)
        self.root = Dir(None, b"", upper, lowers, ino)
        # Those that the root is given last as long as the mount (ovl_get_root asks for no protattr).
        self.root.flags = 0
        for real in self.root.reals:
            path = xattrs.proc_fd(real.fd)
            present = xattrs.listing(path, follow=True)
            if real is upper:
                self.root.impure = self.names.impure in present
            elif self.names.opaque in present and real is not lowers[-1]:
                # As ovl_get_root: not in the lowest layer, below which is nothing to hide.
                if xattrs.get(path, self.names.opaque, follow=True) == b"x":
                    self.root.xwhiteouts = real.layer.xwhiteouts = True
        self.nodes = NodeTable(self.root, self.fds)

    def _visible_roots(self, upper: RealDir | None) -> tuple[RealDir, ...]:
        """The roots of the lower layers, down to the first that AUFS marks opaque (the kernel: all)."""
        visible: list[RealDir] = []
        above = upper
        for layer in self.lowers:
            if self.aufs and above is not None and aufs.is_opaque(above, above.fd):
                break
            above = layer.root
            visible.append(above)
        return tuple(visible)

    @property
    def lowers_may_change(self) -> bool:
        """Whether a lower layer may be added to between two mounts (`ovl_allow_offline_changes`).

        Then a new directory must not hide what a later layer has under its name.
        """
        return self.params.redirect_dir != "on" and self.params.xino != "on" and self.index is None

    @property
    def decodes_origin(self) -> bool:
        """Whether st_ino of a copied-up object can be found again from its origin."""
        return all(each.decodes for each in self.filesystems.values())

    def activate(self) -> None:
        """Takes the directories into use: a clean ``work/work``, and the volatile marker.

        Raises:
            OSError: the work directory cannot be cleaned or written.
        """
        if not self.writable:
            return
        self._make_work()
        if self.continuity is not None:
            self.continuity.begin(self.workdir_fd, self.sync.probe)
        if self.volatile:
            marker.create_volatile(self.work_fd)
        if self.index is not None:
            self.index.activate()
        self._active = True

    def _make_work(self) -> None:
        """`ovl_workdir_create`: a fresh ``work`` of mode 0 without any ACL."""
        self.creds.mounter()
        existed = True
        try:
            os.stat(b"work", dir_fd=self.workdir_fd, follow_symlinks=False)
        except FileNotFoundError:
            existed = False
        self.sweeper.clear(self._claim.marked)
        for name in os.listdir(self._claim.work_fd):
            if name.startswith("#probe"):  # left by a mount that was killed
                trees.remove(self.workdir_fd, os.fsencode(name))
        try:
            os.mkdir(b"work", 0o700, dir_fd=self.workdir_fd)
        except FileExistsError:
            self._temp = self.sweeper.highest()
        self._made_work = not existed
        self.work_fd = os.open(b"work", DIR_FLAGS, dir_fd=self.workdir_fd)
        path = xattrs.proc_fd(self.work_fd)
        for acl in (xattrs.ACL_DEFAULT, xattrs.ACL_ACCESS):
            if xattrs.get(path, acl, follow=True) is not None:
                os.removexattr(path, acl)
        if linux_creds.has_cap(linux_creds.CAP_DAC_OVERRIDE):
            os.chmod(path, 0)

    def mounted(self, major: int, minor: int, tid: int) -> None:
        """Tells later mounts of the same directories who has them: `tid` sees the mount (see inuse)."""
        self._holder = tid
        if self.writable:
            inuse.record(self.workdir_fd, major, minor, tid)
        self._claim.mounted()

    def settle(self) -> None:
        """The mount works, and requests are about to be answered."""
        if self.continuity is not None:
            self.continuity.settle()
        self.sweeper.go_on()

    def close(self, state: str = record.MOUNTED) -> None:
        """The end of the mount: syncs the upper, unless volatile, and closes everything.

        A second call does nothing. `state`: how it has ended, for a volatile mount's record.

        Raises:
            LostData: the error of that sync.
        """
        try:
            if self._active:
                self._active = False
                self._leave(state)
                if not self.volatile:
                    self._sync()
                    if self.continuity is not None:
                        self.continuity.synced()
        finally:
            self._close_all()

    def _leave(self, state: str) -> None:
        """Removes what only a live mount needs; what stays is removed by the next one."""
        self.creds.mounter()
        for step in (
            self.whiteouts.close,
            lambda: inuse.erase(self.workdir_fd, self._holder),
            lambda: self._write_down(state),
        ):
            try:
                step()
            except OSError:
                pass  # read-only since an error, most likely: of that the sync tells

    def _write_down(self, state: str) -> None:
        if self.volatile and self.continuity is not None:
            self.continuity.end(state, self.sync, self.params.workdir or b"")

    def _sync(self) -> None:
        try:
            files.syncfs(self.filesystems[self.upper_layer.dev].fd)
        except OSError as error:
            message = f"the upper file system has lost data: {error.strerror} (found by the sync at unmount)"
            raise LostData(error.errno, message, self.params.upperdir)

    def abort(self) -> None:
        """The mount failed: removes what `activate` made, and closes everything."""
        try:
            if self.index is not None:
                self.index.abort()
            if self.work_fd >= 0:
                if self._made_work:
                    trees.remove(self.workdir_fd, b"work")
                elif self.volatile and not self._claim.marked:
                    trees.remove(self.work_fd, b"incompat")
            if self.continuity is not None:
                self.continuity.abort()
        finally:
            self._close_all()

    def _close_all(self) -> None:
        self.sweeper.stop()
        self._claim.close()
        self.fds.close()
        if self.index is not None:
            self.index.close()
        if self.upper_fd >= 0 and hasattr(self, "upper_layer"):
            self.upper_layer.close()
        for layer in (*self.lowers, *self.data_layers):
            layer.close()
        self.lowers.clear()
        self.data_layers.clear()
        fds = [each.fd for each in self.filesystems.values()]
        fds += (self.work_fd, self.workdir_fd, self.upper_fd, self._tree_fd)
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        self.work_fd = self.workdir_fd = self.upper_fd = self._tree_fd = -1
        self.filesystems.clear()

    # What the other modules build on.

    def map_ino(self, layer: Layer, ino: int) -> int:
        """The st_ino that callers see for a real one (`ovl_map_dev_ino`).

        On several file systems the number of the file system is put into bits that real
        numbers do not use.  For one that does, the kernel has another st_dev, or a number that does not
        last; we have neither, and put as much of a hash as there is room for behind the reserved bit.
        """
        if self.samefs:
            return ino
        shift = self._ino_shift
        if ino >> (shift - 1):
            ino = 1 << (shift - 1) | (ino * _MIX & 0xFFFFFFFFFFFFFFFF) >> (65 - shift)
        return ino | layer.fsid << shift

    def stat(self, node: Node) -> os.stat_result:
        """The status of a node's real object."""
        if isinstance(node, Dir):
            top = node.top
            return os.stat(top.fd if top.fd >= 0 else self.fds.fd(top))
        extra = node.extra
        if extra is not None:
            if extra.meta is not None and self.meta is not None:
                return self.meta.stat(node, extra.meta)
            if extra.fd >= 0:
                return os.stat(extra.fd)
            if extra.place:
                return os.stat(extra.place, dir_fd=self.fds.fd(node.real), follow_symlinks=False)
        real = node.real
        dir_fd = real.fd if real.fd >= 0 else self.fds.fd(real)
        return os.stat(node.name, dir_fd=dir_fd, follow_symlinks=False)

    def open_real(self, node: Node, flags: int, truncate: int = 0) -> int:
        """Opens the real file of a regular-file node with the caller's access mode.

        On a volatile mount O_SYNC and O_DSYNC are left out.  `truncate` is O_TRUNC or nothing.
        """
        keep = flags & _OPEN_FLAGS | truncate
        if self.volatile:
            keep &= ~_SYNC_FLAGS
        keep |= os.O_NONBLOCK | os.O_CLOEXEC
        if self.meta is not None and node.extra is not None and node.extra.meta is not None:
            return self.meta.open(node.extra.meta, keep)
        if node.unlinked_fd >= 0:
            return os.open(xattrs.proc_fd(node.unlinked_fd), keep)
        return os.open(node.place, keep | os.O_NOFOLLOW, dir_fd=self.fds.fd(node.real))

    def open_path(self, node: Node) -> int:
        """An O_PATH descriptor of a file, for its data."""
        if self.meta is not None and node.extra is not None and node.extra.meta is not None:
            return self.meta.open(node.extra.meta, os.O_PATH | os.O_CLOEXEC)
        if node.unlinked_fd >= 0:
            return os.dup(node.unlinked_fd)
        return os.open(node.place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fds.fd(node.real))

    def temp_name(self) -> bytes:
        """A new name for a temporary object in ``work/work`` (`ovl_lookup_temp`)."""
        self._temp += 1
        return b"#%x" % self._temp

    def discard(self, temp: bytes) -> None:
        """Removes a temporary object with all that is in it; see `Sweeper.discard`."""
        self.sweeper.discard(temp)

    def statvfs(self) -> os.statvfs_result:
        """statvfs(3) of the upper layer, or of the top lower one."""
        return os.fstatvfs(self.upper_fd if self.upper_fd >= 0 else self.lowers[0].root.fd)
