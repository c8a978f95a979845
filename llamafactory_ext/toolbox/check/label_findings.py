"""What can be wrong with labels, record by record and in their mix. See `findings`."""

from collections import Counter

from llamafactory_ext.toolbox.check.findings import Finding, Place, Records, notice, usable


_ONE_SIDED = 0.8


def not_json(records: Records) -> Finding | None:
    """Answers that are not JSON while others are; where none is, the data set asks for something else."""
    rows = list(usable(records))
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
