"""One side's view of a mount: every call is a step, and a step's result or errno goes into a log.

Paths are relative: the process that runs a scenario stands in the root of the mount.
"""

import errno
import fcntl
import hashlib
import os
import pickle
import stat
import struct

from support import syscalls

# The layers get times far in the past; what is younger than this was set just now.
NOW = 1_700_000_000
KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


def when(ns):
    """A time that two runs can share."""
    return "now" if ns >= NOW * 10**9 else ns


def plain_stat(st):
    """What must be alike of a stat on both sides."""
    kind = KINDS[stat.S_IFMT(st.st_mode)]
    return {
        "kind": kind,
        "mode": oct(stat.S_IMODE(st.st_mode)),
        "owner": (st.st_uid, st.st_gid),
        # The size of a directory is the upper file system's business (it depends on what was in it before).
        "size": None if kind == "dir" else st.st_size,
        "nlink": st.st_nlink,
        "rdev": st.st_rdev if kind in ("char", "block") else 0,
        "mtime": when(st.st_mtime_ns),
    }


def plain(value):
    """A result in a form that two runs can share and a person can read."""
    if isinstance(value, os.stat_result):
        return plain_stat(value)
    if isinstance(value, Fd):
        return "opened"
    if isinstance(value, bytes) and len(value) > 200:
        return f"{len(value)} bytes, sha1 {hashlib.sha1(value).hexdigest()}"
    return value


class Fd(int):
    """A file descriptor: an int that does not show its number, which differs from run to run."""

    def __repr__(self):
        return "fd"


def step(method):
    """A method whose outcome is logged; an OSError is an outcome, and the step then returns None."""
    name = method.__name__

    def wrapped(self, *args, **kwargs):
        shown = [*map(_short, args), *(f"{k}={_short(v)}" for k, v in kwargs.items())]
        try:
            value = method(self, *args, **kwargs)
            self.log.append((f"{name}({', '.join(shown)})", plain(value)))
            return value
        except OSError as e:
            self.log.append((f"{name}({', '.join(shown)})", errno.errorcode.get(e.errno, e.errno)))
            return None

    return wrapped


def _short(value):
    text = repr(value)
    return text if len(text) < 60 else text[:40] + f"…({len(value) if hasattr(value, '__len__') else ''})"


def acl(user=6, group=4, other=4, mask=None, users=None, groups=None):
    """A POSIX ACL as the kernel's xattr wants it (struct posix_acl_xattr_header and entries)."""
    entries = [(0x01, user, 0xFFFFFFFF)]
    entries += [(0x02, perm, uid) for uid, perm in sorted((users or {}).items())]
    entries += [(0x04, group, 0xFFFFFFFF)]
    entries += [(0x08, perm, gid) for gid, perm in sorted((groups or {}).items())]
    if mask is None and (users or groups):
        mask = 7
    if mask is not None:
        entries += [(0x10, mask, 0xFFFFFFFF)]
    entries += [(0x20, other, 0xFFFFFFFF)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)


ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


class Tree:
    """The steps. A file descriptor is an int, or None after a failed open (its steps then say EBADF)."""

    def __init__(self):
        self.log = []
        self._inodes = {}

    # ------------------------------------------------------------ not steps

    def note(self, what, value):
        """Log something that a scenario has worked out itself."""
        self.log.append((what, value))

    def as_user(self, uid, gid=None, groups=()):
        """with t.as_user(1000): …: the effective credentials of somebody else."""
        return _As(uid, uid if gid is None else gid, groups)

    def umask(self, mask):
        return _Umask(mask)

    def elsewhere(self, function):
        """Run function() in another process; its steps join the log."""
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self.log = []
                function()
                with open(write_end, "wb") as f:
                    pickle.dump(self.log, f)
            finally:
                os._exit(0)
        os.close(write_end)
        with open(read_end, "rb") as f:
            self.log += [("elsewhere: " + what, value) for what, value in pickle.load(f)]
        os.waitpid(pid, 0)

    # ------------------------------------------------------------ looking

    @step
    def stat(self, path):
        return os.stat(path)

    @step
    def lstat(self, path):
        return os.lstat(path)

    @step
    def fstat(self, fd):
        return os.fstat(_fd(fd))

    @step
    def blocks(self, path):
        """Is the file stored sparsely?"""
        st = os.stat(path)
        return "sparse" if st.st_blocks * 512 < st.st_size else "full"

    @step
    def same_inode(self, label, path):
        """Is the inode number the one that was seen under this label before?"""
        number = os.fstat(path).st_ino if isinstance(path, int) else os.lstat(path).st_ino
        return self._inodes.setdefault(label, number) == number

    @step
    def one_device(self, *paths):
        return len({os.lstat(p).st_dev for p in paths}) == 1

    @step
    def read(self, path):
        with open(path, "rb", buffering=0) as f:
            return f.read()

    @step
    def readlink(self, path):
        return os.readlink(path)

    @step
    def list(self, path="."):
        """Names and types, with those of stat beside them when they differ."""
        found = []
        for name, _ino, _offset, kind in syscalls.list_directory(path):
            if name not in (b".", b".."):
                try:
                    real = stat.S_IFMT(os.lstat(os.path.join(os.fsencode(path), name)).st_mode) >> 12
                except OSError as e:
                    real = errno.errorcode[e.errno]
                found.append((name, kind if kind == real else (kind, real)))
        return sorted(found)

    @step
    def dots(self, path):
        """Are "." and ".." there, once each, with the right inode numbers?"""
        found = {n: ino for n, ino, _, _ in syscalls.list_directory(path) if n in (b".", b"..")}
        return {
            ".": found.get(b".") == os.stat(path).st_ino,
            "..": found.get(b"..") == os.stat(os.path.join(os.fsencode(path), b"..")).st_ino,
        }

    @step
    def access(self, path, mode):
        return os.access(path, mode, effective_ids=True)

    @step
    def statfs(self, path="."):
        st = os.statvfs(path)
        return (st.f_bsize, st.f_frsize, st.f_namemax, st.f_blocks, st.f_files, st.f_flag & 1)

    @step
    def chdir(self, path):
        os.chdir(path)

    # ------------------------------------------------------------ names

    @step
    def create(self, path, data=b"", mode=0o644, flags=os.O_EXCL):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, mode)
        try:
            if data:
                os.write(fd, data)
        finally:
            os.close(fd)

    @step
    def mkdir(self, path, mode=0o755):
        os.mkdir(path, mode)

    @step
    def mknod(self, path, mode, device=0):
        os.mknod(path, mode, device)

    @step
    def symlink(self, target, path):
        os.symlink(target, path)

    @step
    def link(self, old, new):
        os.link(old, new, follow_symlinks=False)

    @step
    def unlink(self, path):
        os.unlink(path)

    @step
    def rmdir(self, path):
        os.rmdir(path)

    @step
    def rename(self, old, new, flags=0):
        syscalls.renameat2(old, new, flags)

    @step
    def link_fd(self, fd, path):
        syscalls.linkat_fd(_fd(fd), path)

    # ------------------------------------------------------------ attributes

    @step
    def chmod(self, path, mode):
        os.chmod(path, mode)

    @step
    def chown(self, path, uid, gid):
        os.chown(path, uid, gid, follow_symlinks=False)

    @step
    def utime(self, path, atime, mtime):
        """Nanoseconds."""
        os.utime(path, ns=(atime, mtime), follow_symlinks=False)

    @step
    def touch(self, path):
        os.utime(path)

    @step
    def atime(self, path):
        return when(os.lstat(path).st_atime_ns)

    @step
    def ctime_is_now(self, path):
        return when(os.lstat(path).st_ctime_ns)

    @step
    def flags(self, path):
        """As lsattr(1) shows them."""
        return _letters(syscalls.get_flags(path))

    @step
    def chattr(self, path, flags):
        syscalls.set_flags(path, flags)

    @step
    def fsxattr(self, path):
        """Without the number of extents, which is the file system's business."""
        xflags, extsize, _nextents, *rest = syscalls.get_fsxattr(path)
        return (hex(xflags), extsize, *rest)

    @step
    def set_fsxattr(self, path, xflags, *rest):
        syscalls.set_fsxattr(path, xflags, *rest or (0, 0, 0, 0))

    @step
    def ioctl(self, path, command, size=0):
        """The errno, mostly; what it answers if not."""
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return fcntl.ioctl(fd, command, bytes(size)) if size else fcntl.ioctl(fd, command)
        finally:
            os.close(fd)

    @step
    def truncate(self, path, size):
        os.truncate(path, size)

    @step
    def setxattr(self, path, name, value, flags=0):
        os.setxattr(path, name, value, flags, follow_symlinks=False)

    @step
    def getxattr(self, path, name):
        return os.getxattr(path, name, follow_symlinks=False)

    @step
    def listxattr(self, path):
        return sorted(os.listxattr(path, follow_symlinks=False))

    @step
    def removexattr(self, path, name):
        os.removexattr(path, name, follow_symlinks=False)

    # ------------------------------------------------------------ open files

    @step
    def open(self, path, flags=os.O_RDONLY, mode=0o644):
        return Fd(os.open(path, flags, mode))

    @step
    def close(self, fd):
        os.close(_fd(fd))

    @step
    def pread(self, fd, size, offset):
        return os.pread(_fd(fd), size, offset)

    @step
    def pwrite(self, fd, data, offset):
        return os.pwrite(_fd(fd), data, offset)

    @step
    def write(self, fd, data):
        return os.write(_fd(fd), data)

    @step
    def fread(self, fd, size):
        return os.read(_fd(fd), size)

    @step
    def ftruncate(self, fd, size):
        os.ftruncate(_fd(fd), size)

    @step
    def fchmod(self, fd, mode):
        os.fchmod(_fd(fd), mode)

    @step
    def fchown(self, fd, uid, gid):
        os.fchown(_fd(fd), uid, gid)

    @step
    def futimens(self, fd, atime, mtime):
        os.utime(_fd(fd), ns=(atime, mtime))

    @step
    def fsetxattr(self, fd, name, value):
        os.setxattr(_fd(fd), name, value)

    @step
    def fgetxattr(self, fd, name):
        return os.getxattr(_fd(fd), name)

    @step
    def fsync(self, fd):
        os.fsync(_fd(fd))

    @step
    def fdatasync(self, fd):
        os.fdatasync(_fd(fd))

    @step
    def syncfs(self, fd):
        syscalls.syncfs(_fd(fd))

    @step
    def lseek(self, fd, offset, whence):
        return os.lseek(_fd(fd), offset, whence)

    @step
    def fallocate(self, fd, mode, offset, length):
        syscalls.fallocate(_fd(fd), mode, offset, length)

    @step
    def copy_file_range(self, source, target, count, from_offset=None, to_offset=None):
        return os.copy_file_range(_fd(source), _fd(target), count, from_offset, to_offset)

    @step
    def flock(self, fd, operation):
        fcntl.flock(_fd(fd), operation)

    @step
    def lockf(self, fd, operation, length=0, start=0):
        fcntl.lockf(_fd(fd), operation, length, start)

    @step
    def ofd_lock(self, fd, kind):
        """F_OFD_SETLK on the whole file."""
        fcntl.fcntl(_fd(fd), 37, struct.pack("hhqqi4x", kind, 0, 0, 0, 0))

    @step
    def overwrite(self, path, data, offset=0):
        """Open an existing file for writing and write."""
        fd = os.open(path, os.O_WRONLY)
        try:
            os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    @step
    def append(self, path, data):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)


def _letters(flags):
    return "".join(letter for letter, bit in zip("iadAS", _FLAGS) if flags & bit)


_FLAGS = (
    syscalls.FS_IMMUTABLE_FL,
    syscalls.FS_APPEND_FL,
    syscalls.FS_NODUMP_FL,
    syscalls.FS_NOATIME_FL,
    syscalls.FS_SYNC_FL,
)


def _fd(fd):
    if fd is None:
        raise OSError(errno.EBADF, "the open failed")
    return fd


class _As:
    def __init__(self, uid, gid, groups):
        self.wanted = (uid, gid, list(groups))

    def __enter__(self):
        uid, gid, groups = self.wanted
        os.setgroups(groups)
        os.setegid(gid)
        os.seteuid(uid)

    def __exit__(self, *_):
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


class _Umask:
    def __init__(self, mask):
        self.mask = mask

    def __enter__(self):
        self.old = os.umask(self.mask)

    def __exit__(self, *_):
        os.umask(self.old)
