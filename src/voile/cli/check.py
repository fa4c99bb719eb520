"""`voile check`: an fsck for overlay layers."""

from __future__ import annotations

import os

from voile.cli import report
from voile.cli.arguments import FLAG, VALUE, Options, parse
from voile.overlay.params import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from voile.overlay.check_report import Problem, Report

HELP = """usage: voile check UPPER [--work DIR] [--lower DIR]... [--data DIR]... [--userxattr] [--fix]
                   [--json]

Look for what is wrong in the upper directory of an overlay that is not mounted. File data is never touched.

  --work DIR    its work directory: the index, leftovers, the volatile marker
  --lower DIR   a layer below it; all of them, top to bottom: where redirects lead, link counts
  --data DIR    a data-only layer; all of them
  --userxattr   the layer is mounted with userxattr (default: unless root looks at it)
  --fix         mend what has one meaning; refused while the directories are mounted
  --json        one JSON object

Exit status, the sum of: 0 clean; 1 problems were mended; 4 problems are left; 8 something could not be
checked or mended; 16 usage.
"""

_OPTIONS: Options = {
    (b"--work",): VALUE,
    (b"--lower",): VALUE,
    (b"--data",): VALUE,
    (b"--userxattr",): FLAG,
    (b"--fix",): FLAG,
    (b"--json",): FLAG,
    (b"-h", b"--help"): FLAG,
}

# Those of fsck(8), unlike all other commands.
FIXED = 1
LEFT = 4
OPERATIONAL = 8
USAGE = 16


def main(words: list[bytes]) -> int:
    """Run `voile check`."""
    try:
        arguments = parse(words, _OPTIONS)
        if b"-h" in arguments:
            report.tell(HELP)
            return report.OK
        if len(arguments.operands) != 1:
            raise UsageError(f"one upper directory is needed, {len(arguments.operands)} operands given")
    except UsageError as error:
        report.say(str(error))
        return USAGE
    upper = arguments.operands[0]

    from voile.overlay.check import check

    try:
        result = check(
            upper,
            arguments.last(b"--work"),
            arguments.all(b"--lower"),
            b"--userxattr" in arguments or not _sees_trusted(),
            b"--fix" in arguments,
            arguments.all(b"--data"),
        )
    except OSError as error:
        report.say(report.describe(error))
        return OPERATIONAL
    for each in result.errors:
        report.say(report.describe(each))
    if b"--json" in arguments:
        import json

        report.tell(json.dumps(_json(upper, result), indent=2) + "\n")
    else:
        for problem in result.problems:
            report.tell(_line(problem))
    left = len(result.problems) - result.fixed
    if result.problems:
        report.say(f"{os.fsdecode(upper)}: {result.fixed} problems mended, {left} left")
    return (FIXED if result.fixed else 0) | (LEFT if left else 0) | (OPERATIONAL if result.errors else 0)


def _sees_trusted() -> bool:
    """Whether trusted.* attributes show: to root, but not of a user namespace."""
    from voile.linux import creds

    with open("/proc/self/uid_map") as file:
        initial = file.read().split() == ["0", "0", "4294967295"]
    return initial and creds.has_cap(creds.CAP_SYS_ADMIN)


def _line(problem: Problem) -> str:
    words = [os.fsdecode(problem.path), problem.kind, os.fsdecode(problem.detail)]
    line = ": ".join(words).replace("\n", "\\n").replace("\r", "\\r")
    return line + (" (mended)\n" if problem.fixed else "\n")


def _json(upper: bytes, result: Report) -> dict[str, Any]:
    fixed = result.fixed
    return {
        "version": 1,
        "upper": os.fsdecode(upper),
        "problems": [
            {
                "path": os.fsdecode(problem.path),
                "kind": problem.kind,
                "detail": os.fsdecode(problem.detail),
                "fixed": problem.fixed,
            }
            for problem in result.problems
        ],
        "counts": {
            "checked": result.checked,
            "problems": len(result.problems),
            "fixed": fixed,
            "left": len(result.problems) - fixed,
            "errors": len(result.errors),
        },
    }
