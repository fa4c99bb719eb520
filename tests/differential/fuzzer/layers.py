"""Layers to draw: calls of build.build."""

from differential.fuzzer.draws import Draw, just, lists, one_of, sampled, tuples, weighted
from differential.fuzzer.names import (
    attributes,
    data,
    default_acl,
    dir_mode,
    directory,
    file_mode,
    flags,
    owner,
    path,
    plain_attribute,
    somewhere,
)

entry = weighted(
    [
        (2, tuples(just("file"), somewhere, data, file_mode, owner, attributes(plain_attribute))),
        (
            2,
            tuples(
                just("dir"), somewhere, dir_mode, owner, attributes(one_of(plain_attribute, default_acl))
            ),
        ),
        (2, tuples(just("file"), somewhere, data)),
        (4, tuples(just("dir"), directory)),
        (1, tuples(just("symlink"), somewhere, sampled([b"f", b"a", b"nowhere", b"b/g", b"a/b", b"../f"]))),
        (2, tuples(just("link"), path, path)),
        (1, tuples(sampled(["fifo", "socket", "char", "block"]), path)),
        (1, tuples(just("sparse"), path, just(200_000), just((70_000, b"data")))),
        (1, tuples(just("big"), path)),
        (1, tuples(just("flags"), somewhere, flags)),
    ]
)
# What no rename has left: to nowhere, to a file, in a circle, and not valid. Two directories that lead to one
# are not drawn: the kernel says ESTALE to the one that it looks up last.
redirect = sampled([b"/nowhere", b"nowhere", b"/c/f", b"/a/../b", b"a/b", b"/", b"..", b"", b"//a", b"/a/"])
HANDLE = bytes.fromhex("00fb210001") + bytes(16) + bytes(range(12))
mark = sampled(
    [
        ("origin", b""),
        ("origin", b"garbage"),
        ("origin", HANDLE),
        ("impure", b"y"),
        ("protattr", b"i"),
        ("protattr", b"ax"),
        ("nlink", b"U+3"),
        ("opaque", b"n"),
        ("opaque", b""),
        ("whiteout", b"y"),
        ("upper", HANDLE),
        ("overlay.opaque", b"y"),
        ("overlay.whiteout", b""),
        ("unknown", b"1"),
    ]
).map(lambda pair: ("trusted.overlay." + pair[0], pair[1]))
HIDING = {
    "hide": (3, tuples(just("whiteout"), somewhere)),
    "opaque": (2, tuples(just("opaque"), directory)),
    "moved": (3, tuples(just("moved"), directory, somewhere, sampled([True, False]))),
    "redirect": (1, tuples(just("redirected"), directory, redirect)),
    "xwhiteout": (2, tuples(just("xwhiteout"), directory, path.map(lambda name: name.split(b"/")[-1]))),
    "marked": (1, tuples(just("marked"), somewhere, mark).map(lambda call: (*call[:2], *call[2]))),
    "metacopy": (3, tuples(just("metacopy"), path, one_of(just(None), path.map(lambda p: b"/" + p)))),
}


def layer(features):
    """A layer with others below it."""
    hiding = weighted([HIDING[name] for name in HIDING if name in features])
    item = one_of(entry, entry, hiding)
    return Draw(lambda rng: lists(item, 0, rng.choice((0, 4, 12, 24))).draw(rng))


lowest = Draw(lambda rng: lists(entry, 0, rng.choice((2, 10, 25, 50))).draw(rng))
