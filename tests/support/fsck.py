"""`voile check` on the layers of an overlay that is not mounted."""

import os

from voile.overlay.check import check


def complaints(layers, options=""):
    """What it finds in the upper and work directory of `layers`, one line each."""
    words = options.split(",")
    if layers.upper is None:
        return []
    upper, work, *lowers = map(bytes, (layers.upper, layers.work, *layers.lowers))
    report = check(upper, work, lowers, "userxattr" in words, False)
    lines = [f"{error}" for error in report.errors]
    for problem in report.problems:
        # The marker stays behind, as it should; attributes of the other namespace are anybody's on the mount.
        if problem.kind not in ("namespace", "volatile"):
            path = os.path.relpath(problem.path, os.fsencode(layers.base))
            lines.append(f"{path!r}: {problem.kind}: {problem.detail!r}")
    return lines
