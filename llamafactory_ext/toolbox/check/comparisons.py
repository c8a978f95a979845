"""Records that are too much alike: contradictions, duplicates, and series on both sides of a split."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

from llamafactory_ext.data.formats.format import contradicting
from llamafactory_ext.toolbox.check.findings import Finding, Place, Records


_NAMED = 3


def contradictions(records: Records) -> Finding | None:
    """Records with the same series and prompt, but different answers: no model can satisfy them all."""
    groups = contradicting(("", "") if one.unlabelled else (one.asked, one.answered) for one in records)
    places = _places(groups, records, "also asked in")
    text = f"{len(places)} records contradict one another: {len(groups)} times the same series and prompt have"
    advice = "llamafactory-ext prepare --merge-points makes one record of them, with all their anomalies"
    return Finding("contradiction", "fault", f"{text} different answers", places, advice) if groups else None


def duplicates(records: Records) -> Finding | None:
    """Records that are the same in series, prompt and answer."""
    usable = ((row, one) for row, one in enumerate(records) if not one.fault)
    groups = _groups((row, (one.asked, one.answered)) for row, one in usable)
    places = _places(groups, records, "the same as")
    text = f"{len(places)} records are {len(groups)} records, given several times"
    return Finding("duplicate", "notice", text, places) if groups else None


def shared_series(records: Records) -> Finding | None:
    """Series that several records have."""
    pairs = {(row, one.digest): None for row, record in enumerate(records) for one in record.series}
    groups = _groups((row, digest) for row, digest in pairs)
    places = {place.row: place for place in _places(groups, records, "shared with")}
    text = f"{len(groups)} series occur in several records ({len(places)} records in all)"
    return Finding("shared_series", "notice", text, tuple(places.values())) if groups else None


def leaks(records: Records, validation: Records, name: str) -> Finding | None:
    """Series of the training data that are in the validation data, too."""
    holders: dict[bytes, str] = {}
    for other in validation:
        for one in other.series:
            holders.setdefault(one.digest, other.name)
    places = []
    for row, record in enumerate(records):
        shared = next((one.digest for one in record.series if one.digest in holders), None)
        if shared is not None:
            places.append(Place(row, f"also {holders[shared]} of {name}"))
    text = f"{len(places)} records have a series that is in the validation data ({name}), too"
    advice = "llamafactory-ext prepare --split parts by series"
    return Finding("leak", "fault", text, tuple(places), advice) if places else None


def split_leaks(records: Records, validation_rows: Sequence[int], val_size: float) -> Finding | None:
    """Series that a split by record, as `val_size` makes it, would put on both sides."""
    held = set(validation_rows)
    inside = {one.digest for row in held for one in records[row].series}
    outside = {one.digest for row, record in enumerate(records) if row not in held for one in record.series}
    both = inside & outside
    rows = [row for row, record in enumerate(records) if any(one.digest in both for one in record.series)]
    places = tuple(Place(row, "in validation" if row in held else "in training") for row in rows)
    text = f"val_size: {val_size:g} splits by record: {len(both)} series would be in training and in validation"
    advice = "llamafactory-ext prepare --split parts by series; name its second file as eval_dataset and drop val_size"
    return Finding("leak", "fault", text, places, advice) if both else None


def _groups(keyed: Iterable[tuple[int, Hashable]]) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row, key in keyed:
        groups[key].append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def _places(groups: Sequence[Sequence[int]], records: Records, wording: str) -> tuple[Place, ...]:
    places = []
    for rows in groups:
        for row in rows:
            # a few are enough to find the others, and groups may be large
            others = [records[other].name for other in rows[: _NAMED + 1] if other != row][:_NAMED]
            more = f" and {len(rows) - 1 - len(others)} more" if len(rows) - 1 > len(others) else ""
            places.append(Place(row, f"{wording} {', '.join(others)}{more}"))
    return tuple(sorted(places, key=lambda place: place.row))
