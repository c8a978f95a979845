"""Two or more runs over the same records, paired: differences with confidence, and which records turned.

The first run is what the others are held to. A difference's interval is a jackknife over points (see `spread`), each
left out of both runs at once, so that what is hard in the data is hard for both. Whether labels are found by one run
and missed by the other more often than chance has it says McNemar's exact test.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from llamafactory_ext.gdsh.events import overlap
from llamafactory_ext.toolbox.evaluate.judging import Case, Evaluation, Judged, intervals, judge, judge_type
from llamafactory_ext.toolbox.evaluate.predictions import EvaluateError
from llamafactory_ext.toolbox.evaluate.spread import FEWEST, interval_of_difference
from llamafactory_ext.toolbox.evaluate.tallies import METRICS, RATES, Tally, add, metrics_of, rounded, tally


SCORES = ("event_f1", *RATES, *(name for name in METRICS if name.endswith("_f1") and name != "event_f1"))


@dataclass(frozen=True)
class Run:
    """One run's records, read and judged."""

    name: str
    found: Evaluation

    @property
    def cases(self) -> Sequence[Case]:
        return self.found.cases

    @property
    def records(self) -> Sequence[Judged]:
        return self.found.records


def compare(runs: Sequence[Run], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Compare runs with the first of them.

    Arguments:
        groups: for each field of `--by`, what each record has there.

    Raises:
        EvaluateError: fewer than two runs, or runs over different records.
    """
    check_same(runs)
    sums = [[tally(judge(case)) for case in run.cases] for run in runs]
    types = sorted({name for case in runs[0].cases for name in _types(case)})
    return {
        "runs": [run.name for run in runs],
        "records": len(runs[0].cases),
        "points": len({one.name for one in runs[0].records}),
        "scores": [_scores(add(one)) for one in sums],
        "differences": [_difference(runs[0], sums[0], one) for one in sums[1:]],
        "mcnemar": [_mcnemar(runs[0].cases, run.cases) for run in runs[1:]],
        "turned": [_turned(runs[0].records, run.records) for run in runs[1:]],
        "per_type": {
            name: [_f1(add(tally(judge_type(case, name)) for case in run.cases if name in case.types)) for run in runs]
            for name in types
        },
        "per_group": {
            field: {
                value: [_f1(add(one[place] for place in places)) for one in sums]
                for value, places in _places(values).items()
            }
            for field, values in groups.items()
        },
    }


def check_same(runs: Sequence[Run]) -> None:
    """Check that all runs answer the same records.

    Raises:
        EvaluateError: says which run differs, where, and how.
    """
    if len(runs) < 2:
        raise EvaluateError("one run can't be compared; name two or more")
    first = runs[0]
    for run in runs[1:]:
        if len(run.records) != len(first.records):
            raise EvaluateError(
                f"{first.name} has {len(first.records)} labelled records, {run.name} {len(run.records)}: "
                "predict the same data set with both"
            )
        pairs = zip(first.records, run.records, first.found.keys, run.found.keys, strict=True)
        for one, other, key, another in pairs:
            what = _other(one, other) or ("another series in the prompt" if key and another and key != another else "")
            if what:
                raise EvaluateError(
                    f"record {one.index} of {first.name} and of {run.name} are not the same: {what}; "
                    "predict the same data set with both"
                )


def _other(one: Judged, other: Judged) -> str:
    if one.index != other.index:
        return f"the other is record {other.index}"
    if one.length != other.length:
        return f"{one.length} points, {other.length} points"
    if one.name != other.name:
        return f"{one.name}, {other.name}"
    places = [[(label.start, label.end, label.type) for label in judged.labels] for judged in (one, other)]
    return "" if sorted(places[0]) == sorted(places[1]) else f"labels {places[0][:3]}, {places[1][:3]}"


def _difference(first: Run, one: Sequence[Tally], other: Sequence[Tally]) -> dict[str, Any]:
    """For each score the difference to the first run, its interval, and whether that leaves out 0."""
    places = list(_places([judged.name for judged in first.records]).values())
    points = [np.array([add(sums[place] for place in group) for group in places]) for sums in (one, other)]
    whole = [metrics_of(sums.sum(axis=0)) for sums in points]
    left_out = [metrics_of(sums.sum(axis=0) - sums) for sums in points]
    found = {}
    for name in SCORES:
        estimate, others = (np.asarray(pair[1][name] - pair[0][name]) for pair in (whole, left_out))
        ends = None
        if len(places) >= FEWEST and np.isfinite(estimate) and np.isfinite(others).all():
            ends = [round(float(end), 6) for end in interval_of_difference(estimate, others)]
        known = ends is not None and (ends[0] > 0 or ends[1] < 0)
        found[name] = {"difference": rounded(float(estimate)), "interval": ends, "certain": known}
    return found


def _mcnemar(one: Sequence[Case], other: Sequence[Case]) -> dict[str, Any]:
    """Labels that only one of the runs finds (overlaps), and how likely so uneven a split is by chance."""
    pairs = [
        tuple(any(overlap(label, guess) for guess in intervals(case.predicted.inside)) for case in both)
        for both in zip(one, other, strict=True)
        for label in intervals(both[0].labels.inside)
    ]
    only_first, only_other = pairs.count((True, False)), pairs.count((False, True))
    turned = only_first + only_other
    p = float(binomtest(only_other, turned).pvalue) if turned else 1.0
    return {"labels": len(pairs), "only_first": only_first, "only_other": only_other, "p": round(p, 6)}


def _turned(one: Sequence[Judged], other: Sequence[Judged]) -> dict[str, list[int]]:
    """The places of records whose mean of all F1 rose or fell, the largest change first."""
    changes = [
        float(np.mean(list(after.scores.values())) - np.mean(list(before.scores.values())))
        for before, after in zip(one, other, strict=True)
    ]
    order = sorted(range(len(changes)), key=lambda place: (-abs(changes[place]), place))
    return {
        "better": [place for place in order if changes[place] > 1e-9],
        "worse": [place for place in order if changes[place] < -1e-9],
    }


def _scores(sums: Tally) -> dict[str, float | None]:
    found = metrics_of(sums)
    return {name: rounded(float(found[name])) for name in SCORES}


def _f1(sums: Tally) -> dict[str, float | None]:
    found = metrics_of(sums)
    return {name: rounded(float(found[name])) for name in ("event_f1", "event_f1_iou30")}


def _types(case: Case) -> Iterator[str]:
    yield from (one.type for one in case.labels.inside)


def _places(values: Iterable[str]) -> dict[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for place, value in enumerate(values):
        found[value].append(place)
    return dict(found)
