"""Sums, rates and their confidence: each number by hand, or by what the textbook says of it."""

import json
from typing import Any

import numpy as np
import pytest


pytest.importorskip("aeon")
pytest.importorskip("telemeval")

from conftest import NOTHING_FOUND, answer

from llamafactory_ext.gdsh.events import Counts
from llamafactory_ext.series import describe
from llamafactory_ext.toolbox.evaluate.detail import heights
from llamafactory_ext.toolbox.evaluate.judging import confidence_of, has_confidences, judge, read_case
from llamafactory_ext.toolbox.evaluate.metrics import score, unreadable
from llamafactory_ext.toolbox.evaluate.page import order
from llamafactory_ext.toolbox.evaluate.points import Source, check_order, fill_lengths, point_names
from llamafactory_ext.toolbox.evaluate.predictions import EvaluateError, Prediction
from llamafactory_ext.toolbox.evaluate.scoring import evaluate
from llamafactory_ext.toolbox.evaluate.spread import deviation, interval, interval_of_difference
from llamafactory_ext.toolbox.evaluate.tallies import (
    METRICS,
    RATES,
    add,
    by_type,
    confidence,
    counts_of,
    metrics_of,
    plain,
    records_of,
    tally,
    titles,
)


# Two-sided 95 % of Student's t with 2 and 4 degrees of freedom, as tables print them.
T = {3: 4.302653, 5: 2.776445}


def predicted(label: str, predict: str, index: int = 0, length: int = 100, **more: Any) -> Prediction:
    return Prediction(index, "", predict, label, (length,), **more)


def entries(*some: dict[str, Any]) -> str:
    return json.dumps({"status": "success", "detected_anomalies": some})


def test_every_score_of_a_sum_by_hand() -> None:
    """Three records: hits at an IoU of 1, 0.25 and 0.05, a miss, false alarms with and without labels."""
    types = (
        {(10, 19): frozenset("a"), (40, 49): frozenset("b")},
        {(10, 19): frozenset("a"), (46, 55): frozenset("a")},
    )
    records = [
        score([(10, 19), (40, 49), (90, 94)], [(10, 19), (46, 55), (70, 79)], 100, types=types),
        score([(0, 19)], [(19, 19)], 50),
        score([], [(5, 9), (20, 20)], 50, outside=1),
    ]
    sums = add(map(tally, records))
    assert (records_of(sums), counts_of(sums)) == (3, {"hits": 3, "false_alarms": 4, "misses": 1})
    found = plain(sums)
    wanted = {
        "event_f1": 6 / 11,
        "event_precision": 3 / 7,
        "event_recall": 3 / 4,
        "point_f1": 2 * 15 / (2 * 15 + 22 + 30),  # in common 10 + 4 + 1, besides 6 + 10 + 6, missed 6 + 5 + 19
        "point_precision": 15 / 37,
        "point_recall": 15 / 45,
        "event_f1_iou30": 2 / 11,
        "event_f1_iou50": 2 / 11,
        "mean_iou": (1 + 4 / 16 + 1 / 20) / 3,
        "false_alarms_per_1000_points": 1000 * 4 / 200,
        "false_alarms_per_normal_series": 3,
        "mean_delay": (0 + 6 + 19) / 3,
        "right_type": 1 / 2,
        "vus_pr": (records[0].detail.vus_pr + records[1].detail.vus_pr) / 2,
        "vus_roc": (records[0].detail.vus_roc + records[1].detail.vus_roc) / 2,
        "range_recall": np.mean([one.range.recall for one in records]),
        "affiliation_precision": np.mean([one.affiliation.precision for one in records]),
        "affiliation_f1": np.mean([one.affiliation.f1 for one in records]),
    }
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    single = plain(tally(score([(3, 3)], [(3, 3)], 10)))
    assert {single[name] for name in METRICS} == {1}
    nothing = plain(add([]))
    assert [name for name, value in nothing.items() if value is None] == [
        *("mean_iou", "vus_pr", "vus_roc", "false_alarms_per_1000_points", "false_alarms_per_normal_series"),
        *("mean_delay", "right_type"),
    ]
    assert (nothing["range_f1"], nothing["affiliation_recall"]) == (0, 0)
    assert (nothing["event_f1"], nothing["point_recall"], nothing["event_f1_iou50"]) == (1, 1, 1)
    assert list(titles()) == ["event_f1", *RATES, "range_f1", "affiliation_f1", "point_f1"]


def test_hits_at_an_iou_leave_their_pairs_wrong_where_they_do_not_lie() -> None:
    """A hit by a common point alone is a false alarm and a miss there."""
    found = metrics_of(tally(score([(0, 9), (50, 59)], [(4, 9), (58, 69)], 100)))
    assert (float(found["event_f1"]), float(found["event_f1_iou30"]), float(found["event_f1_iou50"])) == (1, 0.5, 0.5)


def test_a_single_prediction_outside_is_a_false_alarm() -> None:
    found = score([], [], 50, outside=1)
    assert (found.events, found.range.f1, found.affiliation.f1) == (Counts(0, 1, 0), 0, 0)


def test_what_is_no_answer_has_no_volume_and_misses_or_is_one_false_alarm() -> None:
    wrong = unreadable(score([(3, 5)], [], 50))
    assert (wrong.events, wrong.points) == (Counts(0, 0, 1), Counts(0, 0, 3))
    assert (wrong.detail.vus_pr, wrong.detail.vus_roc, wrong.detail.volumes) == (0, 0, 1)
    assert wrong.detail.normal_false_alarms == 0
    wrong = unreadable(score([], [], 50))
    assert (wrong.events, wrong.points, wrong.range.f1) == (Counts(0, 1, 0), Counts(0, 1, 0), 0)
    assert (wrong.detail.normal, wrong.detail.normal_false_alarms) == (1, 1)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.array([0.2, 0.5, 0.4, 0.9, 0.7])
    left_out = np.array([np.delete(values, place).mean() for place in range(5)])
    error, mean = values.std(ddof=1) / 5**0.5, values.mean()
    assert float(deviation(left_out)) == pytest.approx(error)
    low, high = interval_of_difference(mean, left_out)
    assert (float(low), float(high)) == pytest.approx((mean - T[5] * error, mean + T[5] * error), rel=1e-6)
    # A score from 0 to 1 is spread on the scale of its log odds, whose slope at p is 1 / p (1 - p).
    odds = [float(np.log(end / (1 - end))) for end in interval(np.asarray(mean), left_out)]
    assert sum(odds) / 2 == pytest.approx(np.log(mean / (1 - mean)))
    assert (odds[1] - odds[0]) / 2 == pytest.approx(T[5] * error / (mean * (1 - mean)), rel=1e-6)


def test_all_right_and_all_wrong_have_the_exact_interval_of_as_many_trials() -> None:
    """Clopper and Pearson: of n without a miss, the rate is at least 0.025^(1/n)."""
    ends = np.array(interval(np.array([1.0, 0.0]), np.ones((2, 4))))
    least = 0.025**0.25
    assert ends.T.tolist() == [pytest.approx([least, 1]), pytest.approx([0, 1 - least])]


def test_confidence_takes_three_points_and_some_spread() -> None:
    right, half = tally(score([(3, 5)], [(3, 5)], 10)), tally(score([(3, 5)], [(3, 5), (8, 8)], 10))
    assert confidence(np.array([right, right])) == {}
    found = confidence(np.array([half, half, half]))
    assert (
        "event_precision" not in found and "event_f1" not in found
    )  # a half each: no spread, and neither all nor none
    assert found["event_recall"] == pytest.approx([0.025 ** (1 / 3), 1], abs=1e-6)
    assert not {"mean_delay", "false_alarms_per_1000_points", "right_type"} & set(found)
    wrong = confidence(np.array([tally(score([(3, 5)], [], 10))] * 3))["event_f1"]
    assert wrong == pytest.approx([0, 1 - 0.025 ** (1 / 3)], abs=1e-6)
    found = confidence(np.array([right, right, half]))
    # Of all 3 of 4, without a point 2 of 3, 2 of 3, 2 of 2: by the formulas above.
    error = float(deviation(np.array([2 / 3, 2 / 3, 1])))
    odds, wide = np.log(3), T[3] * error / (3 / 16)
    assert found["event_precision"] == pytest.approx(
        [1 / (1 + np.exp(wide - odds)), 1 / (1 + np.exp(-wide - odds))], abs=1e-6
    )


def test_types_are_ordered_by_their_labels_and_then_by_name() -> None:
    labels = [answer((1, 2), (4, 5), kind="b"), answer((1, 2), kind="a"), answer((1, 2), kind="c")]
    found = by_type([read_case(predicted(one, one), False) for one in labels])
    assert [(name, one["labels"], one["predicted"], one["recall_of_any_type"]) for name, one in found.items()] == [
        ("b", 2, 2, 1.0),
        ("a", 1, 1, 1.0),
        ("c", 1, 1, 1.0),
    ]


def test_of_answers_and_labels_everything_is_counted() -> None:
    remark, normal = {"type": "x", "reason": "y"}, {"type": "无异常"}
    one, far = {"interval": [1, 2], "type": "x"}, {"interval": [200, 210], "type": "x"}
    found = evaluate(
        [
            predicted(entries(one, far, normal), entries(one, one, far, remark, normal)),
            predicted(entries(normal), entries(normal, remark, remark), 1),
            predicted(NOTHING_FOUND, str(one), 2),
        ],
        names=None,
    ).scores
    assert found["answers"] == {
        **{"strict": 2, "lenient": 1, "salvaged": 0, "unreadable": 0, "cut_off": 0},
        **{"intervals": 2, "intervals_clipped": 0, "intervals_outside": 1, "intervals_named_again": 1},
        **{"entries_without_interval": 3, "normal_entries": 2, "normal_beside_anomalies": 1},
    }
    assert found["labels"] == {
        **{"intervals": 1, "intervals_clipped": 0, "intervals_outside": 1, "normal_entries": 2, "records_without": 2}
    }
    assert (found["baselines"], found["records"], found["points"]) == ({}, 3, 1)


def test_settings_and_the_mean_over_random_draws() -> None:
    """Labels of the whole series are found at every draw, wherever it falls; a record's own types play no part."""
    found = evaluate([predicted(answer((0, 99)), NOTHING_FOUND)], salvage=True).scores
    assert found["settings"] == {
        "salvage": True,
        "confidence_level": 0.95,
        "fewest_points": 3,
        "random_draws": 10,
        "left_out": ["zscore", "iqr"],
        "thresholds": {"zscore": 0.0, "iqr": 0.0},
        "thresholds_chosen_on_training_labels": False,
    }
    assert list(found["baselines"]) == ["random"]
    random = found["baselines"]["random"]
    assert (random["event_f1"], random["mean_delay"], random["right_type"], random["vus_pr"]) == (1, 0, None, None)
    assert set(found["versions"]) == {"llamafactory-ext", "aeon", "telemeval", "scipy", "numpy"}


@pytest.mark.parametrize(
    ("value", "sure"), [(0.5, 0.5), (1, 1.0), (True, None), ("0.5", None), (float("nan"), None), (None, None)]
)
def test_a_confidence_is_a_finite_number(value: Any, sure: float | None) -> None:
    case = read_case(
        predicted(NOTHING_FOUND, str({"interval": [1, 2], "confidence": value}).replace("nan", "NaN")), False
    )
    if case.predicted.inside:
        assert confidence_of(case.predicted.inside[0]) == sure
        assert has_confidences(case) == (sure is not None)


def test_confidences_count_where_every_interval_has_one() -> None:
    label = answer((10, 19))
    wrong, right = {"interval": [50, 59], "confidence": 0.9}, {"interval": [10, 19], "confidence": 0.2}
    known = judge(read_case(predicted(label, entries(wrong, right)), False)).detail
    turned = judge(read_case(predicted(label, entries({**wrong, "confidence": 0.1}, right)), False)).detail
    partly = judge(read_case(predicted(label, entries({"interval": [50, 59]}, right)), False)).detail
    alike = judge(read_case(predicted(label, answer((50, 59), (10, 19))), False)).detail
    assert known.vus_roc < partly.vus_roc == alike.vus_roc < turned.vus_roc
    assert not has_confidences(read_case(predicted(label, entries({"interval": [50, 59]}, right)), False))
    assert not has_confidences(read_case(predicted(label, NOTHING_FOUND), False))
    assert heights({(1, 3): 0.5, (3, 4): 0.2}, 6).tolist() == [0, 0.5, 0.5, 0.5, 0.2, 0]


def test_a_label_that_is_no_json_is_not_said_to_be_cut_off() -> None:
    with pytest.raises(EvaluateError) as error:
        read_case(predicted("nothing", ""), False)
    assert str(error.value).startswith("record 0: its label can't be read: ") and "cutoff_len" not in str(error.value)


def test_the_worst_come_first_and_equals_by_their_place() -> None:
    given = [predicted(answer((10, 19)), one, place) for place, one in enumerate([NOTHING_FOUND, "?", NOTHING_FOUND])]
    given += [predicted(answer((10, 19)), answer((10, 12)), 3), predicted(answer((10, 19)), answer((10, 17)), 4)]
    assert [one.index for one in order(evaluate(given[::-1], names=None).records)] == [1, 0, 2, 3, 4]


def test_points_are_named_by_pictures_series_or_descriptions() -> None:
    values = [np.arange(5.0), np.arange(6.0), np.arange(5.0)]
    sources = [Source("", "", (one,)) for one in values] + [Source("a.PV", "", (values[0],))]
    prompts = [Prediction(place, describe(one), "", "") for place, one in enumerate(values)]
    assert point_names(prompts, sources) == ["record 0", "record 1", "record 0", "a.PV"]
    assert point_names(prompts, None) == ["record 0", "record 1", "record 0"]
    found = fill_lengths([*prompts[:1], Prediction(1, "", "", "")], [sources[1], sources[1]])
    assert [one.lengths for one in found] == [(5,), (6,)]


@pytest.mark.parametrize(
    ("said", "meant", "problem"),
    [
        (answer((3, 5)), answer((3, 6)), "its label is '{"),
        (answer((3, 5))[:-2], answer((3, 5)), f"its label is cut off after {len(answer((3, 5))) - 2} of"),
        ("", answer((3, 5)), "its label is '', the data set's '{"),
        (answer((3, 5)), "?", "the data set's '?'"),
        ("a" * 60 + "b", "c" * 60 + "d", f"its label is '{'a' * 60}', the data set's '{'c' * 60}';"),
        (answer((3, 5)) + "\n", answer((3, 5)).replace(" ", ""), ""),
    ],
)
def test_other_labels_are_told_apart(said: str, meant: str, problem: str) -> None:
    good = (predicted(NOTHING_FOUND, ""), Source("", NOTHING_FOUND, (np.arange(100.0),)))
    given = [good, (predicted(said, "", 1), Source("", meant, (np.arange(100.0),)))]
    if not problem:
        check_order(*zip(*given, strict=True), "d")
        return
    with pytest.raises(EvaluateError) as error:
        check_order(*zip(*given, strict=True), "d")
    text = str(error.value)
    assert text.startswith("1 of 2 predictions are of other records than those in d; the first is record 1: ")
    assert problem in text and "max_samples, val_size, seed" in text
