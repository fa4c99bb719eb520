"""The daemon's life: layers, device, mount, handshake, background, loop, end.

The order matters.  The layers are opened before the mount, because the mount may cover them.  The
daemon goes to the background only after the kernel's INIT has been answered, so that the exit
status of the command says whether the mount works.  Whatever fails after the mount unmounts again.
"""

from __future__ import annotations

import os

from voile.fuse import mountpoint
from voile.linux import files
from voile.server.connect import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from voile.fuse.session import Session
    from voile.fuse.workers import WorkerPool
    from voile.overlay.params import Params
    from voile.overlay.super import Overlay
    from voile.server.keeper import Keeper
    from voile.server.operations import OverlayOperations

# What the parent says when the daemon has died between the mount and the end of the parent.
_INTERNAL = 4
# <linux/magic.h>
_FUSE = 0x65735546
# Of files that are not passed through. As long as the largest request: 1.8 times as fast as the default.
_READ_AHEAD_KIB = 1024
_STACKED = frozenset((0x794C7630, 0xF15F))  # overlayfs, ecryptfs


def serve(
    params: Params,
    target: bytes,
    *,
    before_mount: Callable[[], None] | None = None,
    mounted: Callable[[], Callable[[], None] | None] | None = None,
    on_signal: Callable[[int], None] | None = None,
    debug: bool = False,
) -> None:
    """Mount the overlay on the directory `target` and answer its requests until it is unmounted.

    `before_mount` is called when the layers and the device are open; `mounted` when the mount answers: it may
    fork (`to_background`); what it returns is called when everything is in its place.  `on_signal` takes
    SIGTERM, SIGINT and SIGHUP; by default they unmount (lazily).  With `debug`, each request and reply is a
    line on stderr.
    Raises OSError or overlay.super.MountError when it cannot be mounted; nothing is left behind then. Raises
    overlay.super.LostData at the end, when the sync of a mount that is not volatile says so.
    """
    from voile.fuse import abi, passthrough
    from voile.fuse.negotiation import WANTED
    from voile.fuse.session import Config, Session
    from voile.fuse.workers import WorkerPool
    from voile.overlay.super import Overlay
    from voile.server.base import Seen
    from voile.volatile.policy import SHELL

    target = _check_target(target)
    _raise_file_limit()
    overlay = Overlay.open(params)
    operations: OverlayOperations | None = None
    try:
        for warning in overlay.warnings:
            _say(f"warning: {warning}")
        fd, kind, device = connect(params, target, overlay.workdir_fd, before_mount)
        try:
            overlay.activate()
            operations = _operations(overlay, params)
            operations.fuse_type = kind
            wanted = WANTED if params.passthrough else WANTED & ~abi.PASSTHROUGH
            config = Config(wanted, max_stack_depth=_stack_depth(overlay), trace=_say if debug else None)
            if params.syncfs == "none":
                config.wanted &= ~abi.HAS_SYNCFS
            elif kind == "fuse" and overlay.volatile:
                # With more requests than these under way, the kernel leaves out what the canary depends on
                # (fs/fuse/file.c, fuse_writepages). It may not allow that many.
                config.congestion_threshold = 0xFFFF
            session = Session(fd, operations, config)
            pool = WorkerPool()
            operations.attach(session, pool)
            session.handshake()
            if operations.passthrough and not (passthrough.permitted(fd) and _can_be_backing(overlay)):
                operations.use_passthrough(False)
            ready = mounted() if mounted is not None else None
            visible = _visible(target)
            if device is not None and visible != device:
                visible = None  # another mount, which ours covers where the sandbox is
            number = device or visible
            if number is not None:  # while /sys is still there
                mountpoint.set_read_ahead(*number, kind, _READ_AHEAD_KIB)
            keeper = _separate(target) if visible is not None and kind == "fuseblk" else None
            if visible is not None:
                overlay.mounted(*visible, keeper.tid if keeper is not None else os.getpid())
                operations.seen = Seen(target, visible, keeper.tid if keeper is not None else 0)
            os.umask(0)  # modes of requests arrive with the caller's umask beside them
            operations.hatch(target, visible)  # serves the first ones
            if ready is not None:
                ready()
            if keeper is not None:
                keeper.tidy(*((SHELL,) if params.hold else ()))
        except BaseException:
            # Closing the device aborts the connection: then the unmount waits for nobody.
            os.close(fd)
            _unmount_quietly(target)
            raise
    except BaseException:
        # Others may have been served while it was tried whether syncfs(2) can be answered.
        touched = operations is not None and (operations.changes or operations.last_fh)
        (overlay.close if touched else overlay.abort)()
        raise
    try:
        operations.poll.start()
        overlay.settle()
        _loop(session, pool, params, target, on_signal, keeper)
    finally:
        os.close(fd)
        if operations.canary is not None:
            operations.canary.bury()
        overlay.close()
    if operations.close_error is not None:
        raise operations.close_error


def _operations(overlay: Overlay, params: Params) -> OverlayOperations:
    if overlay.sync.probe.kind == "inode":
        from voile.server.watching import WatchingOperations

        return WatchingOperations(overlay, params)
    from voile.server.operations import OverlayOperations

    return OverlayOperations(overlay, params)


def _raise_file_limit() -> None:
    """As many descriptors as we may have: callers' open files need some of ours, directories more."""
    import resource

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _stack_depth(overlay: Overlay) -> int:
    """How deep our superblock is to count as stacked: no deeper than passthrough needs.

    The kernel allows two levels in all (FILESYSTEM_MAX_STACK_DEPTH), so at 2 no kernel overlayfs could have a
    layer on our mount.  Without passthrough it counts as 0.
    """
    kinds = {files.statfs_type(each.fd) for each in overlay.filesystems.values()}
    return 2 if kinds & _STACKED else 1


def _can_be_backing(overlay: Overlay) -> bool:
    """Whether files of the layers can be read through: not those of a FUSE mount, itself perhaps stacked.

    How deep cannot be asked; too deep is ELOOP at each open.
    """
    return all(files.statfs_type(each.fd) != _FUSE for each in overlay.filesystems.values())


def to_background(inherited: frozenset[int]) -> Callable[[], None]:
    """Fork; in the child leave the terminal and the caller's files behind.

    Return, in the child, what ends the parent, with status 0.
    """
    told, tell = os.pipe()
    if os.fork():
        os.close(tell)
        os._exit(0 if os.read(told, 1) else _INTERNAL)
    os.close(told)
    detach(inherited)

    def ready() -> None:
        os.write(tell, b"x")
        os.close(tell)

    return ready


def detach(inherited: frozenset[int]) -> None:
    """Become a daemon: a session of its own, no files of the caller's, no directory in use.

    A caller that reads our stdout or stderr to the end (container engines do) would wait for ever otherwise.
    `inherited` are the descriptors that came from the caller (`open_files` at the start).  What is written to
    sys.stderr from now on goes to the system log.
    """
    import sys

    from voile.server.log import Log

    os.setsid()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for standard in (0, 1, 2):
        os.dup2(null, standard, inheritable=True)
    os.close(null)
    for fd in inherited:
        if fd > 2:
            os.close(fd)
    sys.stderr = Log()
    os.chdir("/")


def open_files() -> frozenset[int]:
    """Return the descriptors that are open now."""
    found = frozenset(int(name) for name in os.listdir("/proc/self/fd"))
    # listdir's own descriptor is in its result.
    return frozenset(fd for fd in found if _is_open(fd))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _loop(
    session: Session,
    pool: WorkerPool,
    params: Params,
    target: bytes,
    on_signal: Callable[[int], None] | None,
    keeper: Keeper | None,
) -> None:
    from gc import disable, freeze

    from voile.fuse.device import Device

    follow = None
    if params.cpu_follow:
        from voile.fuse.cpu_follow import CpuFollow

        follow = CpuFollow()
    device = Device(session, pool, follow)

    def unmount(number: int) -> None:
        if keeper is not None:
            keeper.unmount()
        else:
            mountpoint.unmount_in_thread(target, lazy=True)

    device.on_signals(on_signal or unmount)
    # A full collection over 200,000 nodes would stop everything for 50 ms; there are no cycles to collect.
    freeze()
    disable()
    device.run()


def _check_target(target: bytes) -> bytes:
    """Return the mount point as an absolute path. Raises OSError ENOENT, ENOTDIR, … with the path."""
    import errno
    import stat

    if not stat.S_ISDIR(os.stat(target).st_mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), target)
    return os.path.realpath(target)


def _visible(target: bytes) -> tuple[int, int] | None:
    """The device number of the mount on `target`, if it can be seen from here (`voile run` hides it)."""
    from voile.linux import mountinfo

    found = [mount.device for mount in mountinfo.read() if mount.mountpoint == target]
    return found[-1] if found else None


def _separate(target: bytes) -> Keeper | None:
    from voile.server.keeper import Keeper

    try:
        return Keeper(target)
    except OSError:
        return None  # a sandbox that forbids it


def _unmount_quietly(target: bytes) -> None:
    try:
        mountpoint.unmount(target, lazy=True)
    except OSError:
        pass  # the first error is the one to report


def _say(line: str) -> None:
    os.write(2, f"voile: {line}\n".encode("utf-8", "surrogateescape"))
