"""rename(2) of the union (fs/overlayfs/dir.c, `ovl_rename`).

Theory of operation
-------------------
Everything that has to be true before the one deciding renameat2(2) is made so first,
in steps that each leave the tree as callers see it unchanged: copy-up of the source and
of the target's directory, `redirect` or `opaque` on the directory that moves, `impure` on
the new parent, an empty target without the whiteouts it may hold.  Then one call moves
the source and leaves a whiteout where a lower layer has the old name.
"""

from __future__ import annotations

import os
from errno import EEXIST, EINVAL, ENOENT, ENOTEMPTY, EOPNOTSUPP, EXDEV

from voile.linux import files
from voile.linux.files import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT
from voile.overlay import aufs, namei, protect, readdir, whiteout, xattrs
from voile.overlay import dir as overlay_dir
from voile.overlay.copy_up import copy_up, set_impure
from voile.overlay.inode import Dir, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.overlay.super import Overlay

# The longest absolute redirect (overlay.redirect_max).
REDIRECT_MAX = 256


def rename(
    ofs: Overlay, old_parent: Dir, old_name: bytes, new_parent: Dir, new_name: bytes, flags: int
) -> None:
    """renameat2(2) with RENAME_NOREPLACE or RENAME_EXCHANGE.

    Raises:
        Busy: see copy_up.
        OSError: EXDEV for a lower or merged directory without redirect_dir=on, EINVAL
            for RENAME_WHITEOUT, ENOTEMPTY, and all else the upper file system says.
    """
    if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
        raise OSError(EINVAL, "unsupported flags")
    exchange = bool(flags & RENAME_EXCHANGE)
    old = overlay_dir.child(ofs, old_parent, old_name)
    new = _target(ofs, new_parent, new_name, flags)
    if new is old:
        return  # two names of one file
    if old_parent.flags or old.flags:
        protect.may_delete(ofs, old_parent, old)
    if new is None:
        if new_parent.flags:
            protect.may_create(ofs, new_parent)
    elif new_parent.flags or new.flags:
        protect.may_delete(ofs, new_parent, new)
    if ofs.aufs:
        aufs.refuse(new_name)
    if not _can_move(ofs, old) or (exchange and new is not None and not _can_move(ofs, new)):
        raise OSError(EXDEV, "directory of a lower layer")
    if not exchange and isinstance(new, Dir) and not readdir.is_empty(ofs, new):
        raise OSError(ENOTEMPTY, "directory not empty")
    copy_up(ofs, new_parent)
    copy_up(ofs, old, metadata=True, at=(old_parent, old_name))
    if exchange and new is not None:
        copy_up(ofs, new, metadata=True, at=(new_parent, new_name))
    elif new is not None and ofs.index is not None:
        ofs.index.nlink_start(new, (new_parent, new_name))
    _move(ofs, old, old_parent, old_name, new, new_parent, new_name, exchange)


def _target(ofs: Overlay, parent: Dir, name: bytes, flags: int) -> Node | None:
    found = namei.lookup(ofs, parent, name)
    if found is None:
        if flags & RENAME_EXCHANGE:
            raise OSError(ENOENT, "nothing to exchange with")
        return None
    if flags & RENAME_NOREPLACE:
        raise OSError(EEXIST, "the target exists")
    return overlay_dir.child(ofs, parent, name)


def _can_move(ofs: Overlay, node: Node) -> bool:
    """`ovl_can_move`: a directory with a lower part needs a redirect."""
    return not isinstance(node, Dir) or not node.lowers or ofs.params.redirect_dir == "on"


def _move(
    ofs: Overlay, old: Node, old_parent: Dir, old_name: bytes,
    new: Node | None, new_parent: Dir, new_name: bytes, exchange: bool,
) -> None:  # fmt: skip
    old_upper, new_upper = old_parent.upper, new_parent.upper
    assert old_upper is not None and new_upper is not None
    old_fd, new_fd = ofs.fds.fd(old_upper), ofs.fds.fd(new_upper)
    same_dir = old_parent is new_parent
    lowers = new.lowers if isinstance(new, Dir) else ()
    over_whiteout = new is None and _is_whiteout(ofs, new_fd, new_name)
    flags, clean_whiteout = RENAME_EXCHANGE, False
    if not exchange:
        flags = 0
        if namei.lower_positive(ofs, old_parent, old_name):
            flags = RENAME_EXCHANGE if over_whiteout else RENAME_WHITEOUT
        elif isinstance(old, Dir) and over_whiteout:
            flags, clean_whiteout = RENAME_EXCHANGE, True
    if not same_dir:
        if _has_origin(ofs, old):
            set_impure(ofs, new_parent)
        if exchange and new is not None and _has_origin(ofs, new):
            set_impure(ofs, old_parent)
    _prepare(ofs, old, old_fd, new_parent, same_dir)
    if ofs.meta is not None:
        ofs.meta.set_redirect(old, (old_parent, old_name), same_dir)
    if exchange and new is not None:
        _prepare(ofs, new, new_fd, old_parent, same_dir)
        if ofs.meta is not None:
            ofs.meta.set_redirect(new, (new_parent, new_name), same_dir)
    elif new is not None:
        overlay_dir.hold(ofs, new)
    try:
        if isinstance(new, Dir) and new.upper is not None and not exchange:
            _clear(ofs, new, new_parent, new_name)
        # The whiteout that RENAME_WHITEOUT makes is the mounter's, as every whiteout.
        ofs.creds.mounter()
        files.renameat2(old_fd, old_name, new_fd, new_name, flags)
    except OSError:
        if new is not None and not exchange:
            overlay_dir.release_hold(new)
            if isinstance(new, Dir):
                ofs.fds.drop(new.reals)  # its name may stand for another directory now
        raise
    if clean_whiteout:
        try:
            os.unlink(old_name, dir_fd=old_fd)
        except OSError:
            pass  # it hides nothing, and the rename has been done
    if exchange:
        assert new is not None
        del old_parent.children[old_name]
        _rehook(old, old_parent, old_name, new_parent, new_name)
        _rehook(new, new_parent, new_name, old_parent, old_name)
        return
    if new is not None:
        if isinstance(new, Dir):
            new.lowers = lowers  # to who has it open it is a merged directory still
        overlay_dir.gone(ofs, new, new_parent, new_name)
    old_parent.children.pop(old_name, None)
    _rehook(old, old_parent, old_name, new_parent, new_name)


def _is_whiteout(ofs: Overlay, dir_fd: int, name: bytes) -> bool:
    try:
        st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        return whiteout.hides(ofs.names, dir_fd, name, st)
    except FileNotFoundError:
        return False


def _rehook(node: Node, old_parent: Dir, old_name: bytes, new_parent: Dir, new_name: bytes) -> None:
    """Tells a node its new name."""
    new_parent.children[new_name] = node
    if (node.parent, node.name) != (old_parent, old_name):
        # Another of its names is its home; this one is only a link.
        if node.extra is not None:
            node.extra.links.discard((old_parent, old_name))
            node.extra.links.add((new_parent, new_name))
        return
    node.parent, node.name = new_parent, new_name
    assert new_parent.upper is not None
    if isinstance(node, Dir):
        assert node.upper is not None
        node.upper.parent, node.upper.name = new_parent.upper, new_name
    elif node.extra is None or not node.extra.place:
        node.real = new_parent.upper


def _prepare(ofs: Overlay, node: Node, dir_fd: int, new_parent: Dir, same_dir: bool) -> None:
    """Marks what moves, so that it looks the same in its new place."""
    if isinstance(node, Dir):
        if node.lowers:
            _set_redirect(ofs, node, dir_fd, same_dir)
        elif new_parent.lowers:
            try:
                overlay_dir.set_opaque(ofs, dir_fd, node.name)
            except OSError as exc:
                if exc.errno == EOPNOTSUPP:
                    raise OSError(EXDEV, "no attributes in the upper layer") from None
                raise


def _has_origin(ofs: Overlay, node: Node) -> bool:
    """`ovl_type_origin`: its st_ino comes from a lower layer."""
    if isinstance(node, Dir):
        return bool(node.lowers)
    return node.ino != ofs.map_ino(node.real.layer, ofs.stat(node).st_ino)


def _set_redirect(ofs: Overlay, node: Dir, dir_fd: int, same_dir: bool) -> None:
    """Stores where the lower part of a directory stays (`ovl_set_redirect`)."""
    if node.redirect is not None and (same_dir or node.redirect[:1] == b"/"):
        return
    value = node.name if same_dir else absolute(node.parent, node.redirect or node.name)
    try:
        os.setxattr(xattrs.proc_path(dir_fd, node.name), ofs.names.redirect, value, follow_symlinks=False)
    except OSError:
        # User space then copies the tree itself.
        raise OSError(EXDEV, "cannot set a redirect") from None
    node.redirect = value


def absolute(parent: Dir | None, name: bytes) -> bytes:
    """The path from the root of the layers to `name`, or what a redirect says in its place, in `parent`.

    Raises:
        OSError: EXDEV where it is too long.
    """
    parts: list[bytes] = [name]
    at = parent
    while parts[-1][:1] != b"/" and at is not None and at.parent is not None:
        parts.append(at.redirect if at.redirect is not None else at.name)
        at = at.parent
    path = b"/".join(reversed(parts))
    if path[:1] != b"/":
        path = b"/" + path
    if len(path) > REDIRECT_MAX:
        raise OSError(EXDEV, "redirect too long")
    return path


def _clear(ofs: Overlay, node: Dir, parent: Dir, name: bytes) -> None:
    """Replaces a directory that shows nothing, but holds whiteouts, by an empty one.

    The new one is opaque, so that it shows the same (`ovl_clear_empty`). Who has the old one open keeps it.
    """
    assert node.upper is not None and parent.upper is not None
    if readdir.holds_nothing(ofs, node.upper):
        return
    old_fd = ofs.fds.fd(node.upper)
    st = os.fstat(old_fd)
    temp = ofs.temp_name()
    ofs.creds.mounter()
    os.mkdir(temp, 0o700, dir_fd=ofs.work_fd)
    try:
        path, source = xattrs.proc_path(ofs.work_fd, temp), xattrs.proc_fd(old_fd)
        os.chown(path, st.st_uid, st.st_gid)
        os.chmod(path, st.st_mode & 0o7777)
        for attribute in xattrs.listing(source, follow=True):
            if not attribute.startswith(ofs.names.prefix) or attribute.startswith(ofs.names.escaped):
                os.setxattr(path, attribute, os.getxattr(source, attribute))
        overlay_dir.set_opaque(ofs, ofs.work_fd, temp)
        os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))
        files.renameat2(ofs.work_fd, temp, ofs.fds.fd(parent.upper), name, RENAME_EXCHANGE)
    finally:
        ofs.discard(temp)
    # Should the rename fail now: what the whiteouts have hidden must not show.
    node.lowers = ()
