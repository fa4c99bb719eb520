"""Several readers of one directory, in an order that the kernel's cache of listings has to survive."""

import os

import pytest

from support.syscalls import getdents

MANY = 500
SMALL = 300  # bytes: a few entries


@pytest.fixture(params=["volatile", ""])
def directory(request, layers, voile_overlay):
    """A merged directory of many files."""
    made = layers()
    (made.lowers[0] / "d").mkdir()
    for number in range(MANY):
        (made.lowers[0] / f"d/stays{number}").touch()
    overlay = voile_overlay(made)
    yield overlay.mount(request.param) / "d"
    overlay.umount()


def rest(fd, size=32768):
    names = []
    while part := getdents(fd, size):
        names += [name for name, *_ in part]
    return names


def opened(directory):
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY)


def some(fd):
    return [name for name, *_ in getdents(fd, SMALL)]


def half(fd):
    names = []
    while len(names) < MANY // 2:
        names += some(fd)
    return names


def test_what_was_made_before_opening_is_listed(directory):
    """Also when somebody who began before completes the kernel's cache meanwhile."""
    early = opened(directory)
    began = half(early)
    new = {b"new%d" % number for number in range(50)}
    for name in new:
        (directory / os.fsdecode(name)).touch()
    late = opened(directory)
    listed = some(late)
    began += rest(early)
    listed += rest(late)
    assert len(listed) == len(set(listed)) == 2 + MANY + len(new)
    assert {name for name in listed if name.startswith(b"new")} == new
    assert len(began) == len(set(began))
    assert len([name for name in began if name.startswith(b"stays")]) == MANY
    os.close(early)
    os.close(late)
    # And the next one has it from a cache that is true.
    assert len(os.listdir(directory)) == MANY + len(new)


def test_what_was_removed_before_opening_is_not_listed(directory):
    early = opened(directory)
    began = half(early)
    for number in range(0, MANY, 2):
        os.unlink(directory / f"stays{number}")
    late = opened(directory)
    listed = some(late)
    began += rest(early)
    listed += rest(late)
    assert len(listed) == len(set(listed)) == 2 + MANY // 2
    assert {f"stays{number}".encode() for number in range(1, MANY, 2)} <= set(listed)
    assert {f"stays{number}".encode() for number in range(1, MANY, 2)} <= set(began)
    assert len(began) == len(set(began))
    os.close(early)
    os.close(late)


def test_positions_are_kept_over_changes(directory):
    """telldir(3) and seekdir(3) of one reader, while others list and change the directory."""
    fd = opened(directory)
    first = getdents(fd, SMALL)
    before, offset = {name for name, *_ in first}, first[-1][2]
    for number in range(3):
        (directory / f"new{number}").touch()
        assert len(os.listdir(directory)) == MANY + number + 1
    for _ in range(2):
        os.lseek(fd, offset, os.SEEK_SET)
        after = rest(fd)
        stays = [name for name in after if name.startswith(b"stays")]
        assert len(stays) == len(set(stays))
        assert not before & set(after)
        assert len({name for name in before if name.startswith(b"stays")}) + len(stays) == MANY
    os.close(fd)


def test_place_that_is_gone(layers, voile_overlay):
    """A reader goes on where an entry was that is removed, though others have listed the directory meanwhile.

    The kernel says that this was all when what it has kept fills its last page.
    """
    overlay = voile_overlay(layers())
    point = overlay.mount("volatile")
    per_page = os.sysconf("SC_PAGE_SIZE") // 32  # so long is an entry with a name of eight bytes, or of one
    for size in (4 * per_page - 2, 4 * per_page - 1):
        directory = point / str(size)
        directory.mkdir()
        for number in range(size + 1):
            (directory / f"f{number:07}").touch()
        fd = opened(directory)
        began = []
        while len(began) < 100:
            began += some(fd)
        os.unlink(directory / os.fsdecode(began[-1]))
        left = {os.fsencode(name) for name in os.listdir(directory)}
        assert {os.fsencode(name) for name in os.listdir(directory)} == left
        began += rest(fd, SMALL)
        os.close(fd)
        assert len(began) == len(set(began)) == size + 1 + 2
        assert left < set(began)
    overlay.umount()
