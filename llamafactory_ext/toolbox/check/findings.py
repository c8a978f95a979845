"""What can be wrong with records, one by one: pure functions from facts to findings.

Each returns None where there is nothing to say. A record is named by its row, its place in the list given. Findings
that compare records with one another are in `comparisons`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from llamafactory_ext.toolbox.session.records import RecordFacts


SHORT, LONG = 64, 1024
"""The lengths in points that ChatTS recommends for a series."""

_GAPS = 0.05
_ONE_SIDED = 0.8

Severity = Literal["fault", "notice"]
Records = Sequence[RecordFacts]


@dataclass(frozen=True)
class Place:
    """A record that a finding concerns."""

    row: int
    detail: str = ""


@dataclass(frozen=True)
class Finding:
    """Something that a person should know. With a fault, training would stop or learn something wrong."""

    kind: str
    """Its name in the report and on badges, e.g. `overlong`."""
    severity: Severity
    text: str
    places: tuple[Place, ...] = ()
    advice: str = ""


def unusable(records: Records) -> Finding | None:
    """Records that the converter refuses, with its own words."""
    places = tuple(Place(row, record.fault) for row, record in enumerate(records) if record.fault)
    text = f"{len(places)} of {len(records)} records can't be used: training would stop"
    return Finding("unusable", "fault", text, places, "correct or remove them") if places else None


def overlong(
    records: Records, lengths: Sequence[int | None], limit: int, drop: bool, reserved: int = 0
) -> Finding | None:
    """Records with more tokens than fit.

    Arguments:
        lengths: in tokens; None for records that were not tokenised.
        limit: tokens of the longest record that fits, `reserved` less than cutoff_len.
    """
    from llamafactory_ext.data.fit import advised_cutoff  # imports LLaMA-Factory

    over = [(row, length) for row, length in enumerate(lengths) if length is not None and length > limit]
    if not over:
        return None
    outcome = "they would be dropped (overlong_records: drop)" if drop else "training would stop"
    text = f"{len(over)} of {len(records)} records have more than {limit} tokens: {outcome}"
    fits = advised_cutoff(max(length for _, length in over), reserved)
    advice = f"set cutoff_len: {fits}, or shorten them: llamafactory-ext prepare "
    places = tuple(Place(row, f"{length} tokens") for row, length in over)
    advice += "--compact-answers, --max-points or --window"
    return Finding("overlong", "notice" if drop else "fault", text, places, advice)


def series_too_long(records: Records, limit: int | None) -> Finding | None:
    """Series with more points than the checkpoint's encoder can place."""
    rows = [(row, record.length) for row, record in usable(records) if limit is not None and record.length > limit]
    places = tuple(Place(row, f"{length} points") for row, length in rows)
    text = f"{len(places)} records have a series of more than {limit} points, which this checkpoint can't place"
    advice = "llamafactory-ext prepare --max-points or --window"
    return Finding("series_too_long", "fault", text, places, advice) if places else None


def constant(records: Records) -> Finding | None:
    """Series all of whose values are equal."""
    text = "{} records have a constant series"
    return notice("constant", text, records, lambda record: any(one.constant for one in record.series))


def gaps(records: Records) -> Finding | None:
    """Records with more than 5 % of their values interpolated."""
    places = []
    for row, record in usable(records):
        points = sum(one.length for one in record.series)
        if points and record.filled / points > _GAPS:
            places.append(Place(row, f"{record.filled} of {points} values ({record.filled / points:.0%})"))
    text = f"{len(places)} records have more than {_GAPS:.0%} of their values interpolated"
    return Finding("gaps", "notice", text, tuple(places)) if places else None


_REMARKS = {
    "column": "take their values from a column that is called otherwise than usual",
    "notation": "have numbers that are written otherwise than Python's",
    "layout": "have files that are laid out otherwise than usual",
    "quality": "have values that are missing by their quality",
    "quality_unused": "have a column of qualities that is not used",
    "time": "have a time that runs backwards or jumps",
    "sentinel": "have a number that may stand for no value",
    "name": "have a CSV file that is called otherwise than the picture",
}


def remarks(records: Records) -> Iterator[Finding]:
    """What is not as usual in the files of series, by kind."""
    for kind, text in _REMARKS.items():
        said = [(row, [one for of, one in record.remarks if of == kind]) for row, record in usable(records)]
        places = tuple(Place(row, "; ".join(texts)) for row, texts in said if texts)
        if places:
            yield Finding(f"file_{kind}", "notice", f"{len(places)} records {text}", places)


def over_filled(records: Records, allowed: bool) -> Finding | None:
    """Labels over rows that were interpolated: a fault, unless they are `allowed`."""
    places = tuple(
        Place(row, "; ".join(record.filled_labels)) for row, record in usable(records) if record.filled_labels
    )
    text = f"{len(places)} records have labels over interpolated rows: nothing is to be seen there"
    advice = "fill in what was measured, or correct the labels"
    return Finding("filled_labels", "notice" if allowed else "fault", text, places, advice) if places else None


def normal(records: Records) -> Finding | None:
    """Entries that name the normal state; an answer that names anomalies besides is named as such."""
    places = tuple(
        Place(row, "beside anomalies" if record.labels else "nothing else in the answer")
        for row, record in usable(records)
        if record.normal
    )
    beside = sum(bool(records[place.row].labels) for place in places)
    text = (
        f"{len(places)} records have entries of a normal state (无异常, normal, …), which are no anomalies, left "
        f"out; {beside} of them have anomalies besides"
    )
    return Finding("normal", "notice", text, places) if places else None


def unplaced(records: Records) -> Finding | None:
    """Entries that mark no interval: a remark on the whole series, or an anomaly whose place is lost."""
    rows = [(row, record.without_interval) for row, record in usable(records) if record.without_interval]
    places = tuple(Place(row, f"{count} of its entries") for row, count in rows)
    text = f"{len(places)} records have entries without an interval: read as remarks on the whole series, no anomalies"
    advice = 'where one is an anomaly, write its place as "interval": [start, end]'
    return Finding("unplaced", "notice", text, places, advice) if places else None


def unlabelled(records: Records) -> Finding | None:
    """Records without an answer, where a run only predicts: elsewhere the converter refuses them."""
    text = "{} records have no answer: they are answered, and left out of scores"
    return notice("unlabelled", text, records, lambda record: record.unlabelled)


def unusual_length(records: Records) -> Finding | None:
    """Series outside the lengths that ChatTS recommends."""
    text = f"{{}} records have a series outside {SHORT} to {LONG} points, the lengths that ChatTS recommends"
    found = notice(
        "length", text, records, lambda record: any(not SHORT <= one.length <= LONG for one in record.series)
    )
    advice = "llamafactory-ext prepare --max-points"
    return Finding(found.kind, "notice", found.text, found.places, advice) if found else None


def usable(records: Records) -> Iterator[tuple[int, RecordFacts]]:
    """Yields row and record of those that can be used."""
    return ((row, record) for row, record in enumerate(records) if not record.fault)


def notice(kind: str, text: str, records: Records, holds: Callable[[RecordFacts], bool]) -> Finding | None:
    """Returns a notice on the records for which `holds` is true; ``{}`` in `text` becomes their number."""
    places = tuple(Place(row) for row, record in usable(records) if holds(record))
    return Finding(kind, "notice", text.format(len(places)), places) if places else None


def not_json(records: Records) -> Finding | None:
    """Answers that are not JSON while others are; where none is, the data set asks for something else."""
    rows = [(row, record) for row, record in usable(records) if not record.unlabelled]
    places = tuple(Place(row) for row, record in rows if not record.is_json)
    if not places:
        return None
    if len(places) == len(rows):
        text = "no answer is JSON: taken for questions and answers, whose labels are not looked at"
        return Finding("no_labels", "notice", text)
    text = f"{len(places)} of {len(rows)} records have answers that are not JSON, the others are JSON"
    return Finding(
        "not_json",
        "fault",
        text,
        places,
        "write each as one JSON object; llamafactory-ext prepare does that for GDSH's own files",
    )


def outside(records: Records) -> Finding | None:
    """Intervals that do not fit the record's longest series, or are none."""
    places = []
    for row, record in usable(records):
        bad = [one for one in record.labels if record.series and not 0 <= one.start <= one.end < record.length]
        if record.bad_interval:
            places.append(Place(row, record.bad_interval))
        elif bad:
            named = ", ".join(f"[{one.start}, {one.end}]" for one in bad[:5]) + (", …" if len(bad) > 5 else "")
            places.append(Place(row, f"{named} in a series of {record.length} points"))
    text = f"{len(places)} records have intervals that do not fit their series"
    advice = "expected 0 <= start <= end < points: correct them, or give the record the series it was annotated on"
    return Finding("outside", "fault", text, tuple(places), advice) if places else None


def at_border(records: Records) -> Finding | None:
    """Intervals that touch the first or the last index, where an anomaly may have been cut."""
    text = "{} records have an interval that touches the first or the last index"
    return notice(
        "border",
        text,
        records,
        lambda record: any(one.start == 0 or one.end == record.length - 1 for one in record.labels if record.series),
    )


def wide(records: Records) -> Finding | None:
    """Intervals that cover more than half of their series."""
    text = "{} records have an interval that covers more than half of the series"
    return notice(
        "wide",
        text,
        records,
        lambda record: any(2 * (one.end - one.start + 1) > record.length for one in record.labels if record.series),
    )


def one_sided(records: Records) -> Finding | None:
    """A data set of labels in which one type, or finding nothing, or finding something, is nearly all there is."""
    labelled = [record for _, record in usable(records) if record.is_json]
    types = Counter(one.type for record in labelled for one in record.labels)
    nothing = sum(not record.labels for record in labelled)
    if not types:
        return None
    said = []
    name, count = types.most_common(1)[0]
    if len(types) > 1 and count > _ONE_SIDED * types.total():
        said.append(f"{count} of {types.total()} anomalies are {name or '(no type)'}")
    if nothing > _ONE_SIDED * len(labelled):
        said.append(f"{nothing} of {len(labelled)} records have no anomaly")
    if not nothing:
        said.append("every record has an anomaly: the model never sees a series where nothing is to be found")
    return Finding("one_sided", "notice", "; ".join(said)) if said else None
