"""The page of an evaluation: scores first, then the records, the worst at the top, and a table of all of them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamafactory_ext.files import write_whole
from llamafactory_ext.gdsh.answers import Anomaly
from llamafactory_ext.gdsh.events import overlap
from llamafactory_ext.toolbox.evaluate.detectors import DETECTORS
from llamafactory_ext.toolbox.evaluate.history import curve
from llamafactory_ext.toolbox.evaluate.judging import Evaluation, Judged
from llamafactory_ext.toolbox.evaluate.tallies import LESS_IS_BETTER, titles
from llamafactory_ext.toolbox.pages import generator, render
from llamafactory_ext.toolbox.pages.panel import GUESS, LABEL, Panel, make_panel, make_panels


PAGE, GENERATOR = "index.html", generator("evaluate")

WORST, BEST = 30, 10
"""How many records are drawn from either end; all of them where there are no more."""

METRICS = {"event_f1": "event F1", "range_f1": "range F1", "affiliation_f1": "affiliation F1", "point_f1": "point F1"}
"""Names of the four scores on the page."""

_TILES = {
    "strict_json_rate": ("strict JSON", "answers that are JSON made of anomalies, as they stand"),
    "event_f1": ("event F1", "intervals found, each matched at most once"),
    "event_f1_iou30": ("event F1 at IoU 0.3", "found where they lie: at least 0.3 of what either covers is common"),
    "vus_pr": ("VUS-PR", "precision and recall over all thresholds, with slopes beside labels"),
    "false_alarms_per_1000_points": ("false alarms", "per 1,000 points"),
    "right_type": ("right type", "among hits"),
}
_HISTORY = 20  # lines of the table
_PANELS = 6  # series of a record


def write_page(evaluation: Evaluation, path: Path, history: Sequence[Mapping[str, Any]] = ()) -> None:
    """Writes the page; what was there before stays until the new one is whole.

    Raises:
        OSError: it can't be written.
    """
    write_whole(path, page(evaluation, history))


def page(evaluation: Evaluation, history: Sequence[Mapping[str, Any]] = ()) -> Iterator[str]:
    """Yields the page piece by piece; `history` holds lines of `history.read_history`."""
    scores, ordered = evaluation.scores, order(evaluation.records)
    ranked = list(enumerate(ordered, 1))
    all_fit = len(ordered) <= WORST + BEST
    worst, best = (ranked, []) if all_fit else (ranked[:WORST], ranked[: -BEST - 1 : -1])
    baselines = scores.get("baselines") or {}
    return render(
        "evaluate.html.j2",
        generator=GENERATOR,
        title="Evaluation",
        scores=scores,
        tiles={key: tile for key, tile in _TILES.items() if key in scores},
        metrics=METRICS,
        baselines=[f"#{named(name)}" for name in baselines],
        against=list(_against(scores, baselines)),
        lost=list(_not_beaten(scores, baselines)),
        left_out=[named(name) for name in (scores.get("settings") or {}).get("left_out") or []],
        points=len({one.name for one in ordered}),
        history=history[-_HISTORY:],
        curve=make_panel("event F1 at IoU 0.3", "history", len(history), {LABEL: ()}, curve(history))
        if len(history) > 1
        else None,
        titles=titles(),
        records=ordered,
        worst=worst,
        best=best,
        drawn={one.index for _, one in [*worst, *best]},
        form=form,
        panels=panels,
        most_panels=_PANELS,
        words=words,
    )


def order(records: Sequence[Judged]) -> list[Judged]:
    """Returns the records, the worst first: unreadable answers, then by event F1, then by the mean of all scores."""

    def key(one: Judged) -> tuple[bool, float, float, int]:
        known = [one.scores.get(name, 0.0) for name in METRICS]
        return form(one) != "unreadable", known[0], sum(known), one.index

    return sorted(records, key=key)


def form(one: Judged) -> str:
    """Returns how the answer could be read."""
    if one.problem:
        return "salvaged" if one.predicted else "unreadable"
    return "strict JSON" if one.strict else "JSON after repair"


def panels(one: Judged, number: str = "") -> Iterator[Panel]:
    """Yields what is drawn of a record: its series, or without them its intervals alone.

    Arguments:
        number: tells its parts from others of the page, where the record's place does not.
    """
    number = number or str(one.index)
    lanes = {LABEL: one.labels, GUESS: one.predicted}
    if one.series:
        yield from make_panels(one.name, number, one.length, lanes, one.series, most=_PANELS)
    else:
        yield make_panel(one.name, number, one.length, lanes)


def words(some: Sequence[Anomaly], others: Sequence[Anomaly], lonely: str) -> list[tuple[Anomaly, str]]:
    """Returns intervals in order; `lonely` is said of one that touches none of the `others`."""
    pairs = [(one.start, one.end) for one in others]
    met = {one: any(overlap(one, pair) for pair in pairs) for one in {(one.start, one.end) for one in some}}
    in_order = sorted(some, key=lambda one: (one.start, one.end))
    return [(one, "" if met[one.start, one.end] else lonely) for one in in_order]


def named(detector: str) -> str:
    """What a detector is called on the page."""
    return DETECTORS[detector].title if detector in DETECTORS else {"random": "random places"}.get(detector, detector)


def _against(scores: Mapping[str, Any], baselines: Mapping[str, Any]) -> Iterator[tuple[str, Any, list[Any], Any]]:
    """For each score its name, its confidence interval, its value by the model and the detectors, the best of them."""
    spreads = scores.get("confidence") or {}
    for key, name in titles().items() if baselines else ():
        values = [scores.get(key), *(one.get(key) for one in baselines.values())]
        known = [value for value in values if value is not None]
        if not known:
            continue
        best = min(known, default=None) if key in LESS_IS_BETTER else max(known, default=None)
        mark = ", from intervals" if key.startswith("vus") and scores.get("vus_from") == "intervals" else ""
        less = ", less is better" if key in LESS_IS_BETTER else ""
        yield f"{name}{mark}{less}", spreads.get(key), values, best


def _not_beaten(scores: Mapping[str, Any], baselines: Mapping[str, Any]) -> Iterator[str]:
    """The scores by which a detector is no worse than the model."""
    for key, name in titles().items():
        own, sign = scores.get(key), -1 if key in LESS_IS_BETTER else 1
        others = {one: found.get(key) for one, found in baselines.items()}
        better = [
            named(one)
            for one, value in others.items()
            if value is not None and (own is None or sign * value >= sign * own)
        ]
        if better:
            yield f"{name} ({', '.join(better)})"
