"""What `prepare` is asked to do and where it looks: refused or taken, by the reason given, without a run."""

import os
from pathlib import Path
from typing import Any

import pytest
from helpers_prepare import entry, record, reply, write_csv, write_data

from llamafactory_ext.errors import UsageError
from llamafactory_ext.gdsh import GdshError, index_series
from llamafactory_ext.toolbox.prepare import Options
from llamafactory_ext.toolbox.prepare.options import check_options
from llamafactory_ext.toolbox.prepare.sources import find_sources, own_picture


OUT = {"root": Path("data"), "out": Path("o.jsonl")}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"register": Path("info.yaml")}, "--register needs a dataset_info.json, not 'info.yaml'"),
        ({"golden": Path("nowhere.jsonl")}, "--golden 'nowhere.jsonl' is no file"),
        ({"golden": Path()}, "--golden '.' is no file"),
        ({"root": None}, "no data: name ROOT"),
        ({"out": Path()}, "'.' is a folder"),
        ({"normal_windows": 1}, "they need --window"),
        ({"window": 0}, "--window 0 is too small; expected 1 or more rows"),
        ({"window": 10, "stride": 0}, "--stride 0 does not fit --window 10; expected 1 to 10"),
        ({"window": 10, "normal_windows": -1}, "--normal-windows -1"),
        ({"max_answer_chars": 0}, "--max-answer-chars 0: expected 1 or more"),
        ({"split": 0.0}, "--split 0.0"),
    ],
)
def test_what_can_not_be_carried_out_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        check_options(Options(**{**OUT, **wrong}))
    assert said in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        {"window": 1, "stride": 1, "normal_windows": 0, "max_answer_chars": 1, "max_points": 8, "split": 0.001},
        {"window": 10, "stride": 10},
        {"root": None, "json": (Path("a.json"),)},
        {"register": Path("info.json"), "force": True, "report": Path("r.json")},
    ],
)
def test_what_lies_at_a_limit_is_taken(given: dict[str, Any]) -> None:
    check_options(Options(**{**OUT, **given}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Annotations of two plants, of which one has a folder of its own."""
    files = {"own": [record("a.jpg", reply(entry(1, 2)))], "other": [record("b.jpg", reply())]}
    write_data(tmp_path / "data", files, {"a": range(9)}, "own")
    return write_data(tmp_path / "data", {}, {"b": range(5)}, "beside")


def test_annotation_files_are_those_that_end_so_and_are_seen(root: Path) -> None:
    (root / "json" / "more.JSONL").write_text((root / "json" / "own.json").read_text()[1:-1] + "\n")
    for name in ("notes.txt", ".hidden.json", "a.json.bak"):
        (root / "json" / name).write_text("{")
    (root / "json" / "folder.json").mkdir()
    found = find_sources(Options(root, out=root / "o.jsonl"))
    assert [one.path.name for one in found.annotations] == ["more.JSONL", "other.json", "own.json"]
    assert (found.folder, found.catalogue) == (root / "timeseries", None)
    assert all(one.index is not None for one in found.annotations)
    catalogue = find_sources(Options(root, annotations=root / "c.json")).catalogue
    assert catalogue is not None and Path(catalogue.find("a.jpg").path).name == "a.csv"


def test_series_that_are_named_have_the_folder_that_holds_all_of_them(root: Path) -> None:
    own, beside = root / "timeseries" / "own", root / "timeseries" / "beside"
    for series, folder in {
        (own,): own,
        (own / "a.csv",): own,
        (own, beside / "b.csv"): root / "timeseries",
        (own / "a.csv", own): own,
        (root / "timeseries" / "own" / "a.csv", root / "timeseries"): root / "timeseries",
    }.items():
        assert find_sources(Options(root, series=series, out=root / "o.jsonl")).folder.resolve() == folder.resolve()


def test_a_place_without_data_is_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "a.txt").write_text("")
    faulty = write_data(tmp_path / "faulty", {"own": [{"image": "a.jpg"}]}, {}) / "json" / "own.json"
    named = {"json": (root / "json",)}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"root": tmp_path / "nowhere"}, "nowhere' is not a folder; expected one that holds json/ and timeseries/"),
        ({"root": tmp_path / "empty"}, "empty/json' does not exist; expected annotation files"),
        ({"root": None, **named}, "no ROOT: name the folder with json/ and timeseries/"),
        ({"root": tmp_path / "empty", **named}, "timeseries' is not a folder; put the CSV files there"),
        ({"json": (tmp_path / "empty",)}, "no annotation files: nothing ends in .json or .jsonl in"),
        ({"series": (tmp_path / "a.txt",)}, "a.txt' is no CSV file; expected a name that ends in .csv"),
        ({"series": (tmp_path / "none.csv",)}, "none.csv' does not exist; expected a CSV file or a folder of them"),
        ({"root": tmp_path / "list.json"}, "timeseries): it is an empty list; for annotations"),
        ({"root": root / "json" / "own.json"}, "(input, output, timeseries); for annotations"),
        ({"root": faulty}, "(input, output, timeseries): the record has no 'conversations'"),
        ({"out": root / "timeseries" / "new.CSV"}, "has the name of a series"),
    ]
    for given, said in cases:
        with pytest.raises(UsageError) as error:
            find_sources(Options(**{"root": root, "out": tmp_path / "o.jsonl", **given}))
        assert said in str(error.value), given
    # Neither a text among the annotations nor records beside them are in the way of the next run.
    for out in (root / "json" / "o.txt", root / "o.json"):
        find_sources(Options(root, out=out))


def test_a_file_that_is_called_by_bytes_has_no_picture(root: Path) -> None:
    folder = root / "timeseries" / "own"
    (folder / os.fsdecode(b"x\xff.csv")).write_text("value\n1\n")
    index = index_series(folder)
    (file,) = (file for file in index.own.files if file.stem.startswith("x"))
    with pytest.raises(GdshError, match="is not UTF-8; rename the file"):
        own_picture(index, file)


def test_a_file_named_alone_brings_no_other_series(root: Path) -> None:
    write_csv(root / "timeseries" / "own" / "b.csv", range(3))
    (source, _) = find_sources(
        Options(root, series=(root / "timeseries" / "own" / "a.csv",), out=root / "o")
    ).annotations
    assert source.index is not None
    assert [Path(file.path).name for file in source.index.own.files] == ["a.csv"]
