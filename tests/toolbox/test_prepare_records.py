"""What `prepare` writes: the four plants' 701 records, the real annotations, and each option on a small data set."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED_RECORDS
from helpers_prepare import (
    check_accounts,
    entries_of,
    entry,
    intervals_of,
    leftovers,
    read_lines,
    record,
    reply,
    write_csv,
    write_data,
)
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_ext.errors import UsageError
from llamafactory_ext.gdsh import read_annotations
from llamafactory_ext.toolbox.demo import data as demo_data
from llamafactory_ext.toolbox.prepare import Options, PrepareError, prepare
from llamafactory_ext.toolbox.prepare.report import summarise


ROWS = 60
KINDS = list(demo_data.SHAPES)
# Plant: records, points, picture of point N, its CSV, the annotation file.
PLANTS = {
    "gdsh": (321, 179, "gdsh_second_25FI{:05d}.PV", "数据集gdsh_second_25FI{:05d}.PV"),
    "hbsn": (142, 109, "gdsh_second_AT_{:06d}.PV", "AT_{:06d}.PV"),
    "whlj": (138, 29, "NB.LJSJ.PT_{:04d}A.PV", "数据集whlj_ljsj_NB.LJSJ.PT_{:04d}A.PV"),
    "zhlh": (100, 100, "zhlh_100_TI{:05d}.OUT", "zhlh_100_TI{:05d}.OUT"),
}
FORMS = ("joined", "object", "literals", "list")


def write_plants(root: Path) -> dict[float, set[tuple[int, int]]]:
    """Write 701 records of 417 points; give the intervals of each point, known by its series' first value."""
    rng = np.random.default_rng(7)
    files: dict[str, list[Any]] = {"gdsh": [], "hbsn": [], "zhlh": []}
    truth: dict[float, set[tuple[int, int]]] = {}
    for number, (plant, (records, points, picture, csv)) in enumerate(PLANTS.items()):
        for point in range(points):
            first = number * 1000 + point + 0.5
            name = csv.format(point)
            if plant == "zhlh" and point % 3 == 0:
                name = f"数据集{name}"
            write_csv(root / "timeseries" / plant / f"{name}.csv", [first, *np.round(rng.normal(size=ROWS - 1), 3)])
            truth[first] = set()
        for turn in range(records):
            point = turn % points
            entries = []
            for start in sorted(rng.choice(range(0, 50, 5), size=rng.integers(1, 4), replace=False).tolist()):
                end = start + int(rng.integers(0, 2))
                entries.append(demo_data.make_entry(KINDS[int(rng.integers(len(KINDS)))], (start, end)))
                truth[number * 1000 + point + 0.5].add((start, end))
            path = (demo_data.POSIX, demo_data.WINDOWS)[turn % 2].format(picture.format(point))
            answer = demo_data.write_answer(FORMS[turn % len(FORMS)], entries)
            # Foreign records lie in gdsh.json, as in the field.
            home = "gdsh" if plant == "whlj" or (plant == "hbsn" and turn < 4) else plant
            files[home].append(record(path, answer))
    write_data(root, files, {})
    return truth


@pytest.fixture(scope="module")
def plants(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[float, set[tuple[int, int]]]]:
    root = tmp_path_factory.mktemp("plants")
    return root, write_plants(root)


@pytest.mark.parametrize("workers", [1, 2])
def test_four_plants_merge_to_417_points(
    plants: tuple[Path, dict[float, set[tuple[int, int]]]], workers: int, tmp_path: Path
) -> None:
    root, truth = plants[0], plants[1].copy()
    out, clean = tmp_path / "train.jsonl", tmp_path / "clean.json"
    report = prepare(Options(root, out=out, annotations=clean, merge_points=True, workers=workers))
    check_accounts(report)
    assert (report["records"]["read"], report["points"]) == (701, 417)
    assert report["records"]["merged_away"] == 701 - 417
    lines = read_lines(out)
    assert len(lines) == 417
    for line in lines:
        assert list(line) == ["input", "output", "timeseries", "name", "rows", "time"]
        ((first, *rest),) = line["timeseries"]
        assert len(rest) == ROWS - 1
        assert intervals_of(line["output"]) == sorted(truth.pop(first))
    assert not truth
    # The cleaned annotations read back, name the points' own files, and say the same.
    records = json.loads(clean.read_text(encoding="utf-8"))
    assert [one["conversations"][1]["value"] for one in records] == [line["output"] for line in lines]
    assert len({one["image"] for one in records}) == 417
    assert {one["conversations"][0]["value"] for one in records} == {"<image>\n找异常"}
    rows = read_annotations(
        clean, messages="conversations", images="image", role_tag="from", content_tag="value", system=None
    )
    assert all(row.fault is None for row in rows)


def test_conflicts_are_listed_for_the_four_plants(
    plants: tuple[Path, dict[float, set[tuple[int, int]]]], tmp_path: Path
) -> None:
    root, _ = plants
    report = prepare(Options(root, out=tmp_path / "a.jsonl", merge_points=True))
    kinds: dict[tuple[str, tuple[int, int]], Counter[str]] = {}
    plain = prepare(Options(root, out=tmp_path / "b.jsonl"))
    check_accounts(plain)
    for line in read_lines(tmp_path / "b.jsonl"):
        for kind, *interval in {(one["type"], *one["interval"]) for one in entries_of(line["output"])}:
            kinds.setdefault((line["timeseries"][0][0], tuple(interval)), Counter())[kind] += 1
    wanted = sorted(sorted(votes.items()) for votes in kinds.values() if len(votes) > 1)
    assert sorted(sorted(one["types"].items()) for one in report["conflicts"]) == wanted
    assert report["merged"]["conflicts"] == len(wanted) > 20


def test_more_workers_write_the_same_bytes(
    plants: tuple[Path, dict[float, set[tuple[int, int]]]], tmp_path: Path
) -> None:
    outputs = {}
    for workers in (1, 3):
        out = tmp_path / f"{workers}.jsonl"
        prepare(Options(plants[0], out=out, workers=workers, split=0.1))
        outputs[workers] = out.read_bytes() + out.with_stem(f"{workers}_val").read_bytes()
    assert outputs[1] == outputs[3]


@pytest.mark.skipif(not SHARED_RECORDS.is_dir(), reason=f"the real records are not at {SHARED_RECORDS}")
@pytest.mark.parametrize("merge", [False, True])
def test_real_annotations_become_valid_with_all_intervals(merge: bool, tmp_path: Path) -> None:
    records = json.loads((SHARED_RECORDS / "all_conversations.json").read_text(encoding="utf-8"))
    rng = np.random.default_rng(0)
    for number, one in enumerate(records):
        stem = one["image"].rpartition("/")[2].removesuffix(".jpg")
        name = f"{('', '数据集')[number % 2]}{stem}"
        write_csv(tmp_path / "timeseries" / "zhlh" / f"{name}.csv", rng.normal(size=5000).round(4))
    write_data(tmp_path, {"zhlh": records}, {})
    out = tmp_path / "train.jsonl"
    report = prepare(Options(tmp_path, out=out, merge_points=merge, workers=2))
    check_accounts(report)
    found = [intervals_of(line["output"]) for line in read_lines(out)]
    assert len(found) == 99
    assert sum(map(len, found)) == report["intervals"] == 1845
    assert report["answers"]["rewritten"] == 99
    assert report["answers"]["entries_without_interval"] + report["answers"]["normal_entries"] == 118
    dropped = prepare(Options(tmp_path, out=out, drop_answers_with=("该数据不做异常检测",), workers=2))
    check_accounts(dropped)
    assert dropped["records"]["dropped"] == {"answer contains '该数据不做异常检测'": 19}
    assert len(read_lines(out)) == 80


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three series of 40 rows and five records, two each of `a` and `b`."""
    series = {name: [place / 4 + shift for place in range(40)] for shift, name in enumerate("abc")}
    series["b"][5:8] = ["", "Bad", "nan"]
    records = [
        record("/x/a.jpg", reply(entry(1, 3, "甲"), entry(30, 39, "乙"))),
        record("/x/b.jpg", f"{reply(entry(0, 0, '甲'))},{reply({'type': '全局属性', 'reason': 'x'})}"),
        record("/x/a.jpg", reply(entry(1, 3, "丙"), entry(1, 3, "丙"), entry(10, 12, "甲")), prompt="<image>另问"),
        record("/x/c.jpg", f"{reply({'type': '无异常'})},{reply({'type': '无异常'})}"),
        record("/x/b.jpg", reply(entry(0, 0, "甲", reason="other"))),
    ]
    return write_data(tmp_path / "data", {"gdsh": records}, series)


def test_values_are_the_same_floats_and_gaps_are_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    values = [*rng.normal(size=50), 5, 1e16, 1e22, 5e-324, 1.7976931348623157e308, -0.0, 0.1 + 0.2]
    root = write_data(tmp_path, {"gdsh": [record("a.jpg", reply())]}, {"a": [repr(float(value)) for value in values]})
    prepare(Options(root, out=root / "o.jsonl"))
    (line,) = read_lines(root / "o.jsonl")
    assert line["timeseries"] == [[float(value) for value in values]]
    assert all(isinstance(value, float) for value in line["timeseries"][0])


def test_plain_run_keeps_valid_answers_to_the_byte_and_counts(root: Path, tmp_path: Path) -> None:
    report = prepare(Options(root, out=tmp_path / "o.jsonl", report=tmp_path / "r.json"))
    check_accounts(report)
    assert report == json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    lines = read_lines(tmp_path / "o.jsonl")
    given = json.loads((root / "json" / "gdsh.json").read_text(encoding="utf-8"))
    for place in (0, 2, 4):
        assert lines[place]["output"] == given[place]["conversations"][1]["value"]
    assert [line["input"] for line in lines] == [
        f"<ts><ts/>{'另问' if n == 2 else chr(10) + '找异常'}" for n in range(5)
    ]
    assert lines[1]["timeseries"][0][4:9] == [2.0, 2.25, 2.5, 2.75, 3.0]
    assert report["repaired"]["values_filled"] == 3
    assert [Path(one["file"]).name for one in report["repaired"]["series_with_gaps"]] == ["b.csv"]
    answers = {"rewritten": 2, "entries_without_interval": 1, "emptied": 1, "duplicates": 0, "became_equal": 0}
    answers["normal_entries"] = 2
    assert {name: report["answers"][name] for name in answers} == answers


def test_merging_states_conflicts_prompts_and_sums(root: Path, tmp_path: Path) -> None:
    report = prepare(Options(root, out=tmp_path / "o.jsonl", merge_points=True))
    check_accounts(report)
    a, b, c = read_lines(tmp_path / "o.jsonl")
    assert [(one["interval"], one["type"]) for one in entries_of(a["output"])] == [
        ([1, 3], "甲"),
        ([10, 12], "甲"),
        ([30, 39], "乙"),
    ]
    assert [one["reason"] for one in entries_of(b["output"])] == ["…"]
    assert entries_of(c["output"]) == []
    assert a["input"].endswith("找异常")
    (conflict,) = report["conflicts"]
    assert (conflict["interval"], conflict["types"], conflict["kept"]) == ([1, 3], {"甲": 1, "丙": 1}, "甲")
    assert report["merged"]["points_with_several_prompts"] == 1
    assert report["merged"]["points_with_several_records"] == 2, "`c` has one, which merges with nothing"
    assert report["records"]["merged_away"] == 2


def test_compact_answers_keep_intervals_and_types_only(root: Path, tmp_path: Path) -> None:
    prepare(Options(root, out=tmp_path / "long.jsonl"))
    report = prepare(Options(root, out=tmp_path / "short.jsonl", compact_answers=True, max_answer_chars=90))
    check_accounts(report)
    for long, short in zip(read_lines(tmp_path / "long.jsonl"), read_lines(tmp_path / "short.jsonl"), strict=True):
        wanted = dict.fromkeys(
            (*one["interval"], one["type"]) for one in entries_of(long["output"]) if "interval" in one
        )
        assert [(*one["interval"], one["type"]) for one in entries_of(short["output"])] == list(wanted)
        assert all(set(one) == {"interval", "type"} for one in entries_of(short["output"]))
    assert report["answers"]["became_equal"] == 1
    too_long = {one["record"] for one in report["answers"]["too_long"]}
    lines = enumerate(read_lines(tmp_path / "short.jsonl"))
    assert too_long == {place for place, line in lines if len(line["output"]) > 90} == {0, 2}


def test_windows_then_thinning(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    report = prepare(Options(root, out=out, window=16, stride=12, max_points=8, merge_points=True))
    check_accounts(report)
    lines = read_lines(out)
    assert len(lines) == 3 * 3  # at 0, 12, 24; the last one ends with the series
    assert report["windows"] == {"cut": 9, "left_out": 0}
    assert all(len(line["timeseries"][0]) <= 8 for line in lines)
    first, _, last = lines[:3]
    whole = [place / 4 for place in range(40)]
    for line, start in ((first, 0), (last, 24)):
        (values,) = line["timeseries"]
        assert values[0] == whole[start] and values[-1] == whole[start + 15]
    (tail,) = entries_of(last["output"])
    values = last["timeseries"][0]
    assert values[tail["interval"][0]] <= whole[30] and tail["interval"][1] == len(values) - 1


@pytest.mark.parametrize(("normal", "written"), [(None, 12), (0, 4), (1, 7)])
def test_normal_windows_are_left_out_as_asked(root: Path, tmp_path: Path, normal: int | None, written: int) -> None:
    options = Options(root, out=tmp_path / "o.jsonl", window=10, normal_windows=normal, merge_points=True)
    report = prepare(options)
    check_accounts(report)
    assert len(read_lines(tmp_path / "o.jsonl")) == written
    assert report["windows"] == {"cut": 12, "left_out": 12 - written}


def test_several_series_share_their_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    series = {name: rng.normal(size=200) for name in "ab"}
    answer = reply(entry(50, 70), entry(199, 199))
    root = write_data(tmp_path, {"gdsh": [record(["a.jpg", "b.jpg"], answer, "<image><image>?")]}, series)
    prepare(Options(root, out=root / "o.jsonl", annotations=None, max_points=40))
    (line,) = read_lines(root / "o.jsonl")
    a, b = line["timeseries"]
    assert len(a) == len(b) <= 40
    rows = [series["a"].tolist().index(value) for value in a]
    assert [series["b"][row] for row in rows] == b
    for (start, end), found in zip([(50, 70), (199, 199)], entries_of(line["output"]), strict=True):
        assert rows[found["interval"][0]] <= start and rows[found["interval"][1]] >= end


def test_system_texts_give_every_record_the_key(tmp_path: Path) -> None:
    records = [record("a.jpg", reply(), system=system) for system in (None, "你是专家", None)]
    root = write_data(tmp_path, {"gdsh": records}, {"a": range(9)})
    prepare(Options(root, out=root / "o.jsonl", annotations=root / "c.json", register=root / "dataset_info.json"))
    assert [line["system"] for line in read_lines(root / "o.jsonl")] == ["", "你是专家", ""]
    written = json.loads((root / "c.json").read_text(encoding="utf-8"))
    assert [len(one["conversations"]) for one in written] == [2, 3, 2]
    info = json.loads((root / "dataset_info.json").read_text(encoding="utf-8"))
    assert info["o"]["columns"]["system"] == "system"


def test_split_never_shares_a_series(tmp_path: Path) -> None:
    """Copies under other names and records of several series stay on one side; both outputs agree."""
    rng = np.random.default_rng(1)
    values = [rng.normal(size=20).round(3).tolist() for _ in range(12)]
    series = {f"p{number:02d}": values[number % 12] for number in range(24)}
    records = [record(f"p{number:02d}.jpg", reply(entry(number % 20, number % 20))) for number in range(24)]
    records.append(record(["p00.jpg", "p13.jpg"], reply(), "<image><image>?"))
    root = write_data(tmp_path / "data", {"gdsh": records}, series)
    out, clean = tmp_path / "o" / "train.jsonl", tmp_path / "o" / "clean.json"
    sides = {}
    for name, order in (("first", records), ("turned", records[::-1])):
        write_data(root, {"gdsh": order}, {})
        report = prepare(Options(root, out=out, annotations=clean, split=0.25, seed=3))
        check_accounts(report)
        lines = {side: read_lines(out.with_stem(f"train{side}")) for side in ("", "_val")}
        there = {side: {tuple(one) for line in lines[side] for one in line["timeseries"]} for side in lines}
        assert not there[""] & there["_val"]
        assert len(there["_val"]) >= 3
        for side in lines:
            written = json.loads((tmp_path / "o" / f"clean{side}.json").read_text(encoding="utf-8"))
            assert [one["conversations"][1]["value"] for one in written] == [line["output"] for line in lines[side]]
        assert report["records"]["written"] + report["records"]["validation"] == 25
        sides[name] = there
    assert sides["first"] == sides["turned"]
    assert not leftovers(tmp_path)


def test_zeros_of_either_sign_are_one_series(tmp_path: Path) -> None:
    """Equal numbers are the same to a model, so their records must not lie on both sides of a split."""
    series = {"a": ["0.0", 1, "-0.0"], "b": ["-0.0", 1, "0.0"]}
    root = write_data(tmp_path, {"gdsh": [record(f"{name}.jpg", reply()) for name in series]}, series)
    with pytest.raises(PrepareError, match="belong together"):
        prepare(Options(root, out=root / "o.jsonl", split=0.5))
    write_csv(root / "timeseries" / "gdsh" / "b.csv", [5e-324, 1, 0])
    prepare(Options(root, out=root / "o.jsonl", split=0.5))


def test_one_series_alone_cannot_be_split(tmp_path: Path) -> None:
    root = write_data(tmp_path, {"gdsh": [record("a.jpg", reply())] * 3}, {"a": range(9)})
    with pytest.raises(PrepareError, match="belong together"):
        prepare(Options(root, out=root / "o.jsonl", split=0.5))
    assert not (root / "o.jsonl").exists() and not leftovers(root)


def test_own_folder_wins_and_named_series_stay_alone(tmp_path: Path) -> None:
    for plant, value in (("gdsh", 1), ("hbsn", 2)):
        write_csv(tmp_path / "timeseries" / plant / "a.csv", [value] * 9)
    write_csv(tmp_path / "elsewhere" / "a.csv", [3] * 9)
    root = write_data(tmp_path, {"hbsn": [record("a.jpg", reply())], "gdsh": [record("a.jpg", reply())]}, {})
    prepare(Options(root, out=tmp_path / "o" / "o.jsonl"))
    assert [line["timeseries"][0][0] for line in read_lines(tmp_path / "o" / "o.jsonl")] == [1, 2]
    for named in (tmp_path / "elsewhere", tmp_path / "elsewhere" / "a.csv"):
        prepare(Options(root, series=(named,), out=tmp_path / "o" / "o.jsonl"))
        assert [line["timeseries"][0][0] for line in read_lines(tmp_path / "o" / "o.jsonl")] == [3, 3]
    # Of two plants' files of one name, cleaned annotations cannot tell which: so they are refused.
    report = prepare(Options(root, annotations=tmp_path / "o" / "c.json"))
    assert not report["done"] and len(report["faults"]) == 2
    assert all("gdsh/a.csv" in one["fault"] and "hbsn/a.csv" in one["fault"] for one in report["faults"])


def test_files_count_in_the_order_of_their_names(tmp_path: Path) -> None:
    records = {name: [record("a.jpg", reply(entry(1, 2, name)))] for name in ("b1", "a2")}
    root = write_data(tmp_path, records, {"a": range(9)})
    named = tuple(root / "json" / f"{name}.json" for name in ("b1", "a2"))
    for files in ((), named, (root / "json", named[0])):
        prepare(Options(root, json=files, out=root / "o.jsonl", merge_points=True))
        ((found,),) = [entries_of(line["output"]) for line in read_lines(root / "o.jsonl")]
        assert found["type"] == "a2"


def test_a_name_that_would_lead_elsewhere_is_refused_for_annotations(tmp_path: Path) -> None:
    series = {"a": range(9), "a.csv": range(5, 14)}
    root = write_data(tmp_path, {"gdsh": [record("a.csv.csv", reply())]}, series)
    prepare(Options(root, out=root / "o.jsonl"))
    assert read_lines(root / "o.jsonl")[0]["timeseries"][0][0] == 5
    report = prepare(Options(root, annotations=root / "c.json"))
    assert "would lead to" in report["faults"][0]["fault"] and not (root / "c.json").exists()


@given(st.lists(st.integers(1, 30), max_size=60))
def test_lengths_are_summed_up_by_nearest_rank(lengths: list[int]) -> None:
    found, ordered = summarise(Counter(lengths)), sorted(lengths)
    if not lengths:
        assert found == {"count": 0}
        return
    rank = {part: ordered[math.ceil(len(ordered) * part / 100) - 1] for part in (50, 95)}
    wanted = {"min": ordered[0], "median": rank[50], "p95": rank[95], "max": ordered[-1], "count": len(lengths)}
    assert found == wanted


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"out": None}, "nothing to write"),
        ({"root": None}, "no data"),
        ({"annotations": Path("c.json"), "max_points": 100}, "no longer fit"),
        ({"annotations": Path("c.json"), "window": 100}, "no longer fit"),
        ({"max_points": 7}, "too small"),
        ({"window": 10, "stride": 11}, "leave rows out"),
        ({"stride": 11}, "need --window"),
        ({"split": 1.0}, "between 0 and 1"),
        ({"split": float("nan")}, "between 0 and 1"),
        ({"force": True}, "needs --register"),
        ({"report": Path("o.jsonl")}, "written twice"),
        ({"drop_answers_with": ("",)}, "needs a text"),
        ({"json": (Path("nowhere.json"),)}, "does not exist"),
        ({"series": (Path("nowhere"),)}, "does not exist"),
        ({"workers": 0}, "1 or more"),
    ],
)
def test_wrong_usage_is_named(root: Path, tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prepare(Options(**{"root": root, "out": tmp_path / "o.jsonl", **fix(wrong, tmp_path)}))
    assert not list(tmp_path.glob("*.json*"))


def fix(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {name: folder / value if isinstance(value, Path) else value for name, value in options.items()}


def test_outputs_never_take_the_place_of_inputs(root: Path) -> None:
    gdsh = root / "json" / "gdsh.json"
    for name, path in (("out", gdsh), ("report", gdsh), ("annotations", root / "json" / "clean.json")):
        with pytest.raises(UsageError, match=r"overwritten|next run"):
            prepare(Options(root, **{"out": root / "o.jsonl", name: path}))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="name of a series"):
        prepare(Options(root, out=root / "timeseries" / "gdsh" / "a.csv"))
