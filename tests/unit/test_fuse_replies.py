"""Values → reply bytes, read back field by field."""

import os
import stat

import pytest

from voile.fuse import abi, replies


@pytest.fixture
def st(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x" * 5000)
    os.utime(path, ns=(-1, 1_700_000_000_123_456_789))
    return path.stat()


def fields(name, data):
    packed, names = abi.STRUCTS[name]
    return dict(zip(names.split(), packed.unpack(data)))


def test_attributes(st):
    got = fields("fuse_attr", replies.attr_from_stat(st, 99, 3))
    assert (got["ino"], got["nlink"], got["size"], got["mode"]) == (99, 3, 5000, st.st_mode)
    assert (got["atime"], got["atimensec"]) == (-1, 999_999_999)
    assert (got["mtime"], got["mtimensec"]) == (1_700_000_000, 123_456_789)


def test_device_numbers(tmp_path, st):
    for major, minor in ((1, 3), (259, 70_000), (0, 0)):
        fake = os.stat_result((stat.S_IFCHR, *st[1:10]), {"st_rdev": os.makedev(major, minor), **_extras(st)})
        got = fields("fuse_attr", replies.attr_from_stat(fake, 1, 1))["rdev"]
        # new_encode_dev(), include/linux/kdev_t.h
        assert got == (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def _extras(st):
    return {
        name: getattr(st, name)
        for name in ("st_blksize", "st_blocks", "st_atime_ns", "st_mtime_ns", "st_ctime_ns")
    }


def test_one_step_and_two_steps_agree(st):
    attr = replies.attr_from_stat(st, 99, 3)
    assert replies.entry_from_stat(7, 1, 10, 20, st, 99, 3) == replies.entry_out(7, 1, 10, 0, 20, 0, attr)
    assert replies.attr_out_from_stat(20, st, 99, 3) == replies.attr_out(20, 0, attr)


def test_entry(st):
    got = fields("fuse_entry_out", replies.entry_out(7, 1, 10, 11, 20, 21, replies.attr_from_stat(st, 99, 3)))
    wanted = {"nodeid": 7, "generation": 1, "entry_valid": 10, "entry_valid_nsec": 11}
    wanted |= {"attr_valid": 20, "attr_valid_nsec": 21, "attr.ino": 99, "attr.nlink": 3}
    assert {name: got[name] for name in wanted} == wanted
    assert fields("fuse_entry_out", replies.negative_entry(10))["nodeid"] == 0


def test_create_is_entry_and_open():
    body = replies.create_out(replies.negative_entry(1), 5, abi.FOPEN_PASSTHROUGH, 9)
    assert fields("fuse_open_out", body[128:]) == {
        "fh": 5,
        "open_flags": abi.FOPEN_PASSTHROUGH,
        "backing_id": 9,
    }


def test_statx():
    body = replies.statx_out(
        1, 2, 0xFFF, 4096, 0, 1, 2, 3, 0o100644, 99, 5, 8, 0, -1, 1_000_000_001, 0, 5 * 10**9, 8, 1
    )
    got = fields("fuse_statx_out", body)
    assert (got["stat.atime.tv_sec"], got["stat.atime.tv_nsec"]) == (-1, 999_999_999)
    assert (got["stat.btime.tv_sec"], got["stat.btime.tv_nsec"]) == (1, 1)
    assert (got["stat.ino"], got["stat.rdev_major"], got["stat.rdev_minor"]) == (99, 8, 1)


def parse(data, plus):
    found = []
    while data:
        entry, data = (data[:128], data[128:]) if plus else (None, data)
        ino, off, length, type = abi.DIRENT.unpack_from(data)
        found.append((ino, off, type, data[24 : 24 + length], entry))
        used = 24 + length
        pad = -(used + (128 if plus else 0)) % 8
        assert data[used : used + pad] == bytes(pad)
        data = data[used + pad :]
    return found


@pytest.mark.parametrize("plus", [False, True])
def test_directory_records(plus):
    entry = replies.negative_entry(3)
    names = [b"n" * length for length in range(1, 256)]
    records = replies.DirentBuffer(1 << 20, plus)
    for off, name in enumerate(names, 1):
        assert records.add(1000 + off, off, 8, name, entry if plus else None)
    wanted = [(1000 + off, off, 8, name, entry if plus else None) for off, name in enumerate(names, 1)]
    assert parse(records.bytes(), plus) == wanted
    assert len(records) == 255


@pytest.mark.parametrize("plus", [False, True])
def test_directory_records_never_exceed_the_room(plus):
    records = replies.DirentBuffer(1000, plus)
    count = 0
    while records.add(1, count, 4, b"name-%d" % count):
        count += 1
    assert len(parse(records.bytes(), plus)) == count
    assert 1000 - 160 < len(records.bytes()) <= 1000


def test_plus_without_entry_asks_for_a_lookup():
    records = replies.DirentBuffer(1000, True)
    records.add(2, 1, 4, b".")
    assert parse(records.bytes(), True)[0][4] == bytes(128)  # nodeid 0
