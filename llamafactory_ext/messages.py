"""How records are named and listed in messages, and which `cutoff_len` is advised: one wording, one length."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from llamafactory_ext.dataset_entry import RECORD


SHOWN = 20


def listing(lines: Iterable[str], total: int) -> list[str]:
    """Returns the first 20 of ``total`` lines, indented, and a last one that counts the rest."""
    shown = [f"  {line}" for line in islice(lines, SHOWN)]
    return [*shown, f"  … and {total - SHOWN} more"] if total > SHOWN else shown


def record_name(example: Mapping[str, Any], number: int) -> str:
    """Returns the name that the converter gave a record, else its number, from 0."""
    return example.get(RECORD) or f"record {number}"


def advised_cutoff(longest: int, reserved: int) -> int:
    """Returns the ``cutoff_len`` for records of up to ``longest`` tokens.

    Arguments:
        reserved: 1 where upstream packs: it keeps one token to itself, and fills what is packed, but not the positions
            that it wrote for it, to a multiple of 8; so ``cutoff_len`` must be one.
    """
    return -(-(longest + reserved) // 8) * 8 if reserved else longest
