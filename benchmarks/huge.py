"""One directory with a million entries: how long others on the mount wait meanwhile."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.systems import System


class Bystander:
    """Another process on the mount; `longest` is what its longest call took, in seconds."""

    def __init__(self, client, directory):
        command = [client, "wait", directory, "0"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.longest = 0.0

    def stop(self):
        said, _ = self.process.communicate()
        if self.process.returncode:
            raise RuntimeError("the bystander failed")
        self.longest = float(said) / 1e9


def fill(directory, entries):
    directory.mkdir()
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for i in range(entries):
        os.close(os.open(b"f%05d" % i, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=fd))
    os.close(fd)


class Huge:
    """The phases on one mounted system. `rows`: (what, seconds, longest wait of the bystander)."""

    def __init__(self, system: System, client: Path, base: Path, entries: int):
        self.system, self.client, self.base, self.entries = system, client, base, entries
        self.rows = []
        self.point = base / "o" / "mnt"

    def phase(self, label, function):
        bystander = Bystander(self.client, self.point / "elsewhere")
        time.sleep(0.05)
        start = time.perf_counter()
        try:
            function()
            seconds = time.perf_counter() - start
            time.sleep(0.5)  # what goes on after the answer
        finally:
            bystander.stop()
        self.add(label, seconds, bystander.longest)

    def add(self, label, seconds, longest):
        self.rows.append((label, seconds, longest))
        said = f"{self.system.name}: {label}: {seconds:.3g} s, longest wait {longest * 1e3:.3g} ms"
        print(said, file=sys.stderr)  # all of them take many minutes

    def client_run(self, operation, path):
        count = 1 if operation.startswith("readdir") else self.entries
        return lambda: subprocess.run(
            [self.client, operation, path, str(count)], check=True, stdout=subprocess.DEVNULL
        )

    def run(self):
        lower = self.base / "lower"
        lower.mkdir()
        (lower / "elsewhere").mkdir()
        for name in ("one", "two"):
            fill(lower / name, self.entries)
        self.system.mount(lower, self.base / "o")
        try:
            self.phases()
        finally:
            self.system.umount()
        self.leftovers(lower)
        shutil.rmtree(self.base)

    def phases(self):
        one, two, new = (self.point / name for name in ("one", "two", "new"))
        self.phase("nothing", lambda: time.sleep(2))
        self.phase("list", self.client_run("readdir", one))
        self.phase("list and stat", self.client_run("readdirstat", two))
        self.phase("forget them", drop_caches)
        self.phase("unlink lower files", self.client_run("unlink", one))
        self.phase("rmdir of that directory", lambda: os.rmdir(one))
        self.phase("rm -r of the other", lambda: subprocess.run(["rm", "-r", two], check=True))
        os.mkdir(new)
        self.phase("create", self.client_run("create", new))
        self.phase("rename of the directory", lambda: os.rename(new, one))
        self.phase("unlink upper files", self.client_run("unlink", one))
        self.phase("rmdir of it", lambda: os.rmdir(one))

    def leftovers(self, lower):
        """A daemon was killed over a removal: the next mount finds what it left in the work directory."""
        again = self.base / "again"
        (again / "wk" / "work").mkdir(parents=True)
        fill(again / "wk" / "work" / "#1", self.entries)
        for part in ("up", "mnt"):
            (again / part).mkdir()
        _point, seconds = self.system.mount_again(lower, again)
        self.add("mount over its leftovers", seconds, 0)
        self.system.umount()


def drop_caches():
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2\n")
