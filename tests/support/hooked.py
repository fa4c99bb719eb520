"""voile with hooks for tests, run in place of the program: `python hooked.py mount -f -o …`.

The hooks are called through the mount, by asking any of its objects for an attribute (see `Hooks.asked`):

user.hook.crash.N      the daemon dies instead of doing the N-th change of a file system from now on
user.hook.fail.N.E     the N-th change from now on fails with errno E; -1: with something that is no OSError
user.hook.fdlimit.N    so many directory descriptors may stay open between two requests
user.hook.hold         the copying of files waits until …
user.hook.holddirs     the copying of directories waits until …
user.hook.holdlater    what is answered late, except after a copy-up, waits until …
user.hook.go           … it may go on
user.hook.nothreads    no thread can be started
user.hook.nohandles    files cannot be found by handle (an ordinary user's mount)
user.hook.longest      the most CPU seconds that the loop has spent between two looks at its requests
user.hook.state        what the daemon holds, as JSON

In the daemon this is one function around each of the few that change a file system: the code under test is
the real one.
"""

import errno
import json
import os
import sys
import threading
import time
from pathlib import Path

CHANGES = {
    "os": (
        *("chmod", "chown", "copy_file_range", "fchmod", "fchown", "ftruncate", "link", "mkdir", "mknod"),
        *("pwrite", "removexattr", "rename", "rmdir", "setxattr", "symlink", "unlink", "utime"),
    ),
    "files": ("fchmodat2", "ficlone", "linkat", "renameat2", "utimensat"),
}


class Hooks:
    def __init__(self):
        self.armed = False
        self.calls = []
        self.at = 0
        self.error = 0
        self.overlay = None
        self.operations = None
        self.holds_directories = False
        self.go = threading.Event()
        self.go.set()
        self.go_later = threading.Event()
        self.go_later.set()
        # Requests that wait, and for which copy-up.
        self.parked = {}
        self.longest = 0.0

    def install(self):
        from voile.fuse.session import Session
        from voile.fuse.workers import WorkerPool
        from voile.linux import files
        from voile.overlay import attr, copy_up, metacopy
        from voile.overlay.super import Overlay
        from voile.server.operations import OverlayOperations

        for module, names in ((os, CHANGES["os"]), (files, CHANGES["files"])):
            for name in names:
                self.wrap(module, name, lambda *_: True)
        self.wrap(os, "open", lambda *a: len(a) > 1 and a[1] & (os.O_CREAT | os.O_TRUNC))
        activate, getxattr = Overlay.activate, attr.getxattr
        init, park, answer_later, complete = (
            OverlayOperations.__init__,
            OverlayOperations.unexpected,
            OverlayOperations.later,
            copy_up.CopyUp.complete,
        )

        def held(run):
            def held_run(job):
                if job.slow and (job.node.is_dir if self.holds_directories else not job.node.is_dir):
                    self.go.wait()
                run(job)

            return held_run

        def later(operations, req, work, *reply):
            def held_work():
                self.go_later.wait()
                return work()

            return answer_later(operations, req, held_work, *reply)

        def unexpected(operations, req, raw, exc):
            code = park(operations, req, raw, exc)
            if code is None and isinstance(exc, copy_up.Busy):  # and not a long listing
                self.parked[req.unique] = exc.job
            return code

        def completed(job, result, exc):
            # Those that wait again are added again.
            self.parked = {unique: other for unique, other in self.parked.items() if other not in (job, None)}
            complete(job, result, exc)

        def activated(overlay):
            self.overlay = overlay
            activate(overlay)

        def made(operations, *arguments):
            self.operations = operations
            init(operations, *arguments)

        def asked(overlay, node, name):
            if name.startswith(b"user.hook."):
                return self.asked(*name.decode().split(".")[2:])
            return getxattr(overlay, node, name)

        for cls, name in ((Session, "_make_process"), (WorkerPool, "run_completions")):
            self.time(cls, name)
        Overlay.activate, attr.getxattr = activated, asked
        for job in (copy_up.CopyUp, metacopy.DataUp):
            job.run = held(job.run)
        OverlayOperations.__init__, OverlayOperations.unexpected = made, unexpected
        copy_up.CopyUp.complete, OverlayOperations.later = completed, later

    def time(self, cls, name):
        real = getattr(cls, name)

        def timed(function):
            def run(*arguments):
                start = time.thread_time()
                function(*arguments)
                self.longest = max(self.longest, time.thread_time() - start)

            return run

        setattr(cls, name, timed(real) if name != "_make_process" else lambda *given: timed(real(*given)))

    def wrap(self, module, name, counts):
        real = getattr(module, name)

        def hooked(*args, **kwargs):
            if self.armed and counts(*args):
                self.calls.append(name)
                if len(self.calls) == self.at:
                    self.armed = False
                    if not self.error:
                        os._exit(99)
                    if self.error < 0:
                        raise ZeroDivisionError
                    raise OSError(self.error, os.strerror(self.error))
            return real(*args, **kwargs)

        setattr(module, name, hooked)

    def asked(self, what, *values):
        numbers = [int(value) for value in values]
        if what in ("crash", "fail"):
            self.armed, self.calls, self.at, self.error = True, [], *numbers, *[0] * (what == "crash")
        elif what == "fdlimit":
            self.overlay.fds.limit, self.overlay.fds.full = numbers[0], True  # the next request trims
        elif what in ("hold", "holddirs"):
            self.holds_directories = what == "holddirs"
            self.go.clear()
        elif what == "holdlater":
            self.go_later.clear()
        elif what == "go":
            self.go.set()
            self.go_later.set()
        elif what == "nohandles":
            for each in (*self.overlay.filesystems.values(), *self.overlay.lowers):
                each.decodes = False
        elif what == "nothreads":
            threading.Thread.start = no_thread
        elif what == "state":
            return self.state()
        elif what == "longest":
            return b"%f" % self.longest
        raise OSError(errno.ENODATA, "done")

    def state(self):
        nodes, operations = self.overlay.nodes, self.operations
        operations.pool.fileno()  # made when it is first needed: then it is always there
        found = {
            "calls": self.calls,
            "nodes": len(nodes),
            "by_ino": len(nodes.by_ino),
            "by_entry": len(nodes.by_entry),
            "hooked": hooked_in(self.overlay.root),
            "fds": sorted(descriptors(self.overlay.fds)),
            "files": len(operations.files),
            "listings": len(operations.listings),
            "mapped": len(operations.mapped),
            "outstanding": operations.pool.outstanding,
            "waiting": len(self.parked),
        }
        return json.dumps(found).encode()


def no_thread(_thread):
    raise RuntimeError("can't start new thread")


def hooked_in(directory):
    """How many nodes hang below a directory."""
    return sum(1 + (hooked_in(child) if child.is_dir else 0) for child in directory.children.values())


def descriptors(cache):
    """What every descriptor of the daemon refers to, without those that are only a cache."""
    cached = {real.fd for real in cache._open if not real.pinned}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in cached:
            try:
                yield os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                pass  # that of the listing


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
    Hooks().install()
    from voile.cli.main import main

    sys.exit(main())
