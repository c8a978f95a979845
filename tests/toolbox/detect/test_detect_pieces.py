"""From a series to what is asked about and back, against an independent mapping."""

import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory_ext.gdsh import Anomaly, read_series
from llamafactory_ext.toolbox.detect.pieces import Found, Piece, cut, join
from llamafactory_ext.toolbox.detect.reading import plain_values
from llamafactory_ext.toolbox.importing.layout import write_series
from llamafactory_ext.toolbox.importing.sources import Table
from llamafactory_ext.toolbox.prepare.resampling import cut_anomalies, thin_anomalies


@st.composite
def cuts(draw: st.DrawFn) -> tuple[np.ndarray, int | None, int | None, int | None]:
    length = draw(st.integers(1, 80))
    seed = draw(st.integers(0, 1000))
    # Each value once, and rising with the row by chance only: so a value tells its row.
    values = np.random.default_rng(seed).permutation(length).astype(float)
    window = draw(st.none() | st.integers(1, 40))
    stride = draw(st.integers(1, window)) if window else None
    points = draw(st.none() | st.integers(8, 40))
    return values, window, stride, points


@settings(deadline=None)
@given(cuts(), st.data())
def test_an_interval_of_points_goes_back_to_the_rows_that_hold_their_values(
    given_cut: tuple[np.ndarray, int | None, int | None, int | None], data: st.DataObject
) -> None:
    values, window, stride, points = given_cut
    row_of = {value: row for row, value in enumerate(values.tolist())}
    pieces = cut(values, window, stride, points)
    for piece in pieces:
        first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(piece.values) - 1)] * 2)))
        back = piece.back(Found(first, last, "a", "b", 0.5))
        assert back == Found(row_of[piece.values[first]], row_of[piece.values[last]], "a", "b", 0.5)
        assert points is None or len(piece.values) <= max(points, 3)
        assert window is None or piece.last - piece.first < window
    covered = {row for piece in pieces for row in range(piece.first, piece.last + 1)}
    assert covered == set(range(len(values)))


@settings(deadline=None)
@given(cuts(), st.data())
def test_what_prepare_would_teach_comes_back_around_its_label(
    given_cut: tuple[np.ndarray, int | None, int | None, int | None], data: st.DataObject
) -> None:
    """The label as `prepare` writes it for a piece, taken back, covers the label's rows in there."""
    values, window, stride, points = given_cut
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(values) - 1)] * 2)))
    for piece in cut(values, window, stride, points):
        for one in cut_anomalies([Anomaly(start, end, {})], piece.first, piece.last + 1):
            ((taught,), _) = thin_anomalies([one], piece.rows - piece.first)
            back = piece.back(Found(taught.start, taught.end))
            assert back.start <= max(start, piece.first) and back.end >= min(end, piece.last)
            if len(piece.rows) == piece.last - piece.first + 1:  # not thinned: exactly
                assert (back.start, back.end) == (max(start, piece.first), min(end, piece.last))


@st.composite
def answered(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[Found]]:
    length, window = draw(st.integers(2, 50)), draw(st.integers(1, 20))
    pieces = cut(np.zeros(length), window, draw(st.integers(1, window)), None)
    spans = [(piece.first, piece.last) for piece in pieces]
    found = []
    for first, last in spans:
        for _ in range(draw(st.integers(0, 2))):
            start, end = sorted(draw(st.tuples(*[st.integers(first, last)] * 2)))
            found.append(Found(start, end, draw(st.sampled_from("ab")), "", draw(st.none() | st.floats(0, 1))))
    return spans, found


@settings(deadline=None)
@given(answered())
def test_joined_windows_are_the_connected_rows_of_each_type(case: tuple[list[tuple[int, int]], list[Found]]) -> None:
    spans, found = case
    joined = join(found, spans)
    if len(spans) == 1:
        assert set(joined) == set(found)
        return
    ends, starts = {last for _, last in spans}, {first for first, _ in spans}
    expected = set()
    for kind in "ab":
        own = {(one.start, one.end) for one in found if one.type == kind}
        linked: defaultdict[int, set[int]] = defaultdict(set)
        for start, end in own:
            for row in range(start, end):
                linked[row].add(row + 1)
                linked[row + 1].add(row)
            if end in ends and end + 1 in starts and any(other == end + 1 for other, _ in own):
                linked[end].add(end + 1)
                linked[end + 1].add(end)
        left = {row for start, end in own for row in range(start, end + 1)}
        while left:
            group, todo = set(), [left.pop()]
            while todo:
                row = todo.pop()
                group.add(row)
                todo += [other for other in linked[row] if other not in group]
            left -= group
            expected.add((min(group), max(group), kind))
    assert {(one.start, one.end, one.type) for one in joined} == expected
    assert [one.start for one in joined] == sorted(one.start for one in joined)
    for one in joined:
        parts = [p.confidence for p in found if p.type == one.type and one.start <= p.start and p.end <= one.end]
        known = [value for value in parts if value is not None]
        assert one.confidence == (max(known) if known else None)


def test_two_windows_that_meet_inside_of_an_anomaly() -> None:
    spans = [(0, 9), (10, 19)]
    parts = [Found(7, 9, "a", "first", 0.2), Found(10, 12, "a", "second", 0.9), Found(10, 11, "b")]
    assert join(parts, spans) == [Found(7, 12, "a", "second", 0.9), Found(10, 11, "b")]
    assert len(join([Found(3, 4, "a"), Found(5, 6, "a")], spans)) == 2  # neighbours, but no border between them
    assert len(join([Found(3, 6, "a"), Found(5, 8, "a")], [(0, 19)])) == 2  # asked about whole: as answered


def test_a_piece_knows_its_rows() -> None:
    piece = Piece(np.zeros(3), np.array([4, 6, 9]))
    assert (piece.first, piece.last) == (4, 9)


numbers = st.lists(st.floats(width=64), max_size=9).map(lambda one: pd.Series(one, dtype=np.float64))
numbers |= st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=9).map(lambda one: pd.Series(one, dtype=np.int64))
numbers |= st.lists(st.floats(width=32), max_size=9).map(lambda one: pd.Series(one, dtype=np.float32))
numbers |= st.lists(st.booleans(), max_size=9).map(lambda one: pd.Series(one, dtype=bool))


@settings(deadline=None)
@given(numbers, st.booleans())
def test_columns_of_numbers_are_what_the_reader_of_training_data_makes_of_them(column: pd.Series, timed: bool) -> None:
    """To the last bit; what is not numbers alone is left to that reader."""
    plain, finite = plain_values(column), len(column) > 0 and bool(np.isfinite(column).all())
    assert (plain is not None) == (finite and column.dtype in (np.float64, np.int64))
    if plain is None:
        return
    times = pd.Series([f"2025-03-01 08:00:{row:02}" for row in range(len(column))], name="time") if timed else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "series.csv"
        write_series(Table("a", path, column, times), path)
        read = read_series(path)
    assert read.filled == 0 and read.values.tobytes() == plain.tobytes()
