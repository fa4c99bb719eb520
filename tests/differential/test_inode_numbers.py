"""xino=on with layers on several file systems: the very numbers of the kernel, before and after a remount."""

import os
import stat

import pytest

from differential.builder import Layer
from support import syscalls
from support.overlays import KernelOverlay, Layers, VoileOverlay, voile_missing
from support.users import in_child

# The upper's file system, then the lowers'. With 32-bit numbers (ext4) the kernel takes 32 bits for xino.
PLACES = [
    ("ext4", "ext4"),
    ("ext4", "xfs"),
    ("ext4", "ext4-b"),
    ("ext4", "ext4-b", "ext4", "ext4-c"),
    ("xfs", "ext4", "tmpfs"),
    ("tmpfs", "btrfs", "ext4", "xfs"),
    ("tmpfs", "big-tmpfs", "tmpfs"),
    (None, "ext4", "ext4-b"),
    (None, "xfs", "ext4", "tmpfs"),
    (None, "tmpfs", "tmpfs"),
]


def directory(filesystems, kind):
    if "-" in kind and kind not in filesystems.points and not kind.startswith("big"):
        filesystems.points[kind] = filesystems.make(kind.partition("-")[0], filesystems.base / kind)
    return filesystems.directory(kind)


@pytest.fixture
def place(filesystems):
    def make(upper, *lowers):
        layers = Layers(directory(filesystems, upper or "ext4"), 0, bool(upper))
        layers.lowers = [directory(filesystems, kind) for kind in lowers]
        return layers

    return make


def build(layers):
    for number, root in enumerate(layers.lowers):
        layer = Layer(root)
        layer.kinds(f"only-{number}-").kinds("all-").file(f"all-dir/{number}").file(f"merged/sub/{number}")
        layer.file(f"merged/h{number}").link(f"merged/h{number}", f"merged/i{number}")
        layer.dir(f"lower{number}/x").file(f"hidden/{number}").file("top/f").settle()
    if layers.upper:
        layer = Layer(layers.upper)
        layer.kinds("upper-").file("merged/up").file("pure/f").opaque("hidden").file("hidden/mine").settle()


def change():
    """Everything that moves numbers about."""
    for name in sorted(os.listdir(".")):
        if not stat.S_ISLNK(os.lstat(name).st_mode):
            os.chmod(name, 0o700)
    for name in sorted(os.listdir("merged")):
        os.chmod(f"merged/{name}", 0o700)
    os.rename("all-file", "pure/moved")
    os.rename("only-0-symlink", "merged/sub/symlink")
    os.link("only-0-fifo", "pure/fifo")
    os.mkdir("made")
    os.mkdir("merged/made")
    with open("merged/made/new", "w"):
        pass
    os.rename("merged/sub/0", "top/0")
    os.unlink("upper-file")
    os.mkdir("upper-file")


def numbers():
    """{path: st_ino} in a walk that also checks what each directory lists, the second time from caches."""
    found = {}
    device = os.lstat(".").st_dev
    pending = ["."]
    while pending:
        path = pending.pop()
        for again in (False, True):
            listed = {name: ino for name, ino, *_ in syscalls.list_directory(path)}
            for name in sorted(set(listed) - {b".", b".."}):
                entry = os.path.join(path, os.fsdecode(name))
                st = os.lstat(entry)
                found[entry] = st.st_ino
                if listed[name] != st.st_ino or st.st_dev != device:
                    found[entry, "listed"] = (listed[name], st.st_dev == device)
                if not again and stat.S_ISDIR(st.st_mode):
                    pending.append(entry)
            if listed[b"."] != os.lstat(path).st_ino:
                found[path, "."] = listed[b"."]
    found["."] = os.lstat(".").st_ino
    return found


def visit(overlay, *functions):
    point = overlay.mount("xino=on")

    def inside():
        os.chdir(point)
        return [function() for function in functions]

    seen = in_child(inside)
    overlay.check()
    overlay.umount()
    return seen


def unlike(expected, got):
    """What differs; what the kernel lists wrong (merged directories, "..") is wrong there alone."""
    wrong = {path for path in expected if isinstance(path, tuple)}
    pairs = {path: (expected.get(path), got.get(path)) for path in expected | got if path not in wrong}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def stays(before, after):
    """Whether numbers stay over a copy-up; lower hard links are broken, "upper-file" is a new object."""
    new = {"./upper-file", *[path for path in before if str(path).startswith(("./merged/h", "./merged/i"))]}
    return all(before[path] == after[path] for path in (before.keys() & after.keys()) - new)


@pytest.mark.parametrize("kinds", PLACES, ids=["+".join(map(str, kinds)) for kinds in PLACES])
def test_the_kernels_numbers(place, kinds):
    if reason := voile_missing():
        pytest.skip(reason)
    layers = place(*kinds)
    build(layers)
    kernel, voile = KernelOverlay(layers), VoileOverlay(layers)
    try:
        [expected], [got] = visit(kernel, numbers), visit(voile, numbers)
        assert not unlike(expected, got)
        assert len(set(got.values())) >= len(got) - len(layers.lowers)  # the hard links in them
        if layers.upper:
            before, _, after = visit(voile, numbers, change, numbers)
            [expected], [got] = visit(kernel, numbers), visit(voile, numbers)
            assert not unlike(expected, got)
            assert not unlike(after, got)
            assert stays(before, after)
    finally:
        kernel.close()
        voile.close()


def test_numbers_that_need_the_bits_themselves(place):
    """Those of an overlay on several file systems, below another one."""
    if reason := voile_missing():
        pytest.skip(reason)
    inner, outer = place("tmpfs", "ext4", "xfs"), place("ext4", "xfs")
    build(inner)
    below, above = VoileOverlay(inner), VoileOverlay(outer)
    try:
        outer.lowers = [below.mount("xino=on"), *outer.lowers]
        assert max(os.lstat(inner.point / name).st_ino for name in os.listdir(inner.point)) >> 62
        before, _, after = visit(above, numbers, change, numbers)
        # What was copied up from there has a number of its own then: a mount of voile has no lasting handles.
        [again] = visit(above, numbers)
        hard_links = len(inner.lowers)
        for found in (before, after, again):
            assert not [path for path in found if isinstance(path, tuple)]
            assert len(set(found.values())) == len(found) - hard_links
            hard_links = 1  # chmod breaks them; pure/fifo is made
        assert stays(before, after)
    finally:
        above.close()
        below.close()
