"""Overlays on overlays: {kernel, voile} on {kernel, voile} give the same results, trees and layers."""

import os
import stat
from itertools import zip_longest

import pytest

from differential import snapshot
from differential.builder import Layer
from differential.test_differential import unlike
from differential.tree import Tree
from support.overlays import KernelOverlay, Layers, VoileError, VoileOverlay, voile_missing
from support.users import in_child

PAIRS = [(KernelOverlay, VoileOverlay), (VoileOverlay, KernelOverlay), (VoileOverlay, VoileOverlay)]


class Stack:
    """An overlay whose lower layers are directories of another one's mount."""

    def __init__(self, inner, outer, base, options):
        self.options = options
        (base / "inner").mkdir(parents=True)
        self.inner = inner(Layers(base / "inner", lowers=2))
        self.outer = outer(Layers(base / "outer", lowers=2))

    def build(self, build):
        layers = self.inner.layers
        made = [Layer(path) for path in (layers.upper, *layers.lowers)]
        build(*made)
        for layer in made:
            layer.settle()
        point = self.inner.mount(self.options)
        self.outer.layers.lowers = [point / "top", point / "bottom"]

    def play(self, steps):
        before = [snapshot.raw(path) for path in self.inner.layers.lowers]
        before.append(snapshot.raw(self.inner.layers.upper))
        self.log, self.tree = self._look(steps)
        for path, entries in zip((*self.inner.layers.lowers, self.inner.layers.upper), before):
            # A lookup in the inner overlay may store origins in its upper.
            ignore = {"xattrs", "ctime"} if path == self.inner.layers.upper else ()
            assert not snapshot.differences(entries, snapshot.raw(path), ignore), "a layer was changed"
        self.upper = snapshot.raw(self.outer.layers.upper, times=False)
        for entry in self.upper.values():
            # File handles of the inner mount: where it has some (FUSE), an origin names them.
            # The kernel finds the object by it only as long as the inner mount remembers it; then the
            # directory that the upper one is moved to becomes impure.
            for name in list(entry.get("xattrs", ())):
                if name.endswith(".overlay.origin"):
                    entry["xattrs"][name] = "some"
                elif name.endswith(".overlay.impure"):
                    del entry["xattrs"][name]

    def again(self):
        return self._look(lambda t: None)[1]

    def _look(self, steps):
        point = self.outer.mount(self.options)

        def inside():
            os.chdir(point)
            os.umask(0o022)
            tree = Tree()
            steps(tree)
            os.chdir(point)
            return tree.log, snapshot.merged()

        seen = in_child(inside)
        self.outer.check()
        self.outer.umount()
        self.inner.check()
        return seen

    def close(self):
        self.outer.close()
        self.inner.close()


def steps_unlike(expected, got):
    pairs = zip_longest(expected, got, fillvalue=("nothing", None))
    return [f"{a[0]}: expected {a[1]!r}, got {b[1]!r}" for a, b in pairs if a != b]


def everything(T, up, top, bottom):
    """The inner overlay's layers; in its mount, top/ and bottom/ are the lower layers of the outer one."""
    INNER = T + "overlay."
    for layer in (up, top, bottom):
        layer.dir("top", xattrs={INNER + "opaque": b"x"}).dir("bottom")
    # Made by the inner overlay: the outer one must see nothing of how.
    bottom.file("bottom/gone", b"1").file("bottom/kept", b"k").kinds("bottom/k-").file("bottom/sub/x", b"x")
    top.whiteout("bottom/gone").opaque("bottom/sub").file("bottom/sub/y", b"y")
    bottom.file("bottom/moved-from/f", b"f").file("bottom/merged/b1").file("bottom/merged/b2")
    top.dir("bottom/moved-to", xattrs={T + "redirect": b"moved-from"}).whiteout("bottom/moved-from")
    up.whiteout("bottom/merged/b2").file("bottom/merged/up")
    # Made for the outer overlay: attributes that are escaped in the inner one's layers.
    bottom.file("bottom/opaque/old").file("bottom/hidden", b"h").file("bottom/xdir/a").file("bottom/xdir/b")
    bottom.file("bottom/source/s", b"s").file("bottom/plain/p")
    top.dir("top/opaque", xattrs={INNER + "opaque": b"y"}).file("top/opaque/new")
    top.file("top/hidden", b"", xattrs={INNER + "whiteout": b"y"})
    top.dir("top/xdir", xattrs={INNER + "opaque": b"x"})
    top.file("top/xdir/a", b"", xattrs={INNER + "whiteout": b"y"}).file("top/xdir/c")
    up.dir("top/redirected", xattrs={INNER + "redirect": b"/source"}).file("top/redirected/own")
    # For a third one: shown by the outer one with one escape less.
    top.file("top/third", b"3", xattrs={INNER + "overlay.opaque": b"y", "user.overlay.whiteout": b"w"})
    top.dir("top/plain", xattrs={INNER + "overlay.whiteout": b"y", INNER + "overlay.overlay.x": b"z"})
    top.file("top/attributes", b"a", xattrs={INNER + "origin": b"", INNER + "what": b"ever", "user.x": b"x"})


def looked_at(t, T):
    for path in (".", "opaque", "xdir", "redirected", "sub", "merged", "moved-to", "plain"):
        t.list(path)
        t.listxattr(path)
    for path in ("hidden", "xdir/a", "gone", "moved-from", "redirected/s", "moved-to/f", "k-fifo"):
        t.lstat(path)
    for path in ("third", "attributes", "plain"):
        t.listxattr(path)
        for name in ("opaque", "whiteout", "what", "overlay.opaque", "overlay.x"):
            t.getxattr(path, T + name)
    t.getxattr("third", "user.overlay.whiteout")


def changed(t, T):
    for name in ("kept", "k-file", "third", "attributes", "moved-to/f", "sub/y"):
        t.append(name, b"more")
        t.listxattr(name)
        t.read(name)
    for name in ("k-symlink", "k-fifo", "k-char", "k-socket", "plain", "xdir"):
        t.chown(name, 1, 2)
        t.listxattr(name)
    t.setxattr("third", T + "redirect", b"mine")
    t.setxattr("third", T + "overlay.x", b"deep")
    t.removexattr("third", T + "opaque")
    t.removexattr("attributes", T + "what")
    t.listxattr("third")
    t.create("hidden", b"again")
    t.create("xdir/a", b"again")
    t.unlink("xdir/b")
    t.unlink("xdir/a")
    t.mkdir("gone")
    t.rmdir("gone")
    t.unlink("sub/y")
    t.rmdir("sub")
    t.mkdir("sub")
    t.rename("merged", "merged2")
    t.rename("redirected", "plain/redirected")
    t.rename("k-file", "plain/file")
    t.rename("opaque/new", "moved-to/new")
    t.rmdir("opaque")
    t.mknod("wh", 0o020000)
    t.link("kept", "linked")
    t.symlink("x", "gone")
    for path in (".", "merged2", "merged", "plain", "plain/redirected", "moved-to", "xdir", "sub"):
        t.list(path)


@pytest.mark.parametrize("options", ["", "redirect_dir=on", "userxattr", "xino=on", "metacopy=on"])
def test_stacks(filesystems, options):
    """The kernel's on the kernel's is the oracle."""
    if reason := voile_missing():
        pytest.skip(reason)
    stacks = []
    prefix = "user.overlay." if options == "userxattr" else "trusted.overlay."

    def stack(inner, outer):
        made = Stack(inner, outer, filesystems.directory("ext4"), options)
        stacks.append(made)
        made.build(lambda *layers: everything(prefix, *layers))
        made.play(lambda t: [look(t, prefix) for look in (looked_at, changed, looked_at)])
        return made

    try:
        oracle = stack(KernelOverlay, KernelOverlay)
        problems = []
        for inner, outer in PAIRS:
            which = f"{outer.name} on {inner.name}"
            ours = stack(inner, outer)
            problems += unlike(f"{which}: steps", steps_unlike(oracle.log, ours.log))
            ignore = {"ino", "one device", "d_ino wrong"}
            problems += unlike(f"{which}: tree", snapshot.differences(oracle.tree, ours.tree, ignore))
            problems += unlike(f"{which}: upper", snapshot.differences(oracle.upper, ours.upper))
            # The other one on the same layers shows the same.
            before = ours.tree
            ours.outer = (KernelOverlay if outer is VoileOverlay else VoileOverlay)(ours.outer.layers)
            problems += unlike(f"{which}: exchanged", snapshot.differences(before, ours.again(), ignore))
        if problems:
            pytest.fail("\n".join(problems), pytrace=False)
    finally:
        for each in stacks:
            each.close()


@pytest.mark.parametrize("inner", [KernelOverlay, VoileOverlay])
def test_no_upper_on_an_overlay(filesystems, inner):
    """There it would have to make whiteouts, and an overlay makes none for others."""
    if reason := voile_missing():
        pytest.skip(reason)
    base = filesystems.directory("ext4")
    below = inner(Layers(base / "inner"))
    try:
        upper = Layers(below.mount() / "outer")
        with pytest.raises(OSError):
            KernelOverlay(upper).mount()
        before = snapshot.raw(upper.base)
        with pytest.raises(VoileError) as refused:
            VoileOverlay(upper).mount()
        assert refused.value.args[0] == 32 and "without whiteouts" in refused.value.args[1]
        assert snapshot.raw(upper.base, times=False).keys() == before.keys()
        with pytest.raises(PermissionError):
            os.mknod(below.point / "whiteout", stat.S_IFCHR, 0)
    finally:
        below.close()


def test_three_of_voile(filesystems):
    if reason := voile_missing():
        pytest.skip(reason)
    base = filesystems.directory("ext4")
    overlays, below = [], None
    try:
        for number in range(3):
            layers = Layers(base / str(number))
            if below is None:
                Layer(layers.lowers[0]).file("d/f", b"text").file("g", b"g", xattrs={"user.x": b"x"})
            else:
                layers.lowers = [below]
            overlays.append(VoileOverlay(layers))
            below = overlays[-1].mount()
        with open(below / "d/f", "r+b") as file:
            assert file.read() == b"text"
            file.write(b" and more")
        (below / "g").unlink()
        texts = [(each.point / "d/f").read_bytes() for each in overlays]
        assert texts == [b"text", b"text", b"text and more"]
        assert [(each.point / "g").exists() for each in overlays] == [True, True, False]
    finally:
        for each in reversed(overlays):
            each.close()


def test_the_kernels_on_voile_on_the_kernels(filesystems):
    """Two levels are all that the kernel allows, and passthrough is one of them."""
    if reason := voile_missing():
        pytest.skip(reason)
    base = filesystems.directory("ext4")
    overlays = []
    try:
        below = base
        Layer(base).file("d/f", b"text")
        for number, overlay in enumerate((KernelOverlay, VoileOverlay, KernelOverlay)):
            layers = Layers(base / str(number))
            layers.lowers = [below / "d"] if number == 0 else [below]
            overlays.append(overlay(layers))
            below = overlays[-1].mount(*["passthrough=off"] * (overlay is VoileOverlay))
        assert (below / "f").read_bytes() == b"text"
    finally:
        for each in reversed(overlays):
            each.close()
