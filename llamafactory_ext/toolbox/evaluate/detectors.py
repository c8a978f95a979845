"""Detectors that cost nothing: what it takes to be better than a guess, than a rule, than a method without labels.

random          as many intervals as the record has labels, of the same lengths, at random places; it is told their
                number and lengths, which a model is not. Scores are means over `SEEDS` draws.
zscore          distance to the mean of a centred window in its standard deviations; flagged beyond 3
iqr             Tukey's fences: distance to the quartiles of the whole series in interquartile ranges; beyond 1.5
iforest         isolation forest over sliding windows (pyod)
sub_pca         principal components of sliding windows (pyod)
matrix_profile  distance of a window to the window most like it, each normalised (STOMP, pyod)
kmeans          KMeansAD: distance of a window to the nearest of 20 centres (aeon)

The last four read normalised series in windows of a twentieth of the series, 8 to 100 points, and score each of its
points; a score counts in deviations (1.48 MAD) from its series' median. Their thresholds are chosen on the labels of
training data alone, where such are given, by event F1 at IoU 0.3; else it is `UNTRAINED`.

Of the flagged points, runs with gaps of at most a hundredth of the series become one interval: a detector that
flickers would otherwise be charged with a false alarm for every piece. Several series of a record: the highest score.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.gdsh.events import Interval, matches
from llamafactory_ext.toolbox.evaluate.detail import ious


FloatArray = NDArray[np.float64]

SEEDS = 10
UNTRAINED = 3.0
_CANDIDATES = (*np.arange(1, 10, 0.5).tolist(), 12.0, 15.0, 20.0, 30.0, 50.0, 100.0)


@dataclass(frozen=True)
class Detector:
    """Scores the points of one series; the more, the more anomalous."""

    title: str
    score: Callable[[FloatArray], FloatArray]
    threshold: float | None = None
    """From where on a point is flagged; None: to be chosen on training data."""
    needs: str = ""
    """The module that it comes from."""


def random_intervals(labels: Sequence[Interval], length: int, rng: np.random.Generator) -> list[Interval]:
    """Draw intervals of the labels' lengths; each place where one fits is equally likely."""
    sizes = [end - start + 1 for start, end in labels]
    starts = [int(rng.integers(0, length - size + 1)) for size in sizes]
    return [(start, start + size - 1) for start, size in zip(starts, sizes, strict=True)]


def point_scores(series: Sequence[FloatArray], detector: Detector) -> FloatArray:
    """The scores of a record's points: the highest of its series, each of shape [length]."""
    found = np.zeros(max(map(len, series), default=0))
    for one in series:
        if len(one) and np.ptp(one) > 0:
            found[: len(one)] = np.maximum(found[: len(one)], detector.score(one))
    return found


def flagged_intervals(scores: FloatArray, threshold: float) -> list[Interval]:
    """The runs of points beyond a threshold; those with at most a hundredth of the series between them are one."""
    places = np.flatnonzero(scores > threshold)
    if not len(places):
        return []
    cuts = np.flatnonzero(np.diff(places) > len(scores) // 100 + 1) + 1
    bounds = [0, *cuts.tolist(), len(places)]
    return [(int(places[first]), int(places[last - 1])) for first, last in pairwise(bounds)]


def choose_threshold(training: Iterable[tuple[FloatArray, Sequence[Interval]]]) -> float:
    """The threshold with the highest event F1 at IoU 0.3 over records of scores and labels."""
    sums = np.zeros((len(_CANDIDATES), 2))
    for scores, labels in training:
        for place, threshold in enumerate(_CANDIDATES):
            found = flagged_intervals(scores, threshold)
            sums[place] += 2 * matches(ious(labels, found) >= 0.3), len(found) + len(labels)
    return _CANDIDATES[int(np.argmax(sums[:, 0] / np.maximum(sums[:, 1], 1)))]


def _zscore(series: FloatArray) -> FloatArray:
    import pandas as pd

    window = max(11, len(series) // 20)  # in fewer points none can be 3 deviations away
    rolling = pd.Series(series).rolling(window, center=True, min_periods=1)
    distance, deviation = np.abs(series - rolling.mean().to_numpy()), rolling.std(ddof=0).to_numpy()
    return np.asarray(np.divide(distance, deviation, out=np.zeros(len(series)), where=deviation > 0))


def _iqr(series: FloatArray) -> FloatArray:
    low, high = np.quantile(series, [0.25, 0.75])
    beyond = np.maximum(np.maximum(low - series, series - high), 0)
    return np.asarray(beyond / max(float(high - low), 1e-9 * float(np.ptp(series))), dtype=np.float64)


def _iforest(series: FloatArray, window: int) -> FloatArray:
    from aeon.anomaly_detection.series.outlier_detection import IsolationForest

    return np.asarray(IsolationForest(window_size=window, random_state=0).fit_predict(series, axis=0))


def _sub_pca(series: FloatArray, window: int) -> FloatArray:
    from aeon.anomaly_detection.series import PyODAdapter
    from pyod.models.pca import PCA

    return np.asarray(PyODAdapter(PCA(random_state=0), window_size=window).fit_predict(series, axis=0))


def _matrix_profile(series: FloatArray, window: int) -> FloatArray:
    from pyod.models.ts_matrix_profile import MatrixProfile

    return np.asarray(MatrixProfile(window_size=window).fit(series[:, None]).decision_scores_)


def _kmeans(series: FloatArray, window: int) -> FloatArray:
    from aeon.anomaly_detection.series.distance_based import KMeansAD

    clusters = min(20, len(series) - window + 1)
    return np.asarray(KMeansAD(n_clusters=clusters, window_size=window, random_state=0).fit_predict(series, axis=0))


def _windowed(method: Callable[[FloatArray, int], FloatArray]) -> Callable[[FloatArray], FloatArray]:
    def score(series: FloatArray) -> FloatArray:
        window = min(100, max(8, len(series) // 20))
        if len(series) < 2 * window:
            return np.zeros(len(series))
        with warnings.catch_warnings():
            # A window without spread is infinitely far from all others, which the detectors subtract; seen to below.
            warnings.simplefilter("ignore", RuntimeWarning)
            found = method((series - series.mean()) / series.std(), window)
        finite = np.isfinite(found)
        if not finite.any():
            return np.zeros(len(series))
        found = np.where(finite, found, found[finite].max())  # a window that is like no other
        away = found - np.median(found)
        spread = max(1.4826 * float(np.median(np.abs(away))), 1e-3 * float(np.abs(away).max()), np.finfo(float).tiny)
        return np.asarray(away / spread, dtype=np.float64)

    return score


DETECTORS: dict[str, Detector] = {
    "zscore": Detector("rolling z-score", _zscore, 3.0),
    "iqr": Detector("quartile fences", _iqr, 1.5),
    "iforest": Detector("isolation forest", _windowed(_iforest), needs="pyod"),
    "sub_pca": Detector("Sub-PCA", _windowed(_sub_pca), needs="pyod"),
    "matrix_profile": Detector("matrix profile", _windowed(_matrix_profile), needs="pyod"),
    "kmeans": Detector("KMeansAD", _windowed(_kmeans)),
}
RULES = ("zscore", "iqr")
