"""The files of results, written from the journal series by series; what is there before stays until all are whole."""

import csv
import heapq
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamafactory_ext.files import Drafts, writing

from .journal import Journal
from .pipeline import Looked


DETECTIONS, ANSWERS, FAILED, MASKS = "detections.csv", "detections.jsonl", "failed.csv", "masks"
PAGE = "index.html"
COLUMNS = ("series", "start", "end", "start_time", "end_time", "type", "confidence", "reason")
FAILED_COLUMNS = ("file", "series", "start", "end", "reason")


@dataclass(order=True)
class Unsure:
    """A series to be drawn: the least confident come first."""

    confidence: float
    """Of its least confident interval; below 0 where an answer can't be read."""
    series: str
    path: Path = field(compare=False)
    key: str = field(compare=False)


@dataclass
class Results:
    """What was written."""

    series: int = 0
    with_intervals: int = 0
    intervals: int = 0
    filled: int = 0
    failed: int = 0
    """Lines of failed.csv."""
    unsure: list[Unsure] = field(default_factory=list)
    failures: list[tuple[str, ...]] = field(default_factory=list)
    """The first of them."""


def write_results(folder: Path, looked: list[Looked], journal: Journal, mask: bool, drawn: int) -> Results:
    """Writes detections.csv, detections.jsonl, failed.csv and, where asked for, a mask for each series.

    Masks that are there already are kept up to date, asked for or not, and those of series that are gone are removed:
    none is of another night than the tables.

    Raises:
        WriteError: one of them can't be written; then all are as they were.
    """
    found, worst, seen, masks = Results(), _Worst(drawn), dict[str, Path](), folder / MASKS
    mask = mask or masks.is_dir()
    _sweep(folder, DETECTIONS, ANSWERS, FAILED, PAGE)
    _sweep(masks, "*")
    with Drafts() as drafts:
        tables = [_Table(drafts, folder / DETECTIONS, COLUMNS), _Table(drafts, folder / FAILED, FAILED_COLUMNS)]
        detections, failed = tables
        lines = drafts.open(folder / ANSWERS)
        for path, key, line in _every(looked, journal, failed, found, seen):
            found.series += 1
            found.with_intervals += bool(line["intervals"])
            found.intervals += len(line["intervals"])
            found.filled += line["filled"]
            for row in _rows(line):
                detections.add(row)
            for fault in line["faults"]:
                _fail(failed, found, (path, line["series"], fault["start"], fault["end"], fault["reason"]))
            shown = {name: value for name, value in line.items() if name not in ("kind", "file")}
            text = json.dumps({"series": line["series"], "file": path.name, **shown}, ensure_ascii=False)
            with writing(folder / ANSWERS):
                lines.write(text.encode("utf-8", "backslashreplace") + b"\n")
            if mask:
                write_mask(masks / f"{line['series']}.csv", line)
            worst.take(Unsure(_least(line), line["series"], path, key))
        drafts.commit()
    for path in masks.glob("*.csv"):
        if path.stem not in seen:
            path.unlink(missing_ok=True)
    found.unsure = worst.sorted()
    return found


def _sweep(folder: Path, *names: str) -> None:
    """Removes the drafts of a run that was killed while it wrote; nobody else writes here (`journal.Journal`)."""
    for name in names:
        for path in folder.glob(f".{name}-{'[0-9a-f]' * 16}.tmp"):
            path.unlink(missing_ok=True)


def _every(
    looked: list[Looked], journal: Journal, failed: "_Table", found: Results, seen: dict[str, Path]
) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """Yields every finished series once, and notes it in `seen`; what is none becomes a line of `failed`."""
    for one in looked:
        known = journal.file(one.key) if one.key else None
        if known is None:
            _fail(failed, found, (one.path, "", "", "", one.reason or "it changed while it was read; start again"))
            continue
        for fault in known["faults"]:
            _fail(failed, found, (one.path, fault["series"], "", "", fault["reason"]))
        for name in known["series"]:
            if name in seen:
                reason = (
                    f"a series of this name is in {seen[name]}, which was asked about; expected every name once: "
                    "leave one out, join exports of one sensor, or tell sensors apart with --names file"
                )
                _fail(failed, found, (one.path, name, "", "", reason))
                continue
            seen[name] = one.path
            yield one.path, one.key, journal.series((one.key, name))


def _rows(line: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yields a row for each interval; one without for a series of which the answer says that there is none."""
    for one in line["intervals"]:
        yield line["series"], *(one[name] for name in COLUMNS[1:6]), _number(one["confidence"]), one["reason"]
    if not line["intervals"] and not line["faults"]:
        yield line["series"], "", "", "", "", "", _number(line["nothing"]), ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _least(line: dict[str, Any]) -> float:
    if line["faults"]:
        return -1.0
    sure = [one["confidence"] for one in line["intervals"]] if line["intervals"] else [line["nothing"]]
    return min((value for value in sure if value is not None), default=-0.5)


def _fail(failed: "_Table", found: Results, row: tuple[Any, ...]) -> None:
    failed.add(row)
    found.failed += 1
    if len(found.failures) < 100:
        found.failures.append(tuple(map(str, row)))


def write_mask(path: Path, line: dict[str, Any]) -> None:
    """Writes a mask: a row for each of the series', 1 inside of an interval."""
    marks = bytearray(b"0\n" * line["rows"])
    for one in line["intervals"]:
        marks[2 * one["start"] : 2 * one["end"] + 2] = b"1\n" * (one["end"] - one["start"] + 1)
    with Drafts() as drafts:
        drafts.write(path, b"anomaly\n" + marks)
        drafts.commit()


class _Table:
    """A CSV file that grows."""

    def __init__(self, drafts: Drafts, path: Path, columns: tuple[str, ...]) -> None:
        self._path, self._file = path, drafts.open(path)
        self.add(columns)

    def add(self, row: tuple[Any, ...]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(row)
        with writing(self._path):
            self._file.write(text.getvalue().encode("utf-8", "backslashreplace"))


class _Worst:
    """The least confident series, so many of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[tuple[_Reversed, Unsure]] = []

    def take(self, one: Unsure) -> None:
        if len(self._kept) < self._most:
            heapq.heappush(self._kept, (_Reversed(one), one))
        elif self._kept and one < self._kept[0][1]:
            heapq.heapreplace(self._kept, (_Reversed(one), one))

    def sorted(self) -> list[Unsure]:
        return sorted(one for _, one in self._kept)


@dataclass(frozen=True)
class _Reversed:
    """Turns a heap round: its first is the most confident one."""

    one: Unsure

    def __lt__(self, other: "_Reversed") -> bool:
        return other.one < self.one
