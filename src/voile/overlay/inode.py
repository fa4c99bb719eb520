"""The node table: one object for every object of the union that the kernel knows.

Theory of operation
-------------------
A `Node` knows where its real object lies: a `RealDir` and a name (files), or the
stack of real directories it merges (`Dir`).  It holds no descriptor of its own,
except when its last known name is gone while somebody still uses it (`Extra.fd`).

Identity follows fs/overlayfs/inode.c, `ovl_get_inode`: a non-directory in the upper
layer is one node whatever name leads to it (`NodeTable.by_ino`, kept only for what has
or had a link count above one); lower hard links are separate nodes, because a copy-up breaks
them, unless there is an index: then they are one node from the beginning (`NodeTable.by_entry`,
see index).  `ino` is fixed when the node is made and survives copy-up.

Links between parent and child form a cycle on purpose; `NodeTable.forget` breaks
it, since the garbage collector is off in the daemon.
"""

from __future__ import annotations

import os

from voile.overlay.layers import FdCache, RealDir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from voile.overlay.copy_up import CopyUp
    from voile.overlay.metacopy import Meta

    # A name of the union.
    Name = tuple["Dir", bytes]

ROOT_ID = 1
_WORTH_SHRINKING = 1 << 20
# `Node.flags` of an object that was found, not made.
FLAGS_UNKNOWN = -1


class Extra:
    """What only few nodes need: made on demand, so that the others stay small."""

    __slots__ = ("fd", "links", "job", "upper_ino", "meta")

    # What only `Indexed` has: these are the values of all others.
    entry = b""
    place = b""
    nlink = -1
    pending: set[Name] | None = None
    recent: Name | None = None

    def __init__(self) -> None:
        # An O_PATH descriptor of an object that no known name leads to any more.
        self.fd = -1
        # Further names of a hard-linked upper object.
        self.links: set[Name] = set()
        # The copy-up that is under way.
        self.job: CopyUp | None = None
        # The key in `NodeTable.by_ino`, or 0.
        self.upper_ino = 0
        # Where the data of a metacopy file lies; such a node has metadata only.
        self.meta: Meta | None = None


class Indexed(Extra):
    """That of a hard link of a lower layer, where there is an index, before and after its copy-up."""

    __slots__ = ("entry", "place", "nlink", "lower_nlink", "pending", "recent")

    def __init__(self, entry: bytes, place: bytes, lower_nlink: int) -> None:
        super().__init__()
        # The name in the index, of an entry that is there or will be: also the key in `NodeTable.by_entry`.
        self.entry = entry
        # The name of the object in `Node.real`: a lower one, or `entry`.  It does not depend on the names
        # that callers know.
        self.place = place
        # How many names the union has, once there is an entry (`OVL_INDEX`, and i_nlink of the inode); or -1.
        self.nlink = -1
        self.lower_nlink = lower_nlink
        # Names that are known and not (all) in the upper layer: they lead to the entry by way of a lower one.
        self.pending = None
        # The name that was looked up last: the one, most likely, that is used next.
        self.recent = None


class Node:
    """A non-directory of the union."""

    __slots__ = ("id", "nlookup", "parent", "name", "real", "ino", "fmt", "flags", "extra", "opens")

    is_dir = False

    def __init__(self, parent: Dir, name: bytes, real: RealDir, ino: int, fmt: int) -> None:
        self.id = 0
        self.nlookup = 0
        self.parent: Dir | None = parent
        self.name = name
        # The real directory that holds the object, under the name `place`.
        self.real = real
        # The constant st_ino that callers see.
        self.ino = ino
        # The S_IFMT bits.
        self.fmt = fmt
        # Immutable or append-only; see protect.
        self.flags = FLAGS_UNKNOWN
        self.extra: Extra | None = None
        # Whatever the server keeps for the open files of this node.
        self.opens: object = None

    @property
    def is_upper(self) -> bool:
        """Whether the object lies in the upper layer."""
        return self.real.layer.index == 0

    @property
    def has_upper_data(self) -> bool:
        """Whether the data of the file lies in the upper layer, too (`ovl_has_upperdata`)."""
        return self.real.layer.index == 0 and (self.extra is None or self.extra.meta is None)

    def more(self) -> Extra:
        """The rarely used part, made on first use."""
        if self.extra is None:
            self.extra = Extra()
        return self.extra

    @property
    def place(self) -> bytes:
        """The name of the object in `real`."""
        return self.name if self.extra is None else self.extra.place or self.name

    @property
    def tells_names(self) -> bool:
        """Whether it matters by which of its names it is used: callers must ask for them each time."""
        extra = self.extra
        if extra is None or not extra.entry:
            return False
        return not self.is_upper or (extra.pending is not None and extra.recent in extra.pending)

    @property
    def unlinked_fd(self) -> int:
        """The descriptor of an object without a known name, or -1."""
        return -1 if self.extra is None else self.extra.fd


class Dir(Node):
    """A directory of the union: a stack of real directories.

    `upper` is None until copy-up; `lowers` are the merged lower ones, top to bottom.
    """

    __slots__ = ("upper", "lowers", "children", "redirect", "impure", "xwhiteouts", "dead")

    is_dir = True

    def __init__(
        self,
        parent: Dir | None,
        name: bytes,
        upper: RealDir | None,
        lowers: tuple[RealDir, ...],
        ino: int,
    ) -> None:
        self.id = 0
        self.nlookup = 0
        self.parent = parent
        self.name = name
        self.ino = ino
        self.fmt = 0o040000
        self.flags = FLAGS_UNKNOWN
        self.extra = None
        self.opens = None
        self.upper = upper
        self.lowers = lowers
        self.children: dict[bytes, Node] = {}
        # The value of the redirect attribute of the upper directory.
        self.redirect: bytes | None = None
        # The upper directory may hold entries whose st_ino comes from a lower layer.
        self.impure = False
        # A lower directory in it is marked opaque=x.
        self.xwhiteouts = False
        # Removed; `upper` (or the top lower directory) is pinned.
        self.dead = False

    @property
    def is_upper(self) -> bool:
        return self.upper is not None

    @property
    def top(self) -> RealDir:
        """The real directory whose attributes are shown."""
        return self.upper if self.upper is not None else self.lowers[0]

    @property
    def reals(self) -> tuple[RealDir, ...]:
        """All real directories, top to bottom."""
        return self.lowers if self.upper is None else (self.upper, *self.lowers)

    @property
    def is_merge(self) -> bool:
        """`OVL_TYPE_MERGE`: more than one real directory."""
        return len(self.lowers) + (self.upper is not None) > 1


class NodeTable:
    """All nodes by the number the kernel knows them by."""

    __slots__ = ("_next", "_fds", "by_id", "by_ino", "by_entry", "root")

    def __init__(self, root: Dir, fds: FdCache) -> None:
        root.id = ROOT_ID
        root.nlookup = 1
        self.root = root
        # For requests, which look here directly. A forgotten number is a KeyError, a bug of ours.
        self.by_id: dict[int, Node] = {ROOT_ID: root}
        self._next = ROOT_ID + 1
        self._fds = fds
        # Upper non-directories that several names (may) lead to, by the upper's st_ino.
        self.by_ino: dict[int, Node] = {}
        # Those that have, or will have, an entry in the index, by its name.
        self.by_entry: dict[bytes, Node] = {}

    def __len__(self) -> int:
        return len(self.by_id)

    def all(self) -> list[tuple[int, Node]]:
        """All nodes with their numbers, as they are now. In any thread."""
        return list(self.by_id.items())

    def known(self, nodeid: int) -> bool:
        """Whether the kernel still refers to this number."""
        return nodeid in self.by_id

    def refer(self, node: Node) -> int:
        """Counts one lookup by the kernel; gives a new node its number."""
        if not node.id:
            node.id = self._next
            self._next += 1
            self.by_id[node.id] = node
        node.nlookup += 1
        return node.id

    def forget(self, nodeid: int, count: int) -> None:
        """The kernel drops `count` lookups; the last one frees the node."""
        node = self.by_id.get(nodeid)
        if node is None or node is self.root:
            return
        node.nlookup -= count
        if node.nlookup > 0:
            return
        del self.by_id[nodeid]
        node.id = node.nlookup = 0
        if node.parent is not None or node.extra is not None or node.is_dir:
            self.release(node)

    def shrink(self) -> None:
        """Gives memory back after many nodes were forgotten: a dict stays as large as it was."""
        if self.by_id.__sizeof__() > max(_WORTH_SHRINKING, 400 * len(self.by_id)):
            self.by_id = dict(self.by_id)

    def release(self, node: Node) -> None:
        """Unhooks a node that nobody knows by number (any more).

        A directory stays while something in it is known: a file with another name elsewhere, or what
        inotify(7) watches.  It may be renamed meanwhile, and that has to be found where it is then.
        """
        pending = [node]
        while pending:
            node = pending.pop()
            if isinstance(node, Dir) and self._leads_on(node):
                continue
            for parent, name in self.names(node):
                if parent.children.get(name) is node:
                    del parent.children[name]
                if not parent.id:
                    pending.append(parent)  # it had stayed for this one, perhaps
            if isinstance(node, Dir):
                for real in node.reals:
                    real.pinned = False
                self._fds.drop(node.reals)
            elif node.extra is not None:
                self._forget_extra(node, node.extra)

    def _leads_on(self, node: Dir) -> bool:
        """Whether the kernel knows something below a directory; what it does not is unhooked."""
        for name, child in list(node.children.items()):
            if not child.id and not (isinstance(child, Dir) and child.children):
                self.drop_link(child, node, name)
                if child.parent is None and child.extra is not None:
                    self._forget_extra(child, child.extra)
        return bool(node.children)

    def hold(self, node: Node) -> None:
        """Opens an upper non-directory whose last known name is about to go."""
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        node.more().fd = os.open(node.place, flags, dir_fd=self._fds.fd(node.real))

    def _forget_extra(self, node: Node, extra: Extra) -> None:
        if extra.fd >= 0:
            os.close(extra.fd)
            extra.fd = -1
        extra.links.clear()
        if self.by_ino.get(extra.upper_ino) is node:
            del self.by_ino[extra.upper_ino]
        if extra.entry and self.by_entry.get(extra.entry) is node:
            del self.by_entry[extra.entry]

    @staticmethod
    def names(node: Node) -> Iterator[tuple[Dir, bytes]]:
        """Every known name of a node."""
        if node.parent is not None:
            yield node.parent, node.name
        if node.extra is not None:
            yield from node.extra.links

    def index(self, node: Node, upper_ino: int) -> None:
        """Makes a hard-linked upper object findable by its inode number."""
        node.more().upper_ino = upper_ino
        self.by_ino[upper_ino] = node

    def add_link(self, node: Node, parent: Dir, name: bytes) -> None:
        """A further name for an upper object, or for one that has or will have an entry in the index."""
        extra = node.more()
        if node.parent is None:
            # It had lost its last known name: this is its home now.
            if extra.fd >= 0:
                os.close(extra.fd)
                extra.fd = -1
            node.parent, node.name = parent, name
            if not extra.place:
                assert parent.upper is not None
                node.real = parent.upper
        elif (node.parent, node.name) != (parent, name):
            extra.links.add((parent, name))
        parent.children[name] = node

    def drop_link(self, node: Node, parent: Dir, name: bytes) -> None:
        """A name is gone; another known one takes over, if there is one.

        Otherwise the node keeps working through `Extra.fd`, which the caller has
        opened before the name went (see `hold`).
        """
        if parent.children.get(name) is node:
            del parent.children[name]
        extra = node.extra
        is_home = node.parent is parent and node.name == name
        if extra is None:
            if is_home:
                node.parent = None
            return
        if extra.pending:
            extra.pending.discard((parent, name))
        if not is_home:
            extra.links.discard((parent, name))
        elif extra.links:
            node.parent, node.name = extra.links.pop()
            if not extra.place:
                assert node.parent.upper is not None
                node.real = node.parent.upper
        else:
            node.parent = None
