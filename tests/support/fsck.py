"""`voile check` on the layers of an overlay that is not mounted, and layers to check."""

import json
import os
import stat
import struct
import subprocess
import sys

from differential import snapshot
from voile.linux import files as linux_files
from voile.overlay.check import check

from . import syscalls
from .overlays import ROOT
from .users import in_child

T = "trusted.overlay."
INDEXED = "index=on,redirect_dir=on"


def complaints(layers, options=""):
    """What it finds in the upper and work directory of `layers`, one line each."""
    words = options.split(",")
    if layers.upper is None:
        return []
    upper, work, *lowers = map(bytes, (layers.upper, layers.work, *layers.lowers))
    datas = [bytes(path) for path in layers.datas]
    report = check(upper, work, lowers, "userxattr" in words, False, datas)
    lines = [f"{error}" for error in report.errors]
    for problem in report.problems:
        # The marker stays behind, as it should; attributes of the other namespace are anybody's on the mount.
        if problem.kind not in ("namespace", "volatile"):
            path = os.path.relpath(problem.path, os.fsencode(layers.base))
            lines.append(f"{path!r}: {problem.kind}: {problem.detail!r}")
    return lines


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
    mine = shown(voile_overlay(layers), INDEXED if "index=on" in options else "redirect_dir=on")
    assert snapshot.differences(theirs, mine, {"one device"}) == []
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
