"""Series in workbooks, real ones: Excel's by openpyxl, in each tool that meets them."""

import json
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Gdsh, annotation, answer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_labels import checked, prepared

from llamafactory_ext.gdsh import GdshError, TableOptions, read_series
from llamafactory_ext.toolbox.cli import import_


openpyxl = pytest.importorskip("openpyxl")

START = datetime(2025, 3, 1, 8)
WAVE = [place % 5 + place / 128 for place in range(40)]


def workbook(path: Path, rows: list[list[Any]], more_sheets: int = 1) -> Path:
    """Writes rows into the first sheet; others hold something else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for number in range(more_sheets):
        book.create_sheet(f"other {number}").append(["value", 99])
    book.save(path)
    return path


def timed(values: list[Any], header: str = "value") -> list[list[Any]]:
    return [["时间", header], *([START + timedelta(minutes=place), value] for place, value in enumerate(values))]


@pytest.fixture
def data(gdsh: Gdsh) -> Gdsh:
    """One record on a workbook that has a gap; no CSV of the name is there."""
    folder = gdsh.folder / "timeseries" / "gdsh"
    workbook(folder / "b.xlsx", timed([*WAVE[:10], None, *WAVE[11:20], "Bad", *WAVE[21:]], "PV"))
    return gdsh.records(annotation("/x/b.jpg", answer((30, 32))))


EXPECTED = [*WAVE[:10], (WAVE[9] + WAVE[11]) / 2, *WAVE[11:20], (WAVE[19] + WAVE[21]) / 2, *WAVE[21:]]


def test_training_reads_it(data: Gdsh, tokenise: Callable[..., Any], log: Any) -> None:
    (row,) = tokenise(data.folder)["train_dataset"]
    assert np.array_equal(row["audios"][0], EXPECTED)
    assert "2 empty cells or words for a missing value, interpolated" in log.text
    assert "b.xlsx: the values are those of the column 'PV', the only one with numbers" in log.text


def test_check_reads_it(data: Gdsh, demo: Path, tmp_path: Path) -> None:
    found = checked(data, demo, tmp_path)
    assert not found.records[0].fault and found.records[0].series[0].length == len(EXPECTED)
    assert "value_column" not in {one.kind for one in found.findings if one.severity == "fault"}


def test_prepare_reads_it_with_its_times(data: Gdsh, tmp_path: Path) -> None:
    report, (line,) = prepared(data, tmp_path)
    assert report["done"] and line["timeseries"] == [pytest.approx(EXPECTED, abs=1e-9)]
    assert line["time"] == {"start": "2025-03-01 08:00:00", "step": 60.0}


def test_import_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    header, *rows = timed(WAVE)
    labelled = [[*row, int(5 <= place <= 7)] for place, row in enumerate(rows)]
    workbook(tmp_path / "in" / "T1.xlsx", [[*header, "label"], *labelled])
    out = tmp_path / "out"
    words = [str(tmp_path / "in"), "--labels", "column:label", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["llamafactory-ext import", *words])
    assert import_.main() == 0, capsys.readouterr()
    (file,) = (out / "json").glob("*.json")
    (record,) = json.loads(file.read_text("utf-8"))
    (entry,) = json.loads(record["conversations"][1]["value"])["detected_anomalies"]
    assert entry["interval"] == [5, 7]
    (csv,) = out.glob("timeseries/**/T1.csv")
    assert read_series(csv).values.tolist() == WAVE


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-1e300, 1e300) | st.integers(-(2**53), 2**53), min_size=1))
def test_numbers_come_out_to_the_last_digit(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = workbook(tmp_path_factory.mktemp("book") / "a.xlsx", timed(list(values)))
    written = [float(f"{value:.16g}") for value in values]  # by openpyxl
    assert read_series(path).values.tolist() == written


def test_numbers_as_texts_are_read_as_in_a_csv(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", timed(["1,180.00", "−6.41", "1,200.50"]))
    assert read_series(path).values.tolist() == [1180, -6.41, 1200.5]
    path = workbook(tmp_path / "a.xlsx", timed([1.5, "5o0", 2.5]))
    with pytest.raises(GdshError, match=r"a\.xlsx': line 3: the cell '5o0' can't be read"):
        read_series(path)
    path = workbook(tmp_path / "a.xlsx", timed([1.5, -9999, 2.5]))
    assert read_series(path, TableOptions(missing_values=("-9999",))).values.tolist() == [1.5, 2, 2.5]


def test_tags_that_are_numbers_and_numbers_without_a_fraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heading 10401 is no 10401.0, and a counter keeps its last digit."""
    rows = [[row[0], 2**53 + 2 * place, row[1]] for place, row in enumerate(timed([1, 2, 3])[1:])]
    rows.append([START + timedelta(minutes=3), None, 4])  # of a column with a gap, numbers would become fractions
    path = workbook(tmp_path / "in" / "a.xlsx", [["时间", 10401, 10402], *rows])
    wanted = [float(2**53 + 2 * place) for place in (0, 1, 2, 2)]
    assert read_series(path, TableOptions(value_column="10401")).values.tolist() == wanted
    words = [str(tmp_path / "in"), "--labels", "none", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["llamafactory-ext import", *words])
    assert import_.main() == 0
    found = {path.stem: read_series(path).values.tolist() for path in tmp_path.glob("out/timeseries/*/*.csv")}
    assert found == {"10401": wanted, "10402": [1, 2, 3, 4]}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half", b"time,value\n1,2\n"])
def test_what_is_no_workbook_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.xlsx").write_bytes(content)
    with pytest.raises(GdshError, match=r"a\.xlsx': can't be read as an Excel file \(.*\); save the sheet as CSV"):
        read_series(tmp_path / "a.xlsx")


def test_without_openpyxl_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workbook(tmp_path / "a.xlsx", timed(WAVE))
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(GdshError, match="an Excel file, which needs pandas and openpyxl, and openpyxl is not there"):
        read_series(path)
