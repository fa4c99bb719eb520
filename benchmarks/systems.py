"""The overlays that are compared, behind one interface: mount, unmount, the daemon's memory."""

import os
import subprocess
import time
from ctypes.util import find_library
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class System:
    """One overlay program. `volatile`: with its volatile option; `options`: more options."""

    def __init__(self, name, options=""):
        self.name, self.options = name, options
        self.preload = ""  # for the client
        self.pid = None

    def with_options(self, options):
        """The same program, mounted with these options."""
        return type(self)(self.name, options)

    def command(self, data, point):
        raise NotImplementedError

    def mount(self, lower, base):
        """Mount below the new directory `base` with a new upper; the mount point and how long it took."""
        for part in ("up", "wk", "mnt"):
            (Path(base) / part).mkdir(parents=True)
        return self.mount_again(lower, base)

    def mount_again(self, lower, base):
        """As `mount`, over directories that are there already."""
        self.base = Path(base)
        self.point = self.base / "mnt"
        data = f"lowerdir={lower},upperdir={self.base}/up,workdir={self.base}/wk"
        command = self.command(",".join(filter(None, [data, self.options])), str(self.point))
        start = time.perf_counter()
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{self.name}: {done.stderr}")
        self.pid = _daemon(str(self.point))
        return self.point, seconds

    def umount(self):
        subprocess.run(["umount", str(self.point)], check=True)
        deadline = time.monotonic() + 10
        while self.pid and os.path.exists(f"/proc/{self.pid}") and time.monotonic() < deadline:
            time.sleep(0.005)

    def resident(self):
        """Resident bytes of the daemon (private memory and what it shares with nobody)."""
        with open(f"/proc/{self.pid}/smaps_rollup") as f:
            for line in f:
                if line.startswith("Rss:"):
                    return int(line.split()[1]) * 1024
        raise RuntimeError("no Rss")


def _daemon(point):
    """The process that was told to mount there, or None."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if point in Path(f"/proc/{entry}/cmdline").read_text().split("\0"):
                return int(entry)
        except (OSError, UnicodeDecodeError):
            pass
    return None


class Kernel(System):
    def command(self, data, point):
        return ["mount", "-i", "-t", "overlay", "overlay", "-o", data, point]


class Eatmydata(Kernel):
    """The kernel's, syncing, and a client whose sync calls a library swallows."""

    LIBRARY = find_library("eatmydata")

    def __init__(self):
        super().__init__("eatmydata")
        self.preload = self.LIBRARY


class FuseOverlayfs(System):
    def command(self, data, point):
        return ["fuse-overlayfs", "-o", data, point]


class Voile(System):
    """`checkout`: whose program is run."""

    def __init__(self, name, options="", checkout=ROOT):
        super().__init__(name, options)
        self.checkout = checkout

    def with_options(self, options):
        return Voile(self.name, options, self.checkout)

    def command(self, data, point):
        return [str(self.checkout / "voile"), "mount", "-o", data, point]
