"""WORKDIR/index: what was one file in the lower layers stays one over its copy-up (index=on).

Theory of operation
-------------------
A lower file with several names is copied up to the index, under the hexadecimal file handle of
the lower one, and then linked to the name that was used (fs/overlayfs/copy_up.c, `ovl_link_up`).
Its other names still lie in lower layers; they find the entry by the handle (namei.c,
`ovl_lookup_index`) and are linked up when something changes through them.  All of them are one
node from the first lookup on (`NodeTable.by_entry`), which reaches its object through the entry:
the entry is there for as long as the file is, whatever becomes of the names.

How many names the union has is `nlink` in the entry's attribute of that name: a difference to the
link count of the upper file (``U+1``) or of the lower one (``L-1``).  It is written before each
change, relative to the count that the change leaves right whether it happens or not (inode.c,
`ovl_get_nlink`).  So names of the lower layers are copied up before they are removed.

A request says which file is meant, but not by which name (except where a name is moved or
removed).  The name that was looked up last is taken for it; callers are told to look such names up
each time.  A wrong guess does no harm: another of the names is the one that the upper directory has.
"""

from __future__ import annotations

import os
from errno import EIO

from voile.linux import files
from voile.overlay import origin, xattrs
from voile.overlay.copy_up import copy_up, set_impure
from voile.overlay.indexdir import S_IFMT, IndexDir
from voile.overlay.inode import Dir, Indexed, Node
from voile.overlay.namei import refuse_metacopy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.overlay.inode import Name
    from voile.overlay.layers import RealDir


class Index(IndexDir):
    """The index of a mount."""

    __slots__ = ()

    # --- lookup ---

    def lower(
        self, parent: Dir, name: bytes, real: RealDir, st: os.stat_result
    ) -> tuple[Node, os.stat_result]:
        """The node of a lower non-directory, and its status: of the upper file, if there is an entry.

        Raises:
            OSError: EIO for an entry that cannot be that of such a file.
        """
        ofs, nodes = self._ofs, self._ofs.nodes
        fmt = st.st_mode & S_IFMT
        ino = ofs.map_ino(real.layer, st.st_ino)
        if st.st_nlink == 1 and not self._used:
            return Node(parent, name, real, ino, fmt), st
        value = origin.encode(real.layer, real.fd, name)
        if not value:
            raise OSError(EIO, "no file handle")
        entry = _name_of(value)
        known = nodes.by_entry.get(entry)
        if known is not None:
            self._add_name(known, parent, name)
            return known, ofs.stat(known)
        found = self.find(entry, fmt)
        if found is not None:
            if not ofs.metacopy:
                refuse_metacopy(ofs, self.real.fd, entry, found)
            known = nodes.by_ino.get(found.st_ino)
            node = known or self._node(parent, name, entry, found, st.st_nlink, ino)
            self._add_name(node, parent, name)
            return node, found
        node = Node(parent, name, real, ino, fmt)
        if st.st_nlink > 1:
            extra = node.extra = Indexed(entry, name, st.st_nlink)
            extra.recent = parent, name
            nodes.by_entry[entry] = node
        return node, st

    def upper(self, parent: Dir, name: bytes, real: RealDir, st: os.stat_result) -> Node | None:
        """The node of an upper non-directory that is in the index; None: it is not.

        Raises:
            OSError: as `lower`.
        """
        ofs = self._ofs
        if st.st_nlink == 1 and not self._used:
            return None
        value = xattrs.get_at(real.fd, name, ofs.names.origin)
        below = origin.decode(ofs, value) if value else None
        if value is None or below is None or not self.has(value, below[1], st):
            return None
        ino = ofs.map_ino(below[0], below[1].st_ino)
        node = self._node(parent, name, _name_of(value), st, below[1].st_nlink, ino)
        self._extra(node).recent = parent, name
        return node

    def has(self, value: bytes, below: os.stat_result, st: os.stat_result) -> bool:
        """Whether the upper file `st` with the origin `value`, which is `below`, is the one in the index."""
        if (below.st_mode ^ st.st_mode) & S_IFMT or (below.st_nlink == 1 and not self._used):
            return False
        found = self.find(_name_of(value), st.st_mode & S_IFMT)
        return found is not None and found.st_ino == st.st_ino

    def _node(
        self, parent: Dir, name: bytes, entry: bytes, st: os.stat_result, lower_nlink: int, ino: int
    ) -> Node:
        """A node for an entry that is there."""
        nodes = self._ofs.nodes
        node = Node(parent, name, self.real, ino, st.st_mode & S_IFMT)
        extra = node.extra = Indexed(entry, entry, lower_nlink)
        extra.nlink = self.get_nlink(entry, st, lower_nlink, st.st_nlink)
        nodes.by_entry[entry] = node
        nodes.index(node, st.st_ino)
        return node

    def _add_name(self, node: Node, parent: Dir, name: bytes) -> None:
        """A name in a lower layer."""
        self._ofs.nodes.add_link(node, parent, name)
        extra = node.extra
        if isinstance(extra, Indexed):
            extra.recent = parent, name
            if node.is_upper and self._ofs.writable:
                if extra.pending is None:
                    extra.pending = set()
                extra.pending.add((parent, name))

    @staticmethod
    def _extra(node: Node) -> Indexed:
        assert isinstance(node.extra, Indexed)
        return node.extra

    def looked_up(self, node: Node, parent: Dir, name: bytes) -> None:
        """A name that is known already."""
        if isinstance(node.extra, Indexed):
            node.extra.recent = parent, name

    # --- copy-up ---

    def name_for(self, node: Node, at: Name | None) -> Name | None:
        """By which of its names a node is probably meant; `at`, where that is known."""
        if at is not None:
            return at
        recent = self._extra(node).recent
        if recent is not None and recent[0].children.get(recent[1]) is node:
            return recent
        return None if node.parent is None else (node.parent, node.name)

    def initial_nlink(self, node: Node) -> bytes:
        """The value of `nlink` for a copy that has no other name than its entry."""
        return b"U%+d" % (self._extra(node).lower_nlink - 1)

    def install(self, node: Node, temp: bytes) -> None:
        """Moves a complete copy to its entry: it is what all names of the file show from now on."""
        ofs, extra = self._ofs, self._extra(node)
        files.renameat2(ofs.work_fd, temp, self.real.fd, extra.entry, files.RENAME_NOREPLACE)
        st = os.stat(extra.entry, dir_fd=self.real.fd, follow_symlinks=False)
        ofs.nodes.index(node, st.st_ino)
        node.real, extra.place = self.real, extra.entry
        extra.nlink = extra.lower_nlink
        extra.pending = set(ofs.nodes.names(node))

    def link_up(self, node: Node, at: Name | None) -> None:
        """Links a copied-up file to a name that only lower layers have so far (`ovl_link_up`).

        Raises:
            Busy, OSError: as `copy_up`, for the directory.
        """
        ofs, extra = self._ofs, self._extra(node)
        at = self.name_for(node, at)
        if at is None or not extra.pending or at not in extra.pending:
            return
        parent, name = at
        copy_up(ofs, parent)
        ofs.creds.mounter()
        assert parent.upper is not None
        fd = ofs.fds.fd(parent.upper)
        set_impure(ofs, parent)
        before = os.fstat(fd)
        # Relative to the lower file: the link changes nothing about how many names there are.
        self._set_nlink(extra, b"L%+d" % (extra.nlink - extra.lower_nlink))
        os.link(extra.entry, name, src_dir_fd=self.real.fd, dst_dir_fd=fd, follow_symlinks=False)
        extra.pending.discard(at)
        try:
            files.utimensat(fd, b"", before.st_atime_ns, before.st_mtime_ns, files.AT_EMPTY_PATH)
        except OSError:
            pass
        self._set_nlink_upper(extra)

    # --- link counts ---

    def nlink_start(self, node: Node, at: Name | None) -> None:
        """Before a name is made, removed or replaced: copies up, and makes `nlink` follow the upper file's.

        `at`: the name that goes (`ovl_nlink_start`).

        Raises:
            Busy, OSError: as `copy_up`.
        """
        if not isinstance(node.extra, Indexed):
            return
        copy_up(self._ofs, node, metadata=True, at=at)
        if node.extra.nlink > 0:
            self._ofs.creds.mounter()
            self._set_nlink_upper(node.extra)

    def linked(self, node: Node, parent: Dir, name: bytes) -> None:
        """After link(2)."""
        if isinstance(node.extra, Indexed) and node.extra.nlink >= 0:
            node.extra.nlink += 1
            node.extra.recent = parent, name

    def unlinked(self, node: Node) -> None:
        """After a name has gone; with the last one goes the entry (`ovl_drop_nlink`, `ovl_nlink_end`)."""
        extra = node.extra
        if not isinstance(extra, Indexed) or extra.nlink < 0:
            return
        # Somebody may have changed the layers: never less than the names that are known.
        if extra.nlink > (node.parent is not None):
            extra.nlink -= 1
        else:
            self._ofs.changed(node)
        if extra.nlink == 0:
            try:
                self._cleanup(node, extra)
            except OSError:
                pass  # the next mount does it

    def _cleanup(self, node: Node, extra: Indexed) -> None:
        """`ovl_cleanup_index`."""
        ofs = self._ofs
        ofs.creds.mounter()
        links = self._links(extra)
        if links != 1:
            # Unknown names that the count did not know of: it is put right.
            extra.nlink = links - 1
            self._set_nlink_upper(extra)
            ofs.changed(node)
            return
        os.unlink(extra.entry, dir_fd=self.real.fd)
        if ofs.nodes.by_entry.get(extra.entry) is node:
            del ofs.nodes.by_entry[extra.entry]

    def _links(self, extra: Indexed) -> int:
        return os.stat(extra.entry, dir_fd=self.real.fd, follow_symlinks=False).st_nlink

    def _set_nlink_upper(self, extra: Indexed) -> None:
        self._set_nlink(extra, b"U%+d" % (extra.nlink - self._links(extra)))

    def _set_nlink(self, extra: Indexed, value: bytes) -> None:
        path = xattrs.proc_path(self.real.fd, extra.entry)
        os.setxattr(path, self._ofs.names.nlink, value, follow_symlinks=False)


def _name_of(value: bytes) -> bytes:
    """`ovl_get_index_name_fh`."""
    return value.hex().encode()
