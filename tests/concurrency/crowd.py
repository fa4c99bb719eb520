"""Processes that work on the same files at the same time, and what they share: a clock, an end, numbers."""

import mmap
import os
import pickle
import random
import select
import signal
import threading
import time
import traceback

# When nobody has come further for so long, they hang, in a system call that nobody answers.
GRACE = 40
# So much longer than they should they may work on a busy machine.
LONGEST = 300


class Violated(AssertionError):
    """Something that must be true whatever the interleaving was not; the text says what, for every actor."""


class Cell:
    """A number in shared memory, changed by one process and read by all."""

    def __init__(self, memory, index):
        self._memory = memory
        self._index = index

    @property
    def value(self):
        return self._memory[self._index]

    @value.setter
    def value(self, number):
        self._memory[self._index] = number


class Turn:
    """Counts the changes that one process makes, so that others know whether they looked between two of them.

    An odd count: a change is being made.
    """

    def __init__(self, cell):
        self._cell = cell

    def __enter__(self):
        self._cell.value += 1

    def __exit__(self, *_):
        self._cell.value += 1

    @property
    def made(self):
        """How many changes were made."""
        return self._cell.value // 2

    def at_rest(self, look):
        """(changes made so far, look()) when there was none meanwhile, else None."""
        before = self._cell.value
        if before % 2:
            return None
        seen = look()
        return (before // 2, seen) if self._cell.value == before else None


class Crowd:
    """Actors, each a function that gets its Actor and works until `actor.going()` says no."""

    def __init__(self, seconds, seed):
        self.seconds = seconds
        self.seed = seed
        self._until = 0.0
        self._numbers = memoryview(mmap.mmap(-1, 1 << 16)).cast("Q")
        self._used = 1  # the first one is the end
        self._actors = []
        # To whom the actors that are added belong.
        self.group = ""

    def cell(self):
        """A new shared number, 0."""
        self._used += 1
        return Cell(self._numbers, self._used - 1)

    def turn(self):
        return Turn(self.cell())

    def add(self, name, function, threads=1):
        """`function` in a process of its own, or in several threads of it."""
        self._actors.append(Actor(self, name, function, threads, self.cell()))

    @property
    def elapsed(self):
        """How much of the time is over: 0 to 1."""
        return 1 - (self._until - time.monotonic()) / self.seconds

    @property
    def idle(self):
        """Whether somebody has not done anything yet: the machine may be busy with something else."""
        return any(actor.rounds.value <= actor.threads for actor in self._actors)

    @property
    def ended(self):
        return self._numbers[0] != 0

    def end(self):
        self._numbers[0] = 1

    def run(self):
        """All actors until the time is up; {group: {actor: what it returned, one per thread}}.

        Raises Violated with all that the actors said.
        """
        self._until = time.monotonic() + self.seconds
        for actor in self._actors:
            actor.start()
        self._collect(self._until)
        said = [f"--- {actor.name}\n{actor.error}" for actor in self._actors if actor.error]
        if said:
            raise Violated(f"seed {self.seed}\n" + "\n".join(said))
        results = {}
        for actor in self._actors:
            results.setdefault(actor.group, {})[actor.name] = actor.result
        return results

    @property
    def rounds(self):
        return sum(actor.rounds.value for actor in self._actors)

    def _collect(self, until):
        waiting = {actor.pipe: actor for actor in self._actors}
        rounds, moved = 0, time.monotonic()
        while waiting:
            ready, _, _ = select.select(list(waiting), [], [], 1)
            for pipe in ready:
                waiting.pop(pipe).collect()
            now = time.monotonic()
            if ready or self.rounds != rounds or now < until:
                rounds, moved = self.rounds, now
            if now > until + LONGEST:
                self.end()
            if now > moved + GRACE:
                self.end()
                for actor in waiting.values():
                    actor.kill()
                return


class Actor:
    """One process of the crowd."""

    def __init__(self, crowd, name, function, threads, rounds):
        self.crowd = crowd
        self.name = name
        self.group = crowd.group
        self.rounds = rounds
        self.random = None
        self.number = 0
        self.error = None
        self.result = None
        self._function = function
        self.threads = threads

    def start(self):
        self.pipe, write_end = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                signal.alarm(0)
                answer = self._work()
                with open(write_end, "wb") as pipe:
                    pickle.dump(answer, pipe)
            finally:
                os._exit(0)
        os.close(write_end)

    def _work(self):
        results, errors = {}, []

        def one(number):
            try:
                mine = self._for_thread(number)
                results[number] = self._function(mine)
            except BaseException:
                self.crowd.end()
                errors.append(traceback.format_exc())

        others = [threading.Thread(target=one, args=(n,)) for n in range(1, self.threads)]
        for each in others:
            each.start()
        one(0)
        for each in others:
            each.join()
        return "".join(errors), [results.get(n) for n in range(self.threads)]

    def _for_thread(self, number):
        mine = Actor(self.crowd, f"{self.name}.{number}", None, 1, self.rounds)
        mine.number = number
        mine.random = random.Random(f"{self.crowd.seed} {mine.name}")
        return mine

    def collect(self):
        with open(self.pipe, "rb") as pipe:
            data = pipe.read()
        os.waitpid(self._pid, 0)
        self.error, self.result = pickle.loads(data) if data else ("died without a word", None)

    def kill(self):
        try:
            with open(f"/proc/{self._pid}/wchan") as file:
                self.error = f"hangs in {file.read()} after {self.rounds.value} rounds"
        except OSError as exc:
            self.error = f"hangs ({exc})"
        os.kill(self._pid, signal.SIGKILL)
        os.close(self.pipe)

    # --- for the function ---

    def going(self):
        """Whether to do another round."""
        self.rounds.value += 1
        return not self.crowd.ended and (self.crowd.elapsed < 1 or self.crowd.idle)

    def pause(self, longest=0.002):
        """Some time for others."""
        time.sleep(self.random.random() * longest)


def tolerate(*errors):
    """A function that calls another one; its errno when that is one of `errors`, 0 when all went well."""

    def call(function, *args, **kwargs):
        try:
            function(*args, **kwargs)
        except OSError as exc:
            if exc.errno not in errors:
                raise
            return exc.errno
        return 0

    return call
