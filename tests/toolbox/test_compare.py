"""Runs over the same records, paired: a known difference is found, and none where there is none."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest


pytest.importorskip("aeon")
pytest.importorskip("telemeval")

from conftest import NOTHING_FOUND, answer

from llamafactory_ext.series import describe
from llamafactory_ext.toolbox.cli import compare as cli
from llamafactory_ext.toolbox.evaluate.comparing import Run, compare
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
