"""A gallery of the records that were inspected: the page, the sheets, and which record is on which sheet."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamafactory_ext.files import temporary, write_text
from llamafactory_ext.toolbox.check.fonts import can_draw
from llamafactory_ext.toolbox.check.gallery_files import PAGE, put_in_place, refuse_foreign, sheet_name
from llamafactory_ext.toolbox.check.inspection import Inspection, Progress
from llamafactory_ext.toolbox.check.sheets import PER_SHEET, draw_sheet
from llamafactory_ext.toolbox.pages.check_page import Badge, Card, Entry, page
from llamafactory_ext.toolbox.pages.colours import colours, numbers
from llamafactory_ext.toolbox.pages.panels import Panel, make_panel
from llamafactory_ext.toolbox.session.facts import RecordFacts
from llamafactory_ext.toolbox.session.labels import read_labels


@dataclass(frozen=True)
class Gallery:
    """What was drawn."""

    folder: Path
    sheets: dict[int, tuple[str, ...]]
    """Row of each record that was drawn, with the files that its series are on."""
    records: int
    """How many there are in all."""
    keys: dict[str, str]
    """Type by its number (`T1`), where the sheets name numbers for want of a font; else empty."""


def draw_gallery(
    found: Inspection, folder: Path, title: str, records: int, progress: Progress = lambda items, text, count: items
) -> Gallery:
    """Draws up to `records` records into a folder; those with faults first, then those with notices.

    Raises:
        ForeignPageError: the folder is somebody else's.
        OSError: it can't be written to.
    """
    ours = refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = order(found)[:records]
    sheets = _place_on_sheets([found.records[row] for row in rows])
    legends = list(found.types)
    drawn = "" if len(rows) == len(found.records) else f"{len(rows)} of {len(found.records)} records drawn"
    notes = [f"{len(found.records)} records", drawn, found.no_tokens and f"token lengths unknown: {found.no_tokens}"]
    badges = _badges(found)
    entries = [_entry(found, row, badges[row], files) for row, files in zip(rows, sheets, strict=True)]
    words = {} if can_draw(legends) else {number: name for name, number in numbers(legends).items()}
    written: dict[str, Path] = {PAGE: temporary(folder, ".html")}
    try:
        painter = _Painter(folder, legends, bool(words), written)
        cards = progress(_cards(found, rows, entries, painter), "drawing", len(rows))
        said = [
            (Badge(one.kind, one.severity), f"{one.text} → {one.advice}" if one.advice else one.text)
            for one in found.findings
        ]
        colour, number = colours(legends), numbers(legends)
        types = {name: (number[name], colour[name], count) for name, count in found.types.items()}
        write_text(written[PAGE], page(title, [note for note in notes if note], said, types, entries, cards))
        painter.finish()
        put_in_place(folder, written, ours)
    except BaseException:
        for path in written.values():
            path.unlink(missing_ok=True)
        raise
    return Gallery(folder, dict(zip(rows, sheets, strict=True)), len(found.records), words)


def order(found: Inspection) -> list[int]:
    """Returns all rows, those with faults first, then by the number of notices."""
    badges = _badges(found)
    faults = [sum(one.severity == "fault" for one in some) for some in badges]
    return sorted(range(len(found.records)), key=lambda row: (-faults[row], -len(badges[row]), row))


def _badges(found: Inspection) -> list[tuple[Badge, ...]]:
    badges: list[list[Badge]] = [[] for _ in found.records]
    for one in found.findings:
        for place in one.places:
            badges[place.row].append(Badge(one.kind, one.severity, place.detail))
    return list(map(tuple, badges))


def _place_on_sheets(records: Sequence[RecordFacts]) -> list[tuple[str, ...]]:
    """Returns for each record the sheets that its series will be on."""
    placed, panel = [], 0
    for record in records:
        places = range(panel, panel + len(record.series))
        panel = places.stop
        placed.append(tuple(dict.fromkeys(sheet_name(one // PER_SHEET + 1) for one in places)))
    return placed


def _entry(found: Inspection, row: int, badges: tuple[Badge, ...], files: tuple[str, ...]) -> Entry:
    record, tokens = found.records[row], found.tokens[row]
    lengths = tuple(one.length for one in record.series)
    whole = tokens.whole if tokens else None
    return Entry(record.name, lengths, len(record.labels), whole, badges, files[0] if files else "")


def _cards(found: Inspection, rows: Sequence[int], entries: Iterable[Entry], painter: "_Painter") -> Iterator[Card]:
    for row, entry in zip(rows, entries, strict=True):
        record = found.record(row)
        labels = [label for answer in record.answers for label in read_labels(answer, reasons=True).labels]
        panels = [make_panel(series, labels) for series in record.series]
        for number, panel in enumerate(panels):
            which = f" series {number}" if len(panels) > 1 else ""
            painter.add(f"{entry.name}{which}", panel)
        texts = {"system": record.system} if record.system else {}
        texts |= {f"{turn['role']} {place + 1}": turn["content"] for place, turn in enumerate(record.turns)}
        yield Card(entry, panels, {} if found.records[row].fault else texts)


class _Painter:
    """Collects panels, and paints a sheet whenever there are enough: no more than a sheet's are held."""

    def __init__(self, folder: Path, types: Sequence[str], numbered: bool, written: dict[str, Path]) -> None:
        self.folder, self.written = folder, written
        self.colours = colours(types)
        self.names = numbers(types) if numbered else {name: name or "(no type)" for name in types}
        self.waiting: list[tuple[str, Panel]] = []
        self.sheets = 0

    def add(self, title: str, panel: Panel) -> None:
        self.waiting.append((title, panel))
        if len(self.waiting) == PER_SHEET:
            self.finish()

    def finish(self) -> None:
        if self.waiting:
            self.sheets += 1
            path = self.written[sheet_name(self.sheets)] = temporary(self.folder, ".png")
            draw_sheet(self.waiting, self.colours, self.names, path)
            self.waiting = []
