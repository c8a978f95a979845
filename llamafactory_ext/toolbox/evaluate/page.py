"""The page of an evaluation: scores first, then the records, the worst at the top. One file, no script, no network.

Names, types and problems come from data and from a model: each is escaped, and a policy in the page forbids scripts
and requests altogether.
"""

from collections.abc import Iterator
from pathlib import Path

from llamafactory_ext.files import write_whole
from llamafactory_ext.toolbox.evaluate.page_records import draw_record, order, table_of
from llamafactory_ext.toolbox.evaluate.page_scores import draw_scores
from llamafactory_ext.toolbox.evaluate.result import Evaluation
from llamafactory_ext.toolbox.pages.panel import HATCH
from llamafactory_ext.toolbox.pages.style import STYLE


GENERATOR = '<meta name="generator" content="llamafactory_ext evaluate">'
"""Tells a page of ours from another one."""

WORST, BEST = 30, 10
"""How many records are drawn from either end; all of them where there are no more."""

_LEGEND = (
    '<p class="meta">Above each series its <i class="key label"></i> labels, below it, hatched, what was '
    '<i class="key guess"></i> predicted: a column from top to bottom is agreement, its upper half alone a miss, its '
    "lower half alone a false alarm. Dots are labelled single points, rings predicted ones.</p>"
)


def write_page(evaluation: Evaluation, path: Path) -> None:
    """Writes the page; what was there before stays until the new one is whole.

    Raises:
        OSError: it can't be written.
    """
    write_whole(path, page(evaluation))


def page(evaluation: Evaluation) -> Iterator[str]:
    """Yields the page piece by piece."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    yield f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{GENERATOR}'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    yield f"<title>Evaluation</title><style>{STYLE}</style></head><body><main><h1>Evaluation</h1>"
    points = len({one.name for one in evaluation.records})
    yield f'<p class="meta">{_count(len(evaluation.records), "record")} of {_count(points, "point")}</p>'
    yield from draw_scores(evaluation.scores)
    yield from _records(evaluation)
    yield "</main></body></html>\n"


def _records(evaluation: Evaluation) -> Iterator[str]:
    ordered = order(evaluation.records)
    if not ordered:
        yield "<h2>Records</h2><p>There are none.</p>"
        return
    ranked = list(enumerate(ordered, 1))
    all_fit = len(ordered) <= WORST + BEST
    worst, best = (ranked, []) if all_fit else (ranked[:WORST], ranked[-BEST:])
    yield HATCH
    if all_fit:
        yield f"<h2>Records, the worst first</h2>{_LEGEND}"
    else:
        left = len(ordered) - WORST - BEST
        yield f"<h2>The {WORST} worst records</h2>"
        yield f'<p class="meta">Drawn are the {WORST} worst and the <a href="#best">{BEST} best</a>; the other {left} '
        yield f'are in the <a href="#all">table of all records</a> only.</p>{_LEGEND}'
    yield from (draw_record(one, rank) for rank, one in worst)
    if best:
        yield f'<h2 id="best">The {BEST} best records, the very best first</h2>'
        yield from (draw_record(one, rank) for rank, one in reversed(best))
    yield '<h2 id="all">All records, the worst first</h2>'
    yield from table_of(ordered, frozenset(one.index for _, one in [*worst, *best]))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
