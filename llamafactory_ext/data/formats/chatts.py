"""Format ``chatts``: a prompt, a response and one or several series of any length in each record."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamafactory_ext.errors import GdshError, excerpt, listing
from llamafactory_ext.gdsh import normal_types, parse_answer, read_anomalies
from llamafactory_ext.gdsh.records import read_records
from llamafactory_ext.series import MARKER, FloatArray, SeriesError, as_series, refuse_encoded, scale

from .format import Format, Notes, note_answer


# What the published processor writes of a series: its own words, or ours.
_TOLD = re.compile(r"\[Value Offset|\[offset=[^|\]]+\|scaling=", re.IGNORECASE)


NAME, ROWS, TIME = "name", "rows", "time"
"""Columns of records that `prepare` wrote: the sensor, which rows of its series the points are (`original_rows`), and
when they were measured: `start` of row 0 and `step`, or `axis`, the time of each point. Not trained on."""


def original_rows(rows: Any, points: int) -> npt.NDArray[np.int64]:
    """Returns which row of the sensor's series each of a record's points is, shape (points,), from 0.

    Arguments:
        rows: column ``rows``: one number, that of the first point, where the others follow it row by row; else one for
            each point.

    Raises:
        GdshError: neither of the two, or numbers that do not grow.
    """
    if isinstance(rows, (list, tuple)) and all(type(row) is int and 0 <= row < 1 << 62 for row in rows):
        if len(rows) == 1:
            return np.arange(rows[0], rows[0] + points, dtype=np.int64)
        found = np.array(rows, dtype=np.int64)
        if len(found) == points and (np.diff(found) > 0).all():
            return found
    raise GdshError(
        f"found {excerpt(rows)} in {ROWS!r}; expected the row of the first point, [0], or growing ones for all of the "
        f"{points} points: correct it, or name the column otherwise if it means something else"
    )


def shorten_rows(rows: npt.NDArray[np.int64]) -> list[int]:
    """Returns the shortest form that :func:`original_rows` reads."""
    found: list[int] = rows.tolist()
    return found[:1] if found[-1] - found[0] == len(found) - 1 else found


def check_entry(entry: Mapping[str, Any], name: str) -> None:
    """Refuses a ranking that does not name its answers."""
    if entry.get("ranking") and not {"chosen", "rejected"} <= entry.get("columns", {}).keys():
        raise ValueError(f"dataset_info.json: {name} has `ranking`; name its columns `chosen` and `rejected`.")


def lines(attr: Any, source: Path, folder: Path) -> Iterator[str]:
    """Yields the records of a ChatTS file: the columns that the entry names, every series a list of floats.

    Raises:
        ValueError: at the end, names all records that Arrow could not put beside the others; or, at once, no JSON.
    """
    faults, count = [], 0
    for number, record in enumerate(read_records(source)):
        count += 1
        try:
            yield _line(attr, record)
        except GdshError as err:
            faults.append(f"record {number}: {err}")
    if faults:
        said = [f"{source}: {len(faults)} of {count} records can't be used.", *listing(faults, len(faults))]
        raise ValueError("\n".join(said))


def _line(attr: Any, record: Any) -> str:
    if not isinstance(record, dict):
        raise GdshError(f"found {excerpt(record)}; expected a JSON object: correct or remove it")
    texts = {attr.prompt, attr.query, attr.response, attr.system, attr.tools}
    if isinstance(record.get(NAME), str):
        texts |= {NAME}
    named = texts | {attr.history, attr.chosen, attr.rejected, attr.kto_tag, attr.images, attr.videos, attr.audios}
    kept = {key: value for key, value in record.items() if key in named}
    for key, value in kept.items():
        if key in texts and not isinstance(value, str | None):
            raise GdshError(f"found {excerpt(value)} in {key!r}; expected text")
    line = json.dumps({**kept, attr.timeseries: as_floats(record.get(attr.timeseries))}, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError as err:
        raise GdshError(f"found half a character: {excerpt(line, err.start)}; correct it") from err
    return line


def as_floats(series: Any) -> list[list[float | None]] | None:
    """Returns the series of one record, as JSON holds them, as lists of floats; raises GdshError for anything else."""
    if series is None:
        return None
    if isinstance(series, list):
        series = series if not series or isinstance(series[0], list) else [series]
        if all(isinstance(one, list) and all(isinstance(v, int | float | None) for v in one) for one in series):
            return [[_float(v) for v in one] for one in series]
    raise GdshError(f"found {excerpt(series)} for series; expected lists of numbers: [[0.5, 1, 2.25]]")


def _float(number: int | float | None) -> float | None:
    try:
        return None if number is None else float(number)
    except OverflowError:
        return float("inf")  # which is refused with the other numbers that are not finite


def read(record: dict[str, Any], attr: Any, notes: Notes) -> tuple[dict[str, Any], list[FloatArray]]:
    """Checks the columns that the entry names, reads the series, and writes answers about anomalies as JSON."""
    if getattr(attr, "unlabelled", False) and not attr.ranking and not record.get(attr.response):
        record = {**record, attr.response: ""}
    _check_columns(record, attr)
    series = as_series_list(record[attr.timeseries])
    refuse_processed(record[attr.prompt], attr.prompt, series)
    if attr.ranking or not attr.response:
        return record, series
    if attr.kto_tag is None and not record[attr.response].strip() and not getattr(attr, "unlabelled", False):
        raise SeriesError(f"found no text in {attr.response!r}; expected the answer that is to be learned: add it")
    return {**record, attr.response: _settle(record[attr.response], attr, notes)}, series


def refuse_processed(prompt: str, column: str, series: list[FloatArray]) -> None:
    """Refuses series that have been through a processor, by their numbers or by a prompt that tells their scaling.

    Raises:
        SeriesError: names the series (from 0), or the prompt's column.
    """
    for number, one in enumerate(series):
        try:
            refuse_encoded(one)
        except SeriesError as err:
            raise SeriesError(f"series {number}: {err}") from err
    told = _TOLD.search(prompt) if series else None
    if told:
        raise SeriesError(
            f"found {told[0]!r} in {column!r}: a processor has scaled this series and said so; expected the "
            f"series as it was measured, and {MARKER} alone: the scaling is told when the template is applied"
        )


def _settle(text: str, attr: Any, notes: Notes) -> str:
    """Returns an answer about anomalies as JSON, without the normal state; any other text as it is."""
    if text.lstrip()[:1] not in ("{", "["):
        return text
    try:
        answer = parse_answer(text, normal_types(getattr(attr, "normal_types", ())))
        anomalies, _ = read_anomalies(answer.text)
    except GdshError:
        return text
    lists = "detected_anomalies" in text or (text.lstrip()[0] == "[" and all(one.type for one in anomalies))
    if not answer.rewritten or not (lists or answer.normal or (answer.intervals and not answer.was_json)):
        return text
    note_answer(answer, notes)
    return answer.text


def check(converted: dict[str, Any], record: dict[str, Any], attr: Any, series: list[FloatArray]) -> None:
    """Refuses texts with another number of markers than there are series."""
    texts = [message["content"] for message in converted["_prompt"] + converted["_response"]]
    if any("<ts>" in text.replace(MARKER, "") or "<ts/>" in text.replace(MARKER, "") for text in texts):
        raise SeriesError(f"found a single <ts> or <ts/>; expected {MARKER}, once for each series")
    markers = sum(text.count(MARKER) for text in texts)
    if markers != len(series):
        raise SeriesError(
            f"found {markers} {MARKER} in {attr.prompt!r} and {len(series)} series; "
            "expected one marker for each series"
        )


def _check_columns(example: dict[str, Any], attr: Any) -> None:
    answers = [attr.chosen, attr.rejected] if attr.ranking else [attr.response]
    texts = [name for name in (attr.prompt, *answers) if name]
    missing = [name for name in (*texts, attr.kto_tag, attr.system, attr.timeseries) if name and name not in example]
    if missing:
        raise SeriesError(f"found no column {missing[0]!r}, only {list(example)}; name yours under `columns`")
    for name in texts:
        if not isinstance(example[name], str):
            raise SeriesError(f"found {example[name]!r:.80} in {name!r}; expected text")
    if attr.kto_tag and not isinstance(example[attr.kto_tag], bool):  # upstream would take it for an untagged one
        raise SeriesError(f"found {example[attr.kto_tag]!r:.80} in {attr.kto_tag!r}; expected true or false")
    # Upstream tells a bad answer by its place, and an empty one by none.
    if attr.kto_tag and not example[attr.response]:
        raise SeriesError(f"found no text in {attr.response!r}; stage `kto` needs an answer to like or dislike")


def as_series_list(values: Any) -> list[FloatArray]:
    """Returns the series of one record; a flat list of numbers counts as one series, None and [] as none.

    Raises:
        SeriesError: names the series (from 0) that can't be used.
    """
    if values is None or len(values) == 0:
        return []
    if not isinstance(values[0], (list, tuple)):
        values = [values]
    series = []
    for number, one in enumerate(values):
        try:
            series.append(as_series(one))
            scale(series[-1])
        except SeriesError as err:
            raise SeriesError(f"series {number}: {err}") from err
    return series


FORMAT = Format(
    name="chatts",
    upstream="alpaca",
    columns={"prompt": "input", "response": "output", "timeseries": "timeseries"},
    record=NAME,
    as_it_is=True,
    check_entry=check_entry,
    lines=lines,
    read=read,
    check=check,
)
