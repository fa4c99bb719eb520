"""Races for files: copy-up against everything, appending, truncating, extended attributes."""

import errno
import os
import signal
import time
import traceback
from functools import partial

from concurrency.crowd import tolerate
from concurrency.names import BIG, SMALL, Race, link, put

RECORD = 32
SLOT = 16


class Staged(Race):
    """Copy-up happens once to a file, so there are many, and all actors go from one to the next together."""

    def stage(self, crowd, count):
        """The number of the file to quarrel about now."""
        return min(int(crowd.elapsed * count), count - 1)



class Appended(Race):
    """What several append with O_APPEND is all there, once, each one's in its order."""

    FILES = {"small": 96, "big": 320_000, "none": 0}

    def build(self, lowers):
        for name, size in self.FILES.items():
            if size:
                put(lowers[0] / name, b"L" * size)

    def join(self, crowd, root):
        for number in range(2):
            crowd.add(f"appends {number}", lambda actor: self.append(actor, root), threads=2)
        crowd.add("sees it grow", lambda actor: self.see(actor, root), threads=2)

    def append(self, actor, root):
        written = dict.fromkeys(self.FILES, 0)
        mode = actor.random.choice((os.O_WRONLY, os.O_RDWR))
        while actor.going():
            name = actor.random.choice(list(self.FILES))
            fd = os.open(root / name, mode | os.O_APPEND | os.O_CREAT, 0o644)
            for _ in range(actor.random.randrange(1, 6)):
                record = f"{actor.name},{written[name]}".encode().ljust(RECORD - 1) + b"\n"
                assert os.write(fd, record) == RECORD
                written[name] += 1
            os.close(fd)
        return written

    def see(self, actor, root):
        """Sizes do not shrink, and no half record shows, whenever the file was opened."""
        fds, sizes = {}, dict.fromkeys(self.FILES, 0)
        while actor.going():
            name = actor.random.choice(list(self.FILES))
            if name in fds and actor.random.randrange(4) == 0:
                os.close(fds.pop(name))
            if name not in fds:
                fds[name] = os.open(root / name, os.O_RDONLY | os.O_CREAT, 0o644)
            size = os.lseek(fds[name], 0, os.SEEK_END)
            assert size >= sizes[name], (name, sizes[name], size)
            last = os.pread(fds[name], RECORD, max(0, size - RECORD))
            assert size <= self.FILES[name] or last[-1:] == b"\n", (name, size, last)
            sizes[name] = size
            actor.pause()

    def check(self, root, results):
        for name, size in self.FILES.items():
            with open(root / name, "rb") as file:
                assert file.read(size) == b"L" * size
                records = file.read().splitlines()
            count = {}
            for record in records:
                who, number = record.decode().rstrip().split(",")
                assert int(number) == count.get(who, 0), (name, record, count.get(who))
                count[who] = int(number) + 1
            expected = {
                f"{who}.{thread}": written[name]
                for who, result in results.items()
                if who.startswith("appends")
                for thread, written in enumerate(result)
                if written[name]
            }
            assert count == expected


class CopiedUp(Staged):
    """A copy is whole, and nothing that is written while a file is copied up is lost."""

    COUNT = 48

    def content(self, number):
        size = (0, 50_000, 300_000, 1_500_000 if number % 12 == 3 else 4000)[number % 4]
        return b"%07d\n" % number * (64 + size // 8)

    def build(self, lowers):
        for number in range(self.COUNT):
            put(lowers[number % 2] / f"d{number % 3}/f{number}", self.content(number))

    def path(self, root, number):
        return root / f"d{number % 3}/f{number}"

    def join(self, crowd, root):
        for slot in range(3):
            crowd.add(f"writes {slot}", lambda actor, slot=slot: self.write(actor, root, slot))
        crowd.add("changes attributes", lambda actor: self.change(actor, root), threads=2)
        crowd.add("reads what is copied", lambda actor: self.see(actor, root), threads=2)

    def write(self, actor, root, slot):
        """Its own place in the file; what was opened before the copy-up shows it."""
        written, count = {}, 0
        while actor.going():
            number = self.stage(actor.crowd, self.COUNT)
            path = self.path(root, number)
            old, fd = os.open(path, os.O_RDONLY), -1
            try:
                if slot and number not in written:
                    actor.pause(0.003)
                fd = os.open(path, os.O_RDWR)
                count += 1
                os.pwrite(fd, b"%07d!" % count, slot * SLOT)
                written[number] = count
                for each in (fd, old):
                    assert os.pread(each, 8, slot * SLOT) == b"%07d!" % count, (path, each == fd)
            finally:
                os.close(old)
                os.close(fd)
        return written

    def change(self, actor, root):
        while actor.going():
            path = self.path(root, self.stage(actor.crowd, self.COUNT))
            what = actor.random.randrange(5)
            if what == 0:
                os.chmod(path, actor.random.choice((0o644, 0o664)))
            elif what == 1:
                os.utime(path)
            elif what == 2:
                os.setxattr(path, f"user.{actor.name}", b"value")
                assert os.getxattr(path, f"user.{actor.name}") == b"value"
            elif what == 3:
                os.close(os.open(path, os.O_WRONLY))
            else:
                os.truncate(path, os.stat(path).st_size)

    def see(self, actor, root):
        while actor.going():
            number = self.stage(actor.crowd, self.COUNT)
            self.whole(self.path(root, number).read_bytes(), number)

    def whole(self, data, number):
        """All but the places of the writers is as it was."""
        content = self.content(number)
        assert len(data) == len(content), (number, len(data), len(content))
        assert data[3 * SLOT :] == content[3 * SLOT :], number
        for at in range(0, 3 * SLOT, 8):
            assert data[at : at + 8] == content[:8] or data[at + 7 : at + 8] == b"!", (number, at, data[:48])

    def check(self, root, results):
        for number in range(self.COUNT):
            data = self.path(root, number).read_bytes()
            self.whole(data, number)
            for slot in range(3):
                (written,) = results[f"writes {slot}"]
                last = b"%07d!" % written[number] if number in written else self.content(number)[:8]
                assert data[slot * SLOT : slot * SLOT + 8] == last, (number, slot, data[:48], last)


class Truncated(Staged):
    """Who truncates a file has it empty, though others have it copied up with its data."""

    COUNT = 40
    NEW = b"new content"

    def content(self, number):
        return (BIG if number % 2 else SMALL) + b"%d" % number

    def build(self, lowers):
        for number in range(self.COUNT):
            put(lowers[0] / f"f{number}", self.content(number))

    def join(self, crowd, root):
        self.turns = [crowd.cell() for _ in range(self.COUNT)]
        crowd.add("truncates", lambda actor: self.truncate(actor, root))
        crowd.add("copies up", lambda actor: self.copy_up(actor, root), threads=2)
        crowd.add("reads truncated", lambda actor: self.see(actor, root))

    def truncate(self, actor, root):
        done = set()
        while actor.going():
            number = self.stage(actor.crowd, self.COUNT)
            if number in done:
                actor.pause()
                continue
            actor.pause(0.004)
            path = root / f"f{number}"
            if number % 4 < 2:
                fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
            else:
                os.truncate(path, 0)
                fd = os.open(path, os.O_WRONLY)
            assert os.fstat(fd).st_size == 0, number
            assert os.write(fd, self.NEW) == len(self.NEW)
            os.close(fd)
            self.turns[number].value = 1
            assert path.read_bytes() == self.NEW, number
            done.add(number)
        return done

    def copy_up(self, actor, root):
        while actor.going():
            path = root / f"f{self.stage(actor.crowd, self.COUNT)}"
            what = actor.random.randrange(3)
            if what == 0:
                os.chmod(path, actor.random.choice((0o644, 0o664)))
            elif what == 1:
                os.close(os.open(path, os.O_RDWR))
            else:
                os.setxattr(path, "user.x", b"x")
            actor.pause()

    def see(self, actor, root):
        while actor.going():
            number = self.stage(actor.crowd, self.COUNT)
            done = self.turns[number].value
            data = (root / f"f{number}").read_bytes()
            if done:
                assert data == self.NEW, (number, len(data))
                continue
            # Where voile reads for the kernel: it fills up what is missing while its own truncate(2) is not
            # over (fuse_short_read).
            data = data.rstrip(b"\0")
            assert self.NEW.startswith(data) or self.content(number).startswith(data), (number, data[:20])

    def check(self, root, results):
        (done,) = results["truncates"]
        for number in range(self.COUNT):
            expected = self.NEW if number in done else self.content(number)
            assert (root / f"f{number}").read_bytes() == expected, number


class Unlinked(Staged):
    """Files and the directories above them are renamed and removed while they are copied up."""

    COUNT = 48

    def content(self, number):
        return b"%04d" % number * (16 + (0, 90_000)[number % 2])

    def build(self, lowers):
        for number in range(self.COUNT):
            put(lowers[number % 2] / f"d{number % 4}/e/f{number}", self.content(number))

    def join(self, crowd, root):
        for slot in range(2):
            crowd.add(f"writes to {slot}", lambda actor, slot=slot: self.write(actor, root, slot))
        for number in range(2):
            crowd.add(f"removes {number}", lambda actor: self.remove(actor, root))
        crowd.add("renames", lambda actor: self.rename(actor, root))
        if self.redirects:
            crowd.add("renames parents", lambda actor: self.rename_parents(actor, root))

    def paths(self, actor, root):
        number = self.stage(actor.crowd, self.COUNT)
        directory, middle = f"d{number % 4}", actor.random.choice(("e", "E"))
        if self.redirects and actor.random.randrange(2):
            directory = directory.upper()
        above = root / directory / (middle if self.redirects else "e")
        names = [f"f{number}", f"renamed{number}"]
        actor.random.shuffle(names)
        return number, *(above / name for name in names)

    def write(self, actor, root, slot):
        count = 0
        while actor.going():
            number, path, _ = self.paths(actor, root)
            try:
                fd = os.open(path, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                count += 1
                os.pwrite(fd, b"%07d!" % count, slot * SLOT)
                assert os.pread(fd, 8, slot * SLOT) == b"%07d!" % count, path
                content = self.content(number)
                data = os.pread(fd, len(content) + 1, 0)
                assert data[32:] == content[32:], (path, len(data))
                assert os.fstat(fd).st_nlink in (0, 1)
            finally:
                os.close(fd)

    def remove(self, actor, root):
        removed = {}
        while actor.going():
            number, path, _ = self.paths(actor, root)
            actor.pause(0.01)
            if actor.random.randrange(8) == 0 and tolerate(errno.ENOENT)(os.unlink, path) == 0:
                removed[number] = removed.get(number, 0) + 1
        return removed

    def rename(self, actor, root):
        while actor.going():
            _number, path, new = self.paths(actor, root)
            tolerate(errno.ENOENT)(os.rename, path, new)
            actor.pause()

    def rename_parents(self, actor, root):
        while actor.going():
            name = f"d{actor.random.randrange(4)}"
            tolerate(errno.ENOENT)(os.rename, root / name / "e", root / name / "E")
            tolerate(errno.ENOENT)(os.rename, root / name, root / name.upper())
            actor.pause()
            tolerate(errno.ENOENT)(os.rename, root / name.upper() / "E", root / name.upper() / "e")
            tolerate(errno.ENOENT)(os.rename, root / name.upper(), root / name)

    def check(self, root, results):
        left = {}
        for directory, _names, files in os.walk(root):
            for name in files:
                number = int(name.removeprefix("renamed").removeprefix("f"))
                left[number] = left.get(number, 0) + 1
                with open(os.path.join(directory, name), "rb") as file:
                    assert file.read()[32:] == self.content(number)[32:], (directory, name)
        for name, (result, *_) in results.items():
            for number, count in result.items() if name.startswith("removes") else ():
                left[number] = left.get(number, 0) + count
        assert left == dict.fromkeys(range(self.COUNT), 1)


class Attributes(Race):
    """Extended attributes are made and removed by one alone, and their values are whole."""

    OBJECTS = ["small", "big", "dir", "made"]

    def build(self, lowers):
        put(lowers[0] / "small", SMALL)
        put(lowers[0] / "big", BIG)
        put(lowers[1] / "dir/inside", SMALL)
        for name in ("small", "dir"):
            os.setxattr(lowers[int(name == "dir")] / name, "user.old", b"A" * 100)

    def begin(self, root):
        put(root / "made", b"")

    def join(self, crowd, root):
        for number in range(2):
            crowd.add(f"sets attributes {number}", lambda actor: self.work(actor, root), threads=2)

    def work(self, actor, root):
        balance = {}
        while actor.going():
            name, attribute = actor.random.choice(self.OBJECTS), actor.random.choice(("user.old", "user.new"))
            path, value = root / name, actor.random.choice((b"A" * 200, b"B" * 700, b"C"))
            key, what = (name, attribute), actor.random.randrange(5)
            if what == 0:
                done = tolerate(errno.EEXIST)(os.setxattr, path, attribute, value, os.XATTR_CREATE) == 0
                balance[key] = balance.get(key, 0) + done
            elif what == 1:
                done = tolerate(errno.ENODATA)(os.removexattr, path, attribute) == 0
                balance[key] = balance.get(key, 0) - done
            elif what == 2:
                tolerate(errno.ENODATA)(os.setxattr, path, attribute, value, os.XATTR_REPLACE)
            else:
                tolerate(errno.ENODATA)(self.see, path, attribute)
        return balance

    def see(self, path, attribute):
        value = os.getxattr(path, attribute)
        assert value == value[:1] * len(value) and len(value) in (1, 100, 200, 700), value

    def check(self, root, results):
        balance = {(name, "user.old"): 1 for name in ("small", "dir")}
        for result in results.values():
            for each in result:
                for key, number in each.items():
                    balance[key] = balance.get(key, 0) + number
        for name in self.OBJECTS:
            here = os.listxattr(root / name)
            for attribute in ("user.old", "user.new"):
                assert balance.get((name, attribute), 0) == (attribute in here), (name, attribute)


class Stats(Race):
    """stat(2) shows what a file is after the last change, whoever lists and looks it up meanwhile."""

    FILES = ["small", "big", "made"]

    def build(self, lowers):
        put(lowers[0] / "dir/small", SMALL)
        put(lowers[1] / "dir/big", BIG)

    def begin(self, root):
        put(root / "dir/made", b"")

    def join(self, crowd, root):
        self.turns = {name: crowd.turn() for name in self.FILES}
        for name in self.FILES:
            crowd.add(f"changes {name}", lambda actor, name=name: self.change(actor, root / "dir", name))
        crowd.add("stats", lambda actor: self.see(actor, root / "dir"), threads=2)

    @staticmethod
    def expected(count):
        """Mode, size and mtime after so many changes."""
        return 0o600 | count % 64, count % 50 * 1000, count

    def change(self, actor, directory, name):
        turn, path = self.turns[name], directory / name
        while actor.going():
            mode, size, mtime = self.expected(turn.made + 1)
            with turn:
                os.chmod(path, mode)
                if actor.random.randrange(2):
                    os.truncate(path, size)
                else:
                    with open(path, "wb", buffering=0) as file:
                        file.write(b"x" * size)
                os.utime(path, (mtime, mtime))
            actor.pause()

    def see(self, actor, directory):
        fds = {name: os.open(directory / name, os.O_RDONLY) for name in self.FILES}

        def scanned(name):
            with os.scandir(directory) as entries:
                return next(entry.stat() for entry in entries if entry.name == name)

        ways = [lambda name: os.stat(directory / name), lambda name: os.fstat(fds[name]), scanned]
        while actor.going():
            name = actor.random.choice(self.FILES)
            look = partial(actor.random.choice(ways), name)
            seen = self.turns[name].at_rest(look)
            if seen is None or seen[0] == 0:
                actor.pause(0.0005)
                continue
            st = seen[1]
            found = st.st_mode & 0o777, st.st_size, st.st_mtime_ns / 1e9
            assert found == self.expected(seen[0]), (name, look, found, self.expected(seen[0]))
        for fd in fds.values():
            os.close(fd)


class Linked(Staged):
    """Names of one lower file are copied up at the same time: one file with an index, else each its own."""

    COUNT = 32
    NAMES = ["a/f", "b/f", "b/g"]

    def content(self, number):
        return b"%07d\n" % number * (64, 40_000)[number % 2]

    def build(self, lowers):
        for number in range(self.COUNT):
            paths = [lowers[0] / f"{name}{number}" for name in self.NAMES]
            put(paths[0], self.content(number))
            paths[1].parent.mkdir(exist_ok=True)
            for path in paths[1:]:
                os.link(paths[0], path)

    def join(self, crowd, root):
        for slot in range(len(self.NAMES)):
            crowd.add(f"writes by name {slot}", lambda actor, slot=slot: self.write(actor, root, slot))
        crowd.add("changes by name", lambda actor: self.change(actor, root))

    def write(self, actor, root, slot):
        written, count = {}, 0
        while actor.going():
            number = self.stage(actor.crowd, self.COUNT)
            with open(root / f"{self.NAMES[slot]}{number}", "r+b", buffering=0) as file:
                count += 1
                os.pwrite(file.fileno(), b"%07d!" % count, slot * SLOT)
                written[number] = count
            data = (root / f"{self.NAMES[slot]}{number}").read_bytes()
            assert data[slot * SLOT :][:8] == b"%07d!" % count, (number, slot)
            assert data[3 * SLOT :] == self.content(number)[3 * SLOT :], (number, slot, len(data))
        return written

    def change(self, actor, root):
        while actor.going():
            path = root / f"{actor.random.choice(self.NAMES)}{self.stage(actor.crowd, self.COUNT)}"
            if actor.random.randrange(2):
                os.chmod(path, actor.random.choice((0o644, 0o664)))
            else:
                if link(path, root / "link") == 0:
                    os.unlink(root / "link")

    def check(self, root, results):
        for number in range(self.COUNT):
            paths = [root / f"{name}{number}" for name in self.NAMES]
            last = [results[f"writes by name {slot}"][0].get(number) for slot in range(len(paths))]
            for at, path in enumerate(paths):
                data = bytearray(self.content(number))
                for slot, count in enumerate(last):
                    if count and (self.indexed or slot == at):
                        data[slot * SLOT : slot * SLOT + 8] = b"%07d!" % count
                assert path.read_bytes() == data, (number, at)
            if self.indexed:
                assert {(os.stat(path).st_ino, os.stat(path).st_nlink) for path in paths} == {
                    (os.stat(paths[0]).st_ino, len(paths))
                }, number


class Killed(Staged):
    """Processes are interrupted and killed in the middle of anything: files stay whole, nothing is kept."""

    COUNT = 40

    def content(self, number):
        return b"%07d\n" % number * (64, 60_000)[number % 2]

    def build(self, lowers):
        for number in range(self.COUNT):
            put(lowers[number % 2] / f"d/f{number}", self.content(number))

    def join(self, crowd, root):
        for number in range(2):
            crowd.add(f"is killed {number}", lambda actor: self.kill(actor, root))

    def kill(self, actor, root):
        while actor.going():
            lifetime = 0.02 * actor.random.random()
            pid = os.fork()
            if pid == 0:
                try:
                    signal.signal(signal.SIGALRM, lambda *_: None)
                    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)
                    self.work(actor, root)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(1)
            time.sleep(lifetime)
            os.kill(pid, signal.SIGKILL)
            _pid, status = os.waitpid(pid, 0)
            assert status == signal.SIGKILL, status

    def work(self, actor, root):
        missing = tolerate(errno.ENOENT, errno.EEXIST, errno.EINTR)
        while True:
            number = self.stage(actor.crowd, self.COUNT)
            path = root / f"d/f{number}"
            what = actor.random.randrange(6)
            if what < 2:
                missing(path.open, "r+b")
            elif what == 2:
                path.read_bytes()
            elif what == 3:
                missing(os.rename, path, path)
                missing(os.link, path, root / "link")
            elif what == 4:
                missing(os.unlink, root / "link")
            else:
                os.listdir(root / "d")

    def check(self, root, results):
        for number in range(self.COUNT):
            assert (root / f"d/f{number}").read_bytes() == self.content(number), number
        assert len(os.listdir(root / "d")) == self.COUNT


RACES = [Appended, CopiedUp, Truncated, Unlinked, Attributes, Stats, Linked, Killed]
