"""Colours of anomaly types: the commonest types get the colours that are easiest to tell apart."""

from collections.abc import Sequence


# By Okabe and Ito and by Tol: told apart by colour-blind eyes as well, on white.
_PALETTE = (
    "#d55e00",
    "#0072b2",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#882255",
    "#117733",
    "#332288",
    "#999933",
    "#aa4499",
    "#666666",
)


def colours(types: Sequence[str]) -> dict[str, str]:
    """Returns a colour (``#rrggbb``) for each type; with more than twelve types, colours repeat."""
    return {name: _PALETTE[place % len(_PALETTE)] for place, name in enumerate(types)}


def numbers(types: Sequence[str]) -> dict[str, str]:
    """Returns a short name for each type, `T1`, `T2`, …, in the same order."""
    return {name: f"T{place + 1}" for place, name in enumerate(types)}
