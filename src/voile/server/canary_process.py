"""The helper process of a canary (see canary): has its files open, and keeps their pages dirty.

It must not be what keeps anything busy.  So it has no other files; what it has open is on a detached copy of
the mount, so that the visible one can be unmounted; and it ends when that has been unmounted, or with the
daemon.  The threads of the latches sleep in write(2), until the daemon answers, or at rest in read(2).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C half of `signal`, whose other half imports enum
import _thread
import os
from errno import EAGAIN, EIO, EPERM, ESTALE
from mmap import MADV_DONTNEED, mmap
from select import POLLPRI, poll

from voile.linux import files, namespaces, process
from voile.linux import mount as linux_mount
from voile.server.canary_files import BELL_ARMED, BYE, DONE, FILES, HOLD, PAGE, READY, SIZE, SPOIL, TICK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_TICK_MS = 1000


def main(
    daemon: int, target: bytes, prefix: bytes, device: tuple[int, int], eventfds: list[int]
) -> NoReturn:
    """Be the helper of the process `daemon`, which has just forked; see `Canary.start`."""
    try:
        for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGALRM, _signal.SIGPIPE):
            _signal.signal(number, _signal.SIG_IGN)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        process.set_parent_death_signal(_signal.SIGKILL)
        if os.getppid() == daemon:
            _keep_only(eventfds)
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            os.close(null)
            os.chdir("/")
            process.set_name(b"voile-canary")
            _live(_open_files(target, prefix, os.makedev(*device)), device, eventfds)
    finally:
        os._exit(0)


def _keep_only(fds: list[int]) -> None:
    begin = 3
    for fd in (*sorted(fds), os.sysconf("SC_OPEN_MAX")):
        os.closerange(begin, fd)
        begin = fd + 1


def _live(fds: list[int], device: tuple[int, int], eventfds: list[int]) -> None:
    bell, *latches, rope, control = fds
    mountinfo = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    # Nobody, not even the same user, is to open these files by way of /proc.
    process.set_dumpable(False)
    page = mmap(bell, SIZE)
    page[0] = 1  # before the latches
    _thread.start_new_thread(_run, (_keep_bell, page, rope, eventfds[0]))
    for latch in latches:
        _thread.start_new_thread(_run, (_keep_latch, latch, eventfds[1]))
    os.pwrite(control, b"x", READY)
    try:
        files.syncfs(bell)
    except OSError:
        pass
    os.pwrite(control, b"x", DONE)
    poller = poll()
    poller.register(mountinfo, POLLPRI)
    number = b" %d:%d " % device
    while number in _contents(mountinfo):
        if not poller.poll(_TICK_MS):
            os.pwrite(control, b"x", TICK)
    os.pwrite(control, b"x", BYE)


def _run(keep: object, *fds: object) -> None:
    """A thread. Whatever happens to it, the daemon is to know."""
    try:
        keep(*fds)  # type: ignore[operator]
    finally:
        os._exit(1)


def _keep_bell(page: mmap, rope: int, rung: int) -> None:
    while True:
        page[0] = 1
        os.pwrite(rope, b"x", BELL_ARMED)
        os.eventfd_read(rung)


def _keep_latch(latch: int, needed: int) -> None:
    pages = mmap(latch, SIZE)
    while True:
        # Clean, so that it comes after the bell when it is dirty again: writes back, and waits for that
        # (fs/fuse/file.c, fuse_flush).
        _try(lambda: os.close(os.dup(latch)))
        pages[PAGE] = 1
        _try(lambda: files.sync_file_range(latch, PAGE, PAGE, files.SYNC_FILE_RANGE_WRITE))
        # Through a mapping that was made when the page was not uptodate it could be made dirty so, for which
        # the kernel would blame itself (mm/page-writeback.c, __folio_mark_dirty).
        pages.madvise(MADV_DONTNEED, 0, PAGE)
        pages[0] = 1
        _try(lambda: os.pwrite(latch, b"x", SPOIL))
        if _try(lambda: os.pwrite(latch, b"x", HOLD)) == EAGAIN:
            os.eventfd_read(needed)


def _try(call: Callable[[], object]) -> int:
    """0 or the errno. EIO and EAGAIN are as they should be: the daemon says so, or data has been lost."""
    try:
        call()
    except OSError as error:
        if error.errno not in (EIO, EAGAIN):
            raise
        return error.errno
    return 0


def _contents(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    pieces = []
    while piece := os.read(fd, 1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def _open_files(target: bytes, prefix: bytes, device: int) -> list[int]:
    try:
        return _open_copy(target, prefix, device)
    except OSError as error:
        if error.errno != EPERM:
            raise
    return _open_in_child(target, prefix, device)


def _open_copy(target: bytes, prefix: bytes, device: int) -> list[int]:
    """The files, on a copy of the mount that is attached nowhere."""
    tree = linux_mount.open_tree(linux_mount.AT_FDCWD, target, linux_mount.OPEN_TREE_CLONE)
    try:
        if os.fstat(tree).st_dev != device:
            raise OSError(ESTALE, "another mount")
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        return [os.open(prefix + b"%d" % number, flags, dir_fd=tree) for number in range(FILES)]
    finally:
        os.close(tree)


def _open_in_child(target: bytes, prefix: bytes, device: int) -> list[int]:
    """The same by an ordinary user: a child does it in a user namespace, and hands them over."""
    import socket

    ours, theirs = socket.socketpair()
    uid, gid = os.geteuid(), os.getegid()
    pid = os.fork()
    if pid == 0:
        try:
            namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
            namespaces.write_id_maps("self", [(uid, uid, 1)], [(gid, gid, 1)])
            socket.send_fds(theirs, [b"x"], _open_copy(target, prefix, device))
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        _, fds, _, _ = socket.recv_fds(ours, 1, FILES)
    os.waitpid(pid, 0)
    for fd in fds:
        os.set_inheritable(fd, False)
    return list(fds)
