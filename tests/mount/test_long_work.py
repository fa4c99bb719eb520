"""Work that takes long is done in another thread, and its answers are right."""

import os
import subprocess

import pytest

from support.overlays import ROOT, voile_missing

MIB = 1 << 20


@pytest.fixture(params=["passthrough=on", "passthrough=off"])
def tree(request, isolated, scratch):
    if reason := voile_missing():
        pytest.skip(reason)
    for name in ("l", "u", "w", "m"):
        (scratch / name).mkdir()
    (scratch / "l" / "lower").write_bytes(os.urandom(3 * MIB))
    options = f"lowerdir={scratch}/l,upperdir={scratch}/u,workdir={scratch}/w,volatile,{request.param}"
    subprocess.run([ROOT / "voile", "mount", "-o", options, scratch / "m"], check=True)
    yield scratch
    subprocess.run(["umount", scratch / "m"], check=True)


def test_copy_file_range(tree):
    src = os.open(tree / "m" / "lower", os.O_RDONLY)
    dst = os.open(tree / "m" / "copy", os.O_RDWR | os.O_CREAT)
    done = 0
    while done < 3 * MIB:
        step = os.copy_file_range(src, dst, 3 * MIB - done, done, done)
        assert step > 0
        done += step
    assert os.copy_file_range(src, dst, MIB, 3 * MIB) == 0
    assert (tree / "m" / "copy").read_bytes() == (tree / "l" / "lower").read_bytes()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.copy_file_range(dst, src, 3 * MIB, 0, 0)
    os.close(src)
    os.close(dst)


def test_fallocate(tree):
    fd = os.open(tree / "m" / "new", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, 8 * MIB)
    assert os.fstat(fd).st_size == 8 * MIB
    assert os.stat(tree / "u" / "new").st_blocks * 512 >= 8 * MIB
    with pytest.raises(OSError, match=r"No space left|File too large"):
        os.posix_fallocate(fd, 0, 1 << 50)
    os.close(fd)


def test_reads_that_are_not_in_the_page_cache(tree):
    real = os.open(tree / "l" / "lower", os.O_RDONLY)
    os.fsync(real)
    os.posix_fadvise(real, 0, 0, os.POSIX_FADV_DONTNEED)
    expected = os.pread(real, 3 * MIB, 0)
    os.posix_fadvise(real, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(real)
    assert (tree / "m" / "lower").read_bytes() == expected
