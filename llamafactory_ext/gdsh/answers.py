"""Answers: whatever an annotator's tool wrote becomes one valid JSON text, or an error that says why not.

A text that is a JSON object or list already stays as it is, to the byte. What can be read in exactly one
way otherwise (JSON objects joined by commas, Python literals, values that are no text at all) is written
anew as `{"status": "success", "detected_anomalies": [...]}`, sorted by interval. Anything else is refused.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llamafactory_ext.errors import GdshError, excerpt

from .dialects import FIX, MAX_ANSWER, read_json, read_parts


_EMPTY = '{"status": "success", "detected_anomalies": []}'
_ENVELOPE = {"status", "detected_anomalies"}


@dataclass(frozen=True)
class Answer:
    """One answer as it will be trained on."""

    text: str
    """Valid JSON: an object or a list."""
    rewritten: bool
    """Whether `text` differs in form from what the record held."""
    without_interval: int
    """Entries left out because they mark no interval; 0 unless rewritten."""
    duplicates: int
    """Entries left out because an equal one is kept; 0 unless rewritten."""
    intervals: tuple[tuple[int, int], ...]
    """The intervals that `text` names, in its order: 0-based, both ends counted, not yet checked."""


@dataclass(frozen=True)
class Anomaly:
    """One labelled interval of a series."""

    start: int
    """First index, 0-based."""
    end: int
    """Last index, counted."""
    fields: Mapping[str, object]
    """What else its entry says: type, reason, and keys of the annotator's own."""

    @property
    def type(self) -> str:
        """The anomaly's type, empty where the entry names none."""
        return str(self.fields.get("type", ""))

    @property
    def reason(self) -> str:
        """Why it is one, empty where the entry does not say."""
        return str(self.fields.get("reason", ""))


def parse_answer(value: object) -> Answer:
    """Read one answer, a text or a list or an object, into JSON.

    Raises:
        GdshError: the answer is empty, cut off, wrapped in other text, no JSON, or holds a bad entry.
    """
    try:
        if isinstance(value, str):
            return _parse_text(value)
        if isinstance(value, (list, dict)):
            return _rewrite([value])
    except (RecursionError, MemoryError) as error:
        raise GdshError(f"the answer is nested too deeply to be read; {FIX}") from error
    raise GdshError(f"the answer is {excerpt(value)}, neither text nor a list nor an object; {FIX}")


def read_anomalies(text: str) -> tuple[list[Anomaly], int]:
    """Read the anomalies of an answer that `parse_answer` gave, and count its entries that mark no interval.

    Raises:
        GdshError: JSON, but not made of anomalies: another status, another key, entries of another kind.
    """
    try:
        return _anomalies([read_json(text)])
    except RecursionError as error:
        raise GdshError(f"the answer is nested too deeply to be read; {FIX}") from error


def write_answer(anomalies: Sequence[Anomaly], *, compact: bool = False) -> str:
    """Write anomalies as one JSON text, in their order; `compact` leaves out all but interval and type.

    Raises:
        GdshError: a field holds a value that JSON has no form for.
    """
    entries = []
    for anomaly in anomalies:
        fields = {key: anomaly.fields[key] for key in anomaly.fields if key == "type" or not compact}
        entries.append({"interval": [anomaly.start, anomaly.end], **fields})
    return _dump({"status": "success", "detected_anomalies": entries}, spaces=not compact)


def check_intervals(intervals: Sequence[tuple[int, int]], lengths: Sequence[int]) -> None:
    """Check 0 <= start <= end <= length - 1 against the longest of the record's series (lengths in rows).

    Raises:
        GdshError: names the first five intervals that do not fit, and how many there are.
    """
    if not lengths:
        raise GdshError("no series to check the answer's intervals against; give the record at least one picture")
    length = max(lengths)
    bad = [list(pair) for pair in intervals if not 0 <= pair[0] <= pair[1] < length]
    if bad:
        named = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise GdshError(
            f"{len(bad)} of {len(intervals)} intervals do not fit the series of {length} rows: {named}; expected "
            f"0 <= start <= end <= {length - 1}: correct the intervals, or check that the CSV is the picture's own"
        )


def _parse_text(text: str) -> Answer:
    if len(text) > MAX_ANSWER:
        raise GdshError(f"the answer has {len(text):,} characters; at most {MAX_ANSWER:,} are read: shorten it")
    if not text.strip():
        raise GdshError(f"the answer is empty; for a series without anomalies write {_EMPTY}")
    try:
        whole = read_json(text)
    except ValueError:
        return _rewrite(read_parts(text))
    if not isinstance(whole, (dict, list)):
        raise GdshError(f"the answer is JSON, but neither object nor list: {excerpt(text)}; {FIX}")
    return Answer(text, False, 0, 0, tuple(_named_intervals(whole)))


def _rewrite(values: Sequence[object]) -> Answer:
    """Collect the entries of all `values`: with interval, sorted, each once."""
    found, without = _anomalies(values)
    kept = {_order(anomaly): anomaly for anomaly in reversed(found)}
    chosen = [kept[order] for order in sorted(kept)]
    intervals = tuple((anomaly.start, anomaly.end) for anomaly in chosen)
    return Answer(write_answer(chosen), True, without, len(found) - len(chosen), intervals)


def _order(anomaly: Anomaly) -> tuple[int, int, str, str, str]:
    reason, rest = str(anomaly.fields.get("reason", "")), _dump(anomaly.fields, sort_keys=True)
    return anomaly.start, anomaly.end, anomaly.type, reason, rest


def _anomalies(values: Sequence[object]) -> tuple[list[Anomaly], int]:
    """The anomalies of all `values`, as found, and how many entries mark no interval."""
    entries = [entry for value in values for entry in _entries(value)]
    found = []
    for entry in entries:
        if entry.get("interval") is not None:
            fields: dict[str, object] = {key: entry[key] for key in ("type", "reason") if key in entry}
            fields |= {key: entry[key] for key in entry if key not in fields and key != "interval"}
            found.append(Anomaly(*_pair(entry["interval"]), fields))
    return found, len(entries) - len(found)


def _entries(value: object) -> Iterator[dict[str, object]]:
    """Walk the entries of a list, of an object with `detected_anomalies`, or the one that `value` itself is."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _entries(item)
        return
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise GdshError(f"{excerpt(value)} is no anomaly; expected an object with interval, type and reason; {FIX}")
    if value.get("status", "success") != "success":
        raise GdshError(
            f"status is {excerpt(value['status'])}, expected 'success'; leave the record out or correct it"
        )
    if "detected_anomalies" in value:
        if not isinstance(value["detected_anomalies"], list) or not _ENVELOPE.issuperset(value):
            wanted = "expected status, a list detected_anomalies, and no other key"
            raise GdshError(f"{excerpt(value)} cannot be joined: {wanted}; {FIX}")
        yield from _entries(value["detected_anomalies"])
    elif "interval" in value or "type" in value:
        yield value
    else:
        raise GdshError(f"{excerpt(value)} has neither detected_anomalies nor interval nor type; {FIX}")


def _named_intervals(value: object) -> Iterator[tuple[int, int]]:
    if isinstance(value, list):
        for item in value:
            yield from _named_intervals(item)
    elif isinstance(value, dict):
        if value.get("interval") is not None:
            yield _pair(value["interval"])
        yield from _named_intervals(value.get("detected_anomalies"))


def _pair(interval: object) -> tuple[int, int]:
    if isinstance(interval, (list, tuple)) and len(interval) == 2 and all(map(_is_whole, interval)):
        return int(interval[0]), int(interval[1])
    raise GdshError(f"interval is {excerpt(interval)}, expected [start, end], two whole numbers; correct the interval")


def _is_whole(number: object) -> bool:
    if isinstance(number, float):
        return number.is_integer()
    return isinstance(number, int) and not isinstance(number, bool)


def _dump(value: object, *, sort_keys: bool = False, spaces: bool = True) -> str:
    separators = (", ", ": ") if spaces else (",", ":")
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys, separators=separators)
    except (TypeError, ValueError, RecursionError) as error:
        raise GdshError(f"the answer holds a value that JSON has no form for ({error}); {FIX}") from error
