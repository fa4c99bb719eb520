"""A file system for tests that implements every operation of `voile.fuse`: it mirrors a directory.

It runs in a child process; what reached it is read back with `Mirror.calls`. Nodes are O_PATH descriptors.
"""

import errno
import os
import signal
import stat
import sys
import traceback

from voile.fuse import abi, mountpoint, passthrough, replies
from voile.fuse.cpu_follow import CpuFollow
from voile.fuse.device import Device
from voile.fuse.requests import DEFERRED
from voile.fuse.session import Config, Operations, Session
from voile.fuse.workers import WorkerPool
from voile.linux import files, loop
from voile.linux.fileattr import FS_IOC_GETFLAGS

IOCTL_ECHO = 0xC0107601  # _IOWR('v', 1, 16 bytes)
IOCTL_WAIT = 0x7602  # _IO('v', 2): not answered until its caller is interrupted
VALID = 1 << 40


class MirrorFS(Operations):
    """*switches* change behaviour: see their uses."""

    def __init__(self, root, log, switches):
        self.root = root
        self.fds = {abi.ROOT_ID: os.open(root, os.O_PATH)}
        self.lookups = {}
        self.log_fd = log
        self.switches = switches
        self.pool = WorkerPool(2)
        self.session = None
        self.backing = {}  # fh → backing id
        self.listings = {}

    def log(self, *what):
        os.write(self.log_fd, repr(what).encode() + b"\n")

    def path(self, nodeid):
        return b"/proc/self/fd/%d" % self.fds[nodeid]

    def init(self, negotiated):
        self.negotiated = negotiated
        self.log("init", negotiated.minor, negotiated.flags, negotiated.max_write)

    def destroy(self):
        self.log("destroy")

    def entry(self, parent, name):
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.fds[parent])
        st = os.fstat(fd)
        if st.st_ino in self.fds:
            os.close(fd)
        else:
            self.fds[st.st_ino] = fd
        self.lookups[st.st_ino] = self.lookups.get(st.st_ino, 0) + 1
        return replies.entry_from_stat(st.st_ino, 0, VALID, VALID, st, st.st_ino, st.st_nlink)

    def lookup(self, req, name):
        if name == b"raise-keyerror":
            raise KeyError(name)
        if name == b"bad-reply":
            return b"too short"
        try:
            return self.entry(req.nodeid, name)
        except FileNotFoundError:
            return replies.negative_entry(VALID)

    def forget(self, nodeid, nlookup):
        self.lookups[nodeid] -= nlookup
        if self.lookups[nodeid] == 0:
            del self.lookups[nodeid]
            os.close(self.fds.pop(nodeid))
            self.log("forgotten", nodeid)

    def getattr(self, req, flags, fh):
        st = os.fstat(self.fds[req.nodeid] if fh is None else fh)
        return replies.attr_out_from_stat(self.switches.get("attr_valid", VALID), st, st.st_ino, st.st_nlink)

    def statx(self, req, flags, fh, sx_flags, sx_mask):
        st = os.fstat(self.fds[req.nodeid])
        return replies.statx_out(
            VALID, 0, 0xFFF, 4096, 0, st.st_nlink, st.st_uid, st.st_gid, st.st_mode, st.st_ino, st.st_size,
            st.st_blocks, 0, st.st_atime_ns, 1_234_567_890_123_456_789, st.st_ctime_ns, st.st_mtime_ns, 0, 0,
        )  # fmt: skip

    def setattr(self, req, args):
        path = self.path(req.nodeid)
        if args.valid & abi.FATTR_MODE:
            os.chmod(path, stat.S_IMODE(args.mode))
        if args.valid & (abi.FATTR_UID | abi.FATTR_GID):
            uid = args.uid if args.valid & abi.FATTR_UID else -1
            os.chown(path, uid, args.gid if args.valid & abi.FATTR_GID else -1)
        if args.valid & abi.FATTR_SIZE:
            os.truncate(path, args.size)
        st = os.stat(path)
        if args.valid & (abi.FATTR_ATIME | abi.FATTR_MTIME):
            atime = args.atime_ns if args.valid & abi.FATTR_ATIME else st.st_atime_ns
            os.utime(path, ns=(atime, args.mtime_ns if args.valid & abi.FATTR_MTIME else st.st_mtime_ns))
        return self.getattr(req, 0, None)

    def readlink(self, req):
        return os.readlink(b"", dir_fd=self.fds[req.nodeid])

    def symlink(self, req, name, target):
        os.symlink(target, name, dir_fd=self.fds[req.nodeid])
        return self.entry(req.nodeid, name)

    def mknod(self, req, name, mode, rdev, umask):
        os.mknod(name, mode & ~umask, rdev, dir_fd=self.fds[req.nodeid])
        return self.entry(req.nodeid, name)

    def mkdir(self, req, name, mode, umask):
        os.mkdir(name, mode & ~umask, dir_fd=self.fds[req.nodeid])
        return self.entry(req.nodeid, name)

    def unlink(self, req, name):
        os.unlink(name, dir_fd=self.fds[req.nodeid])

    def rmdir(self, req, name):
        os.rmdir(name, dir_fd=self.fds[req.nodeid])

    def rename(self, req, name, newdir, newname, flags):
        self.log("rename", name, newname, flags)
        files.renameat2(self.fds[req.nodeid], name, self.fds[newdir], newname, flags)

    def link(self, req, oldnodeid, newname):
        os.link(self.path(oldnodeid), newname, dst_dir_fd=self.fds[req.nodeid], follow_symlinks=True)
        return self.entry(req.nodeid, newname)

    def opened(self, fd, flags):
        if not self.switches.get("passthrough"):
            direct = abi.FOPEN_DIRECT_IO if self.switches.get("direct_io") else 0
            return fd, direct, 0
        self.backing[fd] = passthrough.backing_open(self.session.fd, fd)
        return fd, abi.FOPEN_PASSTHROUGH, self.backing[fd]

    def open(self, req, flags, open_flags):
        self.log("open", flags & os.O_ACCMODE)
        fd = os.open(self.path(req.nodeid), flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))
        return replies.open_out(*self.opened(fd, flags))

    def create(self, req, name, flags, mode, umask, open_flags):
        self.log("create", name, flags & os.O_ACCMODE, oct(mode), oct(umask))
        fd = os.open(name, flags | os.O_CREAT, mode & ~umask, dir_fd=self.fds[req.nodeid])
        return replies.create_out(self.entry(req.nodeid, name), *self.opened(fd, flags))

    def tmpfile(self, req, name, flags, mode, umask, open_flags):
        self.log("tmpfile")
        fd = os.open(b".", flags | os.O_TMPFILE, mode & ~umask, dir_fd=self.fds[req.nodeid])
        st = os.fstat(fd)
        self.fds[st.st_ino] = os.open(b"/proc/self/fd/%d" % fd, os.O_PATH)
        self.lookups[st.st_ino] = 1
        entry = replies.entry_from_stat(st.st_ino, 0, VALID, VALID, st, st.st_ino, st.st_nlink)
        return replies.create_out(entry, *self.opened(fd, flags))

    def read(self, req, fh, offset, size, read_flags, flags):
        self.log("read", offset, size)
        if self.switches.get("deferred_reads"):
            unique = req.unique

            def done(data, exc):
                self.session.reply(unique, data)

            self.pool.submit(lambda: os.pread(fh, size, offset), done)
            return DEFERRED
        return os.pread(fh, size, offset)

    def write(self, req, fh, offset, data, write_flags, flags):
        self.log("write", offset, len(data), flags & os.O_ACCMODE)
        return os.pwrite(fh, data, offset)

    def flush(self, req, fh, lock_owner):
        self.log("flush")

    def release(self, req, fh, flags, release_flags, lock_owner):
        self.log("release")
        if fh in self.backing:
            passthrough.backing_close(self.session.fd, self.backing.pop(fh))
        os.close(fh)

    def sync(self, name, *args):
        self.log(name, *args)
        if error := self.switches.get("sync_error"):
            raise OSError(error, "as asked for")

    def fsync(self, req, fh, datasync):
        self.sync("fsync", datasync)

    def fsyncdir(self, req, fh, datasync):
        self.sync("fsyncdir", datasync)

    def syncfs(self, req):
        self.sync("syncfs", req.nodeid)

    def fallocate(self, req, fh, offset, length, mode):
        self.log("fallocate", offset, length, mode)
        files.fallocate(fh, mode, offset, length)

    def lseek(self, req, fh, offset, whence):
        return replies.lseek_out(os.lseek(fh, offset, whence))

    def copy_file_range(self, req, fh_in, off_in, nodeid_out, fh_out, off_out, length, flags):
        self.log("copy_file_range", length)
        return os.copy_file_range(fh_in, fh_out, length, off_in, off_out)

    def ioctl(self, req, fh, flags, cmd, arg, data, out_size):
        self.log("ioctl", hex(cmd), flags, data, out_size)
        if cmd == IOCTL_WAIT:
            return DEFERRED
        if cmd == FS_IOC_GETFLAGS and "file_flags" in self.switches:
            return self.switches["file_flags"].to_bytes(4, sys.byteorder)
        if cmd != IOCTL_ECHO:
            raise OSError(errno.ENOTTY, "unknown ioctl")
        return data[::-1]

    def interrupt(self, unique):
        self.log("interrupt", unique)
        self.session.fail(unique, errno.EINTR)

    def access(self, req, mask):
        self.log("access", mask)

    def statfs(self, req):
        return replies.statfs_out(os.statvfs(self.root))

    def has_xattrs(self):
        """The switch no_xattrs is an errno: EOPNOTSUPP, or ENOSYS after which nobody asks again."""
        if error := self.switches.get("no_xattrs"):
            raise OSError(error, "no extended attributes")

    def setxattr(self, req, name, value, flags, setxattr_flags):
        self.has_xattrs()
        os.setxattr(self.path(req.nodeid), name, value, flags)

    def getxattr(self, req, name, size):
        self.has_xattrs()
        return os.getxattr(self.path(req.nodeid), name)

    def listxattr(self, req, size):
        self.has_xattrs()
        return b"".join(os.fsencode(name) + b"\0" for name in os.listxattr(self.path(req.nodeid)))

    def removexattr(self, req, name):
        self.has_xattrs()
        os.removexattr(self.path(req.nodeid), name)

    def opendir(self, req, flags):
        fd = os.open(self.path(req.nodeid), os.O_RDONLY | os.O_DIRECTORY)
        with os.scandir(fd) as entries:
            self.listings[fd] = [
                (e.inode(), e.name.encode(), e.stat(follow_symlinks=False).st_mode) for e in entries
            ]
        return replies.open_out(fd, abi.FOPEN_CACHE_DIR)

    def readdir(self, req, fh, offset, size, flags):
        return self.list(req, fh, offset, replies.DirentBuffer(size, False))

    def readdirplus(self, req, fh, offset, size, flags):
        return self.list(req, fh, offset, replies.DirentBuffer(size, True))

    def list(self, req, fh, offset, records):
        for off, (ino, name, mode) in enumerate(self.listings[fh][offset:], offset + 1):
            entry = self.entry(req.nodeid, name) if records.plus else None
            if not records.add(ino, off, stat.S_IFMT(mode) >> 12, name, entry):
                if entry:
                    self.forget(ino, 1)
                break
        return records.bytes()

    def releasedir(self, req, fh):
        del self.listings[fh]
        os.close(fh)


class Mirror:
    """A mounted MirrorFS: *point* shows *root*."""

    def __init__(
        self, root, point, *, fuseblk=False, wanted=None, checks_itself=False, helper=False, **switches
    ):
        self._checks_itself, self._helper = checks_itself, helper
        self.root, self.point = os.fsencode(root), os.fsencode(point)
        self.log = os.memfd_create("calls")
        self._read = 0
        ready, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(ready)
            status = 1
            try:
                self._serve(fuseblk, wanted, switches, tell)
                status = 0
            except BaseException:
                traceback.print_exc(file=sys.stderr)
            finally:
                os._exit(status)
        os.close(tell)
        with os.fdopen(ready, "rb") as pipe:
            self.type = pipe.read().decode()
        assert self.type, "the mount failed"

    def _serve(self, fuseblk, wanted, switches, tell):
        fd, kind = self._mount(fuseblk)
        operations = MirrorFS(self.root, self.log, switches)
        config = Config() if wanted is None else Config(wanted)
        session = operations.session = Session(fd, operations, config)
        session.handshake()
        if capture := switches.get("capture"):
            capture(session)
        device = Device(session, operations.pool, CpuFollow() if switches.get("cpu_follow") else None)
        os.write(tell, kind.encode())
        os.close(tell)
        device.run()

    def _mount(self, fuseblk):
        if self._helper:
            return mountpoint.via_fusermount3(self.point, [b"fsname=mirror", b"subtype=mirror"]), "fuse"
        fd = mountpoint.open_device()
        options = {"source": b"mirror", "subtype": b"mirror", "allow_other": os.getuid() == 0}
        options["default_permissions"] = not self._checks_itself
        if not fuseblk:
            return fd, mountpoint.mount(fd, self.point, **options)
        device, holder = loop.attach_memfd(b"mirror", 0)
        kind = mountpoint.mount(fd, self.point, block_device=device, **options)
        os.close(holder)
        return fd, kind

    def calls(self):
        """What reached the file system since the last time: a list of tuples."""
        data = os.pread(self.log, 1 << 20, self._read)
        self._read += len(data)
        return [eval(line) for line in data.splitlines()]

    def path(self, name=""):
        return os.path.join(os.fsdecode(self.point), name)

    def close(self):
        """Unmount, and wait for the process: it must end by itself, with status 0."""
        try:
            mountpoint.unmount(self.point)
        except OSError:  # a failed test has left something open
            os.kill(self.pid, signal.SIGKILL)
            mountpoint.unmount(self.point, lazy=True)
            os.waitpid(self.pid, 0)
            raise
        _, status = os.waitpid(self.pid, 0)
        assert status == 0
