"""`voile`: finds the command and runs it. Each command's module is imported only when it is needed."""

from __future__ import annotations

import os
import sys

from voile import __version__
from voile.cli import report
from voile.overlay.params import UsageError

HELP = f"""voile {__version__}: an overlay file system for throwaway trees

usage: voile run [--name NAME] [--lower DIR] [-o OPTS] [--] COMMAND [ARGUMENT...]
       voile list [--json]
       voile discard NAME...
       voile discard UPPER --work DIR
       voile mount [-f] [-d] -o OPTIONS MOUNTPOINT
       voile umount [-l] [--sync] MOUNTPOINT
       voile status [--json] [--watch] [--calibrate] [MOUNTPOINT]
       voile sync MOUNTPOINT
       voile checkpoint MOUNTPOINT
       voile shutdown MOUNTPOINT
       voile check UPPER [--work DIR] [--lower DIR]... [--data DIR]... [--userxattr] [--fix] [--json]
       voile recover UPPER --work DIR [--accept-loss]
       voile SOURCE MOUNTPOINT -o OPTIONS        (as mount.fuse3 calls it)
       voile -o OPTIONS MOUNTPOINT               (as container engines call it)

'voile COMMAND --help' says more about one of them.
"""

COMMANDS = (
    "mount", "umount", "status", "sync", "checkpoint", "shutdown", "run", "list", "discard", "check",
    "recover",
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process); return the exit status."""
    report.open_standard_files()
    words = [os.fsencode(word) for word in (sys.argv[1:] if argv is None else argv)]
    failed = 125 if words[:1] == [b"run"] else report.USAGE
    try:
        return _dispatch(words)
    except UsageError as error:
        report.say(str(error))
        return failed
    except KeyboardInterrupt:
        return 130 if failed == 125 else report.INTERRUPTED
    except Exception:
        import traceback

        report.say("internal error, please report it:")
        traceback.print_exc()
        return 125 if failed == 125 else report.INTERNAL


def _dispatch(words: list[bytes]) -> int:
    first = words[0].decode("utf-8", "backslashreplace") if words else "--help"
    if first in COMMANDS:
        from importlib import import_module

        status: int = import_module(f"voile.cli.{first}").main(words[1:])
        return status
    if first in ("--version", "-V"):
        report.tell(f"voile {__version__}\n")
        return report.OK
    if first in ("--help", "-h", "help"):
        if words:
            report.tell(HELP)
            return report.OK
        report.say("a command is needed: " + ", ".join(COMMANDS) + " (--help says more)")
        return report.USAGE
    # mount(8) and container engines: no command, but always options.
    if any(word[:2] == b"-o" for word in words):
        from voile.cli import mount

        return mount.main(words, from_helper=True)
    if first[0] == "-":
        raise UsageError(f"unknown option '{first}' (--help shows what there is)")
    from difflib import get_close_matches

    close = get_close_matches(first, COMMANDS, 1)
    hint = f"; did you mean '{close[0]}'?" if close else " (--help shows what there is)"
    raise UsageError(f"unknown command '{first}'{hint}")
