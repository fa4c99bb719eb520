"""The index over several mounts, by the kernel and by voile in turn; mounts that are refused."""

import errno
import os
import subprocess

import pytest

from differential import snapshot
from differential.builder import Builder
from differential.tree import Tree
from support import fsck
from support.fsck import T, handle, put, whiteout
from support.users import in_child
from voile.overlay.params import parse
from voile.overlay.super import Overlay

ON = "index=on"
ALL = "index=on,redirect_dir=on"


def family(layer, *names, data=b"0123456789"):
    first, *others = names
    layer.file(first, data, 0o644, (21, 22), {"user.a": b"A"})
    for name in others:
        layer.link(first, name)


def build(b):
    family(b.low, "a", "b", "d/c", "d/e/f")
    family(b.low, "x", "y", data=b"others")
    b.low.symlink("s", "a").link("s", "d/s").file("alone", b"alone")
    b.up.file("up").dir("updir")


NAMES = ("a", "b", "d/c", "d/e/f", "x", "y", "s", "d/s", "alone", "new", "d/new")


def look(t):
    for name in NAMES:
        t.lstat(name)
        t.same_inode("f", name)
    for name in NAMES:
        t.read(name)


def write_by_one(t):
    t.append("d/c", b"+1")
    t.unlink("x")
    t.chown("s", 5, 6)


def write_by_others(t):
    t.overwrite("a", b"AA")
    t.link("b", "new")
    t.rename("d/e/f", "d/new")
    t.chmod("y", 0o600)
    t.append("alone", b"!")


def remove_some(t):
    t.unlink("d/c")
    t.unlink("y")
    t.rename("up", "d/s")
    t.link("alone", "x")


def remove_all(t):
    for name in NAMES:
        t.unlink(name)
    t.list("d")


# Mounts one after another: options, and what is done there.
PLAYS = {
    "once": [(ON, write_by_one), (ON, look)],
    "more_and_more": [(ON, write_by_one), (ON, write_by_others), (ALL, remove_some), (ON, remove_all)],
    "all_at_once_later": [(ON, write_by_others), (ON, remove_all), (ON, look)],
    # Without the index, names that are not copied up show the lower file, and copies are files of their own.
    "off_in_between": [(ON, write_by_one), ("", write_by_others), (ON, remove_some), (ON, look)],
    "off_at_the_end": [(ON, write_by_one), (ON, write_by_others), ("", look), ("", remove_all)],
    "broken_before": [("", write_by_one), (ON, write_by_others), (ON, remove_some), (ON, remove_all)],
    "broken_before_and_after": [("", write_by_others), (ON, write_by_one), ("", remove_some), (ON, look)],
    "indexed_all": [
        ("index=on,nfs_export=on", write_by_others), (ON, look), (ON, write_by_one), (ON, remove_all),
    ],
    "with_a_whiteout_index": [
        ("index=on,nfs_export=on", remove_all), (ON, look), (ON, write_by_others), (ON, look),
    ],
    "read_only": [(ON, write_by_one), ("ro,index=on", look), (ON, write_by_others), ("ro,index=on", look)],
    "volatile_then_not": [(ON, write_by_others), ("volatile,index=on", remove_some)],
    "without_uuid": [("index=on,uuid=off", write_by_one), ("index=on,uuid=off", write_by_others)],
    "with_redirects": [(ALL, lambda t: t.rename("d", "g")), (ALL, write_by_others), (ALL, look)],
}  # fmt: skip


def seen(overlay, options, steps):
    """What the steps gave, and the tree after them."""
    point = overlay.mount(options)

    def inside():
        os.chdir(point)
        os.umask(0o022)
        tree = Tree()
        steps(tree)
        os.chdir(point)
        return tree.log, snapshot.merged()

    result = in_child(inside, timeout=60)
    overlay.check()
    overlay.umount()
    return result


def raw(layers):
    """Upper and work directory, comparable."""
    origins = snapshot.handles(layers)
    work = snapshot.raw(layers.work, origins, times=False)
    entries = {
        snapshot.index_entry(path, origins): entry
        for path, entry in work.items()
        if entry["kind"] != "whiteout" or path.startswith(b"index/0")
    }
    for entry in entries.values():
        entry.get("xattrs", {}).pop(T + "upper", None)
    return snapshot.raw(layers.upper, origins, times=False), entries


def played(play, cast, layers, overlays):
    """A play with one actor (k or v) for each mount."""
    made = layers()
    builder = Builder(made)
    build(builder)
    builder.settle()
    results = []
    for actor, (options, steps) in zip(cast, play):
        results.append(seen(overlays[actor](made), options, steps))
    complaints = [] if "volatile" in play[-1][0] else fsck.complaints(made, ON)
    return results, raw(made), complaints


@pytest.mark.parametrize("cast", ["vvvv", "kvkv", "vkvk"])
@pytest.mark.parametrize("name", PLAYS)
def test_mounted_in_turn(name, cast, layers, kernel_overlay, voile_overlay):
    play = PLAYS[name]
    if any("nfs_export" in options for options, _steps in play):
        cast = "k" + cast[1:]  # voile refuses it
    overlays = {"k": kernel_overlay, "v": voile_overlay}
    expected, (upper, work), said = played(play, "kkkk", layers, overlays)
    got, (our_upper, our_work), our_said = played(play, cast, layers, overlays)
    problems = []
    ignore = {"ino", "one device"}
    for number, ((log, tree), (our_log, our_tree)) in enumerate(zip(expected, got)):
        problems += [f"mount {number}: {a} {b}" for a, b in zip(log, our_log) if a != b]
        problems += [f"mount {number}: {line}" for line in snapshot.differences(tree, our_tree, ignore)]
    problems += [f"upper: {line}" for line in snapshot.differences(upper, our_upper)]
    problems += [f"work: {line}" for line in snapshot.differences(work, our_work)]
    problems += [] if len(said) == len(our_said) else [f"check: {said} {our_said}"]
    if problems:
        pytest.fail("\n".join(problems[:40]), pytrace=False)


# What was done to the layers between two mounts.


def entry_of(made, name):
    ino = os.lstat(made.upper / name).st_ino
    return next(each for each in (made.work / "index").iterdir() if each.lstat().st_ino == ino)


def nothing(made):
    pass


def another_lower(made):
    replace(made.lowers[0])


def another_upper(made):
    replace(made.upper)


def replace(directory):
    old = directory.with_name("old")
    directory.rename(old)
    subprocess.run(["cp", "-a", old, directory], check=True)


def index_is_a_file(made):
    subprocess.run(["rm", "-r", made.work / "index"], check=True)
    (made.work / "index").touch()


def index_is_a_symlink(made):
    (made.work / "index").rename(made.base / "elsewhere")
    (made.work / "index").symlink_to(made.base / "elsewhere")


def no_index(made):
    subprocess.run(["rm", "-r", made.work / "index"], check=True)


def no_marks(made):
    os.removexattr(made.upper, T + "origin")
    os.removexattr(made.work / "index", T + "upper")


def bad_marks(made):
    put(made.upper, "origin", b"nonsense")
    put(made.work / "index", "upper", b"")


def nonsense(made):
    (made.work / "index/nonsense").touch()


def short_name(made):
    (made.work / "index/00fb").mkdir()


def newer_format(made):
    value = handle(made.lowers[0] / "alone")
    (made.work / "index" / (b"\1" + value[1:]).hex()).touch()


def other_byte_order(made):
    (made.work / "index" / handle(made.lowers[0] / "alone", flags=1).hex()).touch()


def no_origin(made):
    os.removexattr(entry_of(made, "d/c"), T + "origin")


def another_origin(made):
    put(entry_of(made, "d/c"), "origin", handle(made.lowers[0] / "alone"))


def no_nlink(made):
    os.removexattr(entry_of(made, "d/c"), T + "nlink")


def nlinks(value):
    def change(made):
        put(entry_of(made, "d/c"), "nlink", value)

    change.__name__ = "nlink " + value.decode()
    return change


def orphan(made):
    put(entry_of(made, "d/c"), "nlink", b"U-1")
    (made.upper / "d/c").unlink()
    for name in ("a", "b", "d/c"):
        whiteout(made.upper / name)


def only_lower_names_left(made):
    (made.upper / "d/c").unlink()


def leftovers(made):
    (made.work / "index/#7").mkdir()
    (made.work / "index/#7/x").touch()
    (made.work / "index/#8").touch()
    whiteout(made.work / "index/#9")


def whiteout_entry(made):
    whiteout(made.work / "index" / handle(made.lowers[0] / "alone").hex())


def whiteout_in_place_of_an_entry(made):
    path = entry_of(made, "d/c")
    path.unlink()
    whiteout(path)


def entry_of_another_type(made):
    path = entry_of(made, "d/c")
    origin = os.getxattr(path, T + "origin")
    path.unlink()
    path.symlink_to("x")
    put(path, "origin", origin)
    os.link(path, made.upper / "keeps it", follow_symlinks=False)


def directory_entry(made):
    (made.work / "index" / handle(made.lowers[0] / "alone").hex()).mkdir()


def entry_for_a_file_of_one_name(made):
    """As nfs_export=on makes them."""
    path = made.work / "index" / handle(made.lowers[0] / "alone").hex()
    path.write_bytes(b"from the index")
    put(path, "origin", handle(made.lowers[0] / "alone"))
    put(path, "nlink", b"U+0")


def another_file_in_place_of_an_entry(made):
    path = entry_of(made, "d/c")
    origin = os.getxattr(path, T + "origin")
    path.unlink()
    path.write_bytes(b"another")
    put(path, "origin", origin)
    put(path, "nlink", b"U+3")


def lower_is_gone(made):
    for name in ("a", "b", "d/c", "d/e/f"):
        (made.lowers[0] / name).unlink()


def lower_names_are_gone(made):
    for name in ("a", "b", "d/e/f"):
        (made.lowers[0] / name).unlink()


CHANGED = (
    nothing, another_lower, another_upper, index_is_a_file, index_is_a_symlink, no_index, no_marks, bad_marks,
    nonsense, short_name, newer_format, other_byte_order, no_origin, another_origin, no_nlink,
    nlinks(b"U+7"), nlinks(b"L-1"), nlinks(b"L-9"), nlinks(b"many"), orphan, only_lower_names_left,
    leftovers, whiteout_entry, whiteout_in_place_of_an_entry, entry_of_another_type, directory_entry,
    entry_for_a_file_of_one_name, another_file_in_place_of_an_entry, lower_is_gone, lower_names_are_gone,
)  # fmt: skip

# Objects that cannot be looked up: the kernel does not list them.
UNLISTED = (whiteout_in_place_of_an_entry, entry_of_another_type)


def kernel_errno(made, kernel_overlay, options):
    overlay = kernel_overlay(made)
    try:
        overlay.mount(options)
    except OSError as exc:
        return errno.errorcode[exc.errno]
    overlay.umount()
    return None


def our_errno(made, options):
    """Opened and taken into use, in another process."""

    def inside():
        os.chdir(made.base)
        overlay = None
        try:
            overlay = Overlay.open(parse(os.fsencode(f"{made.options()},{options}")).check())
            overlay.activate()
        except OSError as exc:
            if overlay is not None:
                overlay.abort()
            assert "\n" not in exc.strerror
            return errno.errorcode[exc.errno]
        overlay.close()
        return None

    return in_child(inside)


@pytest.mark.parametrize("options", [ON, "ro,index=on"])
@pytest.mark.parametrize("change", CHANGED, ids=lambda change: change.__name__)
def test_changed_between_mounts(change, options, layers, kernel_overlay, voile_overlay):
    """The same mounts are refused, with the same errno; the others look the same, and leave the same."""
    sides = []
    for _ in range(2):
        made = layers()
        builder = Builder(made)
        build(builder)
        builder.settle()
        seen(kernel_overlay(made), ON, write_by_one)
        change(made)
        sides.append(made)
    before = raw(sides[1])
    theirs, ours = kernel_errno(sides[0], kernel_overlay, options), our_errno(sides[1], options)
    assert ours == theirs
    if theirs is not None:
        assert raw(sides[1]) == before
        return
    if options != ON:
        assert raw(sides[1]) == before
        steps = look
    else:
        if change is not lower_is_gone:  # what its entry is called tells nothing
            assert raw(sides[1])[1].keys() == raw(sides[0])[1].keys()
        steps = write_by_others
    if change is another_origin:
        return  # two upper files of one origin, of which the kernel's overlayfs shows one at a time (ESTALE)
    (log, tree), (our_log, our_tree) = (
        seen(overlay, options, steps) for overlay in (kernel_overlay(sides[0]), voile_overlay(sides[1]))
    )
    assert our_log == log
    if change not in UNLISTED:
        assert snapshot.differences(tree, our_tree, {"ino", "one device"}) == []
    if options == ON and change is not lower_is_gone:
        for expected, got in zip(raw(sides[0]), raw(sides[1])):
            assert snapshot.differences(expected, got) == []
