"""`voile check` on what the kernel has written, first of all the index."""

import os
import stat
import subprocess

import pytest

from differential import snapshot
from support import fsck, syscalls
from support.fsck import (
    INDEXED,
    T,
    contents,
    handle,
    kernel_written,
    kinds,
    put,
    same_tree,
    shown,
    voile_check,
    whiteout,
)  # fmt: skip
from voile.linux import files as linux_files
from voile.overlay.check import check

KERNEL_OPTIONS = (
    "index=off", INDEXED, "index=on,nfs_export=on", "metacopy=on,redirect_dir=on,index=on",
    "metacopy=on,redirect_dir=on", "xino=on", "uuid=null,index=on", "volatile",
)  # fmt: skip


@pytest.mark.parametrize("on", ["ext4", "xfs", "btrfs", "tmpfs"])
@pytest.mark.parametrize("options", KERNEL_OPTIONS)
def test_clean_after_the_kernel(options, on, layers, kernel_overlay):
    made = layers(on=on)
    kernel_written(made, kernel_overlay, options)
    assert fsck.complaints(made, options) == []
    assert voile_check(made)[0] == (4 if options == "volatile" else 0)
    assert voile_check(made, lower=False, work=False)[0] == 0


def entry_of(layers, path):
    """The index entry that stands for an upper file."""
    ino = os.lstat(layers.upper / path).st_ino
    return next(each for each in (layers.work / "index").iterdir() if each.lstat().st_ino == ino)


# Each makes a problem in what `kernel_written` has left with index=on.


def wrong_nlink(layers):
    put(layers.upper / "one", "nlink", b"U+5")
    return [("nlink", entry_of(layers, "one"))]


def invalid_nlink(layers):
    put(layers.upper / "one", "nlink", b"many")
    return [("nlink", entry_of(layers, "one"))]


def no_nlink(layers):
    os.removexattr(layers.upper / "one", T + "nlink")
    return [("nlink", entry_of(layers, "one"))]


def nlink_without_an_entry(layers):
    (layers.upper / "fresh").touch()
    put(layers.upper / "fresh", "nlink", b"U+1")
    return [("nlink", layers.upper / "fresh")]


def name_that_is_no_handle(layers):
    os.mknod(layers.work / "index/nonsense", stat.S_IFCHR, 0)
    (layers.work / "index/00ab").mkdir()
    return [("index", layers.work / "index/00ab"), ("index", layers.work / "index/nonsense")]


def no_origin(layers):
    os.removexattr(layers.upper / "one", T + "origin")
    return [("index", entry_of(layers, "one"))]


def origin_of_nothing(layers):
    gone = layers.lowers[0] / "gone for good"
    gone.touch()
    put(layers.upper / "one", "origin", handle(gone))
    gone.unlink()
    return [("index", entry_of(layers, "one"))]


def orphan(layers):
    entry = entry_of(layers, "one")
    for name in os.listdir(layers.upper):
        if (layers.upper / name).lstat().st_ino == entry.lstat().st_ino:
            os.unlink(layers.upper / name)
            if (layers.lowers[0] / name).exists():
                whiteout(layers.upper / name)
    put(entry, "nlink", b"U-1")
    return [("index", entry)]


def leftover_in_the_index(layers):
    (layers.work / "index/#7f").mkdir()
    return [("leftover", layers.work / "index/#7f")]


@pytest.mark.parametrize(
    "problem",
    [wrong_nlink, invalid_nlink, no_nlink, nlink_without_an_entry, name_that_is_no_handle,
     no_origin, origin_of_nothing, orphan, leftover_in_the_index],
    ids=lambda each: each.__name__,
)  # fmt: skip
@pytest.mark.parametrize("options", [INDEXED, "index=on,nfs_export=on"])
def test_index(problem, options, layers, kernel_overlay, voile_overlay):
    made = layers()
    kernel_written(made, kernel_overlay, options)
    before = contents(made.upper)
    expected = sorted((kind, os.path.relpath(path, made.base)) for kind, path in problem(made))
    assert kinds(voile_check(made)[1], made) == expected
    status, found, said = voile_check(made, "--fix")
    assert (status, kinds(found, made), said.count("\n")) == (1, expected, 1)
    assert voile_check(made)[0] == 0
    if problem is not orphan:
        assert contents(made.upper) == before
    tree = same_tree(made, kernel_overlay, voile_overlay, options)
    if problem in (wrong_nlink, invalid_nlink, no_nlink):
        assert {tree[b"./" + name]["nlink"] for name in (b"one", b"two", b"four")} == {3}
    assert voile_check(made)[0] == 0


def test_orphan_becomes_a_whiteout_with_nfs_export(layers, kernel_overlay):
    """So that handles which have been given out stay stale."""
    made = layers()
    kernel_written(made, kernel_overlay, "index=on,nfs_export=on")
    _kind, entry = orphan(made)[0]
    assert voile_check(made, "--fix")[0] == 1
    assert stat.S_ISCHR(entry.lstat().st_mode)


def test_directories_of_the_index(layers, kernel_overlay):
    """One does not say whose it is, one names a directory that has gone, one's directory was removed."""
    made = layers()
    options = "index=on,nfs_export=on"
    kernel_written(made, kernel_overlay, options)
    (made.upper / "more").mkdir()
    for name in ("d", "d/e"):
        assert (made.upper / name).is_dir()
    index = made.work / "index"
    entries = {entry_names(made, each): each for each in index.iterdir() if each.is_dir()}
    before = shown(kernel_overlay(made), options)
    os.removexattr(entries["d"], T + "upper")
    gone = made.base / "was here"
    gone.mkdir()
    value = handle(gone, flags=4)
    gone.rmdir()
    put(entries["d/e"], "upper", value)
    other = index / handle(made.lowers[0] / "gone").hex()
    other.unlink()
    other.mkdir()
    put(other, "upper", value)
    wrong = sorted(("index", os.path.relpath(each, made.base)) for each in (*entries.values(), other))
    assert kinds(voile_check(made)[1], made) == wrong
    assert voile_check(made, "--fix")[0] == 1
    assert not entries["d"].exists() and not entries["d/e"].exists()
    # Handles of what has been removed stay stale.
    assert stat.S_ISCHR(other.lstat().st_mode)
    assert voile_check(made)[0] == 0
    after = shown(kernel_overlay(made), options)
    assert snapshot.differences(before, after, {"ino", "d_ino wrong"}) == []


def entry_names(layers, entry):
    """The lower path that an index entry stands for."""
    for directory, names, files in os.walk(layers.lowers[0]):
        for name in names + files:
            path = os.path.join(directory, name)
            if syscalls.file_handle(path)[1].hex() in entry.name:
                return os.path.relpath(path, layers.lowers[0])
    return None


def test_index_of_another_upper(layers, kernel_overlay):
    made = layers()
    kernel_written(made, kernel_overlay, INDEXED)
    subprocess.run(["cp", "-a", made.upper, made.base / "copy"], check=True)
    made.upper.rename(made.base / "old")
    (made.base / "copy").rename(made.upper)
    index = sorted(os.listdir(made.work / "index"))
    status, found, _said = voile_check(made, "--fix")
    assert status == 4 and ("index", "wk/index") in kinds(found, made)
    assert not any(each["fixed"] for each in found["problems"])
    assert sorted(os.listdir(made.work / "index")) == index


def test_last_name_of_a_file_is_kept(layers, kernel_overlay):
    """An index entry that means nothing, and is all that is left of somebody's data."""
    made = layers()
    kernel_written(made, kernel_overlay, INDEXED)
    (made.work / "index/mine").write_text("mine")
    status, found, _said = voile_check(made, "--fix")
    assert (status, kinds(found, made)) == (4, [("index", "wk/index/mine")])
    assert (made.work / "index/mine").read_text() == "mine"


def test_origin_of_another_file_is_told_only(layers, kernel_overlay):
    """It cannot be known whether the index or the file is right."""
    made = layers()
    kernel_written(made, kernel_overlay, INDEXED)
    put(made.upper / "one", "origin", handle(made.lowers[0] / "alone"))
    status, found, _said = voile_check(made, "--fix")
    entry = os.path.relpath(entry_of(made, "one"), made.base)
    assert (status, kinds(found, made)) == (4, [("index", entry)])


CHANGES = ("setxattr", "removexattr", "unlink", "rmdir", "mknod")


def killed_at(made, number):
    """--fix in a child that dies before its change number `number`; whether it did."""
    left = number

    def dying(call):
        def wrapped(*args, **kwargs):
            nonlocal left
            if not left:
                os._exit(9)
            left -= 1
            return call(*args, **kwargs)

        return wrapped

    pid = os.fork()
    if pid == 0:
        try:
            for name in CHANGES:
                setattr(os, name, dying(getattr(os, name)))
            linux_files.renameat2 = dying(linux_files.renameat2)
            check(bytes(made.upper), bytes(made.work), [bytes(each) for each in made.lowers], False, True)
            os._exit(0)
        finally:
            os._exit(1)
    return {0: False, 9: True}[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]


def test_killed_at_every_change(layers, kernel_overlay):
    """The tree is that of before at any point, and the next run does the rest."""
    number = 0
    while True:
        made = layers()
        kernel_written(made, kernel_overlay, "index=on,nfs_export=on")
        orphan(made)
        name_that_is_no_handle(made)
        up = made.upper
        (up / "odd").mkdir()
        put(up / "odd", "redirect", b"/no/where")
        put(up / "gone", "opaque", b"y")
        whiteout(up / "gone/w")
        (made.work / "work/#1/x").mkdir(parents=True)
        ignore = {"ino", "names", "nlink"}
        # As index=off, which neither refuses what is wrong in the index nor clears it.
        before = shown(kernel_overlay(made), "redirect_dir=on")
        (made.work / "work/#1/x").mkdir(parents=True)
        killed = killed_at(made, number)
        after = shown(kernel_overlay(made), "redirect_dir=on")
        assert snapshot.differences(before, after, ignore) == [], number
        status, found, said = voile_check(made, "--fix")
        assert (status, found["counts"]["left"]) in ((0, 0), (1, 0)), (number, found, said)
        assert voile_check(made)[0] == 0
        if not killed:
            break
        number += 1
    assert number >= 8
