"""Scores by point and by anomaly type, and how the answers could be read."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from llamafactory_ext.gdsh.events import total
from llamafactory_ext.gdsh.readings import FORMS, STRICT
from llamafactory_ext.toolbox.evaluate.judging import Case, intervals, judge_type, recall_of_type
from llamafactory_ext.toolbox.evaluate.metrics import RecordScores
from llamafactory_ext.toolbox.evaluate.tallies import Tally, add, counts_of, plain, tally


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
        },
        "labels": {
            "intervals": sum(len(intervals(case.labels.inside)) for case in cases),
            "intervals_clipped": sum(case.labels.clipped for case in cases),
            "intervals_outside": sum(len(case.labels.outside) for case in cases),
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
