"""A mount is there before all of its preparations are made, and answers meanwhile."""

import os
import shutil
import time
from functools import partial

import pytest

from support.users import in_child


@pytest.fixture
def remounted(layers, voile_overlay):
    """for point in remounted(): a volatile mount on plain fuse, where a canary is hatched, and its end."""
    overlay = voile_overlay(layers())

    def mount():
        point = overlay.mount("volatile,fuseblk=off")
        yield point
        overlay.umount()
        shutil.rmtree(overlay.layers.work / "work" / "incompat")

    return mount


def make(path):
    os.umask(0o027)
    os.close(os.open(path, os.O_CREAT, 0o666))


def test_the_umask_counts_from_the_first_request_on(remounted):
    for number in range(5):
        for point in remounted():
            modes = []
            for name in (f"first{number}", f"second{number}"):
                in_child(partial(make, point / name))
                modes.append(oct(os.stat(point / name).st_mode & 0o777))
                time.sleep(0.05)
        assert modes == ["0o640"] * 2


def test_unmounted_at_once(remounted):
    for _ in range(10):
        for _point in remounted():
            pass
