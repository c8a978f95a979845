"""Tallies: what is added up over records, and the scores of a sum.

Counts of events and points are summed first and scored then (micro average): long answers weigh more. Range and
affiliation are scores of a record each and averaged over records, their F1 as well, which therefore is not the
harmonic mean of the averaged precision and recall.

Confidence intervals are over points (sensors), see `spread`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.gdsh.events import total
from llamafactory_ext.gdsh.readings import FORMS, STRICT
from llamafactory_ext.toolbox.evaluate.detail import Detail
from llamafactory_ext.toolbox.evaluate.judging import Case, intervals, judge_type, recall_of_type
from llamafactory_ext.toolbox.evaluate.metrics import RecordScores
from llamafactory_ext.toolbox.evaluate.spread import FEWEST, interval


Tally = NDArray[np.float64]
"""Shape [..., 27]: hits, false alarms and misses of events, the same of points, precision, recall and F1 of range, the
same of affiliation, 1 for the record itself, and the sums of `Detail`."""

_RECORDS = 12
_DETAIL = {name: place for place, name in enumerate(Detail._fields, _RECORDS + 1)}
_WIDTH = _RECORDS + 1 + len(_DETAIL)

PARTS = ("f1", "precision", "recall")
METRICS = tuple(f"{kind}_{part}" for kind in ("event", "range", "affiliation", "point") for part in PARTS)
RATES = {
    "event_f1_iou30": "event F1 at IoU 0.3",
    "event_f1_iou50": "event F1 at IoU 0.5",
    "mean_iou": "mean IoU of hits",
    "vus_pr": "VUS-PR",
    "vus_roc": "VUS-ROC",
    "false_alarms_per_1000_points": "false alarms per 1,000 points",
    "false_alarms_per_normal_series": "false alarms per series without anomaly",
    "mean_delay": "points until the first hit",
    "right_type": "right type among hits",
}
"""Further scores; one that has nothing to be counted on (no hit, no series without anomaly) has no value."""
LESS_IS_BETTER = ("false_alarms_per_1000_points", "false_alarms_per_normal_series", "mean_delay")


def titles() -> dict[str, str]:
    """Scores as tables name them, those that separate first."""
    others = {f"{kind}_f1": f"{kind} F1" for kind in ("range", "affiliation", "point")}
    return {"event_f1": "event F1", **RATES, **others}


def tally(scores: RecordScores) -> Tally:
    """One record, ready to be added."""
    parts = (*scores.events, *scores.points, *scores.range, *scores.affiliation, 1, *scores.detail)
    return np.array(parts, dtype=np.float64)


def add(tallies: Iterable[Tally]) -> Tally:
    """The sum over records."""
    return np.asarray(np.sum([np.zeros(_WIDTH), *tallies], axis=0), dtype=np.float64)


def records_of(sums: Tally) -> int:
    """How many records were added."""
    return int(sums[_RECORDS])


def metrics_of(sums: Tally) -> Mapping[str, NDArray[np.float64]]:
    """The scores of sums of shape [..., 27], by the names of `METRICS` and `RATES`; each of shape [...].

    Without a record the averages are 0; empty counts are right, as in `events.agreement`; NaN is no value.
    """
    events, points, ranges, affiliations = (sums[..., place : place + 3] for place in (0, 3, 6, 9))
    records = np.maximum(sums[..., _RECORDS], 1)
    found = {"event": _counted(events), "point": _counted(points)}
    for kind, summed in (("range", ranges), ("affiliation", affiliations)):
        precision, recall, f1 = np.moveaxis(summed / records[..., None], -1, 0)
        found[kind] = {"f1": f1, "precision": precision, "recall": recall}
    whole = {name: found[name.rpartition("_")[0]][name.rpartition("_")[2]] for name in METRICS}
    of = {name: sums[..., place] for name, place in _DETAIL.items()}
    hits, false_alarms, misses = np.moveaxis(events, -1, 0)
    whole["event_f1_iou30"], whole["event_f1_iou50"] = (
        _counted(np.stack([good, hits + false_alarms - good, hits + misses - good], axis=-1))["f1"]
        for good in (of["hits_iou30"], of["hits_iou50"])
    )
    pairs = {
        "mean_iou": (of["iou"], of["pairs"]),
        "vus_pr": (of["vus_pr"], of["volumes"]),
        "vus_roc": (of["vus_roc"], of["volumes"]),
        "false_alarms_per_1000_points": (1000 * false_alarms, of["length"]),
        "false_alarms_per_normal_series": (of["normal_false_alarms"], of["normal"]),
        "mean_delay": (of["delay"], of["found"]),
        "right_type": (of["right_type"], of["typed"]),
    }
    for name, (part, of_what) in pairs.items():
        whole[name] = np.where(of_what > 0, part / np.where(of_what > 0, of_what, 1), np.nan)
    return whole


def plain(sums: Tally) -> dict[str, float | None]:
    """The scores of one sum as numbers for JSON; None is no value."""
    return {name: rounded(float(value)) for name, value in metrics_of(sums).items()}


def rounded(value: float) -> float | None:
    return round(value, 6) if np.isfinite(value) else None


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


def by_point(names: Sequence[str], found: Sequence[RecordScores]) -> dict[str, Tally]:
    """The sum over each point's records."""
    groups: defaultdict[str, list[Tally]] = defaultdict(list)
    for name, scores in zip(names, found, strict=True):
        groups[name].append(tally(scores))
    return {name: add(tallies) for name, tallies in groups.items()}


def by_type(cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """Scores of each type over the records that have it, in label or prediction; the commonest label first.

    A prediction counts for the type that it names. `recall_of_any_type` asks whether the place was found at all.
    """
    having: defaultdict[str, list[Case]] = defaultdict(list)
    for case in cases:
        for name in case.types:
            having[name].append(case)
    found = {name: _one_type(name, group) for name, group in having.items()}
    return dict(sorted(found.items(), key=lambda item: (-item[1]["labels"], item[0])))


def of_answers(cases: Sequence[Case]) -> dict[str, Any]:
    """How the answers could be read, and what was done to the intervals that they name."""
    forms = {form: sum(case.reading.form == form for case in cases) for form in FORMS}
    named_again = sum(len(case.predicted.inside) - len(intervals(case.predicted.inside)) for case in cases)
    return {
        "strict_json_rate": round(forms[STRICT] / len(cases), 6),
        "answers": {
            **forms,
            "cut_off": sum(case.reading.cut_off for case in cases),
            "intervals": sum(len(intervals(case.predicted.inside)) for case in cases),
            "intervals_clipped": sum(case.predicted.clipped for case in cases),
            "intervals_outside": sum(len(case.predicted.outside) for case in cases),
            "intervals_named_again": named_again,
            "entries_without_interval": sum(case.reading.without_interval for case in cases),
            "normal_entries": sum(case.reading.normal for case in cases),
            "normal_beside_anomalies": sum(bool(case.reading.normal and case.reading.anomalies) for case in cases),
        },
        "labels": {
            "intervals": sum(len(intervals(case.labels.inside)) for case in cases),
            "intervals_clipped": sum(case.labels.clipped for case in cases),
            "intervals_outside": sum(len(case.labels.outside) for case in cases),
            "normal_entries": sum(case.label_normal for case in cases),
            "records_without": sum(not case.labels.inside for case in cases),
        },
    }


def _one_type(name: str, cases: Sequence[Case]) -> dict[str, Any]:
    sums = add(tally(judge_type(case, name)) for case in cases)
    whatever = total(recall_of_type(case, name) for case in cases)
    counts, labels = counts_of(sums), whatever.hits + whatever.misses
    return {
        "labels": labels,
        "predicted": counts["hits"] + counts["false_alarms"],
        "records": len(cases),
        **plain(sums),
        **counts,
        "recall_of_any_type": round(whatever.hits / labels, 6) if labels else None,
    }


def confidence(points: Tally) -> dict[str, list[float]]:
    """Low and high end of each score from 0 to 1, at `spread.LEVEL`.

    Arguments:
        points: one row a point, the sum over its records; shape [points, 27].

    Returns:
        Nothing for fewer than `spread.FEWEST` points. No score that has no value without one of them, or the same
        value without any of them, unless that is all or nothing.
    """
    if len(points) < FEWEST:
        return {}
    whole, left_out = points.sum(axis=0), points.sum(axis=0) - points
    estimates, others = metrics_of(whole), metrics_of(left_out)
    found = {}
    for name in (*METRICS, *RATES):
        known = np.isfinite(estimates[name]) and np.isfinite(others[name]).all()
        if name not in LESS_IS_BETTER and known and (np.ptp(others[name]) > 1e-12 or estimates[name] in (0, 1)):
            ends = interval(np.asarray(estimates[name]), others[name])
            found[name] = [round(float(end), 6) for end in ends]
    return found
