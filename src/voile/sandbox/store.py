"""The state directory: one directory per sandbox, with its name.

    STATE/NAME/upper       the changed entries (overlay format)
    STATE/NAME/work        the overlay's work directory
    STATE/NAME/meta.json   which directory it belongs to, when and for what command it was made
    STATE/.discarded-*     being removed

A sandbox is in use while somebody holds a flock(2) on its directory; the daemon inherits that
descriptor, so the lock lives exactly as long as the mount.  A crash cannot leave it behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from voile.linux import trees

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_NAME_MAX = 64
_NAME_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+@")


class StoreError(Exception):
    """One line for the user."""


class Sandbox:
    """A sandbox on disk. `lock` is an open descriptor of its directory, -1 when it is not held."""

    __slots__ = ("lock", "name", "path")

    def __init__(self, path: bytes, name: bytes, lock: int = -1) -> None:
        self.path = path
        self.name = name
        self.lock = lock

    @property
    def upper(self) -> bytes:
        """The overlay's upper directory."""
        return self.path + b"/upper"

    @property
    def work(self) -> bytes:
        """The overlay's work directory."""
        return self.path + b"/work"

    def write_meta(self, meta: dict[str, Any]) -> None:
        """Replace meta.json in one step. The sandbox must be locked."""
        import json

        # By descriptor: the path may be covered by the sandbox itself, where its command runs.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with open(os.open(".meta.json", flags, 0o600, dir_fd=self.lock), "w", encoding="ascii") as file:
            json.dump({"version": 1, **meta}, file, indent=1)
            file.write("\n")
        os.rename(".meta.json", "meta.json", src_dir_fd=self.lock, dst_dir_fd=self.lock)

    def read_meta(self) -> dict[str, Any]:
        """Return what write_meta wrote; empty when it is missing or damaged."""
        import json

        try:
            with open(self.path + b"/meta.json", encoding="ascii") as file:
                meta = json.load(file)
        except (OSError, ValueError):
            return {}
        return meta if isinstance(meta, dict) else {}

    def in_use(self) -> bool:
        """Whether a daemon (or a discard) holds the sandbox now."""
        try:
            lock = _lock(self.path)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                return True
            raise
        os.close(lock)
        return False


class Store:
    """All sandboxes of one user."""

    __slots__ = ("path",)

    def __init__(self, path: bytes | None = None) -> None:
        """Use `path`, by default `default_path()`. Nothing is created before `create`."""
        self.path = default_path() if path is None else path

    def sandboxes(self) -> list[Sandbox]:
        """All sandboxes, sorted by name."""
        try:
            names = sorted(os.listdir(self.path))
        except FileNotFoundError:
            return []
        return [
            Sandbox(os.path.join(self.path, name), name)
            for name in names
            if valid_name(name) and os.path.isdir(os.path.join(self.path, name, b"upper"))
        ]

    def get(self, name: bytes) -> Sandbox:
        """Return the sandbox `name`. Raises StoreError when there is none."""
        path = os.path.join(self.path, name)
        if not valid_name(name) or not os.path.isdir(path):
            raise StoreError(f"no sandbox is named '{os.fsdecode(name)}'")
        return Sandbox(path, name)

    def create(self, name: bytes | None, lower: bytes) -> Sandbox:
        """Make a sandbox over the directory `lower` and lock it.

        The upper directory gets the mode, owner, times and xattrs of `lower`, because the root of an overlay
        shows those of its upper layer.  Without a name, one is made of the last component of `lower`.
        Raises StoreError for a name that is taken or cannot be used, OSError from the file system.
        """
        if name is not None and not valid_name(name):
            raise StoreError(
                f"'{os.fsdecode(name)}' cannot be a sandbox name (letters, digits and ._-+@,"
                f" at most {_NAME_MAX}, not beginning with '.' or '-')"
            )
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        sandbox = self._make_directory(name, lower)
        try:
            sandbox.lock = _lock(sandbox.path)
            os.mkdir(sandbox.work, 0o700)
            os.mkdir(sandbox.upper, 0o700)
            _copy_attributes(lower, sandbox.upper)
        except BaseException:
            self.remove(sandbox)
            raise
        return sandbox

    def _make_directory(self, name: bytes | None, lower: bytes) -> Sandbox:
        if name is not None:
            try:
                os.mkdir(os.path.join(self.path, name), 0o700)
            except FileExistsError:
                shown = os.fsdecode(name)
                raise StoreError(
                    f"sandbox '{shown}' exists, and a volatile upper layer cannot be used again:"
                    f" 'voile discard {shown}' removes it"
                ) from None
            return Sandbox(os.path.join(self.path, name), name)
        stem = bytes(byte for byte in os.path.basename(lower) if byte in _NAME_BYTES).lstrip(b".-")[:48]
        stem = stem or b"sandbox"
        number = 1 + max(map(_number_after(stem + b"-"), os.listdir(self.path)), default=0)
        while True:
            name = b"%s-%d" % (stem, number)
            try:
                os.mkdir(os.path.join(self.path, name), 0o700)
            except FileExistsError:
                number += 1
            else:
                return Sandbox(os.path.join(self.path, name), name)

    def discard(self, name: bytes) -> None:
        """Remove a sandbox for good. Raises StoreError when there is none or it is in use, OSError."""
        sandbox = self.get(name)
        try:
            sandbox.lock = _lock(sandbox.path)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise StoreError(f"sandbox '{os.fsdecode(name)}' is in use: a command is running in it") from None
        self.remove(sandbox)

    def remove(self, sandbox: Sandbox) -> None:
        """Remove a sandbox that the caller has locked (or just made); also finish earlier removals."""
        # The name is free, and nothing half-removed is listed, from here on, whatever happens.
        doomed = os.path.join(self.path, b".discarded-%d-%s" % (os.getpid(), sandbox.name))
        os.rename(sandbox.path, doomed)
        if sandbox.lock >= 0:
            os.close(sandbox.lock)
            sandbox.lock = -1
        state = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for entry in os.listdir(state):
                if entry.startswith(".discarded-"):
                    trees.remove(state, os.fsencode(entry))
        finally:
            os.close(state)


def default_path() -> bytes:
    """Return the state directory: $VOILE_STATE, or by the XDG base directory specification."""
    own = os.environb.get(b"VOILE_STATE")
    if own:
        return os.path.abspath(own)
    if os.geteuid() == 0:
        return b"/var/lib/voile"
    base = os.environb.get(b"XDG_STATE_HOME", b"")
    if not base.startswith(b"/"):  # the specification: a relative one is to be ignored
        base = os.path.expanduser(b"~/.local/state")
    return os.path.join(base, b"voile")


def valid_name(name: bytes) -> bool:
    """Whether `name` can name a sandbox: one path component that needs no quoting and is no option."""
    return 0 < len(name) <= _NAME_MAX and name[:1] not in (b".", b"-") and _NAME_BYTES.issuperset(name)


def _number_after(prefix: bytes) -> Callable[[bytes], int]:
    def number(name: bytes) -> int:
        rest = name[len(prefix) :]
        return int(rest) if name.startswith(prefix) and rest.isdigit() and len(rest) < 10 else 0

    return number


def _lock(path: bytes) -> int:
    """Open a sandbox's directory and lock it. Raises OSError EWOULDBLOCK when somebody else has."""
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def _copy_attributes(source: bytes, target: bytes) -> None:
    about = os.stat(source)
    if (about.st_uid, about.st_gid) != (os.geteuid(), os.getegid()):
        try:
            os.chown(target, about.st_uid, about.st_gid)
        except PermissionError:
            pass  # an ordinary user overlays somebody else's directory: the root of the tree is then theirs
    os.chmod(target, stat.S_IMODE(about.st_mode))
    for name in _xattrs(source):
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            # security.* without privilege, or an attribute that the state directory's file system has not.
            if error.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENODATA):
                raise
    os.utime(target, ns=(about.st_atime_ns, about.st_mtime_ns))


def _xattrs(path: bytes) -> list[str]:
    try:
        names = os.listxattr(path)
    except OSError:
        return []
    return [name for name in names if not name.startswith(("trusted.overlay.", "user.overlay."))]
