"""`voile status --watch`: one mount, until it is unmounted."""

from __future__ import annotations

import os
import time

from voile.cli import mounts, report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from voile.linux.mountinfo import Mount

_PERIOD = 1.0
_HOME_AND_CLEAR = "\x1b[H\x1b[J"


def watch(mount: Mount, show: Callable[[dict[str, Any]], str], in_place: bool) -> int:
    """Show the mount's status again and again, until it is unmounted or its daemon is gone.

    `show` makes text of a status. `in_place` draws on the whole terminal each time; otherwise a status is
    shown when something other than the running counters has changed. Raises OSError as `mounts.ask`.
    """
    last: object = None
    while True:
        status = mounts.ask(mount)
        text = show(status)
        if in_place:
            report.tell(_HOME_AND_CLEAR + text)
        elif _steady(status) != last:
            last = _steady(status)
            report.tell(text)
        if status["pid"] is None:
            return report.OK
        # Not asked through the mount: it might be the one that comes after it.
        time.sleep(_PERIOD)
        now = mounts.find(mount.mountpoint)
        if now is None or now.id != mount.id:
            return report.OK


def _steady(status: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in status.items() if name not in ("omitted", "uptime_s")}


def is_terminal() -> bool:
    """Whether stdout is one."""
    return os.isatty(1)
