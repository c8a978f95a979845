"""Judges one record: its label and its prediction read, placed in the series, and compared; what comes of it."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.gdsh import NORMAL_TYPES, Anomaly
from llamafactory_ext.gdsh.events import Counts, Interval, event_counts
from llamafactory_ext.gdsh.readings import UNREADABLE, Placed, Reading, place, read_answer
from llamafactory_ext.toolbox.evaluate.detail import heights
from llamafactory_ext.toolbox.evaluate.metrics import RecordScores, score, unreadable
from llamafactory_ext.toolbox.evaluate.predictions import EvaluateError, Prediction


@dataclass(frozen=True)
class Judged:
    """One record: its labels, what was predicted, and how well they agree."""

    index: int
    """Its line in the predictions, from 0."""
    name: str
    """The point: the stems of its CSV files; "record 12" where they are not known."""
    length: int
    """Points of its longest series."""
    labels: tuple[Anomaly, ...]
    predicted: tuple[Anomaly, ...]
    strict: bool
    """Whether the answer is strict JSON."""
    problem: str
    """Why the answer could not be read; empty otherwise."""
    scores: Mapping[str, float]
    """event_f1, range_f1, affiliation_f1 and point_f1 of this record alone, each from 0 to 1."""
    series: tuple[NDArray[np.float64], ...] = ()
    """Its series, shape [length] each, where the data set was given."""


@dataclass(frozen=True)
class Evaluation:
    """All records, and what scores.json holds of them."""

    scores: Mapping[str, Any]
    records: Sequence[Judged]
    cases: "Sequence[Case]" = ()
    keys: Sequence[Hashable] = ()
    """For each record what its prompt says of its series, where it does."""


@dataclass(frozen=True)
class Case:
    """One record, read and placed."""

    length: int
    """Points of its longest series."""
    reading: Reading
    """Of the prediction."""
    label_normal: int
    """Entries of the label that name the normal state: left out."""
    labels: Placed
    predicted: Placed

    @property
    def types(self) -> list[str]:
        """Every type that a label or a prediction names."""
        everything = (*self.labels.inside, *self.predicted.inside, *self.predicted.outside)
        return list(dict.fromkeys(one.type for one in everything))


def read_case(prediction: Prediction, salvage: bool, normal: frozenset[str] = NORMAL_TYPES) -> Case:
    """Read both answers of a line.

    Arguments:
        normal: types that stand for the normal state, in both of them.

    Raises:
        EvaluateError: the label can't be read, so that nothing can be compared with it.
    """
    label = read_answer(prediction.label, normal=normal)
    if label.form == UNREADABLE:
        raise EvaluateError(
            f"record {prediction.index}: its label can't be read: {label.problem}"
            + ("; predict with a larger cutoff_len, which cuts labels as well" if label.cut_off else "")
        )
    length, reading = max(prediction.lengths), read_answer(prediction.predict, salvage, normal)
    return Case(length, reading, label.normal, place(label.anomalies, length), place(reading.anomalies, length))


def judge(case: Case) -> RecordScores:
    """Compare all intervals of a record, whatever types they are said to be of."""
    found = _compare(case, case.labels.inside, case.predicted.inside, len(case.predicted.outside))
    return unreadable(found) if case.reading.form == UNREADABLE else found


def judge_type(case: Case, name: str) -> RecordScores:
    """Compare those intervals of a record that are of one type, by label and by prediction."""
    labels, predicted, outside = (
        [one for one in group if one.type == name]
        for group in (case.labels.inside, case.predicted.inside, case.predicted.outside)
    )
    return _compare(case, labels, predicted, len(outside))


def confidence_of(anomaly: Anomaly) -> float | None:
    """How sure a detector is of an interval, by its entry's `confidence`; None where it has no finite number there."""
    value = anomaly.fields.get("confidence")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]


def has_confidences(case: Case) -> bool:
    """Whether every predicted interval of a record has one, and there are some."""
    return bool(case.predicted.inside) and all(confidence_of(one) is not None for one in case.predicted.inside)


def _compare(case: Case, labels: Sequence[Anomaly], predicted: Sequence[Anomaly], outside: int) -> RecordScores:
    sure = {(one.start, one.end): confidence_of(one) for one in predicted}
    known = all(one is not None for one in sure.values())
    levels = {place: float(one if known and one is not None else 1) for place, one in sure.items()}
    return score(
        intervals(labels),
        intervals(predicted),
        case.length,
        outside,
        types=(_types(labels), _types(predicted)),
        scores=heights(levels, case.length),
    )


def _types(anomalies: Iterable[Anomaly]) -> dict[Interval, frozenset[str]]:
    found: defaultdict[Interval, set[str]] = defaultdict(set)
    for one in anomalies:
        found[one.start, one.end].update({one.type} - {""})
    return {place: frozenset(names) for place, names in found.items()}


def recall_of_type(case: Case, name: str) -> Counts:
    """Compare the labels of one type with all predictions: found, though perhaps called something else."""
    labels = intervals(one for one in case.labels.inside if one.type == name)
    return event_counts(labels, intervals(case.predicted.inside))


def intervals(anomalies: Iterable[Anomaly]) -> Sequence[Interval]:
    """Where anomalies are, each place once, in order."""
    return sorted({(one.start, one.end) for one in anomalies})
