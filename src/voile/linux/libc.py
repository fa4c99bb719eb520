"""The C library through ctypes: the only door to it, for the modules beside this one.

A *prototype* is made once, at import, with fixed argument types: that is what makes a ctypes call cheap
(about half a microsecond). Every wrapper turns a result of -1 into OSError through `check`.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap
    from typing import Any

c_char_p = ctypes.c_char_p
c_int = ctypes.c_int
c_int64 = ctypes.c_int64
c_long = ctypes.c_long
c_uint = ctypes.c_uint
c_uint64 = ctypes.c_uint64
c_ulong = ctypes.c_ulong
c_void_p = ctypes.c_void_p
c_size_t = ctypes.c_size_t
addressof = ctypes.addressof
get_errno = ctypes.get_errno

_libc = ctypes.CDLL(None, use_errno=True)
# PyDLL keeps the GIL. Only for calls that cannot sleep: giving the GIL away around them would let a worker
# thread in, and the thread that serves requests would wait for it.
_libc_short = ctypes.PyDLL(None, use_errno=True)

# Numbers above 423 are the same on every architecture (include/uapi/asm-generic/unistd.h).
NR_OPEN_TREE = 428
NR_MOVE_MOUNT = 429
NR_FSOPEN = 430
NR_FSCONFIG = 431
NR_FSMOUNT = 432
NR_OPENAT2 = 437
NR_MOUNT_SETATTR = 442
NR_CACHESTAT = 451
NR_FCHMODAT2 = 452
NR_GETXATTRAT = 464
NR_LISTXATTRAT = 465

# The older ones, for calls that some C libraries have no function for.
_NAMES = (
    "renameat2", "statx", "getdents64", "utimensat", "name_to_handle_at", "open_by_handle_at", "capget",
    "setgroups", "capset",
)  # fmt: skip
_X86_64 = (316, 332, 217, 280, 303, 304, 125, 116, 126)
_GENERIC = (276, 291, 61, 88, 264, 265, 90, 159, 91)
_TABLES = {"x86_64": _X86_64, "aarch64": _GENERIC, "riscv64": _GENERIC, "loongarch64": _GENERIC}
# An unknown architecture gets -1, which the kernel answers with ENOSYS.
_numbers = dict(zip(_NAMES, _TABLES.get(os.uname().machine, (-1,) * len(_NAMES)), strict=True))

NR_RENAMEAT2 = _numbers["renameat2"]
NR_STATX = _numbers["statx"]
NR_GETDENTS64 = _numbers["getdents64"]
NR_UTIMENSAT = _numbers["utimensat"]
NR_NAME_TO_HANDLE_AT = _numbers["name_to_handle_at"]
NR_OPEN_BY_HANDLE_AT = _numbers["open_by_handle_at"]
NR_CAPGET = _numbers["capget"]
NR_SETGROUPS = _numbers["setgroups"]
NR_CAPSET = _numbers["capset"]


def function(name: str, *argtypes: Any, short: bool = False) -> Callable[..., int]:
    """A prototype of the C library's function `name`, which returns an int.

    `short` keeps the GIL during the call (see above). Raises AttributeError when there is no such function.
    """
    prototype = (_libc_short if short else _libc)[name]
    prototype.argtypes = argtypes
    prototype.restype = c_int
    return prototype


def long_function(name: str, *argtypes: Any) -> Callable[..., int]:
    """As `function`, for one that returns a long or ssize_t."""
    prototype = _libc[name]
    prototype.argtypes = argtypes
    prototype.restype = c_long
    return prototype


def syscall_function(*argtypes: Any, short: bool = False) -> Callable[..., int]:
    """A prototype of syscall(2): its first argument is the number, `argtypes` are those of the others."""
    prototype = (_libc_short if short else _libc)["syscall"]
    prototype.argtypes = (c_long, *argtypes)
    prototype.restype = c_long
    return prototype


def untyped_syscall() -> Callable[..., int]:
    """syscall(2) for a hot path: half a microsecond less a call than with types to convert to.

    The number is a c_long. Other arguments may be int where the system call takes 32 bits, because C's int is
    what they are passed as; bytes; `chars`; and nothing else.
    """
    prototype = ctypes.CDLL(None, use_errno=True)["syscall"]
    prototype.restype = c_long
    return prototype


_any_syscall = syscall_function(*(c_long,) * 6)


def syscall(number: int, *arguments: int) -> int:
    """syscall(2) with up to six integer arguments, for rare calls without a prototype. Raises OSError."""
    return check(_any_syscall(number, *arguments, *(0,) * (6 - len(arguments))))


def check(result: int, path: bytes | None = None) -> int:
    """`result`, or OSError with errno, its message and `path` when the result says failure."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result


def text(value: bytes) -> bytes:
    """`value`, when C can see all of it; OSError EINVAL when it has a NUL inside.

    Names come from untrusted layers too (redirect xattrs): a silently shortened one would name another file.
    """
    if 0 in value:
        raise OSError(22, os.strerror(22), value)
    return value


def view(buffer: bytearray | mmap) -> ctypes.Array[ctypes.c_char]:
    """A writable view of `buffer` that can be passed as a c_void_p."""
    return (ctypes.c_char * len(buffer)).from_buffer(buffer)


def chars(size: int) -> ctypes.Array[ctypes.c_char]:
    """`size` bytes that a system call may write to."""
    return (ctypes.c_char * size)()


def array(ctype: Any, values: list[int]) -> Any:
    """A C array of `ctype` with these values."""
    return (ctype * len(values))(*values)
