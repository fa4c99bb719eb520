"""Two overlays behind one interface: the kernel's (the oracle) and voile's."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import mountinfo, syscalls
from .namespace import ISOLATION

ROOT = Path(__file__).resolve().parents[2]
GENERIC = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024}
LOST_LINE = re.compile(r"^voile: [-0-9T:]+Z: the file system of '.*' .*has lost data: .*\n", re.MULTILINE)
START_TIMEOUT = 20
STOP_TIMEOUT = 20


class Layers:
    """Directories of one overlay, on one or two file systems. `lowers`, `datas` (data-only): top first."""

    def __init__(self, base, lowers=1, upper=True, lower_base=None, datas=0):
        self.base = Path(base)
        lower_base = Path(lower_base or base)
        self.lowers = [lower_base / f"l{i}" for i in range(lowers)]
        self.datas = [lower_base / f"d{i}" for i in range(datas)]
        self.upper = self.base / "up" if upper else None
        self.work = self.base / "wk" if upper else None
        self.point = self.base / "mnt"
        for path in [*self.lowers, *self.datas, self.upper, self.work, self.point]:
            if path is not None:
                path.mkdir(parents=True, exist_ok=True)

    def options(self):
        """The mount options that name the directories, relative to `base`: 300 lowers fit into a page."""
        parts = ["lowerdir=" + ":".join(os.path.relpath(p, self.base) for p in self.lowers)]
        parts[0] += "".join("::" + os.path.relpath(p, self.base) for p in self.datas)
        if self.upper is not None:
            parts += ["upperdir=up", "workdir=wk"]
        return ",".join(parts)


class KernelOverlay:
    """mount -t overlay."""

    name = "kernel"

    def __init__(self, layers):
        self.layers = layers
        self.point = layers.point

    def mount(self, *options):
        data = ",".join([self.layers.options(), *filter(None, options)])
        words = data.split(",")
        flags = sum(GENERIC.get(word, 0) for word in words)
        data = ",".join(word for word in words if word not in GENERIC)
        # The paths are relative: mount(2) resolves them in this process.
        here = os.open(".", os.O_RDONLY)
        try:
            os.chdir(self.layers.base)
            syscalls.mount("overlay", self.point, "overlay", flags, data)
        finally:
            os.fchdir(here)
            os.close(here)
        return self.point

    def umount(self):
        syscalls.umount(self.point)

    def check(self):
        """Nothing can go wrong behind our back here."""

    def close(self):
        if mountinfo.at(self.point):
            syscalls.umount(self.point, syscalls.MNT_DETACH)


class VoileError(Exception):
    """`voile mount` did not mount. args: exit status, stderr."""


class VoileOverlay:
    """`voile mount -f`, one process per mount, whose stderr must stay empty."""

    name = "voile"
    # Whether it may say, once, that data has been lost: where tests lose some.
    may_lose = False
    program = (str(ROOT / "voile"),)

    def __init__(self, layers):
        self.layers = layers
        self.point = layers.point
        self.process = None
        self.log = None

    def mount(self, *options):
        data = ",".join([self.layers.options(), *filter(None, options)])
        before = os.stat(self.point).st_dev
        self.log = tempfile.TemporaryFile()
        command = [*self.program, "mount", "-f", "-o", data, str(self.point)]
        self.process = subprocess.Popen(
            command, cwd=self.layers.base, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
        )
        deadline = time.monotonic() + START_TIMEOUT
        while os.stat(self.point).st_dev == before:
            if self.process.poll() is not None:
                raise VoileError(self.process.returncode, self.output())
            if time.monotonic() > deadline:
                self.close()
                raise VoileError(None, "not mounted in time: " + self.output())
            time.sleep(0.002)
        major, minor = mountinfo.at(self.point).device.split(":")
        if major == "7":  # fuseblk; its source shows what the user called it
            ISOLATION.note_loop(f"/dev/loop{minor}")
        return self.point

    @property
    def pid(self):
        return self.process.pid

    def output(self):
        """What it has said so far, but for the line (see `log_line`) that data has been lost, if it may."""
        said = self._said()
        return LOST_LINE.sub("", said, count=1) if self.may_lose else said

    def log_line(self):
        """The line that says that data has been lost, or None."""
        found = LOST_LINE.search(self._said())
        return found and found[0]

    def _said(self):
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), size, 0).decode(errors="backslashreplace")

    def umount(self):
        """Unmount, wait for the daemon, and see that it ended well."""
        deadline = time.monotonic() + STOP_TIMEOUT
        for pause in (0.005, 0.02, 0.05):
            try:
                syscalls.umount(self.point)
                break
            except OSError as e:
                # With -f the mount can be seen before the canary is ready, which looks its path up.
                if e.errno != errno.EBUSY:
                    raise
                time.sleep(pause)
        else:
            syscalls.umount(self.point)
        try:
            status = self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.close()
            raise VoileError(None, "the daemon did not end after umount: " + self.output())
        said, self.process = self.output(), None
        if status != 0 or said:
            raise VoileError(status, said)

    def check(self):
        """The daemon has neither died nor complained."""
        if self.process and (self.process.poll() is not None or self.output()):
            raise VoileError(self.process.returncode, self.output())

    def kill(self):
        """kill -9, as the machine's OOM killer would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def close(self):
        """Whatever state it is in: nothing is left afterwards."""
        # The daemon first: an unmount of a file system that does not answer would wait for it.
        if self.process is not None:
            if mountinfo.at(self.point) and self.process.poll() is None:
                try:
                    syscalls.umount(self.point)
                    self.process.wait(5)
                except (OSError, subprocess.TimeoutExpired):
                    pass
            if self.process.poll() is None:
                self.kill()
            self.process = None
        while mountinfo.at(self.point):
            syscalls.umount(self.point, syscalls.MNT_DETACH)


class HookedOverlay(VoileOverlay):
    """One with hooks for tests (see hooked.py)."""

    program = (sys.executable, "-I", "-S", str(Path(__file__).with_name("hooked.py")))

    def hook(self, what):
        """Calls a hook; the daemon has done it when this returns."""
        try:
            return os.getxattr(self.point, f"user.hook.{what}")
        except OSError as exc:
            assert exc.errno == errno.ENODATA, exc
            return None

    def state(self):
        """What the daemon holds."""
        return json.loads(self.hook("state"))


def voile_missing():
    """Why voile cannot be mounted here, or None."""
    if not os.path.exists("/dev/fuse"):
        return "no /dev/fuse"
    return None
