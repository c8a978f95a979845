"""Predictions of other detectors: names join them to the records, lengths come from the data set."""

import json
from pathlib import Path

import numpy as np
import pytest


pytest.importorskip("aeon")
pytest.importorskip("telemeval")

from conftest import NOTHING_FOUND, answer

from llamafactory_ext.toolbox.evaluate.foreign import is_foreign, read_foreign
from llamafactory_ext.toolbox.evaluate.points import Source
from llamafactory_ext.toolbox.evaluate.predictions import EvaluateError, Prediction, read_predictions
from llamafactory_ext.toolbox.evaluate.scoring import evaluate


VALUES = (np.sin(np.arange(100.0)),)
SOURCES = [
    Source("TI_7.PV", answer((10, 19)), VALUES),
    Source("TI_8.PV", NOTHING_FOUND, VALUES),
    Source("TI_9.PV", "", VALUES),
    Source("", answer((50, 59), (80, 89)), VALUES),
]
ROWS = "series,start,end,confidence\nrecord 3,80,89,0.6\nTI_7.PV,12,19,0.9\nfolder/record 3,10,11,0.4\n"


def scores(text: str, path: Path) -> dict:  # type: ignore[type-arg]
    path.write_text(text, encoding="utf-8")
    assert is_foreign(path)
    return dict(evaluate(read_foreign(path, SOURCES, "plant"), SOURCES, names=()).scores)


def test_names_join_and_order_does_not(tmp_path: Path) -> None:
    found = scores(ROWS, tmp_path / "p.csv")
    assert (found["records"], found["records_unlabelled"], found["vus_from"]) == (3, 1, "confidences")
    assert found["events"] == {"hits": 2, "false_alarms": 1, "misses": 1}
    typed = [
        {"series": "record 3", "start": 80, "end": 89, "confidence": 0.6},
        {"series": "x/TI_7.PV.csv", "start": 12, "end": 19, "confidence": 0.9},
        {"series": "record 3", "start": 10, "end": 11, "confidence": 0.4},
    ]
    again = scores("".join(json.dumps(one) + "\n" for one in reversed(typed)), tmp_path / "p.jsonl")
    assert again == found
    plain = scores("series,start,end\nrecord 3,80,89\nTI_7.PV,12,19\nrecord 3,10,11\n", tmp_path / "q.csv")
    assert plain["vus_from"] == "intervals" and plain["vus_pr"] != found["vus_pr"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("series,start\n", "no column end"),
        ("series,start,end\nTI_7.PV,1.5,3\n", "start is '1.5'; expected a whole number"),
        ("series,start,end\nTI_7.PV,5,3\n", "no end before its start"),
        ("series,start,end\nTI_70.PV,1,3\n", "'TI_70.PV': none of the 4 records in plant has that name"),
        ("series,start,end,confidence\nTI_7.PV,1,3,nan\n", "confidence is 'nan'"),
        ("series,start,end\n,1,3\n", "names no series"),
        ("", "has no column series, start, end; found none; expected series, start, end, and confidence or type"),
        ("series,start,end\nTI_7.PV,-1,3\n", "line 2: start -1 and end 3; expected rows from 0"),
        ("series,start,end,confidence\nTI_7.PV,1,3,-inf\n", "confidence is '-inf'; expected a number"),
        ("series,start,end\nTI_70.PV,1,3\n", "such as TI_7.PV, TI_8.PV, TI_9.PV"),
        ('series,start,end\n"TI_7.PV,1,3\n', "can't be read: unexpected end of data; expected series"),
    ],
)
def test_what_is_no_interval_stops(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluateError) as error:
        scores(text, tmp_path / "p.csv")
    assert said in str(error.value) and "record 3" not in str(error.value)  # three names are enough


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"series": 7, "start": 1, "end": 3}', "line 3 names no series: found 7;"),
        ('{"series": "TI_7.PV", "start": true, "end": 3}', "line 3: start is True; expected a whole number"),
        ('{"series": "TI_7.PV", "start": 1, "end": 3.0}', "line 3: end is 3.0; expected a whole number"),
        ('{"series": "TI_7.PV", "start": 1}', "line 3: end is None; expected a whole number"),
        ('{"series": "TI_7.PV", "start": 1, "end": 3, "confidence": true}', "confidence is True; expected a number"),
        ('["TI_7.PV", 1, 3]', "line 3 is no JSON object; expected series"),
        ('{"series": "TI_7.PV", "start": 1, "start": 2, "end": 3}', "can't be read: a key occurs twice"),
        ("{", "can't be read: "),
    ],
)
def test_what_is_no_interval_in_json_stops(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"series": "TI_8.PV", "start": "", "end": ""}}\n\n{line}\n')
    with pytest.raises(EvaluateError) as error:
        read_foreign(path, SOURCES, "plant")
    assert said in str(error.value)


def test_what_a_line_says_goes_into_the_answer(tmp_path: Path) -> None:
    """Names with a folder of either kind, in either case of a known suffix; numbers as they are or as text."""
    lines: list[dict[str, object]] = [
        {"series": "D:\\x\\TI_7.PV.JPG", "start": 0, "end": "0", "type": 3, "confidence": 1},
        {"series": "TI_7.PV", "start": 4, "end": 5, "type": "", "confidence": ""},
        {"series": "/x/TI_7.PV", "start": 6, "end": 6, "confidence": None},
        {"series": "TI_8.PV.png", "start": "", "end": "", "confidence": 0.5},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    found = read_foreign(path, SOURCES, "plant")
    assert [json.loads(one.predict)["detected_anomalies"] for one in found] == [
        [{"interval": [0, 0], "type": "3", "confidence": 1.0}, {"interval": [4, 5]}, {"interval": [6, 6]}],
        *([], [], []),
    ]
    assert [(one.index, one.label, one.lengths) for one in found] == [
        (place, source.answer, (100,)) for place, source in enumerate(SOURCES)
    ]


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ('\n \n{"series": "a"}\n', True),
        ('{"series": "a", "predict": ""}', False),
        ('{"start": 1}', False),
        ('["series"]', False),
        ("{", False),
        ("", False),
    ],
)
def test_intervals_are_told_from_answers_by_the_first_line(text: str, foreign: bool, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    assert is_foreign(tmp_path / "p.jsonl") == foreign
    assert is_foreign(tmp_path / "none.CSV") and not is_foreign(tmp_path / "none.jsonl")


def test_a_name_of_two_records_joins_nothing(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("series,start,end\na,1,2\n")
    with pytest.raises(EvaluateError, match="2, as of windows of one series"):
        read_foreign(tmp_path / "p.csv", [Source("a", NOTHING_FOUND, VALUES)] * 2, "plant")


def test_a_prompt_without_length_takes_that_of_the_data_set(tmp_path: Path) -> None:
    path = tmp_path / "generated_predictions.jsonl"
    path.write_text(json.dumps({"prompt": "x", "predict": answer((10, 19)), "label": answer((10, 19))}) + "\n")
    assert not is_foreign(path)
    with pytest.raises(EvaluateError, match="--dataset"):
        read_predictions(path)
    found = evaluate(read_predictions(path, lengths=False), SOURCES[:1], names=()).scores
    assert (found["event_f1"], found["event_f1_iou50"]) == (1, 1)


def test_records_without_label_are_left_out_and_counted() -> None:
    given = [Prediction(0, "", NOTHING_FOUND, "", (100,)), Prediction(1, "", answer((3, 5)), answer((3, 5)), (100,))]
    found = evaluate(given)
    assert (found.scores["records"], found.scores["records_unlabelled"], found.records[0].index) == (1, 1, 1)
    with pytest.raises(EvaluateError, match="none of 1 predictions has a label"):
        evaluate(given[:1])
