"""`make fuzz MINUTES=n`: random programs on the kernel's overlayfs and on voile, until time is up."""

import argparse
import gc
import hashlib
import random
import signal
import sys
import time

from differential.fuzzer.arena import Arena, Unlike
from differential.fuzzer.draw import program
from differential.fuzzer.show import shown
from differential.fuzzer.shrink import shrink
from support.filesystems import Filesystems
from support.namespace import ISOLATION

AGAIN = 4


def one(arena, seed, chosen=None, seconds=60):
    """Plays the program of a seed: the shrunk one that shows a difference and its Unlike, or None.

    A difference that does not come again is only told: somebody else on the machine may have dropped all
    caches (drop_caches), after which the kernel's overlayfs has forgotten some inode numbers, for example.
    """
    try:
        arena.run(program(seed, chosen=chosen))
    except Unlike as e:
        print(f"\nseed {seed}: {str(e)[:500]}", flush=True)
        for _ in range(AGAIN):
            try:
                arena.run(e.program)
            except Unlike as again:
                return shrink(arena, again.program, again, seconds)
        arena.fleeting += 1
        print(f"(not again in {AGAIN} times)\n{shown(e.program, 'fleeting')}", flush=True)
    return None


def main():
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, help="of the first program (default: random)")
    parser.add_argument("--programs", type=int, help="end after so many")
    parser.add_argument("--differences", type=int, default=1, help="end after so many")
    parser.add_argument("--shrink", type=float, default=60, help="so many seconds at most")
    parser.add_argument("--options", help="mount options in place of drawn ones")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ISOLATION.enter()
    filesystems = Filesystems()
    arena = Arena(filesystems)
    number = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    last = number + (arguments.programs or 1 << 62)
    chosen = arguments.options and arguments.options.split(",")
    gc.freeze()  # the forked children leave those pages alone
    start = told = time.monotonic()
    until = start + 60 * arguments.minutes
    found = 0
    try:
        while time.monotonic() < until and found < arguments.differences and number < last:
            unlike = one(arena, number, chosen, arguments.shrink)
            if unlike:
                found += 1
                less, difference = unlike
                name = "found_" + hashlib.sha1(repr(less).encode()).hexdigest()[:6]
                print(f"\nseed {number}: a difference\n{difference}\n\n{shown(less, name)}", flush=True)
            number += 1
            now = time.monotonic()
            if unlike or now - told > 60 or now > until or number == last:
                told = now
                print(
                    f"{(now - start) / 60:.1f} min: {arena.programs} programs, {arena.operations} steps, "
                    f"{arena.refused} mounts refused, {arena.fleeting} fleeting and {found} other "
                    f"differences (next seed {number})",
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
