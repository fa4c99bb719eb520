"""abi.py against the system's <linux/fuse.h>: size and offset of every field, value of every constant."""

import re
import shutil
import struct
import subprocess

import pytest

from voile.fuse import abi

HEADER = "/usr/include/linux/fuse.h"
# The C names of our constants, by the prefix that we leave out.
PREFIXES = ("FUSE_", "FUSE_DEV_IOC_", "FUSE_KERNEL_", "")
# Not in any header, or ours alone.
OURS = {
    "KERNEL_VERSION",
    "KERNEL_MINOR_VERSION",
    "MINIMUM_MINOR_VERSION",
    "IN_HEADER_SIZE",
    "OUT_HEADER_SIZE",
}


def layout(fmt):
    """(offset, size) of each value of a struct format, padding left out."""
    found, offset = [], 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", fmt):
        if code in "xs":
            if code == "s":
                found.append((offset, int(count or 1)))
            offset += int(count or 1)
            continue
        for _ in range(int(count or 1)):
            found.append((offset, struct.calcsize("=" + code)))
            offset += struct.calcsize("=" + code)
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """compiled(C statements) -> the lines they print, or a skip."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("abi")
    if subprocess.run(
        [compiler, "-E", "-include", "linux/fuse.h", "-xc", "/dev/null"], capture_output=True
    ).returncode:
        pytest.skip("no <linux/fuse.h>")

    def run(lines):
        source = directory / "abi.c"
        source.write_text(
            "#include <stddef.h>\n#include <stdio.h>\n#include <sys/ioctl.h>\n#include <linux/fuse.h>\n"
            "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n"
        )
        subprocess.run([compiler, "-o", directory / "abi", source], check=True)
        return subprocess.run(
            [directory / "abi"], capture_output=True, text=True, check=True
        ).stdout.splitlines()

    return run


def header():
    with open(HEADER) as f:
        return f.read()


def in_header(name):
    return re.search(rf"struct {name} {{", header()) is not None


def test_every_struct_of_ours_is_described():
    described = {id(entry[0]) for entry in abi.STRUCTS.values()}
    parts = {"ENTRY_HEAD", "ATTR_OUT_HEAD", "CREATE_OUT", "SETXATTR_IN_COMPAT", "INIT_IN_COMPAT"}
    structs = {name: value for name, value in vars(abi).items() if isinstance(value, struct.Struct)}
    assert {name for name, value in structs.items() if id(value) not in described} == parts
    assert abi.ENTRY_HEAD.size + abi.ATTR.size == abi.ENTRY_OUT.size
    assert abi.ATTR_OUT_HEAD.size + abi.ATTR.size == abi.ATTR_OUT.size
    assert abi.CREATE_OUT.size == abi.ENTRY_OUT.size + abi.OPEN_OUT.size


@pytest.mark.parametrize("name", abi.STRUCTS)
def test_fields_match_values(name):
    packed, fields = abi.STRUCTS[name]
    assert len(layout(packed.format)) == len(fields.split())


def test_sizes_and_offsets(compiled):
    """All structs that the system's header has; an older header lacks the newest ones and newest fields."""
    checked, lines = [], []
    for name, (packed, fields) in abi.STRUCTS.items():
        if not in_header(name):
            continue
        checked.append((name, packed.size))
        lines.append(f'printf("%zu\\n", sizeof(struct {name}));')
        for field, (offset, size) in zip(fields.split(), layout(packed.format)):
            last = field.rsplit(".", 1)[-1]
            if not re.search(rf"\b{last}\b", header()):
                continue  # a field that was made from padding later: the struct's size still tells
            checked.append((f"{name}.{field}", (offset, size)))
            member = f"struct {name}, {field}"
            lines.append(f'printf("%zu %zu\\n", offsetof({member}), sizeof(((struct {name} *)0)->{field}));')
    found = [tuple(map(int, line.split())) for line in compiled(lines)]
    wrong = []
    for (name, expected), got in zip(checked, found):
        if got != (expected if isinstance(expected, tuple) else (expected,)):
            wrong.append((name, expected, got))
    assert not wrong
    assert len(checked) > 150


def test_constants(compiled):
    names = []
    for name, value in vars(abi).items():
        if not name.isupper() or not isinstance(value, int) or name in OURS:
            continue
        for prefix in PREFIXES:
            if re.search(rf"(#define\s+|^\s+){prefix}{name}\b", header(), re.MULTILINE):
                names.append((prefix + name, value))
                break
    lines = [f'printf("%llu\\n", (unsigned long long)({name}));' for name, _ in names]
    found = [int(line) for line in compiled(lines)]
    assert [(name, value) for (name, _), value in zip(names, found)] == names
    assert len(names) > 100


def test_newer_than_the_header():
    """What Debian 12's header (7.38) does not have, as in Linux 6.18's, so that a typing error shows."""
    sizes = {
        "fuse_statx": 256,
        "fuse_statx_in": 24,
        "fuse_statx_out": 288,
        "fuse_init_out": 64,
        "fuse_open_out": 16,
    }
    sizes |= {"fuse_backing_map": 16, "fuse_copy_file_range_out": 8}
    assert {name: abi.STRUCTS[name][0].size for name in sizes} == sizes
    assert layout(abi.INIT_OUT.format)[-2:] == [(36, 4), (40, 2)]  # max_stack_depth, request_timeout
    assert layout(abi.OPEN_OUT.format)[-1] == (12, 4)  # backing_id
    assert (abi.STATX, abi.COPY_FILE_RANGE_64, abi.FOPEN_PASSTHROUGH, abi.PASSTHROUGH) == (
        52,
        53,
        1 << 7,
        1 << 37,
    )
