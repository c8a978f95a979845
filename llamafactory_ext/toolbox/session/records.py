"""Records as they were converted, and what is remembered of them after they have been read.

They come out of Arrow some hundred at a time, and only a few numbers and digests of each stay: never its points. So a
data set of any size can be compared record with record in little memory.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamafactory_ext.data.entries import NOTES, RECORD, record_name
from llamafactory_ext.gdsh import Anomaly, GdshError, parse_answer, read_anomalies
from llamafactory_ext.series import FloatArray


BATCH = 200
"""Records that are read together."""


@dataclass(frozen=True, slots=True)
class Label:
    """One labelled interval: 0-based, both ends counted."""

    start: int
    end: int
    type: str
    """Empty where the answer names none."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Labels:
    """What an answer says."""

    is_json: bool
    """Whether it is a JSON object or list, as it stands."""
    labels: tuple[Label, ...] = ()
    fault: str = ""
    """What is wrong with an interval; `labels` is empty then."""
    without: int = 0
    """Entries that mark no interval."""


def read_labels(text: str, reasons: bool = False) -> Labels:
    """Reads one answer. An answer of any other form than GDSH's has no labels, which is no fault."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return Labels(False)
    if not isinstance(content, (dict, list)):
        return Labels(False)
    try:
        answer = parse_answer(text)
    except GdshError as err:
        return Labels(True, fault=str(err))
    try:
        found, without = read_anomalies(text)
    except GdshError:  # other keys than GDSH's; the intervals are known all the same
        found, without = [Anomaly(start, end, {}) for start, end in answer.intervals], 0
    return Labels(True, tuple(_label(one, reasons) for one in found), without=without)


def _label(anomaly: Anomaly, reasons: bool) -> Label:
    reason = anomaly.reason if reasons else ""
    return Label(anomaly.start, anomaly.end, sys.intern(anomaly.type), reason)  # few types, many labels


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """One series of a record."""

    length: int
    """Points."""
    digest: bytes
    """Equal for equal values."""
    constant: bool


@dataclass(frozen=True, slots=True)
class RecordFacts:
    """One record as it was converted. `fault` says why it can't be used; everything else is empty then."""

    name: str
    fault: str = ""
    series: tuple[SeriesFacts, ...] = ()
    asked: str = ""
    """Equal where the same is asked about the same series."""
    answered: str = ""
    """Equal for equal last answers; see `Notes` of both."""
    is_json: bool = False
    """Whether every answer is a JSON object or list."""
    labels: tuple[Label, ...] = ()
    """The labelled intervals of all answers."""
    bad_interval: str = ""
    """What is wrong with an interval that is no pair of whole numbers."""
    filled: int = 0
    """Values that were no finite number and were interpolated; always 0 for records with the values inside."""
    filled_labels: tuple[str, ...] = ()
    """Labels over interpolated rows, the first ones in words."""
    remarks: tuple[tuple[str, str], ...] = ()
    """Kind and text of what is not as usual in the series' files."""
    normal: int = 0
    """Entries of the answers that name the normal state: left out."""
    without_interval: int = 0
    """Entries of the answers that mark no interval."""
    unlabelled: bool = False
    """Whether the last answer is empty: a series that is only asked about."""
    prompt_characters: int = 0
    answer_characters: int = 0

    @property
    def length(self) -> int:
        """Points of the longest series, 0 without series: what intervals are checked against."""
        return max((one.length for one in self.series), default=0)


def series_facts(values: FloatArray) -> SeriesFacts:
    """Returns what is remembered of one series, `values` of shape ``[length]``."""
    digest = hashlib.blake2b(values.tobytes(), digest_size=16).digest()
    return SeriesFacts(len(values), digest, bool(len(values)) and bool((values == values[0]).all()))


def record_facts(
    name: str, system: str, turns: Sequence[Mapping[str, str]], series: Sequence[FloatArray], notes: Mapping[str, Any]
) -> RecordFacts:
    """Returns what is remembered of one record.

    Arguments:
        turns: messages with ``role`` and ``content``, the last one the answer that is trained on.
        notes: the converter's, see `Notes`.
    """
    if notes["fault"]:
        return RecordFacts(name, fault=notes["fault"])
    if len(turns) % 2 or not turns:
        why = f"found {len(turns)} messages; expected prompt and answer in turn (LLaMA-Factory drops such a record)"
        return RecordFacts(name, fault=why)
    answers = [turn["content"] for turn in turns[1::2]]
    read = [read_labels(answer) for answer in answers]
    return RecordFacts(
        name,
        series=tuple(map(series_facts, series)),
        asked=notes["asked"],
        answered=notes["answered"],
        is_json=all(one.is_json for one in read),
        labels=tuple(label for one in read for label in one.labels),
        bad_interval=next((one.fault for one in read if one.fault), ""),
        filled=notes["values_filled"],
        filled_labels=tuple(notes.get("filled_labels", ())),
        remarks=tuple((kind, text) for kind, text in notes.get("remarks", ())),
        normal=notes.get("normal_entries", 0),
        without_interval=sum(one.without for one in read) + notes.get("entries_without_interval", 0),
        unlabelled=not answers[-1].strip(),
        prompt_characters=len(system) + sum(len(turn["content"]) for turn in turns) - sum(map(len, answers)),
        answer_characters=sum(map(len, answers)),
    )


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
    """As `framework.load` gives it."""
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
