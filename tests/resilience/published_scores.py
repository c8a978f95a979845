"""What published implementations say of 300 random cases; tests/toolbox/test_evaluate_published.py compares with it.

    pip install --no-deps tsb-ad==1.5 prts==1.0.0.3 && pip install numpy scipy scikit-learn pandas
    python tests/resilience/published_scores.py > tests/toolbox/published_scores.json

In an environment of its own: both packages want numpy < 2, and run with 2 as well. Nothing of ours is imported here.
VUS is tsb-ad's, range-based precision and recall (alpha 0, flat, reciprocal) prts', affiliation its authors' own code,
which tsb-ad carries. Where one of them has no value, or stops, it says null: no label, no prediction, all of a series.
"""

import json
import sys
import warnings
from importlib.metadata import version
from typing import Any

import numpy as np


CASES, SEED = 300, 20261125


def cases() -> list[dict[str, Any]]:
    """Labels and predictions with confidences; every tenth is at an edge of what there is."""
    rng, found = np.random.default_rng(SEED), []
    for number in range(CASES):
        length = int(rng.integers(20, 400))
        labels = _intervals(rng, length, int(rng.integers(1, 6)))
        predictions = _intervals(rng, length, int(rng.integers(0, 5)))
        for start, end in labels:  # most of what is predicted is somewhere near
            if rng.random() < 0.6:
                moved = sorted(np.clip(np.add([start, end], rng.integers(-8, 9, 2)), 0, length - 1).tolist())
                predictions.append((moved[0], moved[1]))
        if number % 10 == 0:
            edges = [[(0, length - 1)], [(0, 0)], [(length - 1, length - 1)], [], [(0, 4), (5, 9)], [(2, 2), (4, 4)]]
            labels = edges[number // 10 % 6]
            predictions = edges[number // 60 % 6] if number % 20 else predictions
        sure = [round(float(one), 2) for one in rng.random(len(predictions))]
        confidences = [None] * len(sure) if number % 3 == 0 else sure
        labels, predictions = sorted(set(labels)), sorted(set(predictions))
        found.append(
            {
                "length": length,
                "labels": labels,
                "predictions": predictions,
                "confidences": confidences[: len(predictions)],
            }
        )
    return found


def _intervals(rng: np.random.Generator, length: int, count: int) -> list[tuple[int, int]]:
    found = []
    for _ in range(count):
        start = int(rng.integers(0, length))
        found.append((start, min(length - 1, start + int(rng.integers(0, max(2, length // 6))))))
    return found


def mask(intervals: Any, length: int, heights: Any = None) -> Any:
    marked = np.zeros(length)
    for place, (start, end) in enumerate(intervals):
        height = 1.0 if heights is None or heights[place] is None else heights[place]
        marked[start : end + 1] = np.maximum(marked[start : end + 1], height)
    return marked


def published(case: dict[str, Any]) -> list[float | None]:
    """VUS-PR, VUS-ROC, range precision and recall, affiliation precision and recall."""
    from prts import ts_precision, ts_recall
    from TSB_AD.evaluation.affiliation.generics import convert_vector_to_events
    from TSB_AD.evaluation.affiliation.metrics import pr_from_events
    from TSB_AD.evaluation.basic_metrics import generate_curve

    length = case["length"]
    labels, guessed = mask(case["labels"], length), mask(case["predictions"], length)
    scores = mask(case["predictions"], length, case["confidences"])
    found: list[float | None] = [None] * 6
    if labels.any() and not labels.all():
        *_, roc, pr = generate_curve(labels.astype(int), scores, min(100, length // 10))
        found[:2] = [pr, roc]
    if labels.any() and guessed.any():
        # prts knows no prediction without a normal point: one more at the end changes nothing else
        real, pred = np.append(labels, 0).astype(int), np.append(guessed, 0).astype(int)
        found[2] = ts_precision(real, pred, alpha=0.0, cardinality="reciprocal", bias="flat")
        found[3] = ts_recall(real, pred, alpha=0.0, cardinality="reciprocal", bias="flat")
        events = [convert_vector_to_events(one.astype(int)) for one in (guessed, labels)]
        local = pr_from_events(*events, (0, length))
        found[4:] = [local["Affiliation_Precision"], local["Affiliation_Recall"]]
    return [None if one is None or not np.isfinite(one) else round(float(one), 9) for one in found]


def main() -> int:
    warnings.simplefilter("ignore")
    names = ("tsb-ad", "prts", "numpy")
    print(json.dumps({name: version(name) for name in names})[:-1] + ', "cases": [')
    lines = [json.dumps(published(case)) for case in cases()]
    print(",\n".join(lines) + "]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
