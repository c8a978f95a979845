"""The tables that `check.py` prints."""

from typing import Any

from llamafactory_ext.toolbox.check.plot import Gallery
from terminal import print_table, say

from llamafactory_ext.toolbox.check.inspection import Inspection
from llamafactory_ext.toolbox.check.report import without_anomaly
from llamafactory_ext.toolbox.session.lengths import PARTS, histogram, percentiles


_NAMED = 5
_COLUMNS = ("min", "median", "p95", "p99", "max")


def print_summary(found: Inspection, brief: bool = False) -> None:
    """Prints all that was found; `brief` leaves lengths and types out, for when one record is asked for."""
    if not brief:
        _print_counts(found)
        _print_lengths(found)
        _print_types(found)
    _print_findings(found)


def print_gallery(gallery: Gallery) -> None:
    """Says where the pictures are, what is not on them, and what their type numbers mean."""
    drawn = len(gallery.sheets)
    part = (
        "" if drawn == gallery.records else f"{drawn} of {gallery.records} records drawn (--plot-records raises it); "
    )
    count = len({name for names in gallery.sheets.values() for name in names})
    say(f"{part}{gallery.folder / 'index.html'} and {count} contact sheet{'s' * (count != 1)}")
    if gallery.keys:
        key = ", ".join(f"{number} {name or '(no type)'}" for number, name in gallery.keys.items())
        say(f"no font with these characters is installed, so the sheets number the types: {key}")


def _print_counts(found: Inspection) -> None:
    lengths = [one.length for record in found.records for one in record.series]
    rows: list[tuple[str, Any]] = [(part.name, len(part.dataset)) for part in found.parts]
    rows += [("records that can be used", sum(not record.fault for record in found.records))]
    rows += [("series", len(lengths))]
    rows += [("different series", len({one.digest for record in found.records for one in record.series}))]
    rows += [("points a series", _range(lengths))] if lengths else []
    rows += [("labelled intervals", found.types.total()), ("records without anomaly", without_anomaly(found))]
    print_table("Data", ("", "count"), rows)


def _print_lengths(found: Inspection) -> None:
    tokens = [one for one in found.tokens if one]
    if found.no_tokens:
        say(f"No token lengths: {found.no_tokens} (--model names a folder or another model)")
    if tokens:
        columns = {name: [getattr(one, name) for one in tokens] for name in PARTS}
        rows = [(name, *(percentiles(values)[one] for one in _COLUMNS)) for name, values in columns.items()]
        print_table("Tokens a record", ("", *_COLUMNS), rows)
        for line in histogram(columns["whole"], found.limit):
            say(line)
        over = sum(one > found.limit for one in columns["whole"])
        say(f"{over} of {len(tokens)} records exceed cutoff_len {found.limit}")
    else:
        usable = [record for record in found.records if not record.fault]
        texts = {
            "prompt": [record.prompt_characters for record in usable],
            "answer": [record.answer_characters for record in usable],
        }
        rows = [(name, *(percentiles(values)[one] for one in _COLUMNS)) for name, values in texts.items() if values]
        print_table("Characters a record", ("", *_COLUMNS), rows)
    say()


def _print_types(found: Inspection) -> None:
    total = found.types.total()
    rows = [(name or "(no type)", count, f"{count / total:.1%}") for name, count in found.types.items()]
    if rows:
        print_table("Anomaly types", ("", "intervals", "share"), rows)


def _print_findings(found: Inspection) -> None:
    for one in found.findings:
        say(f"{one.severity.upper()} {one.kind}: {one.text}")
        for place in one.places[:_NAMED]:
            say(f"    {found.records[place.row].name}{f': {place.detail}' if place.detail else ''}")
        if len(one.places) > _NAMED:
            say(f"    … and {len(one.places) - _NAMED} more")
        if one.advice:
            say(f"    → {one.advice}")
    faults = sum(one.severity == "fault" for one in found.findings)
    notices = len(found.findings) - faults
    say(f"{faults} fault{'s' * (faults != 1)}, {notices} notice{'s' * (notices != 1)}")


def _range(values: list[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"
