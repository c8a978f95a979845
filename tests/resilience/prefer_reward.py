"""What an answer is worth, given the label of its record, and what of several answers is trained on.

Event F1 in which a hit counts as much as it lies where its label lies: labels and predictions are matched one to one,
pairs of an IoU below a threshold are no hits, and F1 is twice the hits' IoU over the number of labels and predictions.
The right intervals alone are worth 1; an answer of m intervals to n labels at most 2 n / (n + m), so that covering the
series with many intervals pays as little as leaving it empty; one interval over all of it is no hit unless most of the
series is labelled.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.optimize import linear_sum_assignment

from llamafactory_ext.gdsh.events import Interval
from llamafactory_ext.gdsh.readings import STRICT, UNREADABLE, place, read_answer
from llamafactory_ext.toolbox.evaluate.detail import ious


IOU = 0.5
LENIENT_COST, UNREADABLE_COST, ALARM_COST = 0.5, 1.0, 0.1
LEAST = 0.3
"""What an answer must be worth to be learnt from: one that names everything is worth less."""
MARGIN = 0.2
"""How much more than the other one an answer of a pair must be worth."""


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


def intervals_of(label: str, length: int) -> list[Interval] | None:
    """Returns the intervals of a record's label within its series; None where it can't be read."""
    reading = read_answer(label)
    if reading.form == UNREADABLE:
        return None
    inside = place(reading.anomalies, length).inside
    return sorted({(one.start, one.end) for one in inside})


@dataclass(frozen=True)
class Choice:
    """What comes of one record; an empty text is none."""

    best: str = ""
    worst: str = ""
    """Worth less than `best` by `MARGIN` at least."""
    liked: tuple[str, ...] = ()
    disliked: tuple[str, ...] = ()
    value: float = 0.0
    """Of `best`."""
    mean: float = 0.0
    """Of all answers."""


def choose(answers: Sequence[str], rewards: Sequence[Reward], least: float = LEAST, margin: float = MARGIN) -> Choice:
    """Chooses among the answers to one record.

    An answer that says nothing true is never liked, be it the best of them: where nothing was found of what is there,
    saying nothing is no better than a wrong guess. Where all answers are alike, there is nothing to be learnt.
    """
    values = {text: one for text, one in zip(answers, rewards, strict=True) if text.strip()}
    if not values:
        return Choice()
    often = Counter(answers)
    mean = sum(one.value for one in rewards) / len(rewards)
    order = sorted(values, key=lambda text: (-values[text].value, -often[text]))
    good = [text for text in order if values[text].is_right and values[text].value >= least]
    top = values[good[0]].value if good else least
    bad = [text for text in order if values[text].value <= top - margin]
    if not good:
        return Choice(disliked=tuple(bad), mean=mean)
    liked = tuple(text for text in good if values[text].value > top - margin)
    return Choice(good[0], bad[-1] if bad else "", liked, tuple(bad), top, mean)
