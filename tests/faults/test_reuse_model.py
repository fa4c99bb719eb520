"""Random histories of an upper directory, against a model of what is known and of what has really happened.

Two questions at each mount with reuse=auto.  Was it right: is the upper whole when it is mounted?  (`tainted`
of the model follows what happens to the data, not what voile knows of it.)  And was it needed: is it mounted,
or refused, just when the rule says so?
"""

import errno
import os
import random
import shutil

import pytest

from faults.faultyfs import GOOD
from faults.places import voile
from support import holders
from support.overlays import VoileError, VoileOverlay, voile_missing

pytestmark = pytest.mark.skipif(voile_missing() is not None, reason=str(voile_missing()))

MOUNTS = {
    "mount": "volatile",
    "mount auto": "volatile,reuse=auto",
    "mount hold": "volatile,hold=on",
    "mount auto hold": "volatile,reuse=auto,hold=on",
}
SETTLED = ("synced", "accepted")
LENGTH = 10


class History:
    """One upper and work directory, and the model beside it."""

    def __init__(self, fs, seed):
        self.fs = fs
        self.layers = fs.layers()
        self.random = random.Random(seed)
        self.done = []
        self.overlay = None
        self.hold = False
        # What the mount has said.
        self.warning = ""
        # The model: what the record says (None without one), and whether nobody was told of an error.
        self.state = None
        self.error = self.held = self.doubt = self.marked = self.unseen = False
        self.boot = True
        # Since the probe in use, or held, was made.
        self.lost = False
        # The truth: there is data that is not on the disk; and some of it was lost, or may have been.
        self.at_risk = self.tainted = False

    def run(self):
        for _ in range(LENGTH):
            events = self.possible()
            weights = [3 if event.startswith("mount") or event == "umount" else 1 for event in events]
            event = self.random.choices(events, weights)[0]
            self.done.append(event)
            if event in MOUNTS:
                self.mount(event)
            else:
                getattr(self, event)()
            self.look()

    def possible(self):
        if self.overlay is not None:
            return ["umount", "umount_sync", "checkpoint", "kill", "lose", "lose_seen"]
        events = [*MOUNTS, "lose", "lose_seen", "recover", "accept"]
        if self.marked:
            events.append("unmark")
        if self.state is not None:
            events += ["restart", "discard"]
        if self.held:
            events.append("kill_holder")
        return events

    def look(self):
        """What can be seen without asking for a mount."""
        assert (self.layers.work / "work/incompat/volatile").exists() == self.marked, self.done
        record = self.layers.work / "voile.volatile"
        assert (holders.read(self.layers)["state"] if record.exists() else None) == self.state, self.done
        held = [int(holders.read(self.layers)["holder"])] if self.held else []
        holders.wait(self.layers, *held)

    def allowed(self, auto):
        """Whether a mount works, and whether on the probe that was held."""
        if not auto or self.state is None:
            return not self.marked and not self.unseen, False
        if self.state in SETTLED:
            return not (self.doubt or self.marked or self.unseen), False
        whole = self.state == "unmounted" and self.boot and not (self.error or self.doubt)
        return whole and self.held and not self.lost, True

    def mount(self, event):
        auto = "auto" in event
        works, same_probe = self.allowed(auto)
        overlay = VoileOverlay(self.layers)
        try:
            overlay.mount(MOUNTS[event], self.random.choice(["", "fuseblk=off"]))
        except VoileError as error:
            overlay.close()
            assert not works, (self.done, error)
            return
        self.overlay = overlay
        assert works, self.done
        assert not (auto and self.tainted), self.done
        warns = not auto and self.state not in (None, *SETTLED)
        warns = warns and (not self.boot or self.error or (self.held and self.lost))
        self.warning = overlay.output()
        assert bool(self.warning) == warns, (self.done, self.warning)
        if not auto:
            self.doubt = self.doubt or (self.state is not None and self.state not in SETTLED)
        if not same_probe:
            self.lost = False
        self.state, self.marked, self.boot, self.error, self.held = "mounted", True, True, False, False
        self.hold = "hold" in event
        (overlay.point / f"file{len(self.done)}").write_bytes(GOOD)
        self.at_risk = True

    def gone(self, kill=False):
        overlay, self.overlay = self.overlay, None
        if kill:
            overlay.kill()
        else:
            try:
                overlay.umount()
            except VoileError as error:
                assert error.args == (0, self.warning), self.done
        overlay.close()

    def umount(self):
        self.gone()
        self.state, self.error = "unmounted", self.lost
        self.held = self.hold and not self.lost

    def umount_sync(self):
        status, said = voile("umount", "--sync", self.overlay.point)
        self.unseen = False
        if self.lost:
            assert status == 74, (self.done, said)
            self.umount()
            return
        assert (status, said) == (0, ""), self.done
        assert self.overlay.process.wait(10) == 0
        self.overlay.process = None
        self.overlay = None
        self.state, self.marked, self.at_risk = "synced", False, False

    def checkpoint(self):
        status, said = voile("checkpoint", self.overlay.point)
        assert status == (74 if self.lost else 0), (self.done, said)
        self.unseen = False

    def kill(self):
        self.gone(kill=True)
        self.tainted = True

    def lose(self):
        self.fs.lose(errno.EIO)
        self.lost = self.unseen = True
        self.tainted = self.tainted or self.at_risk

    def lose_seen(self):
        self.lose()
        assert self.fs.sync() == errno.EIO
        self.unseen = False

    def unmark(self):
        shutil.rmtree(self.layers.work / "work/incompat")
        self.marked = False

    def kill_holder(self):
        holders.end(self.layers)
        self.held = False

    def restart(self):
        holders.end(self.layers)
        holders.edit(self.layers, boot="another", holder=0)
        self.held = self.boot = False
        self.tainted = self.tainted or self.at_risk

    def reasons(self):
        """Whether something has to be accepted."""
        if self.unseen:
            return True
        return self.marked if self.state is None else not self.allowed(auto=True)[0]

    def recover(self, *words):
        reasons, marked = self.reasons(), self.marked
        status, said = voile("recover", self.layers.upper, "--work", self.layers.work, *words)
        assert status == (74 if reasons and not words else 0), (self.done, said)
        if status == 0:
            assert words or not self.tainted, self.done
            if reasons or marked or self.state not in (None, *SETTLED):
                self.state = "accepted" if reasons else "synced"
                self.marked = self.held = self.unseen = self.doubt = False
                self.at_risk = self.tainted = False

    def accept(self):
        self.recover("--accept-loss")

    def discard(self):
        assert voile("discard", self.layers.upper, "--work", self.layers.work) in ((0, ""),), self.done
        self.state = None
        self.marked = self.held = self.doubt = self.at_risk = self.tainted = False

    def close(self):
        if self.overlay is not None:
            self.overlay.close()
        holders.end(self.layers)


SEEDS = range(int(os.environ.get("VOILE_HISTORIES", "8")))


def test_histories(other_fs):
    """All on one file system: what happens to one is of no concern to the next, but for an unseen error."""
    for seed in SEEDS:
        other_fs.sync()
        history = History(other_fs, seed)
        try:
            history.run()
        finally:
            history.close()
