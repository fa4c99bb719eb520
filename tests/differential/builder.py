"""Layers made by hand, alike on both sides: every object gets a fixed time that follows from its path."""

import os
import stat
import zlib

from support import syscalls


class Layer:
    """One layer's directory. Every method returns the layer."""

    def __init__(self, root, ordinary=False):
        """`ordinary`: built by an ordinary user, without owners, devices and most xattrs."""
        self.root = os.fsencode(root)
        self.ordinary = ordinary
        self.flags = {}

    def path(self, name):
        full = os.path.join(self.root, os.fsencode(name))
        os.makedirs(os.path.dirname(full), exist_ok=True)
        return full

    def file(self, name, data=b"data", mode=0o644, owner=(0, 0), xattrs=None):
        with open(self.path(name), "wb") as f:
            f.write(data)
        return self._finish(name, mode, owner, xattrs)

    def sparse(self, name, size, *pieces):
        """A file of that size with (offset, data) pieces in it."""
        with open(self.path(name), "wb") as f:
            f.truncate(size)
            for offset, data in pieces:
                f.seek(offset)
                f.write(data)
        return self._finish(name, 0o644, (0, 0), None)

    def dir(self, name, mode=0o755, owner=(0, 0), xattrs=None):
        os.makedirs(self.path(name), exist_ok=True)
        return self._finish(name, mode, owner, xattrs)

    def symlink(self, name, target, owner=(0, 0), xattrs=None):
        os.symlink(target, self.path(name))
        return self._finish(name, None, owner, xattrs)

    def fifo(self, name, mode=0o644, owner=(0, 0)):
        return self.node(name, stat.S_IFIFO, 0, mode, owner)

    def socket(self, name, mode=0o644, owner=(0, 0)):
        return self.node(name, stat.S_IFSOCK, 0, mode, owner)

    def char(self, name, device=(1, 3), mode=0o644, owner=(0, 0)):
        return self.node(name, stat.S_IFCHR, os.makedev(*device), mode, owner)

    def block(self, name, device=(240, 99), mode=0o644, owner=(0, 0)):
        return self.node(name, stat.S_IFBLK, os.makedev(*device), mode, owner)

    def node(self, name, kind, device, mode, owner):
        if self.ordinary and kind in (stat.S_IFCHR, stat.S_IFBLK):
            kind, device = stat.S_IFIFO, 0
        os.mknod(self.path(name), kind | 0o600, device)
        return self._finish(name, mode, owner, None)

    def link(self, old, new):
        os.link(self.path(old), self.path(new), follow_symlinks=False)
        return self

    def whiteout(self, name):
        os.mknod(self.path(name), stat.S_IFCHR, os.makedev(0, 0))
        return self

    def opaque(self, name):
        return self.dir(name, xattrs={"trusted.overlay.opaque": b"y"})

    def chattr(self, name, flags):
        """The flags of chattr(1), when all else is done."""
        self.flags[self.path(name)] = flags
        return self

    def mark(self, name, xattrs):
        """More attributes for what is there."""
        return self._finish(name, None, (0, 0), xattrs)

    def kinds(self, prefix, owner=(0, 0)):
        """One object of each kind, named PREFIX + kind."""
        self.file(prefix + "file", b"the file", 0o640, owner).dir(prefix + "dir", 0o750, owner)
        self.file(prefix + "dir/inside", b"inside").symlink(prefix + "symlink", "file", owner)
        self.fifo(prefix + "fifo", 0o620, owner).socket(prefix + "socket", 0o600, owner)
        return self.char(prefix + "char", (1, 3), 0o666, owner).block(
            prefix + "block", (240, 99), 0o660, owner
        )

    def _finish(self, name, mode, owner, xattrs):
        path = self.path(name)
        if not self.ordinary:
            os.chown(path, *owner, follow_symlinks=False)
        if mode is not None:
            os.chmod(path, mode)
        for key, value in (xattrs or {}).items():
            if self.ordinary:
                key = key.replace("trusted.overlay.", "user.overlay.")
                if key.startswith(("trusted.", "security.")) or os.path.islink(path):
                    continue
            os.setxattr(path, key, value, follow_symlinks=False)
        return self

    def settle(self):
        """Times last: children change their parents'."""
        for directory, names, files in os.walk(self.root, topdown=False):
            for name in names + files:
                self._set_time(os.path.join(directory, name))
        self._set_time(self.root)
        for path, flags in self.flags.items():
            if not self.ordinary:
                syscalls.set_flags(path, flags)

    def _set_time(self, path):
        relative = os.path.relpath(path, self.root)
        # Never a whole second: a time that lost its nanoseconds on the way must show.
        ns = (10**9 + zlib.crc32(relative) % 10**6) * 10**9 + 123456789
        os.utime(path, ns=(ns - 10**9, ns), follow_symlinks=False)


class Builder:
    """What a scenario builds with: b.low is the topmost lower layer, b.lows all, b.up the upper one.

    b.datas are data-only layers.
    """

    def __init__(self, layers, ordinary=False):
        self.lows = [Layer(p, ordinary) for p in layers.lowers]
        self.low = self.lows[0]
        self.datas = [Layer(p, ordinary) for p in layers.datas]
        self.up = Layer(layers.upper, ordinary) if layers.upper else None

    def settle(self):
        for layer in [*self.lows, *self.datas, self.up]:
            if layer is not None:
                layer.settle()


KINDS = ("file", "dir", "symlink", "fifo", "socket", "char", "block")
