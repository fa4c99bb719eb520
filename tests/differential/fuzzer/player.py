"""Plays steps on a mount: knows the processes and their open files."""

import errno
import os
import stat
import time

from differential.actors import Actor, kind_of
from differential.fuzzer.accepted import has_flags
from differential.fuzzer.picks import concrete
from differential.fuzzer.program import OPENING, REMOUNT, USERS, Slot
from support import syscalls

LEFT_OUT = [("left out", None)]
MS_RDONLY, MS_REMOUNT = 1, 32
# Which arguments of a verb are paths that are looked at afterwards.
PATHS = {
    **dict.fromkeys(
        "open create mkdir mknod unlink rmdir chmod chown utime touch truncate setxattr removexattr "
        "read readlink getxattr list access".split(),
        (0,),
    ),
    **dict.fromkeys(("link", "rename"), (0, 1)),
    "symlink": (1,),
    "link_fd": (1,),
}
ON_FILES = frozenset(
    "pread fread pwrite write ftruncate fchmod fchown futimens fsetxattr fgetxattr fsync fdatasync seek "
    "fallocate copy_file_range sendfile at relist getdents rest link_fd".split()
)


class Player:
    """One segment of a program, in the process that stands in the root of the mount."""

    def __init__(self, program, point, names):
        self.root = Actor()
        self.point, self.names = point, names
        self.looks, self.daemon = program.looks, program.daemon
        self.read_only = "ro" in program.options or program.upper is None
        self.has_upper = bool(program.upper)
        self.flagged = has_flags(program)
        self.userxattr = "userxattr" in program.options
        self.on_xfs = program.on == "xfs"
        self.allocates = any(step[1] == "fallocate" for step in program.steps)
        self.processes = {0: self.root}
        self.slots = {}
        self.flags = MS_RDONLY if self.read_only else 0

    def step(self, step, skip):
        """(the step without picks, log entries): the first entry is the step's own, the others are looks.

        skip: whether it is left out; None: where it is not worth it.
        """
        step = concrete(step, self.names, self.slots)
        who, verb, *arguments = step
        self.root.log = []
        if verb in REMOUNT:
            if skip:
                return step, LEFT_OUT
            return step, [(f"{verb}()", self._remount(verb))]
        worth = self._worth(who, verb, arguments)  # always, since it sets access times
        if not worth if skip is None else skip:
            return step, LEFT_OUT
        process = self._process(who)
        slot = arguments.pop(0).number if verb in OPENING else None
        filled = [self._fill(who, a) for a in arguments]
        if slot is not None and (who, slot) in self.slots:
            self._close(who, slot)
        value = process.do(verb, filled, self._open_ones(verb, arguments, filled))
        if slot is not None:
            self.slots[who, slot] = (verb, value)
        if verb in ("close", "munmap") and isinstance(arguments[0], Slot):
            self.slots.pop((who, arguments[0].number), None)
        self.names.note(verb, filled, value, not _failed(self.root.log))
        if self.looks:
            self._look(verb, filled)
        return step, self.root.log

    def _process(self, who):
        if who not in self.processes:
            self.processes[who] = self.root.process(*USERS[who])
        return self.processes[who]

    def _remount(self, verb):
        """ "forget" changes nothing but what the kernel has cached: dentries and inodes are shrunk."""
        if verb == "rw" and self.read_only:
            return None  # FUSE asks nobody, and voile stays as it was mounted
        flags = {"forget": self.flags, "ro": MS_RDONLY, "rw": 0}[verb]
        for pause in (0.001, 0.01, 0.1, None):
            try:
                syscalls.mount(None, self.point, None, MS_REMOUNT | flags)
                break
            except OSError as e:
                # The inode of a file that has lost its names lives until FUSE's RELEASE is answered.
                if e.errno != errno.EBUSY or pause is None:
                    return os.strerror(e.errno)
                time.sleep(pause)
        self.flags = flags
        return None

    def _fill(self, who, argument):
        if isinstance(argument, Slot):
            return self.slots.get((who, argument.number), (None, None))[1]
        return argument

    def _close(self, who, slot):
        verb, value = self.slots.pop((who, slot))
        if value is not None:
            process = self.processes[who]
            (process.close if verb == "open" else process.munmap)(value)
            self.root.log.pop()

    def _open_ones(self, verb, arguments, filled):
        if not self.looks or verb not in ON_FILES:
            return []
        found = [v for argument, v in zip(arguments, filled) if isinstance(argument, Slot) and v is not None]
        return list(dict.fromkeys(found))

    def _look(self, verb, filled):
        paths = [filled[index] for index in PATHS.get(verb, ())]
        for each in dict.fromkeys(p for path in paths for p in (path, os.path.dirname(path) or b".")):
            self.root.look(each)

    def _worth(self, who, verb, arguments):
        """False for steps that would wait, or differ by a decision (see accepted)."""
        check = WORTH.get(verb)
        return check(self, who, arguments) if check else True

    def _rename(self, who, arguments):
        # Over a directory that is not empty: refused by both, but the kernel has copied up and marked the
        # source by then when the target is a pure upper one.
        old, new, flags = arguments
        if not flags and kind_of(old) == kind_of(new) == stat.S_IFDIR:
            try:
                # Where the redirect is too long (OVL_REDIRECT_MAX) the kernel has cleared the target by then.
                return not os.listdir(new) and len(old) < 200
            except OSError:
                return False
        return True

    def _write(self, who, arguments):
        # Set-id bits that a file got while it was open stay with the kernel when root writes, and S_ISGID
        # without the group's execute bit when somebody of the group does; with voile they go: who writes
        # through FUSE passthrough is not known.
        process = self._process(who)
        for each in arguments:
            fd = self._fill(who, each) if isinstance(each, Slot) else None
            mode = 0 if fd is None else process.mode(fd)[0]
            if mode & 0o6000 if who == 0 else mode & 0o2010 == 0o2000:
                return False
        return True

    def _sendfile(self, who, arguments):
        # Within one file it reads what it has just written, more or less.
        fds = [self._fill(who, each) for each in arguments[:2]]
        if None in fds:
            return True
        process = self._process(who)
        return process.number(fds[0]) != process.number(fds[1]) and self._write(who, arguments)

    def _fchange(self, who, arguments):
        # A special file of a lower layer that has lost its name gets it back in the kernel's upper directory.
        fd = self._fill(who, arguments[0])
        if fd is None:
            return True
        mode, deleted = self._process(who).mode(fd)
        return not deleted or stat.S_ISREG(mode) or stat.S_ISDIR(mode)

    def _chattr(self, who, arguments):
        # A directory in which a merged one has not been looked up yet: the kernel's first lookup fails, since
        # the mark "impure" cannot be set. With FUSE a listing may have been that lookup.
        return not (self.has_upper and arguments[1] & 0x30 and kind_of(arguments[0]) == stat.S_IFDIR)

    def _mmap(self, who, arguments):
        # What is append-only may not be mapped by who could write to it, but FUSE does not know that it is.
        return not (self.flagged and arguments[3])

    def _mwrite(self, who, arguments):
        # FUSE sets the times when the page is written back, not when it is first written to.
        return "passthrough=off" not in self.daemon

    def _truncate(self, who, arguments):
        try:
            st = os.stat(arguments[0])
        except OSError:
            return True
        # XFS does nothing at all where a file without a size gets none, not even to set-id bits.
        if self.on_xfs and st.st_mode & 0o6000 and not st.st_size:
            return False
        # With the size it has: tmpfs changes the times where it has pages. The kernel's copy-up makes none
        # for a hole, voile's does where the file has blocks elsewhere, behind its end.
        return st.st_size != arguments[1] or not self.allocates

    def _ftruncate(self, who, arguments):
        fd = self._fill(who, arguments[0])
        special = fd is not None and self._process(who).mode(fd)[0] & 0o6000
        return self._write(who, arguments) and not (self.on_xfs and special)

    def _link(self, who, arguments):
        # The names of a special file, which can have no user.* attributes and so no origin, are inodes of
        # their own to the kernel.
        if not self.userxattr:
            return True
        try:
            return stat.S_ISREG(os.lstat(arguments[0]).st_mode)
        except OSError:
            return True

    def _link_fd(self, who, arguments):
        fd = self._fill(who, arguments[0])
        return not self.userxattr or fd is None or stat.S_ISREG(self._process(who).mode(fd)[0])

    def _no_fifo(self, who, arguments):
        # It would wait for somebody at the other end.
        try:
            return not stat.S_ISFIFO(os.stat(arguments[0]).st_mode)
        except OSError:
            return True


WORTH = {
    "rename": Player._rename,
    **dict.fromkeys(
        ("pwrite", "write", "copy_file_range", "fallocate"), Player._write
    ),
    "ftruncate": Player._ftruncate,
    "sendfile": Player._sendfile,
    **dict.fromkeys(("fchmod", "fchown", "futimens", "fsetxattr"), Player._fchange),
    "chattr": Player._chattr,
    "truncate": Player._truncate,
    "mmap": Player._mmap,
    "link": Player._link,
    "link_fd": Player._link_fd,
    "mwrite": Player._mwrite,
    **dict.fromkeys(("read", "create"), Player._no_fifo),
}


def _failed(log):
    return bool(log) and isinstance(log[0][1], str) and log[0][1].startswith("E")
