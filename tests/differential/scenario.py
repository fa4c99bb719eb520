"""The list of scenarios. A scenario is a generator: it builds layers, is sent a Tree, does its steps.

@scenario(options="redirect_dir=on")
def rename_of_a_lower_directory(b):
    b.low.file("d/f")
    t = yield
    t.rename("d", "e")
"""

from collections import namedtuple

Scenario = namedtuple(
    "Scenario", "name function options lowers upper on lowers_on ino daemon raw clean datas"
)  # fmt: skip
ALL = {}


def scenario(
    options="", lowers=1, upper=True, on="ext4", lowers_on=None, ino=True, name=None, daemon="",
    raw=True, clean=True, datas=0,
):  # fmt: skip
    """Register a scenario.

    options: mount options for both sides. lowers, upper, on, lowers_on: the layers and their file systems.
    datas: how many data-only layers. daemon: more options for voile alone.
    ino: compare inode numbers when the one mounts what the other has written (one file system only).
    raw: compare the upper directories themselves. clean: `voile check` finds nothing in them.
    """

    def register(function):
        full = f"{function.__module__.rpartition('.')[2]}-{name or function.__name__}"
        assert full not in ALL, full
        ino_too = ino and lowers_on is None
        ALL[full] = Scenario(
            full, function, options, lowers, upper, on, lowers_on, ino_too, daemon, raw, clean, datas
        )  # fmt: skip
        return function

    return register
