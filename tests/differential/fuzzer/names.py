"""Pools of names, data and attributes: small, so that steps meet each other."""

from differential.fuzzer.draws import integers, just, lists, one_of, sampled
from differential.tree import ACCESS, DEFAULT, acl

NAMES = [b"f", b"g", b"a", b"b", b"c", b"h", b"\xff\xfe\x80 ", b"o,d:d\\", b"n" * 255, b".wh.f"]
LONG = b"L" * 200
DIRECTORIES = [
    b"a",
    b"b",
    b"a/b",
    b"a/a",
    b"c",
    b"b/c",
    b"a/b/c",
    b"a/a/b/a",
    LONG,
    LONG + b"/" + b"M" * 200,
    b"b/\xe9\n",
    b"c/" + b"/".join([b"d"] * 20),
]
PATHS = [
    *NAMES,
    *[d + b"/" + name for d in DIRECTORIES[:3] for name in NAMES],
    *[d + b"/" + name for d in DIRECTORIES[3:] for name in NAMES[:4]],
]
path = sampled(PATHS)
directory = sampled(DIRECTORIES)
somewhere = one_of(path, directory)

data = sampled([b"x", b"hello world\n", b"0123456789abcdef" * 256, b"page" * 2048, b""])
file_mode = sampled([0o644, 0o600, 0o666, 0o755, 0o444, 0o000, 0o4755, 0o2775, 0o2644, 0o6777])
dir_mode = sampled([0o755, 0o777, 0o777, 0o777, 0o1777, 0o2775, 0o700, 0o500])
owner = sampled([(0, 0), (1000, 1000), (2000, 1000), (2000, 3000)])
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
attribute = sampled(
    [
        ("user.a", b"1"),
        ("user.b", b"v" * 300),
        ("user.empty", b""),
        ("trusted.t", b"t"),
        ("security.capability", CAPABILITY),
        (ACCESS, acl(6, 4, 0, users={1000: 7})),
        (ACCESS, acl(7, 5, 5)),
        (ACCESS, acl(7, 7, 0, groups={3000: 7}, mask=5)),
        ("trusted.overlay.opaque", b"y"),
        ("trusted.overlay.overlay.origin", b""),
        ("user.overlay.redirect", b"a"),
    ]
)
default_acl = sampled([(DEFAULT, acl(7, 5, 0, users={2000: 5})), (DEFAULT, acl(7, 0, 0))])
any_attribute = one_of(attribute, attribute, default_acl)
# In layers only what is no business of the overlay's, or rightly its own.
plain_attribute = attribute.filter(lambda pair: "overlay" not in pair[0])
times = sampled([(1, 2), (10**18, 1_234_567_890_123_456_789), (0, 0)])


def attributes(values):
    return one_of(just(None), lists(values, 0, 2).map(dict))


flags = sampled([0x10, 0x20, 0x40, 0x80, 0xC0])  # immutable, append, nodump, noatime
offset = sampled([0, 1, 4096, 5000, 70_000])
length = sampled([1, 10, 4096, 10_000, 100_000])
uid = sampled([0, 1000, 2000])
gid = sampled([-1, 0, 1000, 3000])
bits = integers(0, 7)
