"""Thinned and cut series keep every anomaly, at the right indices, against brute force."""

import numpy as np
import pytest
from helpers_prepare import anomaly
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_ext.gdsh import Anomaly, GdshError
from llamafactory_ext.toolbox.demo.series import SHAPES, draw_intervals, draw_series
from llamafactory_ext.toolbox.prepare.resampling import (
    check_alignment,
    choose_normal,
    choose_rows,
    cut_anomalies,
    lay_windows,
    thin_anomalies,
)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[int, list[Anomaly]]:
    length = draw(st.integers(1, 60))
    pairs = draw(st.lists(st.tuples(st.integers(0, length - 1), st.integers(0, length - 1)), max_size=6))
    return length, [anomaly(min(pair), max(pair), f"{place}") for place, pair in enumerate(pairs)]


@given(labelled(), st.data())
def test_thinned_intervals_cover_and_grow_by_less_than_a_step(
    series: tuple[int, list[Anomaly]], data: st.DataObject
) -> None:
    length, found = series
    inner = data.draw(st.sets(st.integers(0, length - 1)))
    rows = sorted(inner | {0, length - 1})
    moved, unseen = thin_anomalies(found, np.array(rows, dtype=np.int64))
    assert [one.type for one in moved] == [one.type for one in found]
    for before, after in zip(found, moved, strict=True):
        assert rows[after.start] <= before.start and rows[after.end] >= before.end
        # One step further in, and it would not cover any more: so it has grown by less than that step.
        assert after.start == len(rows) - 1 or rows[after.start + 1] > before.start
        assert after.end == 0 or rows[after.end - 1] < before.end
    assert unseen == sum(not any(one.start <= row <= one.end for row in rows) for one in found)


@given(st.integers(1, 400), st.integers(8, 60), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_chosen_rows_are_sorted_few_and_reach_both_ends(length: int, points: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    series = [np.round(rng.normal(size=length), 1) for _ in range(count)]
    if points // count < 3 and length > points:
        with pytest.raises(GdshError, match="share"):
            choose_rows(series, points)
        return
    rows = choose_rows(series, points)
    if length <= points:
        assert rows is None
        return
    assert rows is not None
    found = rows.tolist()
    assert found == sorted(set(found))
    assert found[0] == 0 and found[-1] == length - 1
    assert len(found) <= points


@pytest.mark.parametrize(
    "values", [np.zeros(99), np.full(99, 1.7e308), np.tile([1.7e308, -1.7e308], 50), np.arange(99.0)]
)
def test_extreme_series_are_thinned(values: np.ndarray) -> None:
    rows = choose_rows([values], 10)
    assert rows is not None and len(rows) <= 10 and rows[0] == 0 and rows[-1] == len(values) - 1


def test_the_choice_does_not_depend_on_labels_and_sees_the_anomalies() -> None:
    """What the module's docstring states: at a fifth of the points every drawn anomaly has a point inside."""
    rng = np.random.default_rng(0)
    unseen = 0
    for _ in range(10):
        intervals = draw_intervals(tuple(SHAPES), 5000, rng)
        _, values = draw_series(tuple(SHAPES), intervals, 5000, rng)
        rows = choose_rows([values], 1000)
        assert rows is not None
        unseen += thin_anomalies([anomaly(*interval) for interval in intervals], rows)[1]
    assert unseen == 0


def test_series_of_unequal_length_are_refused_only_where_rows_must_be_chosen() -> None:
    short, long = np.zeros(9), np.zeros(20)
    assert choose_rows([short], 9) is None and choose_rows([short], 8) is not None
    check_alignment([short, long], window=None, points=20)
    check_alignment([short, long], window=20, points=None)
    for limits in ({"window": None, "points": 19}, {"window": 19, "points": None}, {"window": 19, "points": 30}):
        with pytest.raises(GdshError, match="9 and 20 rows"):
            check_alignment([short, long], **limits)
    with pytest.raises(GdshError, match="share 8 points"):
        check_alignment([long, long, long], window=None, points=8)
    check_alignment([long, long, long], window=8, points=8)
    check_alignment([long, long, long], window=None, points=9)
    with pytest.raises(GdshError, match="3 series share 8 points; expected 3 or more for each"):
        check_alignment([long, long, long], window=9, points=8)
    with pytest.raises(GdshError, match="share"):
        check_alignment([long[:9]] * 3, window=19, points=8)


@given(labelled(), st.integers(1, 20), st.data())
def test_windows_cover_every_row_and_every_anomaly(
    series: tuple[int, list[Anomaly]], window: int, data: st.DataObject
) -> None:
    length, found = series
    stride = data.draw(st.integers(1, window))
    spans = lay_windows(length, window, stride)
    assert {row for start, stop in spans for row in range(start, stop)} == set(range(length))
    assert all(stop - start == min(window, length) for start, stop in spans)
    starts = [start for start, _ in spans]
    assert starts == sorted(set(starts))
    assert starts[:-1] == [turn * stride for turn in range(len(starts) - 1)]
    # Row by row: what a window says of its rows is what the whole series says of them.
    for start, stop in spans:
        cut = cut_anomalies(found, start, stop)
        for row in range(start, stop):
            there = sorted(one.type for one in found if one.start <= row <= one.end)
            assert sorted(one.type for one in cut if one.start <= row - start <= one.end) == there
        assert all(0 <= one.start <= one.end < stop - start for one in cut)
    named = {one.type for start, stop in spans for one in cut_anomalies(found, start, stop)}
    assert named == {one.type for one in found}


@given(st.lists(st.integers(), unique=True, max_size=30).map(sorted), st.none() | st.integers(0, 10))
def test_normal_windows_are_as_many_as_allowed_and_spread(normal: list[int], most: int | None) -> None:
    kept = choose_normal(normal, most)
    assert len(kept) == len(set(kept)) == (len(normal) if most is None else min(most, len(normal)))
    assert kept == [one for one in normal if one in set(kept)]
    assert choose_normal(range(10), 3) == [1, 5, 8] and choose_normal(range(10), 2) == [2, 7]
    if most and len(normal) > most:
        places = [normal.index(one) for one in kept]
        steps = np.diff([-1, *places, len(normal)])
        assert steps.max() <= len(normal) / most + 1
