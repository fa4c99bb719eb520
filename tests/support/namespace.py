"""The test process in a mount namespace of its own, and the check that nothing outlives the run.

Every mount a test makes dies with the process, also when pytest is killed. Processes do not: so at the end
we look for any that carries our mark in its environment or that lives in our mount namespace.
"""

import os
import signal
import uuid

from . import mountinfo, syscalls

MARK = "VOILE_TEST_RUN"


def _read(path):
    try:
        with open(path) as f:
            return f.read().strip()
    except OSError:
        return ""


class Isolation:
    """State of the run: what was there before us."""

    def __init__(self):
        self.isolated = False
        self.loops = set()
        self.before = set()
        self.token = ""

    def enter(self):
        """Leave the machine's mount namespace. Without the privilege: stay; tests that mount are skipped."""
        self.token = os.environ[MARK] = uuid.uuid4().hex
        if os.geteuid() == 0:
            try:
                syscalls.unshare(syscalls.CLONE_NEWNS)
                syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
                self.isolated = True
            except PermissionError:
                pass  # root of a container without CAP_SYS_ADMIN
        self.before = {m.id for m in mountinfo.mounts()}

    def note_loop(self, source):
        """A loop device that one of our mounts uses: it must be gone at the end."""
        if source.startswith("/dev/loop"):
            loop = os.path.basename(source)
            # The number comes back for somebody else; the sequence number of the attachment does not.
            self.loops.add((loop, _read(f"/sys/block/{loop}/diskseq")))

    def leftovers(self):
        """Lines that say what was left behind; processes among it are killed."""
        lines = []
        for pid, command in self._processes():
            lines.append(f"process {pid}: {command}")
            os.kill(pid, signal.SIGKILL)
        if self.isolated:
            left = [m for m in mountinfo.mounts() if m.id not in self.before]
            lines += [f"mount {m.point} ({m.fstype} of {m.source})" for m in left]
        for loop, sequence in sorted(self.loops):
            backing = _read(f"/sys/block/{loop}/loop/backing_file")
            if backing and _read(f"/sys/block/{loop}/diskseq") == sequence:
                lines.append(f"/dev/{loop} (backed by {backing})")
        return lines

    def _processes(self):
        mark = f"{MARK}={self.token}".encode()
        own_namespace = os.readlink("/proc/self/ns/mnt") if self.isolated else None
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            try:
                with open(f"/proc/{entry}/environ", "rb") as f:
                    ours = mark in f.read()
                ours = ours or os.readlink(f"/proc/{entry}/ns/mnt") == own_namespace
                with open(f"/proc/{entry}/cmdline", "rb") as f:
                    command = f.read().replace(b"\0", b" ").decode(errors="replace").strip()
                with open(f"/proc/{entry}/stat") as f:
                    zombie = f.read().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if ours and not zombie:
                yield int(entry), command


def become_root_of_a_user_namespace():
    """unshare -Urm for this process, which is an ordinary user's."""
    uid, gid = os.getuid(), os.getgid()
    syscalls.set_dumpable()  # else /proc/self belongs to root
    syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
    for name, value in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as f:
            f.write(value)


ISOLATION = Isolation()
