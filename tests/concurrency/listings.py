"""Listing directories while entries come and go: what stays is listed once, in pieces of any size."""

import os
import stat

from concurrency.names import SMALL, Race, put
from support.syscalls import getdents


class Listed(Race):
    """A merged directory with whiteouts, of three layers, with files, directories and links that stay."""

    STAY = 240
    SIZES = (300, 1000, 4096, 32768)
    READERS = 2

    def build(self, lowers):
        for number in range(self.STAY):
            lower = lowers[number % 2] / "dir"
            lower.mkdir(exist_ok=True)
            if number % 5 == 0:
                (lower / f"stays{number}").mkdir()
            elif number % 5 == 1:
                os.symlink("to", lower / f"stays{number}")
            else:
                (lower / f"stays{number}").write_bytes(SMALL)
        for number in range(40):
            put(lowers[number % 2] / f"dir/removed{number}", SMALL)
            put(lowers[1] / f"dir/comes{number}", SMALL)

    def begin(self, root):
        for number in range(40):
            os.unlink(root / f"dir/removed{number}")
        for number in range(40):
            put(root / f"dir/stays-upper{number}", SMALL)
        self.settle(root)

    def settle(self, root):
        with os.scandir(root / "dir") as entries:
            self.stay = {
                os.fsencode(entry.name): (entry.inode(), entry.stat(follow_symlinks=False).st_mode >> 12)
                for entry in entries
                if entry.name.startswith("stays")
            }

    def join(self, crowd, root):
        for number in range(self.READERS):
            crowd.add(f"{self.name} {number}", lambda actor: self.list(actor, root / "dir"))
        crowd.add(f"{self.name} by name", lambda actor: self.scan(actor, root / "dir"))
        crowd.add(f"{self.name}: comes and goes", lambda actor: self.change(actor, root / "dir"), threads=2)
        crowd.add(f"{self.name}: copies up", lambda actor: self.copy_up(actor, root / "dir"))

    def change(self, actor, directory):
        """Its own names, of which some are in the lower layers; its own listing shows what it did."""
        mine = [f"comes{number}" for number in range(actor.number, 400, 2)]
        listed = set(os.listdir(directory))
        there = {name: name in listed for name in mine}
        while actor.going():
            name = actor.random.choice(mine)
            if there[name] and actor.random.randrange(4) == 0:
                free = [other for other in mine if not there[other]]
                other = actor.random.choice(free)
                os.rename(directory / name, directory / other)
                there[name], there[other] = False, True
            elif there[name]:
                os.unlink(directory / name)
                there[name] = False
            else:
                (directory / name).touch()
                there[name] = True
            if actor.random.randrange(8) == 0:
                listed = set(os.listdir(directory))
                assert {name for name in mine if name in listed} == {name for name in mine if there[name]}
        return there

    def copy_up(self, actor, directory):
        """What stays may be changed."""
        names = [os.fsdecode(name) for name, (_ino, kind) in self.stay.items() if kind != stat.S_IFLNK >> 12]
        while actor.going():
            os.chmod(directory / actor.random.choice(names), 0o755)
            actor.pause(0.01)

    def scan(self, actor, directory):
        while actor.going():
            with os.scandir(directory) as entries:
                found = [os.fsencode(entry.name) for entry in entries if entry.name.startswith("stays")]
            for name in actor.random.sample(found, 3):
                assert os.lstat(os.path.join(os.fsencode(directory), name)).st_ino == self.stay[name][0], name
            assert sorted(found) == sorted(self.stay)

    def list(self, actor, directory):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        while actor.going():
            if actor.random.randrange(3) == 0:
                os.close(fd)
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            os.lseek(fd, 0, os.SEEK_SET)
            size = actor.random.choice(self.SIZES)
            self.complete(self.whole(actor, fd, size), size)
        os.close(fd)

    def whole(self, actor, fd, size):
        """All entries, with a return to an earlier position on the way (telldir, seekdir)."""
        found, back, pieces = [], None, 0
        while True:
            part = getdents(fd, size)
            if not part and back is None:
                return found
            found += part
            pieces += 1
            if actor.random.randrange(16) == 0:
                actor.pause()
            if back is None and pieces == 3:
                # Somewhere in what has been read: the entries behind it come again.
                back = actor.random.randrange(len(found))
            elif back is not None and (not part or actor.random.randrange(4) == 0):
                offset = found[back][2]
                del found[back + 1 :]
                os.lseek(fd, offset, os.SEEK_SET)
                back = None

    def complete(self, found, size):
        names = [name for name, _ino, _offset, _kind in found]
        doubled = {name for name in names if names.count(name) > 1} if len(names) > len(set(names)) else ()
        assert not doubled, (size, doubled)
        stay = {name: (ino, kind) for name, ino, _offset, kind in found if name.startswith(b"stays")}
        if stay != self.stay:
            both = {name: (stay.get(name), self.stay.get(name)) for name in stay.keys() | self.stay.keys()}
            wrong = {name: (got, expected) for name, (got, expected) in both.items() if got != expected}
            raise AssertionError((size, len(wrong), sorted(wrong.items())[:10]))
        others = {name for name in names if not name.startswith((b"stays", b"comes"))}
        assert others == {b".", b".."}, others

    def check(self, root, results):
        (one, two) = results[f"{self.name}: comes and goes"]
        there = {name for name, is_there in [*one.items(), *two.items()] if is_there}
        assert {name for name in os.listdir(root / "dir") if name.startswith("comes")} == there


class ManyListed(Listed):
    """A directory of ten thousand."""

    STAY = 10_000
    SIZES = (4096, 32768, 200_000)
    READERS = 1


RACES = [Listed, ManyListed]
