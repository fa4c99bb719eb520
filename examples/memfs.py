#!/usr/bin/env python3
"""A file system in memory, with `voile.fuse` alone. As root: PYTHONPATH=src examples/memfs.py MOUNTPOINT"""

import errno
import itertools
import os
import stat
import sys
import time

from voile.fuse import abi, mountpoint, replies
from voile.fuse.device import Device
from voile.fuse.session import Operations, Session

FOREVER = 1 << 40  # nobody but the kernel changes anything here: it may cache without limit


class Node:
    def __init__(self, ino, mode, uid, gid, content):
        self.ino, self.mode, self.uid, self.gid = ino, mode, uid, gid
        self.atime_ns = self.mtime_ns = self.ctime_ns = time.time_ns()
        self.content = content  # a bytearray, or the dict of a directory

    def attr(self):
        times = zip(*(divmod(t, 10**9) for t in (self.atime_ns, self.mtime_ns, self.ctime_ns)))
        head = (self.ino, len(self.content), -(-len(self.content) // 512))
        return replies.attr(*head, *itertools.chain(*times), self.mode, 1, self.uid, self.gid, 0, 4096, 0)

    def entry(self):
        return replies.entry_out(self.ino, 0, FOREVER, 0, FOREVER, 0, self.attr())


class MemoryFS(Operations):
    def __init__(self):
        self.nodes = {abi.ROOT_ID: Node(abi.ROOT_ID, stat.S_IFDIR | 0o755, os.getuid(), os.getgid(), {})}
        self.inos = itertools.count(abi.ROOT_ID + 1)

    def add(self, req, name, mode, content):
        node = self.nodes[ino] = Node(ino := next(self.inos), mode, req.uid, req.gid, content)
        self.nodes[req.nodeid].content[name] = node
        return node.entry()

    def lookup(self, req, name):
        node = self.nodes[req.nodeid].content.get(name)
        return node.entry() if node else replies.negative_entry(FOREVER)

    def getattr(self, req, flags, fh):
        return replies.attr_out(FOREVER, 0, self.nodes[req.nodeid].attr())

    def setattr(self, req, args):
        node = self.nodes[req.nodeid]
        if args.valid & abi.FATTR_SIZE:
            node.content[:] = node.content[: args.size].ljust(args.size, b"\0")
        for name in ("mode", "uid", "gid", "atime_ns", "mtime_ns", "ctime_ns"):
            if args.valid & getattr(abi, "FATTR_" + name.removesuffix("_ns").upper()):
                setattr(node, name, getattr(args, name))
        return self.getattr(req, 0, None)

    def mkdir(self, req, name, mode, umask):
        return self.add(req, name, stat.S_IFDIR | mode & ~umask, {})

    def create(self, req, name, flags, mode, umask, open_flags):
        return replies.create_out(self.add(req, name, stat.S_IFREG | mode & ~umask, bytearray()), 0)

    def unlink(self, req, name):
        if self.nodes[req.nodeid].content[name].content and req.opcode == abi.RMDIR:
            raise OSError(errno.ENOTEMPTY, "directory not empty")
        del self.nodes[req.nodeid].content[name]

    rmdir = unlink

    def rename(self, req, name, newdir, newname, flags):
        if flags or newname in self.nodes[newdir].content:
            raise OSError(errno.EINVAL, "only plain renames to new names")
        self.nodes[newdir].content[newname] = self.nodes[req.nodeid].content.pop(name)

    def read(self, req, fh, offset, size, read_flags, flags):
        return bytes(self.nodes[req.nodeid].content[offset : offset + size])

    def write(self, req, fh, offset, data, write_flags, flags):
        content = self.nodes[req.nodeid].content
        content[len(content) :] = bytes(max(0, offset - len(content)))
        content[offset : offset + len(data)] = data
        return len(data)

    def readdir(self, req, fh, offset, size, flags):
        records = replies.DirentBuffer(size, plus=False)
        for off, (name, node) in enumerate(list(self.nodes[req.nodeid].content.items())[offset:], offset + 1):
            if not records.add(node.ino, off, stat.S_IFMT(node.mode) >> 12, name):
                break
        return records.bytes()


if __name__ == "__main__":
    fd, target = mountpoint.open_device(), os.fsencode(sys.argv[1])
    mountpoint.mount(fd, target, source=b"memfs", subtype=b"memfs", default_permissions=True)
    device = Device(session := Session(fd, MemoryFS()))
    session.handshake()
    device.on_signals(lambda number: mountpoint.unmount_in_thread(target, lazy=True))
    device.run()
