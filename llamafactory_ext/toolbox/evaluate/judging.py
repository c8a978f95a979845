"""Judges one record: its label and its prediction read, placed in the series, and compared."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from llamafactory_ext.gdsh import Anomaly
from llamafactory_ext.gdsh.events import Counts, Interval, event_counts
from llamafactory_ext.gdsh.readings import UNREADABLE, Placed, Reading, place, read_answer
from llamafactory_ext.toolbox.evaluate.errors import EvaluateError
from llamafactory_ext.toolbox.evaluate.metrics import NOTHING_RIGHT, RecordScores, score
from llamafactory_ext.toolbox.evaluate.predictions import Prediction


@dataclass(frozen=True)
class Case:
    """One record, read and placed."""

    length: int
    """Points of its longest series."""
    reading: Reading
    """Of the prediction."""
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
    return Case(length, reading, place(label.anomalies, length), place(reading.anomalies, length))


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
