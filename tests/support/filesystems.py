"""Scratch file systems: images on our tmpfs behind loop devices, so that syncs cost memory speed only."""

import os
import subprocess
import tempfile
import uuid
from pathlib import Path

from . import mountinfo, syscalls
from .namespace import ISOLATION

MIB = 1 << 20
# Sizes: xfs refuses less than 300 MiB, btrfs less than about 110. The files are sparse.
MKFS = {
    "ext4": (512 * MIB, ["mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard"]),
    "xfs": (320 * MIB, ["mkfs.xfs", "-q", "-f", "-K"]),
    "btrfs": (256 * MIB, ["mkfs.btrfs", "-q", "-f", "-K"]),
}
# ramfs has neither ACLs nor xattrs.
MEMORY = {"tmpfs": "size=1g,mode=755", "big-tmpfs": "size=6g,mode=755", "ramfs": "mode=755"}


class Filesystems:
    """Makes each kind when it is first asked for; all go in close()."""

    def __init__(self):
        self.base = Path(tempfile.mkdtemp(prefix="voile-test-"))
        syscalls.mount("voile-test", self.base, "tmpfs", 0, "size=4g,mode=755")
        self.points = {}

    def get(self, kind="ext4"):
        """Root directory of the one shared file system of that kind ("tmpfs" too)."""
        if kind not in self.points:
            self.points[kind] = self.make(kind, self.base / kind)
        return self.points[kind]

    def make(self, kind, point, size=None):
        """A fresh file system of that kind, mounted at `point`."""
        point.mkdir()
        if kind in MEMORY:
            syscalls.mount("voile-test", point, kind.removeprefix("big-"), 0, MEMORY[kind])
            return point
        default, command = MKFS[kind]
        image = self.base / f"{point.name}.img"
        with open(image, "wb") as f:
            f.truncate(size or default)
        environment = dict(os.environ, PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        subprocess.run([*command, image], check=True, env=environment, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, point], check=True, env=environment)
        ISOLATION.note_loop(mountinfo.at(point).source)
        return point

    def directory(self, kind="ext4"):
        """An empty directory on that file system."""
        path = self.get(kind) / uuid.uuid4().hex[:12]
        path.mkdir()
        return path

    def close(self):
        for m in reversed(mountinfo.mounts()):
            if m.point == str(self.base) or m.point.startswith(f"{self.base}/"):
                syscalls.umount(m.point)
        self.base.rmdir()
