"""Event-wise counts: by hand, against trying every matching, and what must hold for any intervals."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_ext.gdsh.events import Agreement, Counts, Interval, agreement, event_counts, overlap, total


def intervals(longest: int = 6) -> st.SearchStrategy[list[Interval]]:
    pair = st.tuples(st.integers(0, 30), st.integers(0, 12)).map(lambda drawn: (drawn[0], drawn[0] + drawn[1]))
    return st.lists(pair, max_size=longest)


CASES: dict[str, tuple[list[Interval], list[Interval], Counts]] = {
    "perfect": ([(3, 5), (9, 9)], [(3, 5), (9, 9)], Counts(2, 0, 0)),
    "nothing predicted": ([(3, 5), (9, 9)], [], Counts(0, 0, 2)),
    "nothing labelled": ([], [(3, 5)], Counts(0, 1, 0)),
    "nothing at all": ([], [], Counts(0, 0, 0)),
    "one point in common": ([(3, 5)], [(5, 9)], Counts(1, 0, 0)),
    "beside": ([(3, 5)], [(6, 9)], Counts(0, 1, 1)),
    "split": ([(10, 29)], [(10, 14), (20, 24), (26, 26)], Counts(1, 2, 0)),
    "merged": ([(10, 14), (20, 24), (26, 26)], [(0, 99)], Counts(1, 0, 2)),
    "named twice": ([(3, 5), (3, 5)], [(3, 5), (3, 5), (3, 5)], Counts(1, 0, 0)),
    "one inside of another, both found": ([(0, 9), (4, 4)], [(4, 4), (0, 9)], Counts(2, 0, 0)),
    "the first choice moves on": ([(0, 20), (1, 3)], [(2, 2), (15, 15)], Counts(2, 0, 0)),
    "twice": ([(0, 30), (1, 22), (2, 3)], [(2, 2), (20, 20), (30, 30)], Counts(3, 0, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name: str) -> None:
    labels, predictions, expected = CASES[name]
    assert event_counts(labels, predictions) == expected


@given(intervals(5), intervals(5))
def test_no_other_matching_has_more_pairs(labels: list[Interval], predictions: list[Interval]) -> None:
    fewer, more = sorted((sorted(set(labels)), sorted(set(predictions))), key=len)
    best = max(sum(map(overlap, fewer, order)) for order in permutations(more))
    assert event_counts(labels, predictions).hits == best


@given(intervals(), intervals())
def test_what_always_holds(labels: list[Interval], predictions: list[Interval]) -> None:
    found = event_counts(labels, predictions)
    assert found.hits + found.misses == len(set(labels))
    assert found.hits + found.false_alarms == len(set(predictions))
    assert event_counts(predictions, labels) == Counts(found.hits, found.misses, found.false_alarms)
    assert event_counts(labels[::-1], predictions[::-1]) == found
    assert all(0 <= value <= 1 for value in agreement(*found))
    assert agreement(*event_counts(labels, labels)) == Agreement(1, 1, 1)


@given(intervals(), intervals(), st.integers(0, 30))
def test_one_more_prediction_never_finds_two_more_labels(
    labels: list[Interval], predictions: list[Interval], start: int
) -> None:
    before, after = event_counts(labels, predictions), event_counts(labels, [*predictions, (start, 99)])
    assert before.hits <= after.hits <= before.hits + 1


def test_agreement_of_counts() -> None:
    assert agreement(2, 1, 3) == Agreement(2 / 3, 2 / 5, 4 / 8)
    assert agreement(0, 0, 0) == Agreement(1, 1, 1)
    assert agreement(0, 1, 0) == agreement(0, 0, 1) == agreement(0, 1, 1) == Agreement(0, 0, 0)


def test_total() -> None:
    assert total([Counts(1, 2, 3), Counts(10, 20, 30)]) == Counts(11, 22, 33)
    assert total([]) == Counts(0, 0, 0)
