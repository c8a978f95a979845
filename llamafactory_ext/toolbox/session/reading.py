"""Reads converted data sets out of Arrow, some hundred records at a time: points never pile up in memory."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamafactory_ext.data.entries import NOTES, RECORD, record_name
from llamafactory_ext.series import FloatArray
from llamafactory_ext.toolbox.session.facts import RecordFacts, record_facts


BATCH = 200


@dataclass(frozen=True)
class Record:
    """One record as it was converted, markers still in place."""

    name: str
    system: str
    turns: list[dict[str, str]]
    """Messages with ``role`` and ``content``, the last one the answer."""
    series: list[FloatArray]
    notes: dict[str, Any]

    @property
    def answers(self) -> list[str]:
        return [turn["content"] for turn in self.turns[1::2]]


@dataclass(frozen=True)
class Part:
    """One data set of those that are checked together."""

    name: str
    dataset: Any
    """As `upstream.load` gives it."""
    prefix: str = ""
    """What its records' names start with, where there are several parts."""


def read(part: Part, rows: Sequence[int] | None = None) -> Iterator[Record]:
    """Yields the records of a part, or those of `rows`."""
    chosen = part.dataset if rows is None else part.dataset.select(rows)
    numbers: Sequence[int] = range(len(chosen)) if rows is None else rows
    arrow = chosen.with_format("arrow")
    column = "_timeseries" if "_timeseries" in chosen.column_names else "_audios"  # the fork's, or ours
    for start in range(0, len(chosen), BATCH):
        table = arrow[start : start + BATCH]
        texts = table.select(["_system", "_prompt", "_response", RECORD, NOTES]).to_pylist()
        for place, (text, series) in enumerate(zip(texts, table[column], strict=True)):
            yield Record(
                name=part.prefix + record_name(text, numbers[start + place]),
                system=text["_system"] or "",
                turns=[*(text["_prompt"] or []), *(text["_response"] or [])],
                series=[_points(one) for one in (series.values or [])] if series.is_valid else [],
                notes=json.loads(text[NOTES]),
            )


def facts(part: Part) -> Iterator[RecordFacts]:
    """Yields what is remembered of each record."""
    for record in read(part):
        yield record_facts(record.name, record.system, record.turns, record.series, record.notes)


def _points(series: Any) -> FloatArray:
    return np.asarray(series.values.to_numpy(zero_copy_only=False), dtype=np.float64)
