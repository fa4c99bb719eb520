"""`voile discard`: remove sandboxes for good."""

from __future__ import annotations

from voile.cli import report
from voile.cli.arguments import FLAG, Options, parse
from voile.overlay.params import UsageError

HELP = """usage: voile discard NAME...

Remove sandboxes and all they hold. One in which a command is running is refused.

Exit status: 0 all were removed; 1 one was not.
"""

_OPTIONS: Options = {(b"-h", b"--help"): FLAG}


def main(words: list[bytes]) -> int:
    """Run `voile discard`."""
    arguments = parse(words, _OPTIONS)
    if b"-h" in arguments:
        report.tell(HELP)
        return report.OK
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
