"""Namespaces: unshare, setns, and the id maps of a user namespace."""

from __future__ import annotations

from voile.linux import libc
from voile.linux.libc import c_int, check

CLONE_NEWTIME = 0x00000080
CLONE_FS = 0x00000200
CLONE_FILES = 0x00000400
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_unshare = libc.function("unshare", c_int)
_setns = libc.function("setns", c_int, c_int)


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces. CLONE_NEWUSER is EINVAL in a process with threads."""
    check(_unshare(flags))


def setns(fd: int, flags: int = 0) -> None:
    """Join the namespace of `fd` (a /proc/PID/ns/* file, or a pidfd with CLONE_* flags)."""
    check(_setns(fd, flags))


def write_id_maps(
    pid: int | str,
    uid_map: list[tuple[int, int, int]],
    gid_map: list[tuple[int, int, int]],
    deny_setgroups: bool = True,
) -> None:
    """Set the id maps of the user namespace of `pid` ("self", or a number): (inside, outside, count) each.

    Without privilege in the parent namespace only one's own id can be mapped, and setgroups(2) must be denied
    first (user_namespaces(7)). Raises OSError EPERM when a map is refused or has been set before.
    """
    if deny_setgroups:
        _write(b"/proc/%s/setgroups" % str(pid).encode(), b"deny")
    _write(b"/proc/%s/uid_map" % str(pid).encode(), _lines(uid_map))
    _write(b"/proc/%s/gid_map" % str(pid).encode(), _lines(gid_map))


def _lines(id_map: list[tuple[int, int, int]]) -> bytes:
    return b"".join(b"%d %d %d\n" % triple for triple in id_map)


def _write(path: bytes, value: bytes) -> None:
    # The kernel takes a map in exactly one write.
    with open(path, "wb", buffering=0) as file:
        file.write(value)
