"""From drawn programs to ones that do something: names and slots are picked from what is there then.

hypothesis draws a Pick where a name of something that exists, or an open slot, would do. A scout plays the
program on a kernel overlay of its own and puts real names and slots in, so that what is then played on both
sides, shrunk and shown is plain data.
"""

import os
import stat
from collections import namedtuple
from functools import partial

from differential.fuzz_program import OPENING, Player, Side, Slot, forget_volatile, segments
from support.users import in_child

# what: "file", "dir", "any", "new" (in a directory that exists), or a verb of OPENING. fallback: else.
Pick = namedtuple("Pick", "what number fallback")
MAPPED = Pick("open", 0, Slot(0))


class Scout(Side):
    """Plays a program with picks; `concrete` is the same without them."""

    def concrete(self):
        steps = list(self.program.steps)
        for event, part in segments(self.program):
            if event == "restack":
                self._restack()
            point = self.overlay.mount(*self.options)
            for number, step in in_child(partial(self._picked, point, part), timeout=30):
                steps[number] = step
            self.overlay.umount()
            forget_volatile(self.layers)
        return self.program._replace(steps=steps)

    def _picked(self, point, steps):
        os.chdir(point)
        os.umask(0o022)
        player = Player(self.program._replace(looks=False), point)
        found = []
        try:
            for number, step in steps:
                step = _useful(player, step)
                step = (*step[:2], *(_resolve(player, step[0], each) for each in step[2:]))
                player.step(step, False)
                found.append((number, step))
        finally:
            player.root.end()
        return found


def _useful(player, step):
    """A step on a slot where none is open: by the process that has one, or what opens one."""
    for each in step[2:]:
        if not isinstance(each, Pick) or each.what not in OPENING:
            continue
        having = sorted(
            who for (who, _), (verb, value) in player.slots.items() if value and verb == each.what
        )
        if not having and each.what == "mmap":
            return _useful(player, (step[0], "mmap", each.fallback, MAPPED, 8192, True, True))
        if not having:
            flags = os.O_RDONLY if each.fallback.number > 3 else os.O_RDWR
            what = Pick("dir" if each.fallback.number > 3 else "file", each.number, b".")
            return (step[0], "open", each.fallback, what, flags | os.O_NONBLOCK)
        if step[0] not in having:
            return (having[each.number % len(having)], *step[1:])
    return step


def _resolve(player, who, argument):
    if not isinstance(argument, Pick):
        return argument
    if argument.what in ("open", "mmap"):
        slots = [
            n for (w, n), (verb, value) in player.slots.items() if value and (w, verb) == (who, argument.what)
        ]
        wanted = [n for n in slots if (n < 4) == (argument.fallback.number < 4)] or slots
        return Slot(wanted[argument.number % len(wanted)]) if wanted else argument.fallback
    files, directories = _tree()
    choice = {"file": files, "dir": directories, "any": files + directories, "new": [b".", *directories]}
    names = choice[argument.what]
    if not names:
        return argument.fallback
    name = names[argument.number % len(names)]
    if argument.what == "new":
        return os.path.normpath(os.path.join(name, os.path.basename(argument.fallback)))
    return name


def _tree():
    files, directories = [], []
    for directory, names, others in os.walk(b"."):
        for name in names + others:
            path = os.path.normpath(os.path.join(directory, name))
            try:
                is_dir = stat.S_ISDIR(os.lstat(path).st_mode)
            except OSError:
                continue
            (directories if is_dir else files).append(path)
    return sorted(files), sorted(directories)
