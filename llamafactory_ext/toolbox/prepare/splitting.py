"""Splitting: which prepared records train and which validate, so that no series is ever on both sides.

What belongs together is decided by the values of whole series, before windows and thinning: copies of a series under
two names, the windows of one series, and records that share one of several series all stay on one side.
"""

import hashlib
from collections.abc import Sequence


def choose_validation(records: Sequence[Sequence[bytes]], fraction: float, seed: int) -> list[bool]:
    """Choose the records for validation.

    Args:
        records: the digests of each record's series.
        fraction: of the units, which are the records connected by shared series; above 0 and below 1.
        seed: another one, another choice. The order of the records plays no part.

    Returns:
        Whether each record validates. Of two or more units at least one goes to either side.
    """
    parents: dict[bytes, bytes] = {}
    for digests in records:
        first = _root(parents, digests[0])
        for digest in digests[1:]:
            parents[_root(parents, digest)] = first
    smallest: dict[bytes, bytes] = {}
    for digest in list(parents):
        root = _root(parents, digest)
        smallest[root] = min(smallest.get(root, digest), digest)
    order = sorted(smallest, key=lambda root: hashlib.blake2b(smallest[root], key=str(seed).encode()[:64]).digest())
    count = min(max(round(fraction * len(order)), 1), len(order) - 1)
    chosen = set(order[:count])
    return [_root(parents, digests[0]) in chosen for digests in records]


def _root(parents: dict[bytes, bytes], digest: bytes) -> bytes:
    """Find what stands for all digests that are connected to this one, and shorten the way there."""
    parents.setdefault(digest, digest)
    while parents[digest] != digest:
        parents[digest] = parents[parents[digest]]
        digest = parents[digest]
    return digest
