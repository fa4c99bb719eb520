"""`make soak MINUTES=n`: the races, one option set after the other, until time is up."""

import argparse
import itertools
import random
import shutil
import signal
import sys
import time
import traceback

from concurrency.quarrel import GROUPS, ended_well, quarrel, sound
from concurrency.test_concurrency import OPTIONS
from support.filesystems import Filesystems
from support.namespace import ISOLATION
from support.overlays import HookedOverlay, KernelOverlay, Layers, VoileOverlay

KINDS = {kind.__name__.lower(): kind for kinds in GROUPS.values() for kind in kinds}


class Soak:
    """Mounts of one kind after the other, with other numbers each time."""

    def __init__(self, filesystems, arguments):
        self.filesystems = filesystems
        self.arguments = arguments
        self.rounds = 0
        self.runs = 0

    def text(self):
        return f"{self.runs} runs, {self.rounds} rounds"

    def once(self, options, group, seed):
        """One quarrel; False and a report when something was wrong."""
        arguments = self.arguments
        layers = Layers(self.filesystems.directory(arguments.filesystem), lowers=2)
        overlay = KernelOverlay(layers) if arguments.kernel else HookedOverlay(layers)
        kinds = [KINDS[name] for name in arguments.race] or GROUPS[group]
        seconds, pressure = arguments.seconds, arguments.pressure
        try:
            self.rounds += quarrel(kinds, layers, overlay, options, seconds, seed, pressure)
            overlay.umount() if arguments.kernel else ended_well(overlay)
            sound(layers, options, KernelOverlay, VoileOverlay)
        except Exception:
            print(f"\nseed {seed}, {group}, options {options!r}:\n{traceback.format_exc()}", flush=True)
            return False
        finally:
            overlay.close()
            shutil.rmtree(layers.base, ignore_errors=True)
        self.runs += 1
        return True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=10, help="of one quarrel")
    parser.add_argument("--seed", type=int, help="the first seed (default: random)")
    parser.add_argument("--options", action="append", help="of the mount (default: those of the tests)")
    parser.add_argument("--group", action="append", choices=GROUPS)
    parser.add_argument("--race", action="append", default=[], choices=KINDS, help="instead of a group")
    parser.add_argument("--kernel", action="store_true", help="on the kernel's overlayfs")
    parser.add_argument("--filesystem", default="ext4", help="of the layers")
    parser.add_argument("--no-pressure", dest="pressure", action="store_false")
    parser.add_argument("--failures", type=int, default=1, help="end after so many")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ISOLATION.enter()
    filesystems = Filesystems()
    soak = Soak(filesystems, arguments)
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    start = told = time.monotonic()
    failures = 0
    turns = itertools.cycle(
        (options, group)
        for options in arguments.options or OPTIONS
        for group in (arguments.group or (["races"] if arguments.race else GROUPS))
    )
    try:
        while time.monotonic() < start + 60 * arguments.minutes and failures < arguments.failures:
            failures += not soak.once(*next(turns), seed)
            seed += 1
            if time.monotonic() - told > 60:
                told = time.monotonic()
                spent = (told - start) / 60
                print(f"{spent:.1f} min: {soak.text()}, {failures} failures", flush=True)
    finally:
        filesystems.close()
    print(f"{soak.text()}, {failures} failures")
    for line in ISOLATION.leftovers():
        print("left behind:", line)
        failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
