"""Set-id bits, capabilities and groups: what the kernel's overlayfs leaves of them, we leave."""

import os

import pytest

from support.users import USER, in_child

GROUP = 4321
# VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE, CAP_NET_RAW
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def show(path):
    st = os.stat(path)
    capability = "security.capability" in os.listxattr(path)
    return oct(st.st_mode & 0o7777), st.st_uid, st.st_gid, capability


def opened(point, name, act, uid=USER):
    """A user's descriptor for writing; the file becomes set-id after that; then he acts."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([GROUP])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            fd = os.open(point / name, os.O_RDWR)
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            act(fd, point)
        finally:
            os._exit(0)
    os.read(ready[0], 1)
    os.chmod(point / name, 0o6777)
    os.setxattr(point / name, "security.capability", CAPABILITY)
    os.write(go[1], b"x")
    os.waitpid(pid, 0)
    for fd in (*ready, *go):
        os.close(fd)
    return show(point / name)


def copy(fd, point):
    source = os.open(point / "source", os.O_RDONLY)
    os.copy_file_range(source, fd, 3, 0, 0)


ACTS = {
    "write": lambda fd, point: os.write(fd, b"x"),
    "truncate": lambda fd, point: os.ftruncate(fd, 1),
    "fallocate": lambda fd, point: os.posix_fallocate(fd, 0, 100),
    "copy": copy,
}


def twice(layers, kernel_overlay, voile_overlay, function, options=""):
    seen = []
    for make in (kernel_overlay, voile_overlay):
        made = layers()
        for layer in (made.lowers[0], made.upper):
            layer.chmod(0o777)
        for name in ("low", "source"):
            (made.lowers[0] / name).write_bytes(b"12345")
        (made.upper / "up").write_bytes(b"12345")
        for path in (made.lowers[0] / "low", made.upper / "up"):
            path.chmod(0o666)
        overlay = make(made)
        point = overlay.mount(options)
        os.chmod(point, 0o777)
        seen.append(function(point))
        overlay.check()
        overlay.umount()
    assert seen[1] == seen[0]


@pytest.mark.parametrize("name", ["low", "up"])
@pytest.mark.parametrize("act", ACTS)
def test_set_id_while_open(act, name, layers, kernel_overlay, voile_overlay):
    """A file that becomes set-id while a user has it open for writing loses that when he writes."""
    twice(layers, kernel_overlay, voile_overlay, lambda point: opened(point, name, ACTS[act]))


@pytest.mark.parametrize("mode, groups", [(0o6777, ()), (0o2766, (GROUP,)), (0o2777, (GROUP,)), (0o4755, ())])
def test_chown(mode, groups, layers, kernel_overlay, voile_overlay):
    def function(point):
        result = []
        for name in ("low", "up"):
            os.chown(point / name, USER, GROUP)
            os.chmod(point / name, mode)

            def user(name=name):
                for group in (USER, GROUP):
                    try:
                        os.chown(point / name, -1, group)
                    except OSError as exc:
                        return exc.errno

            result.append(in_child(user, uid=USER, gid=USER, groups=groups))
            result.append(show(point / name))
        return result

    twice(layers, kernel_overlay, voile_overlay, function)


@pytest.mark.parametrize("groups", [(), (GROUP,)])
def test_creation_in_a_setgid_directory(groups, layers, kernel_overlay, voile_overlay):
    def function(point):
        os.mkdir(point / "d")
        os.chown(point / "d", 0, GROUP)
        os.chmod(point / "d", 0o2777)
        for name in ("d/hidden", "d/hiddendir"):
            os.mkdir(point / name)
            os.rmdir(point / name)

        def user():
            os.umask(0o022)
            os.chdir(point / "d")
            for name in ("new", "hidden"):
                os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o2777))
            fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o2775)
            os.link(f"/proc/self/fd/{fd}", "linked", src_dir_fd=0, follow_symlinks=True)
            for name in ("newdir", "hiddendir"):
                os.mkdir(name, 0o2755)
            os.mknod("fifo", 0o012777)
            for name in ("new", "fifo"):
                os.chmod(name, 0o2711)
            return {name: show(name) for name in sorted(os.listdir("."))}

        return in_child(user, uid=USER, gid=USER, groups=groups)

    twice(layers, kernel_overlay, voile_overlay, function)
