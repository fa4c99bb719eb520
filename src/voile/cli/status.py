"""`voile status`: all voile mounts that can be seen, or one."""

from __future__ import annotations

import os

from voile.cli import mounts, report
from voile.cli.arguments import FLAG, Options, parse
from voile.overlay.params import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from voile.linux.mountinfo import Mount

HELP = """usage: voile status [--json] [--watch] [--calibrate] [MOUNTPOINT]

Say how voile mounts are: whether data was lost, what was omitted, what is in force.

  --json     one JSON object
  --watch    go on until MOUNTPOINT is unmounted: on a terminal in place, else whenever something changes
             (with --json one object a line)
  --calibrate  of MOUNTPOINT: first do a few real syncs of a small file, to estimate how much time was saved

Exit status: 0 asked; 1 usage, or not permitted to ask; 32 not a voile mount.
"""

_OPTIONS: Options = {
    (b"--json",): FLAG,
    (b"--watch",): FLAG,
    (b"--calibrate",): FLAG,
    (b"-h", b"--help"): FLAG,
}


def main(words: list[bytes]) -> int:
    """Run `voile status`."""
    arguments = parse(words, _OPTIONS)
    if b"-h" in arguments:
        report.tell(HELP)
        return report.OK
    if len(arguments.operands) > 1:
        raise UsageError(f"at most one mount point can be given, not {len(arguments.operands)}")
    as_json = b"--json" in arguments
    watching, calibrating = b"--watch" in arguments, b"--calibrate" in arguments
    if arguments.operands:
        return _one(arguments.operands[0], as_json, watching, calibrating)
    if watching or calibrating:
        raise UsageError(f"--{'watch' if watching else 'calibrate'} needs a mount point")
    return _all(as_json)


def _one(point: bytes, as_json: bool, watching: bool, calibrating: bool) -> int:
    shown = os.fsdecode(point)
    mount = mounts.find(point)
    if mount is None:
        report.say(f"{shown}: not a mount point")
        return report.MOUNT_FAILURE
    try:
        if calibrating:
            from voile.server import control

            control.calibrate(mount.mountpoint)
        if watching:
            return _watch(mount, as_json)
        status = mounts.ask(mount)
    except KeyboardInterrupt:
        return report.OK  # the usual end of watching
    except OSError as error:
        report.say(f"{shown}: {mounts.why(mount, error)}")
        return report.exit_status(error)
    report.tell(_json({"version": 1, **status}) if as_json else human(status))
    return report.OK


def _watch(mount: Mount, as_json: bool) -> int:
    from voile.cli.watch import is_terminal, watch

    if as_json:
        import json

        return watch(mount, lambda status: json.dumps({"version": 1, **status}) + "\n", in_place=False)
    return watch(mount, human, in_place=is_terminal())


def _all(as_json: bool) -> int:
    from voile.linux import mountinfo

    found = []
    exit_status = report.OK
    for mount in mountinfo.read():
        if mounts.is_voile(mount):
            try:
                found.append(mounts.ask(mount))
            except OSError as error:
                report.say(f"{os.fsdecode(mount.mountpoint)}: {error.strerror}")
                exit_status = report.exit_status(error)
    if as_json:
        report.tell(_json({"version": 1, "mounts": found}))
    else:
        report.tell("\n".join(map(human, found)))
    return exit_status


def _json(value: dict[str, Any]) -> str:
    import json

    return json.dumps(value, indent=2) + "\n"


def human(status: dict[str, Any]) -> str:
    """Return the status of one mount as text for people."""
    lines = [f"{status['mountpoint']}: {_state(status)}"]

    def add(label: str, value: object) -> None:
        lines.append(f"  {label:<12}{value}")

    if status["pid"] is None:
        add("daemon", "gone")
        return "\n".join(lines) + "\n"
    for number, layer in enumerate(status["lowerdir"]):
        add("" if number else "lower", layer)
    for number, layer in enumerate(status.get("datadir", ())):
        add("" if number else "data-only", layer)
    if status["upperdir"] is not None:
        add("upper", status["upperdir"])
        add("work", status["workdir"])
    add("daemon", f"pid {status['pid']}, up {_duration(status['uptime_s'])}")
    add("syncs", _syncs(status))
    if status["saved_s"] is not None:
        add("saved", _saved(status))
    if status["not_watched"]:
        add("not watched", f"{status['not_watched']} written files, whose errors are not noticed")
    if status["checkpoint"] is not None:
        add("checkpoint", f"{status['checkpoint']}: everything up to then is on the disk")
    if status["errors"] not in (None, "continue"):
        add("errors", status["errors"])
    add("passthrough", "yes" if status["passthrough"] else "no")
    return "".join(line.replace("\n", "\\n") + "\n" for line in lines)


def _state(status: dict[str, Any]) -> str:
    error = status["error"]
    if status["state"] == "failed" and error is not None:
        text = f"FAILED: the upper file system has lost data ({error['name']}, first seen {error['since']})"
        return f"{text}; read-only since then" if status["read_only"] else text
    words = [status["state"]]
    if status["state"] == "shutdown" and error is not None and status["pid"] is not None:
        words.append(f"the upper file system has lost data ({error['name']}, first seen {error['since']})")
    words += [word for word in ("volatile", "reused", "metacopy") if status.get(word)]
    return ", ".join(words)


def _syncs(status: dict[str, Any]) -> str:
    if not status["volatile"]:
        return "carried out"
    omitted = ", ".join(f"{count} {name}" for name, count in status["omitted"].items() if count)
    return f"omitted: {omitted or 'none yet'} (probe: {status['probe']}, syncfs: {status['syncfs']})"


def _saved(status: dict[str, Any]) -> str:
    times = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in status["calibration"].items())
    return f"about {status['saved_s']:.3g} s, if each would have taken what it takes now: {times}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
