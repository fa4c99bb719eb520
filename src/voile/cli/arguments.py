"""Command lines, by hand: argparse alone would cost a third of the time to mount."""

from __future__ import annotations

from voile.overlay.params import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

FLAG = False
VALUE = True

# All spellings of an option, and whether it takes a value.
Options = dict[tuple[bytes, ...], bool]


class Arguments:
    """A parsed command line: options by their first spelling, and operands."""

    __slots__ = ("_found", "operands")

    def __init__(self) -> None:
        self._found: dict[bytes, list[bytes]] = {}
        self.operands: list[bytes] = []

    def __contains__(self, option: bytes) -> bool:
        return option in self._found

    def all(self, option: bytes) -> list[bytes]:
        """All values of `option`, in the order given."""
        return self._found.get(option, [])

    def last(self, option: bytes) -> bytes | None:
        """The value of `option` that counts, or None."""
        values = self._found.get(option)
        return values[-1] if values else None

    def add(self, option: bytes, value: bytes) -> None:
        """Record one occurrence."""
        self._found.setdefault(option, []).append(value)


def parse(
    words: Sequence[bytes], options: Options, *, command_follows: bool = False
) -> Arguments:
    """Parse by the conventions of getopt_long(3), without abbreviations.

    With `command_follows` the first operand ends
    the options.  Raises UsageError naming the word that is wrong.
    """
    spellings = {name: (names[0], takes) for names, takes in options.items() for name in names}
    result = Arguments()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == b"--":
            result.operands += rest
            break
        if word[:1] != b"-" or word == b"-":
            result.operands.append(word)
            if command_follows:
                result.operands += rest
                break
        elif word[:2] == b"--":
            _long(word, rest, spellings, result)
        else:
            _short(word, rest, spellings, result)
    return result


def _unknown(word: bytes) -> UsageError:
    shown = word.decode("utf-8", "backslashreplace")
    return UsageError(f"unknown option '{shown}' (--help shows what there is)")


def _take(name: bytes, rest: list[bytes]) -> bytes:
    if not rest:
        raise UsageError(f"option '{name.decode()}' needs a value")
    return rest.pop(0)


def _long(
    word: bytes, rest: list[bytes], spellings: dict[bytes, tuple[bytes, bool]], result: Arguments
) -> None:
    name, equals, value = word.partition(b"=")
    if name not in spellings:
        raise _unknown(name)
    option, takes = spellings[name]
    if takes == FLAG and equals:
        raise UsageError(f"option '{name.decode()}' takes no value")
    if takes and not equals:
        value = _take(name, rest)
    result.add(option, value)


def _short(
    word: bytes, rest: list[bytes], spellings: dict[bytes, tuple[bytes, bool]], result: Arguments
) -> None:
    letters = word[1:]
    while letters:
        name = b"-" + letters[:1]
        letters = letters[1:]
        if name not in spellings:
            raise _unknown(name)
        option, takes = spellings[name]
        if takes:
            result.add(option, letters or _take(name, rest))
            break
        result.add(option, b"")
