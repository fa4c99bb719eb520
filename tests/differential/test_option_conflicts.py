"""Which options go together: what the kernel refuses voile refuses, and no more than is documented."""

import itertools
import os

import pytest

from voile.overlay.params import Params, UsageError, parse

CHOICES = {
    "redirect_dir": ("on", "off", "follow", "nofollow"),
    "metacopy": ("on", "off"),
    "index": ("on", "off"),
    "xino": ("on",),
    "userxattr": ("",),
    "volatile": ("",),
    "override_creds": ("", "on"),
    "nooverride_creds": ("",),
    "uuid": ("on", "off", "null", "auto", "x"),
    "verity": ("off", "on", "require"),
    "nfs_export": ("on", "off"),
}
# The kernel has these, voile refuses them by name.
MISSING = ("verity=on", "verity=require", "nfs_export=on", "uuid=on")


def word(name, value):
    return f"{name}={value}" if value else name


def combinations():
    """Every pair of values, and all of those that decide together."""
    alone = [word(name, value) for name, values in CHOICES.items() for value in values]
    yield from itertools.product(alone)
    for one, other in itertools.combinations(CHOICES, 2):
        yield from itertools.product(
            *[[word(name, value) for value in CHOICES[name]] for name in (one, other)]
        )
    deciding = [[None, *[word(n, v) for v in CHOICES[n]]] for n in ("redirect_dir", "metacopy", "userxattr")]
    yield from (tuple(filter(None, words)) for words in itertools.product(*deciding))


def kernel_takes(overlay, words):
    try:
        overlay.mount(*words)
    except OSError:
        return False
    overlay.umount()
    return True


def voile_takes(layers, words):
    try:
        parse(os.fsencode(",".join([layers.options(), *words])), Params()).check()
    except UsageError:
        return False
    return True


@pytest.mark.parametrize("upper", [True, False])
def test_options_that_conflict(layers, kernel_overlay, upper):
    unlike = []
    for words in dict.fromkeys(combinations()):
        made = layers(2, upper, "tmpfs")
        if set(words) & set(MISSING):
            assert not voile_takes(made, words)
        elif (kernel := kernel_takes(kernel_overlay(made), words)) != voile_takes(made, words):
            unlike.append((",".join(words), "kernel mounts" if kernel else "kernel refuses"))
    assert not unlike
