"""One set of layers, built as a program says, and what is seen of it under one mount after another."""

import errno
import os
from functools import partial

from differential import snapshot
from differential.builder import Layer
from differential.fuzzer.build import build
from differential.fuzzer.picks import Names
from differential.fuzzer.player import Player
from support import fsck, syscalls
from support.overlays import Layers
from support.users import in_child

TIMEOUT = 60


class ManyLayers(Layers):
    """Layers with each lower one where it is wanted, and data-only ones at the bottom."""

    def __init__(self, base, upper, lower_bases, data):
        super().__init__(base, 0, upper)
        self.lowers = [place / f"l{n}" for n, place in enumerate(lower_bases)]
        self.data = data
        for path in self.lowers:
            path.mkdir()

    def options(self):
        # "a:b::c" is as good as "a:b" and "::c": only the last ones are data-only.
        words = super().options()
        if not self.data:
            return words
        first, *rest = words.split(",")
        paths = first.split(":")
        return ",".join([":".join(paths[: -self.data]) + "::" + "::".join(paths[-self.data :]), *rest])


class Refused(Exception):
    """The kernel has not mounted it."""


class Side:
    """The layers and what is mounted of them now."""

    def __init__(self, program, layers):
        self.program, self.layers = program, layers
        self.options = ",".join(program.options)
        below = []
        calls = [*program.lowers, *program.data]
        parts = list(zip(layers.lowers, calls))
        data = layers.lowers[len(program.lowers) :]  # no directory of theirs is merged
        if layers.upper:
            # With this mark a file is a whiteout for the next mount, on both sides, when it is emptied.
            upper = [call for call in program.upper if call[2:3] != ("trusted.overlay.whiteout",)]
            parts.insert(0, (layers.upper, upper))
        for path, each in reversed(parts):
            nested = path != layers.upper and program.lowers_on == "overlay"
            build(Layer(path, "userxattr" in program.options), each, below, nested)
            if path not in data:
                below.insert(0, os.fsencode(path))
        self.lowers = [snapshot.raw(lower) for lower in layers.lowers]
        self.sick = fsck.complaints(layers, self.options)
        upper = [snapshot.raw(layers.upper)] if layers.upper else []
        # What a Pick may become, before the first mount.
        self.names = Names.below([*upper, *self.lowers])
        self.tree = None

    def segment(self, overlay, options, steps, skip, names, kill):
        """Mounts, plays, unmounts: {number: (step, log entries)}.

        skip: the steps to leave out; None: those that are not worth it.
        """
        try:
            point = overlay.mount(*options)
        except OSError as e:
            raise Refused(f"{type(e).__name__} {e}")
        played, self.tree = in_child(partial(self._play, point, steps, skip, names), timeout=TIMEOUT)
        overlay.check()
        if kill and overlay.name == "voile":
            overlay.kill()
            syscalls.umount(overlay.point)
        else:
            overlay.umount()
        forget_volatile(self.layers)
        return played

    def _play(self, point, steps, skip, names):
        os.chdir(point)
        os.umask(0o022)
        player = Player(self.program, point, names)
        try:
            played = {
                number: player.step(step, None if skip is None else number in skip) for number, step in steps
            }
        finally:
            player.root.end()
        os.chdir(point)
        return played, snapshot.merged()

    def finish(self):
        """What lies in the layers afterwards."""
        self.upper = self.work = None
        if not self.layers.upper:
            return
        origins = snapshot.handles(self.layers)
        self.upper = snapshot.raw(self.layers.upper, origins, times=False)
        self.work = {}
        for path, entry in snapshot.raw(self.layers.work, origins, times=False).items():
            # The kernel keeps one whiteout to make more of it by link(2).
            if entry["kind"] == "whiteout" and b"#" in path:
                continue
            for name in ("trusted.overlay.upper", "user.overlay.upper"):
                entry.get("xattrs", {}).pop(name, None)  # the handle of the upper directory itself
            self.work[snapshot.index_entry(path, origins)] = entry

    def changed_lowers(self):
        """Lines that say what has been changed in layers that nobody may change."""
        lines = []
        for before, path in zip(self.lowers, self.layers.lowers):
            lines += snapshot.differences(before, snapshot.raw(path))
        return lines

    def restack(self):
        """What a container engine's commit does: the upper becomes the topmost lower layer."""
        layers = self.layers
        if not layers.upper:
            return
        name = layers.base / f"r{len(layers.lowers)}"
        os.rename(layers.upper, name)
        os.rename(layers.work, layers.base / f"w{len(layers.lowers)}")
        layers.upper.mkdir()
        layers.work.mkdir()
        layers.lowers.insert(0, name)
        self.lowers.insert(0, snapshot.raw(name))


def forget_volatile(layers):
    """Removes the mark of a volatile upper, as container engines do before they mount it again."""
    if not layers.work or not (layers.work / "work").exists():
        return
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


def look(layers, overlay, options):
    """The tree that an overlay shows of layers which somebody else has written."""
    point = overlay.mount(*options)

    def in_mount():
        os.chdir(point)
        return snapshot.merged()

    tree = in_child(in_mount, timeout=TIMEOUT)
    overlay.check()
    overlay.umount()
    forget_volatile(layers)
    return tree
