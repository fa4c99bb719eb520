"""What every sync call returns after lost data, on every system: the one place that says so.

test_sync_calls measures each cell, and the table in docs/explanation/honest-sync.md is `markdown()`
(`python -m faults.sync_table` prints it).
"""

#: The errno of the lost data; EIO, whatever that was; success.
E, EIO, OK = "E", "EIO", "0"

SYSTEMS = {
    "kernel": "kernel, `volatile`",
    "voile": "voile, `volatile`",
    "voile, passthrough=off": "voile, `volatile,` `passthrough=off`",
    "voile, plain fuse": "voile, `volatile,` `fuseblk=off,` `passthrough=off`",
    "fuse-overlayfs": "fuse-overlayfs, `volatile`",
    "eatmydata": "libeatmydata, no overlay",
    "none": "no overlay",
}
#: The columns are in the order of SYSTEMS. The four of a cell: the first time, again, on a new descriptor,
#: and for another file, which has lost nothing.
ALWAYS = (E, E, E, E)
ALWAYS_EIO = (EIO, EIO, EIO, EIO)
#: The file's own errseq_t: who has it open is told once; who opens it when somebody was told is not.
ONCE = (E, OK, OK, OK)
ONCE_EACH = (E, OK, OK, E)
NEVER = (OK, OK, OK, OK)

TABLE = {
    "fsync": (ALWAYS, ALWAYS, ALWAYS, ALWAYS, NEVER, NEVER, ONCE),
    "fdatasync": (ALWAYS, ALWAYS, ALWAYS, ALWAYS, NEVER, NEVER, ONCE),
    "fsync of a directory": (ALWAYS, ALWAYS, ALWAYS, ALWAYS, NEVER, NEVER, NEVER),
    "syncfs": (ALWAYS_EIO, ALWAYS_EIO, ALWAYS_EIO, ALWAYS_EIO, NEVER, NEVER, ONCE_EACH),
    "write, O_SYNC": (ONCE, ALWAYS, ALWAYS, ALWAYS, ONCE, NEVER, ONCE),
    "write, O_DSYNC": (ONCE, ALWAYS, ALWAYS, ALWAYS, ONCE, NEVER, ONCE),
    "pwritev2, RWF_SYNC": (NEVER, ONCE, ALWAYS, ALWAYS, NEVER, ONCE, ONCE),
    "pwritev2, RWF_DSYNC": (NEVER, ONCE, ALWAYS, ALWAYS, NEVER, ONCE, ONCE),
    "msync, MS_SYNC": (ONCE, ONCE, ALWAYS, ALWAYS, NEVER, NEVER, ONCE),
    "close": (NEVER, NEVER, NEVER, NEVER, NEVER, NEVER, NEVER),
}


def column(system):
    """{call: (first, again, new, other)} of one of SYSTEMS."""
    number = list(SYSTEMS).index(system)
    return {call: cells[number] for call, cells in TABLE.items()}


def markdown():
    """The table, for the documentation."""
    lines = ["| | " + " | ".join(SYSTEMS.values()) + " |", "|---" * (len(SYSTEMS) + 1) + "|"]
    for call, cells in TABLE.items():
        lines.append(f"| {call} | " + " | ".join(", ".join(cell) for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
