"""The lower part of the page: records drawn with both kinds of intervals, and a table of all of them."""

from collections.abc import Iterator, Sequence
from html import escape

from llamafactory_ext.gdsh.answers import Anomaly
from llamafactory_ext.gdsh.events import overlap
from llamafactory_ext.toolbox.evaluate.page_scores import METRICS, number, table
from llamafactory_ext.toolbox.evaluate.result import Judged
from llamafactory_ext.toolbox.pages.panel import GUESS, LABEL, draw_panel


_PANELS = 6  # series of a record
_LISTED = 20  # intervals of a kind; the others are folded up


def order(records: Sequence[Judged]) -> list[Judged]:
    """Returns the records, the worst first: unreadable answers, then by event F1, then by the mean of all scores."""

    def key(one: Judged) -> tuple[bool, float, float, int]:
        known = [one.scores.get(name, 0.0) for name in METRICS]
        return form(one) != "unreadable", known[0], sum(known), one.index

    return sorted(records, key=key)


def draw_record(one: Judged, rank: int) -> str:
    """Returns a card: name, scores, problem, a panel for each series, and the intervals in words."""
    scores = "".join(
        f'<span class="score">{name} <b>{number(one.scores.get(key))}</b></span>' for key, name in METRICS.items()
    )
    problem = f'<p class="problem">{escape(one.problem)}</p>' if one.problem else ""
    meta = f"rank {rank} · record {one.index} · {one.length} points · {form(one)}"
    lists = _intervals("labels", one.labels, one.predicted, LABEL, "missed")
    lists += _intervals("predicted", one.predicted, one.labels, GUESS, "false alarm")
    return (
        f'<article class="card" id="r{one.index}"><h3>{escape(one.name)}</h3><p class="meta">{meta}</p>'
        f'<p class="scores">{scores}</p>{problem}{"".join(_panels(one))}<dl class="intervals">{lists}</dl></article>'
    )


def form(one: Judged) -> str:
    """Returns how the answer could be read."""
    if one.problem:
        return "salvaged" if one.predicted else "unreadable"
    return "strict JSON" if one.strict else "JSON after repair"


def table_of(ordered: Sequence[Judged], drawn: frozenset[int]) -> Iterator[str]:
    """Yields the table of all records; `drawn` are the indices of those with a card."""
    heads = ["point", "#record", "#labels", "#predicted", *(f"#{name}" for name in METRICS.values()), "answer"]
    yield from table("All records", heads, (_row(one, one.index in drawn) for one in ordered))


def _row(one: Judged, drawn: bool) -> str:
    name = f'<a href="#r{one.index}">{escape(one.name)}</a>' if drawn else escape(one.name)
    cells = [str(one.index), str(len(one.labels)), str(len(one.predicted))]
    cells += [number(one.scores.get(key)) for key in METRICS]
    said = f"{form(one)}: {escape(one.problem)}" if one.problem else form(one)
    numbers = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row">{name}</th>{numbers}<td class="text">{said}</td></tr>'


def _panels(one: Judged) -> Iterator[str]:
    if not one.series:
        yield draw_panel(one.name, str(one.index), one.length, one.labels, one.predicted)
        return
    count = len(one.series)
    for place, series in enumerate(one.series[:_PANELS]):
        which = f"series {place + 1} of {count}"
        yield f'<p class="meta">{which}</p>' if count > 1 else ""
        title = f"{one.name}, {which}" if count > 1 else one.name
        length = max(one.length, len(series))
        yield draw_panel(title, f"{one.index}-{place}", length, one.labels, one.predicted, series)
    if count > _PANELS:
        yield f'<p class="meta">{count - _PANELS} more series are not drawn.</p>'


def _intervals(name: str, some: Sequence[Anomaly], others: Sequence[Anomaly], kind: str, lonely: str) -> str:
    """What the panel shows, in words; `lonely` is said of an interval that touches none of the `others`."""
    pairs = [(one.start, one.end) for one in others]
    items = []
    for one in sorted(some, key=lambda one: (one.start, one.end)):
        met = any(overlap((one.start, one.end), pair) for pair in pairs)
        items.append(f"<li>{_interval(one)}{'' if met else f' <em>{lonely}</em>'}</li>")
    shown = f"<ul>{''.join(items[:_LISTED])}</ul>" if items else "none"
    if len(items) > _LISTED:
        rest = "".join(items[_LISTED:])
        shown += f"<details><summary>{len(items) - _LISTED} more</summary><ul>{rest}</ul></details>"
    return f'<div><dt><i class="key {kind}"></i>{name} ({len(items)})</dt><dd>{shown}</dd></div>'


def _interval(one: Anomaly) -> str:
    where = f"{one.start}" if one.start == one.end else f"{one.start}–{one.end}"
    return f"{where} {escape(one.type or '(no type)')}"
