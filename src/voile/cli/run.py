"""`voile run`: a command in a throwaway tree."""

from __future__ import annotations

import os
import sys

from voile.cli import report
from voile.cli.arguments import FLAG, VALUE, Options, parse
from voile.overlay import params as mount_options
from voile.overlay.params import Params, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from voile.sandbox.world import Place

HELP = """usage: voile run [--name NAME] [--lower DIR] [-o OPTIONS] [--] COMMAND [ARGUMENT...]

Run COMMAND with a directory overlaid by a fresh volatile overlay: nothing below the directory changes.

  --name NAME    name of the sandbox (default: made from the directory's name)
  --lower DIR    the directory (default: the current one)
  -o OPTIONS     as for 'voile mount', without the layers

The changes are kept under the name: 'voile list' shows them, 'voile discard NAME' removes them.

Exit status: that of COMMAND (128+N when signal N killed it); 74 when COMMAND succeeded but the upper file
system has lost data; 125 when voile failed; 126 COMMAND cannot be executed; 127 COMMAND was not found.
"""

_OPTIONS: Options = {
    (b"--name",): VALUE,
    (b"--lower",): VALUE,
    (b"-o", b"--options"): VALUE,
    (b"-h", b"--help"): FLAG,
}


class Backend:
    """The FUSE side of a sandbox (see sandbox.run.Backend)."""

    def __init__(self, inherited: frozenset[int]) -> None:
        self._inherited = inherited

    def serve(self, params: Params, target: bytes, home: Place, there: Place, ready: int) -> None:
        """Be the daemon: open at home, mount there, come back, serve. Says "ready" or what went wrong."""
        from voile.server import process

        def before_mount() -> None:
            there.enter()
            there.close()

        def mounted() -> None:
            home.enter()
            home.close()
            os.write(ready, b"ready")
            os.close(ready)
            process.detach(self._inherited)

        # The world's paths mean nothing here: end, and whoever is left in there gets ENOTCONN.
        def end(number: int) -> None:
            os._exit(0)

        home.enter()
        try:
            process.serve(params, target, before_mount=before_mount, mounted=mounted, on_signal=end)
        except Exception as error:
            try:
                os.write(ready, os.fsencode(_explain(error)))
            except OSError:  # after "ready": stderr is the system log
                print(_explain(error), file=sys.stderr)
                os._exit(report.INTERNAL)

    def status(self, mountpoint: bytes) -> dict[str, Any]:
        """Ask the mount."""
        from voile.server import control

        return control.status(mountpoint)


def _explain(error: Exception) -> str:
    from voile.overlay.layout import NoWhiteouts
    from voile.volatile.probe import ProbeUnavailable

    text = report.describe(error) or type(error).__name__
    if isinstance(error, ProbeUnavailable | NoWhiteouts):
        text += "; set VOILE_STATE to a directory on another file system"
    return text


def main(words: list[bytes]) -> int:
    """Run `voile run`."""
    arguments = parse(words, _OPTIONS, command_follows=True)
    if b"-h" in arguments:
        report.tell(HELP)
        return report.OK
    if not arguments.operands:
        raise UsageError("a command is needed: voile run [OPTIONS] -- COMMAND")
    params = Params()
    for item in arguments.all(b"-o"):
        mount_options.parse(item, params)

    from voile.sandbox.run import OWN_FAILURE, Run, RunError
    from voile.sandbox.store import Store, StoreError
    from voile.server.process import open_files

    try:
        run = Run(Store(), Backend(open_files()), params, arguments.last(b"--lower") or os.getcwdb())
        return run(arguments.last(b"--name"), arguments.operands)
    except (RunError, StoreError, OSError) as error:
        report.say(report.describe(error))
        return OWN_FAILURE
