"""A whole tree as a dictionary: what a mount shows, and what lies in the layers beneath it."""

import errno
import hashlib
import os
import stat
import struct

from differential.tree import plain_stat, when
from support import syscalls


def _xattrs(path):
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return {}
    found = {}
    for name in sorted(names):
        try:
            found[name] = os.getxattr(path, name, follow_symlinks=False)
        except OSError as e:
            found[name] = errno.errorcode[e.errno]
    return found


def _flags(path, st):
    """Those of chattr(1); with immutable and append-only, which must not be set in an upper layer."""
    if not stat.S_ISREG(st.st_mode) and not stat.S_ISDIR(st.st_mode):
        return None
    try:
        return syscalls.get_flags(path) & syscalls.FS_USER_FL
    except OSError as e:
        return errno.errorcode[e.errno]


def _content(path, st):
    if stat.S_ISREG(st.st_mode):
        digest = hashlib.sha1()
        try:
            with open(path, "rb", buffering=0) as f:
                while block := f.read(1 << 20):
                    digest.update(block)
        except OSError as e:
            return errno.errorcode[e.errno]  # a metacopy file without data
        return digest.hexdigest()
    return os.readlink(path) if stat.S_ISLNK(st.st_mode) else None


def merged(root=b"."):
    """What the mount shows: {path: properties}. Stands in the root of the mount."""
    found = {}
    device = os.lstat(root).st_dev

    def visit(path):
        try:
            st = os.lstat(path)
        except OSError as e:
            found[path] = {"kind": f"error {errno.errorcode[e.errno]}"}
            return
        entry = plain_stat(st)
        entry["content"] = _content(path, st)
        entry["xattrs"] = _xattrs(path)
        entry["one device"] = st.st_dev == device
        entry["ino"] = st.st_ino
        found[path] = entry
        if not stat.S_ISDIR(st.st_mode):
            return
        try:
            listed = syscalls.list_directory(path)
        except OSError as e:
            entry["names"] = errno.errorcode[e.errno]
            return
        names = [n for n, _, _, _ in listed]
        entry["names"] = sorted(names)
        entry["d_type wrong"], entry["d_ino wrong"] = [], []
        for name, ino, _offset, kind in sorted(listed):
            if name == b".." and path == root:
                continue  # beyond the mount
            try:
                st = os.lstat(os.path.join(path, name))
            except OSError:
                continue  # said below
            if kind != stat.S_IFMT(st.st_mode) >> 12:
                entry["d_type wrong"].append((name, kind))
            if ino != st.st_ino:
                entry["d_ino wrong"].append(name)
        for name in sorted(names):
            if name not in (b".", b".."):
                visit(os.path.join(path, name))

    visit(root)
    return found


# What voile alone writes down, beside `work`, about volatile mounts.
RECORD = b"voile.volatile"


def raw(root, origins=None, times=True):
    """What lies in a layer or a work directory. `origins` (see handles) makes origin xattrs comparable."""
    root = os.fsencode(root)
    found = {}
    for directory, names, files in os.walk(root):
        for name in [b"", *names, *files] if directory == root else names + files:
            path = os.path.join(directory, name) if name else root
            st = os.lstat(path)
            relative = os.path.relpath(path, root)
            if relative == RECORD:
                continue
            if stat.S_ISCHR(st.st_mode) and st.st_rdev == 0:
                found[relative] = {"kind": "whiteout"}
                continue
            entry = plain_stat(st)
            entry["content"] = _content(path, st)
            entry["flags"] = _flags(path, st)
            entry["xattrs"] = {k: _overlay_value(k, v, origins) for k, v in _xattrs(path).items()}
            # Random, and written by the kernel only (uuid=auto): nothing that has to be alike.
            entry["xattrs"].pop("trusted.overlay.uuid", None)
            entry["xattrs"].pop("user.overlay.uuid", None)
            if times:
                entry["ctime"] = when(st.st_ctime_ns)
            found[relative] = entry
    return found


def handles(layers):
    """{file handle: where it lies} for every object in the lower layers."""
    found = {}
    for number, lower in enumerate(layers.lowers):
        top = os.fsencode(lower)
        for directory, names, files in os.walk(top):
            for name in [b"", *names, *files] if directory == top else names + files:
                path = os.path.join(directory, name) if name else top
                try:
                    found[syscalls.file_handle(path)] = f"l{number}/" + os.fsdecode(
                        os.path.relpath(path, top)
                    )
                except OSError:
                    pass  # a file system without handles
    return found


def _overlay_value(name, value, origins):
    """An origin is a file handle (struct ovl_fb); say which object it means."""
    if origins is None or not name.endswith("overlay.origin") or not value:
        return value
    version, magic, length, flags, kind = struct.unpack_from("BBBBB", value)
    where = origins.get((kind, value[21:]), f"nowhere ({value.hex()})")
    return f"origin v{version} magic {magic:#x} len {length} flags {flags} uuid {value[5:21].hex()}: {where}"


def index_entry(path, origins):
    """The path of something in a work directory; the name of an index entry is a file handle."""
    directory, _, name = path.rpartition(b"/")
    if directory != b"index":
        return path
    try:
        value = bytes.fromhex(name.decode())
        where = origins.get((value[4], value[21:]))
    except (ValueError, IndexError):
        where = None
    return b"index/" + os.fsencode(where or name)


def _unlike(a, b):
    """Of two dictionaries only what is unlike."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return a, b
    same = {key for key in a if key in b and a[key] == b[key]}
    return tuple({key: value for key, value in each.items() if key not in same} for each in (a, b))


def differences(expected, got, ignore=()):
    """Lines that say where two snapshots differ. Where the kernel's d_ino is wrong ours may be right."""
    lines = []
    for path in sorted(expected.keys() | got.keys()):
        name = os.fsdecode(path)
        if path not in got:
            lines.append(f"{name!r}: missing ({expected[path]['kind']})")
        elif path not in expected:
            lines.append(f"{name!r}: too much ({got[path]['kind']})")
        else:
            a, b = expected[path], got[path]
            for key in sorted(a.keys() | b.keys()):
                if key == "nlink" and a.get("kind") == "dir" and "nlink of a directory" in ignore:
                    continue
                if key in ignore or a.get(key) == b.get(key):
                    continue
                if key in ("d_ino wrong", "d_type wrong") and not b.get(key):
                    continue
                x, y = _unlike(a.get(key), b.get(key))
                lines.append(f"{name!r}: {key}: expected {x!r}, got {y!r}")
    return lines
