"""Tally: what the preparation of some records gave and what it counted; tallies add up to that of the run."""

from collections import Counter
from dataclasses import dataclass, field

from .records import Fault


@dataclass(frozen=True)
class Line:
    """One prepared record."""

    chatts: bytes
    """Its line of the ChatTS file, without the line's end; empty where none is asked for."""
    gdsh: bytes
    """The same for cleaned annotations."""
    digests: tuple[bytes, ...]
    """Of each of its series, whole as in the CSV file; empty where there is no split."""


@dataclass
class Tally:
    """Counts of texts and lengths, so that it stays small however many records were counted."""

    counts: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    interval_lengths: Counter[int] = field(default_factory=Counter)
    """In rows of the written series."""
    series_lengths: Counter[int] = field(default_factory=Counter)
    gaps: dict[str, int] = field(default_factory=dict)
    """CSV files with cells that were filled in, and how many."""
    faults: list[Fault] = field(default_factory=list)
    conflicts: list[dict[str, object]] = field(default_factory=list)
    too_long: list[dict[str, object]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Add what `other` counted; its lines are not taken over."""
        self.counts.update(other.counts)
        self.types.update(other.types)
        self.interval_lengths.update(other.interval_lengths)
        self.series_lengths.update(other.series_lengths)
        self.gaps.update(other.gaps)
        self.faults += other.faults
        self.conflicts += other.conflicts
        self.too_long += other.too_long
