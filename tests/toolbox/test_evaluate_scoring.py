"""From predictions to an evaluation: sums, types, points, baselines, confidence, and what is refused."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NOTHING_FOUND, answer
from hypothesis import given, settings
from hypothesis import strategies as st


pytest.importorskip("aeon")
pytest.importorskip("telemeval")

from llamafactory_ext.series import describe
from llamafactory_ext.toolbox.evaluate import detectors
from llamafactory_ext.toolbox.evaluate.detectors import DETECTORS, random_intervals
from llamafactory_ext.toolbox.evaluate.metrics import score
from llamafactory_ext.toolbox.evaluate.points import Source
from llamafactory_ext.toolbox.evaluate.predictions import EvaluateError, Prediction, read_predictions
from llamafactory_ext.toolbox.evaluate.scoring import evaluate
from llamafactory_ext.toolbox.evaluate.tallies import METRICS, add, confidence, metrics_of, plain, rounded, tally


def line(label: str, predict: str, series: Sequence[float] | None = None) -> dict[str, Any]:
    """One line as LLaMA-Factory writes it; a series of its own, of 100 points, where none is given."""
    values = np.arange(100.0) if series is None else np.asarray(series)
    prompt = f"<|im_start|>user\n{describe(values)}<ts><ts>\n请找出异常区间"
    return {"prompt": prompt, "predict": predict, "label": label}


def predictions(*lines: dict[str, Any]) -> list[Prediction]:
    return [Prediction(index, **one) for index, one in enumerate(lines)]


def series(level: float) -> list[float]:
    return [level + i % 2 for i in range(100)]


RECORDS = predictions(
    line(answer((10, 19)), answer((10, 19)), series(0)),  # perfect
    line(answer((10, 19)), answer((15, 24)), series(1)),  # shifted
    line(answer((10, 29)), answer((10, 14), (20, 24)), series(2)),  # split
    line(answer((10, 14), (20, 24)), answer((10, 24)), series(3)),  # merged
    line(NOTHING_FOUND, answer((50, 59)), series(4)),
    line(answer((50, 59)), NOTHING_FOUND, series(5)),
    line(NOTHING_FOUND, NOTHING_FOUND, series(6)),
    line(answer((50, 59)), answer((50, 59))[:-2], series(6)),  # broken, and of the same point as the one before
)


def test_what_can_not_be_read_is_never_right() -> None:
    """Not even where there is nothing to find."""
    found = evaluate(predictions(line(NOTHING_FOUND, "none"), line(NOTHING_FOUND, NOTHING_FOUND)))
    assert [set(one.scores.values()) for one in found.records] == [{0.0}, {1.0}]
    assert (found.scores["range_f1"], found.scores["affiliation_f1"]) == (0.5, 0.5)
    only = evaluate(predictions(*[line(NOTHING_FOUND, "I see nothing", series(level)) for level in range(3)])).scores
    f1 = ("event_f1", "range_f1", "affiliation_f1", "point_f1", "event_f1_iou30", "event_f1_iou50")
    assert [only[name] for name in f1] == [0] * 6
    assert [one[name] for one in only["per_point"].values() for name in f1] == [0] * 18
    assert (only["false_alarms_per_normal_series"], only["events"]["false_alarms"]) == (1, 3)
    found = evaluate(predictions(line(answer((3, 5)), "none"))).scores
    assert (found["event_f1"], found["vus_pr"], found["vus_roc"], found["false_alarms_per_1000_points"]) == (
        0,
        0,
        0,
        0,
    )


def test_sums_by_hand() -> None:
    found = evaluate(RECORDS).scores
    assert (found["records"], found["points"], found["strict_json_rate"]) == (8, 7, 7 / 8)
    assert found["events"] == {"hits": 4, "false_alarms": 2, "misses": 3}
    assert not re.search(r"\.\d{7}", json.dumps({**found, "versions": None})), "six decimals are enough"
    assert found["event_precision"] == pytest.approx(4 / 6, abs=1e-6)
    assert found["event_recall"] == pytest.approx(4 / 7, abs=1e-6)
    assert found["event_f1"] == pytest.approx(8 / 13, abs=1e-6)
    hits, false_alarms, misses = 10 + 5 + 10 + 10, 5 + 5 + 10, 5 + 10 + 10 + 10
    assert found["point_f1"] == pytest.approx(2 * hits / (2 * hits + false_alarms + misses), abs=1e-6)
    assert found["range_precision"] == pytest.approx((1 + 0.5 + 1 + 1 / 3 + 0 + 0 + 1 + 0) / 8, abs=1e-6)
    assert found["range_recall"] == pytest.approx((1 + 0.5 + 0.25 + 1 + 0 + 0 + 1 + 0) / 8, abs=1e-6)
    assert found["range_f1"] == pytest.approx((1 + 0.5 + 0.4 + 0.5 + 0 + 0 + 1 + 0) / 8, abs=1e-6)
    assert found["affiliation_precision"] == pytest.approx(
        np.mean([1, 0.925, 1, score([(10, 14), (20, 24)], [(10, 24)], 100).affiliation.precision, 0, 0, 1, 0]),
        abs=1e-6,
    )


def test_records_alone() -> None:
    records = evaluate(RECORDS).records
    assert [one.scores["event_f1"] for one in records] == pytest.approx([1, 1, 2 / 3, 2 / 3, 0, 0, 1, 0])
    assert [one.name for one in records] == [*(f"record {n}" for n in range(7)), "record 6"]
    assert [one.strict for one in records] == [True] * 7 + [False]
    assert "never closes" in records[7].problem
    assert records[7].predicted == ()


def test_a_broken_answer_is_salvaged_on_request() -> None:
    found = evaluate(RECORDS, salvage=True).scores
    assert (found["answers"]["salvaged"], found["answers"]["unreadable"], found["answers"]["cut_off"]) == (1, 0, 1)
    assert found["events"] == {"hits": 5, "false_alarms": 2, "misses": 2}
    assert found["strict_json_rate"] == 7 / 8


def test_points_are_sums_over_their_records() -> None:
    found = evaluate(RECORDS).scores["per_point"]
    assert len(found) == 7
    assert (found["record 6"]["records"], found["record 6"]["misses"], found["record 6"]["range_f1"]) == (2, 1, 0.5)
    assert (found["record 2"]["hits"], found["record 2"]["false_alarms"]) == (1, 1)


def test_types() -> None:
    def typed(*entries: tuple[int, int, str]) -> str:
        named = [{"interval": [start, end], "type": kind} for start, end, kind in entries]
        return json.dumps({"status": "success", "detected_anomalies": named}, ensure_ascii=False)

    label, predict = typed((1, 5, "甲"), (20, 29, "乙")), typed((1, 5, "乙"), (20, 29, "乙"), (50, 59, "丙"))
    found = evaluate(predictions(line(label, predict), line(NOTHING_FOUND, NOTHING_FOUND))).scores["per_type"]
    assert list(found) == ["乙", "甲", "丙"]
    assert (found["甲"]["labels"], found["甲"]["predicted"], found["甲"]["event_f1"]) == (1, 0, 0)
    assert found["甲"]["recall_of_any_type"] == 1
    assert (found["乙"]["hits"], found["乙"]["false_alarms"], found["乙"]["misses"]) == (1, 1, 0)
    assert (found["乙"]["records"], found["乙"]["point_precision"]) == (1, pytest.approx(10 / 15, abs=1e-6))
    assert (found["丙"]["labels"], found["丙"]["false_alarms"], found["丙"]["recall_of_any_type"]) == (0, 1, None)


def test_what_answers_name_is_accounted_for() -> None:
    reply = answer((-5, 3), (98, 120), (300, 310), (40, 41), (40, 41))
    found = evaluate(predictions(line(answer((0, 3), (95, 130)), reply))).scores
    assert found["answers"]["intervals"] == 3
    assert (found["answers"]["intervals_clipped"], found["answers"]["intervals_outside"]) == (2, 1)
    assert found["answers"]["intervals_named_again"] == 1
    assert (found["labels"]["intervals"], found["labels"]["intervals_clipped"]) == (2, 1)
    assert found["events"] == {"hits": 2, "false_alarms": 2, "misses": 0}


@settings(deadline=None, max_examples=10)
@given(st.permutations(range(len(RECORDS))))
def test_order_of_records_does_not_matter(order: list[int]) -> None:
    turned = [Prediction(place, *(getattr(RECORDS[n], key) for key in ("prompt", "predict", "label")))
              for place, n in enumerate(order)]  # fmt: skip
    one, other = add(map(tally, alone(RECORDS))), add(map(tally, alone(turned)))
    assert np.allclose(one, other)


def alone(records: list[Prediction]) -> Any:
    from llamafactory_ext.toolbox.evaluate.judging import judge, read_case

    return [judge(read_case(one, False)) for one in records]


def test_perfect_predictions_score_one() -> None:
    records = [Prediction(one.index, one.prompt, one.label, one.label) for one in RECORDS]
    found = evaluate(records).scores
    assert [found[name] for name in METRICS] == [1] * 12
    assert {tuple(found["confidence"][name]) for name in METRICS} == {(round(0.025 ** (1 / 7), 6), 1)}
    assert 0 < found["baselines"]["random"]["event_f1"] < 0.7


def test_confidence() -> None:
    found = evaluate(RECORDS).scores
    assert set(METRICS) < set(found["confidence"])
    for name, (low, high) in found["confidence"].items():
        assert 0 <= low <= found[name] <= high <= 1
    assert evaluate(RECORDS[:2]).scores["confidence"] == {}  # two points
    assert evaluate(RECORDS[6:]).scores["confidence"] == {}  # two records of one point


def test_confidence_leaves_out_points_not_records() -> None:
    right, wrong = tally(score([(3, 5)], [(3, 5)], 10)), tally(score([(3, 5)], [], 10))
    low, high = confidence(np.array([right * 50, right * 50, wrong * 50]))["event_f1"]
    assert (low < 0.1, high > 0.9) == (True, True)
    assert confidence(np.array([right * 50, right * 50, wrong * 50])) == confidence(np.array([right, right, wrong]))


def test_tallies_of_several_sums_at_once() -> None:
    sums = np.array([add([]), tally(score([(3, 5)], [(4, 8), (9, 9)], 10))])
    both = metrics_of(sums)
    for row in range(2):
        assert {name: rounded(float(values[row])) for name, values in both.items()} == plain(sums[row])


def test_random_baseline_draws_like_the_labels() -> None:
    labels = [(0, 9), (20, 20), (5, 99)]
    drawn = [random_intervals(labels, 100, np.random.default_rng(seed)) for seed in range(500)]
    for number, (start, end) in enumerate(labels):
        starts = {one[number][0] for one in drawn}
        assert all(one[number][1] - one[number][0] == end - start for one in drawn)
        assert (min(starts), max(starts)) == (0, 99 - (end - start))


def test_detectors_are_the_libraries_own_with_one_seed() -> None:
    """Scores in the docs can be made again."""
    from aeon.anomaly_detection.series import PyODAdapter
    from aeon.anomaly_detection.series.distance_based import KMeansAD
    from aeon.anomaly_detection.series.outlier_detection import IsolationForest
    from pyod.models.pca import PCA

    series = np.random.default_rng(3).normal(size=120).cumsum()
    theirs = {
        "iforest": IsolationForest(window_size=12, random_state=0).fit_predict(series, axis=0),
        "sub_pca": PyODAdapter(PCA(random_state=0), window_size=12).fit_predict(series, axis=0),
        "kmeans": KMeansAD(n_clusters=20, window_size=12, random_state=0).fit_predict(series, axis=0),
    }
    for name, expected in theirs.items():
        np.testing.assert_array_equal(getattr(detectors, f"_{name}")(series, 12), expected)
    short = KMeansAD(n_clusters=17, window_size=8, random_state=0).fit_predict(series[:24], axis=0)
    np.testing.assert_array_equal(detectors._kmeans(series[:24], 8), short)  # as many centres as windows


def flagged(series: list[Any], name: str) -> list[tuple[int, int]]:
    detector = DETECTORS[name]
    return detectors.flagged_intervals(detectors.point_scores(series, detector), detector.threshold or 3.0)


def test_rules_find_what_they_are_for() -> None:
    wave = np.sin(np.arange(1000) / 3)
    spiked = wave.copy()
    spiked[500:504] += 30
    assert flagged([spiked], "zscore") == [(500, 503)]
    assert flagged([spiked], "iqr") == [(500, 503)]
    assert flagged([wave, spiked[:700]], "iqr") == [(500, 503)]  # series of one record, of other lengths
    spiked[512] += 30
    assert flagged([spiked], "iqr") == [(500, 512)]  # 8 points between them, up to 10 are bridged
    spiked[[512, 514]] = wave[512], 30
    assert flagged([spiked], "iqr") == [(500, 514)]
    spiked[[514, 515]] = wave[514], 30
    assert flagged([spiked], "iqr") == [(500, 503), (515, 515)]


@pytest.mark.parametrize("rule", list(DETECTORS))
@pytest.mark.parametrize("value", [0.0, 0.1, -1e300, 1e-300])
def test_rules_find_nothing_in_a_constant_series(rule: str, value: float) -> None:
    for length in (1, 5, 1000):
        assert flagged([np.full(length, value)], rule) == []


def test_data_set_gives_series_names_and_rules() -> None:
    values = np.sin(np.arange(100.0))
    values[50] = 40
    given = predictions(line(answer((50, 50)), NOTHING_FOUND, values), line(answer((50, 50)), NOTHING_FOUND, values))
    sources = [Source("a.PV", one.label, (values,)) for one in given]
    found = evaluate(given, sources)
    assert [one.name for one in found.records] == ["a.PV", "a.PV"]
    assert np.array_equal(found.records[0].series[0], values)
    assert found.scores["baselines"]["iqr"]["event_f1"] == found.scores["baselines"]["zscore"]["event_f1"] == 1
    assert found.scores["event_f1"] == 0
    assert found.scores["settings"]["left_out"] == []
    assert evaluate(given).scores["settings"]["left_out"] == ["zscore", "iqr"]


VALUES = np.arange(100.0)
WRONG_SOURCES = {
    "another number": ([], "1 predictions, but 0 records in gdsh"),
    "another length": ([Source("", answer((3, 5)), (VALUES[:50],))], "has series of [100] points, the data set [50]"),
    "another label": (
        [Source("", answer((3, 6)), (VALUES,))],
        "1 of 1 predictions are of other records than those in",
    ),
    "a longer label": ([Source("", answer((3, 5)) + "…", (VALUES,))], "predict with a larger cutoff_len"),
}


@pytest.mark.parametrize("name", WRONG_SOURCES)
def test_another_data_set_is_refused(name: str) -> None:
    sources, said = WRONG_SOURCES[name]
    with pytest.raises(EvaluateError) as error:
        evaluate(predictions(line(answer((3, 5)), "")), sources, dataset="gdsh")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_white_space_makes_no_other_label() -> None:
    source = Source("", answer((3, 5)).replace(" ", ""), (VALUES,))
    assert evaluate(predictions(line(answer((3, 5)), "")), [source]).scores["points"] == 1


WRONG_LINES = {
    "empty": ("", "is empty; expected one JSON object a line, with prompt, predict, label"),
    "no JSON": ("{", "line 1 is no JSON"),
    "no object": ("[]", "line 1 holds list, no object"),
    "no key": ("{}", "line 1 has no text 'prompt': found only nothing; expected LLaMA-Factory's"),
    "twice a key": ('{"prompt": "", "prompt": ""}', "line 1 is no JSON: a key occurs twice"),
    "second line": (
        "\n" + json.dumps({**line("", ""), "label": None}),
        "line 2 has no text 'label': found None in it",
    ),
    "endless": (
        json.dumps({**line("", ""), "prompt": f"[offset=1|scaling=1|length={2**22 + 1}|x]"}),
        "over 4,194,304 p",
    ),
    "no such key": (json.dumps({"prompt": "", "text": ""}), "has no text 'predict': found only prompt, text"),
    "no text": (json.dumps({**line("", ""), "predict": 5}), "has no text 'predict': found 5 in it"),
    "no series": (json.dumps({**line("", ""), "prompt": "?"}), "its prompt tells no length of a series"),
}


@pytest.mark.parametrize("name", WRONG_LINES)
def test_another_file_is_refused(name: str, tmp_path: Path) -> None:
    text, said = WRONG_LINES[name]
    path = tmp_path / "p.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(EvaluateError) as error:
        read_predictions(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_label_that_can_not_be_read_is_named() -> None:
    with pytest.raises(EvaluateError, match=r"record 1: its label can't be read: .*larger cutoff_len"):
        evaluate(predictions(line(NOTHING_FOUND, ""), line(answer((3, 5))[:-5], "")))


def test_lines_and_lengths(tmp_path: Path) -> None:
    two = describe(np.arange(64.0)) + "<ts>" + describe(-np.arange(7.5)) + "<ts>"
    path = tmp_path / "p.jsonl"
    rows = [
        json.dumps({**line("a", "b"), "prompt": two}),
        "",
        json.dumps(line("c\u2028", "d"), ensure_ascii=False),
        "",
    ]
    path.write_text("\n".join(rows), encoding="utf-8")
    found = read_predictions(path)
    assert [(one.index, one.lengths, one.label) for one in found] == [(0, (64, 8), "a"), (1, (100,), "c\u2028")]
    assert len(found[0].descriptions) == 2 and all(one in two for one in found[0].descriptions)
    rows[0] = json.dumps(
        {**line("a", ""), "prompt": f"[offset=1|scaling=1|length={2**22}|x]"}
    )  # as long as any may be
    path.write_text(rows[0].ljust(1 << 24), encoding="utf-8")
    assert read_predictions(path)[0].lengths == (1 << 22,)
    path.write_text(rows[0].ljust((1 << 24) + 1), encoding="utf-8")
    with pytest.raises(EvaluateError, match="line 1 has more than 16,777,216 characters"):
        read_predictions(path)
    path.write_bytes(b"\xff\xfe")
    for wrong, said in ((path, "can't be read: 'utf-8' codec"), (tmp_path / "none", "can't be read: No such file")):
        with pytest.raises(EvaluateError, match=said):
            read_predictions(wrong)
    labels = ["", " \n", "<|im_end|>\n", "x<|im_end|>"]
    assert [Prediction(0, "", "", one).is_labelled for one in labels] == [False, False, False, True]
