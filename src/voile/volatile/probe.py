"""The probe: reads the error state of the upper file system without syncing it.

Theory of operation. The kernel keeps the writeback errors of a file system in its superblock (`s_wb_err`, an
errseq_t) and has no call that tells them without a full sync. But a *volatile overlayfs* answers fsync on a
directory with errseq_check(upper superblock, value at mount) and does nothing else (fs/overlayfs/super.c,
ovl_sync_status; fs/overlayfs/readdir.c, ovl_dir_fsync). So we make such a mount, from empty directories on
the upper file system, never attach it anywhere, keep an fd of its root, and remove the directories. From then
on fsync of that fd takes 0.3 µs, writes nothing, and returns the latest errno since the probe was made, for
ever: whichever file lost its data, whoever has collected the error, and whether the disk works again or not.

Making it needs CAP_SYS_ADMIN; without, a child makes it inside a user namespace of its own and hands over the
fd, which works without any privilege.

As with the kernel's volatile mount, creation fails (EIO) when the file system has an error that nobody has
seen: it could not be told from a later one.
"""

from __future__ import annotations

import errno
import os

from voile.linux import files, mount, mountinfo, namespaces, trees
from voile.volatile.policy import OVERLAY, USERNS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# Off, whatever the kernel's defaults: all that could need more of the upper file system than the probe does.
# (redirect_dir=off would be refused together with userxattr.)
_OPTIONS = ((b"index", b"off"), (b"metacopy", b"off"), (b"xino", b"off"), (b"redirect_dir", b"nofollow"))
_LAYERS = (b"lowerdir", b"upperdir", b"workdir")
_ATTRIBUTES = (
    mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC
)


class UnseenError(OSError):
    """The upper file system has a writeback error that nobody has been told of (EIO).

    The message names the file system, and the command that reports and clears the error.
    """


class ProbeUnavailable(OSError):
    """No probe can be made: no privilege and no user namespaces, no overlayfs, or an unsuitable upper."""


class Probe:
    """An error probe of a file system. The file system stays busy until it is closed."""

    __slots__ = ("fd", "kind")

    def __init__(self, fd: int, kind: str) -> None:
        """Take over `fd`. `kind`: "overlay" (made by ourselves), "overlay-userns" (by a child)."""
        self.fd = fd
        self.kind = kind

    def check(self) -> int:
        """The latest errno of the file system since the probe was made, 0 when there was no error."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            return error.errno or errno.EIO
        except ValueError:
            return errno.EBADF  # closed: who cannot tell does not say that all is well
        return 0

    def watch(self, fd: int) -> None:
        """A new file is about to be written; for probes that watch files."""

    def tidy(self) -> None:
        """Give back what is not needed any more."""

    def close(self) -> None:
        """Let go of the file system."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class NoProbe(Probe):
    """For mounts that write nothing: never an error."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(-1, "none")

    def check(self) -> int:
        return 0


def create(workdir_fd: int, userxattr: bool = False, where: str | None = None) -> Probe:
    """Make a probe of the file system of the directory `workdir_fd` (O_PATH will do); it must be writable.

    The fd must have been opened in the mount namespace that the process is in now.
    `userxattr`: as the mount option, for a process in a user namespace. `where`: OVERLAY, USERNS, or None for
    the first of them that works. Raises UnseenError; ProbeUnavailable;
    another OSError when the directory cannot be written to. Whatever happens, nothing is left in it.
    """
    prefix = b"#probe%x-" % os.getpid()
    try:
        for layer in _LAYERS:
            # From a predecessor with our pid that was killed in the middle.
            trees.remove(workdir_fd, prefix + layer)
            os.mkdir(prefix + layer, 0o700, dir_fd=workdir_fd)
        try:
            # The path is that of the fd and thus needs no escapes, whatever the directory is called.
            base = b"/proc/self/fd/%d/" % workdir_fd
            if where != USERNS:
                return Probe(_build(base + prefix, userxattr), "overlay")
        except _BuildError as error:
            if error.errno != errno.EPERM or where == OVERLAY:
                raise
        return Probe(_build_in_child(workdir_fd, prefix), "overlay-userns")
    except _BuildError as error:
        _explain(workdir_fd, error)
    finally:
        for layer in _LAYERS:
            trees.remove(workdir_fd, prefix + layer)


class _BuildError(OSError):
    """A failure of the mount itself, as opposed to one of the scratch directories."""


def _build(prefix: bytes, userxattr: bool) -> int:
    """The fd of a probe, made in this process of directories with that prefix.

    Raises _BuildError; EPERM: no privilege here.
    """
    try:
        fs = mount.fsopen(b"overlay")
    except OSError as error:
        raise _BuildError(error.errno, f"overlayfs: {error.strerror}")
    try:
        mount.fsconfig_string(fs, b"source", b"voile-probe")
        for layer in _LAYERS:
            mount.fsconfig_string(fs, layer, prefix + layer)
        for key, value in _OPTIONS:
            mount.fsconfig_string(fs, key, value)
        mount.fsconfig_flag(fs, b"volatile")
        if userxattr:
            mount.fsconfig_flag(fs, b"userxattr")
        mount.fsconfig_create(fs)
        mounted = mount.fsmount(fs, attributes=_ATTRIBUTES)
        try:
            # The mount fd itself is an O_PATH one: EBADF for fsync.
            return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mounted)
        finally:
            os.close(mounted)
    except OSError as error:
        raise _BuildError(error.errno, _context_log(fs) or f"overlayfs: {error.strerror}")
    finally:
        os.close(fs)


def _context_log(fs: int) -> str:
    """What the kernel has to say about a failed mount: the messages of the file system context."""
    messages = []
    try:
        while True:
            messages.append(os.read(fs, 1024).decode(errors="replace")[2:].strip())
    except OSError:  # ENODATA: that was all
        return "; ".join(messages)


def _build_in_child(workdir_fd: int, prefix: bytes) -> int:
    """The fd of a probe that a child has made in a user namespace. Raises _BuildError."""
    import socket

    ours, theirs = socket.socketpair()
    uid, gid = os.geteuid(), os.getegid()
    pid = os.fork()
    if pid == 0:
        try:
            _child(theirs, uid, gid, workdir_fd, prefix)
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        message, fds, _, _ = socket.recv_fds(ours, 1024, 1)
    os.waitpid(pid, 0)
    if fds:
        os.set_inheritable(fds[0], False)
        return fds[0]
    code, _, text = message.partition(b" ")
    raise _BuildError(int(code or errno.EPERM), text.decode(errors="replace") or "the helper process died")


def _child(reply_to: object, uid: int, gid: int, workdir_fd: int, prefix: bytes) -> None:
    import socket

    assert isinstance(reply_to, socket.socket)
    doing = "user namespace"
    try:
        # Layers must belong to the mount namespace that we are in (fs/namespace.c, clone_private_mount). The
        # fd stays with the old namespace, while the working directory goes along to the new one.
        os.fchdir(workdir_fd)
        namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
        namespaces.write_id_maps("self", [(0, uid, 1)], [(0, gid, 1)])
        doing = "overlayfs in a user namespace"
        # trusted.* belongs to the initial user namespace.
        fd = _build(prefix, userxattr=True)
        socket.send_fds(reply_to, [b"0"], [fd])
    except _BuildError as error:
        reply_to.sendall(b"%d %s" % (error.errno or errno.EIO, str(error.strerror).encode()))
    except OSError as error:
        reply_to.sendall(b"%d %s" % (error.errno or errno.EIO, f"{doing}: {error.strerror}".encode()))


def _explain(workdir_fd: int, error: _BuildError) -> NoReturn:
    """Raise what the caller of `create` is to see."""
    path = os.readlink(b"/proc/self/fd/%d" % workdir_fd)
    if error.errno != errno.EIO:
        raise ProbeUnavailable(error.errno, f"no error probe for this file system: {error.strerror}", path)
    import shlex

    directory, name = path, "the upper file system"
    found = mountinfo.find(files.statx(workdir_fd, b"", files.AT_EMPTY_PATH, files.STATX_MNT_ID).mnt_id)
    if found is not None:
        directory = found.mountpoint
        name = f"{os.fsdecode(found.fstype)} file system {os.fsdecode(found.source)}"
    command = f"sync -f {shlex.quote(os.fsdecode(directory))}"
    message = f"{name} has lost data before and nobody was told; '{command}' reports that and clears it"
    raise UnseenError(errno.EIO, message, path)
