"""`voile list`: the sandboxes."""

from __future__ import annotations

import os

from voile.cli import report
from voile.cli.arguments import FLAG, Options, parse
from voile.overlay.params import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from voile.sandbox.store import Sandbox

HELP = """usage: voile list [--json]

List the sandboxes that 'voile run' made and 'voile discard' has not removed.
"""

_OPTIONS: Options = {(b"--json",): FLAG, (b"-h", b"--help"): FLAG}
_COLUMNS = ("NAME", "STATE", "CREATED", "LOWER", "COMMAND")


def main(words: list[bytes]) -> int:
    """Run `voile list`."""
    arguments = parse(words, _OPTIONS)
    if b"-h" in arguments:
        report.tell(HELP)
        return report.OK
    if arguments.operands:
        raise UsageError("list takes no operands")

    from voile.sandbox.store import Store

    try:
        found = [_describe(sandbox) for sandbox in Store().sandboxes()]
    except OSError as error:
        report.say(report.describe(error))
        return report.exit_status(error)
    if b"--json" in arguments:
        import json

        report.tell(json.dumps({"version": 1, "sandboxes": found}, indent=2) + "\n")
    elif found:
        report.tell(_table([_COLUMNS, *map(_row, found)]))
    return report.OK


def _describe(sandbox: Sandbox) -> dict[str, Any]:
    meta = sandbox.read_meta()
    return {
        "name": os.fsdecode(sandbox.name),
        "lower": meta.get("lower"),
        "upperdir": os.fsdecode(sandbox.upper),
        "workdir": os.fsdecode(sandbox.work),
        "command": meta.get("command", []),
        "created": meta.get("created"),
        "ended": meta.get("ended"),
        "exit_status": meta.get("exit_status"),
        "verdict": meta.get("verdict"),
        "userxattr": meta.get("userxattr"),
        "running": sandbox.in_use(),
    }


def _row(about: dict[str, Any]) -> tuple[str, ...]:
    if about["running"]:
        state = "running"
    elif about["verdict"] is None:
        state = "aborted"
    else:
        state = about["verdict"]
    command = " ".join(about["command"])
    if len(command) > 40:
        command = command[:39] + "…"
    created = (about["created"] or "-").replace("T", " ").removesuffix("Z")
    return about["name"], state, created, about["lower"] or "-", command


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append("  ".join(cells).rstrip().replace("\n", "\\n") + "\n")
    return "".join(lines)
