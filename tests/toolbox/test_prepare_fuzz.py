"""Thousands of spoilt data sets: each gives a clear fault or a right result, checked against a second reading.

The second reading shares no code with the package: json, csv, ast and float of the standard library.
"""

import ast
import copy
import csv
import io
import json
import math
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_prepare import check_accounts, entry, leftovers, read_lines, record, reply, write_csv

from llamafactory_ext.errors import UsageError
from llamafactory_ext.gdsh import Series, TableOptions, read_series
from llamafactory_ext.toolbox.prepare import Options, PrepareError, prepare


RUNS = int(os.environ.get("PREPARE_MUTATIONS", "10000"))
PARTS = 10

Interval = tuple[int, int]

ROWS = 12
NAMES = ("AT_1.PV", "NB.TE_2.PV", "zh_3.OUT")
RECORDS = [
    record("/home/x/AT_1.PV.jpg", reply(entry(0, 3, "阶跃上升"), entry(5, 5))),
    record("D:\\图\\NB.TE_2.PV.JPG", f"{reply(entry(2, 9))},{reply({'type': '全局属性', 'reason': '无'})}"),
    record("/home/x/AT_1.PV.jpg", str([entry(4, 8), entry(11, 11, "下行尖峰")])),
    record("zh_3.OUT.jpg", [entry(1, 2, "震荡区间")]),
]
ODD_VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    12,
    1.5,
    10**30,
    "",
    "x",
    "<image>",
    [],
    {},
    [[]],
    [1, 2],
    "\ud800",
    "[1, 2]",
    "无异常",
    {"start": 1, "end": 2},
]
ODD_CELLS = [
    "",
    "Bad",
    "nan",
    "inf",
    "1e400",
    "-0",
    "1_0",
    "１２",
    " 7 ",
    '"3"',
    '"',
    "1,2",
    "\0",
    "0x10",
    "é",
    "-",
    "1e5",
    "1 000.5",
    "−3",
    "(3)",
    "5 mg",
]
MODES: list[dict[str, Any]] = [
    {},
    {"merge_points": True, "compact_answers": True},
    {"window": 5},
    {"max_points": 8, "merge_points": True},
    {"drop_faulty": True},
    {"allow_filled_labels": True},
    {"drop_faulty": True, "merge_points": True, "split": 0.5},
]


def replace_node(rng: random.Random, tree: Any) -> Any:
    """Put something odd in a random place of a tree, or take that place away, or have it twice."""
    path: list[tuple[Any, Any]] = []
    node = tree
    while isinstance(node, (dict, list)) and node and (not path or rng.random() < 0.8):
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        path.append((node, key))
        node = node[key]
    if not path:
        return tree
    parent, key = path[-1]
    match rng.randrange(4):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, list):
            parent.insert(key, parent[key])
        case 2 if isinstance(parent, dict):
            parent[rng.choice(["interval", "type", "value", "x", "range", "start"])] = parent.pop(key)
        case _:
            parent[key] = copy.deepcopy(rng.choice(ODD_VALUES))  # they are spoilt in turn
    return tree


def spoil_records(rng: random.Random) -> bytes:
    """Spoil the annotations' structure: records, turns, and what their answers hold."""
    records = json.loads(json.dumps(RECORDS))
    for _ in range(rng.randint(1, 2)):
        if rng.random() < 0.5:
            records = replace_node(rng, records)
            continue
        turns = list(answers_in(records))
        if turns:
            entries = [entry(rng.randrange(-1, 13), rng.randrange(-1, 13)) for _ in range(rng.randint(0, 3))]
            spoilt = replace_node(rng, {"status": "success", "detected_anomalies": entries})
            rng.choice(turns)["value"] = rng.choice([json.dumps(spoilt), str(spoilt), spoilt])
    text = json.dumps(records, ensure_ascii=rng.random() < 0.5)
    return text.encode(rng.choice(["utf-8", "gb18030", "utf-8-sig"]), "backslashreplace")


def answers_in(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict) and tree.get("from") == "assistant":
        yield tree
    elif isinstance(tree, (dict, list)):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from answers_in(item)


def spoil_bytes(rng: random.Random, data: bytes) -> bytes:
    """Change, insert, drop, repeat or cut off a few bytes."""
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(data) + 1), rng.randint(1, 9)
        match rng.randrange(6):
            case 0:
                data = data[:at] + rng.randbytes(length % 3 + 1) + data[at + length % 3 + 1 :]
            case 1:
                data = data[:at] + rng.choice([b'"', b"[", b"}", b",", b"\n", b"\r", b"\\", b"\xff", b" "]) + data[at:]
            case 2:
                data = data[:at] + data[at + length :]
            case 3:
                data = data[:at] + data[max(0, at - length) :]
            case 4:
                data = data[:at]
            case _:
                data = data[:at] + bytes([rng.randrange(32, 127)]) + data[at + 1 :]
    return data


def spoil_table(rng: random.Random, data: bytes) -> bytes:
    """Spoil a CSV's structure: cells, rows, header."""
    lines = data.decode().rstrip("\n").split("\n")
    for _ in range(rng.randint(1, 3)):
        if not lines:
            break
        at = rng.randrange(len(lines))
        fields = lines[at].split(",")
        match rng.randrange(6):
            case 0 | 1:
                fields[-1] = rng.choice(ODD_CELLS)
                lines[at] = ",".join(fields)
            case 2:
                del lines[at]
            case 3:
                lines.insert(at, rng.choice(["", " ", lines[at], "1,2", ",,,", ",,,,"]))
            case 4:
                fields[rng.randrange(len(fields))] = rng.choice(["value", " value", "Value", "x", ""])
                lines[at] = ",".join(fields)
            case _:
                lines[at] = ",".join(fields[: rng.randint(0, len(fields))])
    end = rng.choice(["\n", "\r\n"])
    return (end.join(lines) + rng.choice(["", end])).encode(rng.choice(["utf-8", "utf-8-sig", "gb18030"]))


def decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("gb18030").removeprefix("\ufeff")


def second_values(data: bytes) -> list[float] | None:
    """The numbers of a CSV, NaN where there is none; None where quotes make two readings possible."""
    text = decode(data)
    if '"' in text:
        return None
    rows = [
        row for row in csv.reader(io.StringIO(text, newline="")) if row and not (len(row) == 1 and not row[0].strip())
    ]
    names = [name.strip() for name in rows[0]]
    if "value" not in names or len(names) == 1:
        return None  # another column may be taken; in a column alone a blank line is an empty cell
    if len(rows) > 1 and not re.search(r"\d", "".join(rows[1])):
        return None  # a second header, or units
    place = names.index("value")

    def number(row: list[str]) -> float:
        try:
            value = float(row[place])
        except (ValueError, IndexError):
            return math.nan
        return value if math.isfinite(value) and "_" not in row[place] else math.nan

    return [number(row) for row in rows[1:]]


def walk(value: Any) -> Iterator[Interval]:
    """Every interval in an answer, wherever it is an entry."""
    if isinstance(value, list):
        for item in value:
            yield from walk(item)
    elif isinstance(value, dict):
        value = {"".join(char for char in str(key).lower() if char.isalnum()): one for key, one in value.items()}
        if str(value.get("type")).strip() == "无异常":  # the normal state
            return
        if value.get("interval") is not None:
            start, end = value["interval"]
            yield int(start), int(end)
        elif {"start", "end"} <= value.keys():
            yield int(value["start"]), int(value["end"])
        elif isinstance(value.get("range"), list) and value["range"]:
            yield int(value["range"][0]), int(value["range"][1])
        yield from walk(value.get("detectedanomalies"))


def second_intervals(answer: Any) -> set[Interval] | None:
    """The intervals of an answer as a record holds it; None where this reading does not understand it."""
    if isinstance(answer, (list, dict)):
        return set(walk(answer))
    for read in (json.loads, ast.literal_eval):
        try:
            return set(walk(read(f"[{answer}]")))
        except (ValueError, SyntaxError, TypeError, MemoryError):
            continue
    return None


def same(written: list[float], wanted: list[float] | None) -> bool:
    if wanted is None:
        return True
    return len(written) == len(wanted) and all(
        math.isnan(value) or value == found for value, found in zip(wanted, written, strict=True)
    )


def clip(interval: Interval, start: int, stop: int) -> Interval | None:
    rows = [row - start for row in range(interval[0], interval[1] + 1) if start <= row < stop]
    return (rows[0], rows[-1]) if rows else None


class Checker:
    """What a finished run must have written, by the second reading."""

    def __init__(self, root: Path, mode: dict[str, Any], report: dict[str, Any]) -> None:
        self.mode, self.report = mode, report
        self.tables = {path.stem: path.read_bytes() for path in (root / "timeseries" / "gdsh").iterdir()}
        text = decode((root / "json" / "gdsh.json").read_bytes())
        if text.lstrip().startswith("["):
            records = json.loads(text)
        else:
            records = [json.loads(line) for line in text.split("\n") if line.strip()]
        faulty = {fault["record"] for fault in report["faults"]}
        self.records = [one for place, one in enumerate(records) if place not in faulty]
        assert len(records) == report["records"]["read"]

    def series(self, one: Any) -> list[list[float] | None]:
        pictures = one["image"] if isinstance(one["image"], list) else [one["image"]]
        stems = [re.sub(r"(?i)\.(jpg|jpeg|png)$", "", re.split(r"[\\/]", picture)[-1]) for picture in pictures]
        # A spoilt name may still be the ending of one CSV's: then only that reading knows which.
        return [second_values(self.tables[stem]) if stem in self.tables else None for stem in stems]

    def answer(self, one: Any) -> Any:
        (answer,) = [turn["value"] for turn in one["conversations"] if turn["from"] == "assistant"]
        return answer

    def check(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            found = list(walk(json.loads(line["output"])))
            longest = max(map(len, line["timeseries"]))
            assert all(0 <= start <= end < longest for start, end in found)
            assert line["input"].count("<ts><ts/>") == len(line["timeseries"])
            assert all(type(value) is float and math.isfinite(value) for one in line["timeseries"] for value in one)
        if "window" in self.mode:
            self.check_windows(lines)
        elif self.mode.get("merge_points"):
            self.check_merged(lines)
        else:
            self.check_plain(lines)

    def check_plain(self, lines: list[dict[str, Any]]) -> None:
        for one, line in zip(self.records, lines, strict=True):
            assert all(map(same, line["timeseries"], self.series(one))), one
            wanted = second_intervals(self.answer(one))
            assert wanted is None or set(walk(json.loads(line["output"]))) == wanted, one

    def check_windows(self, lines: list[dict[str, Any]]) -> None:
        place = 0
        for one in self.records:
            whole, wanted = self.series(one), second_intervals(self.answer(one))
            if len(whole) != 1 or whole[0] is None or wanted is None:
                return  # how many windows there are, this reading does not know
            length = len(whole[0])
            starts = [*range(0, max(length - 4, 1), 5)]
            if starts[-1] + 5 < length:
                starts.append(length - 5)
            for start in starts:
                (values,) = lines[place]["timeseries"]
                assert same(values, whole[0][start : start + 5]), one
                inside = {clip(interval, start, min(start + 5, length)) for interval in wanted} - {None}
                assert set(walk(json.loads(lines[place]["output"]))) == inside, one
                place += 1
        assert place == len(lines)

    def check_merged(self, lines: list[dict[str, Any]]) -> None:
        read = [(self.series(one), second_intervals(self.answer(one))) for one in self.records]
        if any(None in series or intervals is None for series, intervals in read):
            return
        thinned = "max_points" in self.mode and any(len(one or []) > 8 for series, _ in read for one in series)
        if thinned:
            for line in lines:
                assert any(
                    all(
                        self.drawn_from(found, one or [])
                        for found, one in zip(line["timeseries"], series, strict=False)
                    )
                    for series, _ in read
                )
            return
        for line in lines:
            alike = [intervals for series, intervals in read if self.matches(line, series)]
            assert alike
            assert set(walk(json.loads(line["output"]))) <= set().union(*filter(None, alike))
        for series, intervals in read:
            told = [set(walk(json.loads(line["output"]))) for line in lines if self.matches(line, series)]
            assert any((intervals or set()) <= one for one in told)

    @staticmethod
    def matches(line: dict[str, Any], series: list[list[float] | None]) -> bool:
        return len(line["timeseries"]) == len(series) and all(map(same, line["timeseries"], series))

    @staticmethod
    def drawn_from(found: list[float], whole: list[float]) -> bool:
        return len(found) <= len(whole) and (any(map(math.isnan, whole)) or set(found) <= set(whole))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the time out of thousands of runs: what waits for the disk, and reading unspoilt files again."""
    read: dict[tuple[str, bytes], Series] = {}

    def read_once(path: str, options: TableOptions) -> Series:
        key = (path, Path(path).read_bytes())
        if key not in read:
            read[key] = read_series(path, options)
        return read[key]

    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr("llamafactory_ext.toolbox.prepare.points.read_series", read_once)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("part", range(PARTS))
def test_spoilt_data_gives_a_fault_or_a_right_result(part: int, tmp_path: Path) -> None:
    whole = {tmp_path / "json" / "gdsh.json": json.dumps(RECORDS, ensure_ascii=False).encode()}
    for number, name in enumerate(NAMES):
        path = write_csv(
            tmp_path / "timeseries" / "gdsh" / f"{name}.csv", [number + place / 8 for place in range(ROWS)]
        )
        whole[path] = path.read_bytes()
    annotations, *tables = whole
    annotations.parent.mkdir()
    annotations.write_bytes(whole[annotations])
    seen = {"done": 0, "refused": 0}
    for number in range(part, RUNS, PARTS):
        rng = random.Random(number)
        spoilt = annotations if rng.random() < 0.5 else rng.choice(tables)
        if rng.random() < 0.5:
            data = spoil_bytes(rng, whole[spoilt])
        else:
            data = spoil_records(rng) if spoilt == annotations else spoil_table(rng, whole[spoilt])
        spoilt.write_bytes(data)
        try:
            seen[run_and_check(tmp_path, MODES[number // PARTS % len(MODES)])] += 1
        except Exception as error:
            raise AssertionError(f"mutation {number} of {spoilt.name}: {data!r}") from error
        spoilt.write_bytes(whole[spoilt])
    assert not leftovers(tmp_path)
    assert min(seen.values()) > RUNS / PARTS / 10, seen


def run_and_check(root: Path, mode: dict[str, Any]) -> str:
    """Prepare the spoilt data set: `done` with a right result, or `refused` with a reason."""
    out = root / "out" / "train.jsonl"
    try:
        report = prepare(Options(root, out=out, **mode))
    except PrepareError as error:
        assert len(str(error)) > 20
        return "refused"
    check_accounts(report)
    assert all(len(fault["fault"]) > 20 for fault in report["faults"])
    if not report["done"]:
        assert report["faults"] and not out.exists()
        return "refused"
    written = [path for path in (out, out.with_stem("train_val")) if path.exists()]
    lines = [line for path in written for line in read_lines(path)]
    assert len(lines) == report["records"]["written"] + report["records"]["validation"]
    Checker(root, mode, report).check(lines)
    for path in written:
        path.unlink()
    return "done"


CHATTS = [
    {
        "input": "<ts><ts/>\n找异常",
        "output": reply(entry(0, 3), entry(5, 5)),
        "timeseries": [[0.5, 1, 2, 3, 4, 5, 6, 7]],
    },
    {
        "input": "找异常",
        "output": "{'interval': [2, 4], 'type': 'x'}",
        "timeseries": [[9, -1.25, 3, 3, 3, 3]],
        "name": "a",
    },
    {"input": "<ts><ts/><ts><ts/>", "output": [entry(1, 2)], "timeseries": [[1, 2, 3], [4, 5, 6]], "rows": [7]},
]


@pytest.mark.usefixtures("quick")
def test_spoilt_chatts_records_give_a_fault_or_a_right_result(tmp_path: Path) -> None:
    whole = "\n".join(json.dumps(one, ensure_ascii=False) for one in CHATTS).encode()
    seen = {"done": 0, "refused": 0}
    for number in range(RUNS // PARTS):
        rng = random.Random(number)
        if rng.random() < 0.5:
            data = spoil_bytes(rng, whole)
        else:
            records = replace_node(rng, json.loads(json.dumps(CHATTS)))
            lines = records if isinstance(records, list) else [records]
            data = "\n".join(map(json.dumps, lines)).encode()
        (tmp_path / "in.jsonl").write_bytes(data)
        try:
            seen[check_chatts(tmp_path, data, drop=rng.random() < 0.5)] += 1
        except Exception as error:
            raise AssertionError(f"mutation {number}: {data!r}") from error
    assert not leftovers(tmp_path)
    assert min(seen.values()) > RUNS / PARTS / 10, seen


def check_chatts(root: Path, data: bytes, drop: bool) -> str:
    try:
        report = prepare(Options(root / "in.jsonl", out=root / "out.jsonl", drop_faulty=drop))
    except (PrepareError, UsageError) as error:
        assert len(str(error)) > 20
        return "refused"
    check_accounts(report)
    if not report["done"]:
        assert report["faults"]
        return "refused"
    faulty = {fault["record"] for fault in report["faults"]}
    given = [json.loads(line) for line in decode(data).split("\n") if line.strip()]
    kept = [one for place, one in enumerate(given) if place not in faulty]
    for one, line in zip(kept, read_lines(root / "out.jsonl"), strict=True):
        series = one["timeseries"] if isinstance(one["timeseries"][0], list) else [one["timeseries"]]
        assert line["timeseries"] == [list(map(float, values)) for values in series]
        asked = one["input"].replace("<image>", "<ts><ts/>")
        assert line["input"].removeprefix("<ts><ts/>\n") == asked.removeprefix("<ts><ts/>\n")
        wanted = second_intervals(one["output"])
        assert wanted is None or set(walk(json.loads(line["output"]))) == wanted
        assert {key: one[key] for key in one.keys() - FIELDS} == {key: line[key] for key in line.keys() - FIELDS}
    (root / "out.jsonl").unlink()
    return "done"


FIELDS = {"input", "output", "timeseries", "name", "rows", "time", "system"}
