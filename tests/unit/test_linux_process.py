"""Credentials, processes and namespaces."""

import ctypes
import errno
import os
import signal
import threading

import pytest

from support.users import in_child
from voile.linux import creds, namespaces, process

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@root
def test_fsuid_is_per_thread(tmp_path):
    def make(name):
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=here))

    tmp_path.chmod(0o777)
    here = os.open(tmp_path, os.O_RDONLY)
    may_go = threading.Event()
    thread = threading.Thread(target=lambda: may_go.wait() and make("theirs"))
    thread.start()
    assert creds.setfsgid(1234) == 0
    assert creds.setfsuid(1234) == 0
    try:
        make("ours")
        may_go.set()
        thread.join()
    finally:
        assert creds.setfsuid(0) == 1234
        assert creds.setfsgid(0) == 1234
    assert (os.stat(tmp_path / "ours").st_uid, os.stat(tmp_path / "ours").st_gid) == (1234, 1234)
    assert os.stat(tmp_path / "theirs").st_uid == 0
    os.close(here)


@root
@pytest.mark.parametrize("keep", [False, True])
def test_keep_caps_on_setfsuid(tmp_path, keep):
    def child():
        if keep:
            creds.keep_caps_on_setfsuid()
        creds.setfsuid(1234)
        held = creds.has_cap(creds.CAP_DAC_OVERRIDE)
        in_thread = []

        def other():
            creds.setfsuid(1234)
            in_thread.append(creds.has_cap(creds.CAP_DAC_OVERRIDE))

        thread = threading.Thread(target=other)
        creds.setfsuid(0)
        thread.start()
        thread.join()
        return held, in_thread[0], creds.has_cap(creds.CAP_DAC_OVERRIDE)

    assert in_child(child) == (keep, keep, True)


def test_has_cap_is_what_proc_says():
    with open("/proc/thread-self/status") as f:
        mask = int(next(line for line in f if line.startswith("CapEff")).split()[1], 16)
    for number in range(41):
        assert creds.has_cap(number) == bool(mask >> number & 1)
        assert creds.pid_has_cap(os.getpid(), number) == bool(mask >> number & 1)


@root
def test_pid_has_cap_of_others():
    def sleeper(prepare):
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                prepare()
                os.write(write_end, b"x")
                signal.pause()
            finally:
                os._exit(1)
        os.close(write_end)
        assert os.read(read_end, 1) == b"x"
        os.close(read_end)
        return pid

    prepared = {
        "same": lambda: None,
        "user": lambda: os.setresuid(1234, 1234, 1234),
        "namespace": lambda: namespaces.unshare(namespaces.CLONE_NEWUSER),
    }
    pids = {name: sleeper(prepare) for name, prepare in prepared.items()}
    try:
        has = {name: creds.pid_has_cap(pid, creds.CAP_SYS_ADMIN) for name, pid in pids.items()}
    finally:
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    # All capabilities in a namespace of one's own making are none in ours.
    assert has == {"same": True, "user": False, "namespace": False}
    assert not creds.pid_has_cap(pids["same"], creds.CAP_SYS_ADMIN)


@root
def test_setgroups_of_thread():
    def child():
        creds.setgroups_of_thread([7, 8])
        first = os.getgroups()
        creds.setgroups_of_thread([])
        return first, os.getgroups()

    assert in_child(child) == ([7, 8], [])


def test_user_namespace_maps(tmp_path):
    def child():
        process_dumpable()
        uid, gid = os.geteuid(), os.getegid()
        namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
        namespaces.write_id_maps("self", [(0, uid, 1)], [(0, gid, 1)])
        with pytest.raises(PermissionError):
            namespaces.write_id_maps(os.getpid(), [(0, uid, 1)], [(0, gid, 1)])
        with open("/proc/self/setgroups") as f:
            return os.getuid(), os.getgid(), f.read().strip(), creds.has_cap(creds.CAP_SYS_ADMIN)

    assert in_child(child) == (0, 0, "deny", True)
    if os.geteuid() == 0:
        assert in_child(child, uid=1234) == (0, 0, "deny", True)


def process_dumpable():
    """After a change of uid, /proc/self belongs to root until the next exec; this stands for that."""
    ctypes.CDLL(None).prctl(process.PR_SET_DUMPABLE, 1, 0, 0, 0)


@root
def test_setns():
    def child():
        before = os.open("/proc/self/ns/uts", os.O_RDONLY)
        inode = os.fstat(before).st_ino
        namespaces.unshare(namespaces.CLONE_NEWUTS)
        changed = os.stat("/proc/self/ns/uts").st_ino != inode
        namespaces.setns(before, namespaces.CLONE_NEWUTS)
        return changed, os.stat("/proc/self/ns/uts").st_ino == inode

    assert in_child(child) == (True, True)


def test_process_vm_readv():
    buffer = ctypes.create_string_buffer(b"some bytes of memory")
    assert process.process_vm_readv(os.getpid(), ctypes.addressof(buffer) + 5, 5) == b"bytes"
    with pytest.raises(OSError) as caught:
        process.process_vm_readv(os.getpid(), 8, 4)
    assert caught.value.errno == errno.EFAULT


def test_set_name_and_death_signal():
    def child():
        process.set_name(b"a name that is too long")
        process.set_parent_death_signal(signal.SIGKILL)
        process.set_child_subreaper()
        with open("/proc/self/comm") as f:
            return f.read()

    assert in_child(child) == "a name that is \n"


@pytest.mark.parametrize("name", ["sh", "a) R (b", "((", ") 1 2"])
def test_cpu_in_stat(name):
    fields = [f"{number}" for number in range(1, 53)]
    fields[1] = f"({name})"
    assert process.cpu_in_stat(" ".join(fields).encode() + b"\n") == 39


def test_cpu_of():
    def child():
        cpu = max(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpu})
        return process.cpu_of(os.getpid()) == cpu

    assert in_child(child)
    with pytest.raises(OSError):
        process.cpu_of(1 << 22)
