"""Listings by offset (server/dirs.py), and steps of the loop (fuse/workers.py)."""

from voile.fuse.workers import WorkerPool
from voile.server.dirs import Listing


class Node:
    dead = False
    parent = None
    ino = 1


def listing_of(names, split_after):
    listing = Listing(Node(), 0)
    for number, name in enumerate(names):
        if number == split_after:
            listing.split()
        listing.add([(name, number + 10, 8)])
    return listing


def test_a_long_listing_is_the_short_one_in_parts():
    names = [b"%d" % number for number in range(3000)]
    short, long = listing_of(names, -1), listing_of(names, 1000)
    items = list(long.after(0))
    assert items == list(short.after(0))
    assert [name for _, name, *_ in items[:2]] == [b".", b".."]
    assert sorted(name for _, name, *_ in items[2:]) == sorted(names)
    offsets = [at for at, *_ in items]
    assert offsets == sorted(set(offsets))
    for index in (0, 1, 2, 500, 2999, 3001):
        assert list(long.after(offsets[index])) == items[index + 1 :]


def test_equal_offsets_are_told_apart(monkeypatch):
    monkeypatch.setattr("voile.server.dirs.hash", lambda name: 7, raising=False)
    items = list(listing_of([b"a", b"b", b"c"], -1).after(0))
    assert [at for at, *_ in items] == [1, 2, 10, 11, 12]


def test_pages_that_it_fills():
    """Two dots of 32 bytes, and entries of 32: 128 a page."""
    for count, fills in ((126, True), (125, False), (127, False), (254, True)):
        for split_after in (-1, 100):
            listing = listing_of([b"%08d" % number for number in range(count)], split_after)
            assert listing.fills_page
            list(listing.after(0))
            assert listing.fills_page is fills
    listing = listing_of([b"%0250d" % number for number in range(14 + 14)], -1)
    list(listing.after(0))  # 64 and 14 times 280 bytes, then 14 on a page of their own
    assert not listing.fills_page


def test_an_offset_means_the_same_in_all_listings():
    names = [b"%d" % number for number in range(300)]
    first, later = listing_of(names, -1), listing_of(names[::2], 100)
    there = {name for _, name, *_ in later.after(0)}
    items = list(first.after(0))
    for index, (at, *_) in enumerate(items):
        rest = [name for _, name, *_ in later.after(at)]
        assert rest == [name for _, name, *_ in items[index + 1 :] if name in there]


def test_a_step_added_by_a_step_waits_for_the_next_turn():
    pool, seen = WorkerPool(), []

    def step():
        seen.append(len(seen))
        if len(seen) < 3:
            pool.soon(step)

    pool.soon(step)
    pool.run_completions()
    assert (seen, pool.outstanding) == ([0], 1)
    pool.drain()
    assert (seen, pool.outstanding) == ([0, 1, 2], 0)
