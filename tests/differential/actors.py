"""More steps for a Tree: several processes of several users, mappings, listings that stay open, and looks.

The fuzzer plays its programs with these, and what it finds can be pasted as a scenario.
"""

import ctypes
import errno
import mmap
import os
import pickle
import stat
import struct

from differential.tree import Tree, _fd, plain, plain_stat, step, when
from support import syscalls

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
_PAGE = 4096


def die_with_parent():
    """SIGKILL for this process when the thread that has forked it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL)


class Actor(Tree):
    """A Tree with more to do."""

    def __init__(self):
        super().__init__()
        self._maps = {}
        self._next_map = 0
        self._listings = {}
        self._processes = []

    # ------------------------------------------------------------ processes

    def process(self, uid=0, gid=None, groups=()):
        """Another process, of that user: has the same steps, which join this log."""
        made = Process(self, uid, uid if gid is None else gid, list(groups))
        self._processes.append(made)
        return made

    def end(self):
        """Ends the other processes."""
        for each in self._processes:
            each.end()
        self._processes = []

    # ------------------------------------------------------------ looks

    @step
    def look(self, path):
        """All that stat shows; st_ino is made comparable later (see fuzz_program)."""
        return _looked(os.lstat(path))

    @step
    def flook(self, fd):
        return _looked(os.fstat(_fd(fd)))

    def mode(self, fd):
        """(mode, whether the name is gone by which it was opened); not a step."""
        return os.fstat(fd).st_mode, os.readlink("/proc/self/fd/%d" % fd).endswith(" (deleted)")

    def number(self, fd):
        return os.fstat(fd).st_ino

    def do(self, verb, arguments, looked=()):
        """A step, and looks at open files afterwards: one message to another process."""
        value = getattr(self, verb)(*arguments)
        for fd in looked:
            self.flook(fd)
        return value

    @step
    def xattrs(self, path):
        """All names and values."""
        return {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        }

    @step
    def seek(self, fd, offset, whence):
        """lseek of files; the positions in a directory are the file system's own."""
        if stat.S_ISDIR(os.fstat(_fd(fd)).st_mode):
            return "a directory"
        found = os.lseek(fd, offset, whence)
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            os.lseek(fd, offset, os.SEEK_SET)  # where holes are is not the same everywhere
        return found

    @step
    def sendfile(self, target, source, offset, size):
        return os.sendfile(_fd(target), _fd(source), offset, size)

    @step
    def umask(self, mask):
        """For good, in this process."""
        os.umask(mask)

    # ------------------------------------------------------------ open directories

    @step
    def getdents(self, fd, size=320):
        """Reads on in an open directory; the order, and so what is left, is nobody's business."""
        self._read_on(_fd(fd), size)

    @step
    def relist(self, fd):
        """rewinddir, and all names, with the errors that they give."""
        os.lseek(_fd(fd), 0, os.SEEK_SET)
        self._listings.pop(fd, None)
        found = []
        while part := syscalls.getdents(fd, 4096):
            found += [(name, (0, _error(name, fd))) for name, _, _, _ in part]
        return sorted(found)

    @step
    def at(self, fd, what, name):
        """Something done to a name in an open directory, wherever that is by now."""
        fd = _fd(fd)
        if what == "create":
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=fd))
        elif what == "rename":
            os.rename(name, b"renamed", src_dir_fd=fd, dst_dir_fd=fd)
        elif what == "stat":
            return plain_stat(os.stat(name, dir_fd=fd, follow_symlinks=False))
        else:
            {"mkdir": os.mkdir, "unlink": os.unlink, "rmdir": os.rmdir}[what](name, dir_fd=fd)

    @step
    def rest(self, fd):
        """Reads on to the end: names seen twice since the beginning, names missed that always were there."""
        fd = _fd(fd)
        while self._read_on(fd, 4096):
            pass
        seen, there = self._listings.pop(fd, ([], {}))
        still = {name for name, ino in _inside(fd).items() if there.get(name) == ino}
        return sorted({n for n in seen if seen.count(n) > 1}), sorted(still - set(seen))

    @step
    def resume(self, fd):
        """Whether a kept position leads to the same names again."""
        fd = _fd(fd)
        self._listings.pop(fd, None)
        os.lseek(fd, 0, os.SEEK_SET)
        part = syscalls.getdents(fd, 300)
        first = _remaining(fd)
        if part:
            os.lseek(fd, part[-1][2], os.SEEK_SET)
        return first == _remaining(fd)

    def _read_on(self, fd, size):
        """getdents, remembering what has been seen since the beginning and what was there then."""
        if os.lseek(fd, 0, os.SEEK_CUR) == 0:
            self._listings[fd] = ([], _inside(fd))
        elif fd not in self._listings:
            self._listings[fd] = ([], {})
        part = syscalls.getdents(fd, size)
        self._listings[fd][0].extend(name for name, _, _, _ in part if name not in (b".", b".."))
        return part

    # ------------------------------------------------------------ mappings

    @step
    def mmap(self, fd, size=2 * _PAGE, shared=True, writable=False):
        """Maps the beginning of a file; returns a number for mread, mwrite and munmap."""
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        _fd(fd)
        made = _Map(fd, size, flags, protection)
        self._next_map += 1
        self._maps[self._next_map] = (made, os.dup(fd), shared)
        return self._next_map

    @step
    def mread(self, number, offset, size):
        """(what the mapping shows, what pread shows), within the pages of the file."""
        mapped, fd, _shared = self._mapped(number)
        end = min(offset + size, len(mapped), os.fstat(fd).st_size)
        if end <= offset:
            return "beyond the end"
        return mapped[offset:end], os.pread(fd, end - offset, offset)

    @step
    def mwrite(self, number, offset, data):
        """Writes through a mapping, and tells what stands there then."""
        mapped, fd, shared = self._mapped(number)
        end = min(offset + len(data), len(mapped), os.fstat(fd).st_size)
        if end <= offset:
            return "beyond the end"
        try:
            mapped[offset:end] = data[: end - offset]
        except TypeError:
            raise OSError(errno.EACCES, "mapped for reading")
        return mapped[offset:end], os.pread(fd, end - offset, offset) if shared else None

    @step
    def msync(self, number):
        self._mapped(number)[0].flush()

    @step
    def munmap(self, number):
        mapped, fd, _shared = self._mapped(number)
        del self._maps[number]
        mapped.close()
        os.close(fd)

    def _mapped(self, number):
        if number not in self._maps:
            raise OSError(22, "not mapped")
        return self._maps[number]


def _Map(fd, size, flags, protection):
    # mmap.mmap refuses sizes beyond the end of the file, which the kernel allows; trackfd is from 3.13.
    st = os.fstat(fd)
    end = st.st_size
    if not stat.S_ISREG(st.st_mode):
        raise OSError(errno.ENODEV, "no file")
    if end == 0:
        raise OSError(22, "nothing to map")
    return mmap.mmap(fd, min(size, end), flags, protection)


def _looked(st):
    return {**plain_stat(st), "atime": when(st.st_atime_ns), "ino": st.st_ino}


def _inside(fd):
    """{name: st_ino} of a directory, by a descriptor of its own: the position stays."""
    other = os.open("/proc/self/fd/%d" % fd, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return {os.fsencode(e.name): e.inode() for e in os.scandir(other)}
    finally:
        os.close(other)


def _remaining(fd):
    found = []
    while part := syscalls.getdents(fd, 4096):
        found += [name for name, _, _, _ in part]
    return sorted(found)


def _error(name, directory):
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as e:
        return errno.errorcode[e.errno]
    return None


class Process:
    """Steps in a forked process; their log entries appear in the owner's log."""

    def __init__(self, owner, uid, gid, groups):
        self.owner, self.uid = owner, uid
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for other in (self, *owner._processes):
                    os.close(other._commands)
                    os.close(other._answers)
                os.setgroups(groups)
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
                syscalls.set_dumpable()
                die_with_parent()  # only now: a change of uid resets it
                _serve(read_commands, write_answers)
            finally:
                os._exit(0)
        os.close(read_commands)
        os.close(write_answers)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            _send(self._commands, (name, args, kwargs))
            answer = _receive(self._answers)
            if answer is None:
                _, status = os.waitpid(self.pid, 0)
                raise ChildProcessError(f"uid {self.uid}: the process has ended with wait status {status}")
            value, log = answer
            self.owner.log += [(f"uid {self.uid}: {what}", outcome) for what, outcome in log]
            return value

        return call

    def end(self):
        os.close(self._commands)
        os.close(self._answers)
        os.waitpid(self.pid, 0)


def _serve(commands, answers):
    tree = Actor()
    while (command := _receive(commands)) is not None:
        name, args, kwargs = command
        tree.log = []
        value = getattr(tree, name)(*args, **kwargs)
        if isinstance(value, os.stat_result):
            value = plain(value)
        _send(answers, (value, tree.log))


def _send(fd, value):
    data = pickle.dumps(value)
    data = struct.pack("I", len(data)) + data
    while data:
        data = data[os.write(fd, data) :]


def _receive(fd):
    head = _exactly(fd, 4)
    return None if len(head) < 4 else pickle.loads(_exactly(fd, struct.unpack("I", head)[0]))


def _exactly(fd, size):
    data = b""
    while len(data) < size and (part := os.read(fd, size - len(data))):
        data += part
    return data


def kind_of(path):
    """S_IFMT of what lies there, or None."""
    try:
        return stat.S_IFMT(os.lstat(path).st_mode)
    except OSError:
        return None
