"""Lower layers on file systems that are read-only, or lack attributes or file handles; unfit uppers."""

import errno
import os
import shutil
import subprocess

import pytest
from mount.mirrorfs import Mirror

from differential import snapshot
from differential.builder import Layer
from differential.test_differential import unlike
from support import mountinfo, syscalls
from support.namespace import ISOLATION
from support.overlays import KernelOverlay, Layers, VoileError, VoileOverlay, voile_missing
from support.users import in_child
from voile.fuse import abi
from voile.fuse.negotiation import WANTED
from voile.linux import fileattr

T = "trusted.overlay."
IMAGES = {
    "squashfs": ["mksquashfs", "{tree}", "{image}", "-quiet", "-no-progress", "-xattrs"],
    "erofs": ["mkfs.erofs", "--quiet", "{image}", "{tree}"],
    "iso9660": ["xorrisofs", "-quiet", "-R", "-o", "{image}", "{tree}"],
}


def fill_top(layer, attributes=True):
    layer.file("file", b"text", 0o640, (7, 8)).file("big", b"0123456789abcdef" * 40_000).whiteout("gone")
    layer.kinds("k-").file("d/top").symlink("d/link", "../file").file("one").link("one", "two")
    layer.whiteout("d/gone")
    if attributes:
        layer.file("d/attributes", xattrs={"user.x": b"1", "trusted.y": b"2"}).opaque("opaque")
        layer.dir("moved", xattrs={T + "redirect": b"old"}).whiteout("old").file("moved/own")
    layer.dir("opaque").file("opaque/top").settle()


def fill_bottom(layer):
    layer.file("gone").file("d/gone").file("d/bottom").file("opaque/bottom").file("old/f", b"f")
    layer.file("file", b"x").settle()


def change():
    """Copy-ups and changes of every kind."""
    for name in ("file", "big", "k-file", "d/bottom", "one"):
        with open(name, "r+b") as file:
            file.write(b"new")
    for name in ("k-fifo", "k-dir", "d", "opaque"):
        os.chmod(name, 0o700)
    os.chown("k-symlink", 1, 2, follow_symlinks=False)
    os.chown("d/link", 1, 2, follow_symlinks=False)
    for name in ("gone", "opaque/bottom"):
        if not os.path.lexists(name):
            with open(name, "x"):
                pass
    os.unlink("d/top")
    os.rename("k-dir/inside", "d/inside")
    os.mkdir("made")
    os.link("two", "three")


def visit(overlay, options, *functions):
    point = overlay.mount(options)

    def inside():
        os.chdir(point)
        os.umask(0o022)
        return [function() for function in functions]

    def without_dots(tree):
        # A file system of FUSE need not list them, and the kernel then does not either.
        for entry in tree.values():
            entry["names"] = sorted(set(entry.get("names", ())) - {b".", b".."})
        return tree

    try:
        seen = in_child(inside)
        overlay.check()
        overlay.umount()
    finally:
        overlay.close()
    return [tree and without_dots(tree) for tree in seen]


def compare(kernel_layers, voile_layers, options):
    """The same before and after changes, and what either has written read by the other."""
    kernel, voile = KernelOverlay(kernel_layers), VoileOverlay(voile_layers)
    # One st_dev for everything is what voile does better where the kernel's bits do not suffice.
    ignore = {"d_ino wrong", "one device", "ino"}
    try:
        theirs = visit(kernel, options, snapshot.merged, change, snapshot.merged)
        ours = visit(voile, options, snapshot.merged, change, snapshot.merged)
        problems = unlike("before", snapshot.differences(theirs[0], ours[0], ignore))
        problems += unlike("after", snapshot.differences(theirs[2], ours[2], ignore))
        assert all(entry["one device"] and not entry.get("d_ino wrong") for entry in ours[2].values())
        [exchanged] = visit(VoileOverlay(kernel_layers), options, snapshot.merged)
        problems += unlike("the kernel's upper", snapshot.differences(theirs[2], exchanged, ignore))
        [exchanged] = visit(KernelOverlay(voile_layers), options, snapshot.merged)
        problems += unlike("voile's upper", snapshot.differences(ours[2], exchanged, ignore))
        assert not problems, "\n".join(problems)
    finally:
        kernel.close()
        voile.close()


@pytest.fixture
def image(filesystems):
    """image(kind, tree) -> where an image of the tree is mounted."""
    mounted = []

    def make(kind, tree):
        program = IMAGES[kind][0]
        with open("/proc/filesystems") as file:
            if kind not in file.read().split():
                pytest.skip(f"a kernel without {kind}")
        if not shutil.which(program):
            pytest.skip(f"no {program}")
        base = filesystems.directory("tmpfs")
        words = [word.format(tree=tree, image=base / "image") for word in IMAGES[kind]]
        subprocess.run(words, check=True, capture_output=True)
        (base / "at").mkdir()
        subprocess.run(["mount", "-o", "loop,ro", base / "image", base / "at"], check=True)
        mounted.append(base / "at")
        ISOLATION.note_loop(mountinfo.at(base / "at").source)
        return base / "at"

    yield make
    for point in mounted:
        syscalls.umount(point)


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("options", ["xino=on", "redirect_dir=on"])
def test_read_only_image(filesystems, image, kind, options):
    if reason := voile_missing():
        pytest.skip(reason)
    tree, base = filesystems.directory("ext4"), filesystems.directory("ext4")
    fill_top(Layer(tree), attributes=kind != "iso9660")
    top = image(kind, tree)
    both = []
    for name in ("kernel", "voile"):
        both.append(Layers(base / name, lowers=1))
        fill_bottom(Layer(both[-1].lowers[0]))
        both[-1].lowers.insert(0, top)
    compare(*both, options)
    alone = Layers(base / "alone", lowers=0, upper=False)
    alone.lowers = [top, both[0].lowers[1]]
    [theirs] = visit(KernelOverlay(alone), "xino=on", snapshot.merged)
    [ours] = visit(VoileOverlay(alone), "xino=on", snapshot.merged)
    assert not snapshot.differences(theirs, ours, {"d_ino wrong"})
    refused = Layers(base / "refused")
    refused.upper, refused.work = top / "d", top / "opaque"
    refused.options = lambda: f"lowerdir={tree},upperdir={top}/d,workdir={top}/opaque"
    with pytest.raises(VoileError) as e:
        VoileOverlay(refused).mount()
    assert e.value.args[0] == 32 and "read-only file system" in e.value.args[1]


def test_without_attributes_and_handles(filesystems):
    """As some network file systems, and most of FUSE."""
    if reason := voile_missing():
        pytest.skip(reason)
    tree, base = filesystems.directory("ext4"), filesystems.directory("ext4")
    fill_top(Layer(tree), attributes=False)
    (base / "at").mkdir()
    # With passthrough it would itself be stacked too high for the kernel's overlayfs.
    mirror = Mirror(tree, base / "at", no_xattrs=errno.ENOSYS, wanted=WANTED & ~abi.PASSTHROUGH)
    try:
        both = []
        for name in ("kernel", "voile"):
            both.append(Layers(base / name, lowers=1))
            fill_bottom(Layer(both[-1].lowers[0]))
            both[-1].lowers.insert(0, base / "at")
        compare(*both, "")
        refused = Layers(base / "at" / "upper")
        with pytest.raises(VoileError) as e:
            VoileOverlay(refused).mount()
        assert e.value.args[0] == 32 and "without trusted.* extended attributes" in e.value.args[1]
    finally:
        mirror.close()


@pytest.mark.parametrize("role", ["lower", "upper"])
def test_case_insensitive_layers_are_refused(filesystems, role):
    if reason := voile_missing():
        pytest.skip(reason)
    tree, base = filesystems.directory("ext4"), filesystems.directory("ext4")
    for name in ("at", "other"):
        (base / name).mkdir()
    mirror = Mirror(tree, base / "at", file_flags=fileattr.FS_CASEFOLD_FL)
    try:
        layers = Layers(base / "overlay")
        if role == "lower":
            layers.lowers = [base / "other", base / "at"]
        else:
            for name in ("up", "wk"):
                (tree / name).mkdir()
            layers.options = lambda: f"lowerdir={base}/other,upperdir={base}/at/up,workdir={base}/at/wk"
        with pytest.raises(VoileError) as e:
            VoileOverlay(layers).mount()
        assert e.value.args[0] == 32 and "case-insensitive" in e.value.args[1]
        assert e.value.args[1].count("\n") == 1
    finally:
        mirror.close()
