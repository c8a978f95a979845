"""Confidence intervals: a percentile bootstrap over points.

A point (sensor) is drawn with all of its records: they show the same machine, and are no independent evidence.
"""

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.toolbox.evaluate.tallies import METRICS, Tally, metrics_of


LEVEL, RESAMPLES, SEED = 0.95, 1000, 0


def confidence(points: Tally) -> dict[str, list[float]]:
    """Low and high end of each metric's interval at `LEVEL`.

    Arguments:
        points: one row a point, the sum over its records; shape [points, 13].

    Returns:
        Nothing for fewer than two points: there is no spread to be seen.
    """
    from scipy.stats import bootstrap

    if len(points) < 2:
        return {}

    def interval(name: str) -> list[float]:
        def statistic(rows: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
            return metrics_of(points[rows].sum(axis=axis - 1))[name]  # behind the drawn rows lie the columns

        found = bootstrap(
            (np.arange(len(points)),),
            statistic,
            confidence_level=LEVEL,
            n_resamples=RESAMPLES,
            batch=100,  # 100 draws of 10,000 points are 100 MB
            method="percentile",
            vectorized=True,
            random_state=SEED,
        ).confidence_interval
        return [round(float(found.low), 6), round(float(found.high), 6)]

    return {name: interval(name) for name in METRICS}
