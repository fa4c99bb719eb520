"""`voile recover`: what a volatile mount has left, and how to use it again all the same."""

from __future__ import annotations

import errno
import os

from voile.cli import report
from voile.cli.arguments import FLAG, VALUE, Options, parse
from voile.overlay.params import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from voile.overlay.recover import Leftover

HELP = """usage: voile recover UPPER --work DIR [--accept-loss]

Say what a volatile mount that is not mounted any more has left, and why its upper directory may be
incomplete. If it is provably whole, sync it; it is an ordinary upper directory then.

  --work DIR      its work directory
  --accept-loss   accept what may be lost: log it, sync what is there, and remove the marker, so that the next
                  mount works

Exit status: 0 the next mount works; 1 usage or permission; 32 in use, or not such directories; 74 data may be
lost and was not accepted, or cannot be synced.
"""

_OPTIONS: Options = {(b"--work",): VALUE, (b"--accept-loss",): FLAG, (b"-h", b"--help"): FLAG}


def main(words: list[bytes]) -> int:
    """Run `voile recover`."""
    arguments = parse(words, _OPTIONS)
    if b"-h" in arguments:
        report.tell(HELP)
        return report.OK
    work = arguments.last(b"--work")
    if len(arguments.operands) != 1 or work is None:
        raise UsageError("one upper directory and its work directory (--work) are needed")

    from voile.overlay.recover import Leftover

    try:
        leftover = Leftover(arguments.operands[0], work)
    except OSError as error:
        report.say(report.describe(error))
        return report.exit_status(error)
    try:
        return _recover(leftover, b"--accept-loss" in arguments)
    except OSError as error:
        # Whatever it was: data may be lost, and that has not been accepted.
        report.say(f"{os.fsdecode(leftover.upper)}: {error.strerror}")
        return report.LOST_DATA
    finally:
        leftover.close()


def _recover(leftover: Leftover, accept: bool) -> int:
    upper = os.fsdecode(leftover.upper)
    for line in (*_facts(leftover), *(f"at risk: {reason}" for reason in leftover.reasons)):
        report.tell(f"{upper}: {line}".replace("\n", "\\n") + "\n")
    if leftover.reasons and not accept:
        report.say(f"{upper}: nothing is changed; 'voile recover --accept-loss' accepts this")
        return report.LOST_DATA
    if not leftover.reasons and not leftover.marked and not _unsettled(leftover):
        report.say(f"{upper}: there is nothing to recover")
        return report.OK
    code = leftover.settle([f"accepted for {upper}: {reason}" for reason in leftover.reasons])
    for reason in leftover.reasons:
        _log(f"{upper}: accepted: {reason}")
    if code:
        _log(f"{upper}: accepted: its file system has lost data ({errno.errorcode.get(code, code)})")
    if not leftover.reasons:
        report.say(f"{upper}: nothing was lost, and everything is on the disk")
    return report.OK


def _unsettled(leftover: Leftover) -> bool:
    from voile.volatile import record

    return leftover.last is not None and leftover.last.state not in record.SETTLED


def _facts(leftover: Leftover) -> list[str]:
    from voile.volatile import record

    last = leftover.last
    if last is None:
        return []
    what = {
        record.MOUNTED: "was made",
        record.UNMOUNTED: "was unmounted",
        record.SHUT_DOWN: "was shut down, and unmounted",
        record.SYNCED: "was synced and unmounted",
        record.ACCEPTED: "was accepted",
    }
    facts = [f"the last volatile mount {what[last.state]} {last.time}"]
    if last.checkpoint != record.NOTHING:
        facts.append(f"a checkpoint of {last.checkpoint} exists: what came after is at risk")
    else:
        facts.append("no checkpoint exists")
    return facts


def _log(line: str) -> None:
    from voile.server.log import Log

    report.say(line)
    print(line, file=Log())
