"""`voile check`: each problem made by hand, found, mended; then the kernel and voile show the same tree."""

import json
import os
import stat
import struct
import subprocess
import sys

import pytest

from differential import snapshot
from support import fsck, syscalls
from support.overlays import ROOT
from support.users import in_child
from voile.cli import main as cli
from voile.linux import files as linux_files
from voile.overlay.check import check

T = "trusted.overlay."
INDEXED = "index=on,redirect_dir=on"


def voile_check(layers, *words, lower=True, work=True):
    """Run the command; (exit status, the JSON it printed, stderr)."""
    lowers = [f"--lower={path}" for path in layers.lowers] if lower else []
    command = [sys.executable, "-I", "-S", ROOT / "voile", "check", "--json", layers.upper, *lowers, *words]
    if work:
        command += ["--work", layers.work]
    done = subprocess.run(command, capture_output=True, text=True, errors="surrogateescape", timeout=60)
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def kinds(found, layers):
    """{(kind, path below the layers)}, of what is left and of what is mended."""
    return sorted((each["kind"], os.path.relpath(each["path"], layers.base)) for each in found["problems"])


def shown(overlay, options=""):
    """The tree, without whiteouts that a listing of an opaque directory shows."""
    point = overlay.mount(options)

    def look():
        os.chdir(point)
        return {path: entry for path, entry in snapshot.merged().items() if entry["kind"] != "error ENOENT"}

    tree = in_child(look)
    overlay.umount()
    return tree


def same_tree(layers, kernel_overlay, voile_overlay, options):
    theirs = shown(kernel_overlay(layers), options)
    mine = shown(voile_overlay(layers), "redirect_dir=on")
    # Without an index the lower names of a hard link go their own ways.
    ignore = {"one device", "ino", "nlink", "d_ino wrong"} if "index=on" in options else {"one device"}
    assert snapshot.differences(theirs, mine, ignore) == []
    return theirs


def contents(*roots):
    """All file data by inode, wherever its names are."""
    found = {}
    for root in roots:
        for directory, _names, files in os.walk(root):
            for name in files:
                path = os.path.join(directory, name)
                st = os.lstat(path)
                if stat.S_ISREG(st.st_mode) and st.st_size:
                    with open(path, "rb") as file:
                        found[st.st_dev, st.st_ino] = file.read()
    return found


def whiteout(path):
    os.mknod(path, stat.S_IFCHR, 0)


def put(path, name, value):
    os.setxattr(path, T + name, value, follow_symlinks=False)


def handle(path, uuid=None, flags=0):
    """As the kernel stores it."""
    kind, raw = syscalls.file_handle(path)
    if uuid is None:
        fd = os.open(path, os.O_RDONLY)
        uuid = linux_files.fs_uuid(fd) or bytes(16)
        os.close(fd)
    return struct.pack("=BBBBB16s", 0, 0xFB, 21 + len(raw), flags, kind, uuid) + raw


# Each makes a problem in layers without an index, and returns what has to be found.


def whiteout_in_an_opaque_directory(up, low):
    (up / "d").mkdir()
    put(up / "d", "opaque", b"y")
    whiteout(up / "d/gone")
    return [("whiteout", "up/d/gone")]


def whiteout_below_an_opaque_directory(up, low):
    (up / "d/e").mkdir(parents=True)
    put(up / "d", "opaque", b"y")
    whiteout(up / "d/e/x")
    whiteout(up / "d/in-d")
    return [("whiteout", "up/d/e/x"), ("whiteout", "up/d/in-d")]


def dangling_path(up, low):
    (up / "d/e").mkdir(parents=True)
    (up / "d/own").write_text("own")
    put(up / "d", "redirect", b"/no/where")
    whiteout(up / "d/in-d")
    return [("redirect", "up/d"), ("whiteout", "up/d/in-d")]


def dangling_name(up, low):
    (up / "new").mkdir()
    put(up / "new", "redirect", b"old\xff\n")
    return [("redirect", "up/new")]


def redirect_to_a_file(up, low):
    (up / "new").mkdir()
    put(up / "new", "redirect", b"/file")
    return [("redirect", "up/new")]


def redirect_through_a_symlink(up, low):
    (up / "new").mkdir()
    put(up / "new", "redirect", b"/symlink/e")
    return [("redirect", "up/new")]


def redirect_in_an_opaque_directory(up, low):
    (up / "d/e").mkdir(parents=True)
    put(up / "d", "opaque", b"y")
    put(up / "d/e", "redirect", b"d")
    return [("redirect", "up/d/e")]


def opaque_value(up, low):
    (up / "d").mkdir()
    put(up / "d", "opaque", b"yes")
    return [("opaque", "up/d")]


def repeated_in_the_other_namespace(up, low):
    (up / "d").mkdir()
    put(up / "d", "opaque", b"y")
    os.setxattr(up / "d", "user.overlay.opaque", b"y")
    return [("namespace", "up/d")]


def leftovers(up, low):
    work = up.parent / "wk"
    (work / "work").mkdir()
    (work / "work/#1/sub").mkdir(parents=True)
    (work / "work/#2").touch()
    (work / "#probe1").mkdir()
    whiteout(work / "work/#3")  # the kernel keeps one
    return [("leftover", "wk/#probe1"), ("leftover", "wk/work/#1"), ("leftover", "wk/work/#2")]


PLAIN = (
    whiteout_in_an_opaque_directory, whiteout_below_an_opaque_directory, dangling_path, dangling_name,
    redirect_to_a_file, redirect_through_a_symlink, redirect_in_an_opaque_directory, opaque_value,
    repeated_in_the_other_namespace, leftovers,
)  # fmt: skip


def plain(layers):
    up, low = layers.upper, layers.lowers[0]
    (low / "d/e").mkdir(parents=True)
    (low / "d/in-d").write_text("lower")
    (low / "d/e/x").write_text("lower")
    (low / "file").write_text("file")
    os.symlink("d", low / "symlink")
    (up / "data").write_text("upper data")
    return up, low


@pytest.mark.parametrize("problem", PLAIN, ids=lambda each: each.__name__)
def test_found_and_mended(problem, layers, kernel_overlay, voile_overlay):
    made = layers()
    up, low = plain(made)
    before = contents(up)
    expected = sorted(problem(up, low))
    raw = snapshot.raw(made.base)
    # In a directory that is not opaque yet a whiteout is none too many.
    first = [each for each in expected if not (problem is dangling_path and each[0] == "whiteout")]
    status, found, said = voile_check(made)
    assert (status, kinds(found, made)) == (4, first), said
    assert not any(each["fixed"] for each in found["problems"])
    assert snapshot.differences(raw, snapshot.raw(made.base)) == []
    status, found, said = voile_check(made, "--fix")
    assert (status, kinds(found, made)) == (1, expected), said
    assert all(each["fixed"] for each in found["problems"])
    assert found["counts"]["fixed"] == len(expected) and found["counts"]["left"] == 0
    assert voile_check(made)[:1] == (0,)
    assert contents(up).items() >= before.items()
    same_tree(made, kernel_overlay, voile_overlay, "redirect_dir=on")


@pytest.mark.parametrize("problem", PLAIN, ids=lambda each: each.__name__)
def test_the_tree_stays(problem, layers, kernel_overlay):
    """What is mended shows as before, where it could be seen before."""
    made = layers()
    problem(*plain(made))
    before = shown(kernel_overlay(made), "redirect_dir=on")
    voile_check(made, "--fix")
    after = shown(kernel_overlay(made), "redirect_dir=on")
    # Whiteouts in opaque directories show in listings; the other namespace's attributes show on the mount.
    assert snapshot.differences(before, after, {"names", "d_ino wrong", "xattrs"}) == []


INVALID = {
    "empty": b"", "relative": b"a/b", "double": b"//d", "trailing": b"/d/", "up": b"/../d", "dot": b".",
}  # fmt: skip


@pytest.mark.parametrize("value", INVALID.values(), ids=INVALID.keys())
def test_invalid_redirect(value, layers, kernel_overlay, voile_overlay):
    """Its form tells: no lower layer is needed."""
    made = layers()
    up, _low = plain(made)
    (up / "d").mkdir()
    put(up / "d", "redirect", value)
    assert voile_check(made, lower=False)[0] == 4
    status, found, _said = voile_check(made, "--fix", lower=False)
    assert (status, kinds(found, made)) == (1, [("redirect", "up/d")])
    tree = same_tree(made, kernel_overlay, voile_overlay, "redirect_dir=on")
    assert tree[b"./d"]["names"] == [b".", b".."]


def kernel_written(layers, kernel_overlay, options):
    """An upper of the kernel's with hard links, renames, removals."""
    low = layers.lowers[0]
    for name in ("one", "alone"):
        (low / name).write_text(name)
    for name in ("two", "three"):
        os.link(low / "one", low / name)
    (low / "d/e").mkdir(parents=True)
    (low / "d/e/f").write_text("f")
    (low / "gone").mkdir()
    point = kernel_overlay(layers).mount(options)

    def work():
        os.chdir(point)
        os.chmod("one", 0o600)
        with open("two", "a") as file:
            file.write(" more")
        os.unlink("three")
        os.link("two", "four")
        os.chmod("alone", 0o640)
        os.chmod("d/e/f", 0o640)
        if "redirect_dir=on" in options:
            os.rename("d/e", "e")
            os.rename("d", "d2")
        os.rmdir("gone")
        os.mkdir("gone")
        os.symlink("nowhere", "link")

    in_child(work)
    syscalls.umount(point)


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


# Told, and left alone.


def origin_garbage(made):
    put(made.upper / "data", "origin", b"bogus")
    return "origin", "not a file handle|too short"


def origin_of_another_file_system(made):
    put(made.upper / "data", "origin", handle(made.lowers[0] / "file", uuid=b"another machine!"))
    return "origin", "of none of the lower"


def origin_of_another_machine(made):
    put(made.upper / "data", "origin", handle(made.lowers[0] / "file", flags=1))
    return "origin", "byte order"


def origin_of_another_type(made):
    put(made.upper / "data", "origin", handle(made.lowers[0] / "d"))
    return "origin", "another type"


def metacopy_without_data(made):
    (made.upper / "meta").touch()
    put(made.upper / "meta", "metacopy", b"")
    put(made.upper / "meta", "redirect", b"/d/nothing")
    return "redirect", "the data of the file"


def other_namespace(made):
    os.setxattr(made.upper / "data", "user.overlay.origin", b"")
    return "namespace", "user.overlay.origin"


def volatile_marker(made):
    (made.work / "work/incompat/volatile").mkdir(parents=True)
    return "volatile", "without a sync"


def unknown_feature(made):
    (made.work / "work/incompat/index2").mkdir(parents=True)
    return "incompat", "not known"


@pytest.mark.parametrize(
    "problem",
    [origin_garbage, origin_of_another_file_system, origin_of_another_machine, origin_of_another_type,
     metacopy_without_data, other_namespace, volatile_marker, unknown_feature],
    ids=lambda each: each.__name__,
)  # fmt: skip
def test_told_only(problem, layers):
    made = layers()
    plain(made)
    kind, words = problem(made)
    before = snapshot.raw(made.base)
    for fix in ((), ("--fix",)):
        status, found, _said = voile_check(made, *fix)
        assert (status, len(found["problems"])) == (4, 1)
        (only,) = found["problems"]
        assert only["kind"] == kind and not only["fixed"]
        assert any(word in only["detail"] for word in words.split("|"))
    assert snapshot.differences(before, snapshot.raw(made.base)) == []


def test_refused_while_mounted(layers, kernel_overlay, voile_overlay):
    made = layers()
    for overlay in (voile_overlay(made), kernel_overlay(made)):
        if overlay.name == "kernel":
            # By absolute paths: the mount table shows what the mounter said.
            data = f"lowerdir={made.lowers[0]},upperdir={made.upper},workdir={made.work}"
            syscalls.mount("overlay", made.point, "overlay", 0, data)
        else:
            overlay.mount()
        assert voile_check(made)[0] == 0
        for work in (True, False):
            status, found, said = voile_check(made, "--fix", work=work)
            assert (status, found) == (8, None)
            assert said.count("\n") == 1 and "in use" in said
        overlay.umount()
        assert voile_check(made, "--fix")[0] == 0


def test_nothing_outside_is_touched(layers):
    """A symbolic link, and a directory of somebody else's mounted inside, are not entered."""
    made = layers()
    outside = made.base / "outside"
    outside.mkdir()
    put(outside, "opaque", b"y")
    whiteout(outside / "w")
    (made.upper / "mounted").mkdir()
    (made.upper / "o").mkdir()
    put(made.upper / "o", "opaque", b"y")
    os.symlink(outside, made.upper / "o/link")
    os.symlink("../outside", made.work / "index")
    os.symlink("../outside", made.work / "work")
    syscalls.mount(outside, made.upper / "mounted", None, syscalls.MS_BIND)
    try:
        status, found, said = voile_check(made, "--fix")
    finally:
        syscalls.umount(made.upper / "mounted")
    assert (status, found["problems"], said) == (0, [], "")
    assert os.listdir(outside) == ["w"]


def test_names_that_are_not_utf8(layers):
    made = layers()
    directory = os.fsencode(made.upper) + b"/\xff\n"
    os.mkdir(directory)
    put(directory, "opaque", b"y")
    whiteout(directory + b"/\xfe")
    status, found, _said = voile_check(made)
    (only,) = found["problems"]
    assert status == 4 and os.fsencode(only["path"]) == directory + b"/\xfe"
    command = [sys.executable, "-I", "-S", ROOT / "voile", "check", made.upper, "--fix"]
    done = subprocess.run(command, capture_output=True)
    line = directory.replace(b"\n", b"\\n") + b"/\xfe: whiteout: "
    assert done.returncode == 1 and done.stdout.startswith(line) and done.stdout.endswith(b" (mended)\n")
    assert done.stdout.count(b"\n") == 1 and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("wrong", [[], ["a", "b"], ["a", "--frobnicate"], ["a", "--work"]])
def test_usage(wrong, capfd):
    assert cli.main(["check", *wrong]) == 16
    out, err = capfd.readouterr()
    assert not out and err.count("\n") == 1


def test_operational_error(capfd):
    assert cli.main(["check", "/nowhere"]) == 8
    assert "/nowhere: upperdir: No such file" in capfd.readouterr().err


def test_unreadable_directory(layers, as_user):
    """Told, and the rest is checked."""
    made = layers()
    os.chmod(made.upper, 0o755)
    (made.upper / "closed").mkdir(mode=0o700)
    (made.upper / "o").mkdir()
    os.setxattr(made.upper / "o", "user.overlay.opaque", b"y")
    whiteout(made.upper / "o/w")

    def run():
        report = check(bytes(made.upper), None, [], True, False)
        return [each.filename for each in report.errors], [each.kind for each in report.problems]

    assert as_user(run) == ([bytes(made.upper) + b"/closed"], ["whiteout"])


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


def test_deep_tree_with_few_descriptors(layers):
    made = layers()
    here = os.open(made.upper, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        status, found, said = voile_check(made)
        assert (status, found["counts"]["checked"], said) == (0, 1200, "")
    finally:
        subprocess.run(["rm", "-r", made.upper], check=True)  # too deep for shutil.rmtree
