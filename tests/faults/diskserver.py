"""The process behind a `FaultDisk`: one file, served through FUSE, that fails as its rules say.

It is a process of its own because the file system on the disk writes back from kernel threads: a test that
waits for such a write could not answer it at the same time. It is also a second user of `voile.fuse`, which
knows nothing of overlays.

It lives in a mount namespace of its own, without the file systems on its disk. As the last process in the
test's namespace, killed, it would have to unmount them before the kernel closes its /dev/fuse, and wait for
itself for ever: the kernel runs what exit leaves to do in the reverse order (kernel/task_work.c).

Started with three fds: /dev/fuse (already mounted), the control socket, and the memory behind the disk.
Control messages are JSON objects, one per packet, each answered by one; the answer to "wait" comes when its
condition holds.
"""

from __future__ import annotations

import errno
import heapq
import json
import os
import select
import signal
import socket
import stat
import sys
import time

from voile.fuse import abi, replies
from voile.fuse.requests import DEFERRED
from voile.fuse.session import Config, Operations, Session
from voile.linux import files, mount, mountinfo, namespaces

PUNCH_HOLE_KEEP_SIZE = 3


class Rule:
    """What happens to requests that it matches. `hits` counts them."""

    def __init__(self, id, op, errno=0, match=None, start=0, end=None, count=None, delay=0.0, hold=False):
        self.id = id
        self.op = op
        self.errno = errno
        self.match = match.encode() if match else None
        self.start = start
        self.end = end
        self.count = count
        self.delay = delay
        self.hold = hold
        self.hits = 0
        self.waiting = []  # what `hold` holds

    def takes(self, op, offset, size, data):
        if op != self.op or (self.count is not None and self.hits >= self.count):
            return False
        if op == "flush":
            return True
        if offset + size <= self.start or (self.end is not None and offset >= self.end):
            return False
        return self.match is None or (data is not None and self.match in data)


class Disk(Operations):
    """The root of this file system is the disk itself, a regular file."""

    def __init__(self, memory):
        self.memory = memory
        self.session = None
        self.rules = []
        self.timers = []  # heap of (when, number, request, action)
        self.number = 0
        self.wait_for = None  # (rule, hits) that the client waits for
        self.answer = None

    # --- the file ---

    def getattr(self, req, flags, fh):
        st = os.fstat(self.memory)
        mode = stat.S_IFREG | 0o600
        return replies.attr_out(
            3600, 0, replies.attr(1, st.st_size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
        )

    def open(self, req, flags, open_flags):
        return replies.open_out(1, abi.FOPEN_DIRECT_IO)

    def release(self, req, fh, flags, release_flags, lock_owner):
        return None

    def read(self, req, fh, offset, size, read_flags, flags):
        return self.act(req, "read", offset, size, None, lambda: os.pread(self.memory, size, offset))

    def write(self, req, fh, offset, data, write_flags, flags):
        kept = bytes(data)
        return self.act(req, "write", offset, len(kept), kept, lambda: os.pwrite(self.memory, kept, offset))

    def fsync(self, req, fh, datasync):
        return self.act(req, "flush", 0, 0, None, lambda: None)

    def fallocate(self, req, fh, offset, length, mode):
        """Discard and write-zeroes of the block device."""
        if mode != PUNCH_HOLE_KEEP_SIZE:
            raise OSError(errno.EOPNOTSUPP, "only holes")
        files.fallocate(self.memory, mode, offset, length)

    # --- rules ---

    def act(self, req, op, offset, size, data, action):
        for rule in self.rules:
            if rule.takes(op, offset, size, data):
                break
        else:
            return action()
        rule.hits += 1
        if rule.errno:
            number = rule.errno

            def action():
                raise OSError(number, os.strerror(number))

        if rule.hold:
            rule.waiting.append((req.unique, op, action))
        elif rule.delay:
            self.number += 1
            heapq.heappush(
                self.timers, (time.monotonic() + rule.delay, self.number, (req.unique, op, action))
            )
        self.check_wait()
        return DEFERRED if rule.hold or rule.delay else action()

    def finish(self, unique, op, action):
        try:
            result = action()
        except OSError as exc:
            self.session.fail(unique, exc.errno)
        else:
            self.session.reply(unique, replies.write_out(result) if op == "write" else result)

    def release_held(self, rules):
        for rule in rules:
            held, rule.waiting = rule.waiting, []
            rule.hold = False
            for request in held:
                self.finish(*request)

    def next_timeout(self):
        """Finish what is due; milliseconds until the next, or None."""
        while self.timers and self.timers[0][0] <= time.monotonic():
            self.finish(*heapq.heappop(self.timers)[2])
        return max(0, (self.timers[0][0] - time.monotonic()) * 1000) + 1 if self.timers else None

    # --- control ---

    def check_wait(self):
        if self.wait_for and self.wait_for[0].hits >= self.wait_for[1]:
            hits, self.wait_for = self.wait_for[0].hits, None
            self.answer({"hits": hits})

    def control(self, message, answer):
        """Carry out one message; `answer` sends the reply."""
        command = message.pop("cmd")
        chosen = [r for r in self.rules if r.id == message.get("rule")]
        if command == "add":
            self.number += 1
            self.rules.append(Rule(self.number, **message))
            answer({"rule": self.number})
        elif command == "hits":
            answer({"hits": chosen[0].hits})
        elif command == "wait":
            self.answer, self.wait_for = answer, (chosen[0], message["hits"])
            self.check_wait()
        elif command == "remove":
            self.rules = [r for r in self.rules if r not in chosen]
            self.release_held(chosen)
            answer({})
        elif command == "heal":
            healed, self.rules = self.rules, []
            self.release_held(healed)
            answer({})
        else:
            answer({"error": f"unknown command {command}"})


def leave_namespace():
    """Keep nothing mounted but what Python runs from."""
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mount.mount(None, b"/", None, mount.MS_REC | mount.MS_PRIVATE)
    needed = [os.fsencode(path) for path in (sys.prefix, sys.base_prefix, __file__)]
    for mounted in reversed(list(mountinfo.read())):
        below = mounted.mountpoint.rstrip(b"/") + b"/"
        if not any(path.startswith(below) for path in needed):
            try:
                mount.umount2(mounted.mountpoint, mount.MNT_DETACH)
            except OSError:
                pass  # went with the one it was on


def serve(fuse_fd, control, memory):
    """Until the unmount."""
    disk = Disk(memory)
    disk.session = session = Session(fuse_fd, disk, Config(abi.BIG_WRITES | abi.MAX_PAGES | abi.INIT_EXT))
    session.handshake()
    poll = select.poll()
    poll.register(fuse_fd, select.POLLIN)
    poll.register(control, select.POLLIN)

    def answer(reply):
        control.send(json.dumps(reply).encode())

    answer({})  # ready
    while True:
        for fd, _ in poll.poll(disk.next_timeout()):
            if fd == fuse_fd:
                try:
                    size = os.readv(fuse_fd, [session.buffer])
                except OSError as exc:
                    if exc.errno == errno.ENODEV:
                        return
                    if exc.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                        continue
                    raise
                session.process(size)
            else:
                packet = control.recv(65536)
                if not packet:
                    # The test is gone, perhaps killed: answer the kernel until it unmounts, and fail nothing.
                    poll.unregister(control)
                    disk.control({"cmd": "heal"}, lambda reply: None)
                    continue
                disk.control(json.loads(packet), answer)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test, which then takes the disk down
    leave_namespace()
    serve(int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3]))
