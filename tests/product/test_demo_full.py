"""The full demo's data are right: anomalies where the answers say, validation points apart, one seed, the same files.

That a model learns from them takes half an hour: `make demo-full`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from verdict import judge

from llamafactory_ext.toolbox.demo.full_data import LENGTH, SHRINK, draw_records, make_entries, write_data
from llamafactory_ext.toolbox.demo.series import ALL_SHAPES, INCONSPICUOUS, draw_intervals, draw_series


PARTS = ("train", "validation", "exchanged")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo_full") / "data"
    write_data(path, training=300, validation=101)
    return path


def read(data: Path, part: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / f"{part}.jsonl").read_text("utf-8").splitlines()]


def entries(record: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(record["output"])["detected_anomalies"]
    return found


@pytest.mark.parametrize("kind", ALL_SHAPES)
def test_anomaly_of_a_short_series_changes_its_interval_and_nothing_else(kind: str) -> None:
    rng = np.random.default_rng(5)
    shortest, longest = ALL_SHAPES[kind].length
    for _ in range(20):
        intervals = draw_intervals((kind, kind), LENGTH, rng, SHRINK)
        normal, values = draw_series((kind, kind), intervals, LENGTH, rng, SHRINK)
        labelled = {index for start, end in intervals for index in range(start, end + 1)}
        assert set(np.flatnonzero(normal != values)) == labelled
        assert all(shortest * SHRINK <= end - start + 1 <= max(1, longest * SHRINK) for start, end in intervals)


def test_files_hold_what_their_answers_say(data: Path) -> None:
    """Spikes, points and steps stand out of their surroundings by more than anything outside of the labels does."""
    seen = 0
    for record in read(data, "train"):
        (series,) = record["timeseries"]
        assert len(series) == LENGTH
        named = entries(record)
        stretches = [one["interval"] for one in named if one["type"] in INCONSPICUOUS]  # calmer or noisier than usual
        hidden = {place for start, end in stretches for place in range(start - 1, end + 1)}
        for entry in named:
            start, end = entry["interval"]
            assert 0 < start <= end < LENGTH - 1
            if entry["type"] in ("点异常", "阶跃上升", "阶跃下降", "区间异常", "震荡区间"):
                jumps = np.abs(np.diff(series))
                usual = np.median(jumps[[place for place in range(LENGTH - 1) if place not in hidden]])
                assert jumps[start - 1] > 8 * usual and jumps[end] > 8 * usual
                seen += 1
    assert seen > 50


def test_every_type_and_every_count_occurs(data: Path) -> None:
    found = [entries(record) for record in read(data, "train")]
    assert {len(one) for one in found} == {0, 1, 2}
    assert {entry["type"] for one in found for entry in one} == set(ALL_SHAPES)


def test_no_point_and_no_series_is_on_both_sides(data: Path) -> None:
    points, series = {}, {}
    for part in ("train", "validation"):
        records = read(data, part)
        points[part] = {record["point"] for record in records}
        series[part] = {tuple(record["timeseries"][0]) for record in records}
        assert len(points[part]) == len(series[part]) == len(records)
    assert not points["train"] & points["validation"]
    assert not series["train"] & series["validation"]


def test_other_seeds_have_other_points() -> None:
    one, other = ({record["point"] for record in draw_records("validation", 5, seed)} for seed in (0, 1))
    assert not one & other


def test_control_has_the_same_records_with_another_ones_series(data: Path) -> None:
    plain, control = read(data, "validation"), read(data, "exchanged")
    without = [{key: record[key] for key in record if key != "timeseries"} for record in plain]
    assert without == [{key: record[key] for key in record if key != "timeseries"} for record in control]
    assert all(a["timeseries"] != b["timeseries"] for a, b in zip(plain, control, strict=True))
    assert sorted(a["timeseries"] for a in plain) == sorted(b["timeseries"] for b in control)


def test_same_seed_same_bytes(data: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "same", training=300, validation=101)
    write_data(tmp_path / "other", seed=1, training=300, validation=101)
    for part in PARTS:
        bytes_of = {name: (tmp_path / name / f"{part}.jsonl").read_bytes() for name in ("same", "other")}
        assert bytes_of["same"] == (data / f"{part}.jsonl").read_bytes() != bytes_of["other"]


def test_entries_are_the_repositorys(data: Path) -> None:
    written = json.loads((data / "dataset_info.json").read_text("ascii"))
    assert written == make_entries()
    assert all((data / entry["file_name"]).is_file() for entry in written.values())
    ours = json.loads((ROOT / "dataset_info" / "dataset_info.json").read_text("ascii"))
    assert {name: ours[name] for name in written} == make_entries("../demo/full/data/")


def test_verdict_asks_for_more_than_chance_and_rules_reach() -> None:
    def scores(f1: float, **baselines: float) -> dict[str, Any]:
        return {"event_f1": f1, "baselines": {name: {"event_f1": one} for name, one in baselines.items()}}

    def missed(f1: float, control: float, **baselines: float) -> list[str]:
        return [name for name, _, reached in judge(scores(f1, **baselines), scores(control)) if not reached]

    assert missed(0.96, 0.25, random=0.29, zscore=0.1, iqr=0.95) == []
    assert missed(0.96, 0.33, random=0.29, zscore=0.1, iqr=0.95) == ["3 x series exchanged"]
    assert missed(0.96, 0.25, random=0.33, zscore=0.1, iqr=0.96) == ["3 x random", "iqr"]
    assert missed(0.89, 0.25, random=0.25, zscore=0.9, iqr=0.8) == ["wanted", "zscore"]


@pytest.mark.parametrize("name", ["zscore", "iqr", "sub_pca"])
def test_no_cheap_detector_wins_the_task(name: str) -> None:
    """Most anomalies stay within the range of their series; those that cost more time were measured by hand."""
    pytest.importorskip("pyod")
    from llamafactory_ext.toolbox.evaluate import detectors
    from llamafactory_ext.toolbox.evaluate.detail import ious, matches

    detector, hits, both = detectors.DETECTORS[name], 0, 0
    for record in draw_records("validation", 60, 0):
        scores = detectors.point_scores([np.array(one) for one in record["timeseries"]], detector)
        found = detectors.flagged_intervals(scores, detector.threshold or detectors.UNTRAINED)
        labels = [tuple(entry["interval"]) for entry in entries(record)]
        hits, both = hits + matches(ious(labels, found) >= 0.3), both + len(labels) + len(found)
    assert 2 * hits / both < 0.7
