"""`voile check`: each problem made by hand, found, mended; then the kernel and voile show the same tree."""

import os
import subprocess
import sys

import pytest

from differential import snapshot
from support import syscalls
from support.fsck import contents, handle, kinds, put, same_tree, shown, voile_check, whiteout
from support.overlays import ROOT
from voile.cli import main as cli
from voile.overlay.check import check

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
    return [("leftover", f"{work.name}/{left}") for left in ("#probe1", "work/#1", "work/#2")]


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


def metacopy_with_a_bad_value(made):
    (made.upper / "file").touch()
    put(made.upper / "file", "metacopy", b"\0\4\0")
    return "metacopy", "a value that is none"


def metacopy_whose_data_is_one(made):
    (made.upper / "meta").touch()
    put(made.upper / "meta", "metacopy", b"")
    (made.lowers[0] / "meta").touch()
    put(made.lowers[0] / "meta", "metacopy", b"")
    put(made.lowers[0] / "meta", "redirect", b"/data only")
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
     metacopy_without_data, metacopy_with_a_bad_value, metacopy_whose_data_is_one, other_namespace,
     volatile_marker, unknown_feature],
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


def test_data_only_layers(layers):
    made = layers(datas=2)
    plain(made)
    metacopy_whose_data_is_one(made)
    assert voile_check(made)[0] == 4
    (made.datas[1] / "data only").touch()
    words = [f"--data={path}" for path in made.datas]
    assert voile_check(made, *words)[0] == 0
    (made.datas[1] / "data only").unlink()
    os.symlink("/etc/passwd", made.datas[1] / "data only")
    assert voile_check(made, *words)[0] == 4


def test_data_behind_a_moved_directory(layers):
    """The way to it goes through a directory of a lower layer that has a redirect of its own."""
    made = layers(lowers=2)
    plain(made)
    (made.upper / "meta").touch()
    put(made.upper / "meta", "metacopy", b"")
    put(made.upper / "meta", "redirect", b"/new/sub/data")
    (made.lowers[0] / "new").mkdir()
    put(made.lowers[0] / "new", "redirect", b"/old")
    (made.lowers[1] / "old/sub").mkdir(parents=True)
    assert voile_check(made)[0] == 4
    (made.lowers[1] / "old/sub/data").touch()
    assert voile_check(made)[0] == 0


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
