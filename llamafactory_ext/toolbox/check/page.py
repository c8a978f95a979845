"""The page of a data set: its records drawn with their labels, texts and findings, those with faults first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamafactory_ext.files import refuse_foreign, write_whole
from llamafactory_ext.toolbox.check.findings import Finding
from llamafactory_ext.toolbox.check.inspection import Inspection, Progress
from llamafactory_ext.toolbox.pages import generator, render
from llamafactory_ext.toolbox.pages.panel import LABEL, Panel, make_panels
from llamafactory_ext.toolbox.session.records import Label, read_labels


PAGE, GENERATOR = "index.html", generator("check")

_COLOURS = 12  # in the style; the commonest types get those that are easiest to tell apart
_CHARACTERS = 6000  # of a prompt or an answer
_EXAMPLES = 5  # of a finding


@dataclass(frozen=True)
class Drawn:
    """What was drawn."""

    folder: Path
    records: int
    """How many of `of`."""
    of: int


@dataclass(frozen=True)
class Badge:
    """A finding, as it is shown beside a record."""

    kind: str
    severity: str
    detail: str


@dataclass(frozen=True)
class Entry:
    """A record in the table, and at the head of its card."""

    name: str
    lengths: tuple[int, ...]
    """Points of its series."""
    labels: int
    tokens: int | None
    badges: list[Badge]


@dataclass(frozen=True)
class Card:
    """A record as it is drawn."""

    entry: Entry
    panels: Iterator[Panel]
    labels: list[tuple[Label, str]]
    """With what else is to be said of each."""
    texts: list[tuple[str, str, int]]
    """Role, text and length of prompt, answer and the like."""


def write_page(
    found: Inspection, folder: Path, title: str, records: int, progress: Progress = lambda items, text, count: items
) -> Drawn:
    """Draws up to `records` records into ``index.html`` of a folder; those with faults first, then those with notices.

    Raises:
        UsageError: the folder is somebody else's.
        WriteError: it can't be written to.
    """
    refuse_foreign(folder / PAGE, GENERATOR, "--plot")
    rows = order(found)[:records]
    badges = _badges(found)
    entries = [_entry(found, row, badges[row]) for row in rows]
    colours = {name: f"t{place % _COLOURS}" for place, name in enumerate(found.types)}
    drawn = "" if len(rows) == len(found.records) else f"{len(rows)} of {len(found.records)} records drawn"
    notes = [f"{len(found.records)} records", drawn, found.no_tokens and f"token lengths unknown: {found.no_tokens}"]
    page = render(
        "check.html.j2",
        generator=GENERATOR,
        title=title,
        notes=list(filter(None, notes)),
        findings=[_said(found, one, rows) for one in found.findings],
        types={name: (colours[name], count) for name, count in found.types.items()},
        colours=colours,
        entries=entries,
        cards=progress(_cards(found, rows, entries, colours), "drawing", len(rows)),
    )
    write_whole(folder / PAGE, page)
    return Drawn(folder, len(rows), len(found.records))


def order(found: Inspection) -> list[int]:
    """Returns all rows, those with faults first, then by the number of notices."""
    faults, notices = [0] * len(found.records), [0] * len(found.records)
    for one in found.findings:
        for place in one.places:
            (faults if one.severity == "fault" else notices)[place.row] += 1
    return sorted(range(len(found.records)), key=lambda row: (-faults[row], -notices[row], row))


def _everywhere(found: Inspection, one: Finding) -> bool:
    """Whether a finding says the same of every record that can be used: it is said once then, above them all."""
    plain = one.kind != "unusable" and not any(place.detail for place in one.places)
    return plain and len(one.places) == sum(not record.fault for record in found.records) > 1


def _badges(found: Inspection) -> list[list[Badge]]:
    badges: list[list[Badge]] = [[] for _ in found.records]
    for one in found.findings:
        for place in () if _everywhere(found, one) else one.places:
            badges[place.row].append(Badge(one.kind, one.severity, place.detail))
    return badges


def _said(found: Inspection, one: Finding, rows: Sequence[int]) -> dict[str, object]:
    """A finding with links to the first records that it concerns and that are drawn, unless it concerns all."""
    numbers = {row: number for number, row in enumerate(rows)}
    linked = [(numbers[place.row], found.records[place.row].name) for place in one.places if place.row in numbers]
    examples = [] if _everywhere(found, one) else linked[:_EXAMPLES]
    about: dict[str, object] = {"kind": one.kind, "severity": one.severity, "text": one.text, "advice": one.advice}
    about |= {"everywhere": _everywhere(found, one), "examples": examples}
    return {**about, "more": len(one.places) - len(examples)}


def _entry(found: Inspection, row: int, badges: list[Badge]) -> Entry:
    record, tokens = found.records[row], found.tokens[row]
    lengths = tuple(one.length for one in record.series)
    return Entry(record.name, lengths, len(record.labels), tokens.whole if tokens else None, badges)


def _cards(
    found: Inspection, rows: Sequence[int], entries: Sequence[Entry], colours: Mapping[str, str]
) -> Iterator[Card]:
    for number, (row, entry) in enumerate(zip(rows, entries, strict=True)):
        record, length = found.record(row), found.records[row].length
        labels = [label for answer in record.answers for label in read_labels(answer, reasons=True).labels]
        words = [(one, "" if 0 <= one.start <= one.end < length else "outside, not drawn") for one in labels]
        inside = [one for one, said in words if not said]
        panels = make_panels(entry.name, str(number), 0, {LABEL: inside}, record.series, colours)
        texts = [("system", record.system)] if record.system else []
        texts += [(turn["role"], turn["content"]) for turn in record.turns]
        cut = [(role, text[:_CHARACTERS], len(text)) for role, text in texts]
        yield Card(entry, panels, words, [] if found.records[row].fault else cut)
