"""File system credentials of a thread, and capabilities.

setfsuid and setfsgid are per thread, and so are securebits: threads inherit them from the one that starts
them.
"""

from __future__ import annotations

import os
import struct

from voile.linux import libc
from voile.linux.libc import c_int, c_size_t, c_uint, c_ulong, c_void_p, check

CAP_CHOWN = 0
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAP_FOWNER = 3
CAP_FSETID = 4
CAP_SETGID = 6
CAP_SETUID = 7
CAP_SETPCAP = 8
CAP_LINUX_IMMUTABLE = 9
CAP_SYS_CHROOT = 18
CAP_SYS_ADMIN = 21
CAP_SYS_RESOURCE = 24
CAP_MKNOD = 27
CAP_SETFCAP = 31

PR_GET_SECUREBITS = 27
PR_SET_SECUREBITS = 28
SECBIT_NO_SETUID_FIXUP = 1 << 2

_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_CAP_HEADER = struct.Struct("=Ii")
_CAP_DATA = struct.Struct("=IIIIII")

# They cannot fail and cannot sleep: keep the GIL.
_setfsuid = libc.function("setfsuid", c_uint, short=True)
_setfsgid = libc.function("setfsgid", c_uint, short=True)
_prctl = libc.function("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_syscall_capget = libc.syscall_function(c_void_p, c_void_p, short=True)
_syscall_capset = libc.syscall_function(c_void_p, c_void_p, short=True)
_syscall_setgroups = libc.syscall_function(c_size_t, c_void_p)


def setfsuid(uid: int) -> int:
    """Use `uid` for file system access in this thread; the uid used before.

    The kernel reports no failure (setfsuid(2)). Without privilege, or for an id that the user namespace does
    not map, nothing changes: `setfsuid(0xFFFFFFFF)` reads the one in force.
    """
    return _setfsuid(uid)


def setfsgid(gid: int) -> int:
    """As `setfsuid`, for the group. Set it before `setfsuid`, and back after it."""
    return _setfsgid(gid)


def keep_caps_on_setfsuid() -> None:
    """Keep the file capabilities of this thread when setfsuid changes between 0 and others.

    Otherwise the kernel clears CAP_CHOWN, DAC_*, FOWNER, FSETID, ... (security/commoncap.c,
    cap_task_fix_setuid, LSM_SETID_FS). Inherited by threads and children. Raises OSError EPERM without
    CAP_SETPCAP. Note that it covers setuid as well: a child that is to lose privileges must drop its
    capabilities itself.
    """
    bits = check(_prctl(PR_GET_SECUREBITS, 0, 0, 0, 0))
    check(_prctl(PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP, 0, 0, 0))


def _effective(pid: int) -> int:
    """The effective capability set of a thread (0: this one). Raises OSError ESRCH."""
    header = bytearray(_CAP_HEADER.pack(_LINUX_CAPABILITY_VERSION_3, pid))
    data = bytearray(_CAP_DATA.size)
    check(_syscall_capget(libc.NR_CAPGET, libc.view(header), libc.view(data)))
    words: tuple[int, ...] = _CAP_DATA.unpack(data)
    return words[0] | words[3] << 32


class Without:
    """Takes one capability out of a thread's effective set for a moment, and gives it back.

    Made in a thread that has it, and used there; the thread's other capabilities must not change meanwhile.
    """

    __slots__ = ("_all", "_fewer", "_header")

    def __init__(self, capability: int) -> None:
        """Raises OSError, as capget(2)."""
        self._header = libc.view(bytearray(_CAP_HEADER.pack(_LINUX_CAPABILITY_VERSION_3, 0)))
        self._all = libc.view(bytearray(_CAP_DATA.size))
        check(_syscall_capget(libc.NR_CAPGET, self._header, self._all))
        words = list(_CAP_DATA.unpack(self._all))
        # Of each half: effective, permitted, inheritable.
        words[capability // 32 * 3] &= ~(1 << capability % 32)
        self._fewer = libc.view(bytearray(_CAP_DATA.pack(*words)))

    def __enter__(self) -> None:
        check(_syscall_capset(libc.NR_CAPSET, self._header, self._fewer))

    def __exit__(self, *_exception: object) -> None:
        check(_syscall_capset(libc.NR_CAPSET, self._header, self._all))


def has_cap(capability: int) -> bool:
    """Whether this thread has the capability now, in its own user namespace."""
    return bool(_effective(0) >> capability & 1)


def pid_has_cap(pid: int, capability: int) -> bool:
    """Whether the thread `pid` has the capability *in our user namespace*.

    Capabilities count in the holder's own user namespace: everybody can have all of them in one of their own
    making. So the namespaces are compared. "Cannot tell" (the thread is gone, or we may not look) is False.
    """
    try:
        if not _effective(pid) >> capability & 1:
            return False
        theirs = os.stat(b"/proc/%d/ns/user" % pid)
        ours = os.stat(b"/proc/self/ns/user")
    except OSError:
        return False
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def pid_in_group(pid: int, gid: int) -> bool:
    """Whether the thread `pid` has `gid` among its supplementary groups; "cannot tell" is False."""
    try:
        with open(b"/proc/%d/status" % pid, "rb") as status:
            for line in status:
                if line.startswith(b"Groups:"):
                    return b"%d" % gid in line.split()
    except OSError:
        pass
    return False


def setgroups_of_thread(groups: list[int]) -> None:
    """setgroups(2) for this thread alone (os.setgroups changes all threads of the process)."""
    check(_syscall_setgroups(libc.NR_SETGROUPS, len(groups), libc.array(c_uint, groups)))
