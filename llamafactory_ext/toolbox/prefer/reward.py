"""What an answer is worth, given the label of its record.

Event F1 in which a hit counts as much as it lies where its label lies: labels and predictions are matched one to one,
pairs of an IoU below a threshold are no hits, and F1 is twice the hits' IoU over the number of labels and predictions.
The right intervals alone are worth 1; an answer of m intervals to n labels at most 2 n / (n + m), so that covering the
series with many intervals pays as little as leaving it empty; one interval over all of it is no hit unless most of the
series is labelled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.optimize import linear_sum_assignment

from llamafactory_ext.gdsh import NORMAL_TYPES, Anomaly
from llamafactory_ext.gdsh.events import Interval
from llamafactory_ext.gdsh.readings import STRICT, UNREADABLE, place, read_answer
from llamafactory_ext.toolbox.evaluate.detail import ious


IOU = 0.5
LENIENT_COST, UNREADABLE_COST, ALARM_COST = 0.5, 1.0, 0.1


@dataclass(frozen=True)
class Reward:
    """What one answer is worth."""

    value: float
    """From -1, can't be read, to 1, the label's intervals and nothing else."""
    is_right: bool
    """Whether it is strict JSON and says something true: a hit, or rightly nothing."""


def reward(answer: str, label: Sequence[Interval], length: int, iou: float = IOU) -> Reward:
    """Scores one answer.

    Arguments:
        label: intervals of the record's label, within its series.
        length: points of its longest series.
        iou: a pair with less in common is no hit, from 0 to 1.
    """
    reading = read_answer(answer)
    if reading.form == UNREADABLE:
        return Reward(-UNREADABLE_COST, False)
    placed = place(reading.anomalies, length)
    outside = len(placed.outside)
    found = sorted({(one.start, one.end) for one in placed.inside})
    value = worth(sorted(set(label)), found, outside, iou)
    strict = reading.form == STRICT
    true = value > 0 if label else not found and not outside
    return Reward(value - (0 if strict else LENIENT_COST), strict and true)


def worth(label: Sequence[Interval], found: Sequence[Interval], outside: int = 0, iou: float = IOU) -> float:
    """Compares intervals, each named once; `outside` are predictions besides that lie in no series."""
    alarms = len(found) + outside
    if not label:
        return 1.0 if not alarms else -ALARM_COST * alarms / (1 + alarms)
    if not found:
        return 0.0
    common = ious(label, found)
    common[common < iou] = 0
    rows, columns = linear_sum_assignment(common, maximize=True)
    return 2 * float(common[rows, columns].sum()) / (len(label) + alarms)


def intervals_of(label: str, length: int, normal: frozenset[str] = NORMAL_TYPES) -> list[Interval] | None:
    """Returns the intervals of a record's label within its series; None where it can't be read."""
    reading = read_answer(label, normal=normal)
    if reading.form == UNREADABLE:
        return None
    inside: tuple[Anomaly, ...] = place(reading.anomalies, length).inside
    return sorted({(one.start, one.end) for one in inside})
