"""`prepare FILE.jsonl`: ChatTS records in, the same form out; and what every record says of where it comes from."""

import json
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_prepare import (
    check_accounts,
    entry,
    intervals_of,
    leftovers,
    read_lines,
    record,
    reply,
    run_tool,
    write_data,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory_ext.data.formats.chatts import original_rows, shorten_rows
from llamafactory_ext.errors import GdshError, UsageError
from llamafactory_ext.toolbox.prepare import Options, PrepareError, prepare


def line(answer: Any, *series: Sequence[float], **more: Any) -> dict[str, Any]:
    return {"input": "<ts><ts/>" * len(series) + "\n找异常", "output": answer, "timeseries": list(series), **more}


def write(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in records) + "\n", encoding="utf-8")
    return path


def test_python_literals_become_json_and_the_rest_stays(tmp_path: Path) -> None:
    """Records as teams write them for ChatTS: several objects of Python's, joined by commas."""
    series = [place / 7 for place in range(90)]
    literals = "{'interval': [74, 78], 'type': '竖直尖峰'}, {'interval': [3, 3], 'type': '阶跃突变'}"
    records = [
        line(literals, series, system="专家", round=2),
        line(reply(entry(0, 89)), series[::-1], round=3),
        line([entry(1, 2)], [*series, 1], [*series, 2], round=3),
        line("{'interval': [5, 6], 'type': 'a'}", series, round=1) | {"input": "哪里异常？"},
    ]
    done = run_tool(write(tmp_path / "in.jsonl", records), "--out", "out.jsonl", "--report", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    check_accounts(report)
    assert (report["answers"]["rewritten"], report["prompts"]["markers_added"]) == (3, 1)
    found = read_lines(tmp_path / "out.jsonl")
    assert [intervals_of(one["output"]) for one in found] == [[(3, 3), (74, 78)], [(0, 89)], [(1, 2)], [(5, 6)]]
    assert [one["timeseries"] for one in found] == [one["timeseries"] for one in records]
    assert [one["round"] for one in found] == [2, 3, 3, 1]
    assert [one["rows"] for one in found] == [[0]] * 4
    assert [one["system"] for one in found] == ["专家", "", "", ""]
    assert found[3]["input"] == "<ts><ts/>\n哪里异常？"
    # What was written is read again, and comes out the same; so does the same as a JSON list.
    prepare(Options(tmp_path / "out.jsonl", out=tmp_path / "again.jsonl"))
    assert read_lines(tmp_path / "again.jsonl") == found
    (tmp_path / "list.json").write_text(json.dumps(records), encoding="utf-8")
    prepare(Options(json=(tmp_path / "list.json",), out=tmp_path / "again.jsonl"))
    assert read_lines(tmp_path / "again.jsonl") == found


def test_the_golden_set_is_not_trained_on(tmp_path: Path) -> None:
    """By values, whole or in part; by name, since the golden set's may be thinned; and it is said how many."""
    rng = np.random.default_rng(0)
    a, b, c, d = (np.cumsum(rng.normal(size=300)).round(3).tolist() for _ in range(4))
    write(tmp_path / "golden.jsonl", [line(reply(), a, name="A"), line(reply(), b[::3], name="B")])
    records = [
        line(reply(entry(0, 1)), a[100:], name="A, another export"),
        line(reply(entry(0, 1)), b, name="B"),
        line(reply(entry(0, 1)), c, name="C"),
        line(reply(entry(0, 1)), [*d, *d], name="A and more"),
    ]
    write(tmp_path / "in.jsonl", records)
    words = ("--golden", "golden.jsonl", "--out", "out.jsonl", "--report", "r.json")
    done = run_tool(tmp_path / "in.jsonl", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [one["name"] for one in read_lines(tmp_path / "out.jsonl")] == ["C", "A and more"]
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    check_accounts(report)
    assert report["records"]["dropped"] == {"series of the golden set": 2}
    assert "series of the golden set" in done.stdout
    (tmp_path / "golden.jsonl").write_text('{"input": "<ts><ts/>"}\n', encoding="utf-8")
    done = run_tool(tmp_path / "in.jsonl", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert "golden.jsonl: record 0: the record has no 'output'" in " ".join(done.stderr.split())


def test_a_round_of_corrections_stays_with_its_records(tmp_path: Path) -> None:
    data = tmp_path / "data"
    values = [[float(place % (5 + which)) for place in range(40)] for which in range(2)]
    records = [record("A", reply(entry(0, 1))), record("B", reply(entry(2, 3)))]
    write_data(data, {"plant": [records[0] | {"round": "2"}, records[1]]}, {"A": values[0], "B": values[1]})
    prepare(Options(data, out=tmp_path / "o.jsonl", annotations=tmp_path / "a.json"))
    assert [one["round"] for one in read_lines(tmp_path / "o.jsonl")] == ["2", ""]
    again = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert [one.get("round") for one in again] == ["2", None]


def test_overlapping_windows_stay_on_one_side(tmp_path: Path) -> None:
    """Windows of 256 points each 64 rows, without names: neighbours share most values, the ends of a series none."""
    rng = np.random.default_rng(0)
    records, sensors = [], []
    for sensor in range(8):
        whole = np.cumsum(rng.normal(size=1024)).round(3)
        for start in range(0, 769, 64):
            records.append(line(reply(entry(0, 1, "ab"[sensor % 2])), whole[start : start + 256].tolist()))
            sensors.append(sensor)
    order = rng.permutation(len(records)).tolist()
    write(tmp_path / "in.jsonl", [records[place] for place in order])
    report = prepare(Options(tmp_path / "in.jsonl", out=tmp_path / "o.jsonl", split=0.25, seed=1))
    assert report["split"]["groups"] == 8
    assert report["split"]["types"] == {kind: {"training": 39, "validation": 13} for kind in "ab"}
    sensor_of = {tuple(records[place]["timeseries"][0]): sensors[place] for place in order}
    sides = [
        {sensor_of[tuple(one["timeseries"][0])] for one in read_lines(tmp_path / name)}
        for name in ("o.jsonl", "o_val.jsonl")
    ]
    assert not sides[0] & sides[1] and len(sides[1]) == 2


def test_windows_of_one_name_stay_on_one_side(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    records = [line(reply(), rng.normal(size=9).tolist(), name=f"s{place % 3}") for place in range(12)]
    report = prepare(Options(write(tmp_path / "in.jsonl", records), out=tmp_path / "o.jsonl", split=0.4))
    assert report["split"]["groups"] == 3
    assert len({one["name"] for one in read_lines(tmp_path / "o_val.jsonl")}) == 1


def test_equal_series_merge(tmp_path: Path) -> None:
    records = [line(reply(entry(1, 1)), [1, 2, 3], name="a"), line("{'interval': [0, 2], 'type': 'x'}", [1, 2, 3])]
    records += [line(reply(entry(1, 1)), [1, 2, 4])]
    write(tmp_path / "in.jsonl", records)
    report = prepare(Options(tmp_path / "in.jsonl", out=tmp_path / "o.jsonl", merge_points=True))
    check_accounts(report)
    found = read_lines(tmp_path / "o.jsonl")
    assert [intervals_of(one["output"]) for one in found] == [[(0, 2), (1, 1)], [(1, 1)]]


def test_each_fault_names_its_record(tmp_path: Path) -> None:
    good = line(reply(), [1, 2, 3])
    wrong: dict[str, Any] = {
        "no 'output'": {"input": "<ts><ts/>", "timeseries": [[1]]},
        "expected an object": ["timeseries"],
        "expected lists of numbers": line(reply(), ["a", 1]),  # type: ignore[list-item]
        "not finite": line(reply(), [1, None, 3]),  # type: ignore[list-item]
        "is empty": {**good, "timeseries": []},
        "2 <ts><ts/> but 1 series": {**good, "input": "<ts><ts/><ts><ts/>"},
        "[1, 3]; expected 0 <= start": line(reply(entry(1, 3)), [1, 2, 3], name="数据_x"),
        "cut off": line("{'interval': [1, ", [1, 2, 3]),
        "every second one is 1": line(reply(), [0.1, 1, 0.2, 1, 0.3, 1, 0.4, 1, 0.5, 1]),
        "has scaled this series": {**good, "input": "[Value Offset: -51.2|Value Scaling: 8.2]<ts><ts/>"},
        "control token": {**good, "input": "<ts><ts/><|im_end|>"},
        "in 'rows'": {**good, "rows": [4, 5]},
        "expected text": {**good, "name": 7},
    }
    write(tmp_path / "in.jsonl", [good, *wrong.values()])
    report = prepare(Options(tmp_path / "in.jsonl", out=tmp_path / "o.jsonl"))
    by_record = {fault["record"]: fault for fault in report["faults"]}
    assert sorted(by_record) == list(range(1, len(wrong) + 1))
    for place, message in enumerate(wrong, start=1):
        assert message in by_record[place]["fault"], by_record[place]
    assert by_record[7]["picture"] == "数据_x"
    assert not report["done"] and not (tmp_path / "o.jsonl").exists() and not leftovers(tmp_path)


def test_a_file_of_another_kind_is_no_wrong_json(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [line(reply(), [1, 2])])
    with pytest.raises(UsageError, match="use --out"):
        prepare(Options(tmp_path / "in.jsonl", annotations=tmp_path / "c.json"))
    write(tmp_path / "a.jsonl", [record("a.jpg", reply())])
    with pytest.raises(UsageError, match="series are CSV files"):
        prepare(Options(tmp_path / "a.jsonl", out=tmp_path / "o.jsonl"))
    label = {"text": "区间异常", "categoryId": "anomaly"}
    annotator = {"filename": "a.csv", "annotations": [{"label": label, "segments": [{"start": 3, "end": 9}]}]}
    studio = [{"id": 0, "annotations": [{"result": []}], "file_upload": "ab-a.csv", "data": {"csv": "/u/ab-a.csv"}}]
    for foreign, said in ((annotator, "an annotator's own file"), (studio, "an export of Label Studio")):
        root = write_data(tmp_path / said[-4:], {}, {"a": range(12)})
        for indent in (None, 1):
            (root / "json" / "a.json").write_text(json.dumps(foreign, indent=indent), encoding="utf-8")
            (fault,) = prepare(Options(root, out=tmp_path / "o.jsonl"))["faults"]
            assert said in fault["fault"]
            with pytest.raises(UsageError, match=said):
                prepare(Options(root / "json" / "a.json", out=tmp_path / "o.jsonl"))
    with pytest.raises(UsageError, match="would be overwritten"):
        prepare(Options(tmp_path / "in.jsonl", out=tmp_path / "in.jsonl"))
    with pytest.raises(PrepareError, match="no records"):
        write_data(tmp_path, {"x": []}, {})
        prepare(Options(tmp_path, out=tmp_path / "o.jsonl"))


def write_times(path: Path, values: Sequence[float], even: bool, rng: np.random.Generator) -> list[datetime]:
    """Write a CSV whose rows are 90 s apart, or at random times; gives the times."""
    steps = np.full(len(values), 90) if even else rng.integers(1, 5000, size=len(values))
    times = [datetime(2025, 2, 27, 23, 50) + timedelta(seconds=int(after)) for after in np.cumsum(steps)]
    rows = [f"{time:%Y-%m-%d %H:%M:%S},{value}" for time, value in zip(times, values, strict=True)]
    path.write_text("\n".join(["时间,value", *rows]) + "\n", encoding="gb18030")
    return times


def moments(one: dict[str, Any], points: int) -> list[datetime]:
    """When the points of a record were measured, by its columns."""
    time = one["time"]
    if "axis" in time:
        return [datetime.fromisoformat(text) for text in time["axis"]]
    rows = original_rows(one["rows"], points).tolist()
    return [datetime.fromisoformat(time["start"]) + timedelta(seconds=time["step"] * row) for row in rows]


@pytest.mark.parametrize(
    ("header", "cells", "time"),
    [
        ("ts,value", ["a", "b", "c"], None),
        ("date,value", ["2025/01/01", "2025/01/02", "2025/01/03"], ("2025/01/01", 86400.0)),
        ("date,value", ["2025-01-01", "2025-01-01", "2025-01-01"], None),
        ("date,value", ["2025−01−01", "2025−01−02", "2025−01−03"], ("2025-01-01", 86400.0)),
        ("ts,value", ["7", "9", "11"], ("7", 2.0)),
        ("timestamp,value", ["1735689600000", "1735689605000", "1735689610000"], ("1735689600000", 5000.0)),
        ("date,value", ["5.1.2025", "6.1.2025", "7.1.2025"], ["5.1.2025", "6.1.2025", "7.1.2025"]),
        ("time,value", ["2025-01-01", "", "2025-01-03"], None),
        ("time,value", ["0:00:01", "0:00:02", "0:00:03"], ["0:00:01", "0:00:02", "0:00:03"]),
    ],
)
def test_the_time_column_is_told_as_it_is(tmp_path: Path, header: str, cells: list[str], time: Any) -> None:
    root = write_data(tmp_path, {"gdsh": [record("a.jpg", reply())]}, {"a": range(3)})
    rows = [header, *(f"{cell},{place}" for place, cell in enumerate(cells))]
    (root / "timeseries" / "gdsh" / "a.csv").write_text("\n".join(rows), encoding="utf-8")
    prepare(Options(root, out=root / "o.jsonl"))
    (found,) = read_lines(root / "o.jsonl")
    wanted = {"start": time[0], "step": time[1]} if isinstance(time, tuple) else {"axis": time}
    assert found.get("time") == (None if time is None else wanted)


MINUTES = [f"2025-03-01 08:{minute:02d}:00" for minute in range(4)]
EVEN = {"start": MINUTES[0], "step": 60.0}


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.csv", "采集时间;PV\n" + "".join(f"{at};{place},5\n" for place, at in enumerate(MINUTES)), {}),
        ("a.csv", "Date Time\tvalue\n" + "".join(f"{at}\t{place}\n" for place, at in enumerate(MINUTES)), {}),
        ("a.csv", "sep=;\ntime;value\n" + "".join(f"{at};{place}\n" for place, at in enumerate(MINUTES)), {}),
        ("a.csv", "time,value\n" + "".join(f'"{at}","{place},000.5"\n' for place, at in enumerate(MINUTES)), {}),
        ("a.csv", "time,value\n,℃\n" + "".join(f"{at},{place}\n" for place, at in enumerate(MINUTES)), {}),
        ("a.csv", "time,value\n" + "".join(f"{at},{place}\n" for place, at in enumerate(MINUTES)) + "合计,6\n", {}),
        (
            "a.csv",
            "time,SP,PV\n" + "".join(f"{at},1,{place}\n" for place, at in enumerate(MINUTES)),
            {"value_column": "PV"},
        ),
    ],
    ids=["semicolon", "tab", "sep", "quotes", "units", "totals", "value_column"],
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030", "utf-16"])
def test_times_of_every_dialect(
    tmp_path: Path, name: str, content: str, options: dict[str, Any], encoding: str
) -> None:
    root = write_data(tmp_path, {"gdsh": [record("a.jpg", reply())]}, {"a": range(4)})
    (root / "timeseries" / "gdsh" / name).write_text(content, encoding=encoding)
    prepare(Options(root, out=root / "o.jsonl", **options))
    (found,) = read_lines(root / "o.jsonl")
    assert (len(found["timeseries"][0]), found["time"]) == (4, EVEN)


def test_times_of_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    root = write_data(tmp_path, {"gdsh": [record("a.jpg", reply())]}, {})
    folder = root / "timeseries" / "gdsh"
    folder.mkdir(parents=True, exist_ok=True)
    times = [datetime.fromisoformat(at) for at in MINUTES]
    parquet.write_table(pa.table({"time": times, "value": [1.5, 2.5, 0.5, 1.0]}), folder / "a.parquet")
    prepare(Options(root, out=root / "o.jsonl"))
    (found,) = read_lines(root / "o.jsonl")
    assert found["timeseries"] == [[1.5, 2.5, 0.5, 1.0]]
    assert datetime.fromisoformat(found["time"]["start"]) == times[0] and found["time"]["step"] == 60.0


def test_a_single_record_is_a_list_of_one(tmp_path: Path) -> None:
    root = write_data(tmp_path, {}, {"a": range(12)})
    for one in (record("a.jpg", reply(entry(3, 4))), line(reply(entry(3, 4)), list(map(float, range(12))), name="a")):
        for indent in (None, 1):
            (root / "json" / "a.json").write_text(json.dumps(one, indent=indent) + "\n\n", encoding="utf-8")
            prepare(Options(root, out=root / "o.jsonl"))
            (found,) = read_lines(root / "o.jsonl")
            assert (found["timeseries"], intervals_of(found["output"])) == ([[*range(12)]], [(3, 4)])
    (root / "json" / "a.json").write_text('{\n"image": "a.jpg",\n"conversations": [}]\n}', encoding="utf-8")
    (fault,) = prepare(Options(root, out=root / "o.jsonl"))["faults"]
    assert "line 3, column" in fault["fault"]
    (root / "json" / "a.json").write_text('{\n"image": "a.jpg"}\n{\n"image": "b.jpg"}', encoding="utf-8")
    (fault,) = prepare(Options(root, out=root / "o.jsonl"))["faults"]
    assert "line 3, column 1 (Extra data)" in fault["fault"]


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 120),
    st.none() | st.integers(1, 50),
    st.none() | st.integers(8, 30),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_rows_and_times_lead_back_to_the_series(
    length: int, window: int | None, points: int | None, seed: int, even: bool
) -> None:
    """No value occurs twice, so that it tells where it was; a second run on what the first wrote maps back as far."""
    rng = np.random.default_rng(seed)
    values = rng.permutation(length).astype(float)
    place_of = {value: place for place, value in enumerate(values.tolist())}
    with tempfile.TemporaryDirectory() as name:
        root = write_data(
            Path(name), {"gdsh": [record("/x/TI_1.PV.jpg", reply())]}, {"数据集TI_1.PV": values.tolist()}
        )
        times = write_times(root / "timeseries" / "gdsh" / "数据集TI_1.PV.csv", values, even, rng)
        prepare(Options(root, out=root / "1.jsonl", window=window, max_points=points))
        prepare(Options(root / "1.jsonl", out=root / "2.jsonl", window=9, stride=4, max_points=8))
        for file in ("1.jsonl", "2.jsonl"):
            for one in read_lines(root / file):
                (found,) = one["timeseries"]
                assert one["name"] == "数据集TI_1.PV"
                places = [place_of[value] for value in found]
                assert original_rows(one["rows"], len(found)).tolist() == places
                if length > 1:
                    assert moments(one, len(found)) == [times[place] for place in places]


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=30, unique=True).map(sorted), st.booleans())
def test_rows_in_short_are_the_same_rows(rows: list[int], together: bool) -> None:
    rows = list(range(rows[0], rows[0] + len(rows))) if together else rows
    short = shorten_rows(np.array(rows, dtype=np.int64))
    assert original_rows(short, len(rows)).tolist() == rows
    assert len(short) == (1 if rows == list(range(rows[0], rows[0] + len(rows))) else len(rows))


@pytest.mark.parametrize("rows", [[], [1, 2], [1, 1, 2], [3, 2, 1], [-1], [0.0], [True], "0", None, 5, [1 << 70]])
def test_rows_that_lead_nowhere_are_refused(rows: Any) -> None:
    with pytest.raises(GdshError, match="'rows'"):
        original_rows(rows, 3)


def test_training_ignores_the_columns_and_names_the_sensor(tmp_path: Path, tokenise: Callable[..., Any]) -> None:
    values = np.random.default_rng(0).normal(size=(2, 40)).round(3).tolist()
    records = [record(f"{name}.jpg", reply(entry(1, 2))) for name in "ab"]
    root = write_data(tmp_path, {"gdsh": records}, dict(zip("ab", values, strict=True)))
    info, out = tmp_path / "info", tmp_path / "info" / "train.jsonl"
    prepare(Options(root, out=out, max_points=20, register=info / "dataset_info.json"))
    seen = tokenise(info, dataset="train")["train_dataset"]
    plain = [{key: one[key] for key in ("input", "output", "timeseries")} for one in read_lines(out)]
    write(info / "plain.jsonl", plain)
    entries = json.loads((info / "dataset_info.json").read_text(encoding="utf-8"))
    entries["plain"] = {**entries["train"], "file_name": "plain.jsonl"}
    (info / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")
    bare = tokenise(info, dataset="plain")["train_dataset"]
    assert [(row["input_ids"], row["labels"]) for row in seen] == [(row["input_ids"], row["labels"]) for row in bare]
    records = read_lines(out)
    records[1]["input"] = "no place"
    write(out, records)
    with pytest.raises(ValueError, match=r"record 1 \(b\): found 0 <ts><ts/>"):
        tokenise(info, dataset="train")
