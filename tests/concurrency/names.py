"""Races for names: rename, exchange, create, link, unlink, rmdir."""

import errno
import os
import stat
from functools import partial

from concurrency.crowd import tolerate
from support.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

SMALL = b"small " * 20
BIG = b"0123456789abcdef" * 20_000  # more than is copied up at once
GONE = errno.ENOENT


class Race:
    """A quarrel in a directory of its own, with the name of the class.

    `build` gets that directory in each lower layer, `begin` and all after it get it on the mount.
    """

    def __init__(self, options):
        self.redirects = "redirect_dir=on" in options
        self.indexed = "index=on" in options
        self.name = type(self).__name__.lower()

    def build(self, lowers):
        pass

    def begin(self, root):
        pass

    def join(self, crowd, root):
        raise NotImplementedError

    def check(self, root, results):
        pass


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def exclusive(path, dir_fd=None):
    """Makes a file that is not there."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=dir_fd))


def link(path, new):
    """link(2) of a file that is there; the errno, or 0.

    FUSE counts a name that is removed a second time when somebody has asked for the attributes meanwhile
    (fuse_entry_unlinked); and of a file without names vfs_link says that it is not there.
    """
    done = tolerate(errno.EEXIST, errno.ENOENT)(os.link, path, new)
    os.stat(path)
    return done


def read(path):
    """The content: a file's, or that of "inside" in a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            inside = os.open("inside", os.O_RDONLY, dir_fd=fd)
            try:
                return os.read(inside, 1 << 20)
            finally:
                os.close(inside)
        return os.read(fd, 1 << 20)
    finally:
        os.close(fd)


class Moves(Race):
    """A thing that is renamed back and forth has one of two names, never both, never none."""

    def build(self, lowers):
        put(lowers[0] / "here/small", SMALL)
        put(lowers[1] / "here/big", BIG)
        put(lowers[0] / "there/else", SMALL)
        if self.redirects:
            put(lowers[0] / "here/low/inside", SMALL)
            put(lowers[1] / "here/low/other", SMALL)

    def begin(self, root):
        put(root / "here/made/inside", SMALL)

    def join(self, crowd, root):
        self.things = {thing: crowd.turn() for thing in os.listdir(root / "here")}
        for thing in self.things:
            crowd.add(f"moves {thing}", lambda actor, thing=thing: self.move(actor, root, thing))
        crowd.add("sees moves", lambda actor: self.see(actor, root), threads=2)

    def names(self, root, thing):
        return root / "here" / thing, root / "there" / f"moved-{thing}"

    @staticmethod
    def each(function, paths):
        return [function(path) for path in paths]

    def move(self, actor, root, thing):
        names, turn = self.names(root, thing), self.things[thing]
        while actor.going():
            at = turn.made % 2
            with turn:
                os.rename(names[at], names[1 - at])
            actor.pause()

    def see(self, actor, root):
        ways = [
            os.path.lexists,
            lambda path: path.name in os.listdir(path.parent),
            lambda path: tolerate(GONE)(read, path) == 0,
            lambda path: tolerate(GONE)(os.chmod, path, 0o700) == 0,
        ]
        seen_at_rest = 0
        while actor.going():
            thing = actor.random.choice(list(self.things))
            is_there = actor.random.choice(ways)
            seen = self.things[thing].at_rest(partial(self.each, is_there, self.names(root, thing)))
            if seen is None:
                actor.pause(0.0005)
            else:
                seen_at_rest += 1
                assert seen[1] == [seen[0] % 2 == 0, seen[0] % 2 == 1], (thing, seen)
        return seen_at_rest

    def check(self, root, results):
        for thing, turn in self.things.items():
            names = self.names(root, thing)
            at = turn.made % 2
            assert not os.path.lexists(names[1 - at])
            assert read(names[at]) == (BIG if thing == "big" else SMALL)


class Exchanges(Race):
    """Two things that are exchanged are both there all the time."""

    def build(self, lowers):
        put(lowers[0] / "one/big", b"1" + BIG)
        put(lowers[1] / "two/small", b"2" + SMALL)
        if self.redirects:
            put(lowers[0] / "one/low/inside", b"1")
            put(lowers[0] / "two/low/inside", b"2")

    def begin(self, root):
        put(root / "one/made/inside", b"1")
        put(root / "two/made/inside", b"2")

    def join(self, crowd, root):
        pairs = [("one/big", "two/small"), ("one/made", "two/made")]
        if self.redirects:
            pairs.append(("one/low", "two/low"))
        self.pairs = [(root / a, root / b, crowd.turn()) for a, b in pairs]
        for number, pair in enumerate(self.pairs):
            crowd.add(f"exchanges {number}", lambda actor, pair=pair: self.exchange(actor, *pair))
        crowd.add("sees exchanges", self.see, threads=2)

    @staticmethod
    def both(one, two):
        return read(one)[:1] + read(two)[:1]

    def exchange(self, actor, one, two, turn):
        while actor.going():
            with turn:
                renameat2(one, two, RENAME_EXCHANGE)
            actor.pause()

    def see(self, actor):
        while actor.going():
            one, two, turn = actor.random.choice(self.pairs)
            seen = turn.at_rest(partial(self.both, one, two))
            if seen is None:
                actor.pause(0.0005)
            else:
                assert seen[1] == (b"21" if seen[0] % 2 else b"12"), (one, seen)

    def check(self, root, results):
        for one, two, turn in self.pairs:
            assert read(two if turn.made % 2 else one)[:1] == b"1", one


class Replaced(Race):
    """What is renamed over a name is seen whole, and never is there nothing, nor again what was before."""

    SIZES = {"small": 1, "page": 512, "many": 40_000}

    def build(self, lowers):
        for name, count in self.SIZES.items():
            put(lowers[0] / name, b"%08d" % 0 * count)
        os.symlink("0", lowers[1] / "link")

    def join(self, crowd, root):
        self.turns = {name: crowd.turn() for name in [*self.SIZES, "link"]}
        for name in self.turns:
            crowd.add(f"replaces {name}", lambda actor, name=name: self.replace(actor, root, name))
        crowd.add("reads replaced", lambda actor: self.see(actor, root), threads=2)
        crowd.add("reads replaced, too", lambda actor: self.see(actor, root))

    def replace(self, actor, root, name):
        turn, new, number = self.turns[name], root / f"new-{name}", 0
        while actor.going():
            number += 1
            if name == "link":
                os.symlink(str(number), new)
            else:
                new.write_bytes(b"%08d" % number * self.SIZES[name])
            with turn:
                os.rename(new, root / name)
            actor.pause()

    def generation(self, path, name):
        if name == "link":
            return int(os.readlink(path))
        with open(path, "rb", buffering=0) as file:
            data = file.read()
            assert data == data[:8] * self.SIZES[name], (name, len(data), data[:16], data[-16:])
            return int(data[:8])

    def see(self, actor, root):
        latest = dict.fromkeys(self.turns, 0)
        kept = open(root / "page", "rb", buffering=0)
        while actor.going():
            name = actor.random.choice(list(self.turns))
            at_least, count = self.turns[name].made, self.generation(root / name, name)
            assert count >= max(latest[name], at_least), (name, latest[name], at_least, count)
            latest[name] = count
            # What has lost its name stays what it was for who has it open.
            if actor.random.randrange(5) == 0:
                kept.close()
                kept = open(root / "page", "rb", buffering=0)
                number = kept.read(8)
            else:
                number = os.pread(kept.fileno(), 8, 0)
            assert os.pread(kept.fileno(), 10_000, 0) == number * self.SIZES["page"]
        kept.close()

    def check(self, root, results):
        for name, turn in self.turns.items():
            assert self.generation(root / name, name) == turn.made


class Conserved(Race):
    """A name is made by one alone, and removed by one alone: makings less removals is what is left."""

    NAMES = [f"n{i}" for i in range(10)]

    def build(self, lowers):
        for name in self.NAMES[:6:2]:
            put(lowers[0] / name, SMALL)
        for name in self.NAMES[1:6:2]:
            (lowers[1] / name).mkdir(parents=True)
        put(lowers[0] / "source", SMALL)

    def begin(self, root):
        os.unlink(root / "n0")  # a whiteout
        os.rmdir(root / "n1")
        self.before = set(os.listdir(root))

    def join(self, crowd, root):
        for number in range(3):
            crowd.add(f"makes and removes {number}", lambda actor: self.work(actor, root), threads=2)

    def work(self, actor, root):
        balance = dict.fromkeys(self.NAMES, 0)
        made = tolerate(errno.EEXIST)
        gone = tolerate(errno.ENOENT, errno.EISDIR, errno.ENOTDIR)
        moved = tolerate(errno.ENOENT, errno.EEXIST, errno.EXDEV)

        makers = [
            exclusive,
            exclusive,
            os.mkdir,
            lambda path: os.symlink("to", path),
            lambda path: os.mkfifo(path),
        ]
        while actor.going():
            name, other = actor.random.sample(self.NAMES, 2)
            what = actor.random.randrange(11)
            if what < 4:
                make = actor.random.choice(makers)
                balance[name] += made(make, root / name) == 0
            elif what == 4:
                balance[name] += link(root / "source", root / name) == 0
            elif what < 9:
                remove = actor.random.choice((os.unlink, os.rmdir))
                balance[name] -= gone(remove, root / name) == 0
            elif what < 10:
                if moved(renameat2, root / name, root / other, RENAME_NOREPLACE) == 0:
                    balance[name] -= 1
                    balance[other] += 1
            else:
                moved(renameat2, root / name, root / other, RENAME_EXCHANGE)
        return balance

    def check(self, root, results):
        balance = {name: int(name in self.before) for name in self.NAMES}
        for result in results.values():
            for each in result:
                for name, number in each.items():
                    balance[name] += number
        now = set(os.listdir(root))
        assert balance == {name: int(name in now) for name in self.NAMES}
        source = os.stat(root / "source")
        assert source.st_nlink == sum(os.lstat(root / name).st_ino == source.st_ino for name in now)


class Tokens(Race):
    """Files that are moved and linked between directories that move, too: none is lost, counts are right."""

    COUNT = 12
    PLACES = 4

    def build(self, lowers):
        for number in range(self.COUNT):
            data = b"%02d" % number + (BIG if number % 4 == 0 else SMALL)
            put(lowers[number % 2] / f"p{number % self.PLACES}" / f"token{number}", data)
        for place in range(self.PLACES):
            for lower in lowers:
                (lower / f"p{place}").mkdir(exist_ok=True)

    def begin(self, root):
        self.places = [root / f"p{place}" for place in range(self.PLACES)]
        if not self.redirects:
            # Only directories without a lower part can move.
            for place in range(self.PLACES):
                (root / f"q{place}").mkdir()
                self.places.append(root / f"q{place}")

    def join(self, crowd, root):
        for number in range(3):
            crowd.add(f"moves tokens {number}", self.work, threads=2)
        crowd.add("moves places", self.shuffle)

    def work(self, actor):
        links = [0] * self.COUNT
        missing = tolerate(errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)
        while actor.going():
            number = actor.random.randrange(self.COUNT)
            old, new = (self.place(actor.random) / f"token{number}" for _ in range(2))
            what = actor.random.randrange(4)
            if what < 2:
                missing(renameat2, old, new, RENAME_NOREPLACE)
            elif what == 2 and missing(os.link, old, new) == 0:
                links[number] += 1
                if actor.random.randrange(4):
                    links[number] -= missing(os.unlink, old) == 0
            else:
                missing(os.utime, old)
        return links

    def place(self, numbers):
        path = numbers.choice(self.places)
        return path.with_name(path.name + "x") if numbers.randrange(2) else path

    def shuffle(self, actor):
        """Moves places away and back, and into one another."""
        movable = self.places if self.redirects else self.places[self.PLACES :]
        missing = tolerate(errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)
        while actor.going():
            path = actor.random.choice(movable)
            away = path.with_name(path.name + "x")
            inside = actor.random.choice(self.places) / path.name
            for name in (away, inside):
                if name.parent != path and missing(renameat2, path, name, RENAME_NOREPLACE) == 0:
                    actor.pause(0.01)
                    while missing(renameat2, name, path, RENAME_NOREPLACE) == 0:
                        break

    def check(self, root, results):
        expected = [1] * self.COUNT
        for name, result in results.items():
            if "tokens" in name:
                for each in result:
                    expected = [a + b for a, b in zip(expected, each)]
        found = {}
        for directory, _names, files in os.walk(root):
            for name in files:
                path = os.path.join(directory, name)
                with open(path, "rb") as file:
                    data = file.read()
                number = int(data[:2])
                assert name == f"token{number}" and data[2:] == (BIG if number % 4 == 0 else SMALL), path
                found.setdefault(number, []).append((os.stat(path).st_ino, os.stat(path).st_nlink))
        assert {n: len(each) for n, each in found.items()} == dict(enumerate(expected))
        for number, each in found.items():
            assert set(each) == {(each[0][0], len(each))}, (number, each)


class Emptied(Race):
    """A directory is removed or replaced only while nothing is in it: what was made in it is found there."""

    NAMES = ["low", "merged", "made"]

    def build(self, lowers):
        put(lowers[0] / "low/file", SMALL)
        for lower in lowers:
            put(lower / "merged" / lower.parent.name, SMALL)
            put(lower / "merged/both", SMALL)

    def join(self, crowd, root):
        for number in range(2):
            crowd.add(f"fills {number}", lambda actor: self.fill(actor, root), threads=2)
        crowd.add("empties", lambda actor: self.empty(actor, root))
        crowd.add("replaces directories", lambda actor: self.replace(actor, root))

    def fill(self, actor, root):
        gone, count = tolerate(errno.ENOENT), 0
        outside = root / f"outside-{actor.name}"
        while actor.going():
            path = root / actor.random.choice(self.NAMES)
            tolerate(errno.EEXIST)(os.mkdir, path)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            name = f"{actor.name} {actor.random.randrange(3)}"
            what = actor.random.randrange(3)
            outside.write_bytes(b"")
            if what == 0:
                done = gone(exclusive, name, dir_fd=fd)
            elif what == 1:
                done = gone(os.mkdir, name, dir_fd=fd)
            else:
                done = gone(os.rename, outside, name, dst_dir_fd=fd)
            if done == 0:
                count += 1
                os.lstat(path / name)
                assert name in os.listdir(path), (path, name)
                assert tolerate(errno.ENOTEMPTY)(os.rmdir, path) != 0
                assert name in os.listdir(fd), (path, name)
                (os.rmdir if what == 1 else os.unlink)(path / name)
                assert not os.path.lexists(path / name)
            os.close(fd)
        return count

    def empty(self, actor, root):
        count = 0
        while actor.going():
            path = root / actor.random.choice(self.NAMES)
            try:
                for name in os.listdir(path):
                    if not name.startswith("fills"):
                        tolerate(errno.ENOENT)(os.unlink, path / name)
            except FileNotFoundError:
                continue
            count += tolerate(errno.ENOENT, errno.ENOTEMPTY)(os.rmdir, path) == 0
        return count

    def replace(self, actor, root):
        new, count = root / "new", 0
        while actor.going():
            tolerate(errno.EEXIST)(os.mkdir, new)
            path = root / actor.random.choice(self.NAMES)
            count += tolerate(errno.ENOTEMPTY, errno.EEXIST)(os.rename, new, path) == 0
        return count

    def check(self, root, results):
        for name in self.NAMES:
            if os.path.lexists(root / name):
                assert not [each for each in os.listdir(root / name) if each.startswith("fills")]


RACES = [Moves, Exchanges, Replaced, Conserved, Tokens, Emptied]
