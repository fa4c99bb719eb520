"""After an error of the upper file system every sync call on a volatile mount fails, for good.

file system x errno x call x descriptor (opened before the error, after it, in another process). One mount is
used for a whole column, so every call is also one after many others: the state is not used up.
"""

import errno
import os
import shutil
from collections import namedtuple

import pytest

from faults.conftest import OVERLAYS, make_filesystem, overlay_class
from faults.faultyfs import GOOD, KINDS
from support import syscalls
from support.outcome import result
from support.users import in_child

FILES = {
    "upper": os.O_RDWR,
    "lower": os.O_RDONLY,  # not copied up; fsync asks for the whole file system all the same
    "osync": os.O_WRONLY | os.O_SYNC,
    "odsync": os.O_WRONLY | os.O_DSYNC,
}


def write(fd):
    os.pwrite(fd, GOOD, 0)


# name: (file, call)
CALLS = {
    "fsync": ("upper", os.fsync),
    "fdatasync": ("upper", os.fdatasync),
    "fsync-lower": ("lower", os.fsync),
    "fsync-directory": (".", os.fsync),
    "fdatasync-directory": ("directory", os.fdatasync),
    "fsync-lower-directory": ("lower-directory", os.fsync),
    "syncfs": ("upper", syscalls.syncfs),
    "syncfs-directory": (".", syscalls.syncfs),
    "osync-write": ("osync", write),
    "odsync-write": ("odsync", write),
}

Failed = namedtuple("Failed", "overlay name errno descriptors")


def open_file(point, name):
    return os.open(point / name, FILES.get(name, os.O_RDONLY))


def expected(failed, call):
    # fs/overlayfs/super.c, ovl_sync_fs: -EIO, whatever was lost.
    if call.startswith("syncfs"):
        return errno.EIO
    # The kernel syncs the real file and knows of that one only (measured on 6.18): we say the truth.
    if call.endswith("sync-write") and failed.name == "kernel":
        return 0
    return failed.errno


def prepare(overlay):
    """Mount with the files of FILES and some directories; a descriptor of each."""
    lower = overlay.layers.lowers[0]
    (lower / "lower").write_bytes(GOOD)
    (lower / "lower-directory").mkdir()
    point = overlay.mount("volatile")
    for name in "upper", "osync", "odsync":
        (point / name).write_bytes(GOOD)
    (point / "directory").mkdir()
    return {name: open_file(point, name) for name in [*FILES, ".", "directory", "lower-directory"]}


@pytest.fixture(scope="module")
def failed(request, filesystems):
    kind, name, number = request.param
    overlay_type = overlay_class(name)
    fs = make_filesystem(filesystems, kind)
    try:
        overlay = overlay_type(fs.layers())
        try:
            descriptors = prepare(overlay)
            for call, (file, function) in CALLS.items():
                assert result(function, descriptors[file]) == 0, f"{call} before the error"
            fs.lose(number, overlay.layers.upper / "upper")
            yield Failed(overlay, name, number, descriptors)
            for fd in descriptors.values():
                os.close(fd)
            overlay.check()
            overlay.umount()
        finally:
            overlay.close()
    finally:
        fs.close()
        shutil.rmtree(fs.directory, ignore_errors=True)


def columns():
    for kind in KINDS:
        for number in errno.EIO, errno.ENOSPC:
            for name in OVERLAYS:
                yield pytest.param((kind, name, number), id=f"{name}-{kind}-{errno.errorcode[number]}")


pytestmark = pytest.mark.parametrize("failed", list(columns()), indirect=True, scope="module")


@pytest.mark.parametrize("call", CALLS)
def test_old_descriptor(failed, call):
    file, function = CALLS[call]
    wanted = expected(failed, call)
    assert [result(function, failed.descriptors[file]) for _ in range(3)] == [wanted] * 3


@pytest.mark.parametrize("call", CALLS)
def test_new_descriptor(failed, call):
    file, function = CALLS[call]
    wanted = expected(failed, call)
    fd = open_file(failed.overlay.point, file)
    try:
        assert [result(function, fd) for _ in range(3)] == [wanted] * 3
    finally:
        os.close(fd)


@pytest.mark.parametrize("call", CALLS)
def test_other_process(failed, call):
    file, function = CALLS[call]

    def both():
        """Its own descriptor, and the inherited one."""
        fd = open_file(failed.overlay.point, file)
        return [result(function, fd), result(function, failed.descriptors[file])]

    assert in_child(both) == [expected(failed, call)] * 2


def test_the_rest_works_on(failed):
    """Only sync calls fail: what was written can be read, and new files can be made."""
    path = failed.overlay.point / "new"
    path.write_bytes(GOOD)
    assert path.read_bytes() == GOOD
    path.unlink()
    assert sorted(p.name for p in failed.overlay.point.iterdir()) == sorted(
        [*FILES, "directory", "lower-directory"]
    )
