"""Scores of one record: by hand, by the packages' published examples, and what must hold for any intervals."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


pytest.importorskip("aeon")
pytest.importorskip("telemeval")

from llamafactory_ext.gdsh.events import Agreement, Counts, Interval
from llamafactory_ext.toolbox.evaluate.metrics import RecordScores, score


LENGTH = 100
ZERO, ONE = Agreement(0, 0, 0), Agreement(1, 1, 1)


def near(found: Agreement, precision: float, recall: float) -> bool:
    mean = 2 * precision * recall / (precision + recall)
    return found == (pytest.approx(precision), pytest.approx(recall), pytest.approx(mean))


def test_perfect() -> None:
    found = score([(3, 5), (90, 99)], [(3, 5), (90, 99)], LENGTH)
    assert found == RecordScores(Counts(2, 0, 0), Counts(13, 0, 0), ONE, ONE)


def test_shifted_by_half() -> None:
    found = score([(10, 19)], [(15, 24)], LENGTH)
    assert (found.events, found.points) == (Counts(1, 0, 0), Counts(5, 5, 5))
    assert near(found.range, 0.5, 0.5)
    # Predicted points at distance d from the label are nearer than 0.9 - 0.02 d of all places, 0.85 on average, those
    # inside of it count 1; labelled points at distance d from the prediction 1 - 0.02 d, 0.95 on average.
    assert near(found.affiliation, (5 + 5 * 0.85) / 10, (5 + 5 * 0.95) / 10)


def test_split() -> None:
    found = score([(10, 29)], [(10, 14), (20, 24)], LENGTH)
    assert (found.events, found.points) == (Counts(1, 1, 0), Counts(10, 0, 10))
    assert near(found.range, 1, 10 / 20 / 2)  # half of it, in two pieces
    assert found.affiliation.precision == 1


def test_merged() -> None:
    found = score([(10, 14), (20, 24)], [(10, 24)], LENGTH)
    assert (found.events, found.points) == (Counts(1, 0, 1), Counts(10, 5, 0))
    assert near(found.range, 10 / 15 / 2, 1)
    assert found.affiliation.recall == 1


def test_the_whole_series() -> None:
    """aeon itself says 0 here, with a warning: there is no point without anomaly in the prediction."""
    found = score([(3, 4)], [(0, 9)], 10)
    assert (found.events, found.points) == (Counts(1, 0, 0), Counts(2, 8, 0))
    assert near(found.range, 0.2, 1)


def test_one_side_or_both_empty() -> None:
    assert score([], [], LENGTH) == RecordScores(Counts(0, 0, 0), Counts(0, 0, 0), ONE, ONE)
    assert score([(3, 5)], [], LENGTH) == RecordScores(Counts(0, 0, 1), Counts(0, 0, 3), ZERO, ZERO)
    assert score([], [(3, 5)], LENGTH) == RecordScores(Counts(0, 1, 0), Counts(0, 3, 0), ZERO, ZERO)


def test_predictions_outside_of_the_series() -> None:
    assert score([], [], LENGTH, outside=2) == RecordScores(Counts(0, 2, 0), Counts(0, 0, 0), ZERO, ZERO)
    found = score([(3, 5)], [(3, 5)], LENGTH, outside=1)
    assert found == RecordScores(Counts(1, 1, 0), Counts(3, 0, 0), ONE, ONE)


@pytest.mark.parametrize(
    ("prediction", "label", "expected"), [((1, 4), (2, 6), (0.75, 0.6)), ((1, 2), (1, 1), (0.5, 1.0))]
)
def test_range_by_the_examples_of_aeon(prediction: Interval, label: Interval, expected: tuple[float, float]) -> None:
    """Of its tests (test_metrics.py), those with one interval on each side; cardinality has no part there."""
    assert near(score([label], [prediction], 11).range, *expected)


def test_affiliation_by_the_example_of_the_paper() -> None:
    """Huet et al., figure 1 and their test_paper: the second of three events, its zone from minute 30 to 120.

    Times in seconds from the zone's start: event 20 to 40 min, predictions 10 to 30 min and 85 to 90 min.
    """
    found = score([(1200, 2399)], [(600, 1799), (5100, 5399)], 5400).affiliation
    assert found[:2] == (pytest.approx(0.672222222), pytest.approx(0.944444444))


pairs = st.tuples(st.integers(0, 59), st.integers(0, 59)).map(lambda pair: (min(pair), max(pair)))


@settings(deadline=None, max_examples=50)
@given(st.lists(pairs, max_size=4), st.lists(pairs, max_size=4))
def test_what_always_holds(labels: list[Interval], predictions: list[Interval]) -> None:
    found = score(labels, predictions, 60)
    assert all(0 <= value <= 1 + 1e-9 for value in (*found.range, *found.affiliation, *found.f1.values()))
    assert score(labels[::-1], predictions[::-1], 60) == found
    assert set(score(labels, labels, 60).f1.values()) == {1}
    turned = score(predictions, labels, 60).points
    assert (turned.hits, turned.misses, turned.false_alarms) == found.points
