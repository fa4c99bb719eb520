"""The state directory of sandboxes."""

import os
import stat

import pytest

from voile.sandbox import store as store_module
from voile.sandbox.store import Store, StoreError, default_path, valid_name


@pytest.fixture
def store(tmp_path):
    return Store(bytes(tmp_path / "state" / "voile"))


@pytest.fixture
def lower(tmp_path):
    lower = tmp_path / "project"
    lower.mkdir()
    return bytes(lower)


def test_create(store, lower):
    os.chmod(lower, 0o1751)
    os.utime(lower, ns=(1_000_000_001, 2_000_000_002))
    sandbox = store.create(None, lower)
    assert sandbox.name == b"project-1"
    about = os.stat(sandbox.upper)
    assert stat.S_IMODE(about.st_mode) == 0o1751
    assert about.st_mtime_ns == 2_000_000_002
    assert os.listdir(sandbox.upper) == os.listdir(sandbox.work) == []
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(sandbox.path).st_mode) == 0o700


def test_names_count_up(store, lower):
    assert [store.create(None, lower).name for _ in range(11)][-1] == b"project-11"
    os.makedirs(store.path + b"/project-40/upper")
    assert store.create(None, lower).name == b"project-41"


@pytest.mark.parametrize(
    "directory, name",
    [
        ("with space", b"withspace-1"),
        ("...", b"sandbox-1"),
        ("é", b"sandbox-1"),
        ("x" * 200, b"x" * 48 + b"-1"),
    ],
)
def test_name_from_any_directory(store, tmp_path, directory, name):
    (tmp_path / directory).mkdir()
    assert store.create(None, bytes(tmp_path / directory)).name == name


def test_taken_name(store, lower):
    store.create(b"mine", lower)
    with pytest.raises(StoreError, match=r"'mine' exists.*voile discard mine"):
        store.create(b"mine", lower)


@pytest.mark.parametrize("name", [b"", b".", b"..", b".x", b"-x", b"a/b", b"a b", b"a\n", b"\xff", b"x" * 65])
def test_bad_names(store, lower, name):
    assert not valid_name(name)
    with pytest.raises(StoreError) as caught:
        store.create(name, lower)
    assert "\n" not in str(caught.value).replace(os.fsdecode(name), "")
    assert not os.path.exists(store.path)


def test_failure_leaves_nothing(store, lower, monkeypatch):
    def fail(source, target):
        raise OSError(28, "full")

    monkeypatch.setattr(store_module, "_copy_attributes", fail)
    with pytest.raises(OSError):
        store.create(b"mine", lower)
    assert os.listdir(store.path) == []


def test_in_use(store, lower):
    sandbox = store.create(b"mine", lower)
    assert store.get(b"mine").in_use()
    with pytest.raises(StoreError, match="in use"):
        store.discard(b"mine")
    os.close(sandbox.lock)
    assert not store.get(b"mine").in_use()
    store.discard(b"mine")
    with pytest.raises(StoreError, match="no sandbox is named 'mine'"):
        store.discard(b"mine")


def test_lock_lives_as_long_as_the_last_process(store, lower):
    sandbox = store.create(b"mine", lower)
    wait, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go)
        os.read(wait, 1)
        os._exit(0)
    os.close(sandbox.lock)
    assert store.get(b"mine").in_use()
    os.close(go)
    os.waitpid(pid, 0)
    os.close(wait)
    assert not store.get(b"mine").in_use()


def test_list(store, lower):
    assert store.sandboxes() == []
    for name in (b"b", b"a"):
        os.close(store.create(name, lower).lock)
    os.mkdir(store.path + b"/unrelated")
    assert [sandbox.name for sandbox in store.sandboxes()] == [b"a", b"b"]


def test_meta(store, lower):
    sandbox = store.create(b"mine", lower)
    assert sandbox.read_meta() == {}
    sandbox.write_meta({"lower": os.fsdecode(b"/\xff"), "command": ["é"]})
    meta = sandbox.read_meta()
    assert os.fsencode(meta["lower"]) == b"/\xff"
    assert meta["command"] == ["é"]
    with open(sandbox.path + b"/meta.json", "w") as file:
        file.write("[1]")
    assert sandbox.read_meta() == {}


def test_discard_what_resists(store, lower):
    sandbox = store.create(b"mine", lower)
    os.makedirs(sandbox.work + b"/work/incompat/volatile")
    os.makedirs(sandbox.upper + b"/cache/module")
    with open(sandbox.upper + b"/cache/module/file", "w"):
        pass
    os.symlink(lower, sandbox.upper + b"/link")
    os.mkfifo(sandbox.upper + b"/fifo")
    for path in (b"/upper/cache/module", b"/upper/cache", b"/work/work/incompat"):
        os.chmod(sandbox.path + path, 0o555)
    os.chmod(sandbox.work + b"/work", 0)
    os.close(sandbox.lock)
    store.discard(b"mine")
    assert os.listdir(store.path) == []
    assert os.path.isdir(lower)


def test_discard_deeper_than_a_path_can_be(store, lower):
    sandbox = store.create(b"mine", lower)
    os.close(sandbox.lock)
    directory = os.open(sandbox.upper, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=directory)
        below = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.close(directory)
    store.discard(b"mine")
    assert os.listdir(store.path) == []


def test_interrupted_discard_is_finished_by_the_next(store, lower):
    os.makedirs(store.path + b"/.discarded-1-old/upper/x")
    os.close(store.create(b"mine", lower).lock)
    store.discard(b"mine")
    assert os.listdir(store.path) == []


def test_default_path(monkeypatch):
    monkeypatch.delenv("VOILE_STATE", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert default_path() == b"/xdg/voile"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/joe")
    assert default_path() == b"/home/joe/.local/state/voile"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_path() == b"/var/lib/voile"
    monkeypatch.setenv("VOILE_STATE", "/elsewhere")
    assert default_path() == b"/elsewhere"
