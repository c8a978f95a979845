"""`llamafactory-ext import` and `labels`: the right rows from every form, there and back, and a line for every fault.

Rows are counted here anew, by looking every cell of the written CSV up, not by the code under test.
"""

import gzip
import json
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory_ext.errors import GdshError, UsageError
from llamafactory_ext.gdsh import read_series
from llamafactory_ext.toolbox.cli import import_, labels
from llamafactory_ext.toolbox.importing import large
from llamafactory_ext.toolbox.importing.labels import runs
from llamafactory_ext.toolbox.importing.times import read_axis


START = datetime(2025, 1, 1)
ROWS = 60


@pytest.fixture(params=["whole", "in pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tables are read whole, or as those of a gigabyte are, seven rows at a time."""
    if request.param != "whole":
        monkeypatch.setattr(large, "LARGE", 0)
        monkeypatch.setattr(large, "_PIECE", 7)
    return str(request.param)


def at(row: int) -> str:
    return (START + timedelta(minutes=row)).isoformat(sep=" ")


def table(path: Path, rows: int = ROWS, marked: tuple[int, int] = (10, 12), **more: Any) -> Path:
    """A CSV with times a minute apart; values are 100 inside of `marked`, else the row modulo 7."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [100.0 if marked[0] <= row <= marked[1] else float(row % 7) for row in range(rows)]
    pd.DataFrame({"time": [at(row) for row in range(rows)], "value": values, **more}).to_csv(path, index=False)
    return path


def run(*words: object) -> int:
    before, sys.argv = sys.argv, ["llamafactory-ext import", *map(str, words)]
    try:
        return import_.main()
    finally:
        sys.argv = before


def written(out: Path) -> dict[str, list[list[Any]]]:
    """Intervals and types by series, read plainly; and every marked row must hold 100 where the table was made so."""
    (file,) = (out / "json").glob("*.json")
    found = {}
    for record in json.loads(file.read_text("utf-8")):
        answer = record["conversations"][1]["value"]
        entries = json.loads(answer)["detected_anomalies"] if answer else None
        found[record["name"]] = entries and [[*entry["interval"], entry["type"]] for entry in entries]
    return found


def rows_of_peak(out: Path, name: str) -> tuple[int, int]:
    """First and last row of 100 in the written CSV."""
    (path,) = out.glob(f"timeseries/*/{name}.csv")
    values = read_series(path).values.tolist()
    peaks = [row for row, value in enumerate(values) if value == 100]
    return peaks[0], peaks[-1]


def studio(file: str, *regions: dict[str, Any], **more: Any) -> dict[str, Any]:
    results = [{"type": "timeserieslabels", "value": region} for region in regions]
    annotation = {"completed_by": 1, "result": results, "was_cancelled": False, **more}
    return {"id": 1, "annotations": [annotation], "data": {"csv": f"/data/upload/1/{file}"}}


def region(start: int, end: int, kind: str = "点异常") -> dict[str, Any]:
    return {"start": at(start), "end": at(end), "instant": start == end, "timeserieslabels": [kind]}


def studio_json(folder: Path) -> str:
    table(folder / "A.PV.csv")
    (folder / "export.json").write_text(json.dumps([studio("abcd1234-A.PV.csv", region(10, 12))]), "utf-8")
    return "auto"


def studio_min(folder: Path) -> str:
    table(folder / "A.PV.csv")
    task = {"id": 1, "csv": "/data/upload/1/abcd1234-A.PV.csv", "label": [region(10, 12)], "annotator": 1}
    (folder / "export.json").write_text(json.dumps([task]), "utf-8")
    return "auto"


def studio_csv(folder: Path) -> str:
    table(folder / "series" / "A.PV.csv")
    row = {"csv": "abcd1234-A.PV.csv", "label": json.dumps([region(10, 12)]), "annotator": "1"}
    pd.DataFrame([row]).to_csv(folder / "export.csv", index=False)
    return f"label-studio:{folder / 'export.csv'}"


def annotator(folder: Path) -> str:
    table(folder / "timeseries" / "A.PV.csv")
    label = {"label": {"text": "点异常"}, "segments": [{"start": 10, "end": 12, "count": 3}]}
    (folder / "A.PV.csv.json").write_text(json.dumps({"filename": "A.PV.csv", "annotations": [label]}), "utf-8")
    return "auto"


def windows_of_times(folder: Path) -> str:
    table(folder / "A.PV.csv")
    (folder / "w.json").write_text(json.dumps({"real/A.PV.csv": [[at(10), at(12), "点异常"]]}), "utf-8")
    return "auto"


def windows_of_rows(folder: Path) -> str:
    table(folder / "A.PV.csv")
    (folder / "w.json").write_text(json.dumps({"A.PV.csv": [[10, 12, "点异常"]]}), "utf-8")
    return f"windows:{folder / 'w.json'}"


def column_of_flags(folder: Path) -> str:
    table(folder / "A.PV.csv", is_anomaly=[int(10 <= row <= 12) for row in range(ROWS)])
    return "auto"


def column_of_types(folder: Path) -> str:
    table(folder / "A.PV.csv", kind=["点异常" if 10 <= row <= 12 else "" for row in range(ROWS)])
    return "column:kind"


def gdsh_times(folder: Path) -> str:
    table(folder / "A.PV.csv")
    entry = {"interval": [at(10), at(12)], "type": "点异常"}
    answer = json.dumps({"status": "success", "detected_anomalies": [entry]}, ensure_ascii=False)
    turns = [{"from": "user", "value": "<image>?"}, {"from": "assistant", "value": answer}]
    (folder / "a.json").write_text(json.dumps([{"image": "/x/A.PV.jpg", "conversations": turns}]), "utf-8")
    return "auto"


def descending(folder: Path) -> str:
    path = table(folder / "A.PV.csv")
    pd.read_csv(path)[::-1].to_csv(path, index=False)
    (folder / "w.json").write_text(json.dumps({"A.PV.csv": [[at(10), at(12), "点异常"]]}), "utf-8")
    return "auto"


def semicolons(folder: Path) -> str:
    path = table(folder / "A.PV.csv")
    pd.read_csv(path).to_csv(path, index=False, sep=";", encoding="utf-16")
    return windows_of_times_beside(folder)


def zipped(folder: Path) -> str:
    path = table(folder / "A.PV.csv")
    with gzip.open(folder / "A.PV.csv.gz", "wb") as file:
        file.write(path.read_bytes())
    path.unlink()
    return windows_of_times_beside(folder)


def parquet(folder: Path) -> str:
    path = table(folder / "A.PV.csv")
    pd.read_csv(path, parse_dates=["time"]).to_parquet(folder / "A.PV.parquet")
    path.unlink()
    return windows_of_times_beside(folder)


def epochs(folder: Path) -> str:
    path = table(folder / "A.PV.csv")
    frame = pd.read_csv(path)
    frame["time"] = [int((START - datetime(1970, 1, 1)).total_seconds()) * 1000 + 60_000 * row for row in range(ROWS)]
    frame.to_csv(path, index=False)
    bounds = [int(frame["time"][10]), int(frame["time"][12])]
    (folder / "w.json").write_text(json.dumps({"A.PV.csv": [[*map(str, bounds), "点异常"]]}), "utf-8")
    return "auto"


def windows_of_times_beside(folder: Path) -> str:
    (folder / "w.json").write_text(json.dumps({"A.PV": [[at(10), at(12), "点异常"]]}), "utf-8")
    return "auto"


FORMS = [
    studio_json, studio_min, studio_csv, annotator, windows_of_times, windows_of_rows, column_of_flags,
    column_of_types, gdsh_times, descending, semicolons, zipped, parquet, epochs,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.usefixtures("pieces")
def test_labels_are_on_the_rows_of_the_anomaly(form: Callable[[Path], str], tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    spec = form(source)
    where = source / "series" if form is studio_csv else source
    assert run(where, "--labels", spec, "--out", out, "--type", "点异常") == 0
    assert written(out) == {"A.PV": [[*rows_of_peak(out, "A.PV"), "点异常"]]}


@pytest.mark.usefixtures("pieces")
def test_ucr_counts_rows_from_one(tmp_path: Path) -> None:
    values = [100.0 if 40 <= row <= 44 else 0.0 for row in range(ROWS)]
    path = tmp_path / "in" / "001_UCR_Anomaly_Made_20_41_45.txt"
    path.parent.mkdir()
    path.write_text("\n".join(map(str, values)), "utf-8")
    assert run(path.parent, "--out", tmp_path / "out") == 0
    assert written(tmp_path / "out") == {path.stem: [[*rows_of_peak(tmp_path / "out", path.stem), "异常"]]}


@pytest.mark.usefixtures("pieces")
def test_a_column_a_sensor_and_a_long_table(tmp_path: Path) -> None:
    wide, long = tmp_path / "wide", tmp_path / "long"
    times = [at(row) for row in range(4)]
    wide.mkdir()
    long.mkdir()
    pd.DataFrame({"时间": times, "FI_1.PV": [1, 2, 3, 4], "TI_2.PV": [5, 6, 7, 8]}).to_csv(wide / "e.csv", index=False)
    rows = [(time, tag, value) for row, time in enumerate(times) for tag, value in (("FI_1", row), ("TI_2", 10 + row))]
    pd.DataFrame(rows, columns=["time", "tag", "value"]).to_csv(long / "e.csv", index=False)
    for source, wanted in ((wide, {"FI_1.PV": [1, 2, 3, 4], "TI_2.PV": [5, 6, 7, 8]}),
                           (long, {"FI_1": [0, 1, 2, 3], "TI_2": [10, 11, 12, 13]})):  # fmt: skip
        out = tmp_path / f"out_{source.name}"
        assert run(source, "--labels", "none", "--out", out) == 0
        found = {path.stem: read_series(path).values.tolist() for path in out.glob("timeseries/*/*.csv")}
        assert found == wanted
        assert written(out) == dict.fromkeys(wanted)


def test_series_that_nobody_labelled_are_left_out_and_those_without_anomaly_stay(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for name in "ABC":
        table(source / f"{name}.csv")
    (source / "w.json").write_text(json.dumps({"A.csv": [[10, 12]], "B.csv": []}), "utf-8")
    assert run(source, "--out", tmp_path / "out", "--type", "x") == 0
    assert written(tmp_path / "out") == {"A": [[10, 12, "x"]], "B": []}
    report = json.loads((tmp_path / "out" / "import_report.json").read_text("utf-8"))
    assert report["unlabelled"] == ["C"]
    assert (report["series"], report["intervals"], report["without_anomaly"]) == (2, 1, 1)


def test_a_bound_between_two_rows_is_taken_to_the_covering_rows(tmp_path: Path) -> None:
    source = tmp_path / "in"
    table(source / "A.csv")
    window = ["2025-01-01 00:09:30", "2025-01-01 00:12:30"]
    (source / "w.json").write_text(json.dumps({"A.csv": [window]}), "utf-8")
    assert run(source, "--out", tmp_path / "out") == 0
    assert written(tmp_path / "out") == {"A": [[9, 13, "异常"]]}
    report = json.loads((tmp_path / "out" / "import_report.json").read_text("utf-8"))
    assert report["counts"] == {"labels between two rows, taken to the covering rows": 1}


@pytest.mark.usefixtures("pieces")
def test_a_label_beside_an_hour_that_comes_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a clock set back leaves it; the label's own times come once."""
    (tmp_path / "in").mkdir()
    rows = [*range(12), *range(9, 20)]
    values = [100.0 if 4 <= place <= 20 else 0.0 for place in range(len(rows))]
    frame = pd.DataFrame({"time": [at(row) for row in rows], "value": values})
    frame.to_csv(tmp_path / "in" / "A.csv", index=False)
    (tmp_path / "in" / "w.json").write_text(json.dumps({"A.csv": [[at(4), at(17)]]}), "utf-8")
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    assert written(tmp_path / "out") == {"A": [[*rows_of_peak(tmp_path / "out", "A"), "异常"]]}
    assert "series whose time runs back and forth, but not" in " ".join(capsys.readouterr().out.split())


def test_types_are_renamed_and_intervals_grow(tmp_path: Path) -> None:
    source = tmp_path / "in"
    table(source / "A.csv")
    (source / "w.json").write_text(json.dumps({"A.csv": [[0, 2, "a"], [57, 59, "b"]]}), "utf-8")
    (tmp_path / "types.yaml").write_text("a: 点异常\n", "utf-8")
    words = ("--type-map", tmp_path / "types.yaml", "--widen", 2, "--round", "2")
    assert run(source, "--out", tmp_path / "out", *words) == 0
    assert written(tmp_path / "out") == {"A": [[0, 4, "点异常"], [55, 59, "b"]]}
    (file,) = (tmp_path / "out" / "json").glob("*.json")
    assert json.loads(file.read_text("utf-8"))[0]["round"] == "2"


def test_cancelled_annotations_and_other_annotators(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in"
    table(source / "A.csv")
    one, other, gone = (studio("A.csv", region(*rows))["annotations"][0] for rows in ((10, 12), (10, 14), (0, 1)))
    task = studio("A.csv") | {"annotations": [one, other | {"completed_by": 2}, gone | {"was_cancelled": True}]}
    (source / "e.json").write_text(json.dumps([task]), "utf-8")
    assert run(source, "--out", tmp_path / "none") == 1
    assert "labelled by several annotators (1, 2), e.g. A.csv" in " ".join(capsys.readouterr().err.split())
    assert run(source, "--out", tmp_path / "two", "--annotator", "2") == 0
    assert written(tmp_path / "two") == {"A": [[10, 14, "点异常"]]}
    assert run(source, "--out", tmp_path / "all", "--annotator", "all") == 0
    assert written(tmp_path / "all") == {"A": [[10, 12, "点异常"], [10, 14, "点异常"]]}
    report = json.loads((tmp_path / "all" / "import_report.json").read_text("utf-8"))
    assert report["agreement"] == {"1 and 2": 0.5}  # 2 of 4 minutes
    assert report["counts"]["left out: cancelled"] == 1


def test_only_what_was_approved(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for name in "AB":
        table(source / f"{name}.csv")
        label = {"label": {"text": "x"}, "segments": [{"start": 1, "end": 2}]}
        content = {"filename": f"{name}.csv", "annotations": [label], "approved": name == "A"}
        (source / f"{name}.json").write_text(json.dumps(content), "utf-8")
    assert run(source, "--out", tmp_path / "out", "--only-approved") == 0
    assert written(tmp_path / "out") == {"A": [[1, 2, "x"]]}


def with_window(folder: Path, window: list[Any]) -> None:
    table(folder / "A.csv")
    (folder / "w.json").write_text(json.dumps({"A.csv": [window]}), "utf-8")


def plain(path: Path, times: list[str]) -> None:
    pd.DataFrame({"time": times, "value": range(len(times))}).to_csv(path, index=False)


BAD: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "no time column": (
        lambda folder: (
            pd.DataFrame({"value": range(5)}).to_csv(folder / "A.csv", index=False),
            (folder / "w.json").write_text(json.dumps({"A.csv": [[at(1), at(2)]]})),
        ),
        (),
        "has no column of times; name it with --time-column",
    ),
    "label outside": (
        lambda folder: with_window(folder, [58, 60]),
        (),
        "the label [58, 60] does not fit its 60 rows",
    ),
    "time outside": (
        lambda folder: with_window(folder, [at(1), at(99)]),
        (),
        "lies outside of its series, which goes from 2025-01-01 00:00:00 to 2025-01-01 00:59:00",
    ),
    "two sensors of one name": (
        lambda folder: (table(folder / "a" / "A.csv"), table(folder / "b" / "A.csv")),
        ("--labels", "none"),
        "expected every name once",
    ),
    "another zone": (
        lambda folder: with_window(folder, ["2025-01-01T00:01:00+08:00", "2025-01-01T00:02:00+08:00"]),
        (),
        "names a time zone and the series' times do not; say with --timezone",
    ),
    "time turns": (
        lambda folder: plain(folder / "A.csv", [at(0), at(2), at(1)]),
        ("--labels", "none"),
        "time runs back and forth: row 2 has 2025-01-01 00:01:00 after 2025-01-01 00:02:00",
    ),
    "label where time turns": (
        lambda folder: (
            pd.DataFrame({"time": [at(row) for row in (0, 1, 2, 2, 1, 2, 3, 4, 5)], "value": 1}).to_csv(
                folder / "A.csv", index=False),
            (folder / "w.json").write_text(json.dumps({"A.csv": [[at(2), at(4)]]})),
        ),
        (),
        "begins or ends where time runs back and forth: row 4 has 2025-01-01 00:01:00 after 2025-01-01 00:02:00",
    ),
    "dates in two ways": (
        lambda folder: plain(folder / "A.csv", ["01/02/2025", "02/02/2025"]),
        ("--labels", "none"),
        "can be read in two ways; say which with --dates",
    ),
    "no series for a label": (
        lambda folder: (table(folder / "A.csv"), (folder / "w.json").write_text('{"A.csv": [], "B.csv": [[1, 2]]}')),
        (),
        "1 names in the labels have no series: B.csv",
    ),
    "two kinds of labels": (
        lambda folder: (
            table(folder / "A.csv", label=[0] * ROWS), (folder / "w.json").write_text('{"A.csv": [[1, 2]]}')),
        (),
        "labels can be read in 2 ways",
    ),
    "flags that are none": (
        lambda folder: table(folder / "A.csv", mark=[row % 3 for row in range(ROWS)]),
        ("--labels", "column:mark"),
        "the column of labels holds 2; expected 0 and 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_nothing_is_written(
    case: str, pieces: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words, said = BAD[case]
    source = tmp_path / "in"
    source.mkdir()
    make(source)
    assert run(source, "--out", tmp_path / "out", *words) in (1, 2)
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_tag_that_comes_late_is_no_row_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("LARGE", 0), ("_PIECE", 3), ("_LOOKED_AT", 4)):
        monkeypatch.setattr(large, name, value)
    rows = [(at(row % 5), "AB"[row // 5], row) for row in range(10)]
    (tmp_path / "in").mkdir()
    pd.DataFrame(rows, columns=["time", "tag", "value"]).to_csv(tmp_path / "in" / "e.csv", index=False)
    words = (tmp_path / "in", "--labels", "none", "--out", tmp_path / "out")
    assert run(*words) == 1
    assert "the column 'tag' has 'A' in its first rows and 'B' in row 5; if it names" in capsys.readouterr().err
    assert run(*words, "--tag-column", "tag") == 0
    found = {path.stem: read_series(path).values.tolist() for path in tmp_path.glob("out/timeseries/*/*.csv")}
    assert found == {"A": [0, 1, 2, 3, 4], "B": [5, 6, 7, 8, 9]}


@pytest.mark.usefixtures("pieces")
def test_a_tag_is_no_path(tmp_path: Path) -> None:
    rows = [(at(row), tag, row) for row in range(3) for tag in ("../../A", "B/C")]
    (tmp_path / "in").mkdir()
    pd.DataFrame(rows, columns=["time", "tag", "value"]).to_csv(tmp_path / "in" / "e.csv", index=False)
    assert run(tmp_path / "in", "--labels", "none", "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in tmp_path.rglob("*.csv")) == [".._.._A.csv", "B_C.csv", "e.csv"]


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    table(tmp_path / "in" / "A.csv")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    assert run(tmp_path / "in", "--labels", "none", "--out", tmp_path / "out") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


INTERVALS = st.lists(
    st.tuples(st.integers(0, ROWS - 1), st.integers(0, 9), st.sampled_from(["点异常", "漂移"])),
    max_size=6,
    unique=True,
).map(lambda found: sorted({(start, min(start + more, ROWS - 1), kind) for start, more, kind in found}))


def apart(found: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Those that neither overlap nor touch the one before: what a column can hold."""
    kept: list[tuple[int, int, str]] = []
    for one in found:
        if not kept or one[0] > kept[-1][1] + 1:
            kept.append(one)
    return kept


@settings(deadline=None, max_examples=40)  # files are written and read
@given(intervals=INTERVALS, form=st.sampled_from(["label-studio", "annotator", "windows", "column", "gdsh"]))
def test_there_and_back_again(
    intervals: list[tuple[int, int, str]], form: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("loop")
    table(folder / "in" / "A.csv")
    content = {"A.csv": [list(one) for one in (apart(intervals) if form == "column" else intervals)]}
    (folder / "w.json").write_text(json.dumps(content), "utf-8")
    assert run(folder / "in", "--labels", f"windows:{folder / 'w.json'}", "--out", folder / "one") == 0
    before, sys.argv = sys.argv, ["labels", str(folder / "one"), "--to", form, "--out", str(folder / "back")]
    try:
        assert labels.main() == 0
    finally:
        sys.argv = before
    if form == "label-studio":  # what a person then submits
        path = folder / "back" / "label_studio.json"
        tasks = json.loads(path.read_text("utf-8"))
        for task in tasks:
            task["annotations"] = [{"completed_by": 1, "result": one["result"]} for one in task.pop("predictions")]
        path.write_text(json.dumps(tasks), "utf-8")
    source = folder / "back" if form == "column" else folder / "one" / "timeseries"
    place = {"label-studio": "back/label_studio.json", "windows": "back/windows.json", "gdsh": "back/gdsh.json"}
    spec = "column:label" if form == "column" else f"{form}:{folder / place.get(form, 'back')}"
    assert run(source, "--labels", spec, "--out", folder / "two") == 0
    wanted = written(folder / "one")["A"]
    if form == "windows":  # which has no place for types
        wanted = [list(one) for one in dict.fromkeys((start, end, "异常") for start, end, _ in wanted)]
    assert written(folder / "two")["A"] == wanted
    values = [read_series(next(folder.glob(f"{out}/timeseries/*/A.csv"))).values.tolist() for out in ("one", "two")]
    assert values[0] == values[1]


def test_the_least_confident_are_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ABCDE":
        table(tmp_path / "in" / f"{name}.csv")
    assert run(tmp_path / "in", "--labels", "none", "--out", tmp_path / "pool") == 0
    rows = [("A", 1, 2, 0.9), ("A", 5, 5, 0.4), ("B", 1, 2, 0.8), ("C", "", "", 0.3), ("E", 3, 4, "")]
    found = pd.DataFrame(rows, columns=["series", "start", "end", "confidence"])
    found.to_csv(tmp_path / "found.csv", index=False)

    def chosen(count: int, *more: str) -> set[str]:
        out = tmp_path / f"{count}{''.join(more)}"
        words = [
            tmp_path / "pool",
            "--detections",
            tmp_path / "found.csv",
            "--choose",
            count,
            "--to",
            "windows",
            *more,
        ]
        sys.argv = ["labels", *map(str, words), "--out", str(out)]
        assert labels.main() == 0
        return {name.removesuffix(".csv") for name in json.loads((out / "windows.json").read_text("utf-8"))}

    assert [chosen(count) for count in (1, 2, 3)] == [{"C"}, {"C", "A"}, {"C", "A", "B"}]
    drawn = [chosen(2, "--random", str(seed)) for seed in range(6)]
    assert all(len(one) == 2 for one in drawn) and len({tuple(sorted(one)) for one in drawn}) > 2
    found.drop(columns="confidence").to_csv(tmp_path / "found.csv", index=False)
    sys.argv = [*sys.argv[:-4], "--out", str(tmp_path / "no")]
    assert labels.main() == 1
    assert "has no column 'confidence' with numbers" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("A,3,60,x", "line 2: [3, 60] does not fit the 60 rows of series 'A'; expected at most 59"),
        ("A,-1,3,x", "line 2: start -1 and end 3; expected rows from 0"),
        ("A,5,3,x", "no end before its start"),
        ("A,1.5,3,x", "line 2: start is '1.5'; expected a whole number"),
        ("B,1,3,x", "line 2 names 'B', which is no series of the data"),
        ("A,1,59,x", ""),
    ],
)
def test_detections_become_labels_where_the_series_has_their_rows(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(tmp_path / "in" / "A.csv")
    assert run(tmp_path / "in", "--labels", "none", "--out", tmp_path / "pool") == 0
    (tmp_path / "found.csv").write_text(f"series,start,end,type\n{line}\n")
    words = ["labels", tmp_path / "pool", "--detections", tmp_path / "found.csv", "--to", "annotator"]
    sys.argv = [*map(str, words), "--out", str(tmp_path / "out")]
    assert labels.main() == (1 if said else 0)
    assert said in " ".join(capsys.readouterr().err.split())
    if not said:
        found = json.loads((tmp_path / "out" / "A.csv.json").read_text("utf-8"))
        assert found["annotations"][0]["segments"] == [{"start": 1, "end": 59, "count": 59}]


@settings(deadline=None)
@given(flags=st.lists(st.integers(0, 1), min_size=1, max_size=50))
def test_runs_of_a_column_cover_its_ones(flags: list[int]) -> None:
    covered = [0] * len(flags)
    found = runs(pd.Series(flags), "x")
    for one in found:
        covered[one.start : one.end + 1] = [1] * (one.end - one.start + 1)
    assert covered == flags
    assert all(one.end + 1 < other.start for one, other in pairwise(found))


@settings(deadline=None)
@given(
    rows=st.lists(st.integers(1, 100), min_size=2, max_size=30),
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    falling=st.booleans(),
)
def test_covering_rows(rows: list[int], bounds: list[float], falling: bool) -> None:
    """The smallest run of rows whose times reach from at or before the start to at or after the end."""
    times = [sum(rows[: number + 1]) for number in range(len(rows))]
    low, high = (times[0] + share * (times[-1] - times[0]) for share in bounds)
    cells = times[::-1] if falling else times
    axis = read_axis(cells)
    assert axis is not None
    first, last, _ = axis.rows(low, high)
    inside = [number for number, time in enumerate(times) if time <= low][-1]
    outside = next(number for number, time in enumerate(times) if time >= high)
    wanted = (inside, outside) if not falling else (len(times) - 1 - outside, len(times) - 1 - inside)
    assert (first, last) == wanted


@settings(deadline=None)
@given(
    times=st.lists(st.integers(0, 12), min_size=3, max_size=12),
    bounds=st.tuples(st.integers(0, 24), st.integers(0, 24)).map(sorted),
)
def test_rows_where_time_turns(times: list[int], bounds: list[int]) -> None:
    """A label is refused where later rows have earlier times than its bound; elsewhere it covers what it would."""
    axis = read_axis(times)
    assert axis is not None
    assert bool(axis.turn) == (times not in (sorted(times), sorted(times, reverse=True)))
    low, high = (bound / 2 for bound in bounds)
    if not axis.turn or low < min(times) or high > max(times):
        return
    rising = times if times[0] <= times[-1] else times[::-1]
    folded = any(
        rising[i] >= bound >= rising[j] and rising[i] > rising[j]
        for bound in (low, high) for j in range(len(times)) for i in range(j)
    )  # fmt: skip
    if folded:
        with pytest.raises(GdshError, match="begins or ends where time runs back and forth: row"):
            axis.rows(low, high)
        return
    first = [row for row, time in enumerate(rising) if time <= low][-1]
    first = rising.index(low) if low in rising else first
    last = next(row for row, time in enumerate(rising) if time >= high)
    last = len(rising) - 1 - rising[::-1].index(high) if high in rising else last
    wanted = (first, last) if rising is times else (len(times) - 1 - last, len(times) - 1 - first)
    assert axis.rows(low, high)[:2] == wanted


def test_times_of_every_local_form() -> None:
    forms = {
        "2025-01-13 08:30:00": "year first", "2025/1/13 08:30": "year first", "20250113T083000": "year first",
        "13.01.2025 08:30:00": "day first", "01/13/2025 08:30": "month first", "2025年1月13日 8时30分": "年月日",
    }  # fmt: skip
    for text, rule in forms.items():
        axis = read_axis([text])
        assert axis is not None, text
        assert (axis.show(axis.values[0]), axis.rule) == ("2025-01-13 08:30:00", rule), text
    zoned = read_axis(["2025-01-13T08:30:00+08:00"])
    assert zoned is not None
    assert zoned.show(zoned.values[0]) == "2025-01-13 00:30:00Z"
    named = read_axis(["2025-01-13 08:30:00"], timezone="Asia/Shanghai")
    assert named is not None
    assert named.rows("2025-01-13 08:30:00", "2025-01-13T00:30:00Z")[:2] == (0, 0)
    assert read_axis(["red", "green"]) is None


def test_wrong_words(tmp_path: Path) -> None:
    table(tmp_path / "in" / "A.csv")
    for words in (("--labels", "stars"), ("--labels", "windows:nothing.json"), ("--widen", "-1"), ()):
        assert run(tmp_path / "in", "--out", tmp_path / "out", *words) == 2
    assert issubclass(UsageError, Exception)
    assert issubclass(GdshError, ValueError)
