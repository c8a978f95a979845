"""Judges one record: its label and its prediction read, placed in the series, and compared; what comes of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.gdsh import Anomaly
from llamafactory_ext.gdsh.events import Counts, Interval, event_counts
from llamafactory_ext.gdsh.readings import UNREADABLE, Placed, Reading, place, read_answer
from llamafactory_ext.toolbox.evaluate.metrics import NOTHING_RIGHT, RecordScores, score
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


def read_case(prediction: Prediction, salvage: bool) -> Case:
    """Read both answers of a line.

    Raises:
        EvaluateError: the label can't be read, so that nothing can be compared with it.
    """
    label = read_answer(prediction.label)
    if label.form == UNREADABLE:
        raise EvaluateError(
            f"record {prediction.index}: its label can't be read: {label.problem}"
            + ("; predict with a larger cutoff_len, which cuts labels as well" if label.cut_off else "")
        )
    length, reading = max(prediction.lengths), read_answer(prediction.predict, salvage)
    return Case(length, reading, label.normal, place(label.anomalies, length), place(reading.anomalies, length))


def judge(case: Case) -> RecordScores:
    """Compare all intervals of a record, whatever types they are said to be of."""
    labels, predicted = intervals(case.labels.inside), intervals(case.predicted.inside)
    found = score(labels, predicted, case.length, len(case.predicted.outside))
    if case.reading.form != UNREADABLE:
        return found
    return replace(found, range=NOTHING_RIGHT, affiliation=NOTHING_RIGHT, readable=False)


def judge_type(case: Case, name: str) -> RecordScores:
    """Compare those intervals of a record that are of one type, by label and by prediction."""
    labels, predicted, outside = (
        [one for one in group if one.type == name]
        for group in (case.labels.inside, case.predicted.inside, case.predicted.outside)
    )
    return score(intervals(labels), intervals(predicted), case.length, len(outside))


def recall_of_type(case: Case, name: str) -> Counts:
    """Compare the labels of one type with all predictions: found, though perhaps called something else."""
    labels = intervals(one for one in case.labels.inside if one.type == name)
    return event_counts(labels, intervals(case.predicted.inside))


def intervals(anomalies: Iterable[Anomaly]) -> Sequence[Interval]:
    """Where anomalies are, each place once, in order."""
    return sorted({(one.start, one.end) for one in anomalies})
