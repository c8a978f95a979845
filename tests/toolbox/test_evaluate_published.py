"""300 random cases by the published implementations: see tests/resilience/published_scores.py."""

import importlib.util
import json
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest


pytest.importorskip("aeon")
pytest.importorskip("telemeval")

from llamafactory_ext.toolbox.evaluate.detail import detail, ious
from llamafactory_ext.toolbox.evaluate.metrics import RecordScores, score
from llamafactory_ext.toolbox.evaluate.volume import volume, window_of


HERE = Path(__file__).parent
SPEC = importlib.util.spec_from_file_location("published_scores", HERE.parent / "resilience" / "published_scores.py")
assert SPEC
published = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(published)  # type: ignore[union-attr]
STORED = json.loads((HERE / "published_scores.json").read_text())["cases"]
CASES = published.cases()


def scored(case: dict) -> RecordScores:  # type: ignore[type-arg]
    scores = published.mask(case["predictions"], case["length"], case["confidences"])
    return score(case["labels"], case["predictions"], case["length"], scores=scores)


def test_scores_are_those_of_published_implementations() -> None:
    assert len(CASES) == len(STORED) == 300
    known = np.zeros(6, dtype=int)
    for case, stored in zip(CASES, STORED, strict=True):
        found = scored(case)
        ours = [found.detail.vus_pr, found.detail.vus_roc, *found.range[:2], *found.affiliation[:2]]
        assert (stored[0] is None) == (not found.detail.volumes)
        for place, (one, other) in enumerate(zip(ours, stored, strict=True)):
            if other is not None:
                assert one == pytest.approx(other, abs=1e-8), (case, place)
                known[place] += 1
    assert known.tolist() == [290, 290, 283, 283, 283, 283]


def test_matches_at_an_iou_and_the_best_pairs_by_trying_all() -> None:
    """As many pairs as there can be; of the matchings with most pairs that with the largest sum of IoU."""
    tried = 0
    for case in CASES:
        labels, predictions = case["labels"], case["predictions"]
        if len(labels) * len(predictions) == 0 or len(predictions) > 6:
            continue
        shares = np.array([[shared(one, other) for other in predictions] for one in labels])
        assert ious(labels, predictions) == pytest.approx(shares)
        found, tried = scored(case).detail, tried + 1
        assert found.hits_iou30 == most(shares >= 0.3)[0]
        assert found.hits_iou50 == most(shares >= 0.5)[0]
        assert (found.pairs, found.iou) == pytest.approx(most(shares))
    assert tried > 200


def shared(one: tuple[int, int], other: tuple[int, int]) -> float:
    points, others = set(range(one[0], one[1] + 1)), set(range(other[0], other[1] + 1))
    return len(points & others) / len(points | others)


def most(shares: np.ndarray) -> tuple[int, float]:  # type: ignore[type-arg]
    turned = shares if shares.shape[0] <= shares.shape[1] else shares.T
    best = (0, 0.0)
    for chosen in permutations(range(turned.shape[1]), turned.shape[0]):
        values = [float(turned[row, column]) for row, column in enumerate(chosen) if turned[row, column]]
        best = max(best, (len(values), sum(values)))
    return best


def test_delay_types_and_normal_series_by_hand() -> None:
    types = ({(10, 19): frozenset("a"), (40, 49): frozenset("b"), (80, 89): frozenset()},
             {(5, 12): frozenset("a"), (44, 60): frozenset("c"), (85, 99): frozenset("a")})  # fmt: skip
    found = score(list(types[0]), list(types[1]), 100, types=types).detail
    assert (found.pairs, found.typed, found.right_type) == (3, 2, 1)
    assert (found.found, found.delay, found.normal) == (3, 0 + 4 + 5, 0)
    at_the_ends = score([(10, 19), (40, 49)], [(5, 10), (49, 60)], 100).detail
    assert (at_the_ends.found, at_the_ends.delay, at_the_ends.normal_false_alarms) == (2, 0 + 9, 0)
    normal = score([], [(3, 5), (8, 9)], 100, outside=1).detail
    assert (normal.normal, normal.normal_false_alarms, normal.length, normal.volumes) == (1, 3, 100, 0)


def test_a_constant_score_tells_nothing_apart() -> None:
    labels = np.zeros(200, dtype=np.int64)
    labels[40:60] = 1
    found = volume(labels, np.zeros(200), window_of(200))
    assert found is not None and found.roc == pytest.approx(0.5, abs=0.03) and found.pr < 0.2
    assert volume(labels * 0, np.zeros(200), 20) is None
    assert volume(labels * 0 + 1, np.zeros(200), 20) is None


@pytest.mark.parametrize(("rank", "predicted"), [(0, 1), (1, 2), (5, 7), (298, 300), (299, 300)])
def test_thresholds_are_250_of_the_sorted_scores(rank: int, predicted: int) -> None:
    """Of 300 each 299/249th, rounded down, the highest and the lowest among them: so not the sixth (rank 5)."""
    labels = np.zeros(300, dtype=np.int64)
    labels[rank] = 1
    found = volume(labels, np.arange(300.0)[::-1], 0)
    assert found is not None and found.pr == pytest.approx(1 / predicted)
    assert [window_of(length) for length in (9, 10, 999, 1000, 1010, 5000)] == [0, 1, 99, 100, 100, 100]


def test_nothing_on_either_side() -> None:
    for labels, predictions in combinations(([], [(3, 5)]), 2):
        mask = np.zeros(50, dtype=np.int64)
        assert detail(labels, predictions, mask, mask.astype(float), 0).pairs == 0
