"""Constants and structs of the FUSE kernel protocol (``<linux/fuse.h>``), up to protocol 7.45 (Linux 6.18).

One table, no behaviour. Every struct is a `struct.Struct` in native byte order and standard sizes (the
kernel pads its structs by hand, so that 32-bit servers work under 64-bit kernels). Padding is `x`: it is
neither returned by unpack nor asked for by pack. Times are signed here although the header says
``uint64_t``: the kernel stores the 64 bits in a signed time64_t, and files from before 1970 exist.

`STRUCTS` names the C struct and its fields for each constant; a test compiles ``sizeof`` and ``offsetof``
of all of them against the system's header.
"""

from __future__ import annotations

from struct import Struct

KERNEL_VERSION = 7
KERNEL_MINOR_VERSION = 45
# Before 7.31 (Linux 5.4) FUSE_WRITE_KILL_PRIV is missing: such kernels are not supported.
MINIMUM_MINOR_VERSION = 31
ROOT_ID = 1
MIN_READ_BUFFER = 8192
UNIQUE_RESEND = 1 << 63

# --- opcodes (enum fuse_opcode) ---
LOOKUP = 1
FORGET = 2
GETATTR = 3
SETATTR = 4
READLINK = 5
SYMLINK = 6
MKNOD = 8
MKDIR = 9
UNLINK = 10
RMDIR = 11
RENAME = 12
LINK = 13
OPEN = 14
READ = 15
WRITE = 16
STATFS = 17
RELEASE = 18
FSYNC = 20
SETXATTR = 21
GETXATTR = 22
LISTXATTR = 23
REMOVEXATTR = 24
FLUSH = 25
INIT = 26
OPENDIR = 27
READDIR = 28
RELEASEDIR = 29
FSYNCDIR = 30
GETLK = 31
SETLK = 32
SETLKW = 33
ACCESS = 34
CREATE = 35
INTERRUPT = 36
BMAP = 37
DESTROY = 38
IOCTL = 39
POLL = 40
NOTIFY_REPLY = 41
BATCH_FORGET = 42
FALLOCATE = 43
READDIRPLUS = 44
RENAME2 = 45
LSEEK = 46
COPY_FILE_RANGE = 47
SETUPMAPPING = 48
REMOVEMAPPING = 49
SYNCFS = 50
TMPFILE = 51
STATX = 52
COPY_FILE_RANGE_64 = 53

# --- notifications (enum fuse_notify_code) ---
NOTIFY_POLL = 1
NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3
NOTIFY_STORE = 4
NOTIFY_RETRIEVE = 5
NOTIFY_DELETE = 6
NOTIFY_INC_EPOCH = 8
NOTIFY_RESEND = 7
NOTIFY_INC_EPOCH = 8
NOTIFY_PRUNE = 9

# --- fuse_setattr_in.valid ---
FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
FATTR_LOCKOWNER = 1 << 9
FATTR_CTIME = 1 << 10
FATTR_KILL_SUIDGID = 1 << 11

# --- fuse_open_out.open_flags ---
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_NONSEEKABLE = 1 << 2
FOPEN_CACHE_DIR = 1 << 3
FOPEN_STREAM = 1 << 4
FOPEN_NOFLUSH = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6
FOPEN_PASSTHROUGH = 1 << 7

# --- INIT flags: the low 32 bits travel in `flags`, the others in `flags2` ---
ASYNC_READ = 1 << 0
POSIX_LOCKS = 1 << 1
FILE_OPS = 1 << 2
ATOMIC_O_TRUNC = 1 << 3
EXPORT_SUPPORT = 1 << 4
BIG_WRITES = 1 << 5
DONT_MASK = 1 << 6
SPLICE_WRITE = 1 << 7
SPLICE_MOVE = 1 << 8
SPLICE_READ = 1 << 9
FLOCK_LOCKS = 1 << 10
HAS_IOCTL_DIR = 1 << 11
AUTO_INVAL_DATA = 1 << 12
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
ASYNC_DIO = 1 << 15
WRITEBACK_CACHE = 1 << 16
NO_OPEN_SUPPORT = 1 << 17
PARALLEL_DIROPS = 1 << 18
HANDLE_KILLPRIV = 1 << 19
POSIX_ACL = 1 << 20
ABORT_ERROR = 1 << 21
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
NO_OPENDIR_SUPPORT = 1 << 24
EXPLICIT_INVAL_DATA = 1 << 25
MAP_ALIGNMENT = 1 << 26
SUBMOUNTS = 1 << 27
HANDLE_KILLPRIV_V2 = 1 << 28
SETXATTR_EXT = 1 << 29
INIT_EXT = 1 << 30
SECURITY_CTX = 1 << 32
HAS_INODE_DAX = 1 << 33
CREATE_SUPP_GROUP = 1 << 34
HAS_EXPIRE_ONLY = 1 << 35
DIRECT_IO_ALLOW_MMAP = 1 << 36
PASSTHROUGH = 1 << 37
NO_EXPORT_SUPPORT = 1 << 38
HAS_RESEND = 1 << 39
ALLOW_IDMAP = 1 << 40
OVER_IO_URING = 1 << 41
REQUEST_TIMEOUT = 1 << 42
HAS_SYNCFS = 1 << 43

# --- flags of single requests and replies ---
RELEASE_FLUSH = 1 << 0
RELEASE_FLOCK_UNLOCK = 1 << 1
GETATTR_FH = 1 << 0
LK_FLOCK = 1 << 0
WRITE_CACHE = 1 << 0
WRITE_LOCKOWNER = 1 << 1
WRITE_KILL_SUIDGID = 1 << 2
READ_LOCKOWNER = 1 << 1
IOCTL_COMPAT = 1 << 0
IOCTL_UNRESTRICTED = 1 << 1
IOCTL_RETRY = 1 << 2
IOCTL_32BIT = 1 << 3
IOCTL_DIR = 1 << 4
IOCTL_COMPAT_X32 = 1 << 5
FSYNC_FDATASYNC = 1 << 0
ATTR_SUBMOUNT = 1 << 0
ATTR_DAX = 1 << 1
OPEN_KILL_SUIDGID = 1 << 0
SETXATTR_ACL_KILL_SGID = 1 << 0
EXPIRE_ONLY = 1 << 0

# --- ioctls of /dev/fuse: _IOR(229, 0, u32), _IOW(229, 1, struct fuse_backing_map), _IOW(229, 2, u32) ---
DEV_IOC_CLONE = 0x8004E500
DEV_IOC_BACKING_OPEN = 0x4010E501
DEV_IOC_BACKING_CLOSE = 0x4004E502

# --- structs ---
_ATTR = "3Q3q10I"
ATTR = Struct("=" + _ATTR)
ENTRY_OUT = Struct("=4Q2I" + _ATTR)
ENTRY_HEAD = Struct("=4Q2I")  # fuse_entry_out without its fuse_attr
ATTR_OUT = Struct("=QI4x" + _ATTR)
ATTR_OUT_HEAD = Struct("=QI4x")  # fuse_attr_out without its fuse_attr
_STATX = "2IQ3IH2x4QqI4xqI4xqI4xqI4x4I112x"
STATX_ATTR = Struct("=" + _STATX)
STATX_IN = Struct("=I4xQ2I")
STATX_OUT = Struct("=Q2I16x" + _STATX)
KSTATFS = Struct("=5Q3I4x24x")
FORGET_IN = Struct("=Q")
FORGET_ONE = Struct("=2Q")
BATCH_FORGET_IN = Struct("=I4x")
GETATTR_IN = Struct("=I4xQ")
MKNOD_IN = Struct("=3I4x")
MKDIR_IN = Struct("=2I")
RENAME_IN = Struct("=Q")
RENAME2_IN = Struct("=QI4x")
LINK_IN = Struct("=Q")
SETATTR_IN = Struct("=I4x3Q3q4I4x2I4x")
OPEN_IN = Struct("=2I")
CREATE_IN = Struct("=4I")
OPEN_OUT = Struct("=QIi")
CREATE_OUT = Struct("=4Q2I" + _ATTR + "QIi")  # fuse_entry_out and fuse_open_out
RELEASE_IN = Struct("=Q2IQ")
FLUSH_IN = Struct("=Q8xQ")
READ_IN = Struct("=2Q2IQI4x")
WRITE_IN = Struct("=2Q2IQI4x")
WRITE_OUT = Struct("=I4x")
FSYNC_IN = Struct("=QI4x")
SETXATTR_IN = Struct("=3I4x")
SETXATTR_IN_COMPAT = Struct("=2I")  # without FUSE_SETXATTR_EXT
GETXATTR_IN = Struct("=I4x")
GETXATTR_OUT = Struct("=I4x")
FILE_LOCK = Struct("=2Q2I")
LK_IN = Struct("=2Q2Q2II4x")
ACCESS_IN = Struct("=I4x")
INIT_IN = Struct("=5I44x")
INIT_IN_COMPAT = Struct("=4I")  # without FUSE_INIT_EXT
INIT_OUT = Struct("=4I2H2I2H2IH22x")
INTERRUPT_IN = Struct("=Q")
IOCTL_IN = Struct("=Q2IQ2I")
IOCTL_OUT = Struct("=i3I")
POLL_IN = Struct("=2Q2I")
POLL_OUT = Struct("=I4x")
FALLOCATE_IN = Struct("=3QI4x")
IN_HEADER = Struct("=2I2Q3IH2x")
OUT_HEADER = Struct("=IiQ")
DIRENT = Struct("=2Q2I")
LSEEK_IN = Struct("=QqI4x")  # the offset is an loff_t
LSEEK_OUT = Struct("=Q")
COPY_FILE_RANGE_IN = Struct("=7Q")
COPY_FILE_RANGE_OUT = Struct("=Q")
SYNCFS_IN = Struct("=8x")
BACKING_MAP = Struct("=iI8x")
NOTIFY_INVAL_INODE_OUT = Struct("=Q2q")
NOTIFY_INVAL_ENTRY_OUT = Struct("=Q2I")
NOTIFY_DELETE_OUT = Struct("=2QI4x")
NOTIFY_STORE_OUT = Struct("=2QI4x")

IN_HEADER_SIZE = 40
OUT_HEADER_SIZE = 16

_ATTR_FIELDS = (
    "ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize flags"
)
_ENTRY_FIELDS = "nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec"
_SX_TIMES = " ".join(f"{t}.tv_sec {t}.tv_nsec" for t in ("atime", "btime", "ctime", "mtime"))
_STATX_FIELDS = (
    "mask blksize attributes nlink uid gid mode ino size blocks attributes_mask "
    + _SX_TIMES
    + " rdev_major rdev_minor dev_major dev_minor"
)


def _within(member: str, fields: str) -> str:
    return " ".join(f"{member}.{field}" for field in fields.split())


#: C struct → (Struct, its fields in order, padding left out). For tests and for debugging output.
STRUCTS: dict[str, tuple[Struct, str]] = {
    "fuse_attr": (ATTR, _ATTR_FIELDS),
    "fuse_entry_out": (ENTRY_OUT, _ENTRY_FIELDS + " " + _within("attr", _ATTR_FIELDS)),
    "fuse_attr_out": (ATTR_OUT, "attr_valid attr_valid_nsec " + _within("attr", _ATTR_FIELDS)),
    "fuse_statx": (STATX_ATTR, _STATX_FIELDS),
    "fuse_statx_in": (STATX_IN, "getattr_flags fh sx_flags sx_mask"),
    "fuse_statx_out": (STATX_OUT, "attr_valid attr_valid_nsec flags " + _within("stat", _STATX_FIELDS)),
    "fuse_kstatfs": (KSTATFS, "blocks bfree bavail files ffree bsize namelen frsize"),
    "fuse_forget_in": (FORGET_IN, "nlookup"),
    "fuse_forget_one": (FORGET_ONE, "nodeid nlookup"),
    "fuse_batch_forget_in": (BATCH_FORGET_IN, "count"),
    "fuse_getattr_in": (GETATTR_IN, "getattr_flags fh"),
    "fuse_mknod_in": (MKNOD_IN, "mode rdev umask"),
    "fuse_mkdir_in": (MKDIR_IN, "mode umask"),
    "fuse_rename_in": (RENAME_IN, "newdir"),
    "fuse_rename2_in": (RENAME2_IN, "newdir flags"),
    "fuse_link_in": (LINK_IN, "oldnodeid"),
    "fuse_setattr_in": (
        SETATTR_IN,
        "valid fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode uid gid",
    ),
    "fuse_open_in": (OPEN_IN, "flags open_flags"),
    "fuse_create_in": (CREATE_IN, "flags mode umask open_flags"),
    "fuse_open_out": (OPEN_OUT, "fh open_flags backing_id"),
    "fuse_release_in": (RELEASE_IN, "fh flags release_flags lock_owner"),
    "fuse_flush_in": (FLUSH_IN, "fh lock_owner"),
    "fuse_read_in": (READ_IN, "fh offset size read_flags lock_owner flags"),
    "fuse_write_in": (WRITE_IN, "fh offset size write_flags lock_owner flags"),
    "fuse_write_out": (WRITE_OUT, "size"),
    "fuse_fsync_in": (FSYNC_IN, "fh fsync_flags"),
    "fuse_setxattr_in": (SETXATTR_IN, "size flags setxattr_flags"),
    "fuse_getxattr_in": (GETXATTR_IN, "size"),
    "fuse_getxattr_out": (GETXATTR_OUT, "size"),
    "fuse_file_lock": (FILE_LOCK, "start end type pid"),
    "fuse_lk_in": (LK_IN, "fh owner lk.start lk.end lk.type lk.pid lk_flags"),
    "fuse_access_in": (ACCESS_IN, "mask"),
    "fuse_init_in": (INIT_IN, "major minor max_readahead flags flags2"),
    "fuse_init_out": (
        INIT_OUT,
        "major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages "
        "map_alignment flags2 max_stack_depth request_timeout",
    ),
    "fuse_interrupt_in": (INTERRUPT_IN, "unique"),
    "fuse_ioctl_in": (IOCTL_IN, "fh flags cmd arg in_size out_size"),
    "fuse_ioctl_out": (IOCTL_OUT, "result flags in_iovs out_iovs"),
    "fuse_poll_in": (POLL_IN, "fh kh flags events"),
    "fuse_poll_out": (POLL_OUT, "revents"),
    "fuse_fallocate_in": (FALLOCATE_IN, "fh offset length mode"),
    "fuse_in_header": (IN_HEADER, "len opcode unique nodeid uid gid pid total_extlen"),
    "fuse_out_header": (OUT_HEADER, "len error unique"),
    "fuse_dirent": (DIRENT, "ino off namelen type"),
    "fuse_lseek_in": (LSEEK_IN, "fh offset whence"),
    "fuse_lseek_out": (LSEEK_OUT, "offset"),
    "fuse_copy_file_range_in": (COPY_FILE_RANGE_IN, "fh_in off_in nodeid_out fh_out off_out len flags"),
    "fuse_copy_file_range_out": (COPY_FILE_RANGE_OUT, "bytes_copied"),
    "fuse_syncfs_in": (SYNCFS_IN, ""),
    "fuse_backing_map": (BACKING_MAP, "fd flags"),
    "fuse_notify_inval_inode_out": (NOTIFY_INVAL_INODE_OUT, "ino off len"),
    "fuse_notify_inval_entry_out": (NOTIFY_INVAL_ENTRY_OUT, "parent namelen flags"),
    "fuse_notify_delete_out": (NOTIFY_DELETE_OUT, "parent child namelen"),
    "fuse_notify_store_out": (NOTIFY_STORE_OUT, "nodeid offset size"),
}
