"""What `import` meets besides plain labels and tables: the normal state, remarks, other keys, units, local signs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_importing import ROWS, at, pieces, region, run, studio, table, written  # noqa: F401
from test_importing_twice import report, said

from llamafactory_ext.gdsh import read_series
from llamafactory_ext.toolbox.importing.times import read_axis, read_times


def counted(out: Path) -> dict[str, int]:
    return {what: count for what, count in report(out)["counts"].items() if count}


FOUND = {"interval": [at(10), at(12)], "type": "点异常"}


def answered(folder: Path, *answers: str) -> Path:
    """A table and a GDSH record for each answer: A, B, …"""
    records = []
    for name, text in zip("ABCD", answers, strict=False):
        table(folder / f"{name}.csv")
        turns = [{"from": "user", "value": "<image>?"}, {"from": "assistant", "value": text}]
        records.append({"image": f"/x/{name}.jpg", "conversations": turns})
    (folder / "a.json").write_text(json.dumps(records, ensure_ascii=False), "utf-8")
    return folder


def success(*entries: dict[str, Any]) -> str:
    return json.dumps({"status": "success", "detected_anomalies": list(entries)}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("text", "left_out"),
    [
        (success(FOUND, {"type": "全局属性", "reason": "trend"}), "entries without interval"),
        (success(FOUND) + ', {"overall_attribute": {"trend": "up"}}', "entries without interval"),
        (success(FOUND, {"type": "无异常", "reason": "x"}), "entries of a normal state (无异常, normal, …)"),
        (success(FOUND, {"type": "Normal", "interval": [at(0), at(59)]}), "entries of a normal state"),
        (success({"type": "点异常", "start": at(10), "end": at(12)}), ""),
        (success({"type": "点异常", "Interval": [at(10), at(12)]}), ""),
        (success({"type": "点异常", "range": [10, 12]}), ""),
        (success({"type": "点异常", "segments": [{"start": at(10), "end": at(12)}]}), ""),
        (str([FOUND]), ""),
        (str(FOUND), ""),
    ],
)
def test_answers_with_times_are_read_as_all_others(text: str, left_out: str, tmp_path: Path) -> None:
    assert run(answered(tmp_path / "in", text), "--out", tmp_path / "out") == 0
    assert written(tmp_path / "out") == {"A": [[10, 12, "点异常"]]}
    counts = counted(tmp_path / "out")
    assert [what.removeprefix("left out: ").startswith(left_out) for what in counts] == ([True] if left_out else [])


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"type": "x", "at": at(3)}, "an entry has no interval, but '2025-01-01 00:03:00' under 'at'"),
        (
            {"type": "x", "interval": [at(3)]},
            "interval is ['2025-01-01 00:03:00'], expected [start, end]",
        ),
        ({"type": "x", "interval": [at(3), 5]}, "expected [start, end], two times or two rows; correct the interval"),
        ({"type": "x", "interval": [at(3), ""]}, "expected [start, end], two times or two rows; correct the interval"),
        ({"type": "x", "interval": [True, 5]}, "expected [start, end], two times or two rows; correct the interval"),
    ],
)
def test_a_place_that_is_not_understood_is_named(
    entry: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(answered(tmp_path / "in", success(entry)), "--out", tmp_path / "out") == 1
    heard = said(capsys)
    assert "a.json: record 0: " in heard and told in heard


def test_an_empty_answer_is_no_series_without_anomaly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody has looked at it; it is left out and named, as any series that the labels do not speak of."""
    folder = answered(tmp_path / "in", success(FOUND), "", success())
    assert run(folder, "--out", tmp_path / "out") == 0
    assert written(tmp_path / "out") == {"A": [[10, 12, "点异常"]], "C": []}
    assert report(tmp_path / "out")["unlabelled"] == ["B"]
    assert run(answered(tmp_path / "none", ""), "--out", tmp_path / "other") == 1
    assert "no series is left to write: the labels speak of none: --labels none writes" in said(capsys)


def normal_in_a_column(folder: Path) -> str:
    table(folder / "A.csv", kind=["点异常" if 10 <= row <= 12 else "正常" for row in range(ROWS)])
    return "column:kind"


def normal_in_windows(folder: Path) -> str:
    table(folder / "A.csv")
    (folder / "w.json").write_text(json.dumps({"A.csv": [[10, 12, "点异常"], [0, 59, "no anomaly"]]}), "utf-8")
    return "auto"


def normal_in_label_studio(folder: Path) -> str:
    table(folder / "A.csv")
    (folder / "e.json").write_text(json.dumps([studio("A.csv", region(10, 12), region(0, 59, "无异常"))]), "utf-8")
    return "auto"


def normal_by_the_annotator(folder: Path) -> str:
    table(folder / "A.csv")
    kinds = {"点异常": [10, 12], "无异常": [0, 59]}
    labels = [{"label": {"text": kind}, "segments": [{"start": a, "end": b}]} for kind, (a, b) in kinds.items()]
    (folder / "A.json").write_text(json.dumps({"filename": "A.csv", "annotations": labels}), "utf-8")
    return "auto"


NORMAL = [normal_in_a_column, normal_in_windows, normal_in_label_studio, normal_by_the_annotator]


@pytest.mark.parametrize("form", NORMAL, ids=lambda form: form.__name__)
def test_the_normal_state_is_no_label(form: Callable[[Path], str], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    spec = form(folder)
    assert run(folder, "--labels", spec, "--out", tmp_path / "out") == 0
    assert written(tmp_path / "out") == {"A": [[10, 12, "点异常"]]}
    found = report(tmp_path / "out")
    counts = counted(tmp_path / "out")
    runs = 2 if form is normal_in_a_column else 1
    assert counts == {"left out: entries of a normal state (无异常, normal, …)": runs}
    assert (found["intervals"], found["types"]) == (1, {"点异常": 1})
    (folder / "types.yaml").write_text("点异常: 正常状态\n", "utf-8")
    words = ("--labels", spec, "--type-map", folder / "types.yaml", "--out", tmp_path / "renamed")
    assert run(folder, *words) == 0
    assert written(tmp_path / "renamed") == {"A": []}


@pytest.mark.usefixtures("pieces")
def test_a_row_of_units_is_left_out_and_told(tmp_path: Path) -> None:
    path = table(tmp_path / "in" / "A.csv", flag=[int(10 <= row <= 12) for row in range(ROWS)])
    header, rest = path.read_text("utf-8").split("\n", 1)
    path.write_text(f"{header}\n,t/h,-\n{rest}", "utf-8")
    assert run(tmp_path / "in", "--labels", "column:flag", "--type", "点异常", "--out", tmp_path / "out") == 0
    assert written(tmp_path / "out") == {"A": [[10, 12, "点异常"]]}
    (csv,) = tmp_path.glob("out/timeseries/*/A.csv")
    assert len(read_series(csv).values) == ROWS
    assert counted(tmp_path / "out") == {"row of units below the header, left out": 1}


def test_rows_of_totals_are_left_out_and_told(tmp_path: Path) -> None:
    path = table(tmp_path / "in" / "A.csv")
    path.write_text(path.read_text("utf-8") + "合计,180\n平均值,3\n", "utf-8")
    rows = [(at(row // 2), ("FI", "Average temp")[row % 2], row) for row in range(8)]  # a tag is no total
    pd.DataFrame(rows, columns=["time", "tag", "value"]).to_csv(tmp_path / "in" / "b.csv", index=False)
    assert run(tmp_path / "in", "--labels", "none", "--out", tmp_path / "out") == 0
    found = {path.stem: len(read_series(path).values) for path in tmp_path.glob("out/timeseries/*/*.csv")}
    assert found == {"A": ROWS, "FI": 4, "Average temp": 4}
    assert counted(tmp_path / "out") == {"row of totals at the end, left out": 2}


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(
    ("cell", "told"),
    [
        (
            "yesterday",
            "has 'yesterday' in row 9; expected a time, as '2025-01-01 00:0",
        ),
        ("", "has an empty cell in row 9; expected a time"),
        ("2025-02-30 00:00:00", "has '2025-02-30 00:00:00' in row 9; expected a time"),
    ],
)
def test_a_cell_that_is_no_time_is_named(
    cell: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path / "in" / "A.csv")
    path.write_text(path.read_text("utf-8").replace(at(9), cell), "utf-8")
    assert run(tmp_path / "in", "--labels", "none", "--out", tmp_path / "out") == 1
    assert f"{path}: the column of times 'time' {told}" in said(capsys)


def test_a_number_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match=r"'t' has '5x' in row 12; expected a time, as '1' in another row"):
        read_times(pd.Series(["1", "2", "5x"], name="t"), first_row=10)
    with pytest.raises(ValueError, match=r"'t' has 'red' in row 0; expected a time: correct it"):
        read_times(pd.Series(["red", "green"], name="t"))


@pytest.mark.parametrize(
    "text", ["2025−01−13 08:30:00", "２０２５－０１－１３ ０８：３０：００", "13‐01‐2025 08:30:00"]
)
def test_times_with_the_signs_of_other_programs(text: str) -> None:
    axis = read_axis([text])
    assert axis is not None and axis.show(axis.values[0]) == "2025-01-13 08:30:00"


@pytest.mark.usefixtures("pieces")
def test_a_table_with_such_signs_keeps_its_cells(tmp_path: Path) -> None:
    path = table(tmp_path / "in" / "A.csv")
    path.write_text(path.read_text("utf-8").replace("-", "−"), "utf-8")
    (tmp_path / "in" / "w.json").write_text(json.dumps({"A.csv": [[at(10), at(12), "x"]]}), "utf-8")
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    assert written(tmp_path / "out") == {"A": [[10, 12, "x"]]}
    (csv,) = tmp_path.glob("out/timeseries/*/A.csv")
    assert pd.read_csv(csv)["time"][0] == at(0).replace("-", "−")
