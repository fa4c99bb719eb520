"""INIT: what both sides can do. No I/O.

`negotiate` answers the kernel's `fuse_init_in` with the intersection of what it offers and what the file
system wants (`Config`), and says what holds from then on (`Negotiated`).
"""

from __future__ import annotations

from voile.fuse import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Everything that helps a file system which owns its tree: fewer requests (READDIRPLUS, cached symlinks, no
#: security.capability question before each write), bigger ones (256 pages), less serialised ones. Left out on
#: purpose: POSIX_LOCKS and FLOCK_LOCKS (the kernel's local locks are right for one machine), WRITEBACK_CACHE
#: (excludes PASSTHROUGH), AUTO_INVAL_DATA (nobody changes the data behind our back), EXPORT_SUPPORT and,
#: with NO_EXPORT_SUPPORT, file handles that could not be opened again after a remount.
WANTED = (
    abi.ASYNC_READ
    | abi.ATOMIC_O_TRUNC
    | abi.BIG_WRITES
    | abi.DONT_MASK
    | abi.HAS_IOCTL_DIR
    | abi.DO_READDIRPLUS
    | abi.READDIRPLUS_AUTO
    | abi.ASYNC_DIO
    | abi.PARALLEL_DIROPS
    | abi.POSIX_ACL
    | abi.MAX_PAGES
    | abi.CACHE_SYMLINKS
    | abi.HANDLE_KILLPRIV_V2
    | abi.SETXATTR_EXT
    | abi.INIT_EXT
    | abi.HAS_EXPIRE_ONLY
    | abi.DIRECT_IO_ALLOW_MMAP
    | abi.PASSTHROUGH
    | abi.NO_EXPORT_SUPPORT
    | abi.HAS_SYNCFS
)


class Config:
    """What the file system wants.

    *wanted*: INIT flags. *max_write*: largest WRITE, at most 1 MiB (256 pages; fs.fuse.max_pages_limit).
    *max_stack_depth*: how deep a backing file system may itself be stacked (2 allows overlayfs below).
    *trace*: called with one line per request and per reply, for debugging.
    """

    __slots__ = ("congestion_threshold", "max_background", "max_stack_depth", "max_write", "trace", "wanted")

    def __init__(
        self,
        wanted: int = WANTED,
        *,
        max_write: int = 1 << 20,
        max_background: int = 64,
        congestion_threshold: int = 48,
        max_stack_depth: int = 2,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.wanted = wanted
        self.max_write = max_write
        self.max_background = max_background
        self.congestion_threshold = congestion_threshold
        self.max_stack_depth = max_stack_depth
        self.trace = trace


class Negotiated:
    """What was agreed: the kernel's protocol *minor*, the *offered* and the agreed *flags*, the limits."""

    __slots__ = ("flags", "max_readahead", "max_write", "minor", "offered")

    def __init__(self, minor: int, offered: int, flags: int, max_write: int, max_readahead: int) -> None:
        self.minor = minor
        self.offered = offered
        self.flags = flags
        self.max_write = max_write
        self.max_readahead = max_readahead

    @property
    def passthrough(self) -> bool:
        """Whether files may be opened with FOPEN_PASSTHROUGH (BACKING_OPEN has its own permission check)."""
        return bool(self.flags & abi.PASSTHROUGH)


class ProtocolError(Exception):
    """The kernel speaks another protocol: too old, or not INIT first."""


def negotiate(body: bytes, config: Config, lacking: int = 0) -> tuple[Negotiated | None, bytes]:
    """Answer the INIT request *body* (`fuse_init_in`), without the flags *lacking*: (what holds, the reply's
    body).

    None in place of what holds: the kernel's major version is newer, and it will send another INIT.
    Raises ProtocolError when the kernel is older than 7.31.
    """
    major, minor, max_readahead, flags = abi.INIT_IN_COMPAT.unpack_from(body)
    if major > abi.KERNEL_VERSION:
        return None, abi.INIT_OUT.pack(abi.KERNEL_VERSION, abi.KERNEL_MINOR_VERSION, *(0,) * 11)
    if major < abi.KERNEL_VERSION or minor < abi.MINIMUM_MINOR_VERSION:
        raise ProtocolError(
            f"the kernel speaks FUSE {major}.{minor}; 7.{abi.MINIMUM_MINOR_VERSION} is needed"
        )
    if flags & abi.INIT_EXT:
        flags |= abi.INIT_IN.unpack_from(body)[4] << 32
    agreed = flags & config.wanted & ~lacking
    max_pages = 32
    if agreed & abi.MAX_PAGES:
        max_pages = min(256, -(-config.max_write // 4096))
    max_write = min(config.max_write, max_pages * 4096)
    stack_depth = config.max_stack_depth if agreed & abi.PASSTHROUGH else 0
    reply = abi.INIT_OUT.pack(
        abi.KERNEL_VERSION,
        # The kernel compares with its own minor and takes the smaller (fs/fuse/inode.c process_init_reply).
        abi.KERNEL_MINOR_VERSION,
        max_readahead,
        agreed & 0xFFFFFFFF,
        config.max_background,
        config.congestion_threshold,
        max_write,
        1,  # time_gran: nanoseconds
        max_pages,
        0,
        agreed >> 32,
        stack_depth,
        0,
    )
    return Negotiated(minor, flags, agreed, max_write, max_readahead), reply
