"""`voile discard`: remove sandboxes for good, or empty what a volatile mount has left."""

from __future__ import annotations

from voile.cli import report
from voile.cli.arguments import FLAG, VALUE, Options, parse
from voile.overlay.params import UsageError

HELP = """usage: voile discard NAME...
       voile discard UPPER --work DIR

Remove sandboxes and all they hold. One in which a command is running is refused.

  --work DIR    empty the upper directory UPPER of a volatile mount that is not mounted any more, and its work
                directory DIR, for a new start

Exit status: 0 all were removed; 1 one was not.
"""

_OPTIONS: Options = {(b"--work",): VALUE, (b"-h", b"--help"): FLAG}


def main(words: list[bytes]) -> int:
    """Run `voile discard`."""
    arguments = parse(words, _OPTIONS)
    if b"-h" in arguments:
        report.tell(HELP)
        return report.OK
    work = arguments.last(b"--work")
    if work is not None:
        if len(arguments.operands) != 1:
            raise UsageError("one upper directory and its work directory (--work) are needed")
        return _empty(arguments.operands[0], work)
    if not arguments.operands:
        raise UsageError("the name of a sandbox is needed ('voile list' shows them)")

    from voile.sandbox.store import Store, StoreError

    store = Store()
    status = report.OK
    for name in arguments.operands:
        try:
            store.discard(name)
        except (StoreError, OSError) as error:
            report.say(report.describe(error))
            status = report.USAGE
    return status


def _empty(upper: bytes, work: bytes) -> int:
    from voile.overlay.recover import Leftover

    try:
        leftover = Leftover(upper, work)
    except OSError as error:
        report.say(report.describe(error))
        return report.USAGE
    try:
        leftover.empty()
    except OSError as error:
        report.say(report.describe(error))
        return report.USAGE
    finally:
        leftover.close()
    return report.OK
