"""A program on the kernel's overlayfs and on voile: what is unlike."""

import importlib
import os
import pkgutil
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import voile
from differential import snapshot
from differential.actors import die_with_parent, kind_of
from differential.fuzzer.accepted import LOST, accepted, has_indexed_links, kernel_oddity, without_ghosts
from differential.fuzzer.player import LEFT_OUT
from differential.fuzzer.program import REMOUNT, Pick, daemon_options, segments
from differential.fuzzer.side import ManyLayers, Refused, Side, look
from support import fsck, mountinfo, syscalls
from support.namespace import ISOLATION
from support.overlays import KernelOverlay, Layers, VoileError, VoileOverlay
from support.users import ChildFailed
from voile.cli import mount as cli_mount

# What `voile check` says of an entry of the index.
ORPHANED = "orphaned: nothing shows the file any more"
# Inode numbers that are never given out twice: what was seen under one can be followed through all steps.
NO_REUSE = {"tmpfs", "big-tmpfs", "btrfs"}

# Loaded once, before the daemons are forked: whatever is edited meanwhile.
for module in pkgutil.walk_packages(voile.__path__, "voile."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)


class Daemon:
    """What VoileOverlay needs of a subprocess.Popen, for a child that shares our loaded modules."""

    def __init__(self, words, cwd, log):
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            status = 99
            try:
                status = _serve(words, cwd, log)
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(status)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=60.0):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("voile", timeout)
            time.sleep(0.0005)
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)


def _serve(words, cwd, log):
    os.setpgid(0, 0)
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(cwd)
    null = os.open("/dev/null", os.O_RDONLY)
    for target, source in enumerate((null, log.fileno(), log.fileno())):
        os.dup2(source, target)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    try:
        return cli_mount.main([os.fsencode(word) for word in words])
    finally:
        sys.stderr.flush()


class ForkedVoile(VoileOverlay):
    """voile without the start of an interpreter, which is most of the time of a short program."""

    def mount(self, *options):
        data = ",".join([self.layers.options(), *filter(None, options)])
        before = os.stat(self.point).st_dev
        self.log = tempfile.TemporaryFile()
        self.process = Daemon(["-f", "-o", data, str(self.point)], self.layers.base, self.log)
        deadline = time.monotonic() + 20
        while os.stat(self.point).st_dev == before:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise VoileError(self.process.returncode, "not mounted: " + self.output())
            time.sleep(0.0005)
        major, minor = mountinfo.at(self.point).device.split(":")
        if major == "7":  # fuseblk
            ISOLATION.note_loop(f"/dev/loop{minor}")
        return self.point


class Unlike(Exception):
    """The difference a program has shown, as lines."""

    def __init__(self, lines):
        text = "\n".join(lines)
        super().__init__(re.sub(r"(.)\1{30,}", lambda run: f"{run[1]}…({len(run[0])})", text))


class Arena:
    """Runs programs on scratch file systems, and counts."""

    def __init__(self, filesystems, voile=ForkedVoile):
        self.filesystems, self.voile = filesystems, voile
        self.programs = self.operations = self.refused = self.fleeting = 0
        self._nested = None

    def on_overlay(self, _kind):
        """An empty directory on an overlay of the kernel's."""
        if self._nested is None:
            base = self.filesystems.directory("tmpfs")
            self._nested = KernelOverlay(Layers(base)).mount()
        return Path(tempfile.mkdtemp(dir=self._nested))

    def run(self, program):
        """Returns the program without picks, or raises Unlike with it as `program`."""
        match = Match(self, program)
        try:
            lines = match.lines()
        except ChildFailed as e:
            lines = [f"-- {match.overlays[-1].name}: {e}"]
        except Exception as e:
            if not match.overlays or match.overlays[-1].name != "voile":
                raise
            lines = [f"-- voile: {type(e).__name__} {e}"]
        finally:
            match.close()
        self.programs += 1
        self.operations += len(program.steps)
        if lines:
            unlike = Unlike(lines)
            unlike.program = match.concrete()
            raise unlike
        return match.concrete()


class Match:
    """One run of a program: two sides, of which one begins under the kernel, the other under voile."""

    def __init__(self, arena, program):
        self.arena = arena
        self.filesystems, self.voile, self.program = arena.filesystems, arena.voile, program
        self.made, self.overlays = [], []
        self.steps = list(program.steps)
        self.odd = False

    def concrete(self):
        """What has been played, without picks."""
        return self.program._replace(steps=[s for s in self.steps if not any(isinstance(x, Pick) for x in s)])

    def close(self):
        for each in self.overlays:
            each.close()
        for each in self.made:
            shutil.rmtree(each, ignore_errors=True)
            if each.exists():
                clear_flags(each)
                shutil.rmtree(each, ignore_errors=True)

    def _layers(self):
        program, places = self.program, {}

        def place(kind):
            if kind not in places:
                make = self.arena.on_overlay if kind == "overlay" else self.filesystems.directory
                places[kind] = make(kind)
                self.made.append(places[kind])
            return places[kind]

        count = len(program.lowers) + len(program.data)
        kinds = program.lowers_on or program.on
        kinds = (kinds,) * count if isinstance(kinds, str) else (kinds * count)[:count]
        base = place(program.on)
        return ManyLayers(base, program.upper is not None, list(map(place, kinds)), len(program.data))

    def overlay(self, kind, layers):
        self.overlays.append(kind(layers))
        return self.overlays[-1]

    def lines(self):
        """What is unlike."""
        program = self.program
        theirs, ours = Side(program, self._layers()), Side(program, self._layers())
        self.numbers = comparable(program)
        names = theirs.names
        parts = segments(program)
        for n, (event, steps) in enumerate(parts):
            if event == "swap":
                theirs, ours = ours, theirs
                self.numbers = self.numbers and self.numbers[::-1]
                if program.lowers_on:
                    self.numbers = comparable(program)
            if event == "restack":
                theirs.restack()
                ours.restack()
            kill = parts[n + 1 :] and parts[n + 1][0] == "kill"
            try:
                lines = self._segment(theirs, ours, steps, names, kill)
            except Refused as e:
                return self._refused(ours, e)
            if lines:
                return lines
            names = None if theirs.tree is None else names.of(theirs.tree)
        lines = []
        for side, name in ((theirs, "kernel's"), (ours, "voile's")):
            lines += titled(f"a lower of {name} layers is changed", side.changed_lowers())
        return lines or self._exchange(theirs, ours)

    def _segment(self, theirs, ours, steps, names, kill):
        program = self.program
        options = list(program.options)
        oracle = theirs.segment(self.overlay(KernelOverlay, theirs.layers), options, steps, None, names, kill)
        for number, (step, _log) in oracle.items():
            self.steps[number] = step
        skip = {n for n, (step, log) in oracle.items() if log and kernel_oddity(step, log[0][1])}
        self.odd |= bool(skip)
        skip |= {n for n, (_step, log) in oracle.items() if log == LEFT_OUT}
        steps = [(number, oracle[number][0]) for number, _ in steps]
        mine = self.overlay(self.voile, ours.layers)
        got = ours.segment(mine, options + daemon_options(program), steps, skip, names, kill)
        lines = unlike_steps(program, oracle, got, skip, self.numbers)
        ignore = {"one device"} if self.numbers else {"one device", "ino"}
        if has_indexed_links(program):
            ignore.add("nlink of a directory")
        if "userxattr" in program.options and any(step[1] in REMOUNT for step in program.steps):
            # A symbolic link that was copied up has no origin, and another number when it has been forgotten;
            # what the kernel's FUSE keeps of the listing has the old one.
            ignore.add("d_ino wrong")
        expected, seen = without_ghosts(theirs.tree, ours.tree), without_ghosts(ours.tree, theirs.tree)
        if self.numbers:
            expected, seen = (
                {p: {**e, "ino": n(e["ino"])} if "ino" in e else e for p, e in t.items()}
                for t, n in zip((expected, seen), self.numbers)
            )
        return lines + titled("tree on the mount", snapshot.differences(expected, seen, ignore))

    def _refused(self, ours, refusal):
        """The kernel does not mount what voile must not mount then."""
        mine = self.overlay(self.voile, ours.layers)
        try:
            mine.mount(*self.program.options, *daemon_options(self.program))
        except VoileError:
            self.arena.refused += 1
            return []
        return [f"-- mount: expected {refusal}, got a mount"]

    def _exchange(self, theirs, ours):
        """The layers themselves, and each mounted by the other."""
        program = self.program
        theirs.finish()
        ours.finish()
        lines = []
        # The kernel stores origins in the upper of a read-only mount, too.
        if theirs.upper is not None and not has_indexed_links(program) and "ro" not in program.options:
            # A copy-up that failed has marked the directory; special files have no user.* attributes; what
            # lies on an overlay has no file handle.
            if self.odd or "userxattr" in program.options or program.lowers_on == "overlay":
                without(("impure",), theirs.upper, ours.upper)
            if any(entry.get("names") in LOST for entry in theirs.tree.values()):
                # The kernel's listing broke off, and what it did not look up got no origin (ovl_fix_origin).
                without(("impure", "origin"), theirs.upper, ours.upper)
            lines += titled("raw upper", snapshot.differences(theirs.upper, ours.upper))
            lines += titled("raw work", snapshot.differences(theirs.work, ours.work))
        if theirs.upper is not None:
            checks = [complaints(side) for side in (theirs, ours)]
            orphans = [sum(ORPHANED in line for line in found) for found in checks]
            if orphans[0] == orphans[1] and (program.upper or len(program.lowers) > 1):
                # … so that both leave the entry when the last name has gone that could be seen.
                checks = [[line for line in found if ORPHANED not in line] for found in checks]
            # What the program has put into the upper itself (a redirect to nowhere) stays there.
            if checks[0] != checks[1] or not theirs.sick:
                lines += titled("check of the kernel's layers", checks[0])
                lines += titled("check of voile's layers", checks[1])
        # Special files can have no user.* attributes, so their copies have no origin to take st_ino from.
        # One that somebody else has made a metacopy file has none either, when its data is copied up.
        lasting = not program.lowers_on and "userxattr" not in program.options
        lasting = lasting and all(call[0] != "metacopy" for call in program.upper or ())
        ignore = {"one device"} if lasting else {"one device", "ino"}
        options = list(program.options)
        shown, kernel = ours.tree, self.overlay(KernelOverlay, ours.layers)
        seen = look(ours.layers, kernel, options)
        lines += titled(
            "voile's layers mounted by the kernel (expected: what voile showed)",
            snapshot.differences(
                without_ghosts(shown, seen), without_ghosts(seen, shown), ignore | {"d_ino wrong"}
            ),
        )
        shown, mine = theirs.tree, self.overlay(self.voile, theirs.layers)
        seen = look(theirs.layers, mine, [*options, *daemon_options(program)])
        return lines + titled(
            "the kernel's layers mounted by voile (expected: what the kernel showed)",
            snapshot.differences(without_ghosts(shown, seen), without_ghosts(seen, shown), ignore),
        )


def without(attributes, *trees):
    """Leaves attributes of the overlay out of snapshots."""
    for tree in trees:
        for entry in tree.values():
            for name in attributes:
                for space in ("trusted", "user"):
                    entry.get("xattrs", {}).pop(f"{space}.overlay.{name}", None)


def complaints(side):
    """Of `voile check`."""
    found = fsck.complaints(side.layers, side.options)
    if side.program.upper or len(side.program.lowers) > 1:
        # A name of a lower hard link that was hidden before there was an index counts, for the kernel too,
        found = [line for line in found if ": nlink: " not in line]
    return found


def clear_flags(root):
    """So that what is immutable can be removed."""
    for directory, names, files in os.walk(root):
        for path in (directory, *(os.path.join(directory, name) for name in names + files)):
            if kind_of(path) in (stat.S_IFREG, stat.S_IFDIR):
                try:
                    syscalls.set_flags(path, 0)
                except OSError:
                    pass  # a file system without flags


def titled(title, lines):
    return [f"-- {title}", *lines[:25], *(["…"] if len(lines) > 25 else [])] if lines else []


class Numbers:
    """Inode numbers in the order of their appearance: alike on both sides."""

    def __init__(self):
        self.seen = {}

    def __call__(self, number):
        return self.seen.setdefault(number, len(self.seen))


def comparable(program):
    """A pair of Numbers where inode numbers can be compared in steps."""
    if program.on not in NO_REUSE or "userxattr" in program.options:
        # user.* attributes are for files and directories only: the copies of others have no origin.
        return None
    if program.lowers_on and "xino=on" not in program.options:
        # Without xino the kernel gives directories numbers of the moment; voile always has constant ones.
        return None
    lowers = program.lowers_on or program.on
    if not {lowers} <= NO_REUSE if isinstance(lowers, str) else not set(lowers) <= NO_REUSE:
        return None
    return Numbers(), Numbers()


def unlike_steps(program, oracle, ours, skip, numbers):
    """Lines that say which steps went otherwise."""
    lines = []
    for n, (step, expected) in oracle.items():
        got = ours[n][1]
        if n in skip:
            continue
        for (what, a), (_what, b) in zip(expected, got):
            a, b = _numbered(a, numbers and numbers[0]), _numbered(b, numbers and numbers[1])
            if a != b and not accepted(program, step, a, b):
                lines.append(f"step {n} {what}: expected {_diff(a, b)}, got {_diff(b, a)}")
        if len(expected) != len(got):
            lines.append(f"step {n}: {len(expected)} outcomes expected, {len(got)} seen")
    return titled("steps (expected: kernel)", lines)


def _numbered(outcome, number):
    if isinstance(outcome, dict) and "ino" in outcome:
        return {**outcome, "ino": number(outcome["ino"]) if number else 0}
    return outcome


def _diff(a, b):
    """Only what differs of two dictionaries."""
    if isinstance(a, dict) and isinstance(b, dict):
        return {k: v for k, v in a.items() if b.get(k) != v or k not in b}
    return a
