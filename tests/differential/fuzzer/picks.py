"""Names and open files that are there: what a Pick becomes, while the kernel plays.

The names are kept here and not read from the mount: reading sets access times, on one side only.
"""

import os
from bisect import insort

from differential.fuzzer.program import OPENING, Pick, Slot

MAPPED = Pick("open", 0, Slot(0))


class Names:
    """What is where, nearly: who is mistaken just draws a name that is not there."""

    def __init__(self, files, directories):
        self.files, self.directories = sorted(files), sorted(directories)

    @classmethod
    def of(cls, tree):
        """From a snapshot of the mount."""
        files, directories = [], []
        for path, entry in tree.items():
            if path != b".":
                (directories if entry["kind"] == "dir" else files).append(os.path.normpath(path))
        return cls(files, directories)

    @classmethod
    def below(cls, layers):
        """From raw snapshots of layers, top first; redirects are not followed."""
        found = {}
        for layer in reversed(layers):
            for path, entry in sorted(layer.items()):
                marks = {name.rpartition(".")[2] for name in entry.get("xattrs", ())}
                if entry["kind"] != "dir" or marks & {"opaque", "redirect"} or found.get(path) != "dir":
                    for each in [p for p in found if p == path or p.startswith(path + b"/")]:
                        del found[each]
                if entry["kind"] != "whiteout":
                    found[path] = entry["kind"]
        found.pop(b".", None)
        return cls(
            [path for path, kind in found.items() if kind != "dir"],
            [path for path, kind in found.items() if kind == "dir"],
        )

    def note(self, verb, arguments, value, good):
        """What a step has changed."""
        if not good:
            return
        if verb in ("create", "mknod") or (verb == "open" and value and arguments[1] & os.O_CREAT):
            self._add(self.files, arguments[0])
        elif verb in ("link", "symlink", "link_fd"):
            self._add(self.files, arguments[1])
        elif verb == "mkdir":
            self._add(self.directories, arguments[0])
        elif verb in ("unlink", "rmdir"):
            self._remove(arguments[0])
        elif verb == "rename" and arguments[2] != 2:
            self._move(*arguments[:2])

    def _add(self, where, path):
        path = os.path.normpath(path)
        if path not in self.files and path not in self.directories:
            insort(where, path)

    def _remove(self, path):
        path = os.path.normpath(path)
        for where in (self.files, self.directories):
            if path in where:
                where.remove(path)

    def _move(self, old, new):
        old, new = os.path.normpath(old), os.path.normpath(new)
        if old == new:
            return
        self._remove(new)
        for name in ("files", "directories"):
            moved = [
                new + each[len(old) :] if each == old or each.startswith(old + b"/") else each
                for each in getattr(self, name)
            ]
            setattr(self, name, sorted(moved))


def concrete(step, names, slots):
    """The step without picks; slots: {(process, number): (verb, value)}."""
    if not any(isinstance(each, Pick) for each in step):
        return step
    step = _useful(step, slots)
    return (*step[:2], *(_resolve(each, step[0], names, slots) for each in step[2:]))


def _useful(step, slots):
    """A step on a slot where none is open: by the process that has one, or what opens one."""
    for each in step[2:]:
        if not isinstance(each, Pick) or each.what not in OPENING:
            continue
        having = sorted(who for (who, _), (verb, value) in slots.items() if value and verb == each.what)
        if not having and each.what == "mmap":
            return _useful((step[0], "mmap", each.fallback, MAPPED, 8192, True, True), slots)
        if not having:
            flags = os.O_RDONLY if each.fallback.number > 3 else os.O_RDWR
            what = Pick("dir" if each.fallback.number > 3 else "file", each.number, b".")
            return (step[0], "open", each.fallback, what, flags | os.O_NONBLOCK)
        if step[0] not in having:
            return (having[each.number % len(having)], *step[1:])
    return step


def _resolve(argument, who, names, slots):
    if not isinstance(argument, Pick):
        return argument
    if argument.what in OPENING:
        there = [n for (w, n), (verb, value) in slots.items() if value and (w, verb) == (who, argument.what)]
        wanted = [n for n in there if (n < 4) == (argument.fallback.number < 4)] or there
        return Slot(wanted[argument.number % len(wanted)]) if wanted else argument.fallback
    choice = {
        "file": lambda: names.files,
        "dir": lambda: names.directories,
        "any": lambda: names.files + names.directories,
        "new": lambda: [b".", *names.directories],
    }[argument.what]()
    if not choice:
        return argument.fallback
    name = choice[argument.number % len(choice)]
    if argument.what == "new":
        return os.path.normpath(os.path.join(name, os.path.basename(argument.fallback)))
    return name
