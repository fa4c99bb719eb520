"""The ways a mount can come about, by what the mounter may do."""

import os
import pwd
import shutil
import subprocess

import pytest

from support import mountinfo
from support.namespace import become_root_of_a_user_namespace
from support.overlays import ROOT

VOILE = str(ROOT / "voile")
#: place: (mount options, what `voile status` says of the probe)
PLACES = {
    "fuseblk": ("", "overlay"),
    "plain": ("fuseblk=off", "overlay"),
    "fusermount3": ("userxattr", "overlay-userns"),
    "userns": ("userxattr", "overlay"),
}


def voile(*words):
    """Run voile: (exit status, what it said)."""
    done = subprocess.run([VOILE, *map(os.fspath, words)], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


class Place:
    """`run(work)`: work(point, layers) with a mount of `layers`, as whoever may make it; what it returned.

    work() runs in a child, but for root, and there the failing disk can be commanded as well.
    """

    def __init__(self, name, as_user, layers, *options):
        self.name = name
        self.layers = layers
        # What the mount command has to say, if anything.
        self.warns = None
        self.options = ",".join(filter(None, [layers.options(), PLACES[name][0], *options]))
        self.act = lambda work: work()
        if name == "fusermount3" and not shutil.which("fusermount3"):
            pytest.skip("no fusermount3")
        if name in ("fusermount3", "userns"):
            uid = pwd.getpwnam("nobody").pw_uid
            for path in [layers.base, *layers.base.rglob("*")]:
                os.chown(path, uid, uid)
            self.act = lambda work: as_user(work, uid=uid, fuse=True)

    def run(self, work):
        def mounted():
            if self.name == "userns":
                become_root_of_a_user_namespace()
            os.chdir(self.layers.base)
            status, said = voile("mount", "-o", self.options, self.layers.point)
            try:
                assert (status, bool(said)) == (0, self.warns is not None), said
                assert self.warns is None or self.warns in said, said
                return work(self.layers.point, self.layers)
            finally:
                os.chdir("/")
                if mountinfo.at(self.layers.point):
                    subprocess.run([VOILE, "umount", self.layers.point], check=True)

        return self._from_here(mounted)

    def attempt(self):
        """What `voile mount` says: (exit status, its output). If it mounts, it is unmounted."""

        def attempt():
            if self.name == "userns":
                become_root_of_a_user_namespace()
            os.chdir(self.layers.base)
            try:
                return voile("mount", "-o", self.options, self.layers.point)
            finally:
                os.chdir("/")
                if mountinfo.at(self.layers.point):
                    subprocess.run([VOILE, "umount", self.layers.point], check=True)

        return self._from_here(attempt)

    def _from_here(self, work):
        here = os.getcwd()
        try:
            return self.act(work)
        finally:
            os.chdir(here)


