"""Splitting: which prepared records train and which validate, so that no series is ever on both sides.

What belongs together is decided by the values of series before windows and thinning: copies of a series under two
names, overlapping windows of one series, the windows that are cut of one, and records that share one of several series
all stay on one side. Types of anomalies are spread over both sides as far as that allows.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .resampling import Floats


Keys = npt.NDArray[np.uint64]
"""What a record's series are known by: records that have a key in common belong together."""
NO_KEYS: Keys = np.zeros(0, dtype=np.uint64)

_RUN = 32  # values whose equality makes a key
_REACH = 33  # of so many runs in a row one is chosen: whoever shares 64 values in a row shares a key
_DISTINCT = (
    8  # values that a run must have: flat stretches are alike in series that have nothing to do with each other
)
_STARTS = 8  # choices by chance that are made better, of which the best is kept
_MANY = 2000  # units of which a single choice by chance is good enough to begin with
_TRIED = 32  # units that are tried to leave at each exchange


def text_key(text: bytes) -> int:
    """A key of any text."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def series_keys(values: Floats) -> Keys:
    """The keys of one series, shape (rows,): one of the whole, and those of runs that every overlap shares.

    Runs are chosen by winnowing (Schleimer, Wilkerson and Aiken 2003, SIGMOD): the smallest hash of each few runs in
    a row, so that two series choose alike where they are alike, wherever that is.
    """
    values = values + 0.0  # makes -0.0 and 0.0, which are the same to every reader, the same bytes
    whole = np.array([text_key(values.tobytes())], dtype=np.uint64)
    runs = len(values) - _RUN + 1
    if runs < 1:
        return whole
    bits = _mix(values.view(np.uint64))
    hashes = np.zeros(runs, dtype=np.uint64)
    for place in range(_RUN):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + bits[place : place + runs]
    hashes = _mix(hashes)
    reach = min(_REACH, runs)
    nearby = np.lib.stride_tricks.sliding_window_view(hashes, reach)
    chosen = np.unique(nearby.argmin(axis=1) + np.arange(len(nearby)))
    ordered = np.sort(np.lib.stride_tricks.sliding_window_view(values, _RUN)[chosen], axis=1)
    told = (np.diff(ordered, axis=1) != 0).sum(axis=1) + 1 >= _DISTINCT
    return np.unique(np.concatenate([whole, hashes[chosen[told]]]))


def choose_validation(
    records: Sequence[Keys], types: Sequence[Sequence[str]], fraction: float, seed: int
) -> tuple[list[bool], int]:
    """Choose the records for validation.

    Args:
        records: the keys of each record's series.
        types: of each record's anomalies, one for each of them.
        fraction: of the units, which are the records connected by shared keys; above 0 and below 1.
        seed: another one, another choice. The order of the records plays no part.

    Returns:
        Whether each record validates, and the number of units. Of two or more units at least one goes to either side.
    """
    roots = _connect(records)
    smallest: dict[int, int] = {}
    for root, keys in zip(roots, records, strict=True):
        smallest[root] = min(smallest.get(root, int(keys.min())), int(keys.min()))
    salt = str(seed).encode()[:64]
    order = sorted(smallest, key=lambda root: hashlib.blake2b(smallest[root].to_bytes(8, "big"), key=salt).digest())
    count = min(max(round(fraction * len(order)), 1), len(order) - 1)
    units = {root: place for place, root in enumerate(order)}
    chosen = np.arange(len(order)) < count
    if count > 0:
        counts = _count_types([units[root] for root in roots], types)
        tries = [np.roll(chosen, turn * count) for turn in range(_STARTS if len(order) < _MANY else 1)]
        chosen = min(tries, key=lambda one: _spread(counts, one, fraction))
    return [bool(chosen[units[root]]) for root in roots], len(order)


def _connect(records: Sequence[Keys]) -> list[int]:
    """Give each record the place of the first one that it is connected to."""
    keys = np.concatenate(records)
    owners = np.repeat(np.arange(len(records)), [len(one) for one in records])
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    pairs = np.unique(np.stack([owners[order][:-1][same], owners[order][1:][same]], axis=1), axis=0)
    parents = list(range(len(records)))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    for one, other in pairs.tolist():
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    return [root(place) for place in range(len(records))]


def _count_types(units: Sequence[int], types: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
    """How many anomalies of each type a unit has, shape (units, types); records without any are a type, too."""
    found = Counter(
        (unit, kind) for unit, kinds in zip(units, types, strict=True) for kind in ([*kinds] or ["(none)"])
    )
    names = {name: place for place, name in enumerate(sorted({kind for _, kind in found}))}
    counts = np.zeros((max(units) + 1, len(names)))
    for (unit, kind), number in found.items():
        counts[unit, names[kind]] = number
    return counts


def _spread(counts: npt.NDArray[np.float64], chosen: npt.NDArray[np.bool_], fraction: float) -> float:
    """Exchange units between the sides as long as that brings the types' shares in validation nearer to `fraction`.

    Gives the distance that is left.

    A type that several units have shall be on both sides; one that a single unit has is for training. What is shared
    out are its anomalies, and the units that have any: a single one may have most of them.
    """
    counts = np.hstack([counts, counts > 0])
    total, several = counts.sum(axis=0), (counts > 0).sum(axis=0) > 1
    wanted = np.where(several, np.clip(fraction * total, 1, total - 1), 0.0)
    weights = 1 / np.sqrt(np.maximum(wanted, 1))
    scaled, sizes = counts * weights, ((counts * weights) ** 2).sum(axis=1)
    off = scaled[chosen].sum(axis=0) - wanted * weights
    for _ in range(4 * len(chosen)):
        inside, outside = np.flatnonzero(chosen), np.flatnonzero(~chosen)
        leaving = inside[np.argsort(sizes[inside] - 2 * scaled[inside] @ off, kind="stable")[:_TRIED]]
        rest = off - scaled[leaving]
        # The squared distance from what is wanted, for each unit that leaves and each that comes instead.
        after = (rest**2).sum(axis=1)[:, None] + sizes[outside] + 2 * rest @ scaled[outside].T
        best = np.unravel_index(after.argmin(), after.shape)
        if after[best] >= 0.999 * (off**2).sum() - 1e-9:  # the rest of the way is long and leads nowhere
            break
        gone, come = leaving[best[0]], outside[best[1]]
        chosen[gone], chosen[come] = False, True
        off = off - scaled[gone] + scaled[come]
    return float((off**2).sum())


def _mix(bits: Keys) -> Keys:
    """Spread every bit over all others (the finaliser of splitmix64)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
