"""A program: layers, mount options and steps, as plain data; built and played on one side.

A step is (process, verb, arguments…). Process 0 is root's, the others belong to ordinary users. Verbs are the
methods of an Actor, except those of MOUNT, which are done to the mount itself between the steps.
"""

import errno
import os
import stat
from collections import namedtuple
from functools import partial

from differential import snapshot
from differential.actors import Actor, kind_of
from differential.builder import Layer
from support import fsck, syscalls
from support.users import in_child

MS_REMOUNT = 32
USERS = ((0, 0, ()), (1000, 1000, ()), (2000, 1000, (3000,)))
# What happens to the mount: mounted anew; the same with the upper as topmost lower layer; its caches dropped.
MOUNT = ("remount", "restack", "forget")
# Which arguments of a verb are paths that are looked at afterwards, and which is a slot.
PATHS = {
    **dict.fromkeys(
        "open create mkdir mknod unlink rmdir chmod chown utime touch truncate setxattr removexattr "
        "read readlink getxattr list overwrite append access".split(),
        (0,),
    ),
    **dict.fromkeys(("link", "rename"), (0, 1)),
    "symlink": (1,),
    "link_fd": (1,),
}
OPENING = ("open", "mmap")

Program = namedtuple(
    "Program",
    "options daemon on lowers_on upper lowers steps looks",
    defaults=((), (), "tmpfs", None, [], [[]], [], True),
)
"""options: for both sides. daemon: for voile alone. on, lowers_on: kinds of file systems (None: the same).
upper, lowers (top first): calls of builder.Layer, (method, arguments…). looks: compare after each step."""


class Slot(namedtuple("Slot", "number")):
    """The result of an earlier step of the same process: an open file, or a mapping."""

    __slots__ = ()

    def __repr__(self):
        return f"Slot({self.number})"


def segments(program):
    """[(what is done to the mount before, steps)]: processes and open files do not outlive a mount."""
    parts = [(None, [])]
    for number, step in enumerate(program.steps):
        if step[1] in ("remount", "restack"):
            parts.append((step[1], []))
        else:
            parts[-1][1].append((number, step))
    return parts


def build(layer, calls, below):
    """Makes what can be made; what cannot (its name is taken, its parent is a file) is left out.

    `below`: the roots of the layers below, built already.
    """
    for method, *arguments in calls:
        if method == "moved":
            _moved(layer, *arguments)
        elif method == "xwhiteout":
            _xwhiteout(layer, *arguments)
        elif method == "link":
            if _free(layer, arguments[1]) and kind_of(_at(layer, arguments[0])) not in (None, stat.S_IFDIR):
                if _inside(layer, arguments[0]):
                    layer.link(*arguments)
        elif _free(layer, arguments[0]) or (
            method in ("dir", "opaque") and _inside(layer, arguments[0]) and _is_dir(layer, arguments[0])
        ):
            if method == "big":  # too big to be copied up in passing
                layer.file(arguments[0], b"0123456789abcdef" * 20_000)
            else:
                getattr(layer, method)(*arguments)
    _without_stale_whiteouts(layer, below)
    layer.settle()


def _without_stale_whiteouts(layer, below):
    """Where nothing is merged the kernel lists whiteouts, and cannot remove what holds them; voile can."""
    for directory, names, files in os.walk(layer.root):
        relative = os.path.relpath(directory, layer.root)
        parents = [] if relative == b"." else relative.split(b"/")
        prefixes = [b"/".join(parents[: n + 1]) for n in range(len(parents))]
        if all(_merges(layer, prefix, below) for prefix in prefixes):
            continue
        for name in names + files:
            path = os.path.join(directory, name)
            if kind_of(path) == stat.S_IFCHR and os.lstat(path).st_rdev == 0:
                os.unlink(path)


def _merges(layer, path, below):
    marks = {name.rpartition(".")[2] for name in os.listxattr(_at(layer, path))}
    if marks & {"opaque", "redirect"}:
        return False
    kinds = [kind for root in below if (kind := kind_of(os.path.join(root, path))) is not None]
    return kinds[:1] == [stat.S_IFDIR]


def _moved(layer, old, new, relative):
    """What rename(2) leaves of a lower directory: a whiteout, and a directory that redirects there."""
    if not (_free(layer, old) and _free(layer, new)) or new.startswith(old + b"/") or old == new:
        return
    same_parent = os.path.dirname(old) == os.path.dirname(new)
    value = os.path.basename(old) if relative and same_parent else b"/" + old
    layer.whiteout(old)
    layer.dir(new, 0o755, (0, 0), {"trusted.overlay.redirect": value})


def _xwhiteout(layer, directory, name):
    """The form of a whiteout for layers that lie on an overlay themselves."""
    if _inside(layer, directory) and kind_of(_at(layer, directory)) in (None, stat.S_IFDIR):
        path = directory + b"/" + name
        if _free(layer, path):
            layer.file(path, b"", 0o644, (0, 0), {"trusted.overlay.whiteout": b"y"})
            layer.dir(directory, 0o755, (0, 0), {"trusted.overlay.opaque": b"x"})


def _at(layer, name):
    return os.path.join(layer.root, name)


def _is_dir(layer, name):
    return kind_of(_at(layer, name)) == stat.S_IFDIR


def _inside(layer, name):
    """Every directory on the way is one of the layer's own, or is still missing."""
    parts = name.split(b"/")[:-1]
    kinds = [kind_of(_at(layer, b"/".join(parts[: n + 1]))) for n in range(len(parts))]
    return all(kind in (None, stat.S_IFDIR) for kind in kinds)


def _free(layer, name):
    return _inside(layer, name) and kind_of(_at(layer, name)) is None


class Side:
    """A program on one overlay, and what was seen of it."""

    def __init__(self, program, overlay, options):
        self.program, self.overlay, self.layers, self.options = program, overlay, overlay.layers, options
        ordinary = "userxattr" in program.options
        below = []
        parts = zip([self.layers.upper, *self.layers.lowers], [program.upper, *program.lowers])
        for path, calls in reversed(list(parts)):
            build(Layer(path, ordinary), calls, below)
            below.insert(0, os.fsencode(path))
        self.lowers = [snapshot.raw(lower) for lower in self.layers.lowers]
        self.sick = fsck.complaints(self.layers, ",".join(program.options))
        # One list of (what, outcome) for each step.
        self.log = [[] for _ in program.steps]
        self.trees = []

    def play(self, skip=frozenset()):
        """All steps but those to skip."""
        for event, steps in segments(self.program):
            if event == "restack":
                self._restack()
            point = self.overlay.mount(*self.options)
            log, tree = in_child(partial(self._segment, point, steps, skip), timeout=30)
            for number, entries in log:
                self.log[number] = entries
            self.trees.append(tree)
            self.overlay.check()
            self.overlay.umount()
            forget_volatile(self.layers)

    def finish(self):
        """What lies in the layers afterwards."""
        self.upper = snapshot.raw(self.layers.upper, snapshot.handles(self.layers), times=False)
        work = snapshot.raw(self.layers.work)
        self.work = sorted(path for path, entry in work.items() if entry["kind"] != "whiteout")

    def changed_lowers(self):
        """Lines that say what has been changed in layers that nobody may change."""
        lines = []
        for before, path in zip(self.lowers, self.layers.lowers):
            lines += snapshot.differences(before, snapshot.raw(path))
        return lines

    def _restack(self):
        """What a container engine's commit does: the upper becomes the topmost lower layer."""
        layers = self.layers
        name = layers.base / f"r{len(layers.lowers)}"
        os.rename(layers.upper, name)
        layers.upper.mkdir()
        layers.lowers.insert(0, name)
        self.lowers.insert(0, snapshot.raw(name))

    def _segment(self, point, steps, skip):
        os.chdir(point)
        os.umask(0o022)
        player = Player(self.program, point)
        try:
            log = [(number, player.step(step, number in skip)) for number, step in steps]
        finally:
            player.root.end()
        os.chdir(point)
        return log, snapshot.merged()


class Player:
    """Plays steps: knows the processes and their slots."""

    def __init__(self, program, point):
        self.root = Actor()
        self.point = point
        self.looks = program.looks
        self.daemon = program.daemon
        self.processes = {0: self.root}
        self.slots = {}

    def step(self, step, skip):
        """The log entries of one step; the first one is its own, the others are looks."""
        who, verb, *arguments = step
        self.root.log = []
        if verb == "forget":
            # Shrinks the superblock's dentries and inodes; nothing else happens.
            syscalls.mount(None, self.point, None, MS_REMOUNT)
            return [("forget()", None)]
        if who not in self.processes:
            self.processes[who] = self.root.process(*USERS[who])
        process = self.processes[who]
        if skip or not self._worth(who, verb, arguments):
            return [(f"{verb} left out", None)]
        slot = arguments.pop(0).number if verb in OPENING else None
        filled = [self._fill(who, a) for a in arguments]
        if slot is not None and (who, slot) in self.slots:
            self._close(who, slot)
        value = getattr(process, verb)(*filled)
        if slot is not None:
            self.slots[who, slot] = (verb, value)
        if verb in ("close", "munmap") and isinstance(arguments[0], Slot):
            self.slots.pop((who, arguments[0].number), None)
        if self.looks:
            self._look(process, verb, arguments, filled)
        return self.root.log

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

    def _look(self, process, verb, arguments, filled):
        for index in PATHS.get(verb, ()):
            path = filled[index]
            self.root.look(path)
            self.root.look(os.path.dirname(path) or b".")
        for argument, value in zip(arguments, filled):
            if isinstance(argument, Slot) and value is not None and verb in _ON_FILES:
                process.flook(value)

    def _worth(self, who, verb, arguments):
        """False for steps that would wait, or differ by a decision (see fuzz_accepted)."""
        if verb == "rename" and not arguments[2]:
            # Over a directory that is not empty: refused by both, but the kernel has copied up and marked the
            # source by then when the target is a pure upper one.
            old, new = arguments[:2]
            if kind_of(old) == kind_of(new) == stat.S_IFDIR:
                try:
                    return not os.listdir(new)
                except OSError:
                    return False
        if who == 0 and verb in ("pwrite", "write", "copy_file_range", "fallocate", "ftruncate"):
            # Set-id bits that a file got while it was open stay with the kernel when root writes; with voile
            # they go: who writes through FUSE passthrough is not known.
            fds = [self._fill(who, each) for each in arguments if isinstance(each, Slot)]
            return not any(fd is not None and os.fstat(fd).st_mode & 0o6000 for fd in fds)
        if verb == "mwrite" and "passthrough=off" in self.daemon:
            # FUSE sets the times when the page is written back, not when it is first written to.
            return False
        if verb == "open" and arguments[2] & os.O_NOATIME and os.path.isdir(arguments[1]):
            # A listing is read once for all who have the directory open, and sets the access time.
            return False
        if verb in ("read", "create"):
            # They would wait for somebody at the other end.
            try:
                return not stat.S_ISFIFO(os.stat(arguments[0]).st_mode)
            except OSError:
                return True
        return True


_ON_FILES = frozenset(
    "pread fread pwrite write ftruncate fchmod fchown futimens fsetxattr fgetxattr fsync fdatasync seek "
    "fallocate copy_file_range at relist getdents link_fd".split()
)


def forget_volatile(layers):
    """Removes the mark of a volatile upper, as container engines do before they mount it again."""
    marker = layers.work / "work" / "incompat"
    try:
        os.chmod(layers.work / "work", 0o700)
        if (marker / "volatile" / "dirty").exists():
            (marker / "volatile" / "dirty").unlink()
        (marker / "volatile").rmdir()
        marker.rmdir()
    except OSError as e:
        if e.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise
    finally:
        os.chmod(layers.work / "work", 0)


def look(overlay, options):
    """The tree that an overlay shows of layers which somebody else has written."""
    point = overlay.mount(*options)

    def in_mount():
        os.chdir(point)
        return snapshot.merged()

    tree = in_child(in_mount, timeout=30)
    overlay.check()
    overlay.umount()
    forget_volatile(overlay.layers)
    return tree
