"""`voile run`: a command in a throwaway tree.

Three processes.  *We* (waiting for the command, in its mount namespace), the *daemon* (at home, see
world.py; in a session of its own, so that Ctrl-C does not reach it) and the *command*.  The daemon
opens everything itself, so that we hold no descriptor of the mount: it lives exactly as long as
somebody can see it.  How to serve a mount and how to question one are given to us, because this
package does not know FUSE.
"""

from __future__ import annotations

import errno
import os
import time

from voile.overlay.params import Params, UsageError
from voile.sandbox import child, world

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from voile.sandbox.store import Sandbox, Store

    class Backend(Protocol):
        """What `run` needs of the FUSE side."""

        def serve(
            self, params: Params, target: bytes, home: world.Place, there: world.Place, ready: int
        ) -> None:
            """Be the daemon, until the mount is gone."""

        def status(self, mountpoint: bytes) -> dict[str, Any]:
            """Ask the mount how it is. Raises OSError."""


FAILED_UPPER = 74  # EX_IOERR of <sysexits.h>
OWN_FAILURE = 125

# How long the daemon may take to finish after its mount has gone, and when to look for what keeps it (s).
_GRACE = 10.0
_LOOK_AROUND = 0.05


class RunError(Exception):
    """One line for the user: the sandbox could not be set up."""


class Run:
    """One command in one sandbox."""

    def __init__(self, store: Store, backend: Backend, params: Params, lower: bytes) -> None:
        """Prepare a run over the directory `lower`. Raises RunError, UsageError, or OSError with a path."""
        self._store = store
        self._backend = backend
        self._lower = os.path.realpath(lower)
        if not os.path.isdir(self._lower):
            error = errno.ENOTDIR if os.path.exists(self._lower) else errno.ENOENT
            raise OSError(error, os.strerror(error), lower)
        if self._lower == b"/":
            raise RunError("'/' cannot be overlaid (/proc, /dev and other mounts are below it)")
        if params.lowerdir or params.datadir or params.upperdir or params.workdir:
            raise UsageError("lowerdir, upperdir and workdir are chosen by run; use --lower")
        if params.fsync == "strict":
            raise UsageError("conflicting options: run is always volatile, and fsync=strict")
        if params.hold or params.reuse != "off":
            raise UsageError("a sandbox is used once: neither hold=on nor reuse=auto has a meaning")
        state = os.path.realpath(store.path)
        if (self._lower + b"/").startswith(state + b"/"):
            raise RunError(f"'{os.fsdecode(self._lower)}' lies in the state directory")
        if state.startswith(self._lower + b"/"):
            params.hidden = [state]
        self._params = params
        self._daemon = 0

    def __call__(self, name: bytes | None, command: list[bytes]) -> int:
        """Run `command` in the sandbox `name` (None: choose a name); return the exit status for the user."""
        here = os.getcwdb()
        sandbox = self._store.create(name, self._lower)
        meta = {
            "lower": os.fsdecode(self._lower),
            "command": [os.fsdecode(word) for word in command],
            "created": _now(),
            "userxattr": False,
        }
        try:
            home = self._mount(sandbox)
            meta["userxattr"] = self._params.userxattr
        except BaseException:
            self._store.remove(sandbox)
            raise

        def prepare() -> dict[bytes, bytes]:
            # By name, when the directory that we were started in is a covered one.
            if (here + b"/").startswith(self._lower + b"/"):
                os.chdir(here)
            return {**os.environb, b"VOILE_SANDBOX": sandbox.name}

        try:
            # Recorded when the command runs already: importing json must not delay it.
            status = child.run(command, prepare, lambda: self._record(sandbox, meta))
        except (child.ExecError, OSError) as error:
            # Nothing ran, nothing is worth keeping.
            self._leave(home)
            self._store.remove(sandbox)
            if isinstance(error, OSError):
                raise RunError(f"{os.fsdecode(here)}: {error.strerror}") from None
            _say(str(error))
            return error.status
        state = self._ask()
        still_used = self._leave(home)
        verdict = "unknown" if state is None else "failed" if _has_failed(state) else state["state"]
        self._record(sandbox, {**meta, "ended": _now(), "exit_status": status, "verdict": verdict})
        return self._report(sandbox, state, still_used, status)

    def _record(self, sandbox: Sandbox, meta: dict[str, Any]) -> None:
        try:
            sandbox.write_meta(meta)
        except OSError as error:
            # A file system that fails may well be read-only by now: the command and its verdict matter more.
            _say(f"{os.fsdecode(sandbox.path)}/meta.json cannot be written ({error.strerror})")

    def _mount(self, sandbox: Sandbox) -> world.Place:
        """Make the world, and a daemon that mounts the merged tree in it; we are in the world afterwards."""
        params = self._params
        params.lowerdir = [self._lower]
        params.upperdir = sandbox.upper
        params.workdir = sandbox.work
        params.fsync = "volatile"
        params.source = b"voile:" + sandbox.name
        params.userxattr = params.userxattr or not world.trusted_xattrs()
        if not params.redirect_dir and not params.userxattr:
            params.redirect_dir = "on"  # the upper is ours and new: renaming directories needs no EXDEV
        params.check()
        self._note_other_mounts()
        if not world.privileged():
            world.leave_user_namespace()
        home = world.Place()
        world.enter_new_world()
        there = world.Place()
        told, tell = os.pipe()
        self._daemon = os.fork()
        if self._daemon == 0:
            try:
                os.close(told)
                self._backend.serve(params, self._lower, home, there, tell)
            finally:
                os._exit(0)
        os.close(tell)
        there.close()
        with os.fdopen(told, "rb") as report:
            answer = report.read()
        if answer != b"ready":
            os.waitpid(self._daemon, 0)
            raise RunError(os.fsdecode(answer) or "the daemon ended before it could mount")
        return home

    def _note_other_mounts(self) -> None:
        """An overlay shows one file system: say what the command will miss."""
        from voile.linux import mountinfo

        below = self._lower + b"/"
        for point in sorted({mount.mountpoint for mount in mountinfo.read()}):
            if point.startswith(below):
                _say(f"note: '{os.fsdecode(point)}' is another file system and does not show in the sandbox")

    def _ask(self) -> dict[str, Any] | None:
        try:
            return self._backend.status(self._lower)
        except OSError:
            return None  # the daemon has died

    def _leave(self, home: world.Place) -> bool:
        """Go home. If nobody else is left in the world, it ends, and the daemon with it: wait for that.

        There is no unmount: a background process of the command would see the covered directory then, and
        write to it.  Returns True when there are such processes.
        """
        there = os.stat("/proc/self/ns/mnt").st_ino
        home.enter()
        home.close()
        begin = time.monotonic()
        while not os.waitpid(self._daemon, os.WNOHANG)[0]:
            waited = time.monotonic() - begin
            if waited > _GRACE or (waited > _LOOK_AROUND and world.inhabited(there)):
                return True
            time.sleep(0.001)
        return False

    def _report(self, sandbox: Sandbox, state: dict[str, Any] | None, still_used: bool, status: int) -> int:
        from voile.sandbox import changes

        name = os.fsdecode(sandbox.name)
        try:
            counts = changes.count(
                sandbox.upper, self._lower, self._params.userxattr, self._params.hidden
            )
            summary = f"{counts.added} added, {counts.changed} changed, {counts.deleted} deleted"
        except OSError as error:
            summary = f"changes cannot be counted ({error.strerror})"
        if state is not None:
            summary += f"; {sum(state['omitted'].values())} syncs omitted"
        if still_used:
            summary += "; background processes still use it"
        _say(f"sandbox {name}: {summary}")
        _say(f"verdict: {_verdict_text(state)}")
        if status == 0 and state is None:
            return OWN_FAILURE
        if status == 0 and state is not None and _has_failed(state):
            return FAILED_UPPER
        return status


def _has_failed(state: dict[str, Any]) -> bool:
    return state["state"] in ("failed", "shutdown")


def _verdict_text(state: dict[str, Any] | None) -> str:
    if state is None:
        return "UNKNOWN: the daemon died while the command ran"
    if _has_failed(state):
        error = state["error"]
        if error is None:
            return "FAILED: the mount was shut down; do not rely on the results"
        reason = f"{error.get('name', 'EIO')}, first seen {error.get('since', 'unknown')}"
        return f"FAILED: the upper file system has lost data ({reason}); do not rely on the results"
    return "ok: the upper file system has reported no error (nothing was forced to disk)"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _say(line: str) -> None:
    try:
        os.write(2, f"voile: {line}\n".encode("utf-8", "surrogateescape"))
    except OSError:
        pass  # nobody reads it: the command's exit status is what matters
