"""The table of the fault matrix: `make matrix` runs all of test_whole_matrix and prints it.

`keep` is told of every cell; `table` counts them, by each of their dimensions.
"""

import errno
import os
from collections import namedtuple

#: All errnos at each place, not one in turns; and the table is printed.
ALL = os.environ.get("VOILE_MATRIX") == "all"

#: A call, and what it said: 0, or an errno. `wanted`: what it should have said; `listed`: the cell is one of
#: those of which it is known that they cannot be right.
Cell = namedtuple("Cell", "kind lost mount probe moment call got wanted listed")
KEPT = []

DIMENSIONS = {
    "file system": lambda cell: cell.kind,
    "errno of the disk": lambda cell: errno.errorcode.get(cell.lost, "-"),
    "mount, probe": lambda cell: f"{cell.mount}, {cell.probe}",
    "moment": lambda cell: cell.moment,
    "call": lambda cell: cell.call,
}


def keep(cells):
    """Count these Cells, too."""
    KEPT.extend(cells)


def false_ok(cell):
    return bool(cell.wanted and not cell.got)


def false_alarm(cell):
    return bool(cell.got and not cell.wanted)


def wrong_errno(cell):
    return bool(cell.got and cell.wanted and cell.got != cell.wanted)


def wrong(cells):
    """Those that are not as they should be, and not listed."""
    return [cell for cell in cells if cell.got != cell.wanted and not cell.listed]


def table(cells):
    """Markdown."""
    lines = [
        "| | cells | false OK | false alarm | another errno | listed |",
        "|---|---:|---:|---:|---:|---:|",
        _row("**all**", cells),
    ]
    for dimension, of in DIMENSIONS.items():
        lines.append(f"| *{dimension}* | | | | | |")
        for value in dict.fromkeys(map(of, cells)):
            lines.append(_row(value, [cell for cell in cells if of(cell) == value]))
    return "\n".join(lines)


def _row(name, cells):
    unlisted = [cell for cell in cells if not cell.listed]
    counts = [len(cells), *(sum(map(test, unlisted)) for test in (false_ok, false_alarm, wrong_errno))]
    return f"| {name} | " + " | ".join(map(str, [*counts, len(cells) - len(unlisted)])) + " |"
