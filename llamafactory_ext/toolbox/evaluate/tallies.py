"""Tallies: what is added up over records, and the scores of a sum.

Counts of events and points are summed first and scored then (micro average): long answers weigh more. Range and
affiliation are scores of a record each and averaged over records, their F1 as well, which therefore is not the
harmonic mean of the averaged precision and recall.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.toolbox.evaluate.metrics import RecordScores


Tally = NDArray[np.float64]
"""Shape [..., 13]: hits, false alarms and misses of events, the same of points, precision, recall and F1 of range, the
same of affiliation, and 1 for the record itself."""

PARTS = ("f1", "precision", "recall")
METRICS = tuple(f"{kind}_{part}" for kind in ("event", "range", "affiliation", "point") for part in PARTS)


def tally(scores: RecordScores) -> Tally:
    """One record, ready to be added."""
    return np.array([*scores.events, *scores.points, *scores.range, *scores.affiliation, 1], dtype=np.float64)


def add(tallies: Iterable[Tally]) -> Tally:
    """The sum over records."""
    return np.asarray(np.sum([np.zeros(13), *tallies], axis=0), dtype=np.float64)


def metrics_of(sums: Tally) -> Mapping[str, NDArray[np.float64]]:
    """The scores of sums of shape [..., 13], by the names of `METRICS`; each of shape [...].

    Without a record the averages are 0; empty counts are right, as in `events.agreement`.
    """
    events, points, ranges, affiliations = (sums[..., place : place + 3] for place in (0, 3, 6, 9))
    records = np.maximum(sums[..., 12], 1)
    found = {"event": _counted(events), "point": _counted(points)}
    for kind, summed in (("range", ranges), ("affiliation", affiliations)):
        precision, recall, f1 = np.moveaxis(summed / records[..., None], -1, 0)
        found[kind] = {"f1": f1, "precision": precision, "recall": recall}
    return {name: found[name.rpartition("_")[0]][name.rpartition("_")[2]] for name in METRICS}


def plain(sums: Tally) -> dict[str, float]:
    """The scores of one sum as numbers for JSON."""
    return {name: round(float(value), 6) for name, value in metrics_of(sums).items()}


def counts_of(sums: Tally) -> dict[str, int]:
    """The counted events of one sum."""
    return dict(zip(("hits", "false_alarms", "misses"), map(int, sums[:3]), strict=True))


def _counted(counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """`events.agreement` for arrays of shape [..., 3]."""
    hits, false_alarms, misses = np.moveaxis(counts, -1, 0)
    right = (counts.sum(axis=-1) == 0).astype(np.float64)

    def share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(hits > 0, part / np.maximum(whole, 1), right)

    return {
        "f1": share(2 * hits, 2 * hits + false_alarms + misses),
        "precision": share(hits, hits + false_alarms),
        "recall": share(hits, hits + misses),
    }
