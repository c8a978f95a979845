"""Samples: a record checked against its series, and the samples of one point made one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llamafactory_ext.gdsh import (
    Anomaly,
    GdshError,
    check_intervals,
    parse_answer,
    place_markers,
    read_anomalies,
    write_answer,
)

from .merging import merge_anomalies
from .options import Options
from .records import Record
from .resampling import Floats, check_alignment
from .tally import Tally


@dataclass(frozen=True)
class Sample:
    """A record with its labels, or several merged into one, or a window of it."""

    record: Record
    """The first one where several were merged."""
    prompt: str
    anomalies: list[Anomaly]
    text: str | None
    """The answer where it is passed on as it is."""


def read_sample(record: Record, series: list[Floats], options: Options, counts: Counter[str]) -> Sample:
    """Check one record against its series.

    Raises:
        GdshError: whatever is wrong with it. Nothing is counted then.
    """
    (prompt,), moved = place_markers([record.prompt], len(series))
    answer = parse_answer(record.answer)
    check_intervals(answer.intervals, [len(values) for values in series])
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
    counts["emptied"] += left_out > 0 and not anomalies
    counts["duplicates"] += answer.duplicates + record.duplicates
    counts["markers_added"] += moved
    return Sample(record, prompt, anomalies, text)


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
            "point": list(first.record.series),
            "interval": list(conflict.interval),
            "types": conflict.types,
            "kept": conflict.kept,
        }
        for conflict in conflicts
    ]
    return replace(first, anomalies=anomalies)
