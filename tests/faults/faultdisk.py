"""A disk that fails on command: a loop device over one file that `diskserver` serves from memory.

    disk = FaultDisk(size, directory)
    rule = disk.fail(errno.EIO, match=MARKER)   # writes whose payload contains the marker
    rule.wait(1)                                # until one of them has been refused
    disk.heal()

Failing by content is what makes this useful: data is lost while journal and metadata survive, so that the
file system stays writable, as with a disk that has a few bad sectors.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

from support import syscalls
from support.namespace import ISOLATION
from support.overlays import ROOT
from support.wait import wait_until
from voile.linux import loop

MARKER = "VOILE-TEST-BAD-SECTOR"
ANSWER_TIMEOUT = 30

Stat = namedtuple("Stat", "reads sectors_read writes sectors_written discards flushes")


class Rule:
    """A rule in force."""

    def __init__(self, disk, number):
        self.disk = disk
        self.number = number

    @property
    def hits(self):
        """How many requests it has matched."""
        return self.disk.ask(cmd="hits", rule=self.number)["hits"]

    def wait(self, hits=1):
        """Until it has matched that many."""
        return self.disk.ask(cmd="wait", rule=self.number, hits=hits)["hits"]

    def remove(self):
        """No longer in force; requests that it holds are carried out (or refused, if it has an errno)."""
        self.disk.ask(cmd="remove", rule=self.number)


class FaultDisk:
    """`device` is its path. close() when nothing is mounted from it any more."""

    def __init__(self, size, directory):
        self.file = Path(directory) / "faultdisk"
        self.file.touch()
        self.loop_fd = -1
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(ANSWER_TIMEOUT)
        memory = os.memfd_create("faultdisk", os.MFD_CLOEXEC)
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(memory, size)
            options = f"fd={fuse},rootmode=100600,user_id=0,group_id=0"
            syscalls.mount("faultdisk", self.file, "fuse.faultdisk", 0, options)
            fds = (fuse, theirs.fileno(), memory)
            self.process = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("diskserver.py"), *map(str, fds)],
                pass_fds=fds,
                env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            )
        finally:
            os.close(fuse)
            os.close(memory)
            theirs.close()
        try:
            self._receive()  # it serves
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self):
        fd = os.open(self.file, os.O_RDWR | os.O_CLOEXEC)
        try:
            path, self.loop_fd = loop.attach_file(fd, 512, b"faultdisk")
        finally:
            os.close(fd)
        self.device = os.fsdecode(path)
        ISOLATION.note_loop(self.device)

    def _receive(self):
        packet = self.control.recv(65536)
        if not packet:
            raise RuntimeError("the disk's process died")
        answer = json.loads(packet)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def ask(self, **message):
        self.control.send(json.dumps(message).encode())
        return self._receive()

    def add(self, op, **what):
        """A rule for "write", "read" or "flush"; the first that matches a request decides.

        errno: the answer (0: done as usual); match: only payloads that contain it (writes); start, end: only
        requests that touch these bytes; count: so many times, then no more; delay: seconds before the answer;
        hold: no answer until `Rule.remove` or `heal`.
        """
        return Rule(self, self.ask(cmd="add", op=op, **what)["rule"])

    def fail(self, errno, op="write", **what):
        """`add` of an error; a write fails when it contains MARKER, unless said otherwise."""
        if op == "write":
            what.setdefault("match", MARKER)
        return self.add(op, errno=errno, **what)

    @contextlib.contextmanager
    def holding(self, op, **what):
        """`add` of a rule that holds requests back until the end of the block, however that is reached.

        (Nothing could end a process that waits for such a request: not even SIGKILL.)
        """
        rule = self.add(op, hold=True, **what)
        try:
            yield rule
        finally:
            rule.remove()

    def heal(self):
        """No rules any more; what was held is carried out."""
        self.ask(cmd="heal")

    def stat(self):
        """The kernel's counters of requests to the device (Documentation/block/stat.rst)."""
        fields = Path(f"/sys/block/{os.path.basename(self.device)}/stat").read_text().split()
        return Stat(*(int(fields[i]) for i in (0, 2, 4, 6, 8, 15)))

    def close(self):
        """The loop device, the mount and the process end, in this order, whatever state they are in."""
        try:
            if self.process.poll() is None:
                self.heal()
        except (OSError, RuntimeError):
            pass
        if self.loop_fd >= 0:
            # AUTOCLEAR: with the last close. Until then the loop's file keeps the mount busy.
            backing = Path(f"/sys/block/{os.path.basename(self.device)}/loop/backing_file")
            sequence = Path(f"/sys/block/{os.path.basename(self.device)}/diskseq").read_text()
            os.close(self.loop_fd)
            self.loop_fd = -1
            wait_until(
                lambda: (
                    not backing.exists() or backing.parent.parent.joinpath("diskseq").read_text() != sequence
                ),
                f"{self.device} is still in use",
            )
        # The loop device lets go of the file a moment after it has said so (loop.c, __loop_clr_fd).
        wait_until(self._umounted, f"{self.file} is still in use")
        self.control.close()
        self.process.wait(ANSWER_TIMEOUT)
        self.file.unlink()

    def _umounted(self):
        try:
            syscalls.umount(self.file)
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            return False
        return True
