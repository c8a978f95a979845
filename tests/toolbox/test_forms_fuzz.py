"""Files and answers in every form that is known, drawn by chance: read rightly by each reader, or refused.

What must come out is stated here from what was drawn, not read back by the package.
"""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_importing import at, run

from llamafactory_ext.data.formats.chatts import refuse_processed
from llamafactory_ext.errors import GdshError
from llamafactory_ext.gdsh import NORMAL_TYPES, TableOptions, parse_answer, read_labels, read_series
from llamafactory_ext.gdsh.readings import UNREADABLE, read_answer
from llamafactory_ext.series import SeriesError


# --- tables ---

NOTATIONS: dict[str, Callable[[float], str]] = {
    "plain": lambda number: f"{number:.4f}",
    "exponent": lambda number: f"{number:.12e}",
    "thousands": lambda number: f"{number:,.4f}",
    "decimal comma": lambda number: f"{number:.4f}".replace(".", ","),
    "both swapped": lambda number: f"{number:,.4f}".translate(str.maketrans(",.", ".,")),
    "minus": lambda number: f"{number:.4f}".replace("-", "−"),
    "brackets": lambda number: f"({-number:.4f})" if number < 0 else f"{number:.4f}",
    "unit": lambda number: f"{number:.4f} t/h",
}
MISSING = ["", "Bad", "#N/A", "NULL", "1.#QNAN"]
QUALITIES = [("Good", "Bad"), ("192", "0"), ("好", "坏")]
NO_NUMBERS = ["5o0", "12.5.6", "1,2,3.4", "2025-01-01", "0x1F", "7_000"]


@dataclass
class Table:
    """One table, and what it says."""

    data: bytes
    values: list[float]
    """NaN where a cell is missing."""
    bad: list[bool]
    """Where its column of qualities says that a value is not good."""
    quality: str | None
    tags: int


@st.composite
def tables(draw: st.DrawFn, spoilt: bool = False) -> Table:
    numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda number: round(number, 3) + 0.0)
    values = draw(st.lists(numbers, min_size=3, max_size=12))
    write = NOTATIONS[draw(st.sampled_from(list(NOTATIONS)))]
    cells, shown = [write(value) for value in values], list(values)
    gaps = draw(st.sets(st.integers(0, len(values) - 1), max_size=2))
    for row in gaps:
        cells[row], shown[row] = draw(st.sampled_from(MISSING)), float("nan")
    if spoilt:
        cells[draw(st.sampled_from([row for row in range(len(values)) if row not in gaps]))] = draw(
            st.sampled_from(NO_NUMBERS)
        )
    words = draw(st.none() | st.sampled_from(QUALITIES))
    bad = [words is not None and draw(st.booleans()) for _ in values]
    tags = draw(st.integers(0, 2))
    columns: dict[str, list[str]] = {"时间": [at(row) for row in range(len(values))]}
    if tags:
        columns["tag"] = [f"T{row % tags}" for row in range(len(values))]
    columns["value"] = cells
    if words is not None:
        columns["quality"] = [words[one] for one in bad]
    separator, text = draw(st.sampled_from([",", ";", "\t"])), io.StringIO(newline="")
    line_end = draw(st.sampled_from(["\n", "\r\n"]))
    if separator == ";" and draw(st.booleans()):
        text.write(f"sep=;{line_end}")
    lines = csv.writer(text, delimiter=separator, lineterminator=line_end)
    lines.writerow(columns)
    if draw(st.booleans()):
        lines.writerow({"value": "t/h"}.get(name, "") for name in columns)
    lines.writerows(zip(*columns.values(), strict=True))
    if draw(st.booleans()):
        lines.writerow({"时间": "合计", "value": "0"}.get(name, "") for name in columns)
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "gb18030", "utf-16"]))
    data = text.getvalue().replace("−", "-" if encoding == "gb18030" else "−").encode(encoding)
    return Table(data, shown, bad, None if words is None else "quality", tags)


def filled(values: list[float]) -> list[float]:
    """As `numpy.interp` fills the gaps."""
    numbers = np.array(values)
    known = np.isfinite(numbers)
    rows = np.arange(len(numbers))
    found: list[float] = np.interp(rows, rows[known], numbers[known]).tolist()
    return found


def hidden(table: Table, used: bool) -> list[float]:
    return [float("nan") if used and bad else value for value, bad in zip(table.values, table.bad, strict=True)]


@settings(max_examples=200)
@given(table=tables(), used=st.booleans())
def test_a_table_in_any_form_is_read_or_refused(
    table: Table, used: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("forms") / "a.csv"
    path.write_bytes(table.data)
    options = TableOptions(quality_column=table.quality if used else None)
    wanted = hidden(table, used and table.quality is not None)
    if table.tags > 1:
        with pytest.raises(GdshError, match="several series in one table: the column 'tag' holds"):
            read_series(str(path), options)
    elif not np.isfinite(wanted).any():
        with pytest.raises(GdshError, match="no finite number"):
            read_series(str(path), options)
    else:
        series = read_series(str(path), options)
        assert series.gaps.tolist() == np.flatnonzero(np.isnan(wanted)).tolist()
        assert series.values.tolist() == filled(wanted)


@settings(max_examples=60)
@given(table=tables(spoilt=True))
def test_a_cell_that_is_no_number_is_never_filled_in(table: Table, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("forms") / "a.csv"
    path.write_bytes(table.data)
    with pytest.raises(GdshError, match=r"can't be read|several series in one table"):
        read_series(str(path))


@settings(max_examples=60)  # files are written and read
@given(table=tables())
def test_import_reads_a_table_as_training_does(table: Table, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One series of each tag; cells and times come through as they were."""
    folder = tmp_path_factory.mktemp("forms")
    (folder / "in").mkdir()
    (folder / "in" / "A.csv").write_bytes(table.data)
    several = table.tags > 1
    wanted = {
        name: table.values[start :: 2 if several else 1]
        for start, name in enumerate(("T0", "T1") if several else ("A",))
    }
    status = run(folder / "in", "--labels", "none", "--out", folder / "out")
    if not np.isfinite(table.values).any():
        assert status in (0, 1)
        return
    assert status == 0
    found = {path.stem: path for path in (folder / "out").glob("timeseries/*/*.csv")}
    assert found.keys() == wanted.keys()
    for name, path in found.items():
        if np.isfinite(wanted[name]).any():
            series = read_series(str(path))
            assert series.values.tolist() == filled(wanted[name])
        with path.open(encoding="utf-8") as file:
            times = [row["time"] for row in csv.DictReader(file)]
        assert times == [at(row) for row in range(len(table.values))][list(wanted).index(name) :: len(wanted)]


# --- answers ---

KEYS: list[Callable[[Any, Any], dict[str, Any]]] = [
    lambda start, end: {"interval": [start, end]},
    lambda start, end: {"start": start, "end": end},
    lambda start, end: {"start_index": start, "end_index": end},
    lambda start, end: {"range": [start, end]},
    lambda start, end: {"Interval": [start, end]},
    lambda start, end: {"segments": [{"start": start, "end": end}]},
    lambda start, end: {"interval": {"from": start, "to": end}},
    lambda start, end: {"异常区间": [[start, end]]},
]
DIALECTS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "object": lambda entries: json.dumps({"status": "success", "detected_anomalies": entries}, ensure_ascii=False),
    "list": lambda entries: json.dumps(entries, ensure_ascii=False, indent=1),
    "Python": str,
    "Python object": lambda entries: str({"status": "success", "detected_anomalies": entries}),
    "joined": lambda entries: ", ".join(json.dumps({"status": "success", "anomalies": [one]}) for one in entries),
    "no text": lambda entries: entries,
}
normal = st.sampled_from(sorted(NORMAL_TYPES)).flatmap(
    lambda word: st.sampled_from([word, word.upper(), word.title(), f" {word}。", word.replace(" ", "_")])
)


@st.composite
def answers(draw: st.DrawFn, rows: bool = True) -> tuple[list[dict[str, Any]], set[tuple[Any, Any, str]], int]:
    """Entries; the intervals with their types that they mean; how many name the normal state."""
    entries, wanted, normals = [], set(), 0
    place = st.integers(0, 40) if rows else st.integers(0, 40).map(at)
    for _ in range(draw(st.integers(1, 5))):
        start, end = sorted((draw(place), draw(place)))
        match draw(st.integers(0, 4)):
            case 0:
                entry = {"type": draw(normal), **draw(st.sampled_from([{}, {"interval": [start, end]}]))}
                normals += 1
            case 1:
                entry = {"type": "全局属性", "reason": "rises until row 7"}
            case _:
                entry = {**draw(st.sampled_from(KEYS))(start, end), "type": draw(st.sampled_from(["点异常", "漂移"]))}
                wanted.add((start, end, str(entry["type"])))
        entries.append(entry)
    return entries, wanted, normals


def meant(anomalies: Any) -> set[tuple[Any, Any, str]]:
    return {(one.start, one.end, one.type) for one in anomalies}


@settings(max_examples=200)
@given(drawn=answers(), dialect=st.sampled_from(list(DIALECTS)))
def test_an_answer_means_the_same_to_every_reader(drawn: Any, dialect: str) -> None:
    """Training and prepare, evaluate, import."""
    entries, wanted, normals = drawn
    value = DIALECTS[dialect](entries)
    answer = parse_answer(value)
    assert {(start, end) for start, end in answer.intervals} == {(start, end) for start, end, _ in wanted}
    assert answer.normal == normals
    assert not any(word in answer.text for word in ("start_index", "segments", "range", "Interval"))
    imported, _, left_out = read_labels(value)
    assert (meant(imported), left_out) == (wanted, normals)
    if isinstance(value, str):
        reading = read_answer(value)
        assert (meant(reading.anomalies), reading.normal) == (wanted, normals)


@given(drawn=answers(rows=False), dialect=st.sampled_from(list(DIALECTS)))
def test_an_answer_with_times_is_for_import_alone(drawn: Any, dialect: str) -> None:
    entries, wanted, normals = drawn
    value = DIALECTS[dialect](entries)
    imported, _, left_out = read_labels(value)
    assert (meant(imported), left_out) == (wanted, normals)
    if wanted:
        with pytest.raises(GdshError, match="expected"):
            parse_answer(value)


@given(drawn=answers(), dialect=st.sampled_from(list(DIALECTS)), key=st.sampled_from(["at", "pos", "位置", "rows"]))
def test_a_place_under_an_unknown_key_is_never_nothing(drawn: Any, dialect: str, key: str) -> None:
    value = DIALECTS[dialect]([*drawn[0], {"type": "点异常", key: [3, 7]}])
    for read in (parse_answer, read_labels):
        with pytest.raises(GdshError, match="an entry has no interval, but"):
            read(value)
    if isinstance(value, str):
        assert read_answer(value).form == UNREADABLE


# --- series that are scaled already ---


@given(
    values=st.lists(st.floats(-3, 3, allow_nan=False), min_size=8, max_size=40),
    told=st.sampled_from(["", "[Value Offset: 1|Value Scaling: 2]", "[offset=1|scaling=2|length=9]"]),
)
def test_a_scaled_series_is_refused(values: list[float], told: str) -> None:
    """As a processor gives it, value and mask in turn, or with a prompt that says so; the measured one is read."""
    assume(values[1::2].count(1) < 4)
    measured = np.array(values)
    refuse_processed("<ts><ts/> ?", "input", [measured])
    if told:
        with pytest.raises(SeriesError, match="a processor has scaled this series and said so"):
            refuse_processed(f"{told}<ts><ts/> ?", "input", [measured])
    if len(set(values)) > 2:
        with pytest.raises(SeriesError, match="scaled values and their mask"):
            refuse_processed("<ts><ts/> ?", "input", [np.stack([measured, np.ones(len(values))], 1).ravel()])
