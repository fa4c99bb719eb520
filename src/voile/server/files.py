"""Open files: passthrough where the kernel grants it, real descriptors otherwise.

Theory of operation
-------------------
With FUSE_PASSTHROUGH the kernel reads and writes the real file itself.  It ties an inode
to *one* backing file for as long as any file of it is open in passthrough, and refuses
every other kind of open meanwhile; and the other way round (fs/fuse/iomode.c).  So all
files that are open on a node at one time are of one kind, kept in `Opens`:

* passthrough, for files of the upper layer, and for all of a mount without one.  Opens
  whose writes we have to see (O_SYNC on a volatile mount: the status must be reported and
  nothing synced; files with set-id bits, which a write takes away) get FOPEN_DIRECT_IO on
  top, which sends their reads and writes to us.  File capabilities the kernel takes away
  itself: it asks for them before it writes (fs/backing-file.c, backing_file_write_iter);
* the kernel's page cache, filled by us, for lower files that a copy-up may replace while
  they are open: their readers then see what is written, as on kernel overlayfs
  (ovl_real_fdget).

Real descriptors are opened when first needed.  On a mount that really syncs they are
opened with the file: an error is reported once to every open file that was there before
it (errseq_t, lib/errseq.c).
"""

from __future__ import annotations

import os
import stat
from errno import EAGAIN, EIO, EISDIR, EOPNOTSUPP, ESTALE
from fcntl import F_GETFL, F_SETFL, fcntl

from voile.fuse import abi, passthrough, replies
from voile.linux import files
from voile.overlay import attr, namei, protect
from voile.overlay import dir as overlay_dir
from voile.overlay.copy_up import copy_up
from voile.overlay.dir import Caller
from voile.overlay.inode import Dir, Node
from voile.server.base import Served

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.fuse.requests import Deferred, Request
    from voile.overlay.params import Params
    from voile.overlay.super import Overlay

_SYNC = os.O_SYNC | os.O_DSYNC
_READ_BUFFER = 1 << 20
# More than this is copied or allocated in another thread.
_LONG = 1 << 20


class Opens:
    """The files that are open on one node."""

    __slots__ = ("users", "backing_id")

    def __init__(self) -> None:
        self.users = 0
        # The real file that the kernel reads and writes for all of them; 0: page cache.
        self.backing_id = 0


class File:
    """One open file."""

    __slots__ = ("node", "nodeid", "fd", "flags", "upper", "accessed", "sync_follows")

    def __init__(self, node: Node, nodeid: int, flags: int, fd: int = -1) -> None:
        self.node = node
        self.nodeid = nodeid
        self.flags = flags
        self.fd = fd
        # Whether `fd` is open in the upper layer.
        self.upper = node.has_upper_data
        # Whether it has been read as a lower one.
        self.accessed = False
        # After a synchronous write through the page cache, which the kernel completes with a FSYNC.
        self.sync_follows = False


class LostData:
    """Errors that a real syncfs(2) has reported: every caller (a thread) is told of the latest one, once.

    The file system below tells it to our descriptor once, whoever asked; and sync(1), whose caller
    learns nothing, asks too.  Which open file syncfs(2) was called on, FUSE does not say.
    """

    __slots__ = ("errno", "told")

    def __init__(self) -> None:
        self.errno = 0
        self.told: set[int] = set()

    def syncfs(self, fd: int, pid: int) -> None:
        """Syncs the file system of `fd` on behalf of a process; raises OSError."""
        if self.sync(fd) and pid not in self.told:
            self.told.add(pid)
            raise OSError(self.errno, "the upper file system has lost data")

    def sync(self, fd: int) -> int:
        """Syncs the file system of `fd`: the latest errno since the mount, or 0. In any thread."""
        try:
            files.syncfs(fd)
        except OSError as exc:
            self.errno = exc.errno or EIO
            self.told.clear()
        return self.errno


class FileOperations(Served):
    """OPEN, CREATE, reading, writing, syncing, RELEASE."""

    _passthrough = False
    _nowait = True
    _buffer: bytearray | None = None

    def __init__(self, overlay: Overlay, params: Params) -> None:
        super().__init__(overlay, params)
        self.lost = LostData()

    @property
    def passthrough(self) -> bool:
        """Whether regular files are read and written by the kernel itself."""
        return self._passthrough

    def use_passthrough(self, granted: bool) -> None:
        """Told after INIT."""
        self._passthrough = granted

    # --- opening ---

    def open(self, req: Request, flags: int, open_flags: int) -> bytes:
        overlay = self.overlay
        node = overlay.nodes.by_id[req.nodeid]
        if isinstance(node, Dir):
            raise OSError(EISDIR, "is a directory")
        if overlay.fds.full:
            overlay.fds.trim()
        if flags & os.O_ACCMODE == os.O_ACCMODE:
            if node.flags:
                protect.may_open(overlay, node, flags)
            flags &= ~os.O_ACCMODE  # for ioctls alone: neither reading nor writing, no copy-up (OPEN_FMODE)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            if node.flags:
                protect.may_open(overlay, node, flags)
            copy_up(overlay, node, data=not flags & os.O_TRUNC)
        if flags & os.O_TRUNC:
            if open_flags & abi.OPEN_KILL_SUIDGID:
                attr.drop_privileges(overlay, node, self.keeps_sgid(req))
        file = File(node, req.nodeid, flags)
        if flags & os.O_TRUNC or not overlay.volatile:
            file.fd = overlay.open_real(node, flags, flags & os.O_TRUNC)
        return replies.open_out(*self._opened(file, fresh=False))

    def create(self, req: Request, name: bytes, flags: int, mode: int, umask: int, open_flags: int) -> bytes:
        self.names_changed(req.nodeid)
        parent = self.dir(req.nodeid)
        caller = Caller(req.uid, req.gid, umask)
        try:
            made = overlay_dir.create(self.overlay, parent, name, self._create_flags(flags), mode, caller)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            return self._create_existing(req, parent, name, flags, open_flags)
        return self._created(req, flags, *made)

    def tmpfile(self, req: Request, name: bytes, flags: int, mode: int, umask: int, open_flags: int) -> bytes:
        caller = Caller(req.uid, req.gid, umask)
        keep = self._create_flags(flags) | flags & os.O_EXCL
        return self._created(
            req, flags, *overlay_dir.tmpfile(self.overlay, self.dir(req.nodeid), keep, mode, caller)
        )

    def _create_flags(self, flags: int) -> int:
        keep = flags & (os.O_ACCMODE | os.O_APPEND | os.O_NOATIME | _SYNC)
        return keep & ~_SYNC if self.overlay.volatile else keep

    def _create_existing(self, req: Request, parent: Dir, name: bytes, flags: int, open_flags: int) -> bytes:
        """The kernel did not know that the file is there: open it instead."""
        found = namei.lookup(self.overlay, parent, name)
        if found is None or found[0].is_dir:
            raise OSError(EISDIR if found else ESTALE, "changed meanwhile")
        node, st = found
        entry = self.entry(node, st)
        req.nodeid = node.id
        try:
            return entry + self.open(req, flags, open_flags)
        except BaseException:
            self.overlay.nodes.forget(node.id, 1)
            raise

    def _created(self, req: Request, flags: int, node: Node, st: os.stat_result, fd: int) -> bytes:
        nodeid = self.overlay.nodes.refer(node)
        file = File(node, nodeid, flags, fd)
        # A file that is made with set-id bits loses them to the first write.
        opened = self._opened(file, fresh=not st.st_mode & (stat.S_ISUID | stat.S_ISGID))
        return replies.create_out(self.entry_of(node, nodeid, st), *opened)

    def _opened(self, file: File, fresh: bool) -> tuple[int, int, int]:
        """Registers an open file: (fh, FOPEN flags, backing id) for the kernel."""
        node = file.node
        opens = node.opens
        if not isinstance(opens, Opens):
            opens = Opens()
            if self._passthrough and (node.has_upper_data or not self.overlay.writable):
                opens.backing_id = self._backing_open(file)
        if not opens.backing_id and file.fd < 0:
            file.fd = self.overlay.open_real(node, file.flags)
        node.opens = opens
        opens.users += 1
        fh = self.new_fh()
        self.files[fh] = file
        if file.flags & os.O_ACCMODE == os.O_RDWR and file.nodeid not in self.mapped:
            # It may be mapped shared: then its times and blocks change without a request.
            self.mapped.add(file.nodeid)
            if not fresh:
                self.attributes_changed(node)
        if not opens.backing_id:
            # Nobody but us changes the file, unless `timeout` says so: what the kernel has cached stays true.
            return fh, abi.FOPEN_KEEP_CACHE if self.params.timeout is None else 0, 0
        direct = abi.FOPEN_DIRECT_IO if self._sees_writes(file, fresh) else 0
        return fh, abi.FOPEN_PASSTHROUGH | direct, opens.backing_id

    def _backing_open(self, file: File) -> int:
        """Registers the real file with the kernel; 0 where the kernel will not have it."""
        fd = file.fd if file.fd >= 0 else self.overlay.open_path(file.node)
        try:
            return passthrough.backing_open(self.session.fd, fd)
        except OSError:
            # Stacked too deep, or not a kind of file system that can be read so.
            return 0
        finally:
            if fd != file.fd:
                os.close(fd)

    def _sees_writes(self, file: File, fresh: bool) -> bool:
        if file.flags & os.O_ACCMODE == os.O_RDONLY:
            return False
        if self.overlay.volatile and file.flags & _SYNC:
            return True
        if fresh:
            return False
        if file.node.flags > 0:
            return True
        st = os.fstat(file.fd) if file.fd >= 0 else self.overlay.stat(file.node)
        return attr.has_set_id(st.st_mode)

    def release(self, req: Request, fh: int, flags: int, release_flags: int, lock_owner: int) -> None:
        file = self.files.pop(fh)
        if file.fd >= 0:
            os.close(file.fd)
        opens = file.node.opens
        assert isinstance(opens, Opens)
        opens.users -= 1
        if opens.users == 0:
            file.node.opens = None
            if opens.backing_id:
                passthrough.backing_close(self.session.fd, opens.backing_id)

    def _real(self, fh: int) -> tuple[File, int]:
        """An open file and its real descriptor, in the upper layer once it has been copied up."""
        file = self.files[fh]
        node = file.node
        if file.fd < 0 or (not file.upper and node.has_upper_data):
            fd = self.overlay.open_real(node, file.flags)
            if file.fd >= 0:
                # Under the number that a thread may have been given: closed, it would soon be another file's.
                os.dup2(fd, file.fd, inheritable=False)
                os.close(fd)
            else:
                file.fd = fd
            file.upper = node.has_upper_data
        return file, file.fd

    # --- data ---

    def _accessed(self, file: File) -> None:
        """The first read of data in a lower layer: of a metacopy file it sets the upper's access time."""
        file.accessed = True
        meta = self.overlay.meta
        if meta is not None and file.node.is_upper and not file.flags & os.O_NOATIME:
            meta.accessed(file.node)

    def read(
        self, req: Request, fh: int, offset: int, size: int, read_flags: int, flags: int
    ) -> bytes | memoryview:
        file, fd = self._real(fh)
        if not file.upper and not file.accessed:
            self._accessed(file)
        if self._nowait:
            if self._buffer is None:
                self._buffer = bytearray(_READ_BUFFER)
            view = memoryview(self._buffer)[:size]
            try:
                done = os.preadv(fd, [view], offset, os.RWF_NOWAIT)
                if done == size:
                    return view
            except OSError as exc:
                if exc.errno == EOPNOTSUPP:
                    self._nowait = False  # tmpfs before 6.x, and others: never blocks long, or cannot say
                elif exc.errno != EAGAIN:
                    raise
        if not self._nowait:
            return os.pread(fd, size, offset)
        # Not in the page cache: others need not wait for the disk.
        return self.later(req, lambda: os.pread(fd, size, offset), lambda data: data)

    def write(
        self, req: Request, fh: int, offset: int, data: memoryview, write_flags: int, flags: int
    ) -> int:
        file, fd = self._real(fh)
        if file.node.flags and file.flags & ~flags & os.O_APPEND:
            protect.may_write_at(self.overlay, file.node)
        if write_flags & abi.WRITE_KILL_SUIDGID:
            attr.drop_privileges(self.overlay, file.node, self.keeps_sgid(req))
        done = os.pwrite(fd, data, offset)
        if flags & _SYNC and self.overlay.volatile:
            sync = self.overlay.sync
            status = sync.get()
            if status < 0:
                raise OSError(-status, "the upper file system has lost data")
            opens = file.node.opens
            if isinstance(opens, Opens) and opens.backing_id:  # FOPEN_DIRECT_IO
                sync.osync += 1
            else:
                file.sync_follows = True
        return done

    def lseek(self, req: Request, fh: int, offset: int, whence: int) -> bytes:
        return replies.lseek_out(os.lseek(self._real(fh)[1], offset, whence))

    def _about_to_write(self, req: Request, file: File) -> None:
        """What the kernel asks for with a flag where it sends a WRITE."""
        if req.uid != 0 and self.overlay.stat(file.node).st_mode & (stat.S_ISUID | stat.S_ISGID):
            attr.drop_privileges(self.overlay, file.node, self.keeps_sgid(req))
            self.overlay.changed(file.node)  # after these calls the kernel asks for size and times only

    def fallocate(self, req: Request, fh: int, offset: int, length: int, mode: int) -> Deferred | None:
        file, fd = self._real(fh)
        if file.node.flags:
            protect.may_allocate(self.overlay, file.node, mode)
        self._about_to_write(req, file)
        if length > _LONG:
            return self.later(req, lambda: files.fallocate(fd, mode, offset, length))
        files.fallocate(fd, mode, offset, length)
        return None

    def copy_file_range(
        self, req: Request, fh_in: int, off_in: int, nodeid_out: int, fh_out: int, off_out: int,
        length: int, flags: int,
    ) -> int | Deferred:  # fmt: skip
        (source, src), (file, dst) = self._real(fh_in), self._real(fh_out)
        if file.node.flags:
            protect.may_copy_into(self.overlay, file.node)
        self._about_to_write(req, file)
        if length > _LONG:
            return self.later(
                req, lambda: _copy_range(source, src, dst, length, off_in, off_out), replies.write_out
            )
        return _copy_range(source, src, dst, length, off_in, off_out)

    # --- syncing ---

    def fsync(self, req: Request, fh: int, datasync: bool) -> Deferred | None:
        sync = self.overlay.sync
        status = sync.get()
        if status == 0:
            if self.files[fh].sync_follows:
                self.files[fh].sync_follows = False
                sync.osync += 1
            elif datasync:
                sync.fdatasync += 1
            else:
                sync.fsync += 1
            return None
        if status < 0:
            raise OSError(-status, "the upper file system has lost data")
        file, fd = self._real(fh)
        if not file.upper:
            # Nothing to sync in a lower layer; of a metacopy file the metadata (ovl_fsync).
            if datasync or not file.node.is_upper:
                return None
            return self._sync_metadata(req, file.node)
        return self.sync_fd(req, fd, datasync)

    def caches_writes(self) -> bool:
        """Whether the kernel may have pages to write to us: somebody has a file of ours open for writing.

        What passes through is in the cache of the real file.
        """
        return any(
            file.flags & os.O_ACCMODE != os.O_RDONLY
            and not (isinstance(file.node.opens, Opens) and file.node.opens.backing_id)
            for file in self.files.values()
        )

    def upper_fs_fd(self) -> int:
        """A descriptor of the upper file system, open since the mount."""
        return self.overlay.filesystems[self.overlay.upper_layer.dev].fd

    def _sync_metadata(self, req: Request, node: Node) -> Deferred:
        dir_fd, name, at_flags = attr.place(self.overlay, node)
        flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_NOFOLLOW if at_flags else 0)
        fd = os.open(name, flags, dir_fd=dir_fd if dir_fd >= 0 else None)

        def sync() -> None:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

        return self.later(req, sync)

    def syncfs(self, req: Request) -> Deferred | None:
        sync = self.overlay.sync
        status = sync.get()
        if status == 0:
            sync.syncfs += 1
            return None
        if status < 0:
            # As the kernel's volatile overlay: EIO, whatever the error was.
            raise OSError(EIO, "the upper file system has lost data")
        if not self.overlay.writable:
            return None
        fd, pid, lost = self.upper_fs_fd(), req.pid, self.lost
        return self.later(req, lambda: lost.syncfs(fd, pid))


def _copy_range(source: File, src: int, dst: int, length: int, off_in: int, off_out: int) -> int:
    """copy_file_range(2), which is no read (ovl_copyfile): it leaves the access time of `src` alone."""
    flags = fcntl(src, F_GETFL)
    try:
        fcntl(src, F_SETFL, flags | os.O_NOATIME)
    except PermissionError:
        pass  # somebody else's file, and we are an ordinary user (ovl_path_open)
    try:
        return os.copy_file_range(src, dst, length, off_in, off_out)
    finally:
        # Not what was there before: another thread may be copying from the same file.
        fcntl(src, F_SETFL, flags & ~os.O_NOATIME | source.flags & os.O_NOATIME)
