"""Several processes and threads on the same files, checked by what is true whatever the interleaving."""

import pytest

from concurrency.quarrel import GROUPS, ended_well, quarrel, sound

SECONDS = 1
OPTIONS = [
    "volatile,redirect_dir=on",
    "passthrough=off",
    "index=on,redirect_dir=on",
    "volatile,metacopy=on,redirect_dir=on",
    "index=on,metacopy=on,passthrough=off",
]


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.timeout(600)  # on a busy machine
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("options", OPTIONS)
def test_quarrel(options, group, layers, hooked_overlay, kernel_overlay, voile_overlay):
    made = layers(lowers=2)
    overlay = hooked_overlay(made)
    rounds = quarrel(GROUPS[group], made, overlay, options, SECONDS, seed=1)
    print(f"{rounds} rounds")
    ended_well(overlay)
    sound(made, options, kernel_overlay, voile_overlay)
