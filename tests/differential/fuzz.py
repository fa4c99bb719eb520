"""`make fuzz MINUTES=n`: random programs on the kernel's overlayfs and on voile, until time is up."""

import argparse
import hashlib
import random
import signal
import sys
import time

from hypothesis import HealthCheck, Phase, given, seed, settings

from differential.fuzz_draw import programs
from differential.fuzz_show import shown
from differential.fuzz_shrink import shrink
from differential.fuzz_sides import Arena, Unlike
from support.filesystems import Filesystems
from support.namespace import ISOLATION

BATCH = 200


class TimeIsUp(BaseException):
    """Ends hypothesis, which takes an Exception for a difference."""


def batch(arena, number, examples, until, smaller=shrink):
    """Programs of one seed: the shrunk one that shows a difference and its Unlike, or None."""
    found = []

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(programs())
    def run(program):
        if time.monotonic() > until:
            raise TimeIsUp
        program = arena.concrete(program)
        try:
            arena.run(program)
        except Unlike as e:
            found[:] = program, e
            raise

    try:
        run()
    except (Unlike, TimeIsUp):
        pass
    except BaseException as e:  # hypothesis says that a difference comes and goes
        if not found:
            raise
        print(f"not every time: {type(e).__name__}", flush=True)
    return smaller(arena, *found) if found else None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, help="the first seed (default: random)")
    parser.add_argument("--differences", type=int, default=1, help="end after so many")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ISOLATION.enter()
    filesystems = Filesystems()
    arena = Arena(filesystems)
    number = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    start = told = time.monotonic()
    until = start + 60 * arguments.minutes
    found = 0
    try:
        while time.monotonic() < until and found < arguments.differences:
            unlike = batch(arena, number, BATCH, until)
            if unlike:
                found += 1
                program, difference = unlike
                name = "found_" + hashlib.sha1(repr(program).encode()).hexdigest()[:6]
                print(f"\nseed {number}: a difference\n{difference}\n\n{shown(program, name)}", flush=True)
            number += 1
            if unlike or time.monotonic() - told > 60 or time.monotonic() > until:
                told = time.monotonic()
                spent = (told - start) / 60
                print(
                    f"{spent:.1f} min: {arena.programs} programs, {arena.operations} operations, "
                    f"{found} differences (next seed {number})",
                    flush=True,
                )
    finally:
        filesystems.close()
    for line in ISOLATION.leftovers():
        print("left behind:", line)
        found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
