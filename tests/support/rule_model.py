"""A model of the whole rule of volatile mounts: what may be said to be well, whatever happens in which order.

The world is a superblock, one overlay's directories on it, and who has to do with them: the mount, other
programs, a container engine, the machine. An event leads from one world to others (to several where the disk
may fail or not). `search` goes through all sequences of events, up to a length or all there are, and raises
`FalseOk`, with the events that led to it, where something said that all is well and data was lost, and
`FalseAlarm` where a sync call failed without an error, or with another one than the latest.

Modelled are the kernel and the data. What is decided is decided by the real code: errseq_t, the sync status,
the checkpoint here, the marker and the record of the last mount in rule_reuse. A rule (there) is what a mount
does with them, and what mutations change.
"""

import errno
import itertools
from collections import namedtuple

from voile.volatile.errseq import COUNTER_INCREMENT, Errseq
from voile.volatile.probe import Probe

#: `value`: the superblock's errseq_t. `dirty`: there is data of the overlay that is not on the disk yet.
#: `damaged`: some of it was lost (a ghost: no decision looks at it). `marker`: whether it is there. `record`:
#: what a rule has written down for the next mount. `disk_marker`, `disk_record`: what a crash leaves of them.
#: `mounted`: a Mounted, or None. `asking`: the same, of a mount that may have the directories, and has yet to
#: take them. `holder`: the cursor of a probe that outlives its mount. `claimed`: whether any mount was to be
#: proven (a ghost).
World = namedtuple(
    "World",
    "value dirty damaged marker record disk_marker disk_record mounted asking holder claimed",
    defaults=(0, False, False, False, None, False, None, None, None, None, False),
)
#: `cursor`: the probe's; `sync_cursor`: that of the descriptor that checkpoints sync; `errno`: of SyncStatus;
#: `checkpointing`: between its two syncs; `frozen`: for an unmount; `hold`: whether its probe is to be kept;
#: `next`: the record that it will begin with; `proof`: whether the upper was to be proven whole.
#: Ghosts: `lost`: whether data of the overlay was, since the mount; `error`: the latest of the file system.
Mounted = namedtuple(
    "Mounted",
    "cursor sync_cursor errno checkpointing frozen hold proof next lost error",
    defaults=(None, None, 0, False, False, False, True, None, False, 0),
)
UNMOUNTED, SYNCED = "unmounted", "synced"
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

    __slots__ = ("cursor", "errseq")

    def __init__(self, value, cursor):
        super().__init__(-1, "overlay")
        self.errseq = Errseq(value)
        self.cursor = cursor

    def check(self):
        return self.errseq.check(self.cursor)


# --- what happens ---


class Events:
    """Each public method is an event: the worlds that it leads to. It raises Wrong where that must not be.

    A mount has two halves, between which anything may happen: it is admitted, and it takes the directories.
    """

    def __init__(self, rule):
        self.rule = rule

    def all(self):
        return [getattr(self, name) for name in vars(Events) if name[0] != "_" and name != "all"]

    # the mount

    def mount(self, world):
        """With proof that the upper is whole (reuse=auto), where the rule knows of such a thing."""
        yield from self._admit(world, proof=True, hold=False)

    def mount_to_be_held(self, world):
        """And its probe is to be kept for the next one."""
        yield from self._admit(world, proof=True, hold=True)

    def mount_without_proof(self, world):
        """What an engine does after it has removed the marker: it accepts what there is."""
        yield from self._admit(world, proof=False, hold=False)

    def _admit(self, world, proof, hold):
        if not world.mounted and not world.asking and proof in self.rule.proofs:
            asking = self.rule.admit(world, proof, hold)
            if asking is not None:
                if proof and world.damaged:
                    raise FalseOk("the upper is mounted again, and is not whole")
                yield world._replace(asking=asking._replace(proof=proof, hold=hold))

    def mount_takes_the_directories(self, world):
        if world.asking:
            mounted = world.asking._replace(sync_cursor=Errseq(world.value).sample(), next=None)
            if mounted.cursor is None:
                if mounted.proof and mounted.lost:
                    raise FalseOk("data was lost after the decision and before there was a probe")
                mounted = mounted._replace(cursor=self.rule.snapshot(world.value), lost=False, error=0)
                if mounted.cursor is False:  # refused
                    yield world._replace(asking=None)
                    return
            begun = self.rule.begin(world)
            claimed = world.claimed or mounted.proof
            yield begun._replace(marker=True, mounted=mounted, asking=None, claimed=claimed)

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
        """Its first sync."""
        if world.mounted and not world.mounted.checkpointing and not world.mounted.frozen:
            for synced, code in self._sync(world):
                status = self.rule.sync_status(synced)
                with self.rule.checkpoint_of(synced, status) as checkpoint:
                    answer = checkpoint.take().finish(code)
                synced = self._noted(checkpoint.world, status)
                self._check(synced, answer)
                going_on = not isinstance(answer, dict)  # Late: it syncs once more
                yield synced._replace(mounted=synced.mounted._replace(checkpointing=going_on))

    def checkpoint_ends(self, world):
        if world.mounted and world.mounted.checkpointing:
            for synced, code in self._sync(world):
                status = self.rule.sync_status(synced)
                with self.rule.checkpoint_of(synced, status) as checkpoint:
                    answer = recorded(checkpoint._finish(code))
                synced = self._noted(checkpoint.world, status)
                self._check(synced, answer)
                yield synced._replace(mounted=synced.mounted._replace(checkpointing=False))

    def umount_sync_freezes(self, world):
        if world.mounted and not world.mounted.frozen and not world.mounted.checkpointing:
            for synced, code in self._sync(world):
                status = self.rule.sync_status(synced)
                with self.rule.checkpoint_of(synced, status) as checkpoint:
                    answer = recorded(checkpoint.freeze(0).finish(code))
                synced = self._noted(checkpoint.world, status)
                self._check(synced, answer)
                if not synced.marker and synced.mounted.lost:
                    raise FalseOk("the marker is removed")
                yield synced._replace(mounted=synced.mounted._replace(frozen=answer["error"] is None))

    def umount_sync_thaws(self, world):
        if world.mounted and world.mounted.frozen:
            # Frozen when there was no error yet.
            with self.rule.checkpoint_of(world, self.rule.healthy()) as checkpoint:
                recorded(checkpoint.freeze(0).finish(0))
                checkpoint.thaw()
            thawed = checkpoint.world
            yield thawed._replace(mounted=thawed.mounted._replace(frozen=False))

    def _check(self, world, answer):
        if isinstance(answer, dict) and answer["error"] is None and world.mounted.lost:
            raise FalseOk("a checkpoint says OK")

    def _sync(self, world):
        """syncfs(2) on the mount's own descriptor: (world, errno), with the disk working and not."""
        worlds = [world._replace(dirty=False)]
        if world.dirty:
            worlds += self.lose(world)
        for synced in map(on_disk, worlds):
            code, value, cursor = syncfs(synced.value, synced.mounted.sync_cursor)
            yield synced._replace(value=value, mounted=synced.mounted._replace(sync_cursor=cursor)), code

    def _noted(self, world, status):
        mounted = world.mounted._replace(errno=status.errno, cursor=status.probe.cursor)
        return world._replace(value=status.probe.errseq.value, mounted=mounted)

    def umount(self, world):
        """Also the second half of one with --sync."""
        if world.mounted:
            ended = self.rule.end(world, SYNCED if world.mounted.frozen else UNMOUNTED)
            yield ended._replace(mounted=None)

    def daemon_killed(self, world):
        if world.mounted or world.asking:
            yield world._replace(mounted=None, asking=None)

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
        yield on_disk(world._replace(value=value, dirty=False))

    def engine_removes_marker(self, world):
        if world.marker and not world.mounted:
            yield world._replace(marker=False)

    def holder_killed(self, world):
        if world.holder is not None:
            yield world._replace(holder=None)

    def crash(self, world):
        """What was not on the disk is gone, and with it the error state."""
        damaged = world.damaged or world.dirty
        record = self.rule.in_another_boot(world.record)
        yield on_disk(World(0, False, damaged, world.marker, record, claimed=world.claimed))

    def crash_at_once(self, world):
        """Before marker and record of a mount were on the disk."""
        damaged = world.damaged or world.dirty
        for there, record in itertools.product(
            {world.marker, world.disk_marker}, {world.record, world.disk_record}
        ):
            # Of what was before the first record nothing is claimed.
            known = damaged and (record is not None or world.claimed)
            record = self.rule.in_another_boot(record)
            yield on_disk(World(0, False, known, there, record, claimed=world.claimed))

    def filesystem_mounted_anew(self, world):
        """Another superblock, in the same boot. The unmount writes what is dirty; nobody hears of losses."""
        if not world.mounted and world.holder is None and world.asking is None:
            record = self.rule.in_another_mount(world.record)
            for damaged in {world.damaged, world.damaged or world.dirty}:
                yield on_disk(World(0, False, damaged, world.marker, record, claimed=world.claimed))


def on_disk(world):
    return world._replace(disk_marker=world.marker, disk_record=world.record)


def recorded(answer):
    """A checkpoint that is being written down: when it is."""
    return answer if isinstance(answer, dict) else answer.finish(answer.work())


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
    with rule:
        return _search(rule, depth, without, wrong)


def _search(rule, depth, without, wrong):
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
