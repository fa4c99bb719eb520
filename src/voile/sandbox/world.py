"""The mount namespace in which the command sees the merged tree.

Theory of operation.  Two mount namespaces: *home*, where voile was started (for an ordinary user, a
copy of it that belongs to a new user namespace, because only there he may mount), and the *world* of
the command.  The daemon lives at home: a daemon inside the world would keep the world, and with it
the mount, alive for ever.  So it enters the world only to mount.  When the last process of the world
has ended, the kernel takes the mount down, and the daemon ends.
"""

from __future__ import annotations

import errno
import os

from voile.linux import creds, mount, namespaces

_CLOSE = os.O_RDONLY | os.O_CLOEXEC


class Place:
    """A mount namespace and a root directory in it: where this process is when it is made."""

    __slots__ = ("_namespace", "_root")

    def __init__(self) -> None:
        self._namespace = os.open("/proc/self/ns/mnt", _CLOSE)
        self._root = os.open("/", _CLOSE | os.O_DIRECTORY)

    def enter(self) -> None:
        """Go there; the current directory is its root afterwards. Raises OSError EPERM without privilege."""
        namespaces.setns(self._namespace, namespaces.CLONE_NEWNS)
        # setns(2) sets the root to that of the namespace, which is another one if we run under chroot(1).
        os.fchdir(self._root)
        os.chroot(".")

    def close(self) -> None:
        """Let go of the namespace: an open descriptor keeps its mounts alive."""
        os.close(self._namespace)
        os.close(self._root)


def privileged() -> bool:
    """Whether we may mount where we are, without a user namespace of our own."""
    return creds.has_cap(creds.CAP_SYS_ADMIN)


def trusted_xattrs() -> bool:
    """Whether trusted.* xattrs can be written: only from the initial user namespace (fs/xattr.c)."""
    if not privileged():
        return False
    with open("/proc/self/uid_map", "rb") as file:
        return file.read().split() == [b"0", b"0", b"4294967295"]


def leave_user_namespace() -> None:
    """Move into a new user namespace, with our own ids, and a mount namespace that belongs to it.

    Raises OSError whose strerror says what forbids it, when the system does.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
        namespaces.write_id_maps("self", [(uid, uid, 1)], [(gid, gid, 1)])
    except OSError as error:
        raise OSError(error.errno, _why_no_user_namespace(error)) from None


def _why_no_user_namespace(error: OSError) -> str:
    for path, bad in (
        ("/proc/sys/user/max_user_namespaces", b"0"),
        ("/proc/sys/kernel/unprivileged_userns_clone", b"0"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", b"1"),
    ):
        try:
            with open(path, "rb") as file:
                value = file.read().strip()
        except OSError:
            continue
        if value == bad:
            setting = path.removeprefix("/proc/sys/").replace("/", ".")
            return f"user namespaces are not permitted here ({setting} is {bad.decode()})"
    if error.errno == errno.ENOSPC:
        return "too many user namespaces, or nested too deeply"
    return f"no user namespace can be made here ({error.strerror})"


def enter_new_world() -> None:
    """Move into a new mount namespace. Nothing comes back from it; what is mounted at home still arrives."""
    namespaces.unshare(namespaces.CLONE_NEWNS)
    # Slave, not private: what is unmounted at home goes away here too, and its device is not kept busy.
    mount.mount(None, b"/", None, mount.MS_REC | mount.MS_SLAVE)


def inhabited(world: int) -> bool:
    """Whether a process is in the mount namespace with this inode number (of those that we may look at)."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}/ns/mnt").st_ino == world:
                    return True
            except OSError:
                continue
    return False
