"""The record of the last volatile mount: its file, its locks, and what is not believed."""

import fcntl
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voile.volatile import record
from voile.volatile.record import Record, Unreadable


@pytest.fixture
def work(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def sample(work, **fields):
    made = Record.of(work, work)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_as_it_was_written(work):
    made = sample(work, state=record.UNMOUNTED, error=5, since="2026", holder=7, doubt="two words: 1, 2")
    read = Record.decode(made.encode())
    assert {name: getattr(read, name) for name in record.FIELDS} == {
        name: getattr(made, name) for name in record.FIELDS
    }


@given(data=st.data())
def test_no_damage_goes_unnoticed(data):
    """One byte changed, or a part of it: as after a crash."""
    good = Record().encode()
    at = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != good[at]))
    for bad in (good[:at], good[:at] + bytes([byte]) + good[at + 1 :], good[:at] + bytes(len(good) - at)):
        if bad != good:
            with pytest.raises(Unreadable):
                Record.decode(bad)


def test_another_version():
    body = Record().encode().replace(b"voile volatile 1", b"voile volatile 2").rpartition(b"sum ")[0]
    import binascii

    with pytest.raises(Unreadable, match="another version"):
        Record.decode(body + b"sum %08x\n" % binascii.crc32(body))


def test_replaced_as_a_whole(work, tmp_path):
    assert record.read(work) is None
    first = sample(work)
    record.write(work, first, first=True)
    inode = os.stat(tmp_path / "voile.volatile").st_ino
    reader = os.open(tmp_path / "voile.volatile", os.O_RDONLY)
    first.state = record.UNMOUNTED
    record.write(work, first)
    assert os.stat(tmp_path / "voile.volatile").st_ino != inode
    assert Record.decode(os.read(reader, 4096)).state == record.MOUNTED
    os.close(reader)
    assert record.read(work).state == record.UNMOUNTED
    assert os.listdir(tmp_path) == ["voile.volatile"]
    assert os.stat(tmp_path / "voile.volatile").st_mode & 0o777 == 0o600


def test_only_ones_own_is_replaced(work):
    """A detached mount ends when the next one has taken the directories over."""
    old, new = sample(work), sample(work)
    record.write(work, old, first=True)
    record.write(work, new, first=True)
    old.state = record.UNMOUNTED
    with pytest.raises(OSError, match="another mount"):
        record.write(work, old)
    assert record.read(work).id == new.id
    record.remove(work)
    with pytest.raises(OSError, match="another mount"):
        record.write(work, old)


def test_a_lock_is_waited_for(work, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "_WAIT_S", 0.05)
    made = sample(work)
    record.write(work, made, first=True)
    update = record.Update(work, made)
    for write in (lambda: record.write(work, made), lambda: record.write(work, sample(work), first=True)):
        with pytest.raises(OSError, match="locked"):
            write()
    update.commit()
    update.close()
    record.write(work, made)
    fd = os.open(tmp_path / "voile.volatile", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(OSError, match="locked"):
        record.remove(work)
    os.close(fd)
    record.remove(work)
    assert not record.exists(work)


def test_what_lies_in_the_way(work, tmp_path):
    """Whatever it is, it is neither followed nor opened, and a mount puts its record there."""
    (tmp_path / "target").write_bytes(Record().encode())
    for make in (
        lambda path: os.symlink(tmp_path / "target", path),
        os.mkfifo,
        os.mkdir,
        lambda path: (os.mkdir(path), os.mkdir(path / "below")),
    ):
        for name in ("voile.volatile", "voile.volatile.new"):
            make(tmp_path / name)
        with pytest.raises(Unreadable):
            record.read(work)
        record.write(work, sample(work), first=True)
        assert record.read(work).state == record.MOUNTED
        record.remove(work)
    assert (tmp_path / "target").read_bytes() == Record().encode()
