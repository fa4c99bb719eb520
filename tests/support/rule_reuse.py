"""What a volatile mount does in the world of rule_model, by the real code; mutations override what is wrong.

`MarkerRule` is the kernel's, and ours with reuse=off; `RecordRule` is reuse=auto.
"""

import contextlib
import os
from collections import namedtuple
from types import SimpleNamespace
from unittest import mock

from support.rule_model import Errseq, ModelProbe, Mounted
from voile.server.checkpoint import Checkpoint
from voile.volatile import marker, record, reuse
from voile.volatile.sync_status import SyncStatus


class MarkerDirectory:
    """A real work directory, for the real marker's code. Its answers depend on nothing but itself."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.there = False

    def set(self, there):
        if there != self.there:
            (marker.create_volatile if there else marker.remove_volatile)(self.fd)
            self.there = there

    def refuses(self):
        try:
            marker.check(self.fd)
        except marker.Incompatible:
            return True
        return False

    def look(self):
        self.there = self.refuses()
        return self.there

    def close(self):
        self.set(False)
        os.close(self.fd)


class MarkerRule:
    """The marker alone says whether an upper may be mounted."""

    probe = ModelProbe
    status = SyncStatus
    checkpoint = Checkpoint
    #: Whether a mount asks for proof: what it can be asked for.
    proofs = (True,)

    def __init__(self, directory):
        self.directory = directory

    def __enter__(self):
        """For the time of a search."""

    def __exit__(self, *_exception):
        pass

    def admit(self, world, proof, hold):
        """A Mounted, without a cursor where a new probe is to be made; or None."""
        self.directory.set(world.marker)
        return None if self.directory.refuses() else Mounted()

    def snapshot(self, value):
        """A new probe's cursor (ovl_fill_super), or False: there is an error that nobody has seen."""
        errseq = Errseq(value)
        cursor = errseq.sample()
        return False if errseq.check(cursor) else cursor

    def begin(self, world):
        """The mount takes the directories."""
        return world

    def end(self, world, state):
        """It lets go of them."""
        return world

    def sync_status(self, world):
        """The real one, in the state of the mount."""
        mounted = world.mounted
        status = self.status(True, self.probe(world.value, mounted.cursor))
        if mounted.errno:
            status.note(mounted.errno)
        return status

    def healthy(self):
        """One of a mount that has lost nothing."""
        return SyncStatus(True, ModelProbe(0, 0))

    def continuity(self, world):
        """What the daemon has of the last mount."""
        return None

    def after(self, world, continuity):
        """The world when the daemon has worked with it."""
        return world

    @contextlib.contextmanager
    def checkpoint_of(self, world, status):
        """The real one, of a mount; its `world` is what has become of it afterwards."""
        self.directory.set(world.marker)
        continuity = self.continuity(world)
        checkpoint = self.checkpoint(
            SimpleNamespace(
                overlay=SimpleNamespace(
                    sync=status,
                    creds=SimpleNamespace(mounter=lambda: None),
                    work_fd=self.directory.fd,
                    continuity=continuity,
                ),
                session=SimpleNamespace(exchange=lambda make: None, fd=-1),
                pool=SimpleNamespace(outstanding=0, submit=lambda work, over: None),
                regate=lambda: None,
                files={},
                shutdown=None,
            )
        )
        yield checkpoint
        checkpoint.world = self.after(world._replace(marker=self.directory.look()), continuity)

    def in_another_boot(self, stored):
        return stored

    def in_another_mount(self, stored):
        return stored


#: A record, as far as anything is decided by it.
Stored = namedtuple("Stored", "state error boot mount holder doubt checkpoint")


class RecordRule(MarkerRule):
    """The record beside the marker says what an upper is good for; and who asks for no proof gets none."""

    proofs = (True, False)

    # --- what the real code meets: a file system without a file system ---

    def __enter__(self):
        self.patches = contextlib.ExitStack()
        for where, name, what in (
            (record.Record, "of", lambda _upper, _work: self.decode(None)),
            (record, "read", lambda _fd: self.stored and self.decode(self.stored)),
            (record, "write", self.write),
            (record, "Update", self.update),
            (record, "remove", lambda _fd: self.write(0, None)),
            (reuse.holder, "find", self.find),
            (reuse.holder, "Started", lambda _fd, _path: SimpleNamespace(pid=1, stay=self.stay, go=list)),
            (reuse.files, "statfs_type", lambda _fd: 0),
            (reuse, "Probe", lambda _fd, _kind: ModelProbe(self.value, self.holder)),
        ):
            self.patches.enter_context(mock.patch.object(where, name, what))

    def __exit__(self, *exception):
        self.patches.close()

    def enter(self, world):
        self.stored, self.durable, self.holder, self.value = world.record, False, world.holder, world.value

    def write(self, _fd, new, first=False, durable=False):
        self.stored = new and self.encode(new)
        self.durable = durable

    def update(self, fd, new):
        return SimpleNamespace(commit=lambda durable: self.write(fd, new, durable=durable), close=list)

    def find(self, pid, _probe_mount):
        if not pid or self.holder is None:
            return None
        return SimpleNamespace(pid=1, fd=-1, take=lambda: -1, end=self.ended, close=list)

    def ended(self):
        self.holder = None

    def stay(self):
        self.holder = self.cursor

    def encode(self, one):
        nothing = record.NOTHING
        return Stored(
            one.state, one.error, one.boot == "this", one.mount == 1, bool(one.holder),
            one.doubt != nothing, one.checkpoint != nothing,
        )  # fmt: skip

    def decode(self, stored):
        """A real record; of a mount that begins, if there is none."""
        one = object.__new__(record.Record)
        record.Record.__init__(one)
        one.boot, one.mount, one.upper, one.work, one.device, one.uuid = "this", 1, "1", "2", "8:1", "9"
        if stored is not None:
            one.state, one.error = stored.state, stored.error
            one.boot = "this" if stored.boot else "another"
            one.mount = 1 if stored.mount else 2
            one.holder = one.probe_mount = int(stored.holder)
            one.doubt = "doubt" if stored.doubt else record.NOTHING
            one.checkpoint = "then" if stored.checkpoint else record.NOTHING
        return one

    # --- what happens to it ---

    def admit(self, world, proof, hold):
        if not proof and super().admit(world, proof, hold) is None:
            return None
        self.enter(world)
        continuity = reuse.Continuity(-1, -1, hold)
        cursor = None
        if proof:
            try:
                held = continuity.admit(-1, world.marker, b"", b"")
            except reuse.NotProven:
                return None
            cursor = held and held.cursor
        else:
            continuity.look(-1)
        return Mounted(cursor, next=self.encode(continuity.now))

    def begin(self, world):
        self.enter(world)
        continuity = reuse.Continuity(-1, -1, world.asking.hold)
        continuity._asked = world.asking.proof
        continuity._last = world.record and self.decode(world.record)
        continuity.now = self.decode(world.asking.next)
        continuity._held = self.find(1, 1)
        continuity.begin(0, self.probe(0, 0))
        continuity.settle()
        return self.after(world, continuity)

    def continuity(self, world):
        self.enter(world)
        continuity = reuse.Continuity(-1, -1, world.mounted.hold)
        continuity.now = self.decode(world.record)
        continuity._workdir_fd = 0
        return continuity

    def after(self, world, continuity):
        world = world._replace(record=self.stored, holder=self.holder)
        return world._replace(disk_record=self.stored) if self.durable else world

    def end(self, world, state):
        continuity = self.continuity(world)
        self.cursor = world.mounted.cursor
        continuity.end(state, self.sync_status(world), b"")
        return self.after(world, continuity)

    def in_another_boot(self, stored):
        return stored and stored._replace(boot=False, mount=False)

    def in_another_mount(self, stored):
        return stored and stored._replace(mount=False)

