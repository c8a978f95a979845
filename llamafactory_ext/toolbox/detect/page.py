"""The page of a run: series with their intervals, the least confident first, times on the axis."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import GdshError
from llamafactory_ext.files import write_whole
from llamafactory_ext.toolbox.pages import generator, render
from llamafactory_ext.toolbox.pages.panel import GUESS, Panel, make_panel

from .journal import Journal
from .outputs import PAGE, Results, Unsure
from .pieces import Found
from .reading import How, Series, digest, read_file


GENERATOR = generator("detect")

_MOST = 50  # intervals that are listed below a series


@dataclass(frozen=True)
class Card:
    """A series as it is drawn."""

    name: str
    file: str
    rows: int
    filled: int
    nothing: float | None
    faults: list[dict[str, Any]]
    intervals: list[dict[str, Any]]
    panel: Panel | None
    """None where its file is not the one any more that was asked about."""


def write_page(folder: Path, found: Results, journal: Journal, how: How, title: str) -> None:
    """Writes ``index.html``.

    Raises:
        WriteError: it can't be written.
    """
    notes = [
        f"{found.series} series, {found.with_intervals} of them with anomalies, {found.intervals} intervals"
        + (f"; {found.filled} missing values interpolated" if found.filled else "")
    ]
    page = render(
        "detect.html.j2",
        generator=GENERATOR,
        title=title,
        notes=notes,
        failures=found.failures,
        more=found.failed - len(found.failures),
        left=found.series - len(found.unsure),
        most=_MOST,
        cards=_cards(found.unsure, journal, how),
    )
    write_whole(folder / PAGE, page)


def _cards(unsure: list[Unsure], journal: Journal, how: How) -> Iterator[Card]:
    wanted: dict[Path, set[str]] = {}
    for one in unsure:
        wanted.setdefault(one.path, set()).add(one.series)
    held: dict[tuple[Path, str], Series] = {}
    for number, one in enumerate(unsure):
        line = journal.series((one.key, one.series))
        if (one.path, one.series) not in held:
            held |= _read(one, wanted[one.path], how)
        series = held.pop((one.path, one.series), None)
        panel = None
        if series is not None:
            lanes = {GUESS: [_found(interval) for interval in line["intervals"]]}
            panel = make_panel(one.series, str(number), line["rows"], lanes, series.values)
            panel = panel.with_times(_times(series))
        yield Card(
            one.series, one.path.name, line["rows"], line["filled"], line["nothing"], line["faults"],
            line["intervals"], panel,
        )  # fmt: skip


def _read(one: Unsure, names: set[str], how: How) -> dict[tuple[Path, str], Series]:
    """Returns the series of a file that are drawn: a wide table is read once, and not kept."""
    try:
        if digest(one.path) != one.key:
            return {}
        every = read_file(one.path, how)[1]
        return {(one.path, it.name): it for it in every if isinstance(it, Series) and it.name in names}
    except (OSError, GdshError):
        return {}


def _found(interval: dict[str, Any]) -> Found:
    kind, sure = interval["type"], interval["confidence"]
    said = kind if sure is None else f"{kind} ({sure:.2f})"
    return Found(interval["start"], interval["end"], said, interval["reason"], sure)


def _times(series: Series) -> Callable[[int], str]:
    """Returns what is written at a row of the axis: the time of day where all rows are of one day, else all."""
    first, last = series.time(0), series.time(len(series.values) - 1)
    if len(first) > 11 and first[:10] == last[:10]:
        return lambda row: series.time(row)[11:]
    return series.time
