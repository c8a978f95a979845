"""The one kind of error that bad data raises, and the short excerpt that its messages show."""

_SHOWN = 80  # characters of an excerpt, quotes included


class GdshError(ValueError):
    """A fault in the data. The message says what was found, what was expected, and the fix.

    The message names neither record nor picture: whoever calls knows them and puts them in front.
    """


def excerpt(value: object, position: int = 0) -> str:
    """Show `value` in at most 80 printable characters, a string from a little before `position` on."""
    if isinstance(value, str):
        start = max(0, position - _SHOWN // 4)
        value = value[start : start + _SHOWN]
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "..."
