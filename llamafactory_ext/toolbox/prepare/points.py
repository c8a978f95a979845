"""Points: all that is done to the records of one point, from its CSV files to finished lines.

Runs in worker processes: what comes in and goes out can be pickled, and nothing is shared.
"""

import json
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import orjson

from llamafactory_ext.data.formats.chatts import NAME
from llamafactory_ext.gdsh import Anomaly, GdshError, Series, read_series, show_pictures, write_answer
from llamafactory_ext.gdsh.prompts import IMAGE, MARKER
from llamafactory_ext.gdsh.records import read_records

from .options import Options
from .origin import Origin, find_origin
from .records import CHATTS_COLUMNS, SYSTEM, Record, fault_of, read_chatts
from .report import Line, Tally
from .resampling import Floats, choose_normal, choose_rows, cut_anomalies, lay_windows, thin_anomalies
from .samples import Sample, merge_samples, read_sample, without_equals
from .splitting import NO_KEYS, Keys, series_keys, text_key


def prepare_batch(points: Sequence[Sequence[bytes]], options: Options, texts: frozenset[str]) -> Tally:
    """Prepare some points, each given as its pickled records."""
    tally = Tally()
    for point in points:
        done = prepare_point([pickle.loads(record) for record in point], options, texts)
        tally.add(done)
        tally.lines += done.lines
    return tally


def prepare_point(records: Sequence[Record], options: Options, texts: frozenset[str]) -> Tally:
    """Read, check, merge, resample and write the records of one point; their faults are in the tally."""
    tally = Tally()
    try:
        read = _read_point(records[0], options, tally)
        series = [one.values for one in read]
    except GdshError as error:
        tally.faults += [fault_of(record, error) for record in records]
        return tally
    keys = _keys(records, series) if options.split is not None or options.golden else NO_KEYS
    if options.golden and _is_golden(records, keys, options.golden):
        tally.counts["golden"] += len(records)
        return tally
    samples = []
    for record in records:
        try:
            samples.append(read_sample(record, read, options, tally.counts))
        except GdshError as error:
            tally.faults.append(fault_of(record, error))
    if len(samples) > 1 and options.merge_points:
        samples = [merge_samples(samples, tally)]
    longest = max(map(len, series))
    origin = records[0].origin or find_origin(records[0].series[0], longest, options.table)
    for sample in samples:
        tally.counts["prepared"] += 1
        for start, stop, anomalies in _windows(sample.anomalies, longest, options, tally.counts):
            part = [values[start:stop] for values in series]
            there = origin.at(slice(start, stop))
            line = _write(replace(sample, anomalies=anomalies), part, there, options, texts, tally)
            tally.lines.append(replace(line, keys=keys))
    return tally


def _read_point(record: Record, options: Options, tally: Tally) -> list[Series]:
    """The series of the point, each CSV file read once."""
    if record.values:
        return [Series(values) for values in record.values]
    read = {}
    for path in dict.fromkeys(record.series):
        read[path] = read_series(path, options.table)
        if read[path].remarks:
            tally.remarks[path] = list(read[path].remarks)
        if read[path].filled:
            tally.gaps[path] = read[path].filled
    return [read[path] for path in record.series]


def _keys(records: Sequence[Record], series: list[Floats]) -> Keys:
    """What the split knows the point by: its values, and the names of ChatTS records, which may be windows of one."""
    names = {
        text_key(record.name.encode(errors="surrogatepass")) for record in records if record.values and record.name
    }
    return np.concatenate([np.array(sorted(names), dtype=np.uint64), *map(series_keys, series)])


def _is_golden(records: Sequence[Record], keys: Keys, path: Path) -> bool:
    known, names = golden_keys(path)
    return bool(np.isin(keys, known).any()) or any(record.name in names for record in records)


@cache
def golden_keys(path: Path) -> tuple[Keys, frozenset[str]]:
    """What the series of a golden set are known by: the keys of their values, and their sensors' names.

    Names, since a golden set may hold thinned series, whose values are others'.

    Raises:
        GdshError: it holds something else than ChatTS records with series.
    """
    keys, names = [NO_KEYS], set()
    for index, fields in enumerate(read_records(path)):
        try:
            record = read_chatts(fields, path, index)
        except ValueError as error:  # GdshError or SeriesError
            raise GdshError(f"{path}: record {index}: {error}") from error
        keys += map(series_keys, record.values)
        names |= {record.name} - {""}
    return np.unique(np.concatenate(keys)), frozenset(names)


def _windows(
    anomalies: list[Anomaly], length: int, options: Options, counts: Counter[str]
) -> list[tuple[int, int, list[Anomaly]]]:
    """The windows to be written, (start, stop, anomalies) each; the whole series where none are asked for."""
    if options.window is None:
        return [(0, length, anomalies)]
    spans = lay_windows(length, options.window, options.stride or options.window)
    cut = [(start, stop, cut_anomalies(anomalies, start, stop)) for start, stop in spans]
    normal = [place for place, (_, _, inside) in enumerate(cut) if not inside]
    kept = set(choose_normal(normal, options.normal_windows))
    counts["windows"] += len(cut)
    counts["normal_left_out"] += len(normal) - len(kept)
    return [window for place, window in enumerate(cut) if window[2] or place in kept]


def _write(
    sample: Sample,
    series: list[Floats],
    origin: Origin,
    options: Options,
    texts: frozenset[str],
    tally: Tally,
) -> Line:
    """Thin a sample where asked for, and write it; `origin` is that of its points."""
    anomalies, rows = sample.anomalies, None
    if options.max_points is not None:
        rows = choose_rows(series, options.max_points)
    if rows is not None:
        series, origin = [values[rows] for values in series], origin.at(rows)
        anomalies, unseen = thin_anomalies(anomalies, rows)
        tally.counts["thinned"] += 1
        tally.counts["without_point"] += unseen
    text = sample.text
    if text is None:
        once = without_equals(anomalies)
        tally.counts["became_equal"] += len(anomalies) - len(once)
        anomalies, text = once, write_answer(once, compact=options.compact_answers)
    record = sample.record
    if options.max_answer_chars is not None and len(text) > options.max_answer_chars:
        named = {"file": record.file, "record": record.index, "picture": show_pictures(record.pictures)}
        window = {} if options.window is None else {"window": [int(origin.rows[0]), int(origin.rows[-1])]}
        tally.too_long.append({**named, **window, "characters": len(text)})
    tally.counts["intervals"] += len(anomalies)
    tally.types.update(anomaly.type for anomaly in anomalies)
    tally.prompts[sample.prompt, record.system or ""] += 1
    tally.interval_lengths.update(anomaly.end - anomaly.start + 1 for anomaly in anomalies)
    tally.series_lengths.update(map(len, series))
    return Line(
        chatts=chatts_line(sample, text, series, origin, texts) if options.out else b"",
        gdsh=gdsh_line(record, sample.prompt, text) if options.annotations else b"",
        keys=NO_KEYS,
        types=tuple(anomaly.type for anomaly in anomalies),
    )


def chatts_line(sample: Sample, answer: str, series: Sequence[Floats], origin: Origin, texts: frozenset[str]) -> bytes:
    """Write a ChatTS record; numbers are floats in their shortest form that reads back to the same.

    Args:
        sample: with one marker in its prompt for each series.
        answer: JSON text.
        series: each of shape (rows,), finite.
        origin: of the points.
        texts: further columns of texts, `SYSTEM` or `ROUND`: all records of a file must have the same.
    """
    record: dict[str, object] = dict(zip(CHATTS_COLUMNS.values(), (sample.prompt, answer, list(series)), strict=True))
    if SYSTEM in texts:
        record[SYSTEM] = sample.record.system
    record |= dict.fromkeys(texts - {SYSTEM}, "")
    record |= {NAME: sample.record.name, **origin.as_columns(), **sample.record.others}
    try:
        line: bytes = orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY)
    except (TypeError, ValueError):  # half a character in a file's name, or numbers beyond 64 bits in other columns
        record[CHATTS_COLUMNS["timeseries"]] = [one.tolist() for one in series]
        line = json.dumps(record).encode()
    return line


def gdsh_line(record: Record, prompt: str, answer: str) -> bytes:
    """Write an annotation record; the markers of its prompt become places of pictures again."""
    turns = [("user", prompt.replace(MARKER, IMAGE)), ("assistant", answer)]
    if record.system:
        turns.insert(0, (SYSTEM, record.system))
    messages = [{"from": role, "value": text} for role, text in turns]
    image = record.images[0] if len(record.images) == 1 else list(record.images)
    line: bytes = orjson.dumps({"image": image, "conversations": messages, **record.others})
    return line
