"""Run the benchmarks: interleaved rounds, medians, one table of ratios.

Every round mounts each system freshly over the same lower layer and takes one figure per operation. The
systems take turns within a round, so that a slow minute of the machine hits all. Layers lie on a tmpfs; the
sync figures use ext4, where a real sync has something to do.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from benchmarks.huge import Huge, drop_caches  # noqa: E402  # below the path they need
from benchmarks.systems import Eatmydata, FuseOverlayfs, Kernel, Voile  # noqa: E402
from support.filesystems import Filesystems  # noqa: E402
from support.namespace import ISOLATION  # noqa: E402

FILES = 10_000
# (label, client operation, path below the mount, count, unit, what the issue asks of voile)
ON_THE_TREE = [
    ("cold stat", "stat", "stat", FILES, "µs", "<= 2x fuse-overlayfs"),
    ("negative lookup", "negative", "stat", FILES, "µs", "<= 2x fuse-overlayfs"),
    ("open+read+close", "readopen", "stat", FILES, "µs", "<= 2x fuse-overlayfs"),
    ("cold open+read+close", "readopen", "open", FILES, "µs", ""),
    ("create", "create", "new", FILES, "µs", "< fuse-overlayfs"),
    ("unlink", "unlink", "new", FILES, "µs", "< fuse-overlayfs"),
    ("unlink of lower files", "unlink", "open", FILES, "µs", ""),
    ("readdir of 10,000", "readdir", "list", 1, "ms", "<= 2x fuse-overlayfs"),
    ("readdir again", "readdir", "list", 1, "ms", ""),
    ("readdir+stat of 10,000", "readdirstat", "liststat", 1, "ms", ""),
    ("hot stat", "hotstat", "stat/f00001", 100_000, "µs", "no request"),
    ("hot open+close", "hotopen", "stat/f00001", 20_000, "µs", "no lookup"),
    ("seq write 1 GiB", "seqwrite", "big", 1024, "GiB/s", ">= 0.9 of kernel"),
    ("seq read 1 GiB", "seqread", "big", 1024, "GiB/s", ">= 0.9 of kernel"),
    ("seq read 1 GiB, lower, first", "seqread", "lower-big", 1024, "GiB/s", ""),
    ("seq read 1 GiB, lower, again", "seqread", "lower-big", 1024, "GiB/s", ">= 0.9 of kernel"),
]
VOLATILE = [
    ("getattr, volatile", "getattr", "f", 20_000, "µs", ""),
    ("fsync, volatile", "fsync", "f", 20_000, "µs", "<= 3x getattr"),
    ("fdatasync, volatile", "fdatasync", "f", 20_000, "µs", "<= 3x getattr"),
]
COMPUTING = [
    ("stat, client computes", "compute-stat", "stat", 2_000, "µs", ""),
    ("negative, client computes", "compute-negative", "stat", 2_000, "µs", ""),
]
DIRECTORIES = 10_000
ENTRIES = 20 * DIRECTORIES + DIRECTORIES
FINDS = [
    ("cold find of 200,000 files", ["-newermt", "2100-01-01"]),
]
# How many nanoseconds make one unit; GiB/s is the other way round.
UNITS = {"µs": 1e3, "ms": 1e6}


PARTS = ["tree", "volatile", "follow", "memory", "find", "huge"]
OTHER = "voile, other checkout"
NAMES = ("kernel", "fuse-overlayfs", OTHER, "voile", "voile, cpu_follow=off", "eatmydata")
SYSTEMS = ("kernel", "fuse-overlayfs", "voile")


class Bench:
    def __init__(self, filesystems, rounds):
        self.filesystems, self.rounds = filesystems, rounds
        self.figures = {}  # (label, system) -> list
        self.rows = []  # (label, unit, wanted)
        self.client = filesystems.base / "client"
        subprocess.run(
            ["gcc", "-O2", "-Wall", "-o", self.client, ROOT / "benchmarks" / "client.c"], check=True
        )

    def add(self, label, unit, wanted, system, value):
        if (label, unit, wanted) not in self.rows:
            self.rows.append((label, unit, wanted))
        self.figures.setdefault((label, system), []).append(value)

    def run_client(self, operation, path, count, preload=""):
        command = [self.client, operation, path, str(count)]
        environment = {**os.environ, "LD_PRELOAD": preload} if preload else None
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        return float(done.stdout)

    def measure(self, system, operations, point):
        for label, operation, path, count, unit, wanted in operations:
            ns = self.run_client(operation, point / path, count, system.preload)
            value = 1e9 / ns / 1024 if unit == "GiB/s" else ns / UNITS[unit]
            self.add(label, unit, wanted, system.name, value)

    def compare(self, systems, operations, lower, kind, prepare=None):
        """All rounds of some operations; in each, each system gets a fresh mount."""
        for number in range(self.rounds):
            turn = number % len(systems)
            for system in systems[turn:] + systems[:turn]:
                base = self.filesystems.directory(kind)
                point, seconds = system.mount(lower, base / "o")
                try:
                    if prepare:
                        prepare(point)
                    else:
                        self.add("exec -> mounted", "ms", "<= 60 ms", system.name, seconds * 1e3)
                    self.measure(system, operations, point)
                finally:
                    system.umount()
                    shutil.rmtree(base)

    def divide(self, label, by, wanted):
        """A row of ratios of two others, round by round."""
        for system in [system for one, system in self.figures if one == label]:
            for over, under in zip(self.figures[label, system], self.figures[by, system], strict=True):
                self.add(f"{label} / {by.partition(',')[0]}", "x", wanted, system, over / under)

    def memory(self, systems, files=200_000):
        lower = self.filesystems.directory("tmpfs") / "many"
        for i in range(200):
            directory = lower / f"d{i:03}"
            directory.mkdir(parents=True)
            for j in range(files // 200):
                os.close(os.open(directory / f"file-{j:05}", os.O_CREAT | os.O_WRONLY))
        for system in systems:
            base = self.filesystems.directory("tmpfs")
            point, _ = system.mount(lower, base / "o")
            before = system.resident()
            subprocess.run(["find", point, "-newermt", "2100-01-01"], check=True, stdout=subprocess.DEVNULL)
            after = system.resident()
            system.umount()
            self.add("memory per cached file", "B", "<= 500 B", system.name, (after - before) / files)
            self.add("memory, base", "MiB", "", system.name, before / (1 << 20))

    def find(self, systems):
        """A cold find(1) through a tree like those of images: two layers merged, directories of all sizes."""
        lowers = make_tree(self.filesystems.directory("big-tmpfs"))
        for number in range(self.rounds):
            turn = number % len(systems)
            for system in systems[turn:] + systems[:turn]:
                base = self.filesystems.directory("big-tmpfs")
                point, _ = system.mount(lowers, base / "o")
                for label, test in FINDS:
                    before = system.resident() if system.pid else 0
                    start = time.perf_counter()
                    subprocess.run(["find", point, *test], check=True, stdout=subprocess.DEVNULL)
                    self.add(label, "s", "<= 2x fuse-overlayfs", system.name, time.perf_counter() - start)
                if system.pid:
                    grown, before = system.resident() - before, before
                    drop_caches()
                    time.sleep(0.5)
                    kept = system.resident() - before
                    self.add("growth over it, per entry", "B", "<= 500 B", system.name, grown / ENTRIES)
                    self.add("the same after drop_caches", "B", "falls", system.name, kept / ENTRIES)
                system.umount()
                shutil.rmtree(base)

    def huge(self, system, entries):
        huge = Huge(system, self.client, self.filesystems.directory("big-tmpfs"), entries)
        huge.run()
        for label, seconds, longest in huge.rows:
            self.add(f"{entries:,}: {label}", "s", "", system.name, seconds)
            if longest:
                self.add(f"{entries:,}: {label}: longest wait", "ms", "<= 100 ms", system.name, longest * 1e3)

    def table(self, names):
        """Markdown."""
        compared = [n for n in ("kernel", "fuse-overlayfs", OTHER) if n in names]
        head = ["operation", "unit", *names, *(f"/ {n}" for n in compared), "wanted"]
        lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 3) + "---|"]
        for label, unit, wanted in self.rows:
            found = {n: statistics.median(v) for n in names if (v := self.figures.get((label, n)))}
            cells = [f"{found[n]:.4g}" if n in found else "" for n in names]
            ours = found.get("voile")
            ratios = [
                f"{ours / found[n]:.2f}" if ours and n in found and unit != "x" else ""
                for n in compared
            ]
            row = [label, unit, *cells, *ratios, wanted]
            lines.append("| " + " | ".join(row) + " |")
        return "\n".join(lines)


def make_tree(base):
    """Two lower layers, top first: 10,000 directories, a third of them in both, with 200,000 files."""
    top, bottom = base / "top", base / "bottom"
    for number in range(DIRECTORIES):
        where = f"d{number // 400}/d{number // 20 % 20}/d{number % 20}"
        files = 5 if number % 10 else 155  # 20 each, but not evenly
        for layer in (top, bottom) if number % 3 == 0 else ((top,) if number % 3 == 1 else (bottom,)):
            (layer / where).mkdir(parents=True)
        for index in range(files):
            layer = top if number % 3 == 1 or (number % 3 == 0 and index % 2) else bottom
            (layer / where / f"file-{index:03}.txt").write_bytes(b"x")
    return f"{top}:{bottom}"


def make_lower(directory):
    for name in ("stat", "open", "list", "liststat"):
        (directory / name).mkdir()
        for i in range(FILES):
            (directory / name / f"f{i:05}").write_bytes(b"x" * 100)
    (directory / "new").mkdir()
    with open(directory / "lower-big", "wb") as f:
        for _ in range(1024):
            f.write(b"l" * (1 << 20))
    return directory


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="not all"
    )
    parser.add_argument("--entries", type=int, default=1_000_000, help="of the huge directory")
    parser.add_argument("--without", action="append", default=[], choices=SYSTEMS)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="measure the voile there as well")
    parser.add_argument("--json", type=Path, help="write every figure of every round to this file")
    arguments = parser.parse_args()
    ISOLATION.enter()
    if not ISOLATION.isolated:
        sys.exit("the benchmarks mount: they need root")
    wanted = arguments.only or PARTS
    systems = [Kernel("kernel"), FuseOverlayfs("fuse-overlayfs"), Voile("voile")]
    systems = [s for s in systems if s.name not in arguments.without]
    if arguments.against:
        systems.append(Voile(OTHER, checkout=arguments.against.resolve()))
    filesystems = Filesystems()
    try:
        bench = Bench(filesystems, arguments.rounds)
        run(bench, filesystems, systems, wanted, arguments.entries)
    finally:
        filesystems.close()
    names = [n for n in NAMES if any(n == system for _, system in bench.figures)]
    print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs, medians of {arguments.rounds} rounds\n")
    print(bench.table(names))
    if arguments.json:
        figures = [{"operation": label, "system": s, "rounds": v} for (label, s), v in bench.figures.items()]
        arguments.json.write_text(
            json.dumps({"kernel": os.uname().release, "figures": figures}, indent=1) + "\n"
        )


def run(bench, filesystems, systems, wanted, entries):
    if "tree" in wanted or "follow" in wanted:
        lower = make_lower(filesystems.directory("big-tmpfs"))
    if "tree" in wanted:
        bench.compare(systems, ON_THE_TREE, lower, "big-tmpfs")
    if "volatile" in wanted:
        small = filesystems.directory("ext4")
        each = [s.with_options("volatile") for s in systems]
        if Eatmydata.LIBRARY:
            each.append(Eatmydata())
        bench.compare(each, VOLATILE, small, "ext4", lambda point: (point / "f").write_bytes(b"x" * 4096))
        for call in ("fsync", "fdatasync"):
            bench.divide(f"{call}, volatile", "getattr, volatile", "<= 3")
    if "follow" in wanted:
        if any(s.name == "voile" for s in systems):
            systems = [*systems, Voile("voile, cpu_follow=off", "cpu_follow=off")]
        bench.compare(systems, COMPUTING, lower, "big-tmpfs", lambda point: None)
    if "memory" in wanted:
        bench.memory([s for s in systems if s.name != "kernel"])
    if "find" in wanted:
        bench.find(systems)
    if "huge" in wanted:
        for system in systems:
            bench.huge(system, entries)


main()
