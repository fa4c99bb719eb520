"""A program on the kernel's overlayfs and on voile: what is unlike."""

import importlib
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager

import voile
from differential import snapshot
from differential.actors import die_with_parent
from differential.fuzz_accepted import accepted, kernel_oddity, without_ghosts
from differential.fuzz_program import Side, look
from differential.fuzz_scout import Scout
from support import fsck, mountinfo
from support.namespace import ISOLATION
from support.overlays import KernelOverlay, Layers, VoileError, VoileOverlay
from support.users import ChildFailed
from voile.cli import mount as cli_mount

# Inode numbers that are never given out twice: what was seen under one can be followed through all steps.
NO_REUSE = {"tmpfs", "btrfs"}

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
        self.programs = self.operations = 0

    def concrete(self, program):
        """The program with names and slots for what it leaves open (see fuzz_scout)."""
        with self._place(program) as (layers, overlay):
            return Scout(program, overlay(KernelOverlay, layers()), list(program.options)).concrete()

    @contextmanager
    def _place(self, program):
        """layers() makes the layers of a program, overlay(kind, layers) an overlay; all go at the end."""
        made, overlays = [], []

        def layers():
            made.append(self.filesystems.directory(program.on))
            if program.lowers_on:
                made.append(self.filesystems.directory(program.lowers_on))
                return Layers(made[-2], len(program.lowers), True, made[-1])
            return Layers(made[-1], len(program.lowers))

        def overlay(kind, of):
            overlays.append(kind(of))
            return overlays[-1]

        overlay.made = overlays
        try:
            yield layers, overlay
        finally:
            for each in overlays:
                each.close()
            for each in made:
                shutil.rmtree(each, ignore_errors=True)

    def run(self, program):
        """Raises Unlike."""
        with self._place(program) as (layers, overlay):
            try:
                lines = self._compare(program, layers, overlay)
            except ChildFailed as e:
                lines = [f"-- {overlay.made[-1].name}: {e}"]
            except Exception as e:
                if not overlay.made or overlay.made[-1].name != "voile":
                    raise
                lines = [f"-- voile: {type(e).__name__} {e}"]
        self.programs += 1
        self.operations += len(program.steps)
        if lines:
            raise Unlike(lines)

    def _compare(self, program, layers, overlay):
        options = list(program.options)
        oracle = Side(program, overlay(KernelOverlay, layers()), options)
        oracle.play()
        skip = {n for n, log in enumerate(oracle.log) if log and kernel_oddity(program.steps[n], log[0][1])}
        ours = Side(program, overlay(self.voile, layers()), options + list(program.daemon))
        ours.play(skip)
        number = comparable(program)
        lines = steps(program, oracle, ours, skip, number)
        for tree, mine in zip(oracle.trees, ours.trees):
            ignore = {"one device"} if number else {"one device", "ino"}
            expected, got = without_ghosts(tree, mine), without_ghosts(mine, tree)
            if number:
                expected, got = (
                    {p: {**e, "ino": n(e["ino"])} if "ino" in e else e for p, e in t.items()}
                    for t, n in zip((expected, got), number)
                )
            lines += titled("tree on the mount", snapshot.differences(expected, got, ignore))
        for side in (oracle, ours):
            lines += titled(f"{side.overlay.name} changed a lower", side.changed_lowers())
        if not lines:
            lines = self._layers(program, oracle, ours, overlay)
        return lines

    def _layers(self, program, oracle, ours, overlay):
        oracle.finish()
        ours.finish()
        lines = titled("raw upper", snapshot.differences(oracle.upper, ours.upper))
        theirs, mine = (fsck.complaints(side.layers, ",".join(program.options)) for side in (oracle, ours))
        # What the program has put into the upper itself (a redirect to nowhere) stays there.
        if theirs != mine or not oracle.sick:
            lines += titled("check of the kernel's layers", theirs) + titled("check of voile's layers", mine)
        if oracle.work != ours.work:
            lines.append(f"-- work directory: expected {oracle.work}, got {ours.work}")
        # Special files can have no user.* attributes, so their copies have no origin to take st_ino from.
        lasting = not program.lowers_on and "userxattr" not in program.options
        ignore = {"one device"} if lasting else {"one device", "ino"}
        shown = ours.trees[-1]
        theirs = look(overlay(KernelOverlay, ours.layers), list(program.options))
        lines += titled(
            "voile's layers mounted by the kernel (expected: what voile showed)",
            snapshot.differences(
                without_ghosts(shown, theirs), without_ghosts(theirs, shown), ignore | {"d_ino wrong"}
            ),
        )
        shown = oracle.trees[-1]
        mine = look(overlay(self.voile, oracle.layers), [*program.options, *program.daemon])
        lines += titled(
            "the kernel's layers mounted by voile (expected: what the kernel showed)",
            snapshot.differences(without_ghosts(shown, mine), without_ghosts(mine, shown), ignore),
        )
        return lines


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
    if program.on not in NO_REUSE:
        return None
    if program.lowers_on and not (program.lowers_on in NO_REUSE and "xino=on" in program.options):
        # Without xino the kernel gives directories numbers of the moment; voile always has constant ones.
        return None
    return Numbers(), Numbers()


def steps(program, oracle, ours, skip, number):
    """Lines that say which steps went otherwise."""
    lines = []
    for n, (step, expected, got) in enumerate(zip(program.steps, oracle.log, ours.log)):
        if n in skip:
            continue
        for (what, a), (_what, b) in zip(expected, got):
            a, b = _numbered(a, number and number[0]), _numbered(b, number and number[1])
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
