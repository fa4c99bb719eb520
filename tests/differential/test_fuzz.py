"""Random programs on the kernel's overlayfs and on voile: a minute of a fixed seed. `make fuzz` runs on."""

import time

import pytest

from differential.fuzzer.__main__ import one
from differential.fuzzer.arena import Arena, Unlike
from differential.fuzzer.show import shown
from differential.scenarios.found import PROGRAMS
from support.overlays import VoileOverlay, voile_missing

# A fast machine comes to the end, a slow one as far as time allows.
SEEDS = range(20, 420)
SECONDS = 45


@pytest.fixture
def arena(filesystems):
    if reason := voile_missing():
        pytest.skip(reason)
    return Arena(filesystems)


@pytest.mark.slow
@pytest.mark.timeout(600)  # shrinking takes its time
def test_random_programs(arena):
    until, unlike = time.monotonic() + SECONDS, None
    for seed in SEEDS:
        unlike = one(arena, seed)
        if unlike or time.monotonic() > until:
            break
    print(f"{arena.programs} programs, {arena.operations} steps")
    if unlike:
        program, difference = unlike
        pytest.fail(f"{difference}\n{shown(program, 'found')}", pytrace=False)


@pytest.mark.parametrize("name", PROGRAMS)
def test_found_before(filesystems, name):
    if reason := voile_missing():
        pytest.skip(reason)
    try:
        Arena(filesystems, VoileOverlay).run(PROGRAMS[name])
    except Unlike as e:
        pytest.fail(str(e), pytrace=False)
