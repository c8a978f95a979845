"""Runs over the same records, paired: a known difference is found, and none where there is none."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest


pytest.importorskip("aeon")
pytest.importorskip("telemeval")

from conftest import NOTHING_FOUND, answer

from llamafactory_ext.gdsh import Anomaly
from llamafactory_ext.series import describe
from llamafactory_ext.toolbox.cli import compare as cli
from llamafactory_ext.toolbox.evaluate.compare_page import page
from llamafactory_ext.toolbox.evaluate.comparing import Run, check_same, compare
from llamafactory_ext.toolbox.evaluate.judging import Evaluation, Judged
from llamafactory_ext.toolbox.evaluate.predictions import EvaluateError, Prediction
from llamafactory_ext.toolbox.evaluate.scoring import evaluate


LENGTH, RECORDS = 200, 40


def lines(skill: float, seed: int, records: int = RECORDS) -> list[dict[str, str]]:
    """A model that finds each label with this probability, else something else; series of their own."""
    rng, found = np.random.default_rng(seed), []
    for number in range(records):
        start = 20 + number
        label, other = answer((start, start + 19)), answer((150, 155))
        prompt = f"{describe(np.arange(LENGTH) + 7.0 * number)}<ts><ts>"
        found.append({"prompt": prompt, "predict": label if rng.random() < skill else other, "label": label})
    return found


def run(name: str, given: list[dict[str, str]]) -> Run:
    return Run(name, evaluate([Prediction(index, **one) for index, one in enumerate(given)], names=None))


def test_a_known_difference_is_found() -> None:
    found = compare([run("a", lines(0.4, 1)), run("b", lines(0.9, 2))], {})
    (gap,) = found["differences"]
    low, high = gap["event_f1"]["interval"]
    assert gap["event_f1"]["certain"] and 0 < low < gap["event_f1"]["difference"] < high
    assert found["mcnemar"][0]["p"] < 0.01
    only = found["mcnemar"][0]
    assert (
        len(found["turned"][0]["better"])
        == only["only_other"]
        > only["only_first"]
        == len(found["turned"][0]["worse"])
    )


def test_two_seeds_of_equal_models_do_not_differ() -> None:
    """At 95 % one of twenty pairs may."""
    pairs = [compare([run("a", lines(0.7, 2 * n)), run("b", lines(0.7, 2 * n + 1))], {}) for n in range(10)]
    assert sum(one["differences"][0]["event_f1"]["certain"] for one in pairs) <= 1
    assert sum(one["mcnemar"][0]["p"] < 0.05 for one in pairs) <= 1
    same = compare([run("a", lines(0.7, 3)), run("b", lines(0.7, 3))], {})
    assert {one["difference"] for one in same["differences"][0].values()} <= {0, None}
    assert same["turned"] == [{"better": [], "worse": []}]


def test_groups_and_types() -> None:
    kinds = ["temperature" if number % 2 else "flow" for number in range(RECORDS)]
    found = compare([run("a", lines(1, 1)), run("b", lines(0, 1))], {"kind": kinds})
    assert [one["event_f1"] for one in found["per_group"]["kind"]["flow"]] == [1, 0]
    assert list(found["per_type"]) and all(one[0]["event_f1"] == 1 for one in found["per_type"].values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda given: given[:-1], "40 labelled records, b 39"),
        (
            lambda given: [{**given[0], "label": NOTHING_FOUND}, *given[1:]],
            "0 of a and of b are not the same: labels",
        ),
        (lambda given: [{**given[0], "prompt": given[1]["prompt"]}, *given[1:]], "not the same"),
        (
            lambda given: [{**given[0], "prompt": describe(np.arange(90.0))}, *given[1:]],
            "200 points, 90",
        ),
    ],
)
def test_runs_over_different_records_are_refused(change, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(EvaluateError, match=said):
        compare([run("a", lines(0.5, 1)), run("b", change(lines(0.5, 2)))], {})


def judged(index: int = 0, length: int = 100, name: str = "p", **given: Any) -> Judged:
    known: dict[str, Any] = {"labels": (), "predicted": (), "strict": True, "problem": "", "scores": {}}
    return Judged(index=index, length=length, name=name, **{**known, **given})


@pytest.mark.parametrize(
    ("other", "keys", "said"),
    [
        ({}, "a", ""),
        ({}, "", ""),
        ({}, "b", "another series in the prompt"),
        ({"index": 4}, "a", "the other is record 4"),
        ({"length": 99}, "a", "100 points, 99 points"),
        ({"name": "q"}, "a", "p, q"),
        ({"labels": (Anomaly(3, 5, {"type": "x"}),) * 4}, "a", "labels [], [(3, 5, 'x'), (3, 5, 'x'), (3, 5, 'x')]"),
    ],
)
def test_what_makes_a_record_another_is_said(other: dict[str, Any], keys: str, said: str) -> None:
    first = Run("a", Evaluation({}, [judged(1), judged()], (), ["", "a"]))
    second = Run("b", Evaluation({}, [judged(1), judged(**other)], (), ["a", keys]))
    if not said:
        check_same([first, second])
        return
    with pytest.raises(EvaluateError) as error:
        check_same([first, first, second])
    wanted = f"record 0 of a and of b are not the same: {said}; predict the same data set with both"
    assert str(error.value) == wanted


def test_one_run_alone_is_no_comparison_and_the_order_of_labels_none() -> None:
    with pytest.raises(EvaluateError, match="one run can't be compared; name two or more"):
        compare([run("a", lines(1, 1))], {})
    one, other = (Anomaly(place, place, {"type": "x"}) for place in (1, 2))
    check_same([Run("", Evaluation({}, [judged(labels=some)], (), [""])) for some in ((one, other), (other, one))])


def test_a_small_comparison_by_hand() -> None:
    """Five records of four points: the second run finds three labels more and loses one, the third loses one."""
    label, miss, both = answer((10, 19)), answer((50, 59)), answer((10, 19), (70, 79))
    answers = {
        "a": [miss, NOTHING_FOUND, label, miss, both],
        "b": [label, label, answer((16, 25)), label, answer((10, 19), (30, 39))],
        "c": [miss, miss, miss, miss, both],
    }
    runs = []
    for name, given in answers.items():
        prompts = [f"[offset={offset}|scaling=1|length=100|x]" for offset in (0, 1, 2, 3, 3)]
        predictions = map(Prediction, range(5), prompts, given, [label] * 4 + [both])
        runs.append(Run(name, evaluate(list(predictions), names=None)))
    found = compare(runs, {"kind": ["x", "y", "x", "y", "x"]})
    assert (found["runs"], found["records"], found["points"]) == (["a", "b", "c"], 5, 4)
    assert found["mcnemar"] == [
        {"labels": 6, "only_first": 1, "only_other": 3, "p": 0.625},  # 2 (1 + 4) / 2^4
        {"labels": 6, "only_first": 1, "only_other": 0, "p": 1.0},
    ]
    right, wrong = lines(1, 1, 9), lines(0, 1, 9)
    uneven = compare([run("a", [*right[:1], *wrong[1:]]), run("b", [*wrong[:1], *right[1:]])], {})
    assert uneven["mcnemar"] == [{"labels": 9, "only_first": 1, "only_other": 8, "p": 0.039062}]  # 20 / 2^9
    assert not re.search(r"\.\d{7}", json.dumps(found)), "six decimals are enough"
    # A false alarm is nearer to its label than nothing at all, by affiliation.
    assert found["turned"] == [{"better": [1, 0, 3], "worse": [4, 2]}, {"better": [1], "worse": [2]}]

    def near(*values: float) -> Any:
        return pytest.approx(list(values), abs=1e-6)

    assert [one["event_f1"] for one in found["scores"]] == near(6 / 11, 10 / 12, 4 / 12)
    assert [one["event_f1"] for one in found["per_group"]["kind"]["y"]] == [0, 1, 0]
    assert [one["event_f1"] for one in found["per_group"]["kind"]["x"]] == near(6 / 8, 6 / 8, 4 / 8)
    assert [one["event_f1_iou30"] for one in found["per_type"]["点异常"]] == near(6 / 11, 8 / 12, 4 / 12)
    # Without each point in turn: twice the hits of either run, and false alarms and misses besides.
    gaps = np.array([8 / 10 - 6 / 9, 8 / 10 - 6 / 10, 8 / 10 - 4 / 9, 6 / 6 - 2 / 5])
    wide = 3.182446 * float(np.sqrt(3 / 4 * ((gaps - gaps.mean()) ** 2).sum()))  # Student's t of 3 degrees of freedom
    gap = found["differences"][0]["event_f1"]
    assert [gap["difference"], *gap["interval"]] == near(
        10 / 12 - 6 / 11, 10 / 12 - 6 / 11 - wide, 10 / 12 - 6 / 11 + wide
    )


@pytest.mark.parametrize(("points", "known"), [(2, False), (3, True)])
def test_a_difference_of_three_points_has_an_interval(points: int, known: bool) -> None:
    runs = [run("a", lines(0, 1, points)), run("b", lines(1, 1, points))]
    for order, certain in ((runs, known), (runs[::-1], known)):
        gap = compare(order, {})["differences"][0]
        assert (gap["event_f1"]["interval"] is not None, gap["event_f1"]["certain"]) == (known, certain)
        assert gap["right_type"] == {"difference": None, "interval": None, "certain": False}  # one run has no hit


def test_the_page_draws_ten_of_those_that_turned_with_both_answers() -> None:
    runs = [run(name, lines(skill, 1, 12)) for name, skill in (("a", 0), ("b", 1), ("c", 0))]
    text = "".join(page(compare(runs, {}), runs))
    assert "10 of 12, the largest change first." in text and "Turned better by B" in text
    assert not re.search("Turned (worse|better) by C", text) and "Turned worse" not in text
    scores = re.findall(r'([A-Z]): <span class="score">event f1 <b>([\d.]+)</b>', text)
    assert scores == [("A", "0.000"), ("B", "1.000")] * 10
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", text)
    assert heads[:6] == ["score", "A", "B", "C", "B − A", "C − A"]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, skill in (("a", 0.4), ("<b>", 0.9)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines(skill, len(name))))
    (tmp_path / "fields.csv").write_text("series,kind\nrecord 0,flow\nrecord 1,<i>\n")
    command = ["compare", f"{tmp_path}/a.jsonl", f"{tmp_path}/<b>.jsonl", "--out", f"{tmp_path}/out"]
    monkeypatch.setattr(sys, "argv", [*command, "--fields", f"{tmp_path}/fields.csv", "--by", "kind"])
    assert cli.main() == 0
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert set(found["per_group"]["kind"]) == {"flow", "<i>", "(unknown)"}
    page, printed = (tmp_path / "out" / "index.html").read_text(), capsys.readouterr().out
    assert "&lt;b&gt;" in page and "<b>.jsonl" not in page and "&lt;i&gt;" in page
    assert "McNemar p = 0." in printed and "McNemar p = 0." in page
    monkeypatch.setattr(sys, "argv", [*command[:1], f"{tmp_path}/a.jsonl", f"{tmp_path}/none.jsonl", *command[3:]])
    assert cli.main() == 2
