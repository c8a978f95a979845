"""Samples: a record checked against its series, and the samples of one point made one by a stated rule.

The union of all intervals, sorted by start and end, each named once. Where records give one interval the same
type, the first record's entry stays, with its reason. Where they give it different types, the type that most
records give is kept; a tie goes to the record that comes first.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llamafactory_ext.gdsh import (
    Anomaly,
    Answer,
    GdshError,
    Series,
    check_intervals,
    parse_answer,
    place_markers,
    read_anomalies,
    write_answer,
)

from .options import Options
from .records import Record
from .report import Tally
from .resampling import check_alignment


@dataclass(frozen=True)
class Conflict:
    """One interval that the records of a point give different types."""

    interval: tuple[int, int]
    types: dict[str, int]
    """Each type, and how many records give it."""
    kept: str


def merge_anomalies(records: Sequence[Sequence[Anomaly]]) -> tuple[list[Anomaly], list[Conflict], int]:
    """Merge the anomalies of a point's records, given in the records' order.

    Returns:
        The merged anomalies, the conflicts, and how many entries fell to an equal interval's.
    """
    by_interval: dict[tuple[int, int], list[tuple[int, Anomaly]]] = {}
    for place, anomalies in enumerate(records):
        for anomaly in anomalies:
            by_interval.setdefault((anomaly.start, anomaly.end), []).append((place, anomaly))
    merged, conflicts = [], []
    for interval in sorted(by_interval):
        entries = by_interval[interval]
        # A record that names a type twice has still one vote. Counter keeps the order of first appearance, and
        # max() takes the first of equals: so a tie goes to the record that comes first.
        votes = Counter(kind for _, kind in dict.fromkeys((place, entry.type) for place, entry in entries))
        kept = max(votes, key=votes.__getitem__)
        merged.append(next(entry for _, entry in entries if entry.type == kept))
        if len(votes) > 1:
            conflicts.append(Conflict(interval, dict(votes), kept))
    return merged, conflicts, sum(map(len, records)) - len(merged)


def without_equals(anomalies: Sequence[Anomaly]) -> list[Anomaly]:
    """Keep the first of those that agree in interval and type, in order."""
    first: dict[tuple[int, int, str], Anomaly] = {}
    for anomaly in anomalies:
        first.setdefault((anomaly.start, anomaly.end, anomaly.type), anomaly)
    return list(first.values())


@dataclass(frozen=True)
class Sample:
    """A record with its labels, or several merged into one, or a window of it."""

    record: Record
    """The first one where several were merged."""
    prompt: str
    anomalies: list[Anomaly]
    text: str | None
    """The answer where it is passed on as it is."""


def read_sample(record: Record, read: list[Series], options: Options, counts: Counter[str]) -> Sample:
    """Check one record against its series.

    Raises:
        GdshError: whatever is wrong with it. Nothing is counted then.
    """
    series = [one.values for one in read]
    (prompt,), moved = place_markers([record.prompt], len(series))
    answer = parse_answer(record.answer, options.normal)
    check_intervals(answer.intervals, [len(values) for values in series])
    over_filled = _refuse_filled(answer, read, options)
    if options.max_points is not None or options.window is not None:
        check_alignment(series, window=options.window, points=options.max_points)
    text = None if options.rewrites_answers else answer.text
    try:
        anomalies, without = read_anomalies(answer.text)
        if text is None:
            # What is written later is made of these fields: what cannot be written must show here, by record.
            write_answer(anomalies).encode()
    except UnicodeEncodeError as error:
        raise GdshError(f"the answer holds half a character ({error.reason}); correct it") from error
    except RecursionError as error:
        raise GdshError("the answer is nested too deeply to be read; correct it") from error
    except GdshError:
        if text is None:
            raise
        # JSON of another kind is passed on as it is, as in training; only its intervals are known.
        anomalies, without = [Anomaly(start, end, {}) for start, end in answer.intervals], 0
    left_out = answer.without_interval + record.without_interval + (without if text is None else 0)
    counts["rewritten"] += answer.rewritten or bool(record.rewritten)
    counts["without_interval"] += left_out
    normal = answer.normal + record.normal
    counts["normal"] += normal
    counts["normal_beside_anomalies"] += bool(normal and anomalies)
    counts["renamed"] += answer.renamed + record.renamed
    counts["emptied"] += left_out + normal > 0 and not anomalies
    counts["labels_over_filled"] += over_filled
    counts["duplicates"] += answer.duplicates + record.duplicates
    counts["markers_added"] += moved
    return Sample(record, prompt, anomalies, text)


def _refuse_filled(answer: Answer, read: list[Series], options: Options) -> int:
    """Count the labels over interpolated rows; without `allow_filled_labels` they are a fault."""
    found = [(start, end, max(one.filled_within(start, end) for one in read)) for start, end in answer.intervals]
    found = [one for one in found if one[2]]
    if found and not options.allow_filled_labels:
        start, end, filled = found[0]
        raise GdshError(
            f"{len(found)} labels lie over interpolated rows, where nothing is seen; the first is [{start}, {end}], "
            f"{filled} of its {end - start + 1} rows are: fill in what was measured, correct the labels, or keep them "
            "with --allow-filled-labels"
        )
    return len(found)


def merge_samples(samples: Sequence[Sample], tally: Tally) -> Sample:
    """Make one sample of a point's; the first one's prompt and system text stay."""
    first = samples[0]
    anomalies, conflicts, repeated = merge_anomalies([sample.anomalies for sample in samples])
    tally.counts["merged_away"] += len(samples) - 1
    tally.counts["merged_points"] += 1
    tally.counts["named_again"] += repeated
    tally.counts["other_prompts"] += any(
        (sample.prompt, sample.record.system) != (first.prompt, first.record.system) for sample in samples
    )
    tally.conflicts += [
        {
            "point": [first.record.name] if first.record.values else list(first.record.series),
            "interval": list(conflict.interval),
            "types": conflict.types,
            "kept": conflict.kept,
        }
        for conflict in conflicts
    ]
    return replace(first, anomalies=anomalies)
