"""/proc/PID/mountinfo, decoded (Documentation/filesystems/proc.rst, 3.5)."""

from __future__ import annotations


class Mount:
    """One line of mountinfo: all paths and strings are bytes without the octal escapes."""

    __slots__ = (
        "fstype", "id", "major", "minor", "mountpoint", "optional", "options", "parent", "root", "source",
        "super_options",
    )  # fmt: skip

    def __init__(self, line: bytes) -> None:
        """Decode a line. Raises ValueError when it is none."""
        # By single spaces: an empty source shows as two of them. A hyphen ends the optional fields.
        fields = line.rstrip(b"\n").split(b" ")
        end = fields.index(b"-", 6)
        major, minor = fields[2].split(b":")
        self.id = int(fields[0])
        self.parent = int(fields[1])
        self.major = int(major)
        self.minor = int(minor)
        self.root = unescape(fields[3])
        self.mountpoint = unescape(fields[4])
        self.options = fields[5].split(b",")
        self.optional = fields[6:end]
        self.fstype = unescape(fields[end + 1])
        self.source = unescape(fields[end + 2])
        self.super_options = unescape(fields[end + 3])

    @property
    def device(self) -> tuple[int, int]:
        """(major, minor), as in st_dev of the files on it (btrfs subvolumes differ)."""
        return self.major, self.minor


def unescape(value: bytes) -> bytes:
    r"""Undo the kernel's mangling: `\040` is a space; tab, newline, backslash and # likewise."""
    if b"\\" not in value:
        return value
    first, *rest = value.split(b"\\")
    return first + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in rest)


def read(path: bytes = b"/proc/self/mountinfo") -> list[Mount]:
    """All mounts that the process sees, in the kernel's order: a later one covers an earlier one."""
    with open(path, "rb") as file:
        return [Mount(line) for line in file]


def containing(path: bytes, mountinfo: bytes = b"/proc/self/mountinfo") -> Mount | None:
    """The mount that an absolute path without symlinks is in, as the path says."""
    best = None
    for mount in read(mountinfo):
        inside = (path + b"/").startswith(mount.mountpoint.rstrip(b"/") + b"/")
        if inside and (best is None or len(mount.mountpoint) >= len(best.mountpoint)):
            best = mount
    return best


def find(mount_id: int, path: bytes = b"/proc/self/mountinfo") -> Mount | None:
    """The mount with this id (`Statx.mnt_id`), None when it is not in the namespace (detached, for one)."""
    prefix = b"%d " % mount_id
    with open(path, "rb") as file:
        for line in file:
            if line.startswith(prefix):
                return Mount(line)
    return None
