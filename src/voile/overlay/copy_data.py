"""The data of a file that is copied up: shared where possible, holes kept (copy_up.c, `ovl_copy_up_file`)."""

from __future__ import annotations

import os
from errno import EINVAL, ENOSYS, ENOTTY, ENXIO, EOPNOTSUPP, EPERM, EXDEV

from voile.linux import files

_CHUNK = 16 << 20
# "Not between these two files": try the next way of copying.
_NOT_HERE = (EXDEV, EINVAL, EOPNOTSUPP, ENOSYS, ENOTTY, EPERM)


def copy_data(src: int, dst: int, size: int, *, sparse: bool = True) -> None:
    """Copies a file's data; holes stay holes, shared extents are used where possible.

    Without holes copy_file_range(2) alone does it, which shares extents too.
    """
    if size == 0:
        return
    if not sparse:
        _copy_range(src, dst, 0, size)
        return
    try:
        files.ficlone(dst, src)
        return
    except OSError as exc:
        if exc.errno not in _NOT_HERE:
            raise
    if os.fstat(dst).st_size != size:  # else it would set the time of a metacopy file that is a hole
        os.ftruncate(dst, size)
    start = 0
    while start < size:
        try:
            start = os.lseek(src, start, os.SEEK_DATA)
            end = min(os.lseek(src, start, os.SEEK_HOLE), size)
        except OSError as exc:
            if exc.errno == ENXIO:
                return  # only a hole is left
            if exc.errno != EINVAL:
                raise
            end = size
        _copy_range(src, dst, start, end)
        start = end


def copy_lower_data(src: int, dst: int, size: int) -> None:
    """Copies the data of a metacopy file of that size, which need not be as long as the file."""
    st = os.fstat(src)
    copy_data(src, dst, min(size, st.st_size), sparse=st.st_blocks * 512 < st.st_size)
    if os.fstat(dst).st_size != size:
        os.ftruncate(dst, size)


def _copy_range(src: int, dst: int, start: int, end: int) -> None:
    while start < end:
        try:
            done = os.copy_file_range(src, dst, min(end - start, _CHUNK), start, start)
        except OSError as exc:
            if exc.errno not in _NOT_HERE:
                raise
            _read_write(src, dst, start, end)
            return
        if done == 0:
            # 0 may also mean "not between these file systems" (procfs and the like).
            _read_write(src, dst, start, end)
            return
        start += done


def _read_write(src: int, dst: int, start: int, end: int) -> None:
    while start < end:
        data = os.pread(src, min(end - start, 1 << 20), start)
        if not data:
            return
        view = memoryview(data)
        while view:
            done = os.pwrite(dst, view, start)
            start += done
            view = view[done:]
