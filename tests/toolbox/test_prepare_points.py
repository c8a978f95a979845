"""What a run counts, says and writes, all of it: small data sets whose every number follows by hand."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from helpers_prepare import entries_of, entry, intervals_of, read_lines, record, reply, write_csv, write_data

from llamafactory_ext.errors import GdshError, UsageError
from llamafactory_ext.gdsh import TableOptions
from llamafactory_ext.gdsh.prompts import asking_beside
from llamafactory_ext.toolbox.prepare import Options, PrepareError, pipeline, prepare, registering
from llamafactory_ext.toolbox.prepare.asking import Asking, commonest, read_asking
from llamafactory_ext.toolbox.prepare.origin import find_origin, read_origin
from llamafactory_ext.toolbox.prepare.outputs import _sides
from llamafactory_ext.toolbox.prepare.registering import make_entries


def fault_of(report: dict[str, Any]) -> str:
    (fault,) = report["faults"]
    assert (report["done"], report["records"]["written"], report["records"]["validation"]) == (False, 0, 0)
    return str(fault["fault"])


def line(answer: Any, *series: Any, **more: Any) -> dict[str, Any]:
    return {"input": "<ts><ts/>" * len(series) + "?", "output": answer, "timeseries": list(series), **more}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    return path


REMARK, NORMAL = {"type": "全局属性", "reason": "x"}, {"type": "无异常"}
MIXED = [entry(1, 2), entry(1, 2), REMARK, NORMAL, {"range": [4, 6], "type": "x", "reason": ""}]


@pytest.mark.parametrize("form", ["text", "list"])
def test_what_was_done_to_answers_is_counted_once_whatever_form_they_have(form: str, tmp_path: Path) -> None:
    """A list is taken apart while it is read, a text later: the counts are the same."""
    answers: list[Any] = [MIXED, [NORMAL], [REMARK, REMARK]]
    if form == "text":
        answers = [", ".join(json.dumps(one, ensure_ascii=False) for one in answer) for answer in answers]
    answers.append(reply(entry(0, 8)))
    root = write_data(tmp_path, {"g": [record("a.jpg", answer) for answer in answers]}, {"a": range(9)})
    report = prepare(Options(root, out=root / "o.jsonl"))
    assert [intervals_of(one["output"]) for one in read_lines(root / "o.jsonl")] == [
        [(1, 2), (4, 6)],
        [],
        [],
        [(0, 8)],
    ]
    assert report["answers"] == {
        "rewritten": 3,
        "entries_without_interval": 3,
        "intervals_renamed": 1,
        "normal_entries": 2,
        "normal_beside_anomalies": 1,
        "emptied": 2,
        "duplicates": 1,
        "became_equal": 0,
        "too_long": [],
    }
    assert (report["intervals"], report["types"]) == (3, {"点异常": 2, "x": 1})
    assert report["interval_lengths"] == {"min": 2, "median": 3, "p95": 9, "max": 9, "count": 3}
    assert report["series_lengths"] == {"min": 9, "median": 9, "p95": 9, "max": 9, "count": 4}


def test_a_valid_answer_keeps_its_remarks_until_it_is_written_anew(tmp_path: Path) -> None:
    root = write_data(tmp_path, {"g": [record("a.jpg", reply(REMARK, entry(1, 2)))]}, {"a": range(9)})
    for merge, (left_out, rewritten) in {False: (0, 0), True: (1, 0)}.items():
        report = prepare(Options(root, out=root / "o.jsonl", merge_points=merge))
        assert report["answers"]["entries_without_interval"] == left_out
        assert (report["answers"]["rewritten"], report["answers"]["emptied"]) == (rewritten, 0)
        (found,) = read_lines(root / "o.jsonl")
        assert len(entries_of(found["output"])) == 2 - left_out


def test_of_a_merge_everything_is_said(tmp_path: Path) -> None:
    records = [
        record("a.jpg", reply(entry(1, 2, "x"), entry(3, 4, "y")), system="S"),
        record("a.jpg", reply(entry(1, 2, "z"), entry(3, 4, "y"), entry(3, 4, "y", reason="again"))),
        record("b.jpg", reply(entry(0, 0))),
        record("b.jpg", reply(entry(0, 0))),
    ]
    root = write_data(tmp_path, {"g": records}, {"a": range(9), "b": range(7)})
    report = prepare(Options(root, out=root / "o.jsonl", merge_points=True))
    assert report["merged"] == {
        "rule": report["merged"]["rule"],
        "points_with_several_records": 2,
        "entries_named_again": 4,
        "points_with_several_prompts": 1,  # the prompts are equal, the system texts are not
        "conflicts": 1,
    }
    path = str(root / "timeseries" / "gdsh" / "a.csv")
    assert report["conflicts"] == [{"point": [path], "interval": [1, 2], "types": {"x": 1, "z": 1}, "kept": "x"}]
    assert report["records"]["merged_away"] == report["records"]["prepared"] == 2
    assert [one["system"] for one in read_lines(root / "o.jsonl")] == ["S", ""]
    series = [1.0, 2.0, 3.0]
    named = [line(reply(entry(1, 1, kind)), series, name="sensor") for kind in "xy"]
    report = prepare(Options(write(tmp_path / "in.jsonl", *named), out=root / "o.jsonl", merge_points=True))
    assert report["conflicts"][0]["point"] == ["sensor"]


def test_records_are_dropped_by_their_answers_for_the_first_reason(tmp_path: Path) -> None:
    series = {"a": range(9)}
    records = [record("a.jpg", reply(entry(1, 2, reason=text))) for text in ("no use", "bad", "bad, no use", "good")]
    root = write_data(tmp_path / "data", {"g": records}, series)
    write(root / "json" / "h.jsonl", line(reply(entry(1, 2, reason="bad")), [1, 2, 3]), line(reply(), [1, 2]))
    report = prepare(Options(root, out=tmp_path / "o.jsonl", drop_answers_with=("no use", "bad")))
    assert report["records"]["dropped"] == {"answer contains 'no use'": 2, "answer contains 'bad'": 2}
    assert [(Path(one["file"]).name, one["records"]) for one in report["inputs"]] == [("g.json", 4), ("h.jsonl", 2)]
    assert len(read_lines(tmp_path / "o.jsonl")) == report["records"]["written"] == 2
    records += [record("none.jpg", reply()), record("a.jpg", reply(entry(1, 9)))]
    write_data(root, {"g": records[1:2] * 3 + records[4:]}, {})
    write(root / "json" / "h.jsonl", line(reply(), list(range(8)), name="h"))
    with pytest.raises(PrepareError) as error:
        prepare(
            Options(
                root,
                out=tmp_path / "o.jsonl",
                drop_answers_with=("bad",),
                drop_faulty=True,
                window=4,
                normal_windows=0,
            )
        )
    assert str(error.value) == (
        "of 6 records none is left to write: 2 have faults, 3 were dropped by their answers, "
        "2 windows without anomaly were left out"
    )


def test_labels_over_filled_rows_are_a_fault_and_counted_where_allowed(tmp_path: Path) -> None:
    answer = reply(entry(0, 1), entry(4, 7), entry(5, 5))
    root = write_data(tmp_path, {"g": [record("a.jpg", answer)]}, {"a": [0, 1, 2, 3, 4, "", "Bad", 7, 8]})
    said = fault_of(prepare(Options(root, out=root / "o.jsonl")))
    assert said.startswith(
        "2 labels lie over interpolated rows, where nothing is seen; the first is [4, 7], 2 of its 4 rows are:"
    )
    report = prepare(Options(root, out=root / "o.jsonl", allow_filled_labels=True))
    path = str(root / "timeseries" / "gdsh" / "a.csv")
    assert report["repaired"] == {
        "values_filled": 2,
        "labels_over_filled": 2,
        "series_with_gaps": [{"file": path, "values": 2}],
    }


@pytest.mark.parametrize("option", [{"max_points": 8}, {"window": 8}])
def test_series_of_unequal_length_that_would_be_shortened_are_a_fault(option: dict[str, int], tmp_path: Path) -> None:
    two = record(["a.jpg", "b.jpg"], reply(), "<image><image>?")
    root = write_data(tmp_path, {"g": [two]}, {"a": range(9), "b": range(20)})
    assert "series of 9 and 20 rows in one record" in fault_of(prepare(Options(root, out=root / "o.jsonl", **option)))  # type: ignore[arg-type]
    prepare(Options(root, out=root / "o.jsonl"))
    assert [len(one) for one in read_lines(root / "o.jsonl")[0]["timeseries"]] == [9, 20]


def test_of_windows_and_thinning_every_number_is_said(tmp_path: Path) -> None:
    """MinMaxLTTB sees the flat middle as nothing: the label in it keeps none of its own rows."""
    values = [0.0] * 400
    values[0:40] = values[360:400] = [float(place % 7) for place in range(40)]
    answer = reply(entry(0, 3), entry(201, 201, "flat"))
    root = write_data(tmp_path, {"g": [record("a.jpg", answer)]}, {"a": values})
    report = prepare(Options(root, out=root / "o.jsonl", max_points=10, max_answer_chars=len(answer)))
    (found,) = read_lines(root / "o.jsonl")
    unseen = sum(not any(low <= row <= high for row in found["rows"]) for low, high in ((0, 3), (201, 201)))
    assert report["thinned"] == {"records": 1, "intervals_without_point": unseen} and unseen > 0
    assert report["series_lengths"] == dict.fromkeys(("min", "median", "p95", "max"), len(found["rows"])) | {
        "count": 1
    }
    # The second window alone has an answer that is too long by a character.
    root = write_data(tmp_path, {"g": [record("/x/a.jpg", reply(entry(0, 0, "ab"), entry(5, 7, "abc")))]}, {})
    one, other = (len(reply(entry(place, place, kind))) for place, kind in ((0, "ab"), (0, "abc")))
    report = prepare(Options(root, out=root / "o.jsonl", window=5, max_answer_chars=one))
    written = read_lines(root / "o.jsonl")
    lengths = [len(found["output"]) for found in written[:2]]
    assert lengths[1] - lengths[0] == other - one == 1
    report = prepare(Options(root, out=root / "o.jsonl", window=5, max_answer_chars=lengths[0], normal_windows=0))
    place = {"file": str(root / "json" / "g.json"), "record": 0, "picture": "a.jpg"}
    assert report["answers"]["too_long"] == [{**place, "window": [5, 9], "characters": lengths[1]}]
    assert report["windows"] == {"cut": 80, "left_out": 78}
    report = prepare(Options(root, out=root / "o.jsonl", max_answer_chars=1))
    assert [list(one) for one in report["answers"]["too_long"]] == [["file", "record", "picture", "characters"]]


def test_what_is_odd_about_a_file_is_told_by_its_name(tmp_path: Path) -> None:
    root = write_data(tmp_path, {"g": [record("x_a.jpg", reply()), record("b.jpg", reply())]}, {"b": range(9)})
    folder = root / "timeseries" / "gdsh"
    (folder / "数据集x_a.csv").write_text("time,value\n1,5\n2,6\n3,7\n合计,18\n", encoding="utf-8")
    report = prepare(Options(root, out=root / "o.jsonl"))
    path = str(folder / "数据集x_a.csv")
    assert report["series_by_ending"] == [{"picture": "x_a.jpg", "file": path}]
    assert {one["file"] for one in report["series_remarks"]} == {path}
    assert all(one["kind"] and one["text"] for one in report["series_remarks"])


def test_cleaned_annotations_read_like_the_records_they_were_made_of(tmp_path: Path) -> None:
    records = [
        record("a.jpg", reply(entry(1, 2)), system="S"),
        record(["a.jpg", "b.jpg"], reply(), "<image>,<image>?"),
    ]
    root = write_data(tmp_path, {"g": records}, {"a": range(9), "b": range(9)})
    prepare(Options(root, annotations=root / "c.json"))
    assert json.loads((root / "c.json").read_text(encoding="utf-8")) == records


def test_series_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for plant in ("g", "h"):
        write_csv(tmp_path / "timeseries" / plant / "a.csv", rng.normal(size=9).tolist())
    root = write_data(tmp_path, {name: [record("a.jpg", reply(entry(1, 1, name)))] for name in "gh"}, {})
    assert prepare(Options(root, out=root / "o.jsonl", split=0.5))["split"]["groups"] == 2


def test_types_of_a_split_are_told_for_both_sides_the_commonest_first() -> None:
    found = _sides([("a",), ("b", "b"), ("b", "c"), ()], [False, True, False, True])
    assert list(found.items()) == [
        ("b", {"training": 1, "validation": 2}),
        ("a", {"training": 1, "validation": 0}),
        ("c", {"training": 1, "validation": 0}),
    ]


def test_how_records_ask_is_written_beside_them(tmp_path: Path) -> None:
    records = [record("a.jpg", reply(entry(1, 2, "x"), entry(3, 4, "y")), f"<image>{word}?", "S") for word in "abb"]
    records += [record(["a.jpg", "b.jpg"], reply(entry(1, 2, "y"), {"interval": [5, 5]}), "<image><image>?", "T")] * 3
    root = write_data(tmp_path, {"g": records}, {"a": range(9), "b": range(9)})
    path = asking_beside(root / "o.jsonl")
    prepare(Options(root, out=root / "o.jsonl", compact_answers=True))
    assert read_asking(path) == Asking("<ts><ts/>b?", "S", compact_answers=True, types=("y", "x"))
    for stride in (None, 3):
        prepare(Options(root, out=root / "o.jsonl", window=5, stride=stride, max_points=8))
        assert read_asking(path) == Asking("<ts><ts/>b?", "S", 5, stride or 5, 8, types=("y", "x"))
    path.unlink()
    prepare(Options(root, annotations=root / "c.json"))
    write_data(root, {"g": records[3:]}, {})
    prepare(Options(root, out=root / "o.jsonl"))
    assert not path.exists()


def test_the_commonest_prompt_has_one_series_and_ties_go_by_the_text() -> None:
    one, two = "<ts><ts/>", "<ts><ts/><ts><ts/>"
    counted = Counter({(two, ""): 9, (f"{one}b", ""): 2, (f"{one}a", "s"): 2, (f"{one}a", "t"): 2, (f"{one}0", ""): 1})
    assert commonest(counted) == (f"{one}a", "s")
    assert commonest(Counter({(two, ""): 9})) == ("", "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": "<ts><ts/><ts><ts/>"},
        {"window": 0},
        {"points": -1},
        {"stride": "x"},
        {"colour": 1},
        {"types": 5},
    ],
)
def test_what_says_how_to_ask_is_checked(wrong: dict[str, Any], tmp_path: Path) -> None:
    path, asking = tmp_path / "detect.json", Asking("<ts><ts/>?", window=1, points=1, types=("a",))
    assert "others" not in json.loads(asking.as_json())
    for good in (asking, Asking("<ts><ts/>", others=("b",))):
        path.write_text(good.as_json())
        assert read_asking(path) == good
    path.write_text(json.dumps({**json.loads(asking.as_json()), **wrong}))
    with pytest.raises(GdshError, match=r"detect.json can't be read \(.+\); write it anew with prepare, or remove it"):
        read_asking(path)


def test_progress_is_told_for_each_few_records(tmp_path: Path) -> None:
    root = write_data(tmp_path, {"g": [record("a.jpg", reply())] * 9}, {"a": range(9)})
    told: list[tuple[int, int]] = []
    prepare(Options(root, out=root / "o.jsonl"), lambda done, total: told.append((done, total)))
    assert told == [(4, 9), (8, 9), (9, 9)]


def test_what_is_wrong_with_the_golden_set_is_said_first(tmp_path: Path) -> None:
    root = write_data(tmp_path, {"g": [record("none.jpg", reply())]}, {"a": range(9)})
    golden = write(tmp_path / "golden.jsonl", line(reply(), ["x"]))
    with pytest.raises(PrepareError, match=r"golden\.jsonl: record 0: "):
        prepare(Options(root, out=root / "o.jsonl", golden=golden))
    write(golden, line(reply(), list(range(9))), line(reply(), [5, 6]))  # without names, as are the records
    records = write(tmp_path / "in.jsonl", *(line(reply(), [place, place + 2.5]) for place in range(2)))
    for split in (None, 0.5):
        report = prepare(Options(records, out=root / "o.jsonl", golden=golden, split=split))
        assert (report["records"]["dropped"], report["records"]["prepared"]) == ({}, 2)


def test_want_of_memory_and_a_file_that_is_held_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_data(tmp_path, {"g": [record("a.jpg", reply())]}, {"a": range(9)})
    info = root / "dataset_info.json"
    monkeypatch.setattr(registering, "_PATIENCE", 0)
    with FileLock(f"{info}.lock"), pytest.raises(PrepareError, match=r"another run has held '.*dataset_info.json'"):
        prepare(Options(root, out=root / "o.jsonl", register=info))
    assert not info.exists() and not (root / "o.jsonl").exists()
    with pytest.raises(UsageError, match="name --register"):
        make_entries(Options(root, out=root / "o.jsonl"), root, with_system=False)

    def run_out(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(pipeline, "prepare_batch", run_out)
    with pytest.raises(PrepareError, match="memory ran out; try fewer --workers, or --max-points"):
        prepare(Options(root, out=root / "o.jsonl", report=root / "r.json"))
    assert json.loads((root / "r.json").read_text())["error"].startswith("memory ran out")


@pytest.mark.parametrize(
    ("time", "kept"),
    [
        ({"axis": ["a", "b", "c"]}, {"axis": ["a", "b", "c"]}),
        ({"axis": ["a", "b"]}, None),
        ({"axis": "abc"}, None),
        ({"start": "2025-01-01", "step": 2}, {"start": "2025-01-01", "step": 2.0}),
        ({"start": 7, "step": 2}, None),
        ({"start": "7", "step": "2"}, None),
        ("2025-01-01", None),
    ],
)
def test_times_that_fit_the_points_are_kept(time: Any, kept: Any) -> None:
    found = read_origin({"time": time}, 3)
    assert found.as_columns() == {"rows": [0]} | ({"time": kept} if kept else {})
    assert read_origin({"rows": [7]}, 3).rows.tolist() == [7, 8, 9]


def test_a_table_without_times_or_with_others_has_rows_alone(tmp_path: Path) -> None:
    options, path = TableOptions(), tmp_path / "a.csv"
    path.write_text("value\n1\n2\n3\n")
    assert find_origin(str(path), 3, options).as_columns() == {"rows": [0]}
    path.write_text("time,value\n1,1\n3,2\n5,3\n")
    assert find_origin(str(path), 3, options).as_columns() == {"rows": [0], "time": {"start": "1", "step": 2.0}}
    assert find_origin(str(path), 2, options).as_columns() == {"rows": [0]}
