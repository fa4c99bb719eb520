"""Shutting a mount down: everything fails with EIO, also what the kernel could answer without us.

Theory of operation.  Exchanging the handlers (see gate) reaches every request.  But for much the kernel sends
none: names and attributes are cached, and so are pages; and what passes through is read and written without
us, by whoever has it open.  So afterwards we *sweep*:

* one notification makes the kernel forget all names (older kernels: one for each node);
* one for each node drops attributes, listings and pages.  A page that is mapped is unmapped with that, and
  touching it again is SIGBUS;
* an open file is made *bad*, which is checked before anything is passed through (fs/fuse/file.c,
  fuse_file_write_iter).  The kernel does that when a number comes back with another generation, as if it had
  been given to another file (fs/fuse/inode.c, fuse_iget).  So we look up a name of our own making, which
  nobody else can guess, and answer with the number of the open file and the next generation.

What is left: mappings of files that pass through are mappings of the real file, and sendfile(2) and splice(2)
from one that was open before (neither asks whether the file is bad).
"""

from __future__ import annotations

import os
from errno import ENOENT

from voile.fuse import replies
from voile.linux import creds, process
from voile.linux.process import leave_sched_idle
from voile.server import gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.fuse.requests import Body, Buffer, Request
    from voile.server.base import Served

# Arguments of FS_IOC_SHUTDOWN. What is to be saved before: all of it, the journal, nothing.
DEFAULT, LOGFLUSH, NOLOGFLUSH = 0, 1, 2


def permitted(uid: int, pid: int, owner: int) -> bool:
    """Whether a caller may shut a mount down: the owner, if he is an ordinary user, or CAP_SYS_ADMIN.

    Root without that capability may not: in a container he is somebody else.
    """
    if uid == owner != 0:
        return True
    return pid > 0 and creds.pid_has_cap(pid, creds.CAP_SYS_ADMIN)


def flags_of(pid: int, address: int) -> int:
    """The argument of a FS_IOC_SHUTDOWN: FUSE does not bring it along, for its number says "read".

    NOLOGFLUSH where the caller's memory cannot be read: nothing is saved that was not asked for.
    Raises OSError EFAULT.
    """
    try:
        return int.from_bytes(process.process_vm_readv(pid, address, 4), "little")
    except (PermissionError, ProcessLookupError):
        return NOLOGFLUSH


class Shutdown:
    """Shuts down the mount that `served` answers."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._prefix = b".voile-" + os.urandom(12).hex().encode() + b"-"

    def begin(self) -> None:
        """All requests that come from now on fail. In any thread."""
        gate.shut(self._served.session, self._lookup)

    def sweep(self) -> None:
        """Take away what the kernel would answer itself. In a thread that does not answer requests."""
        leave_sched_idle()
        served = self._served
        session = served.session
        try:
            all_names = session.notify_inc_epoch()
            for nodeid, node in served.overlay.nodes.all():
                parent = node.parent
                if not all_names and parent is not None and parent.id:
                    session.notify_inval_entry(parent.id, node.name)
                session.notify_inval_inode(nodeid)
            for nodeid in {file.nodeid for file in list(served.files.values())}:
                self._make_bad(nodeid)
        except OSError:
            pass  # unmounted meanwhile

    def _make_bad(self, nodeid: int) -> None:
        """Have the kernel look up our name for it. Where we do not see the mount, it stays good."""
        seen = self._served.seen
        if seen is None:
            return
        try:
            if os.stat(seen.path).st_dev == seen.device:
                os.stat(seen.path + b"/" + self._prefix + b"%d" % nodeid)
        except OSError:
            pass

    def _lookup(self, req: Request, buf: Buffer, size: int) -> Body:
        name = bytes(buf[40 : size - 1])
        if not name.startswith(self._prefix):
            return gate.fail(req, buf, size)
        overlay = self._served.overlay
        nodeid = int(name[len(self._prefix) :])
        if not overlay.nodes.known(nodeid):
            raise OSError(ENOENT, "forgotten")
        node = overlay.nodes.by_id[nodeid]
        attr = replies.attr_from_stat(overlay.stat(node), node.ino, 1)
        generation = self._served.generation + 1
        return replies.entry_out(overlay.nodes.refer(node), generation, 0, 0, 0, 0, attr)


