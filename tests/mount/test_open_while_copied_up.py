"""What sees who has a lower file open or mapped while another process copies it up and writes to it.

docs/explanation/open-files.md has the same table.
"""

import faulthandler
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from support.users import in_child

PAGE = mmap.PAGESIZE
SIZE = 16 * PAGE
FAR = 8 * PAGE


def write(path):
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"new", 0)
    os.pwrite(fd, b"new", FAR)
    os.pwrite(fd, b"end", SIZE)
    os.close(fd)


def write_mapped(path):
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, SIZE) as mapped:
        mapped[0:3] = mapped[FAR : FAR + 3] = b"new"
    os.close(fd)


def truncate(path):
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"new")
    os.close(fd)


def chmod(path):
    os.chmod(path, 0o600)


def replace(path):
    path.with_suffix(".tmp").write_bytes(b"new" * PAGE)
    os.rename(path.with_suffix(".tmp"), path)


# Bytes at 0 and at FAR.
OLD, NEW, CUT = ("old", "old"), ("new", "new"), ("new", "")

# What a descriptor reads that was opened before, what the mappings show that were made before, and one
# that is made afterwards of the old descriptor; what a descriptor reads that is opened afterwards.
KERNEL = {
    write: (NEW, OLD, OLD, NEW),
    write_mapped: (NEW, OLD, OLD, NEW),
    truncate: (CUT, OLD, OLD, CUT),
    chmod: (OLD, OLD, OLD, OLD),
    replace: (OLD, OLD, OLD, CUT),
}
VOILE = KERNEL | {
    write: (NEW, NEW, NEW, NEW),
    write_mapped: (NEW, NEW, NEW, NEW),
    truncate: (CUT, ("new", "SIGBUS"), ("new", "SIGBUS"), CUT),
}


def elsewhere(function, *args):
    """Runs something in another process; what it writes, or the signal that ended it."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        os.write(write_end, function(*args) or b"")
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as answer:
        found = answer.read().decode()
    status = os.waitpid(pid, 0)[1]
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else found


def mappings(fd):
    """Shared and private, with pages that were looked at and without."""
    made = []
    for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
        for touched in (True, False):
            mapped = mmap.mmap(fd, SIZE, flags, mmap.PROT_READ)
            if touched:
                assert {mapped[at] for at in range(0, SIZE, PAGE)} == {ord("o")}
            made.append(mapped)
    return made


def shown(mapped):
    """Looked at by another process, since it may be its last look."""
    return tuple(elsewhere(lambda at=at: mapped[at : at + 3]) for at in (0, FAR))


def read(fd):
    return tuple(os.pread(fd, 3, at).decode() for at in (0, FAR))


def read_directly(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    return lambda: tuple(direct(fd, at) for at in (0, FAR))


def direct(fd, at):
    page = mmap.mmap(-1, PAGE)
    return page[: min(3, os.preadv(fd, [page], at))].decode()


def observe(path, change, read_before):
    fd = os.open(path, os.O_RDONLY)
    directly = read_directly(path)
    before = mappings(fd)
    if read_before:
        assert read(fd) == OLD
    elsewhere(change, path)
    assert read(fd) == directly()
    of_mappings = {shown(mapped) for mapped in before}
    assert len(of_mappings) == 1, "all mappings alike"
    after = before[0]
    if os.fstat(fd).st_size >= SIZE:
        after = mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
    later = os.open(path, os.O_RDONLY)
    return read(fd), of_mappings.pop(), shown(after), read(later)


def files(layers):
    for change in KERNEL:
        for number in range(2):
            (layers.lowers[0] / f"{change.__name__}{number}").write_bytes(b"old".ljust(PAGE, b"o") * 16)
    shutil.copy(shutil.which("sleep"), layers.lowers[0] / "program")
    return layers


def all_changes(point):
    return {
        (change.__name__, number): observe(point / f"{change.__name__}{number}", change, bool(number))
        for change in KERNEL
        for number in range(2)
    }


def expected(table):
    return {(change.__name__, number): seen for change, seen in table.items() for number in range(2)}


@pytest.mark.parametrize("options", ["", "metacopy=on,index=on"], ids=lambda options: options or "default")
def test_kernel(layers, kernel_overlay, options):
    point = kernel_overlay(files(layers())).mount(options)
    assert in_child(lambda: all_changes(point)) == expected(KERNEL)


OPTIONS = ["volatile", "", "passthrough=off", "volatile,passthrough=off", "volatile,metacopy=on,index=on"]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options or "default")
def test_voile(layers, voile_overlay, options):
    point = voile_overlay(files(layers())).mount(options)
    assert in_child(lambda: all_changes(point)) == expected(VOILE)


def busy(point):
    """A running program cannot be written, and what is open for writing cannot be run."""
    program = point / "program"
    running = subprocess.Popen([program, "60"])
    while os.readlink(f"/proc/{running.pid}/exe") == os.path.realpath(sys.executable):
        time.sleep(0.001)
    try:
        for change in (write, truncate, lambda path: os.truncate(path, 0)):
            with pytest.raises(OSError, match="busy"):
                change(program)
        os.chmod(program, 0o700)
        assert running.poll() is None
    finally:
        running.kill()
        running.wait()
    fd = os.open(program, os.O_RDWR)
    with pytest.raises(OSError, match="busy"):
        subprocess.run([program, "0"])
    os.close(fd)
    return subprocess.run([program, "0"]).returncode


def test_running_programs(layers, kernel_overlay, voile_overlay):
    for make, options in ((kernel_overlay, ""), *((voile_overlay, options) for options in OPTIONS)):
        overlay = make(files(layers()))
        point = overlay.mount(options)
        assert in_child(lambda at=point: busy(at)) == 0
        overlay.umount()
