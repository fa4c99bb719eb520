"""Lines of mountinfo as the kernel writes them."""

import os

import hypothesis.strategies as st
import pytest
from hypothesis import given

from voile.linux import files, mountinfo

LINE = (
    rb"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 propagate_from:2 - ext3 /dev/ro\134ot rw,errors=x"
    + b"\n"
)


def test_fields():
    m = mountinfo.Mount(LINE)
    assert (m.id, m.parent, m.major, m.minor) == (36, 35, 98, 0)
    assert (m.root, m.mountpoint, m.options) == (b"/mnt1", b"/mnt 2", [b"rw", b"noatime"])
    assert m.optional == [b"master:1", b"propagate_from:2"]
    assert (m.fstype, m.source, m.super_options) == (b"ext3", rb"/dev/ro\ot", b"rw,errors=x")
    assert m.device == (98, 0)


def test_no_optional_fields_and_an_empty_source():
    m = mountinfo.Mount(b"22 1 0:5 / / ro - tmpfs  rw\n")
    assert (m.optional, m.fstype, m.source, m.super_options) == ([], b"tmpfs", b"", b"rw")


def test_hyphen_elsewhere():
    m = mountinfo.Mount(b"22 1 0:5 / /- ro - tmpfs - rw\n")
    assert (m.mountpoint, m.fstype, m.source) == (b"/-", b"tmpfs", b"-")


@pytest.mark.parametrize("line", [b"", b"22 1 0:5 / / ro\n", b"x 1 0:5 / / ro - tmpfs x rw\n"])
def test_no_line_of_mountinfo(line):
    with pytest.raises(ValueError):
        mountinfo.Mount(line)


def mangle(name):
    """seq_path(" \\t\\n\\\\") and show_mnt_opts: octal, three digits."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes((byte,)) for byte in name)


@given(st.binary())
def test_unescape(name):
    assert mountinfo.unescape(mangle(name)) == name


def test_own_mounts():
    mount_id = files.statx(files.AT_FDCWD, b"/", 0, files.STATX_MNT_ID).mnt_id
    found = mountinfo.find(mount_id)
    assert found.mountpoint == b"/"
    assert found.id in [m.id for m in mountinfo.read()]
    assert (
        found.device == (os.major(os.stat("/").st_dev), os.minor(os.stat("/").st_dev))
        or found.fstype == b"btrfs"
    )
    assert mountinfo.find(1 << 30) is None
