"""What `llamafactory-ext check` finds: for each finding a data set that shows it and one that does not."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from conftest import NOTHING_FOUND, answer

from llamafactory_ext.data.formats.format import answered, asked
from llamafactory_ext.toolbox.check import comparisons, findings
from llamafactory_ext.toolbox.session.records import Label, RecordFacts, read_labels, record_facts


PROMPT = "<ts><ts/> find anomalies"
RISING = [float(i) for i in range(100)]


def record(
    reply: str = NOTHING_FOUND,
    series: Sequence[Sequence[float]] = (RISING,),
    prompt: str = PROMPT,
    number: int = 0,
    **notes: Any,
) -> RecordFacts:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
    arrays = [np.array(one, dtype=np.float64) for one in series]
    digests = {"asked": asked(prompt, arrays), "answered": answered(reply)}
    return record_facts(f"record {number}", "", turns, arrays, {"fault": "", "values_filled": 0, **digests, **notes})


def rows(finding: findings.Finding | None) -> list[int]:
    return [place.row for place in finding.places] if finding else []


def other(number: int) -> list[float]:
    """A series unlike RISING and unlike that of another number."""
    return [*RISING[:-1], 1000.0 + number]


GOOD = record(answer((10, 12)))

SINGLE = {
    "unusable": (findings.unusable, record(fault="no CSV"), GOOD),
    "constant": (findings.constant, record(series=[[5.0] * 64]), record(series=[[5.0] * 63 + [5.1]])),
    "one constant of two": (findings.constant, record(series=[RISING, [1.0] * 70]), record(series=[RISING, RISING])),
    "gaps": (findings.gaps, record(values_filled=6), record(values_filled=5)),
    "too short": (findings.unusual_length, record(series=[[0.0, 1.0] * 31 + [2.0]]), record(series=[[0.0, 1.0] * 32])),
    "too long": (findings.unusual_length, record(series=[[0.0] * 1025]), record(series=[[0.0] * 1024])),
    "outside": (findings.outside, record(answer((90, 100))), record(answer((90, 99)))),
    "reversed": (findings.outside, record(answer((9, 8))), record(answer((8, 8)))),
    "negative": (findings.outside, record(answer((-1, 8))), record(answer((0, 8)))),
    "no pair": (findings.outside, record('[{"interval": [5], "type": "x"}]'), record('[{"type": "x"}]')),
    "first index": (findings.at_border, record(answer((0, 3))), record(answer((1, 3)))),
    "last index": (findings.at_border, record(answer((97, 99))), record(answer((97, 98)))),
    "wide": (findings.wide, record(answer((20, 70))), record(answer((20, 69)))),
}


@pytest.mark.parametrize("name", SINGLE)
def test_single_record(name: str) -> None:
    find, bad, good = SINGLE[name]
    assert rows(find([good, bad, good])) == [1]
    assert find([good, good]) is None
    assert find([]) is None


def test_faults_stop_and_notices_do_not() -> None:
    severities = {name: find([GOOD, bad]).severity for name, (find, bad, _) in SINGLE.items()}  # type: ignore[union-attr]
    faults = {name for name, severity in severities.items() if severity == "fault"}
    assert faults == {"unusable", "outside", "reversed", "negative", "no pair"}


def test_the_detail_names_what_was_found() -> None:
    finding = findings.outside([record(answer((90, 100), (3, 2)))])
    assert finding is not None
    assert finding.places[0].detail == "[90, 100], [3, 2] in a series of 100 points"
    finding = findings.unusable([GOOD, record(fault="no CSV")])
    assert finding is not None
    assert finding.places[0].detail == "no CSV"
    assert finding.text.startswith("1 of 2 records can't be used")


def test_intervals_are_held_against_the_longest_series() -> None:
    assert findings.outside([record(answer((90, 99)), series=[RISING[:50], RISING])]) is None


@pytest.mark.parametrize(("drop", "severity"), [(False, "fault"), (True, "notice")])
def test_overlong(drop: bool, severity: str) -> None:
    finding = findings.overlong([GOOD] * 3, [10, 11, None], limit=10, drop=drop)
    assert finding is not None
    assert (rows(finding), finding.severity) == ([1], severity)
    assert "cutoff_len: 11" in finding.advice
    assert findings.overlong([GOOD] * 3, [10, 10, None], limit=10, drop=drop) is None


def test_series_that_the_checkpoint_cannot_place() -> None:
    assert rows(findings.series_too_long([GOOD, record(series=[[0.0] * 101])], 100)) == [1]
    assert findings.series_too_long([GOOD], 100) is None
    assert findings.series_too_long([GOOD], None) is None


def test_answers_that_are_not_json() -> None:
    text = record("There is a spike.")
    mixed = findings.not_json([GOOD, text, record(f"{NOTHING_FOUND},{NOTHING_FOUND}"), record("7")])
    assert mixed is not None
    assert (rows(mixed), mixed.severity) == ([1, 2, 3], "fault")
    none = findings.not_json([text, text])
    assert none is not None
    assert (none.kind, none.severity, none.places) == ("no_labels", "notice", ())
    assert findings.not_json([GOOD, record(fault="x")]) is None


def test_contradictions() -> None:
    one, two = record(answer((1, 2)), number=0), record(answer((3, 4)), number=1)
    finding = comparisons.contradictions([one, two, record(answer((3, 4)), series=[other(1)])])
    assert finding is not None
    assert (rows(finding), finding.severity) == ([0, 1], "fault")
    assert finding.places[0].detail == "also asked in record 1"
    assert "--merge-points" in finding.advice


@pytest.mark.parametrize(
    "second",
    [
        record(answer((3, 4)), prompt="<ts><ts/> find steps"),
        record(answer((3, 4)), series=[other(1)]),
        record(json.dumps(json.loads(answer((1, 2))), indent=1, sort_keys=True)),
        record(fault="no CSV"),
    ],
    ids=["another prompt", "another series", "the same in another form", "unusable"],
)
def test_no_contradiction(second: RecordFacts) -> None:
    assert comparisons.contradictions([record(answer((1, 2))), second]) is None


def test_text_only_records_do_not_contradict_one_another() -> None:
    assert comparisons.contradictions([record("a", series=[]), record("b", series=[])]) is None


def test_duplicates_and_shared_series() -> None:
    several = [record(number=0), record(number=1), record(answer((1, 1)), prompt="other", number=2), GOOD]
    assert rows(comparisons.duplicates(several)) == [0, 1]
    assert rows(comparisons.shared_series(several)) == [0, 1, 2, 3]
    apart = [record(series=[other(i)]) for i in range(5)]
    assert comparisons.duplicates(apart) is None
    assert comparisons.shared_series(apart) is None


def test_a_series_twice_in_one_record_is_not_shared() -> None:
    assert comparisons.shared_series([record(series=[RISING, RISING])]) is None


def test_large_groups_are_named_shortly() -> None:
    finding = comparisons.duplicates([record(number=i) for i in range(9)])
    assert finding is not None
    assert finding.places[0].detail == "the same as record 1, record 2, record 3 and 5 more"
    assert finding.places[8].detail == "the same as record 0, record 1, record 2 and 5 more"


def test_leaks_into_another_data_set() -> None:
    held_out = [record(series=[other(1)], number=7)]
    finding = comparisons.leaks([GOOD, record(series=[RISING, other(1)])], held_out, "valid")
    assert finding is not None
    assert (rows(finding), finding.severity) == ([1], "fault")
    assert finding.places[0].detail == "also record 7 of valid"
    assert comparisons.leaks([GOOD], held_out, "valid") is None


def test_leaks_of_a_split_by_record() -> None:
    three = [record(series=[other(1)]), record(series=[other(2)]), record(series=[other(1)])]
    finding = comparisons.split_leaks(three, [2], 0.3)
    assert finding is not None
    assert (rows(finding), finding.severity) == ([0, 2], "fault")
    assert "1 series would be in training and in validation" in finding.text
    assert comparisons.split_leaks(three, [1], 0.3) is None
    assert comparisons.split_leaks(three, [0, 2], 0.3) is None


def test_one_sided() -> None:
    spike, step = record(answer((1, 2), kind="spike")), record(answer((1, 2), kind="step"))
    nothing = record()
    said = {
        "every record has an anomaly": [spike, step],
        "5 of 6 anomalies are spike": [spike] * 5 + [step, nothing],
        "5 of 6 records have no anomaly": [nothing] * 5 + [spike],
    }
    for text, records in said.items():
        finding = findings.one_sided(records)
        assert finding is not None
        assert text in finding.text
    assert findings.one_sided([spike, step, nothing]) is None
    assert findings.one_sided([record("text")] * 3) is None


def test_labels_of_every_form() -> None:
    assert read_labels(answer((3, 4))).labels == (Label(3, 4, "点异常"),)
    assert read_labels(answer((3, 4)), reasons=True).labels == (Label(3, 4, "点异常", "…"),)
    assert read_labels('{"note": "x", "detected_anomalies": [{"interval": [1, 2]}]}').labels == (Label(1, 2, ""),)
    assert read_labels("[" * 100_000).is_json is False
    assert read_labels('{"interval": ["a", 2]}').fault


def test_a_record_without_an_answer_is_unusable() -> None:
    turns = [{"role": "user", "content": "x"}]
    facts = record_facts("record 0", "", turns, [], {"fault": "", "values_filled": 0})
    assert "found 1 messages" in facts.fault
