"""What is said of a data set that has been read: faults, counts, remarks, contradictions. What Arrow may read."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from llamafactory_ext.data import loading, normalise
from llamafactory_ext.data.formats.chatts import original_rows, shorten_rows
from llamafactory_ext.data.formats.format import Notes, answered, asked, contradicting, note_answer
from llamafactory_ext.gdsh import GdshError, parse_answer
from llamafactory_ext.series import as_series


def noted(*notes: Notes, **columns: list[Any]) -> Dataset:
    names = [f"record {number} (a.jpg)" if number else "" for number in range(len(notes))]
    lines = [json.dumps(asdict(one)) for one in notes]
    return Dataset.from_dict({"_record": names, "_notes": lines, "x": list(range(len(notes))), **columns})


@pytest.fixture
def settle(log: pytest.LogCaptureFixture) -> Any:
    """Returns what is logged of records with these notes, line by line."""

    def run(*notes: Notes) -> list[str]:
        log.clear()
        found = loading._settle(noted(*notes), "entry", Path("/d/a.json"))
        assert found.column_names == ["_record", "x"] and len(found) == len(notes)
        return [line for record in log.records for line in record.message.splitlines()]

    return run


def test_counts_and_in_how_many_records(settle: Any) -> None:
    said = settle(Notes(values_filled=3), Notes(), Notes(values_filled=2, duplicate_entries=1))
    assert said == [
        "/d/a.json: 3 records.",
        "  5 empty cells or words for a missing value, interpolated in place (in 2 records).",
        "  1 duplicate answer entries left out (in 1 records).",
    ]
    assert settle(Notes()) == ["/d/a.json: 1 records."]


def test_remarks_of_a_kind_are_said_once(settle: Any) -> None:
    remarks = [("layout", "b.csv: tabs"), ("layout", "c.csv: tabs"), ("time", "b.csv: backwards"), ("name", "x")]
    said = settle(Notes(remarks=remarks), Notes(remarks=remarks[:1]))
    assert said[1:] == ["  b.csv: tabs … and 1 other files alike.", "  b.csv: backwards."]


def test_faults_stop_it_all_together_and_before_anybody_hears(settle: Any) -> None:
    heard: list[Any] = []
    loading.listen(lambda entry, files: heard.append((entry, files)))
    try:
        with pytest.raises(ValueError) as caught:
            settle(Notes(fault="bad"), Notes(files=[("/d/a.csv", "1")]), Notes(fault="worse"))
        assert str(caught.value).splitlines() == [
            "/d/a.json: 2 of 3 records can't be used.",
            "  record 0: bad",
            "  record 2 (a.jpg): worse",
        ]
        assert heard == []
        settle(Notes(files=[("/d/a.csv", "1"), ("/d/b.csv", "2")]), Notes(files=[("/d/a.csv", "1")]))
        assert heard == [("entry", {"/d/a.csv": "1", "/d/b.csv": "2"})]
    finally:
        loading.listen(None)
    settle(Notes())
    assert len(heard) == 1


def test_contradictions_name_all_but_the_first(settle: Any) -> None:
    one, other = (Notes(asked="1:a", answered=text) for text in "xy")
    said = settle(one, other, one, other, Notes(asked="1:b", answered="y"))
    assert said[1].startswith("/d/a.json: 2 records contradict an earlier one: same series, same prompt, another ans")
    assert said[2:] == ["  record 1 (a.jpg)", "  record 3 (a.jpg)"]


def test_a_streams_fault_names_its_record() -> None:
    stream = noted(Notes(), Notes(fault="bad")).to_iterable_dataset()
    rows = iter(loading._settle(stream, "entry", Path("/d/a.json")))
    assert next(rows) == {"_record": "", "x": 0}
    with pytest.raises(ValueError, match=r"^/d/a\.json: record 1 \(a\.jpg\): bad$"):
        next(rows)
    with pytest.raises(ValueError, match=r"^a: a record: bad$"):
        loading._raise_on_fault({"_record": "", "_notes": json.dumps({"fault": "bad"})}, "a")


def test_questions_answered_in_two_ways() -> None:
    records = [("1:a", "x"), ("", ""), ("1:a", "x"), ("1:b", "x"), ("0:c", "x"), ("0:c", "y"), ("1:b", "z"), ("", "q")]
    assert contradicting(records) == [[3, 6]]
    series = [as_series([1, 2]), as_series([3])]
    assert asked(["t"], series).startswith("2:") and asked(["t"], []).startswith("0:")
    assert len({asked(["t"], series), asked(["u"], series), asked(["t"], series[::-1]), asked(["t"], series[:1])}) == 4
    assert asked(["t"], [as_series([1, 2, 3])]) != asked(["t"], [as_series([1, 2])])
    assert answered('{"a": 1, "b": 2}') == answered('{"b":2,"a":1}') != answered('{"a": 1, "b": 3}')
    assert answered("yes") != answered("yes ")


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ('[{"interval": [1, 2], "type": "spike"}, {"interval": [1, 2], "type": "spike"}]', {"duplicate_entries": 1}),
        ('[{"interval": [1, 2], "type": "spike"}, {"type": "spike"}]', {"entries_without_interval": 1}),
        ('[{"type": "spike"}]', {"entries_without_interval": 1, "answers_emptied": 1}),
        ('[{"interval": [1, 2], "type": "无异常"}]', {"normal_entries": 1, "answers_emptied": 1}),
        (
            '[{"interval": [1, 2], "type": "无异常"}, {"interval": [4, 5], "type": "spike"}]',
            {"normal_entries": 1, "normal_beside_anomalies": 1},
        ),
        ('[{"range": [1, 2], "type": "spike"}]', {"intervals_renamed": 1}),
    ],
)
def test_what_is_counted_of_an_answer(text: str, counts: dict[str, int]) -> None:
    notes = Notes()
    note_answer(parse_answer(text.replace('"', "'")), notes)  # written by Python, so that it is written anew
    assert asdict(notes) == asdict(Notes(**counts, answers_rewritten=1))


@pytest.mark.parametrize(
    ("rows", "points", "found"),
    [([0], 3, [0, 1, 2]), ([7], 1, [7]), ([1, 5, 6], 3, [1, 5, 6]), ([2**62 - 1], 1, [2**62 - 1])],
)
def test_rows_of_a_records_points(rows: list[int], points: int, found: list[int]) -> None:
    assert original_rows(rows, points).tolist() == found and shorten_rows(original_rows(rows, points)) == rows


@pytest.mark.parametrize(
    "rows", [[], [-1], [2**62], [1, 1, 2], [3, 2, 4], [1, 2], [1, 2, 3, 4], [1.0], [True], "0", None]
)
def test_rows_that_can_not_be_meant(rows: Any) -> None:
    with pytest.raises(GdshError, match="expected the row of the first point"):
        original_rows(rows, 3)


@pytest.mark.parametrize(
    ("text", "may"),
    [
        ('{"a": 1}\n{"a": 2}\n', True),
        ('\ufeff \n{"a": 1}\n', True),
        ('[{"a": 1}]', False),
        ('\n [{"a": 1}]', False),
        ('{"a": 1}\n[2]\n', True),
        ('{"a": "' + "[" * 3999 + '"}\n{"a": 1}\n', True),
        ('{"a": "' + "[" * 4000 + '"}\n', False),
        ("".join(['{"a": "' + "[" * 3000 + '"}\n'] * 2), True),
        ("", True),
    ],
)
def test_files_that_arrow_may_read(text: str, may: bool, tmp_path: Path) -> None:
    """Arrow's parser ends the process where some 20,000 brackets nest; 4,000 in a line are the most it gets."""
    path = tmp_path / "a.jsonl"
    path.write_text(text, "utf-8")
    assert normalise.arrow_may_read(path) is may


@pytest.mark.parametrize("data", [b"PK\x03\x04", b'{"a": 1}\n\0', b"\x1f\x8b"])
def test_files_that_are_no_json(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.jsonl is no JSON text; expected one JSON object a line"):
        normalise.arrow_may_read(path)


@pytest.mark.parametrize(
    ("predicts", "trains", "said", "expected"),
    [
        (True, False, False, True), (True, True, False, False), (False, False, False, False),
        (False, True, True, True),
    ],
)  # fmt: skip
def test_records_may_lack_answers_where_a_run_only_predicts(
    predicts: bool, trains: bool, said: bool, expected: bool
) -> None:
    entry = SimpleNamespace(unlabelled=said)
    found = loading._asked(entry, SimpleNamespace(predict_with_generate=predicts, do_train=trains))
    assert found.unlabelled is expected and entry.unlabelled is said
