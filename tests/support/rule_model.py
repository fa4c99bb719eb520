"""A model of the whole rule of volatile mounts: what may be said to be well, whatever happens in which order.

The world is a superblock, one overlay's directories on it, and who has to do with them: the mount, other
programs, a container engine, the machine. An event leads from one world to others (to several where the disk
may fail or not). `search` goes through all sequences of events, up to a length or all there are, and raises
`FalseOk`, with the events that led to it, where something said that all is well and data was lost, and
`FalseAlarm` where a sync call failed without an error, or with another one than the latest.

Modelled are the kernel and the data. What is decided is decided by the real code: errseq_t, the sync status,
the checkpoint, the marker. `Rule` is what a mount does with them, and what mutations change.
"""

import errno
import itertools
import os
from collections import namedtuple
from types import SimpleNamespace

from voile.server.checkpoint import Checkpoint
from voile.volatile import marker
from voile.volatile.errseq import COUNTER_INCREMENT, Errseq
from voile.volatile.probe import Probe, UnseenError
from voile.volatile.sync_status import SyncStatus

#: `value`: the superblock's errseq_t. `dirty`: there is data of the overlay that is not on the disk yet.
#: `damaged`: some of it was lost (a ghost: no decision looks at it). `marker`: whether it is there.
#: `record`: what reuse goes by, or None. `mounted`: a Mounted, or None. `asking`: the same, of a mount that
#: has yet to decide whether it may reuse the upper. `holder`: the cursor of a probe that outlives its mount.
World = namedtuple(
    "World",
    "value dirty damaged marker record mounted asking holder",
    defaults=(0, False, False, False, None, None, None, None),
)
#: `cursor`: the probe's; `sync_cursor`: that of the descriptor that checkpoints sync; `errno`: of SyncStatus;
#: `checkpointing`: between its two syncs; `frozen`: for an unmount.
#: Ghosts: `lost`: whether data of the overlay was, since the mount; `error`: the latest of the file system.
Mounted = namedtuple(
    "Mounted",
    "cursor sync_cursor errno checkpointing frozen lost error",
    defaults=(0, False, False, False, 0),
)
#: Beside the marker; engines do not know of it. `boot`, `superblock`: whether they are still those of then.
Record = namedtuple(
    "Record", "boot superblock clean failed whole", defaults=(True, True, False, False, False)
)

ERRNOS = (errno.EIO, errno.ENOSPC)


class Wrong(Exception):
    """args: what was wrong, the events that led there."""


class FalseOk(Wrong):
    pass


class FalseAlarm(Wrong):
    pass


# --- the kernel ---


def record_error(value, code):
    errseq = Errseq(value)
    errseq.set(code)
    return errseq.value


def syncfs(value, cursor):
    """(errno, the superblock's value, the cursor) afterwards."""
    errseq = Errseq(value)
    code, cursor = errseq.check_and_advance(cursor)
    return code, errseq.value, cursor


class ModelProbe(Probe):
    """The probe, on a modelled superblock (fs/overlayfs/super.c, ovl_sync_status)."""

    def __init__(self, value, cursor):
        super().__init__(-1, "overlay")
        self.errseq = Errseq(value)
        self.cursor = cursor

    def check(self):
        return self.errseq.check(self.cursor)


# --- what the mount decides ---


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


class Rule:
    """What voile does. Mutations override what they get wrong."""

    probe = ModelProbe
    status = SyncStatus
    checkpoint = Checkpoint
    #: Whether a record beside the marker says what an upper is good for.
    records = True
    #: Whether the mount's own cursor is taken before it is asked whether there was an error since.
    snapshot_first = True

    def __init__(self, directory):
        self.directory = directory

    def snapshot(self, value):
        """A new probe's cursor (ovl_fill_super). Raises UnseenError."""
        errseq = Errseq(value)
        cursor = errseq.sample()
        if errseq.check(cursor):
            raise UnseenError(errno.EIO, "unseen")
        return cursor

    def recorded(self):
        """The record of a mount that begins."""
        return Record()

    def thawed(self, record):
        """The record of a mount that goes on after all."""
        return record._replace(whole=False)

    def reusable(self, record, held):
        """Whether an upper is what the last mount left. `held`: the errno that the holder tells, or None."""
        if record.whole:
            return True
        return record.boot and record.superblock and record.clean and not record.failed and held == 0

    def mountable(self, world):
        """Whether the directories may be mounted at all, the error state aside."""
        if self.records and world.record is not None:
            held = None if world.holder is None else ModelProbe(world.value, world.holder).check()
            return self.reusable(world.record, held)
        self.directory.set(world.marker)
        return not self.directory.refuses()

    def sync_status(self, world):
        """The real one, in the state of the mount."""
        mounted = world.mounted
        status = self.status(True, self.probe(world.value, mounted.cursor))
        if mounted.errno:
            status.note(mounted.errno)
        return status

    def served(self, world, status):
        """As much of a daemon as Checkpoint has to do with."""
        self.directory.set(world.marker)
        return SimpleNamespace(
            overlay=SimpleNamespace(
                sync=status,
                creds=SimpleNamespace(mounter=lambda: None),
                work_fd=self.directory.fd,
                continuity=None,
            ),
            session=SimpleNamespace(exchange=lambda make: None, fd=-1),
            pool=SimpleNamespace(outstanding=0, submit=lambda work, over: None),
            regate=lambda: None,
            files={},
            shutdown=None,
        )


# --- what happens ---


class Events:
    """Each public method is an event: the worlds that it leads to. It raises Wrong where that must not be."""

    def __init__(self, rule):
        self.rule = rule

    def all(self):
        return [getattr(self, name) for name in vars(Events) if name[0] != "_" and name != "all"]

    # the mount

    def mount(self, world):
        """Where there is nothing to ask about; else its first half."""
        if world.mounted or world.asking is not None:
            return
        if self.rule.records and world.record is not None:
            if self.rule.snapshot_first:
                yield from self._begin(world)
            elif self.rule.mountable(world):
                yield world._replace(asking=Mounted(0, 0))
        elif self.rule.mountable(world):
            for begun in self._begin(world):
                yield self._serve(begun)

    def mount_decides(self, world):
        """Its second half."""
        if world.asking is None:
            return
        if not self.rule.snapshot_first:
            for begun in self._begin(world._replace(asking=None)):
                yield self._serve(begun)
        elif self.rule.mountable(world):
            yield self._serve(world)
        else:
            yield world._replace(asking=None)

    def _begin(self, world):
        try:
            asking = Mounted(self.rule.snapshot(world.value), Errseq(world.value).sample())
        except UnseenError:
            asking = None
        yield world._replace(asking=asking)

    def _serve(self, world):
        if world.asking is None:
            return world
        if world.damaged:
            raise FalseOk("the upper is mounted again, and is not whole")
        record = self.rule.recorded() if self.rule.records else None
        return world._replace(marker=True, record=record, mounted=world.asking, asking=None, holder=None)

    def write(self, world):
        if world.mounted and not world.mounted.frozen and not world.dirty:
            yield world._replace(dirty=True)

    def fsync(self, world):
        if world.mounted:
            status = self.rule.sync_status(world)
            answer = status.get()
            if answer == 0 and world.mounted.lost:
                raise FalseOk("fsync says OK")
            if -answer != world.mounted.error:
                raise FalseAlarm("fsync fails")
            yield self._noted(world, status)

    def checkpoint(self, world):
        if world.mounted and not world.mounted.checkpointing and not world.mounted.frozen:
            for synced, code in self._sync(world):
                status = self.rule.sync_status(synced)
                checkpoint = self.rule.checkpoint(self.rule.served(synced, status))
                answer = checkpoint.take().finish(code)
                self._check_checkpoint(synced, checkpoint, answer)
                synced = self._noted(synced, status)
                going_on = not isinstance(answer, dict)  # Late: it syncs once more
                yield synced._replace(mounted=synced.mounted._replace(checkpointing=going_on))

    def checkpoint_ends(self, world):
        if world.mounted and world.mounted.checkpointing:
            for synced, code in self._sync(world):
                status = self.rule.sync_status(synced)
                checkpoint = self.rule.checkpoint(self.rule.served(synced, status))
                answer = checkpoint._finish(code)
                self._check_checkpoint(synced, checkpoint, answer)
                synced = self._noted(synced, status)
                yield synced._replace(mounted=synced.mounted._replace(checkpointing=False))

    def _check_checkpoint(self, world, checkpoint, answer):
        said = isinstance(answer, dict) and answer["error"] is None
        if (said or getattr(checkpoint, "time", None)) and world.mounted.lost:
            raise FalseOk("a checkpoint says OK")

    def _sync(self, world):
        """syncfs(2) on the mount's own descriptor: (world, errno), with the disk working and not."""
        worlds = [world._replace(dirty=False)]
        if world.dirty:
            worlds += self.lose(world)
        for synced in worlds:
            code, value, cursor = syncfs(synced.value, synced.mounted.sync_cursor)
            yield synced._replace(value=value, mounted=synced.mounted._replace(sync_cursor=cursor)), code

    def _noted(self, world, status):
        mounted = world.mounted._replace(errno=status.errno, cursor=status.probe.cursor)
        return world._replace(value=status.probe.errseq.value, mounted=mounted)

    def umount(self, world):
        yield from self._umount(world, None)

    def umount_and_hold(self, world):
        """A process keeps the probe."""
        if self.rule.records and world.mounted:
            yield from self._umount(world, world.mounted.cursor)

    def _umount(self, world, holder):
        mounted = world.mounted
        if mounted and not mounted.frozen:
            record = world.record
            if record is not None:
                record = record._replace(clean=True, failed=self.rule.sync_status(world).get() != 0)
            yield world._replace(record=record, mounted=None, holder=holder)

    def umount_sync_freezes(self, world):
        if world.mounted and not world.mounted.frozen and not world.mounted.checkpointing:
            for synced, code in self._sync(world):
                status = self.rule.sync_status(synced)
                checkpoint = self.rule.checkpoint(self.rule.served(synced, status))
                answer = checkpoint.freeze(0).finish(code)
                self._check_checkpoint(synced, checkpoint, answer)
                there = self.rule.directory.look()
                frozen = answer["error"] is None
                if (frozen or not there) and synced.damaged:
                    raise FalseOk("the marker is removed")
                record = synced.record and synced.record._replace(whole=frozen)
                synced = self._noted(synced, status)._replace(marker=there, record=record)
                yield synced._replace(mounted=synced.mounted._replace(frozen=frozen))

    def umount_sync_ends(self, world):
        if world.mounted and world.mounted.frozen:
            yield world._replace(mounted=None)

    def umount_sync_thaws(self, world):
        if world.mounted and world.mounted.frozen:
            # One that has frozen a mount when there was no error yet.
            healthy = SyncStatus(True, ModelProbe(0, 0))
            checkpoint = self.rule.checkpoint(self.rule.served(world, healthy))
            checkpoint.freeze(0).finish(0)
            checkpoint.thaw()
            record = world.record and self.rule.thawed(world.record)
            yield world._replace(
                marker=self.rule.directory.look(),
                record=record,
                mounted=world.mounted._replace(frozen=False),
            )

    def daemon_killed(self, world):
        if world.mounted:
            yield world._replace(mounted=None)

    # everybody else

    def lose(self, world):
        """Data of the overlay is written back, and lost."""
        if world.dirty:
            yield from self._errors(world._replace(dirty=False, damaged=True), lost=True)

    def lose_others_data(self, world):
        """Data of somebody else on the same file system."""
        yield from self._errors(world, lost=False)

    def _errors(self, world, lost):
        for code in ERRNOS:
            mounted, asking = (
                each and each._replace(lost=each.lost or lost, error=code)
                for each in (world.mounted, world.asking)
            )
            yield world._replace(value=record_error(world.value, code), mounted=mounted, asking=asking)

    def sync_by_others(self, world):
        """Who has just opened a descriptor: what is dirty is written, and an unseen error is seen."""
        _, value, _ = syncfs(world.value, Errseq(world.value).sample())
        yield world._replace(value=value, dirty=False)

    def engine_removes_marker(self, world):
        if world.marker and not world.mounted:
            yield world._replace(marker=False)

    def holder_killed(self, world):
        if world.holder is not None:
            yield world._replace(holder=None)

    def reboot(self, world):
        """A crash: what was not on the disk is gone, and with it the error state."""
        record = world.record and world.record._replace(boot=False, superblock=False)
        yield World(0, False, world.damaged or world.dirty, world.marker, record)

    def filesystem_mounted_anew(self, world):
        """Another superblock, in the same boot. The unmount writes what is dirty; nobody hears of losses."""
        if not world.mounted and world.holder is None and world.asking is None:
            record = world.record and world.record._replace(superblock=False)
            for damaged in {world.damaged, world.damaged or world.dirty}:
                yield World(0, False, damaged, world.marker, record)


def same(world):
    """The world that behaves like it and has the smallest counters: nobody can tell more than equality."""
    values = [world.value, world.holder]
    for each in (world.mounted, world.asking):
        values += [each.cursor, each.sync_cursor] if each else [None, None]
    counters = sorted({value // COUNTER_INCREMENT for value in values if value})
    if not counters or counters[-1] == len(counters) - 1:
        return world
    value, holder, *cursors = [
        value and value % COUNTER_INCREMENT + counters.index(value // COUNTER_INCREMENT) * COUNTER_INCREMENT
        for value in values
    ]
    mounted = world.mounted and world.mounted._replace(cursor=cursors[0], sync_cursor=cursors[1])
    asking = world.asking and world.asking._replace(cursor=cursors[2], sync_cursor=cursors[3])
    return world._replace(value=value, holder=holder, mounted=mounted, asking=asking)


def search(rule, depth=None, without=(), wrong=Wrong):
    """Go through all that can happen within so many events (None: ever). Raises Wrong, of the kind `wrong`.

    Returns the worlds that there are, and after how many events there is no new one.
    """
    events = [event for event in Events(rule).all() if event.__name__ not in without]
    came_from = {World(): None}
    frontier = list(came_from)
    length = 0
    while frontier and length != depth:
        length += 1
        following = []
        for world, event in itertools.product(frontier, events):
            try:
                for after in map(same, event(world)):
                    if after not in came_from:
                        came_from[after] = (world, event.__name__)
                        following.append(after)
            except wrong as found:
                raise type(found)(found.args[0], [*path(came_from, world), event.__name__])
            except Wrong:
                pass  # looked for in another search
        frontier = following
    return set(came_from), length


def path(came_from, world):
    """The events that led to a world."""
    names = []
    while step := came_from[world]:
        world, name = step
        names.append(name)
    return names[::-1]
