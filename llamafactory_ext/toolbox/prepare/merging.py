"""Merging: the records of one point become one, and what they disagree on is settled by a stated rule.

The union of all intervals, sorted by start and end, each named once. Where records give one interval the same
type, the first record's entry stays, with its reason. Where they give it different types, the type that most
records give is kept; a tie goes to the record that comes first.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llamafactory_ext.gdsh import Anomaly


RULE = (
    "union of all intervals, each named once, sorted; same type: the first record's entry stays; different types: "
    "the type that most records give, a tie goes to the record that comes first"
)


@dataclass(frozen=True)
class Conflict:
    """One interval that the records of a point give different types."""

    interval: tuple[int, int]
    types: dict[str, int]
    """Each type, and how many records give it."""
    kept: str


def merge_anomalies(records: Sequence[Sequence[Anomaly]]) -> tuple[list[Anomaly], list[Conflict], int]:
    """Merge the anomalies of a point's records, given in the records' order.

    Returns:
        The merged anomalies, the conflicts, and how many entries fell to an equal interval's.
    """
    by_interval: dict[tuple[int, int], list[tuple[int, Anomaly]]] = {}
    for place, anomalies in enumerate(records):
        for anomaly in anomalies:
            by_interval.setdefault((anomaly.start, anomaly.end), []).append((place, anomaly))
    merged, conflicts = [], []
    for interval in sorted(by_interval):
        entries = by_interval[interval]
        # A record that names a type twice has still one vote. Counter keeps the order of first appearance, and
        # max() takes the first of equals: so a tie goes to the record that comes first.
        votes = Counter(kind for _, kind in dict.fromkeys((place, entry.type) for place, entry in entries))
        kept = max(votes, key=votes.__getitem__)
        merged.append(next(entry for _, entry in entries if entry.type == kept))
        if len(votes) > 1:
            conflicts.append(Conflict(interval, dict(votes), kept))
    return merged, conflicts, sum(map(len, records)) - len(merged)


def without_equals(anomalies: Sequence[Anomaly]) -> list[Anomaly]:
    """Keep the first of those that agree in interval and type, in order."""
    first: dict[tuple[int, int, str], Anomaly] = {}
    for anomaly in anomalies:
        first.setdefault((anomaly.start, anomaly.end, anomaly.type), anomaly)
    return list(first.values())
