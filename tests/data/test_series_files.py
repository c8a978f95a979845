"""What is wrong with the files of series, in each tool that meets it: training, check, prepare, and the API."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Gdsh, annotation, answer
from test_labels import checked, prepared


WAVE = [50 + i % 5 for i in range(40)]


def kinds(found: Any) -> dict[str, str]:
    return {one.kind: one.severity for one in found.findings}


@pytest.fixture
def filled(gdsh: Gdsh) -> Gdsh:
    gdsh.csv("a.csv", [*WAVE[:10], "Bad", "", *WAVE[12:]])
    return gdsh.records(annotation(reply=answer((5, 6), (9, 10), (10, 11), (12, 13))))


def test_labels_over_interpolated_rows(
    filled: Gdsh, demo: Path, tmp_path: Path, tokenise: Callable[..., Any], log: Any
) -> None:
    tokenise(filled.folder)
    assert "2 labelled intervals that hold interpolated rows" in log.text
    found = checked(filled, demo, tmp_path)
    (finding,) = [one for one in found.findings if one.kind == "filled_labels"]
    assert finding.severity == "fault"
    assert finding.places[0].detail == "[9, 10]: 1 of 2 rows interpolated; [10, 11]: 2 of 2 rows interpolated"
    assert kinds(checked(filled, demo, tmp_path, allow_filled_labels=True))["filled_labels"] == "notice"
    report, _ = prepared(filled, tmp_path)
    assert not report["done"]
    assert "2 labels lie over interpolated rows" in report["faults"][0]["fault"]
    report, _ = prepared(filled, tmp_path, allow_filled_labels=True)
    assert (report["done"], report["repaired"]["labels_over_filled"]) == (True, 2)


def test_a_cell_that_is_no_number_stops_every_tool(
    gdsh: Gdsh, demo: Path, tmp_path: Path, tokenise: Callable[..., Any]
) -> None:
    gdsh.csv("a.csv", [*WAVE[:10], "5o0", *WAVE[11:]])
    gdsh.records(annotation(reply=answer((10, 10))))
    said = "a.csv': line 12: the cell '5o0' can't be read: it has digits, but is no finite number"
    with pytest.raises(ValueError, match="line 12: the cell '5o0' can't be read"):
        tokenise(gdsh.folder)
    assert said in checked(gdsh, demo, tmp_path).records[0].fault
    assert said in prepared(gdsh, tmp_path)[0]["faults"][0]["fault"]
    gdsh.entry["missing_values"] = ["5o0"]
    assert kinds(checked(gdsh.describe(), demo, tmp_path))["filled_labels"] == "fault"


def table(data: Gdsh, header: str, *rows: str) -> None:
    (data.folder / "timeseries" / "gdsh" / "a.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def test_what_is_not_as_usual_is_said(
    gdsh: Gdsh, demo: Path, tmp_path: Path, tokenise: Callable[..., Any], log: Any
) -> None:
    rows = [
        f"2025-01-01 00:00:{40 - i:02d};{(value if i != 7 else -9999)},5;{'Good' if i else 'Bad'}"
        for i, value in enumerate(WAVE)
    ]
    table(gdsh, "时间;PV;质量", *rows)
    gdsh.records(annotation("gdsh_second_a.jpg", reply=answer((20, 21))))
    run = tokenise(gdsh.folder)
    assert run["train_dataset"][0]["audios"][0][:8] == [*(value + 0.5 for value in WAVE[:7]), -9999.5]
    found = checked(gdsh, demo, tmp_path)
    wanted = {"column", "notation", "layout", "quality_unused", "time", "name"}
    assert {f"file_{kind}" for kind in wanted} <= kinds(found).keys()
    assert not found.has_faults
    (name,) = [one for one in found.findings if one.kind == "file_name"]
    assert name.places[0].detail == "gdsh_second_a.jpg is read from a.csv"
    assert "a.csv: the values are those of the column 'PV', the only one with numbers" in log.text
    report, _ = prepared(gdsh, tmp_path)
    assert {one["kind"] for one in report["series_remarks"]} == wanted - {"name"}
    assert [one["picture"] for one in report["series_by_ending"]] == ["gdsh_second_a.jpg"]


def test_the_entry_says_how_tables_are_read(gdsh: Gdsh, tmp_path: Path, tokenise: Callable[..., Any]) -> None:
    table(
        gdsh,
        "date,SV,PV,质量",
        *(f"2025-01-01 00:00:{i:02d},7,{[-9999, 5][i > 2]},{[192, 0][i == 4]}" for i in range(8)),
    )
    gdsh.entry |= {"value_column": "PV", "quality_column": "质量", "missing_values": [-9999]}
    gdsh.records(annotation(), annotation("/x/a.jpg"))  # a shared series goes through the cache
    assert tokenise(gdsh.folder)["train_dataset"]["audios"][:] == [[[5.0] * 8]] * 2
    report, lines = prepared(gdsh, tmp_path, value_column="PV", quality_column="质量", missing_values=("-9999",))
    assert [line["timeseries"] for line in lines] == [[[5.0] * 8]] * 2
    assert report["repaired"]["values_filled"] == 4


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("value_column", 5, "value_column is 5; expected a column's name"),
        ("missing_values", -9999, "missing_values is -9999; expected a list"),
        ("normal_types", "正常", "normal_types is '正常'; expected a list of words"),
    ],
)
def test_keys_that_can_not_be_right(key: str, value: Any, said: str, gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
    gdsh.entry[key] = value
    with pytest.raises(ValueError, match=r"dataset_info\.json") as fault:
        tokenise(gdsh.records(annotation()).folder)
    assert said in str(fault.value)


def test_another_sensors_file_is_refused(gdsh: Gdsh, demo: Path, tmp_path: Path, tokenise: Callable[..., Any]) -> None:
    gdsh.csv("H2S.csv", WAVE)
    gdsh.csv("FI_2.csv", WAVE)
    gdsh.records(annotation("LHS2_AI_H2S.jpg"), annotation("gdsh_FI_2.jpg"), annotation("gdsh_second_FI_2.jpg"))
    with pytest.raises(ValueError, match="3 of 3 records can't be used") as fault:
        tokenise(gdsh.folder)
    assert "'H2S.csv' ends alike, but 'LHS2_AI_' is no prefix" in str(fault.value)
    assert str(fault.value).count("would belong to several pictures") == 2
    assert kinds(checked(gdsh, demo, tmp_path))["unusable"] == "fault"
    assert len(prepared(gdsh, tmp_path)[0]["faults"]) == 3


def test_the_command_line_takes_the_options(gdsh: Gdsh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory_ext.toolbox.cli import prepare

    table(gdsh, "date,SV,PV,q", *(f"2025-01-01,7,{i},{[192, 0][i == 4]}" for i in range(8)))
    gdsh.records(annotation(reply=answer((4, 5))))
    options = ["--value-column", "PV", "--quality-column", "q", "--missing-values", "7", "--allow-filled-labels"]
    written = ["--out", str(tmp_path / "o.jsonl"), "--workers", "1", "--normal-types", "健康"]
    monkeypatch.setattr("sys.argv", ["prepare", str(gdsh.folder), *written, *options])
    assert prepare.main() == 0
    (line,) = [json.loads(text) for text in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert line["timeseries"] == [[0, 1, 2, 3, 4, 5, 6, 6]]
