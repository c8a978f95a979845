"""How often the intervals of `evaluate` hold what they should: event F1 over a few simulated points.

    python tests/resilience/coverage.py

Points (sensors) differ in how well a model does on them (a beta distribution); each has 1 to about 8 labels. Prints,
for populations and numbers of points, how many of the intervals hold the F1 of the whole population, and their width;
beside them a percentile bootstrap's. Ends with 1 where fewer than 94 % do.
"""

import argparse
import sys

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.toolbox.evaluate.spread import FEWEST, interval


POPULATIONS = {"F1 0.67": (6, 4), "F1 0.92": (18, 2), "F1 0.98": (30, 0.6), "good or bad": (0.4, 0.3)}
NUMBERS = (FEWEST, 5, 8, 10, 15, 20, 50)
ENOUGH = 0.94

Counts = NDArray[np.float64]


def draw(population: str, runs: int, points: int, rng: np.random.Generator) -> Counts:
    """Hits, false alarms and misses; shape [runs, points, 3]."""
    skill = rng.beta(*POPULATIONS[population], (runs, points))
    labels = 1 + rng.poisson(3, (runs, points))
    hits, false_alarms = rng.binomial(labels, skill), rng.poisson((1 - skill) * 2)
    return np.stack([hits, false_alarms, labels - hits], axis=-1).astype(np.float64)


def f1(counts: Counts) -> Counts:
    whole = 2 * counts[..., 0] + counts[..., 1] + counts[..., 2]
    return np.asarray(np.where(whole > 0, 2 * counts[..., 0] / np.maximum(whole, 1), 1.0))


def covered(population: str, points: int, runs: int, resamples: int) -> tuple[float, float, float]:
    """Shares of our intervals and of the bootstrap's that hold the truth, and the mean width of ours."""
    rng = np.random.default_rng(points)
    truth = float(f1(draw(population, 1, 400_000, rng).sum(axis=-2))[0])
    counts = draw(population, runs, points, rng)
    whole = counts.sum(axis=-2)
    low, high = interval(f1(whole), f1(whole[:, None] - counts))
    drawn = np.stack([f1(counts[:, rng.integers(0, points, points)].sum(axis=-2)) for _ in range(resamples)], axis=-1)
    least, most = np.quantile(drawn, [0.025, 0.975], axis=-1)
    holds = [float(np.mean((one <= truth) & (truth <= other))) for one, other in ((low, high), (least, most))]
    return holds[0], holds[1], float(np.mean(high - low))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="samples of each kind; default: 2000")
    parser.add_argument("--resamples", type=int, default=400, help="of the bootstrap; default: 400")
    options = parser.parse_args()
    worst = 1.0
    print(f"| points | {' | '.join(POPULATIONS)} |\n|---|{'---|' * len(POPULATIONS)}")
    for points in NUMBERS:
        cells = []
        for population in POPULATIONS:
            ours, bootstrap, width = covered(population, points, options.runs, options.resamples)
            cells.append(f"{ours:.1%} (bootstrap {bootstrap:.1%}; width {width:.2f})")
            worst = min(worst, ours)
        print(f"| {points} | {' | '.join(cells)} |", flush=True)
    return 0 if worst >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
