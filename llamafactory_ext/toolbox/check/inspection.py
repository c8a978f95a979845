"""The main path: data sets in, everything that is to be said about them out."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamafactory_ext.toolbox.check import comparisons, findings
from llamafactory_ext.toolbox.check.findings import Finding
from llamafactory_ext.toolbox.session import framework
from llamafactory_ext.toolbox.session.recipe import Arguments
from llamafactory_ext.toolbox.session.records import Part, Record, RecordFacts, facts, read
from llamafactory_ext.toolbox.session.tokens import Tokens, count_tokens, tokenise_part


Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Passes on what it is given, and shows how far it has come; the text says what is done, the number how many."""


@dataclass
class Inspection:
    """What was found. Rows number the records of all parts one after the other."""

    arguments: Arguments
    parts: list[Part]
    records: list[RecordFacts] = field(default_factory=list)
    tokens: list[Tokens | None] = field(default_factory=list)
    """Of each record; None where it can't be tokenised, all None without a tokenizer."""
    tokenizer: framework.Tokenizer | None = None
    no_tokens: str = ""
    """Why there are no token lengths."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def limit(self) -> int:
        """Tokens of the longest record that fits."""
        return int(self.arguments.data.cutoff_len)

    @property
    def types(self) -> Counter[str]:
        """Labelled intervals by type, the commonest first."""
        counted = Counter(one.type for record in self.records for one in record.labels)
        return Counter(dict(counted.most_common()))

    @property
    def has_faults(self) -> bool:
        return any(one.severity == "fault" for one in self.findings)

    def place(self, row: int) -> tuple[Part, int]:
        """Returns the part that a row belongs to, and its row there."""
        for part in self.parts:
            if row < len(part.dataset):
                return part, row
            row -= len(part.dataset)
        raise IndexError(row)

    def record(self, row: int) -> Record:
        """Reads one record again, with its points."""
        part, place = self.place(row)
        return next(iter(read(part, [place])))


def inspect(
    arguments: Arguments, progress: Progress = lambda items, text, count: items, allow_filled_labels: bool = False
) -> Inspection:
    """Reads the data sets and looks for everything that is known to go wrong.

    Arguments:
        allow_filled_labels: a label over rows that were interpolated is worth a notice only.

    Raises:
        CheckError: a file as a whole can't be read.
    """
    parts = _load(arguments.entries, arguments)
    found = Inspection(arguments, parts)
    for part in parts:
        found.records += progress(facts(part), f"reading {part.name}", len(part.dataset))
    found.tokens = [None] * len(found.records)
    _add_tokens(found)
    drop = getattr(arguments.data, "overlong_records", "error") == "drop"
    lengths = [one.whole if one else None for one in found.tokens]
    longest = found.tokenizer.max_series_length if found.tokenizer else None
    candidates = [
        findings.unusable(found.records),
        findings.overlong(found.records, lengths, found.limit, drop, 1 if arguments.data.packing else 0),
        findings.series_too_long(found.records, longest),
        findings.not_json(found.records),
        findings.outside(found.records),
        comparisons.contradictions(found.records),
        *_leaks(found, progress),
        comparisons.duplicates(found.records),
        comparisons.shared_series(found.records),
        findings.constant(found.records),
        findings.gaps(found.records),
        findings.normal(found.records),
        findings.unplaced(found.records),
        findings.unlabelled(found.records),
        findings.over_filled(found.records, allow_filled_labels),
        *findings.remarks(found.records),
        findings.at_border(found.records),
        findings.wide(found.records),
        findings.unusual_length(found.records),
        findings.one_sided(found.records),
    ]
    found.findings += [one for one in candidates if one]
    found.findings.sort(key=lambda one: one.severity != "fault")
    return found


def _load(entries: dict[str, Any], arguments: Arguments) -> list[Part]:
    loaded = {name: framework.load(entry, arguments) for name, entry in entries.items()}
    several = len(loaded) > 1
    return [Part(name, dataset, f"{name}: " if several else "") for name, dataset in loaded.items()]


def _add_tokens(found: Inspection) -> None:
    """Fills in the token lengths; where that can't be done, says why, as a fault where training would stop, too."""
    try:
        found.tokenizer = framework.load_tokenizer(found.arguments)
    except framework.CheckError as err:
        found.no_tokens = str(err)
        return
    first, limit = 0, found.tokenizer.max_series_length
    for part in found.parts:
        rows = range(first, first + len(part.dataset))
        first = rows.stop
        fits = [row for row in rows if not _is_left_out(found.records[row], limit)]
        if not fits:
            continue
        try:
            tokenised = tokenise_part(part, [row - rows.start for row in fits], found.arguments, found.tokenizer)
        except framework.CheckError as err:
            found.no_tokens = str(err)
            found.findings.append(Finding("not_tokenised", "fault", f"{part.prefix}{err}"))
            continue
        for row, tokens in zip(fits, count_tokens(tokenised, found.tokenizer), strict=True):
            found.tokens[row] = tokens


def _is_left_out(record: RecordFacts, limit: int | None) -> bool:
    return bool(record.fault) or (limit is not None and record.length > limit)


def _leaks(found: Inspection, progress: Progress) -> list[Finding | None]:
    """Compares with the validation data, or with what `val_size` would make of these."""
    arguments, records = found.arguments, found.records
    if arguments.validation:
        parts = _load(arguments.validation, arguments)
        held_out: list[RecordFacts] = []
        for part in parts:
            held_out += progress(facts(part), f"reading {part.name}", len(part.dataset))
        names = ", ".join(arguments.validation)
        return [comparisons.leaks(records, held_out, names), _unusable_validation(held_out, names)]
    try:
        rows = framework.validation_rows([len(part.dataset) for part in found.parts], arguments)
    except framework.CheckError as err:
        return [Finding("val_size", "fault", str(err))]
    return [comparisons.split_leaks(records, rows, arguments.data.val_size)] if rows else []


def _unusable_validation(records: Sequence[RecordFacts], names: str) -> Finding | None:
    bad = findings.unusable(records)
    if not bad:
        return None
    named = "; ".join(f"{records[place.row].name}: {place.detail}" for place in bad.places[:5])
    return Finding("unusable_validation", "fault", f"validation ({names}): {bad.text}: {named}", (), bad.advice)
