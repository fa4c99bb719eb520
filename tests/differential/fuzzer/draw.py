"""Whole programs to draw, from a seed."""

import random

from differential.fuzzer.draws import just, one_of, sampled
from differential.fuzzer.layers import layer, lowest
from differential.fuzzer.program import Program
from differential.fuzzer.steps import steps

# What is drawn. As features come, they join.
FEATURES = frozenset(
    "remount restack swap kill ro rw "  # of the mount, mostly in the middle of a program
    "hide opaque moved redirect xwhiteout marked "  # in layers
    "userxattr places no-upper index metacopy data-only ".split()
)
REDIRECT = ["redirect_dir=on"] * 3 + ["", "redirect_dir=off", "redirect_dir=follow", "redirect_dir=nofollow"]
XINO = ["", "xino=on", "xino=off", "xino=auto"]
DAEMON = [("fuseblk=off",)] * 4 + [(), (), ("fuseblk=off", "passthrough=off"), ("fuseblk=off", "timeout=0")]
ONE_PLACE = ["tmpfs"] * 8 + ["ext4", "xfs", "btrfs"]
PLACES = [
    ("tmpfs", "ext4"),
    ("ext4", "tmpfs"),
    ("tmpfs", "big-tmpfs"),
    ("btrfs", "tmpfs"),
    ("xfs", "btrfs"),
    ("tmpfs", "overlay"),
    ("tmpfs", "overlay"),
    ("ext4", "overlay"),
]
# Not with lower layers on an overlay: where nothing has a file handle the kernel does not know that the names
# of a copied-up file are of one.
LINKS = ("link", "link_fd")
MIXED = ["tmpfs", "big-tmpfs", "ext4", "xfs"]


def options(rng, features, lowers_on):
    # xino=auto is the kernel's own guess at what inode numbers a file system has.
    found = [rng.choice(("volatile", "")), rng.choice(XINO[:3] if lowers_on else XINO)]
    if "userxattr" in features and rng.random() < 0.1:
        # With user.* attributes, which anybody may set, redirects are never followed.
        found += ["userxattr", rng.choice(("", "redirect_dir=nofollow"))]
    else:
        found.append(rng.choice(REDIRECT))
        if "metacopy" in features and rng.random() < 0.4:
            found.append(rng.choice(("metacopy=on", "metacopy=on", "metacopy=off")))
    # Nothing on an overlay has a file handle, so that there can be no index; voile says so.
    if "index" in features and lowers_on != "overlay" and rng.random() < 0.4:
        found.append(rng.choice(("index=on", "index=on", "index=off")))
    if "ro" in features and rng.random() < 0.02:
        found.append("ro")
    return tuple(word for word in found if word)


def places(rng, features):
    """(file system of the upper, of the lowers in turn)."""
    if "places" not in features or rng.random() < 0.7:
        return rng.choice(ONE_PLACE), None
    if rng.random() < 0.3:
        return rng.choice(MIXED), tuple(rng.sample(MIXED, 3))
    return rng.choice(PLACES)


def program(seed, features=FEATURES, chosen=None):
    """The program of that seed. chosen: mount options in place of drawn ones."""
    rng = random.Random(seed)
    layers = layer(features)
    lowers = [*[layers.draw(rng) for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3, 4)))], lowest.draw(rng)]
    # Where "impure" cannot be set the kernel's first lookup of a merged directory fails; it may be a listing.
    upper = [call for call in one_of(just([]), layers).draw(rng) if call[0] != "flags"]
    if "no-upper" in features and rng.random() < 0.02:
        upper, lowers = None, [layers.draw(rng), *lowers]
    on, lowers_on = places(rng, features)
    words = options(rng, features, lowers_on) if chosen is None else tuple(chosen)
    data = []
    if "data-only" in features and "metacopy=on" in words and rng.random() < 0.4:
        data = [lowest.draw(rng) for _ in range(rng.choice((1, 1, 2)))]
    if "index=on" in words:
        # Whose names have been copied up is not the same on both sides (see accepted.has_indexed_links).
        features -= {"restack"}
    return Program(
        options=words,
        daemon=sampled(DAEMON).draw(rng),
        on=on,
        lowers_on=lowers_on,
        upper=upper,
        lowers=lowers,
        data=data,
        steps=[step for step in steps(features).draw(rng) if lowers_on != "overlay" or step[1] not in LINKS],
        looks=rng.random() < 0.8,
    )
