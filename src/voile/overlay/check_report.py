"""What a check has found, and the one way in which it changes anything."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Problem:
    """One thing that is wrong: where, of which kind, in words, and whether it was mended."""

    __slots__ = ("path", "kind", "detail", "fixed")

    def __init__(self, path: bytes, kind: str, detail: bytes, fixed: bool) -> None:
        self.path = path
        self.kind = kind
        self.detail = detail
        self.fixed = fixed


class Report:
    """The problems in the order in which they were found, and the errors of the check itself.

    Args:
        fix: whether problems are mended.
    """

    __slots__ = ("fix", "problems", "errors", "checked")

    def __init__(self, fix: bool) -> None:
        self.fix = fix
        self.problems: list[Problem] = []
        self.errors: list[OSError] = []
        self.checked = 0

    def problem(self, path: bytes, kind: str, detail: bytes, *steps: Callable[[], None]) -> bool:
        """Records a problem, and mends it if there are `steps` that do.

        Each step is one system call, and after each of them a mount shows the tree it showed before, or the
        mended one: a kill in between leaves nothing that the next check would not find.

        Returns:
            Whether it is mended.
        """
        fixed = False
        if self.fix and steps:
            try:
                for step in steps:
                    step()
                fixed = True
            except OSError as exc:
                self.error(exc, path)
        self.problems.append(Problem(path, kind, detail, fixed))
        return fixed

    def error(self, exc: OSError, path: bytes) -> None:
        """Records that something could not be read or mended."""
        self.errors.append(OSError(exc.errno, exc.strerror, path))

    @property
    def fixed(self) -> int:
        """How many problems were mended."""
        return sum(each.fixed for each in self.problems)
