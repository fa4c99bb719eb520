"""Work done as somebody else, in a child process."""

import os
import pickle
import signal
import stat
import traceback

from . import mountinfo, syscalls

NOBODY = 65534
USER = 12345  # no account of that number: nothing on the machine is his


class ChildFailed(Exception):
    """The child died or did not answer; the text says how."""


def in_child(function, *, timeout=60, uid=None, gid=None, groups=(), namespace=None):
    """Run function() in a forked child and return what it returned.

    A child, because a system call on a FUSE mount whose daemon hangs can only be ended by SIGKILL.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read_end)
            signal.alarm(0)
            if namespace is not None:
                namespace()
            if gid is not None or uid is not None:
                os.setgroups(list(groups))
                os.setresgid(*[uid if gid is None else gid] * 3)
                os.setresuid(*[uid] * 3)
            try:
                answer = (True, function())
            except BaseException:
                answer = (False, traceback.format_exc())
            with open(write_end, "wb") as f:
                pickle.dump(answer, f)
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    old = signal.signal(signal.SIGALRM, _expired)
    remaining = signal.alarm(timeout)
    try:
        with open(read_end, "rb") as f:
            data = f.read()
    except TimeoutError:
        raise ChildFailed(f"no answer within {timeout} s")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        if remaining:
            signal.alarm(remaining)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        _, status = os.waitpid(pid, 0)
    if not data:
        raise ChildFailed(f"the child ended with wait status {status}")
    good, value = pickle.loads(data)
    if not good:
        raise ChildFailed(value)
    return value


def _expired(_number, _frame):
    raise TimeoutError


def open_dev_fuse(node):
    """In a private mount namespace: an ordinary user may open /dev/fuse, as on every real machine.

    `node`: a path for the device node, on a file system without nodev. The machine's own node is not touched.
    """
    if not os.path.exists(node):
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(10, 229))
        os.chmod(node, 0o666)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount(node, "/dev/fuse", None, syscalls.MS_BIND)
    assert mountinfo.at("/dev/fuse")
