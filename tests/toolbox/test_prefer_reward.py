"""What answers are worth: the label's intervals the most, nothing and everything little; what is chosen of several."""

import json
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resilience.prefer_reward import LEAST, MARGIN, Reward, choose, intervals_of, reward, worth

from llamafactory_ext.gdsh.events import Interval


LENGTH = 200


def said(*intervals: Interval) -> str:
    return json.dumps({"status": "success", "detected_anomalies": [{"interval": list(one)} for one in intervals]})


NOTHING = said()
EVERYTHING = said((0, LENGTH - 1))


@st.composite
def labels(draw: st.DrawFn, longest: int = 40) -> list[Interval]:
    """Up to four intervals with room between them, at least one."""
    found, start = [], 0
    for _ in range(draw(st.integers(1, 4))):
        first = start + draw(st.integers(0, 20))
        last = first + draw(st.integers(0, longest - 1))
        if last >= LENGTH:
            break
        found.append((first, last))
        start = last + 2
    return found or [(5, 9)]


intervals = st.tuples(st.integers(0, LENGTH - 1), st.integers(0, LENGTH - 1)).map(lambda two: (min(two), max(two)))


def second_opinion(label: list[Interval], found: list[Interval], iou: float) -> float:
    """The same by sets of points, and by trying all ways to match."""

    def share(one: Interval, other: Interval) -> float:
        a, b = (set(range(start, end + 1)) for start, end in (one, other))
        value = len(a & b) / len(a | b)
        return value if value >= iou else 0.0

    few, many = sorted((label, found), key=len)
    best = max(sum(share(a, b) for a, b in zip(few, order, strict=True)) for order in permutations(many, len(few)))
    return 2 * best / (len(label) + len(found))


@given(labels(), st.lists(intervals, min_size=1, max_size=4, unique=True), st.sampled_from([0.1, 0.3, 0.5]))
@settings(max_examples=60, deadline=None)
def test_value_is_f1_of_shares(label: list[Interval], found: list[Interval], iou: float) -> None:
    given_value = reward(said(*found), label, LENGTH, iou).value
    assert given_value == pytest.approx(second_opinion(label, sorted(set(found)), iou))


@given(labels(), st.lists(intervals, max_size=6))
@settings(max_examples=100, deadline=None)
def test_the_label_wins(label: list[Interval], found: list[Interval]) -> None:
    right, other = reward(said(*label), label, LENGTH), reward(said(*found), label, LENGTH)
    assert right == Reward(1.0, True)
    assert other.value == 1.0 if set(found) == set(label) else other.value < 1.0


@given(labels())
@settings(max_examples=100, deadline=None)
def test_nothing_and_everything_are_worth_nothing(label: list[Interval]) -> None:
    for text in (NOTHING, EVERYTHING):
        assert reward(text, label, LENGTH) == Reward(0.0, False)


@given(labels(), st.integers(1, 60), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_many_intervals_pay_little(label: list[Interval], width: int, step: int) -> None:
    """Whatever pieces the series is covered with, gaps or overlaps between them: at most 2 n / (n + m)."""
    pieces = [(start, min(start + width, LENGTH) - 1) for start in range(0, LENGTH, step)]
    value = reward(said(*pieces), label, LENGTH).value
    assert value <= 2 * len(label) / (len(label) + len(set(pieces))) + 1e-12
    if len(set(pieces)) > 6 * len(label):
        assert value < LEAST


@given(st.lists(intervals, min_size=1, max_size=5, unique=True))
@settings(max_examples=50, deadline=None)
def test_false_alarms_on_a_normal_series(found: list[Interval]) -> None:
    values = [reward(said(*found[:count]), [], LENGTH).value for count in range(len(found) + 1)]
    assert values[0] == 1.0 and values[1] < 0
    assert values == sorted(values, reverse=True) and len(set(values)) == len(values)
    assert not reward(said(*found), [], LENGTH).is_right


@pytest.mark.parametrize(
    ("text", "value", "is_right"),
    [
        ("", -1.0, False),
        ("no idea", -1.0, False),
        ('{"detected_anomalies":[{"interval":[10,', -1.0, False),
        (said((10, 19)), 1.0, True),
        ("{'detected_anomalies': [{'interval': [10, 19]}]}", 0.5, False),  # right, but no JSON
        (said((10, 19), (10, 19)), 1.0, True),  # named twice counts once
        (said((12, 19)), 0.8, True),
        (said((15, 19)), 0.5, True),
        (said((16, 19)), 0.0, False),
        (said((10, 19), (300, 310)), 2 / 3, True),  # outside of the series: a false alarm
        (said((10, 19), (50, 60)), 2 / 3, True),
    ],
)
def test_examples(text: str, value: float, is_right: bool) -> None:
    found = reward(text, [(10, 19)], LENGTH)
    assert (round(found.value, 12), found.is_right) == (round(value, 12), is_right)


def test_outside_alone_is_no_normal_answer() -> None:
    assert not reward(said((300, 310)), [], LENGTH).is_right
    assert worth([], [], outside=1) < 0


def test_labels_are_read_within_their_series() -> None:
    assert intervals_of(said((190, 250), (400, 410)), LENGTH) == [(190, 199)]
    assert intervals_of("not sure", LENGTH) is None


def chosen(label: list[Interval], *answers: str) -> tuple[str, str]:
    found = choose(answers, [reward(one, label, LENGTH) for one in answers])
    return found.best, found.worst


@given(labels(), st.lists(st.sampled_from([NOTHING, EVERYTHING, "?", said((0, 0))]), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_nothing_and_everything_are_never_liked(label: list[Interval], answers: list[str]) -> None:
    label = [one for one in label if one != (0, 0)] or [(5, 9)]
    found = choose(answers, [reward(one, label, LENGTH) for one in answers])
    assert (found.best, found.worst, found.liked) == ("", "", ())
    good = said(*label)
    found = choose([*answers, good], [reward(one, label, LENGTH) for one in [*answers, good]])
    assert found.best == good and found.worst in answers and found.liked == (good,)
    assert set(found.disliked) == set(answers)


def test_pairs() -> None:
    label = [(10, 19)]
    near, far, both = said((11, 19)), said((50, 60)), said((10, 19), (50, 60))
    assert chosen(label, near, far, NOTHING)[0] == near
    assert chosen(label, both, near, "?") == (near, "?")
    assert chosen(label, near, said((10, 18))) == (near, "")  # as good: nothing to be learnt
    assert chosen([], NOTHING, near, both) == (NOTHING, both)
    assert chosen([], near, both) == ("", "")
    assert chosen(label) == ("", "")
    assert chosen(label, "{'detected_anomalies': [{'interval': [10, 19]}]}", NOTHING) == ("", "")  # right, but no JSON
    assert chosen(label, " ", near) == (near, "")  # an empty text can't be trained on


def test_margin_and_least() -> None:
    rewards = [Reward(0.6, True), Reward(0.6 - MARGIN, True), Reward(LEAST - 0.01, True)]
    found = choose(["a", "b", "c"], rewards)
    assert (found.best, found.worst, found.liked, found.disliked) == ("a", "c", ("a",), ("b", "c"))
    assert choose(["c"], rewards[2:]).best == ""
    assert choose(["x", "y", "y"], [Reward(0.5, True)] * 3).best == "y"  # of equal ones that which was said most
