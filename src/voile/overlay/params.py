"""Mount options: one table, parsed into one `Params` object.

Option names, values, defaults and conflicts are those of the kernel's overlayfs
(fs/overlayfs/params.c; Documentation/filesystems/overlayfs.rst), the generic flags those of
mount(8).  An option that the kernel knows and voile does not implement is refused by name,
unless its value means "off"; nothing is ignored except what mount(8) itself declares to be
for user space only.
"""

from __future__ import annotations

import os

from voile.linux.mount import (
    MS_DIRSYNC,
    MS_LAZYTIME,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_RELATIME,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
)
from voile.volatile import policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    Handler = Callable[["Params", bytes, "bytes | None"], None]

_ATIME = MS_NOATIME | MS_RELATIME | MS_STRICTATIME


class UsageError(Exception):
    """The options cannot be used as given; `str()` of it is one line for the user."""


class Params:
    """What a mount was asked to be.

    Attributes (paths are as the user gave them until `check`, absolute afterwards):

    lowerdir            lower layers, top first
    datadir             data-only layers, below these, top first
    upperdir, workdir   None on a read-only mount
    fsync               "auto", "strict" or "volatile" (`volatile` is the same as fsync=volatile)
    errors, error_code  what a volatile mount does when data has been lost (see volatile.policy)
    probe               how errors are seen, one of volatile.policy.PROBES
    reuse               "off", or "auto": a volatile upper may be used again where it is provably whole
    hold                whether a process keeps the error probe after the unmount, so that this can be proven
    syncfs              how syncfs(2) is made to answer, one of volatile.policy.SYNCFS
    poll                seconds between two looks whether data has been lost; 0: only when somebody syncs
    userxattr           user.overlay.* in place of trusted.overlay.*
    redirect_dir        "on", "follow" or "nofollow", after `check` ("off" is resolved there)
    metacopy            whether a change of metadata copies up metadata only
    xino                "on", "off" or "auto"
    aufs_whiteouts      ".wh." names in the layers are whiteouts
    index               hard links of lower layers survive their copy-up
    uuid                "off", "null" or "auto"
    allow_other, default_permissions, readonly
    timeout             seconds that the kernel may cache names and attributes; None: for ever
    ms_flags            generic flags for mount(2), without MS_RDONLY
    source, subtype     what mountinfo shows as source, and after "fuse."
    hidden              absolute directories in layers that must not show (not an option)
    passthrough, fuseblk, cpu_follow   switches to rule out a part when looking for a fault
    """

    __slots__ = (
        "allow_other", "aufs_whiteouts", "cpu_follow", "datadir", "default_permissions", "error_code",
        "errors", "fsync", "fuseblk", "hidden", "hold", "index", "lowerdir", "lowerdir_list", "metacopy",
        "ms_flags", "passthrough", "poll", "probe", "readonly", "redirect_dir", "reuse", "source", "subtype",
        "syncfs", "timeout", "upperdir", "userxattr", "uuid", "workdir", "xino",
    )  # fmt: skip

    def __init__(self) -> None:
        self.lowerdir: list[bytes] = []
        self.datadir: list[bytes] = []
        # The layers come from lowerdir=, and none can be added to them.
        self.lowerdir_list = False
        self.upperdir: bytes | None = None
        self.workdir: bytes | None = None
        self.fsync = "auto"
        self.errors = policy.CONTINUE
        self.error_code = policy.LATEST
        self.poll = 1.0
        self.probe = policy.AUTO
        self.reuse = "off"
        self.hold = False
        self.syncfs = policy.AUTO
        self.userxattr = False
        self.redirect_dir = ""
        self.metacopy = False
        self.xino = "auto"
        self.aufs_whiteouts = False
        self.index = False
        self.uuid = "auto"
        self.allow_other = False
        self.default_permissions = True
        self.readonly = False
        self.timeout: float | None = None
        self.ms_flags = 0
        self.source = b"voile"
        self.subtype = b"voile"
        self.hidden: list[bytes] = []
        self.passthrough = True
        self.fuseblk = True
        self.cpu_follow = True

    @property
    def volatile(self) -> bool:
        """True when no sync may reach the upper file system."""
        return self.fsync == "volatile"

    def check(self) -> Params:
        """Settle what depends on several options, as ovl_fs_params_verify() does.

        Raises UsageError for a combination that cannot be mounted.
        """
        if not self.lowerdir:
            if self.datadir:
                raise UsageError("at least one lower directory that is not data-only is needed")
            raise UsageError("option 'lowerdir' is missing")
        if self.upperdir is None:
            # The kernel warns that these are useless without an upper layer, and goes on.
            self.workdir = None
            self.readonly = True
            self.index = False
            if self.fsync == "volatile":
                self.fsync = "auto"
        elif self.workdir is None:
            raise UsageError("option 'workdir' is missing (upperdir needs one on the same file system)")
        elif self.errors != policy.CONTINUE and not self.volatile:
            # It has no error state of its own: each error is told to those who sync.
            raise UsageError(f"option 'errors={self.errors}' needs 'volatile'")
        elif self.probe != policy.AUTO and not self.volatile:
            raise UsageError(f"option 'probe={self.probe}' needs 'volatile'")
        elif (self.reuse != "off" or self.hold) and not self.volatile:
            option = "hold=on" if self.hold else f"reuse={self.reuse}"
            raise UsageError(f"option '{option}' needs 'volatile'")
        elif self.hold and self.probe == policy.INODE:
            raise UsageError("conflicting options: hold=on and probe=inode, which does not see all errors")
        elif self.syncfs != policy.AUTO and not self.volatile:
            raise UsageError(f"option 'syncfs={self.syncfs}' needs 'volatile'")
        if self.syncfs == policy.FUSEBLK and not self.fuseblk:
            raise UsageError("conflicting options: syncfs=fuseblk and fuseblk=off")
        self._make_absolute()
        if self.metacopy:
            self._check_metacopy()
        if self.userxattr:
            # user.* xattrs can be set by anybody who may write a layer: never follow those redirects.
            # off follows, too, see below.
            if self.redirect_dir in ("on", "follow", "off"):
                raise UsageError(f"conflicting options: userxattr and redirect_dir={self.redirect_dir}")
            self.redirect_dir = "nofollow"
        elif self.redirect_dir in ("", "off"):
            # CONFIG_OVERLAY_FS_REDIRECT_ALWAYS_FOLLOW is the kernel's default: off still follows.
            self.redirect_dir = "follow"
        return self

    def _check_metacopy(self) -> None:
        """metacopy=on needs redirect_dir=on; without an upper layer, redirects that are followed."""
        allowed = ("", "on") if self.upperdir is not None else ("", "on", "follow", "off")
        if self.redirect_dir not in allowed:
            raise UsageError(f"conflicting options: metacopy=on and redirect_dir={self.redirect_dir}")
        if self.userxattr:
            raise UsageError("conflicting options: userxattr and metacopy=on")
        self.redirect_dir = "on"

    def _make_absolute(self) -> None:
        # The daemon changes to "/", and `voile status` shows these.  Not normalised: "a/.." may follow a
        # symlink.
        here = os.getcwdb()
        self.lowerdir = [os.path.join(here, path) for path in self.lowerdir]
        self.datadir = [os.path.join(here, path) for path in self.datadir]
        if self.upperdir is not None:
            self.upperdir = os.path.join(here, self.upperdir)
        if self.workdir is not None:
            self.workdir = os.path.join(here, self.workdir)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def unescape(raw: bytes) -> bytes:
    """Drop one level of backslashes, as ovl_unescape() does: any escaped byte stands for itself."""
    if b"\\" not in raw:
        return raw
    out = bytearray()
    escaped = False
    for byte in raw:
        if byte == 0x5C and not escaped:
            escaped = True
        else:
            out.append(byte)
            escaped = False
    return bytes(out)


def split_escaped(raw: bytes, separator: bytes) -> list[bytes]:
    r"""Split at each `separator` byte that no backslash precedes; the backslashes are kept."""
    if b"\\" not in raw:
        return raw.split(separator)
    parts = []
    start = at = 0
    while at < len(raw):
        if raw[at] == 0x5C:
            at += 1
        elif raw[at] == separator[0]:
            parts.append(raw[start:at])
            start = at + 1
        at += 1
    parts.append(raw[start:])
    return parts


def escape(path: bytes) -> bytes:
    """Write a path so that it survives as one item of lowerdir= (or as upperdir=, workdir=)."""
    return path.replace(b"\\", b"\\\\").replace(b":", b"\\:").replace(b",", b"\\,")


def split_options(raw: bytes) -> Iterator[bytes]:
    r"""Split an options string at commas.

    `\,` does not split (ovl_next_opt() in the kernel), nor do commas inside the quotes of an
    SELinux context (`context="u:r:t:s0:c1,c2"`, as mount(8) and container engines write it).
    """
    held: list[bytes] = []
    for item in split_escaped(raw, b","):
        if held:
            held.append(item)
            if item.endswith(b'"'):
                yield b",".join(held)
                held = []
        elif b'context="' in item and item.split(b"=", 1)[0] in _CONTEXTS and not _closed(item):
            held = [item]
        elif item:
            yield item
    if held:
        raise UsageError(f"option '{_text(held[0])}': the quote is not closed")


def _closed(item: bytes) -> bool:
    return item.endswith(b'"') and item.count(b'"') > 1


def parse(options: bytes, base: Params | None = None, *, sloppy: bool = False) -> Params:
    """Parse one `-o` string (`a,b=c,…`) on top of `base` (changed and returned) or the defaults.

    Later options win, as in mount(8).  Call `Params.check` after the last string.  `sloppy` (mount -s)
    tolerates options that are unknown.
    Raises UsageError naming the option that is unknown, unsupported or has a bad value.
    """
    params = Params() if base is None else base
    for item in split_options(options):
        name, equals, value = item.partition(b"=")
        handler = _TABLE.get(name)
        if handler is None:
            # x-: for user-space programs, never for the file system (mount(8)).
            if sloppy or name[:2] in (b"x-", b"X-"):
                continue
            raise UsageError(f"unknown option '{_text(name)}'")
        handler(params, name, value if equals else None)
    return params


# Handlers: (params, name, value or None when there was no "=").


def _need(name: bytes, value: bytes | None) -> bytes:
    if not value:
        raise UsageError(f"option '{_text(name)}' needs a value")
    return value


def _no_value(name: bytes, value: bytes | None) -> None:
    if value is not None:
        raise UsageError(f"option '{_text(name)}' takes no value")


def _bad(name: bytes, value: bytes | None, allowed: str) -> UsageError:
    return UsageError(f"option '{_text(name)}': '{_text(value or b'')}' is not one of {allowed}")


def _lowerdir(params: Params, name: bytes, value: bytes | None) -> None:
    # ovl_parse_param_lowerdir(): a later lowerdir= replaces an earlier one.
    items = split_escaped(_need(name, value), b":")
    if not items[0] or not items[-1]:
        raise UsageError("option 'lowerdir': empty item (a leading or trailing ':'; write '\\:' for a colon)")
    lowers: list[bytes] = []
    datas: list[bytes] = []
    before = b"-"
    for item in items:
        if item and (datas or not before):
            if before:
                raise UsageError("option 'lowerdir': a regular layer cannot follow data-only layers ('::')")
            datas.append(unescape(item))
        elif item:
            lowers.append(unescape(item))
        elif not before:
            raise UsageError("option 'lowerdir': more than two ':' in a row")
        before = item
    params.lowerdir, params.datadir, params.lowerdir_list = lowers, datas, True


def _layer_add(params: Params, name: bytes, value: bytes | None) -> None:
    # ovl_mount_dir_check(); the path is as it is, but for the commas (ovl_mount_dir_noesc()).
    path = _need(name, value).replace(b"\\,", b",")
    if params.lowerdir_list:
        raise UsageError(f"option '{_text(name)}' cannot follow 'lowerdir'")
    if name == b"datadir+":
        params.datadir.append(path)
    elif params.datadir:
        raise UsageError("option 'lowerdir+': a regular layer cannot follow data-only layers (datadir+)")
    else:
        params.lowerdir.append(path)


def _path(attribute: str) -> Handler:
    def handler(params: Params, name: bytes, value: bytes | None) -> None:
        setattr(params, attribute, unescape(_need(name, value)))

    return handler


def _flag(attribute: str, state: object) -> Handler:
    def handler(params: Params, name: bytes, value: bytes | None) -> None:
        _no_value(name, value)
        setattr(params, attribute, state)

    return handler


def _choice(attribute: str, *allowed: str) -> Handler:
    def handler(params: Params, name: bytes, value: bytes | None) -> None:
        text = _text(value or b"")
        if text not in allowed:
            raise _bad(name, value, ", ".join(allowed))
        setattr(params, attribute, text)

    return handler


def _on_off(attribute: str) -> Handler:
    def handler(params: Params, name: bytes, value: bytes | None) -> None:
        if value not in (b"on", b"off"):
            raise _bad(name, value, "on, off")
        setattr(params, attribute, value == b"on")

    return handler


def _only(*harmless: bytes) -> Handler:
    """Return a handler for an option of the kernel whose other values voile does not implement."""

    def handler(params: Params, name: bytes, value: bytes | None) -> None:
        if value not in harmless:
            shown = _text(name) if value is None else f"{_text(name)}={_text(value)}"
            raise UsageError(f"option '{shown}' is not supported")

    return handler


def _uuid(params: Params, name: bytes, value: bytes | None) -> None:
    # auto stores nothing on an upper that has been used before; on is about f_fsid, which FUSE does not carry
    _only(b"off", b"null", b"auto")(params, name, value)
    params.uuid = _text(value or b"")


def _set_ms(mask: int, clear: int = 0) -> Handler:
    def handler(params: Params, name: bytes, value: bytes | None) -> None:
        _no_value(name, value)
        params.ms_flags = params.ms_flags & ~clear | mask

    return handler


def _fsync(params: Params, name: bytes, value: bytes | None) -> None:
    # 0 and 1 are fuse-overlayfs's spelling; container engines pass fsync=0 from their configuration.
    known = {b"auto": "auto", b"strict": "strict", b"volatile": "volatile", b"0": "volatile", b"1": "auto"}
    if value not in known:
        raise _bad(name, value, "auto, strict, volatile")
    params.fsync = known[value]


def _seconds(attribute: str) -> Handler:
    def handler(params: Params, name: bytes, value: bytes | None) -> None:
        try:
            seconds = float(_need(name, value))
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < 1 << 32:  # also refuses nan; fuse_entry_out counts seconds in a u64
            raise UsageError(f"option '{_text(name)}': '{_text(value or b'')}' is not a number of seconds")
        setattr(params, attribute, seconds)

    return handler


def _context(params: Params, name: bytes, value: bytes | None) -> None:
    # Container engines always pass one.  Where SELinux is off it means nothing; where it is on,
    # dropping a label silently would be a hole.
    if os.path.exists("/sys/fs/selinux/enforce"):
        raise UsageError(f"option '{_text(name)}' is not supported (SELinux is on)")


def _implies(mask: int) -> Handler:
    def handler(params: Params, name: bytes, value: bytes | None) -> None:
        params.ms_flags |= mask  # the value is a user's name

    return handler


def _no_effect(params: Params, name: bytes, value: bytes | None) -> None:
    _no_value(name, value)


def _ignore(params: Params, name: bytes, value: bytes | None) -> None:
    pass


_CONTEXTS = (b"context", b"fscontext", b"defcontext", b"rootcontext")

_TABLE: dict[bytes, Handler] = {
    # layers
    b"lowerdir": _lowerdir,
    b"lowerdir+": _layer_add,
    b"datadir+": _layer_add,
    b"upperdir": _path("upperdir"),
    b"workdir": _path("workdir"),
    # overlay
    b"volatile": _flag("fsync", "volatile"),
    b"fsync": _fsync,
    b"errors": _choice("errors", *policy.ERRORS),
    b"error_code": _choice("error_code", *policy.ERROR_CODES),
    b"poll": _seconds("poll"),
    b"probe": _choice("probe", *policy.PROBES),
    b"reuse": _choice("reuse", "off", "auto"),
    b"hold": _on_off("hold"),
    b"syncfs": _choice("syncfs", *policy.SYNCFS),
    b"userxattr": _flag("userxattr", True),
    b"redirect_dir": _choice("redirect_dir", "on", "follow", "nofollow", "off"),
    b"xino": _choice("xino", "on", "off", "auto"),
    b"aufs_whiteouts": _on_off("aufs_whiteouts"),
    b"index": _on_off("index"),
    b"metacopy": _on_off("metacopy"),
    b"nfs_export": _only(b"off"),
    b"verity": _only(b"off"),
    b"uuid": _uuid,
    # Whose: who has set the option, or who has made the mount (6.15). That is one process here.
    **dict.fromkeys((b"override_creds", b"nooverride_creds"), _no_effect),
    # FUSE
    b"allow_other": _flag("allow_other", True),
    b"default_permissions": _flag("default_permissions", True),
    b"timeout": _seconds("timeout"),
    b"fsname": _path("source"),
    b"subtype": _path("subtype"),
    b"passthrough": _on_off("passthrough"),
    b"fuseblk": _on_off("fuseblk"),
    b"cpu_follow": _on_off("cpu_follow"),
    # generic, mount(8) "FILESYSTEM-INDEPENDENT MOUNT OPTIONS"
    b"ro": _flag("readonly", True),
    b"rw": _flag("readonly", False),
    b"nosuid": _set_ms(MS_NOSUID),
    b"suid": _set_ms(0, MS_NOSUID),
    b"nodev": _set_ms(MS_NODEV),
    b"dev": _set_ms(0, MS_NODEV),
    b"noexec": _set_ms(MS_NOEXEC),
    b"exec": _set_ms(0, MS_NOEXEC),
    b"sync": _set_ms(MS_SYNCHRONOUS),
    b"async": _set_ms(0, MS_SYNCHRONOUS),
    b"dirsync": _set_ms(MS_DIRSYNC),
    b"nosymfollow": _set_ms(MS_NOSYMFOLLOW),
    b"symfollow": _set_ms(0, MS_NOSYMFOLLOW),
    b"noatime": _set_ms(MS_NOATIME, _ATIME),
    b"atime": _set_ms(0, MS_NOATIME),
    b"relatime": _set_ms(MS_RELATIME, _ATIME),
    b"norelatime": _set_ms(0, MS_RELATIME),
    b"strictatime": _set_ms(MS_STRICTATIME, _ATIME),
    b"nostrictatime": _set_ms(0, MS_STRICTATIME),
    b"nodiratime": _set_ms(MS_NODIRATIME),
    b"diratime": _set_ms(0, MS_NODIRATIME),
    b"lazytime": _set_ms(MS_LAZYTIME),
    b"nolazytime": _set_ms(0, MS_LAZYTIME),
    b"defaults": _set_ms(0, MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_SYNCHRONOUS),
    # for mount(8), systemd and container engines; nothing for a file system
    **dict.fromkeys((b"auto", b"noauto", b"nofail", b"_netdev", b"comment"), _ignore),
    **dict.fromkeys((b"nouser", b"private", b"rprivate"), _ignore),
    # Whoever may mount, the options that mount(8) says these imply are in force.
    **dict.fromkeys((b"user", b"users"), _implies(MS_NOSUID | MS_NODEV | MS_NOEXEC)),
    **dict.fromkeys((b"owner", b"group"), _implies(MS_NOSUID | MS_NODEV)),
    **dict.fromkeys(_CONTEXTS, _context),
}
