"""Answers: whatever an annotator's tool wrote becomes one valid JSON text, or an error that says why not.

A text that is a JSON object or list already stays as it is, to the byte, unless it names an interval under another key
than `interval`, or the normal state among its anomalies. What can be read in exactly one way otherwise (JSON objects
joined by commas, Python literals, values that are no text at all) is written anew as
`{"status": "success", "detected_anomalies": [...]}`, sorted by interval. Anything else is refused.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from llamafactory_ext.errors import GdshError, excerpt

from .dialects import FIX, MAX_ANSWER, read_json, read_parts
from .entries import NORMAL_TYPES, Pair, has_remarks_only, is_entry, is_normal, list_key, locate


_EMPTY = '{"status": "success", "detected_anomalies": []}'


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
    intervals: tuple[Pair, ...]
    """The intervals that `text` names, in its order: 0-based, both ends counted, not yet checked."""
    normal: int = 0
    """Entries left out because their type is the normal state."""
    renamed: int = 0
    """Entries whose interval stood under another key, or several in one."""
    was_json: bool = False
    """Whether the record held a JSON object or list."""


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
        kind = self.fields.get("type")
        return "" if kind is None else str(kind)

    @property
    def reason(self) -> str:
        """Why it is one, empty where the entry does not say."""
        return str(self.fields.get("reason", ""))


def parse_answer(value: object, normal: frozenset[str] = NORMAL_TYPES) -> Answer:
    """Read one answer, a text or a list or an object, into JSON.

    Args:
        value: what the record holds.
        normal: types that mean the normal state, see `entries.normal_types`.

    Raises:
        GdshError: the answer is empty, cut off, wrapped in other text, no JSON, or holds a bad entry.
    """
    try:
        if isinstance(value, str):
            return _parse_text(value, normal)
        if isinstance(value, (list, dict)):
            return _rewrite([value], normal)
    except (RecursionError, MemoryError) as error:
        raise GdshError(f"the answer is nested too deeply to be read; {FIX}") from error
    raise GdshError(f"the answer is {excerpt(value)}, neither text nor a list nor an object; {FIX}")


def read_anomalies(text: str) -> tuple[list[Anomaly], int]:
    """Read the anomalies of an answer that `parse_answer` gave, and count its entries that mark no interval.

    The normal state is not among them: `parse_answer` has left it out.

    Raises:
        GdshError: JSON, but not made of anomalies: another status, another key, entries of another kind.
    """
    try:
        found = _anomalies([read_json(text)], frozenset())
        return found.anomalies, found.without
    except RecursionError as error:
        raise GdshError(f"the answer is nested too deeply to be read; {FIX}") from error


def read_labels(value: object, normal: frozenset[str] = NORMAL_TYPES) -> tuple[list[Anomaly], int, int]:
    """Read an answer in any form that `parse_answer` takes, whose bounds may be times of the series.

    Returns:
        Its anomalies, `start` and `end` as they stand there; how many entries mark no interval; how many name the
        normal state.

    Raises:
        GdshError: as `parse_answer`, but for an answer that is empty, which has no anomalies.
    """
    try:
        values = [value]
        if isinstance(value, str):
            try:
                values = [read_json(value)]
            except ValueError:
                values = read_parts(value)
        found = _anomalies(values, normal, times=True)
    except (RecursionError, MemoryError) as error:
        raise GdshError(f"the answer is nested too deeply to be read; {FIX}") from error
    return found.anomalies, found.without, found.normal


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


@dataclass
class _Found:
    """What is found in an answer."""

    anomalies: list[Anomaly] = field(default_factory=list)
    without: int = 0
    normal: int = 0
    renamed: int = 0

    def take(self, entry: Mapping[str, object], times: bool = False) -> list[dict[str, object]]:
        """Note an entry's anomalies, and give the entries, one an interval, that say the same."""
        intervals, rest, renamed = locate(entry, times)
        fields = {key: rest[key] for key in ("type", "reason") if key in rest} | rest
        self.anomalies += [Anomaly(start, end, fields) for start, end in intervals]
        self.renamed += renamed
        self.without += not intervals
        if not renamed:
            return [dict(entry)]
        return [{"interval": [start, end], **fields} for start, end in intervals]


def _parse_text(text: str, normal: frozenset[str]) -> Answer:
    if len(text) > MAX_ANSWER:
        raise GdshError(f"the answer has {len(text):,} characters; at most {MAX_ANSWER:,} are read: shorten it")
    if not text.strip():
        raise GdshError(
            f"the answer is empty; for a series without anomalies write {_EMPTY}; one that is only to be answered "
            "needs none where a run predicts (predict_with_generate, no do_train)"
        )
    try:
        whole = read_json(text)
    except ValueError:
        return _rewrite(read_parts(text), normal)
    if not isinstance(whole, (dict, list)):
        raise GdshError(f"the answer is JSON, but neither object nor list: {excerpt(text)}; {FIX}")
    found = _Found()
    settled = _settle(whole, found, normal)
    intervals = tuple((one.start, one.end) for one in found.anomalies)
    if not found.normal and not found.renamed:
        return Answer(text, False, 0, 0, intervals, was_json=True)
    bare = not settled if isinstance(whole, dict) else not (found.anomalies or found.without)
    text = _EMPTY if bare else _dump(settled[0] if isinstance(whole, dict) else settled)
    return Answer(text, True, 0, 0, intervals, found.normal, found.renamed, was_json=True)


def _settle(value: object, found: _Found, normal: frozenset[str], *, inside: bool = False) -> list[object]:
    """Give JSON anew, in its order, each interval under `interval` and the normal state left out.

    Args:
        value: an object, or a list of them.
        found: takes what is found.
        normal: types that mean the normal state.
        inside: whether `value` is a list of anomalies, or stands in one.
    """
    if isinstance(value, list):
        settled: list[object] = []
        for item in value:
            settled += (
                [_settle(item, found, normal, inside=inside)]
                if isinstance(item, list)
                else _settle(item, found, normal, inside=inside)
            )
        return settled
    if not isinstance(value, dict):
        if inside and is_normal(value, normal):
            found.normal += 1
            return []
        if inside:
            raise GdshError(
                f"{excerpt(value)} is no anomaly; expected an object with interval, type and reason; {FIX}"
            )
        return [value]
    key = list_key(value) if value.get("interval") is None else None
    if key is not None:
        inner = value[key]
        if inner is None or inner == []:
            return [value]
        known = len(found.anomalies)
        listed = _settle(inner, found, normal, inside=True)
        renamed = key != "detected_anomalies"
        found.renamed += renamed * (len(found.anomalies) - known)
        return [
            {"detected_anomalies" if name == key else name: listed if name == key else value[name] for name in value}
        ]
    if not inside and not is_entry(value):
        return [value]
    if is_normal(value, normal):
        found.normal += 1
        return []
    return list(found.take(value))


def _rewrite(values: Sequence[object], normal: frozenset[str]) -> Answer:
    """Collect the entries of all `values`: with interval, sorted, each once."""
    found = _anomalies(values, normal)
    kept = {_order(anomaly): anomaly for anomaly in reversed(found.anomalies)}
    chosen = [kept[order] for order in sorted(kept)]
    intervals = tuple((anomaly.start, anomaly.end) for anomaly in chosen)
    duplicates = len(found.anomalies) - len(chosen)
    return Answer(write_answer(chosen), True, found.without, duplicates, intervals, found.normal, found.renamed)


def _order(anomaly: Anomaly) -> tuple[int, int, str, str, str]:
    reason, rest = str(anomaly.fields.get("reason", "")), _dump(anomaly.fields, sort_keys=True)
    return anomaly.start, anomaly.end, anomaly.type, reason, rest


def _anomalies(values: Sequence[object], normal: frozenset[str], times: bool = False) -> _Found:
    """The anomalies of all `values`, as found."""
    found = _Found()
    for value in values:
        for entry in _entries(value, normal):
            if is_normal(entry, normal):
                found.normal += 1
            else:
                found.take(entry, times)
    return found


def _entries(value: object, normal: frozenset[str]) -> Iterator[dict[str, object]]:
    """Walk the entries of a list, of an object with `detected_anomalies`, or the one that `value` itself is."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _entries(item, normal)
        return
    if isinstance(value, str) and is_normal(value, normal):
        yield {"type": value}
        return
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise GdshError(f"{excerpt(value)} is no anomaly; expected an object with interval, type and reason; {FIX}")
    if value.get("status", "success") != "success":
        raise GdshError(
            f"status is {excerpt(value['status'])}, expected 'success'; leave the record out or correct it"
        )
    key = list_key(value) if value.get("interval") is None else None
    if key is not None:
        if not isinstance(value[key], list) or value.keys() - {"status", key}:
            wanted = "expected status, a list detected_anomalies, and no other key"
            raise GdshError(f"{excerpt(value)} cannot be joined: {wanted}; {FIX}")
        yield from _entries(value[key], normal)
    elif is_entry(value) or has_remarks_only(value):
        yield value
    else:
        raise GdshError(f"{excerpt(value)} has neither detected_anomalies nor interval nor type; {FIX}")


def _dump(value: object, *, sort_keys: bool = False, spaces: bool = True) -> str:
    separators = (", ", ": ") if spaces else (",", ":")
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys, separators=separators)
    except (TypeError, ValueError, RecursionError) as error:
        raise GdshError(f"the answer holds a value that JSON has no form for ({error}); {FIX}") from error
