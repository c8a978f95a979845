"""What messages about faults are made of: the error for bad data, short excerpts, and listings of records."""

from collections.abc import Iterable
from itertools import islice


_SHOWN = 80  # characters of an excerpt, quotes included
_LISTED = 20


class FaultError(Exception):
    """What a command was given can't be gone on with. The message names it and says what is wrong with it."""


class GdshError(FaultError, ValueError):
    """A fault in the data. The message says what was found, what was expected, and the fix.

    The message names neither record nor picture: whoever calls knows them and puts them in front.
    """


class UsageError(Exception):
    """The command is wrong, not the data."""


def printable(text: str, kept: str = "") -> str:
    """Spell out what a terminal would obey instead of showing it (escapes, bidirectional marks), less `kept`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in kept else repr(char)[1:-1] for char in text)


def excerpt(value: object, position: int = 0) -> str:
    """Show `value` in at most 80 printable characters, a string from a little before `position` on."""
    if isinstance(value, str):
        start = max(0, position - _SHOWN // 4)
        value = value[start : start + _SHOWN]
    elif isinstance(value, (list, tuple)):
        value = value[:_SHOWN]  # of a million items no more than these could be shown
    try:
        shown = repr(value)
    except RecursionError:
        return "a value that is nested too deeply"
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "..."


def listing(lines: Iterable[str], total: int) -> list[str]:
    """Returns the first 20 of ``total`` lines, indented, and a last one that counts the rest."""
    shown = [f"  {line}" for line in islice(lines, _LISTED)]
    return [*shown, f"  … and {total - _LISTED} more"] if total > _LISTED else shown
