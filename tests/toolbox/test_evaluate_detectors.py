"""Detectors: their windows, rules and thresholds by a second statement, without the libraries where that is enough."""

from typing import Any

import numpy as np
import pytest


pytest.importorskip("aeon")
pytest.importorskip("telemeval")

from conftest import answer

from llamafactory_ext.toolbox.evaluate import detectors
from llamafactory_ext.toolbox.evaluate.detectors import DETECTORS, Detector, choose_threshold, point_scores
from llamafactory_ext.toolbox.evaluate.points import Source
from llamafactory_ext.toolbox.evaluate.scoring import thresholds


def test_the_detectors_and_where_they_flag() -> None:
    told = {name: (one.title, one.threshold, one.needs) for name, one in DETECTORS.items()}
    assert told == {
        "zscore": ("rolling z-score", 3.0, ""),
        "iqr": ("quartile fences", 1.5, ""),
        "iforest": ("isolation forest", None, "pyod"),
        "sub_pca": ("Sub-PCA", None, "pyod"),
        "matrix_profile": ("matrix profile", None, "pyod"),
        "kmeans": ("KMeansAD", None, ""),
    }
    assert (detectors.SEEDS, detectors.UNTRAINED) == (10, 3.0)


@pytest.mark.parametrize(
    ("length", "window"), [(15, None), (16, 8), (179, 8), (180, 9), (1000, 50), (2000, 100), (2020, 100), (9999, 100)]
)
def test_windows_are_a_twentieth_between_8_and_100_points(length: int, window: int | None) -> None:
    seen: list[Any] = []

    def method(series: Any, width: int) -> Any:
        seen.append((series.mean().round(9), series.std().round(9), width))
        return np.arange(length) % 5.0

    found = detectors._windowed(method)(np.arange(length) * 3.0)
    assert seen == ([] if window is None else [(0, 1, window)])
    assert len(found) == length and found.any() == (window is not None)


def test_scores_of_windows_count_in_deviations_from_the_median() -> None:
    """1.4826 median absolute deviations are a standard deviation of normal numbers; infinity is the highest."""
    raw = np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, np.inf])
    found = detectors._windowed(lambda series, window: raw)(np.arange(17.0))
    # The median of the 17, of which the last counts as 15, is 8; the median distance to it is 4.
    assert found.tolist() == pytest.approx([(min(value, 15) - 8) / (4 * 1.4826) for value in raw])
    nothing = detectors._windowed(lambda series, window: raw * np.nan)(np.arange(17.0))
    assert nothing.tolist() == [0] * 17


def test_a_rolling_score_is_the_distance_in_deviations_of_a_window_of_11_or_a_twentieth() -> None:
    series = np.random.default_rng(0).normal(size=260)
    for length, half in ((40, 5), (219, 5), (260, 6)):
        found, values = DETECTORS["zscore"].score(series[:length]), series[:length]
        for place in (0, 3, length // 2, length - 1):
            window = values[max(place - half, 0) : place + half + 1]
            assert found[place] == pytest.approx(abs(values[place] - window.mean()) / window.std())


def test_fences_count_in_interquartile_ranges_on_either_side() -> None:
    values = np.array([0.0, 1, 2, 3, 4, 9, -8])  # quartiles 0.5 and 3.5
    assert DETECTORS["iqr"].score(values).tolist() == pytest.approx([0.5 / 3, 0, 0, 0, 0.5 / 3, 5.5 / 3, 8.5 / 3])


def test_a_record_has_the_highest_score_of_its_series() -> None:
    detector = Detector("", lambda series: series * 2)
    found = point_scores([np.array([1.0, 0, 3]), np.array([]), np.array([5.0, 5]), np.array([0.0, 4])], detector)
    assert found.tolist() == [2, 8, 6]  # the third has no spread
    assert point_scores([], detector).tolist() == []


@pytest.mark.parametrize(("gap", "intervals"), [(3, [(10, 14)]), (4, [(10, 10), (15, 15)])])
def test_points_with_a_hundredth_between_them_are_one(gap: int, intervals: list[tuple[int, int]]) -> None:
    scores = np.full(300, 2.0)
    scores[[10, 10 + gap + 1]] = 2.5
    assert detectors.flagged_intervals(scores, 2.0) == intervals
    assert detectors.flagged_intervals(scores, 2.5) == []


def test_the_threshold_is_the_lowest_with_the_best_f1_over_all_records() -> None:
    scores = np.zeros(200)
    scores[50:60], scores[100:110], scores[150:160] = 6.2, 4.2, 18.0
    assert choose_threshold([(scores, [(50, 59), (150, 159)])]) == 4.5
    assert choose_threshold([(scores, [(150, 159)])]) == 6.5
    assert choose_threshold([(scores, [(50, 59), (100, 109), (150, 159)])]) == 1.0
    assert choose_threshold([(scores, [(50, 59), (150, 159)]), (scores, [(150, 159)])] * 2) == 4.5
    for level, threshold in (
        (9.4, 9.5),
        (9.9, 12),
        (11.9, 12),
        (14.9, 15),
        (19.9, 20),
        (29.9, 30),
        (49.9, 50),
        (99.9, 100),
    ):
        scores[:100] = level  # everything up to here is flagged for nothing
        scores[150:160] = 1000
        assert choose_threshold([(scores, [(150, 159)])]) == threshold
    assert choose_threshold([]) == 1.0


def test_thresholds_are_learnt_on_some_records_of_the_training_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 401 records each third, from the first on; a label that lies outside of its series is none."""
    told: list[tuple[str, int]] = []
    seen: list[float] = []

    def score(series: Any) -> Any:
        seen.append(float(series[0]))
        return series

    def progress(items: Any, text: str, count: int) -> Any:
        told.append((text, count))
        return items

    def records(count: int) -> list[Source]:
        given = np.zeros((count, 40))
        given[:, 0], given[:, 3:6] = np.arange(count) / 1000, 7.2
        return [Source("", answer((3, 5), (90, 99)), (one,)) for one in given]

    monkeypatch.setitem(DETECTORS, "own", Detector("", score))
    assert dict(thresholds(["own", "iqr"], records(401), progress)) == {"own": 1.0, "iqr": 1.5}
    assert told == [("own threshold", 134)] and seen == [place / 1000 for place in range(0, 401, 3)]
    for count in (200, 201):
        list(thresholds(["own"], records(count), progress))
    assert told[1:] == [("own threshold", 200), ("own threshold", 101)]
    for some in (None, []):
        assert dict(thresholds(["own", "zscore"], some, progress)) == {"own": 3.0, "zscore": 3.0}
    assert len(told) == 3
