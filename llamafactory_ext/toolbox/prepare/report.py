"""The report: what was counted along the way, and one run in numbers, for machines (JSON) and for the terminal."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from .options import Options
from .reading import Spool
from .records import Fault
from .splitting import Keys


RULE = (
    "union of all intervals, each named once, sorted; same type: the first record's entry stays; different types: "
    "the type that most records give, a tie goes to the record that comes first"
)


@dataclass(frozen=True)
class Line:
    """One prepared record."""

    chatts: bytes
    """Its line of the ChatTS file, without the line's end; empty where none is asked for."""
    gdsh: bytes
    """The same for cleaned annotations."""
    keys: Keys
    """Of its series, whole as they were read; empty where there is no split."""
    types: tuple[str, ...]
    """Of its anomalies, one for each."""


@dataclass
class Tally:
    """Counts of texts and lengths, so that it stays small however many records were counted."""

    counts: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    prompts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """User and system text of each written record."""
    interval_lengths: Counter[int] = field(default_factory=Counter)
    """In rows of the written series."""
    series_lengths: Counter[int] = field(default_factory=Counter)
    gaps: dict[str, int] = field(default_factory=dict)
    """CSV files with cells that were filled in, and how many."""
    remarks: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """CSV files that are not as usual: kind and text of each remark."""
    faults: list[Fault] = field(default_factory=list)
    conflicts: list[dict[str, object]] = field(default_factory=list)
    too_long: list[dict[str, object]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Add what `other` counted; its lines are not taken over."""
        self.counts.update(other.counts)
        self.types.update(other.types)
        self.prompts.update(other.prompts)
        self.interval_lengths.update(other.interval_lengths)
        self.series_lengths.update(other.series_lengths)
        self.gaps.update(other.gaps)
        self.remarks.update(other.remarks)
        self.faults += other.faults
        self.conflicts += other.conflicts
        self.too_long += other.too_long


def make_report(
    options: Options, spool: Spool, tally: Tally, written: dict[str, int], split: dict[str, Any], registered: bool
) -> dict[str, Any]:
    """Put together what is known at the end of a run.

    `records` adds up: read = dropped + merged_away + prepared; and written + validation = prepared, or, with
    windows, = windows.cut - windows.left_out. Where faults kept the run from writing, these two are 0.

    Args:
        options: what was asked for.
        spool: what was read.
        tally: what was prepared.
        written: records in each output, by the names of `Options.outputs`; empty where nothing was written.
        split: what `Outputs.split` holds.
        registered: whether dataset_info.json was changed.
    """
    counts = tally.counts
    faults = [*spool.faults, *tally.faults]
    faulty = sum(fault.record is not None for fault in faults)
    dropped = dict(spool.dropped) | ({"faulty": faulty} if faulty else {})
    dropped |= {"series of the golden set": counts["golden"]} if counts["golden"] else {}
    return {
        "done": bool(written),
        "options": options.as_dict(),
        "inputs": [{"file": file, "records": records} for file, records in spool.files.items()],
        "records": {
            "read": sum(spool.files.values()),
            "dropped": dropped,
            "merged_away": counts["merged_away"],
            "prepared": counts["prepared"],
            "written": max((number for name, number in written.items() if not name.endswith("_val")), default=0),
            "validation": max((number for name, number in written.items() if name.endswith("_val")), default=0),
        },
        "points": len(spool.sensors),
        "split": split,
        "merged": {
            "rule": RULE,
            "points_with_several_records": counts["merged_points"],
            "entries_named_again": counts["named_again"],
            "points_with_several_prompts": counts["other_prompts"],
            "conflicts": len(tally.conflicts),
        },
        "windows": {"cut": counts["windows"], "left_out": counts["normal_left_out"]},
        "thinned": {"records": counts["thinned"], "intervals_without_point": counts["without_point"]},
        "answers": {
            "rewritten": counts["rewritten"],
            "entries_without_interval": counts["without_interval"],
            "intervals_renamed": counts["renamed"],
            "normal_entries": counts["normal"],
            "normal_beside_anomalies": counts["normal_beside_anomalies"],
            "emptied": counts["emptied"],
            "duplicates": counts["duplicates"],
            "became_equal": counts["became_equal"],
            "too_long": tally.too_long,
        },
        "prompts": {"markers_added": counts["markers_added"]},
        "repaired": {
            "values_filled": sum(tally.gaps.values()),
            "labels_over_filled": counts["labels_over_filled"],
            "series_with_gaps": [{"file": file, "values": values} for file, values in sorted(tally.gaps.items())],
        },
        "series_by_ending": [{"picture": picture, "file": file} for picture, file in sorted(spool.renamed.items())],
        "series_remarks": [
            {"file": file, "kind": kind, "text": text}
            for file, found in sorted(tally.remarks.items())
            for kind, text in found
        ],
        "intervals": counts["intervals"],
        "types": dict(tally.types.most_common()),
        "interval_lengths": summarise(tally.interval_lengths),
        "series_lengths": summarise(tally.series_lengths),
        "conflicts": tally.conflicts,
        "faults": [vars(fault) for fault in faults],
        "outputs": {str(options.outputs[name]): number for name, number in written.items()},
        "registered": str(options.register) if registered else "",
    }


def failed_report(options: Options, error: str) -> dict[str, Any]:
    """What there is to say where a run ended before its records were read to the end."""
    return {"done": False, "options": options.as_dict(), "error": error}


def summarise(lengths: Counter[int]) -> dict[str, int]:
    """Smallest, median, 95th percentile (each a length that occurs: the nearest rank) and largest length, in rows."""
    count = lengths.total()
    if not count:
        return {"count": 0}
    ordered = sorted(lengths)
    below = list(accumulate(lengths[length] for length in ordered))

    def rank(percent: int) -> int:
        wanted = -(-count * percent // 100)
        return next(length for length, sofar in zip(ordered, below, strict=True) if sofar >= wanted)

    return {"min": ordered[0], "median": rank(50), "p95": rank(95), "max": ordered[-1], "count": count}
