"""The client of test_sync_calls: makes every sync call after data was lost, and prints what each returned.

A process of its own, since libeatmydata takes the sync calls of a whole process. It looks at the directory
that it is started in, where each call has a pair of files (see `names`). When all of them are open it prints
an empty line; it goes on when it is sent one.
"""

import json
import mmap
import os
import sys

from support import syscalls

PAGE = 4096


class Call:
    """A sync call on an open file."""

    flags = os.O_RDWR

    def __init__(self, function):
        self.function = function

    def open(self, path):
        return os.open(path, self.flags)

    def make(self, opened):
        """0 or the errno."""
        try:
            self.function(opened)
        except OSError as error:
            return error.errno
        return 0


class Written(Call):
    """A write that syncs, because of how the file was opened."""

    def __init__(self, flag):
        self.flags = os.O_RDWR | flag

    def function(self, opened):
        os.pwrite(opened, b"w", 0)


class Pwritev2(Call):
    """A write that syncs, because it was told to."""

    def __init__(self, flag):
        self.flag = flag

    def function(self, opened):
        os.pwritev(opened, [b"w"], 0, self.flag)


class Msync(Call):
    def __init__(self):
        pass

    def open(self, path):
        opened = os.open(path, os.O_RDWR)
        return mmap.mmap(opened, PAGE)

    def function(self, opened):
        opened.flush()  # MS_SYNC


class Directory(Call):
    """Of the directory that the file lies in."""

    def open(self, path):
        return os.open(path.rpartition("/")[0], os.O_RDONLY | os.O_DIRECTORY)


CALLS = {
    "fsync": Call(os.fsync),
    "fdatasync": Call(os.fdatasync),
    "fsync of a directory": Directory(os.fsync),
    "syncfs": Call(syscalls.syncfs),
    "write, O_SYNC": Written(os.O_SYNC),
    "write, O_DSYNC": Written(os.O_DSYNC),
    "pwritev2, RWF_SYNC": Pwritev2(os.RWF_SYNC),
    "pwritev2, RWF_DSYNC": Pwritev2(os.RWF_DSYNC),
    "msync, MS_SYNC": Msync(),
    "close": Call(os.close),
}


def names(number):
    """The files of a call: that which loses its data, and one that does not, each in its directory."""
    return f"lost{number}/file", f"whole{number}/file"


def answers(name, old, again, other, lost):
    """The first time, again, on a new descriptor, and for the other file."""
    call = CALLS[name]
    first = call.make(old)
    # A descriptor cannot be closed twice: another one of before.
    second = call.make(again if name == "close" else old)
    return first, second, call.make(call.open(lost)), call.make(other)


def main():
    opened = []
    for number, name in enumerate(CALLS):
        lost, whole = names(number)
        opened.append((name, *(CALLS[name].open(path) for path in (lost, lost, whole)), lost))
    print(flush=True)
    sys.stdin.readline()
    print(json.dumps({each[0]: answers(*each) for each in opened}), flush=True)


if __name__ == "__main__":
    main()
