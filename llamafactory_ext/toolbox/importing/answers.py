"""GDSH's answers as labels: bounds stay what the record says, rows or times, until the series is known."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import GdshError
from llamafactory_ext.gdsh import read_labels, show_pictures
from llamafactory_ext.gdsh.records import read_records

from .labels import Label, refuse_others


NORMAL = "entries of a normal state (无异常, normal, …)"
"""Why an entry is left out."""


@dataclass
class Answers:
    """The records of a GDSH file, by their pictures' names."""

    by_name: dict[str, tuple[str, list[Label] | None]] = field(default_factory=dict)
    """Prompt and labels, bounds as they are; None where the record has no answer."""
    left_out: Counter[str] = field(default_factory=Counter)


def read_answers(path: Path) -> Answers:
    """Reads a file of GDSH annotations whose bounds may be rows or times.

    Raises:
        GdshError: a record that is none, or two that label a series differently; names them.
    """
    found = Answers()
    places: dict[str, int] = {}
    for number, record in enumerate(read_records(path)):
        try:
            picture = record["image"]  # type: ignore[index]
            turns = {turn["from"]: turn["value"] for turn in record["conversations"]}  # type: ignore[index]
            name = Path(show_pictures([picture])).stem
            one = turns["user"], _labels(turns.get("assistant"), found.left_out)
            known = found.by_name.get(name, one)
            if known[1] is not None and one[1] is not None:
                refuse_others(name, known[1], f"record {places.get(name)}", one[1], "it")
            found.left_out["records given again"] += name in found.by_name
            found.by_name[name] = one if known[1] is None else known
            places.setdefault(name, number)
        except (KeyError, TypeError) as err:
            raise GdshError(f"{path}: record {number} lacks {err}; expected `image` and `conversations`") from err
        except GdshError as err:
            raise GdshError(f"{path}: record {number}: {err}") from err
    return found


def _labels(answer: Any, left_out: Counter[str]) -> list[Label] | None:
    """Reads an answer as all tools do; None where there is none."""
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        return None
    anomalies, without, normal = read_labels(answer)
    left_out["entries without interval"] += without
    left_out[NORMAL] += normal
    found = []
    for one in anomalies:
        more = {key: value for key, value in one.fields.items() if key != "type"}
        found.append(Label(one.start, one.end, one.type, isinstance(one.start, int), more))
    return found
