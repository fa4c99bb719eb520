"""Records one request of each opcode from the running kernel, for tests/unit/test_fuse_requests.py.

    unshare -m --propagation private env PYTHONPATH=src:tests python3 tests/mount/record_requests.py

writes tests/unit/fuse_requests.txt: lines of "NAME hex". The recordings in the repository are from Linux 6.18
(protocol 7.45), x86-64, with root as the caller.
"""

import fcntl
import os
import signal
import tempfile
import time
from pathlib import Path

from mount.mirrorfs import IOCTL_ECHO, IOCTL_WAIT, Mirror

from voile.fuse import abi
from voile.fuse.negotiation import WANTED
from voile.fuse.requests import BINDERS, not_implemented
from voile.linux import files

# Without these flags the kernel asks READDIR and ACCESS of us (POSIX_ACL implies default_permissions).
_KERNEL_WORK = abi.DO_READDIRPLUS | abi.POSIX_ACL
OUTPUT = Path(__file__).parents[1] / "unit" / "fuse_requests.txt"
NAMES = {abi.INIT: "INIT", abi.DESTROY: "DESTROY", abi.BATCH_FORGET: "BATCH_FORGET", abi.RENAME2: "RENAME2"}
NAMES |= {abi.COPY_FILE_RANGE_64: "COPY_FILE_RANGE_64"}


def exercise(root):
    """Make the kernel send one of everything."""
    path = root.path
    os.mkdir(path("directory"), 0o750)
    fd = os.open(path("directory/file"), os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o640)
    os.write(fd, b"hello, kernel")
    os.fchmod(fd, 0o600)
    os.utime(path("directory/file"), ns=(-1_500_000_000, 1_700_000_000_123_456_789))
    os.setxattr(path("directory/file"), "user.name", b"va\0lue", os.XATTR_CREATE)
    os.getxattr(path("directory/file"), "user.name")
    os.listxattr(path("directory/file"))
    os.removexattr(path("directory/file"), "user.name")
    os.fdatasync(fd)
    os.posix_fallocate(fd, 4096, 8192)
    os.lseek(fd, 100, os.SEEK_HOLE)
    other = os.open(path("other"), os.O_CREAT | os.O_RDWR)
    os.copy_file_range(fd, other, 10, 3, 5)
    fcntl.ioctl(fd, IOCTL_ECHO, bytearray(b"0123456789abcdef"))
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    files.syncfs(fd)
    os.close(other)
    os.close(fd)
    os.close(os.open(path("directory/file"), os.O_RDONLY | os.O_NONBLOCK))
    Path(root.root.decode(), "lower").write_bytes(b"x" * 5000)
    Path(path("lower")).read_bytes()
    os.symlink("target/of/link", path("link"))
    os.readlink(path("link"))
    os.mknod(path("fifo"), 0o10644)
    os.link(path("other"), path("directory/hard"))
    os.rename(path("directory/hard"), path("renamed"))
    dirfd = os.open(path(), os.O_RDONLY)
    files.renameat2(dirfd, b"renamed", dirfd, b"exchanged", files.RENAME_NOREPLACE)
    files.statx(dirfd, b"other", 0, 0xFFF)
    os.fstat(dirfd)
    os.fsync(dirfd)
    os.listdir(dirfd)
    os.close(dirfd)
    os.close(os.open(path(), os.O_TMPFILE | os.O_RDWR, 0o600))
    os.unlink(path("exchanged"))
    os.unlink(path("directory/file"))
    os.rmdir(path("directory"))
    os.statvfs(path())
    for i in range(300):
        Path(path(f"forget{i}")).touch()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    time.sleep(0.2)
    os.access(path("lower"), os.R_OK)
    wait_for_nothing(path("lower"))


def wait_for_nothing(path):
    """A caller that gets a signal while the file system holds its request back."""
    pid = os.fork()
    if pid == 0:
        fcntl.ioctl(os.open(path, os.O_RDONLY), IOCTL_WAIT)
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def record(base, raw, without=(), **options):
    """One run against a mirror that does not know the opcodes *without*."""
    root, point = Path(tempfile.mkdtemp(dir=base)), Path(tempfile.mkdtemp(dir=base))

    def capture(session):
        def keep(n):
            raw.write(session.buffer[:n].hex().encode() + b"\n")
            raw.flush()

        def process(n):
            keep(n)
            answer(n)

        keep(104)  # INIT, which the handshake has just read
        answer, session.process = session.process, process
        for opcode in without:
            session._handlers[opcode] = not_implemented

    one = Mirror(root, point, fuseblk=True, capture=capture, attr_valid=0, **options)
    exercise(one)
    one.close()


def main():
    with tempfile.TemporaryDirectory(dir="/var/tmp") as base, tempfile.NamedTemporaryFile() as raw:
        record(base, raw)
        record(base, raw, [abi.COPY_FILE_RANGE_64], wanted=WANTED & ~_KERNEL_WORK, checks_itself=True)
        seen = {}
        for line in Path(raw.name).read_text().splitlines():
            _, opcode, *_ = abi.IN_HEADER.unpack_from(bytes.fromhex(line))
            seen.setdefault(NAMES.get(opcode) or BINDERS[opcode][0].upper(), []).append(line)
        # The utimensat(2), the most telling of the SETATTRs, and our own xattr; otherwise the first.
        chosen = {name: lines[{"SETATTR": 1, "GETXATTR": 1}.get(name, 0)] for name, lines in seen.items()}
        OUTPUT.write_text("".join(f"{name} {chosen[name]}\n" for name in sorted(chosen)))
        print(sorted({NAMES.get(o) or m.upper() for o, (m, _) in BINDERS.items()} - set(seen)), "not seen")


if __name__ == "__main__":
    main()
