"""What detect writes at the end: tables, masks, what failed, and the page with the least confident first."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamafactory_ext.files import Drafts, write_whole
from llamafactory_ext.toolbox.importing.sources import Reading
from llamafactory_ext.toolbox.pages import generator, render
from llamafactory_ext.toolbox.pages.panel import GUESS, make_panel

from .journal import Entry
from .series import Failure, Found, read_file


PAGE, GENERATOR = "index.html", generator("detect")
COLUMNS = ("series", "start", "end", "start_time", "end_time", "type", "confidence", "reason")
DRAWN = 100
"""Series that the page draws; the others are in its table."""


def write_outputs(out: Path, entries: Sequence[Entry], failures: Sequence[Failure], mask: bool) -> None:
    """Writes `detections.csv`, `detections.jsonl`, `failed.csv` and, on request, `mask/SERIES.csv`; all or none."""
    with Drafts() as drafts:
        drafts.write(out / "detections.csv", _table(COLUMNS, _rows(entries)))
        drafts.write(out / "detections.jsonl", "".join(_lines(entries)).encode("utf-8", "backslashreplace"))
        failed = [(one.file, one.series, one.reason) for one in failures]
        drafts.write(out / "failed.csv", _table(("file", "series", "reason"), failed))
        drafts.commit()
    for entry in entries if mask else ():
        write_whole(out / "mask" / f"{entry.name}.csv", _mask(entry))


def _rows(entries: Sequence[Entry]) -> Iterator[tuple[object, ...]]:
    for entry in entries:
        for one, (first, last) in zip(entry.detections, entry.times, strict=True):
            yield entry.name, one.start, one.end, first, last, one.type, one.confidence, one.reason


def _lines(entries: Sequence[Entry]) -> Iterator[str]:
    for entry in entries:
        found = [
            {**asdict(one), "start_time": first, "end_time": last}
            for one, (first, last) in zip(entry.detections, entry.times, strict=True)
        ]
        line = {"series": entry.name, "file": entry.file, "rows": entry.rows, "filled": entry.filled}
        line |= {"confidence": entry.confidence, "detections": found, "answers": entry.answers}
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _mask(entry: Entry) -> Iterator[str]:
    yield "anomaly\n"
    place = 0
    for one in sorted(entry.detections, key=lambda each: each.start):
        start = max(one.start, place)
        if one.end >= start:
            yield "0\n" * (start - place) + "1\n" * (one.end + 1 - start)
            place = one.end + 1
    yield "0\n" * (entry.rows - place)


def _table(columns: Sequence[str], rows: Any) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def write_page(
    out: Path, entries: Sequence[Entry], failures: Sequence[Failure], reading: Reading, facts: Mapping[str, object]
) -> None:
    """Writes the page; what was there before stays until the new one is whole."""
    ordered = sorted(entries, key=lambda one: (one.confidence, one.name))
    page = render(
        "detect.html.j2",
        generator=GENERATOR,
        title="Detections",
        facts=facts,
        entries=ordered,
        cards=_cards(ordered[:DRAWN], reading),
        drawn=min(len(ordered), DRAWN),
        failures=failures,
        intervals=sum(len(one.detections) for one in entries),
    )
    write_whole(out / PAGE, page)


def _cards(entries: Sequence[Entry], reading: Reading) -> Iterator[dict[str, Any]]:
    """Yields what is drawn of each series, read again: only one is held at a time."""
    for number, entry in enumerate(entries):
        series = next(
            (one for one in read_file(Path(entry.file), reading) if isinstance(one, Found) and one.name == entry.name),
            None,
        )
        values = None if series is None else series.values
        panel = make_panel(entry.name, str(number), entry.rows, {GUESS: entry.detections}, values)
        if series is not None:
            panel = panel.with_times(series.time)
        words = [
            (
                one,
                f"{first} to {last}, confidence {one.confidence:.2f}" if first else f"confidence {one.confidence:.2f}",
            )
            for one, (first, last) in zip(entry.detections, entry.times, strict=True)
        ]
        yield {"entry": entry, "panel": panel, "words": words}
