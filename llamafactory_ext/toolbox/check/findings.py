"""What can be wrong with records, apart from their labels: pure functions from facts to findings.

Each returns None where there is nothing to say. A record is named by its row, its place in the list given. Findings
on labels are in `label_findings`, those that compare records with one another in `likeness`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llamafactory_ext.data.fit import advised_cutoff
from llamafactory_ext.toolbox.session.facts import RecordFacts


SHORT, LONG = 64, 1024
"""The lengths in points that ChatTS recommends for a series."""

_GAPS = 0.05

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
    return Finding("unusable", "fault", text, places, "mend or remove them") if places else None


def overlong(
    records: Records, lengths: Sequence[int | None], limit: int, drop: bool, reserved: int = 0
) -> Finding | None:
    """Records with more tokens than fit.

    Arguments:
        lengths: in tokens; None for records that were not tokenised.
        limit: tokens of the longest record that fits, `reserved` less than cutoff_len.
    """
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


def unusual_length(records: Records) -> Finding | None:
    """Series outside the lengths that ChatTS recommends."""
    text = f"{{}} records have a series outside {SHORT} to {LONG} points, the lengths that ChatTS recommends"
    found = notice(
        "length", text, records, lambda record: any(not SHORT <= one.length <= LONG for one in record.series)
    )
    advice = "llamafactory-ext prepare --max-points"
    return Finding(found.kind, "notice", found.text, found.places, advice) if found else None


def percentile(values: Sequence[int], share: float) -> int:
    """Returns the smallest of `values` that at least `share` of them do not exceed."""
    return int(np.percentile(np.asarray(values), 100 * share, method="inverted_cdf"))


def usable(records: Records) -> Iterator[tuple[int, RecordFacts]]:
    """Yields row and record of those that can be used."""
    return ((row, record) for row, record in enumerate(records) if not record.fault)


def notice(kind: str, text: str, records: Records, holds: Callable[[RecordFacts], bool]) -> Finding | None:
    """Returns a notice on the records for which `holds` is true; ``{}`` in `text` becomes their number."""
    places = tuple(Place(row) for row, record in usable(records) if holds(record))
    return Finding(kind, "notice", text.format(len(places)), places) if places else None
