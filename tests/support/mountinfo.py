"""/proc/self/mountinfo, as little as the tests need."""

from collections import namedtuple

Mount = namedtuple("Mount", "id device point fstype source options super_options")


def _unescape(text):
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def mounts():
    found = []
    with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
        for line in lines:
            left, right = line.rstrip("\n").split(" - ", 1)
            fields, tail = left.split(" "), right.split(" ")
            point, source = _unescape(fields[4]), _unescape(tail[1])
            found.append(Mount(int(fields[0]), fields[2], point, tail[0], source, fields[5], tail[2]))
    return found


def at(point):
    """The topmost mount at exactly this path, or None."""
    found = [m for m in mounts() if m.point == str(point)]
    return found[-1] if found else None
