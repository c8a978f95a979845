"""The page of an evaluation: scores first, then the records, the worst at the top, and a table of all of them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamafactory_ext.files import write_whole
from llamafactory_ext.gdsh.answers import Anomaly
from llamafactory_ext.gdsh.events import overlap
from llamafactory_ext.toolbox.evaluate.judging import Evaluation, Judged
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
    "range_f1": ("range F1", "how much of each interval is covered, in how few pieces"),
    "affiliation_f1": ("affiliation F1", "how near labels and predictions lie to each other"),
    "point_f1": ("point F1", "points inside of intervals, without point adjustment"),
}
_BASELINES = {"random": "random places", "zscore": "rolling z-score", "iqr": "quartile fences"}
_PANELS = 6  # series of a record


def write_page(evaluation: Evaluation, path: Path) -> None:
    """Writes the page; what was there before stays until the new one is whole.

    Raises:
        OSError: it can't be written.
    """
    write_whole(path, page(evaluation))


def page(evaluation: Evaluation) -> Iterator[str]:
    """Yields the page piece by piece."""
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
        tiles=_TILES,
        metrics=METRICS,
        baselines=[f"#{_BASELINES.get(name, name)}" for name in baselines],
        against=list(_against(scores, baselines)),
        lost=list(_not_beaten(scores, baselines)),
        left_out=[_BASELINES.get(name, name) for name in (scores.get("settings") or {}).get("left_out") or []],
        points=len({one.name for one in ordered}),
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


def panels(one: Judged) -> Iterator[Panel]:
    """Yields what is drawn of a record: its series, or without them its intervals alone."""
    lanes = {LABEL: one.labels, GUESS: one.predicted}
    if one.series:
        yield from make_panels(one.name, str(one.index), one.length, lanes, one.series, most=_PANELS)
    else:
        yield make_panel(one.name, str(one.index), one.length, lanes)


def words(some: Sequence[Anomaly], others: Sequence[Anomaly], lonely: str) -> list[tuple[Anomaly, str]]:
    """Returns intervals in order; `lonely` is said of one that touches none of the `others`."""
    pairs = [(one.start, one.end) for one in others]
    met = {one: any(overlap(one, pair) for pair in pairs) for one in {(one.start, one.end) for one in some}}
    in_order = sorted(some, key=lambda one: (one.start, one.end))
    return [(one, "" if met[one.start, one.end] else lonely) for one in in_order]


def _against(scores: Mapping[str, Any], baselines: Mapping[str, Any]) -> Iterator[tuple[str, list[Any], Any]]:
    """For each score its name, its value by the model and by the baselines, and the highest of them."""
    for key, name in METRICS.items() if baselines else ():
        values = [scores.get(key), *(one.get(key) for one in baselines.values())]
        yield name, values, max((value for value in values if value is not None), default=None)


def _not_beaten(scores: Mapping[str, Any], baselines: Mapping[str, Any]) -> Iterator[str]:
    """The scores by which a baseline is no worse than the model."""
    for key, name in METRICS.items():
        own = scores.get(key) or 0.0
        winners = [_BASELINES.get(one, one) for one, found in baselines.items() if (found.get(key) or 0.0) >= own]
        if winners:
            yield f"{name} ({', '.join(winners)})"
