"""Processes that hold an error probe for the next mount (voile.volatile.holder)."""

import os
import signal

from .wait import wait_until


def of(layers):
    """The pids of those that hold one for the work directory of `layers`."""
    what = b"error probe of " + os.fsencode(layers.work)
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as f:
                    words = f.read().split(b"\0")
            except OSError:
                continue
            if what in words:
                found.append(int(entry))
    return found


def wait(layers, *pids):
    """Until exactly these do: a process that was started or killed is seen to be so a moment later."""
    wait_until(lambda: of(layers) == list(pids), f"not the holders {pids}")


def end(layers):
    """kill -9 of all of them; they are gone afterwards."""
    try:
        pid = int(read(layers).get("holder", 0))
    except (OSError, ValueError):
        pid = 0
    # One that has just been started does not yet have its name.
    wait_until(lambda: not pid or pid in of(layers) or not os.path.exists(f"/proc/{pid}"), "no holder")
    for pid in of(layers):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not of(layers), "a holder does not end")


def read(layers):
    """The fields of the record."""
    lines = (layers.work / "voile.volatile").read_text(errors="replace").splitlines()
    return dict(line.split(" ", 1) for line in lines[1:] if " " in line)


def edit(layers, **fields):
    """Change fields of the record, with a valid sum: what another boot, say, would have left."""
    from voile.volatile import record

    fd = os.open(layers.work, os.O_RDONLY)
    try:
        found = record.read(fd)
        for name, value in fields.items():
            setattr(found, name, value)
        record.write(fd, found, first=True)
    finally:
        os.close(fd)
