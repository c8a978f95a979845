"""The upper part of the page: headline scores, what they are worth against the baselines, and scores by type."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any


METRICS = {"event_f1": "event F1", "range_f1": "range F1", "affiliation_f1": "affiliation F1", "point_f1": "point F1"}
"""Names of the four scores on the page."""

_RATE = "strict_json_rate"
_MEANING = {
    _RATE: "answers that are JSON made of anomalies, as they stand",
    "event_f1": "intervals found, each matched at most once",
    "range_f1": "how much of each interval is covered, in how few pieces",
    "affiliation_f1": "how near labels and predictions lie to each other",
    "point_f1": "points inside of intervals, without point adjustment",
}
_BASELINES = {"random": "random places", "zscore": "rolling z-score", "iqr": "quartile fences"}
_COUNTED = {"answers": "Answers", "labels": "Labels", "events": "Events"}
"""Parts of scores.json that are counts."""
_TYPES = 40


def draw_scores(scores: Mapping[str, Any]) -> Iterator[str]:
    """Yields headline, baselines, types and counts of ``scores.json``; what it does not hold is left out."""
    yield f'<ul class="tiles">{"".join(_tiles(scores))}</ul>'
    yield from _baselines(scores)
    yield from _types(scores.get("per_type") or {})
    yield from _counts(scores)


def number(value: Any) -> str:
    """Returns a score with three digits, or a dash where there is none."""
    return f"{value:.3f}" if isinstance(value, (int, float)) else "–"


def table(name: str, heads: Sequence[str], rows: Iterator[str]) -> Iterator[str]:
    """Yields a table that scrolls by itself where the screen is narrow; the first cell of a row is to be its head.

    Arguments:
        name: plain text, for those who hear the page.
        heads: of the columns, HTML; ``#`` in front of those whose cells are numbers.
        rows: ``<tr>`` elements.
    """
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}"><table><thead><tr>'
    for head in heads:
        yield f'<th class="n" scope="col">{head[1:]}</th>' if head[:1] == "#" else f'<th scope="col">{head}</th>'
    yield "</tr></thead><tbody>"
    yield from rows
    yield "</tbody></table></div>"


def _tiles(scores: Mapping[str, Any]) -> Iterator[str]:
    confidence = scores.get("confidence") or {}
    level = f"{(scores.get('settings') or {}).get('confidence_level', 0.95):.0%}"
    for key, name in {_RATE: "strict JSON", **METRICS}.items():
        value = scores.get(key)
        shown = f"{value:.1%}" if key == _RATE and isinstance(value, (int, float)) else number(value)
        ends, kind = confidence.get(key), key.removesuffix("_f1")
        notes = [f"{number(ends[0])} to {number(ends[1])} ({level})"] if ends else []
        parts = [part for part in ("precision", "recall") if f"{kind}_{part}" in scores]
        notes += [f"{part} {number(scores[f'{kind}_{part}'])}" for part in parts]
        small = "".join(f"<small>{note}</small>" for note in [*notes, _MEANING[key]])
        yield f'<li><span>{name}</span><b data-score="{key}">{shown}</b>{small}</li>'
    if confidence:
        yield f'<li class="note">{level} confidence intervals: points drawn anew, each with all its records.</li>'


def _baselines(scores: Mapping[str, Any]) -> Iterator[str]:
    found: Mapping[str, Any] = scores.get("baselines") or {}
    if not found:
        return
    yield "<h2>Against the baselines</h2>"
    heads = ["score", "#model", *(f"#{escape(_BASELINES.get(name, name))}" for name in found)]
    yield from table("Against the baselines", heads, (_against(key, scores, found) for key in METRICS))
    lost = {METRICS[key]: winners for key in METRICS if (winners := _not_beaten(key, scores, found))}
    if lost:
        said = ", ".join(f"{name} ({', '.join(winners)})" for name, winners in lost.items())
        yield f'<p class="meta">Not better than a baseline: {said}.</p>'
    left_out = (scores.get("settings") or {}).get("left_out") or []
    if left_out:
        names = " and ".join(escape(_BASELINES.get(name, name)) for name in left_out)
        yield f'<p class="meta">Left out: {names}; they need the series.</p>'


def _against(key: str, scores: Mapping[str, Any], baselines: Mapping[str, Any]) -> str:
    """A row; the highest score is bold."""
    values = [scores.get(key), *(one.get(key) for one in baselines.values())]
    highest = max((value for value in values if value is not None), default=None)
    cells = (f"<td>{f'<b>{number(one)}</b>' if one == highest else number(one)}</td>" for one in values)
    return f'<tr><th scope="row">{METRICS[key]}</th>{"".join(cells)}</tr>'


def _not_beaten(key: str, scores: Mapping[str, Any], baselines: Mapping[str, Any]) -> list[str]:
    own = scores.get(key) or 0.0
    return [escape(_BASELINES.get(name, name)) for name, one in baselines.items() if (one.get(key) or 0.0) >= own]


def _types(types: Mapping[str, Any]) -> Iterator[str]:
    if not types:
        return
    yield "<h2>By anomaly type</h2>"
    heads = ["type", "event F1", "#labels", "#predicted", "#found as<br>any type"]
    heads += [f"#{name}" for key, name in METRICS.items() if key != "event_f1"]
    yield from table("By anomaly type", heads, (_type(kind, found) for kind, found in list(types.items())[:_TYPES]))
    if len(types) > _TYPES:
        yield f'<p class="meta">{len(types) - _TYPES} more types, with fewer labels, are in scores.json only.</p>'


def _type(kind: str, found: Mapping[str, Any]) -> str:
    name = escape(kind or "(no type)")
    value = found.get("event_f1")
    cells = [*(str(found.get(key, "–")) for key in ("labels", "predicted")), number(found.get("recall_of_any_type"))]
    cells += [number(found.get(key)) for key in METRICS if key != "event_f1"]
    picture = (
        f'<svg class="bar" height="12" role="img" aria-label="{name}: event F1 {number(value)}">'
        f'<title>{name}: event F1 {number(value)}</title><rect class="area" width="100%" height="12"/>'
        f'<rect class="fill" width="{max(0.0, min(1.0, value or 0.0)) * 100:.2f}%" height="12"/></svg>'
    )
    bar = f'<td class="bar"><div>{picture}<span>{number(value)}</span></div></td>'
    return f'<tr><th scope="row">{name}</th>{bar}{"".join(f"<td>{one}</td>" for one in cells)}</tr>'


def _counts(scores: Mapping[str, Any]) -> Iterator[str]:
    groups = [
        f"<div><h3>{title}</h3><dl>{''.join(map(_count, found.items()))}</dl></div>"
        for part, title in _COUNTED.items()
        if (found := scores.get(part))
    ]
    if groups:
        yield f'<h2>Counts</h2><div class="counts">{"".join(groups)}</div>'


def _count(item: tuple[str, Any]) -> str:
    return f"<div><dt>{escape(item[0].replace('_', ' '))}</dt><dd>{escape(str(item[1]))}</dd></div>"
