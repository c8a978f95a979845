"""What comes twice in an import: exports of one sensor that overlap, and two exports of one series' labels.

Equal rows and labels are counted and told; where the two differ nothing is written, and the first difference is named.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_importing import at, region, run, studio, table, written

from llamafactory_ext.gdsh import read_series
from llamafactory_ext.toolbox.importing import large


def export(path: Path, first: int, last: int, other: dict[int, Any] | None = None, **more: Any) -> Path:
    """A historian's file of the rows from `first` to `last`, both counted; FI is a row's number, TI ten times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = range(first, last + 1)
    columns: dict[str, Any] = {"time": [at(row) for row in rows], "FI": [(other or {}).get(row, row) for row in rows]}
    pd.DataFrame({**columns, "TI": [10 * row for row in rows], **more}).to_csv(path, index=False)
    return path


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "import_report.json").read_text("utf-8"))
    return found


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@settings(deadline=None, max_examples=25)  # files are written and read
@given(
    bounds=st.lists(st.integers(0, 40), min_size=4, max_size=8).map(sorted),
    overlaps=st.lists(st.integers(0, 9), min_size=8, max_size=8),
    falling=st.booleans(),
    order=st.permutations(range(8)),
)
def test_exports_with_shared_rows_are_joined_by_time(
    bounds: list[int], overlaps: list[int], falling: bool, order: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However a run of rows is cut into files that share some, in whatever order they are named, all of it is back."""
    folder = tmp_path_factory.mktemp("months")
    parts = [(first, min(last + more, 50)) for first, last, more in zip(bounds, bounds[1:], overlaps, strict=False)]
    for name, (first, last) in zip(order, parts, strict=False):
        path = export(folder / "in" / f"{name}.csv", first, last)
        if falling:
            pd.read_csv(path)[::-1].to_csv(path, index=False)
    assert run(folder / "in", "--labels", "none", "--join", "--out", folder / "out") == 0
    rows = sorted({row for first, last in parts for row in range(first, last + 1)})
    for name, factor in (("FI", 1), ("TI", 10)):
        (path,) = folder.glob(f"out/timeseries/*/{name}.csv")
        assert read_series(path).values.tolist() == [factor * row for row in rows]
        assert pd.read_csv(path)["time"].tolist() == [at(row) for row in rows]
    again = sum(last - first + 1 for first, last in parts) - len(rows)
    counts = report(folder / "out")["counts"]
    assert counts["series joined of several files"] == 2
    assert counts["rows that two of them have, taken once"] == 2 * again


def test_without_being_told_nothing_is_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = export(tmp_path / "in" / "01.csv", 0, 9), export(tmp_path / "in" / "02.csv", 9, 20)
    assert run(tmp_path / "in", "--labels", "none", "--out", tmp_path / "out") == 1
    told = said(capsys)
    assert f"the series 'FI' is in {one} and in {two}; expected every name once" in told
    assert "join exports of one sensor with --join" in told and "'TI'" in told
    assert not (tmp_path / "out").exists()


def spoil(path: Path, row: int) -> None:
    frame = pd.read_csv(path)
    frame.drop(index=row).to_csv(path, index=False)


def later(path: Path) -> None:
    frame = pd.read_csv(path)
    frame["time"] = [time.replace(":00", ":30") if time.endswith(":00") else time for time in frame["time"]]
    frame.to_csv(path, index=False)


DIFFER: dict[str, tuple[Callable[[Path], object], str]] = {
    "another value": (
        lambda path: export(path, 7, 12, {8: -1}),
        "row 1 of {two} has '-1' at 2025-01-01 00:08:00, but row 8 of {one} has '8' at 2025-01-01 00:08:00",
    ),
    "a row less": (
        lambda path: spoil(export(path, 7, 12), 1),
        "row 1 of {two} has '9' at 2025-01-01 00:09:00, but row 8 of {one} has '8' at 2025-01-01 00:08:00",
    ),
    "a row less at the end": (
        lambda path: spoil(export(path, 7, 10), 2),
        "{two} has no further row up to there (the last is 1, 2025-01-01 00:08:00), but row 9 of {one} has '9'",
    ),
    "times between": (
        lambda path: later(export(path, 7, 12)),
        "row 0 of {two} has '7' at 2025-01-01 00:07:30, but row 8 of {one} has '8' at 2025-01-01 00:08:00",
    ),
    "no times": (
        lambda path: export(path, 7, 12) and pd.read_csv(path).drop(columns="time").to_csv(path, index=False),
        "series 'FI' is in several files and has no column of times to join them by; name it with --time-column",
    ),
    "times of another kind": (
        lambda path: export(path, 7, 12, time=[1735689600 + 60 * row for row in range(7, 13)]),
        "series 'FI': its times are read by 'numbers, 1,000,000,000 ns each, since 1970-01-01 UTC', those of {one} by",
    ),
    "times that turn": (
        lambda path: export(path, 7, 12, time=[at(row) for row in (7, 8, 9, 8, 9, 10)]),
        "series 'FI': time runs back and forth: row 3 has 2025-01-01 00:08:00 after 2025-01-01 00:09:00",
    ),
}


@pytest.mark.parametrize("case", DIFFER)
def test_exports_that_differ_where_they_overlap_are_refused(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, told = DIFFER[case]
    one, two = export(tmp_path / "in" / "a.csv", 0, 9), tmp_path / "in" / "b.csv"
    make(two)
    assert run(tmp_path / "in", "--labels", "none", "--join", "--out", tmp_path / "out") == 1
    assert told.format(one=one, two=two) in said(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_labels_of_joined_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column of labels is joined as values are; times are placed on the whole; rows of one file can't be."""
    folder = tmp_path / "in"
    for name, first, last in (("a", 0, 9), ("b", 9, 20)):
        path = export(folder / name / "FI.csv", first, last)
        flags = [int(8 <= row <= 11) for row in range(first, last + 1)]
        pd.read_csv(path).drop(columns="TI").assign(label=flags).to_csv(path, index=False)
    words = ("--join",)
    assert run(folder, *words, "--out", tmp_path / "flags") == 0
    assert written(tmp_path / "flags") == {"FI": [[8, 11, "异常"]]}
    windows = tmp_path / "w.json"
    for content, status in ([[at(8), at(11)]], 0), ([[8, 11]], 1):
        windows.write_text(json.dumps({"FI": content}), "utf-8")
        out = tmp_path / f"windows{status}"
        assert run(folder, *words, "--labels", f"windows:{windows}", "--out", out) == status
    assert written(tmp_path / "windows0") == {"FI": [[8, 11, "异常"]]}
    assert "the label [8, 11] counts rows of one file, but the series was joined of 2; expected times" in said(capsys)
    path = folder / "b" / "FI.csv"
    pd.read_csv(path).assign(label=0).to_csv(path, index=False)
    assert run(folder, *words, "--out", tmp_path / "differ") == 1
    assert "has '9' at 2025-01-01 00:09:00, label '0', but row 9 of" in said(capsys)
    pd.read_csv(path).drop(columns="label").to_csv(path, index=False)
    assert run(folder, *words, "--out", tmp_path / "none") == 1
    assert "has no column of labels; expected one in both" in said(capsys)


def test_what_is_read_in_pieces_is_not_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(large, "LARGE", 0)
    export(tmp_path / "in" / "a.csv", 0, 9)
    export(tmp_path / "in" / "b.csv", 9, 20)
    assert run(tmp_path / "in", "--labels", "none", "--join", "--out", tmp_path / "out") == 1
    assert "join them before, since so large a file is read in pieces" in said(capsys)


def test_a_fault_of_one_series_is_none_of_the_others_in_its_file(tmp_path: Path) -> None:
    export(tmp_path / "in" / "a.csv", 0, 9, PI=range(10))
    labels = {"FI": [[1, 2]], "TI": [[8, 12]], "PI": [[3, 4]]}
    (tmp_path / "in" / "w.json").write_text(json.dumps(labels), "utf-8")
    assert run(tmp_path / "in", "--drop-faulty", "--out", tmp_path / "out") == 0
    assert written(tmp_path / "out") == {"FI": [[1, 2, "异常"]], "PI": [[3, 4, "异常"]]}
    (fault,) = report(tmp_path / "out")["faults"]
    assert "series 'TI': the label [8, 12] does not fit its 10 rows" in fault


# --- labels that come twice ---


def twice_in_windows(folder: Path, first: list[Any], second: list[Any]) -> None:
    (folder / "w.json").write_text(json.dumps({"real/A.csv": first, "old/A.csv": second}), "utf-8")


def twice_by_the_annotator(folder: Path, first: list[Any], second: list[Any]) -> None:
    for name, found in (("1", first), ("2", second)):
        segments = [{"start": start, "end": end} for start, end in found]
        label = {"label": {"text": "点异常"}, "segments": segments}
        (folder / f"{name}.json").write_text(json.dumps({"filename": "A.csv", "annotations": [label]}), "utf-8")


def twice_in_label_studio(folder: Path, first: list[Any], second: list[Any]) -> None:
    tasks = [
        studio(f"{upload}-A.csv", *(region(*one) for one in found)) | {"id": number}
        for number, (upload, found) in enumerate((("abcd1234", first), ("efab5678", second)))
    ]
    (folder / "e.json").write_text(json.dumps(tasks), "utf-8")


def twice_in_gdsh(folder: Path, first: list[Any], second: list[Any]) -> None:
    records = []
    for found in (first, second):
        entries = [{"interval": [at(row) for row in one], "type": "点异常"} for one in found]
        turns = [{"from": "user", "value": "<image>?"}, {"from": "assistant", "value": json.dumps(entries)}]
        records.append({"image": "/x/A.jpg", "conversations": turns})
    (folder / "a.json").write_text(json.dumps(records), "utf-8")


TWICE: dict[Callable[[Path, list[Any], list[Any]], None], str] = {
    twice_in_windows: "w.json: 'old/A.csv' labels 'A.csv' with [[20, 21, '']], and {folder}/w.json: 'real/A.csv' with "
    "nothing more; expected the labels of a series once",
    twice_by_the_annotator: "2.json labels 'A.csv' with [[20, 21, '点异常']], and {folder}/1.json with nothing more",
    twice_in_label_studio: "e.json: task 1 labels 'A.csv' with [['2025-01-01 00:20:00', '2025-01-01 00:21:00', "
    "'点异常']], and {folder}/e.json: task 0 with nothing more",
    twice_in_gdsh: "a.json: record 1: it labels 'A' with [['2025-01-01 00:20:00', '2025-01-01 00:21:00', '点异常']], "
    "and record 0 with nothing more; expected",
}


@pytest.mark.parametrize("form", TWICE, ids=lambda form: form.__name__)
def test_labels_of_one_series_that_come_twice(
    form: Callable[[Path, list[Any], list[Any]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same in another order is told; any other is a fault, where both were merged without a word."""
    folder = tmp_path / "in"
    table(folder / "A.csv")
    form(folder, [[5, 6], [10, 12]], [[10, 12], [5, 6]])
    assert run(folder, "--out", tmp_path / "same", "--type", "点异常") == 0
    assert written(tmp_path / "same") == {"A": [[5, 6, "点异常"], [10, 12, "点异常"]]}
    counts = report(tmp_path / "same")["counts"]
    assert [count for what, count in counts.items() if "given again" in what] == [1], counts
    form(folder, [[5, 6], [10, 12]], [[10, 12], [5, 6], [20, 21]])
    assert run(folder, "--out", tmp_path / "other") == 1
    assert TWICE[form].format(folder=folder) in said(capsys)
    assert not (tmp_path / "other").exists()


def test_everybodys_labels_are_taken_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    table(folder / "A.csv")
    twice_in_label_studio(folder, [[5, 6]], [[10, 12]])
    assert run(folder, "--annotator", "all", "--out", tmp_path / "out") == 0
    assert written(tmp_path / "out") == {"A": [[5, 6, "点异常"], [10, 12, "点异常"]]}
