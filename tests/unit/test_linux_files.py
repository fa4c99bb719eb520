"""The system calls, on whatever file system the temporary directory is."""

import errno
import os
import stat

import pytest

from support.users import in_child
from voile.linux import files, libc, trees

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def raises(code):
    return pytest.raises(OSError, match=rf"\[Errno {code}\]")


@pytest.fixture
def here(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def file(here):
    fd = os.open("file", os.O_RDWR | os.O_CREAT, 0o644, dir_fd=here)
    os.write(fd, b"x" * 10000)
    yield fd
    os.close(fd)


def test_openat2(here, tmp_path):
    fd = files.openat2(here, b"new", os.O_RDWR | os.O_CREAT, 0o600, files.RESOLVE_BENEATH)
    assert not os.get_inheritable(fd)
    os.close(fd)
    assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o600
    os.symlink("new", tmp_path / "link")
    with raises(errno.EXDEV):
        files.openat2(here, b"../x", os.O_RDONLY, 0, files.RESOLVE_BENEATH)
    with raises(errno.ELOOP) as caught:
        files.openat2(here, b"link", os.O_RDONLY, 0, files.RESOLVE_NO_SYMLINKS)
    assert caught.value.filename == b"link"
    with raises(errno.EINVAL):
        files.openat2(here, b"new", os.O_RDONLY, 0o600)


def test_nul_in_a_name_is_refused(here, file):
    with raises(errno.EINVAL):
        files.openat2(here, b"file\0x", os.O_RDONLY)
    with raises(errno.EINVAL):
        files.renameat2(here, b"file", here, b"a\0b")
    with raises(errno.EINVAL):
        files.statx(here, b"file\0")


def test_renameat2(here, file, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(FileExistsError):
        files.renameat2(here, b"file", here, b"other", files.RENAME_NOREPLACE)
    files.renameat2(here, b"file", here, b"other", files.RENAME_EXCHANGE)
    assert (tmp_path / "file").is_dir() and (tmp_path / "other").is_file()
    files.renameat2(here, b"other", here, b"third")
    assert sorted(os.listdir(tmp_path)) == ["file", "third"]


def test_linkat(here, file, tmp_path):
    files.linkat(here, b"file", here, b"two")
    files.linkat(files.AT_FDCWD, b"/proc/self/fd/%d" % file, here, b"three", files.AT_SYMLINK_FOLLOW)
    assert os.fstat(file).st_nlink == 3
    with pytest.raises(FileExistsError):
        files.linkat(here, b"file", here, b"two")


def test_statx(here, file):
    got = files.statx(here, b"file", files.AT_SYMLINK_NOFOLLOW, files.STATX_BASIC_STATS | files.STATX_MNT_ID)
    st = os.stat("file", dir_fd=here)
    for name in (
        "ino",
        "mode",
        "nlink",
        "uid",
        "gid",
        "size",
        "blocks",
        "blksize",
        "atime_ns",
        "mtime_ns",
        "ctime_ns",
    ):
        assert getattr(got, name) == getattr(st, f"st_{name}"), name
    assert os.makedev(got.dev_major, got.dev_minor) == st.st_dev
    assert got.mask & files.STATX_BASIC_STATS == files.STATX_BASIC_STATS
    assert files.statx(file, b"", files.AT_EMPTY_PATH).ino == st.st_ino
    assert files.statx_attributes(here, b"file") == got.attributes
    null = files.statx(files.AT_FDCWD, b"/dev/null")
    assert (null.rdev_major, null.rdev_minor) == (1, 3)
    with pytest.raises(FileNotFoundError):
        files.statx(here, b"none")


@pytest.mark.parametrize("ns", [0, 1, 1_700_000_000_123_456_789, -1, -1_500_000_000])
def test_utimensat(here, file, ns):
    files.utimensat(here, b"file", ns, 7)
    st = os.fstat(file)
    assert (st.st_atime_ns, st.st_mtime_ns) == (ns, 7)
    files.utimensat(file, None, files.UTIME_OMIT, ns)
    st = os.fstat(file)
    assert (st.st_atime_ns, st.st_mtime_ns) == (ns, ns)


def test_utimensat_now_symlink_and_o_path(here, file, tmp_path):
    files.utimensat(here, b"file", 1, 1)
    os.symlink("file", tmp_path / "link")
    files.utimensat(here, b"link", 3, 3, files.AT_SYMLINK_NOFOLLOW)
    assert os.lstat(tmp_path / "link").st_mtime_ns == 3
    path = os.open(tmp_path / "file", os.O_PATH)
    files.utimensat(path, b"", 5, files.UTIME_NOW, files.AT_EMPTY_PATH)
    os.close(path)
    st = os.fstat(file)
    assert st.st_atime_ns == 5
    assert st.st_mtime_ns > 1_600_000_000 * 10**9


@pytest.mark.parametrize("kernel", ["has", "lacks"])
def test_fchmodat2(here, file, tmp_path, monkeypatch, kernel):
    if kernel == "lacks":
        monkeypatch.setattr(libc, "NR_FCHMODAT2", -1)
    os.symlink("file", tmp_path / "link")
    files.fchmodat2(here, b"file", 0o4751, files.AT_SYMLINK_NOFOLLOW)
    assert stat.S_IMODE(os.fstat(file).st_mode) == 0o4751
    files.fchmodat2(here, b"link", 0o640)
    assert stat.S_IMODE(os.fstat(file).st_mode) == 0o640
    files.fchmodat2(file, b"", 0o600, files.AT_EMPTY_PATH)
    assert stat.S_IMODE(os.fstat(file).st_mode) == 0o600
    with raises(errno.EOPNOTSUPP):
        files.fchmodat2(here, b"link", 0o600, files.AT_SYMLINK_NOFOLLOW)
    with pytest.raises(FileNotFoundError):
        files.fchmodat2(here, b"none", 0o600)


def test_getdents64(here, tmp_path):
    names = {f"{i}-é".encode() for i in range(300)}
    for name in names:
        os.close(os.open(name, os.O_CREAT, dir_fd=here))
    found = {}
    buffer = bytearray(4096)
    calls = 0
    while count := files.getdents64(here, buffer):
        calls += 1
        at = 0
        while at < count:
            length = int.from_bytes(buffer[at + 16 : at + 18], "little")
            name = bytes(buffer[at + 19 : at + length]).split(b"\0")[0]
            found[name] = int.from_bytes(buffer[at : at + 8], "little")
            at += length
    assert calls > 1
    assert set(found) == names | {b".", b".."}
    assert found[b"7-\xc3\xa9"] == os.stat(tmp_path / "7-é").st_ino


def test_sync_calls(here, file):
    files.syncfs(here)
    files.sync_file_range(file, 0, 4096, files.SYNC_FILE_RANGE_WRITE)
    files.sync_file_range(file, 1 << 40, 1, files.SYNC_FILE_RANGE_WAIT_BEFORE)
    with raises(errno.EBADF):
        files.syncfs(-1)
    with raises(errno.EINVAL):
        files.sync_file_range(file, 0, 1, 1 << 20)


def test_statfs_type():
    fd = os.open("/proc", os.O_RDONLY)
    assert files.statfs_type(fd) == 0x9FA0
    assert files.fs_uuid(fd) is None
    os.close(fd)


@pytest.mark.parametrize("uid", [None, pytest.param(1234, marks=as_root)])
def test_trees_remove(here, tmp_path, uid):
    def child():
        build()
        trees.remove(here, b"tree")
        trees.remove(here, b"tree")
        return os.listdir(here)

    def build():
        os.fchdir(here)
        for directory in ("tree", "tree/a", "tree/a/b"):
            os.mkdir(directory)
        os.close(os.open("outside", os.O_CREAT))
        os.close(os.open("tree/a/b/file", os.O_CREAT))
        os.symlink("../outside", "tree/link")
        os.symlink("..", "tree/dirlink")
        os.mkfifo("tree/a/fifo")
        os.chmod("tree/a/b", 0)
        os.chmod("tree/a", 0o500)

    os.fchmod(here, 0o777)
    assert in_child(child, uid=uid) == ["outside"]


def test_trees_remove_a_very_deep_tree(here, tmp_path):
    fd = os.dup(here)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    trees.remove(here, b"d")
    assert os.listdir(tmp_path) == []


def test_has_xattrat(here, file, monkeypatch):
    os.setxattr(file, "user.there", b"")
    os.symlink("file", "link", dir_fd=here)

    def answers():
        there, other = b"user.there", b"user.other"
        asked = [(b"file", there), (b"file", other), (b"link", there), (b"no", there)]
        return [files.has_xattrat(here, *each) for each in asked]

    assert answers() == [True, False, False, False]
    # Before 6.13.
    monkeypatch.setattr(libc, "NR_GETXATTRAT", 9999)
    assert answers() == [True, False, False, False]
