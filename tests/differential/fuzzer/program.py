"""A program: layers, mount options and steps, as plain data.

A step is (process, verb, arguments…). Process 0 is root's, the others belong to ordinary users. Verbs are the
methods of an Actor, except those that are done to the mount itself (SEGMENT, REMOUNT).
"""

from collections import namedtuple

USERS = ((0, 0, ()), (1000, 1000, ()), (2000, 1000, (3000,)))
# What happens to the mount between processes: made anew; with the upper as topmost lower layer; by the other
# side (voile's layers by the kernel, the kernel's by voile); after kill -9 of voile.
SEGMENT = ("remount", "restack", "swap", "kill")
# What remount(2) under the processes does: drops caches, makes it read-only, and writable again.
REMOUNT = ("forget", "ro", "rw")
OPENING = ("open", "mmap")

Program = namedtuple(
    "Program",
    "options daemon on lowers_on upper lowers data steps looks",
    defaults=((), (), "tmpfs", None, [], [[]], [], [], True),
)
"""options: for both sides. daemon: for voile alone. on, lowers_on: kinds of file systems (None: the same; a
tuple: of each lower). upper (None: there is none), lowers (top first), data (data-only ones): calls of
build.build, (method, arguments…). looks: compare after each step."""

# what: "file", "dir", "any", "new" (in a directory that exists), or a verb of OPENING. fallback: else.
Pick = namedtuple("Pick", "what number fallback")


class Slot(namedtuple("Slot", "number")):
    """The result of an earlier step of the same process: an open file, or a mapping."""

    __slots__ = ()

    def __repr__(self):
        return f"Slot({self.number})"


def segments(program):
    """[(what is done to the mount before, steps)]: processes and open files do not outlive a mount."""
    parts = [(None, [])]
    for number, step in enumerate(program.steps):
        if step[1] in SEGMENT:
            parts.append((step[1], []))
        else:
            parts[-1][1].append((number, step))
    return parts


def daemon_options(program):
    """What voile is mounted with besides."""
    if "volatile" in program.options and any(step[1] == "ro" for step in program.steps):
        # What the canary has open for writing is in the way of a bare remount(2).
        return [*program.daemon, "syncfs=none"]
    return [*program.daemon]
