"""What annotators write besides anomalies, in each tool that meets it: training, check, prepare, evaluate."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Gdsh, annotation, answer

from llamafactory_ext.gdsh import NORMAL_TYPES, normal_types
from llamafactory_ext.series import describe
from llamafactory_ext.toolbox.check.inspection import Inspection, inspect
from llamafactory_ext.toolbox.prepare.options import Options
from llamafactory_ext.toolbox.prepare.pipeline import prepare
from llamafactory_ext.toolbox.session.recipe import arguments


def trained(run: dict[str, Any]) -> list[str]:
    """The answers that training sees."""
    rows = run["train_dataset"]["labels"]
    return [
        run["tokenizer"].decode([label for label in row if label != -100]).removesuffix("<|im_end|>\n") for row in rows
    ]


def checked(data: Gdsh, demo: Path, tmp_path: Path, **options: Any) -> Inspection:
    values = {"model_name_or_path": str(demo / "model"), "template": "chatts", "dataset_dir": str(data.folder)}
    return inspect(arguments({**values, "cache_dir": str(tmp_path / "cache")}, "a"), **options)


def prepared(data: Gdsh, tmp_path: Path, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    out = tmp_path / "out.jsonl"
    report = prepare(Options(root=data.folder, out=out, **options))
    return report, [json.loads(line) for line in out.read_text().splitlines()] if report["done"] else []


def entries(*pairs: tuple[int, int, str]) -> str:
    found = [{"interval": [start, end], "type": kind} for start, end, kind in pairs]
    return json.dumps({"status": "success", "detected_anomalies": found}, ensure_ascii=False)


@pytest.fixture
def normal(gdsh: Gdsh) -> Gdsh:
    """Both kinds in one answer, the normal state alone, and once in a list."""
    for name in "bc":
        gdsh.csv(f"{name}.csv", [ord(name) + i / 8 for i in range(40)])
    both = entries((5, 6, "尖峰"), (0, 39, "无异常"))
    alone = entries((0, 39, "Normal"))
    listed = [{"type": "健康", "interval": [0, 39]}, {"type": "阶跃", "interval": [7, 9]}]
    gdsh.entry["normal_types"] = ["健康"]
    return gdsh.records(annotation(reply=both), annotation("b.jpg", alone), annotation("c.jpg", listed))


WITHOUT_NORMAL = [entries((5, 6, "尖峰")), entries(), entries((7, 9, "阶跃"))]


def test_the_normal_state_is_not_trained_on(normal: Gdsh, tokenise: Callable[..., Any], log: Any) -> None:
    assert trained(tokenise(normal.folder)) == WITHOUT_NORMAL
    assert "3 answer entries of a normal state (无异常, normal, …; `normal_types`) left out" in log.text
    assert "2 answers that held both anomalies and a normal state (in 2 records)" in log.text
    assert "1 answers that have no interval left" in log.text


def test_check_names_the_normal_state(normal: Gdsh, demo: Path, tmp_path: Path) -> None:
    found = checked(normal, demo, tmp_path)
    (finding,) = [one for one in found.findings if one.kind == "normal"]
    assert finding.text.startswith("3 records have entries of a normal state")
    assert "2 of them have anomalies besides" in finding.text
    assert [place.detail for place in finding.places] == [
        "beside anomalies",
        "nothing else in the answer",
        "beside anomalies",
    ]
    assert found.types == {"尖峰": 1, "阶跃": 1}


@pytest.mark.parametrize("options", [{}, {"compact_answers": True}, {"merge_points": True}])
def test_prepare_leaves_the_normal_state_out(normal: Gdsh, tmp_path: Path, options: dict[str, Any]) -> None:
    report, lines = prepared(normal, tmp_path, normal_types=("健康",), **options)
    assert [line["output"].replace(" ", "") for line in lines] == [text.replace(" ", "") for text in WITHOUT_NORMAL]
    counts = {key: report["answers"][key] for key in ("normal_entries", "normal_beside_anomalies", "emptied")}
    assert counts == {"normal_entries": 3, "normal_beside_anomalies": 2, "emptied": 1}
    assert report["types"] == {"尖峰": 1, "阶跃": 1}


def test_always_saying_normal_scores_nothing() -> None:
    pytest.importorskip("aeon")
    from llamafactory_ext.toolbox.evaluate.predictions import Prediction
    from llamafactory_ext.toolbox.evaluate.scoring import evaluate

    always = entries((0, 99, "无异常"))
    prompts = [f"{describe(level + np.arange(100.0) % 2)}<ts>" for level in range(3)]
    labels = [answer((10, 19)), always, entries((5, 6, "尖峰"), (0, 99, "正常"))]
    lines = [
        Prediction(n, prompt, always, label) for n, (prompt, label) in enumerate(zip(prompts, labels, strict=True))
    ]
    found = evaluate(lines)
    assert [one.scores["event_f1"] for one in found.records] == [0, 1, 0]
    assert found.scores["labels"]["intervals"] == 2
    assert (found.scores["labels"]["normal_entries"], found.scores["answers"]["normal_entries"]) == (2, 3)
    assert found.scores["answers"]["strict"] == 3
    assert not any("正常" in name or "无异常" in name for name in found.scores["per_type"])
    steady = [Prediction(0, prompts[0], entries((0, 99, "steady")), answer())]
    assert [
        evaluate(steady, normal=words).scores["event_f1"] for words in (NORMAL_TYPES, normal_types(["Steady"]))
    ] == [0, 1]


@pytest.fixture
def renamed(gdsh: Gdsh) -> Gdsh:
    """Seven ways to name an interval, and a record that names none."""
    ways: list[dict[str, Any]] = [
        {"start": 5, "end": 6},
        {"start_index": 5, "end_index": 6},
        {"range": [5, 6]},
        {"Interval": [5, 6]},
        {"intervals": [[5, 6], [8, 9]]},
        {"segments": [{"start": 5, "end": 6}, {"start": 8, "end": 9}]},
        {"interval": None},
    ]
    for place in range(len(ways)):
        gdsh.csv(f"s{place}.csv", [place + i / 8 for i in range(40)])
    return gdsh.records(
        *(
            annotation(
                f"s{place}.jpg", json.dumps({"status": "success", "detected_anomalies": [{"type": "x", **way}]})
            )
            for place, way in enumerate(ways)
        )
    )


RENAMED = [entries((5, 6, "x"))] * 4 + [entries((5, 6, "x"), (8, 9, "x"))] * 2
RENAMED += ['{"status": "success", "detected_anomalies": [{"type": "x", "interval": null}]}']


def test_intervals_under_other_keys_are_trained_on(renamed: Gdsh, tokenise: Callable[..., Any], log: Any) -> None:
    assert trained(tokenise(renamed.folder)) == RENAMED
    assert "6 answer entries whose interval stood under another key, now `interval` (in 6 records)" in log.text


def test_check_and_prepare_see_them(renamed: Gdsh, demo: Path, tmp_path: Path) -> None:
    found = checked(renamed, demo, tmp_path)
    assert found.types == {"x": 8}
    (finding,) = [one for one in found.findings if one.kind == "unplaced"]
    assert finding.text.startswith("1 records have entries without an interval: read as remarks on the whole series")
    assert [(place.row, place.detail) for place in finding.places] == [(6, "1 of its entries")]
    report, lines = prepared(renamed, tmp_path)
    assert [line["output"] for line in lines] == RENAMED
    assert (report["intervals"], report["answers"]["intervals_renamed"]) == (8, 6)


def test_a_place_that_is_not_understood_stops_every_tool(
    gdsh: Gdsh, demo: Path, tmp_path: Path, tokenise: Callable[..., Any]
) -> None:
    gdsh.records(annotation(reply='{"status": "success", "detected_anomalies": [{"type": "尖峰", "at": 5}]}'))
    said = "an entry has no interval, but 5 under 'at'; if that is its place, write it as"
    with pytest.raises(ValueError, match=r"record 0 \(a\.jpg\): an entry has no interval"):
        tokenise(gdsh.folder)
    found = checked(gdsh, demo, tmp_path)
    assert found.has_faults
    assert said in found.records[0].fault
    report, _ = prepared(gdsh, tmp_path)
    assert not report["done"]
    assert said in report["faults"][0]["fault"]


def chatts(folder: Path, *records: dict[str, Any], **entry: Any) -> Path:
    (folder / "dataset_info.json").write_text(
        json.dumps({"a": {"file_name": "a.jsonl", "formatting": "chatts", **entry}})
    )
    lines = [{"input": "<ts><ts/> ?", "timeseries": [[i / 4 for i in range(40)]], **record} for record in records]
    (folder / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


PROSE = [
    "Yes, [1, 2] and {'type': 'x'}.",
    "[1, 2, 3]",
    "['up', 'down']",
    '{"type": "rising", "start": 1}',
    "{'type': 'up'}",
]


def test_answers_of_chatts_records_are_read_the_same(tmp_path: Path, tokenise: Callable[..., Any], log: Any) -> None:
    both = entries((5, 6, "尖峰"), (0, 39, "无异常"))
    replies = ["{'interval': [5, 6], 'type': '尖峰'}", str([{"interval": [5, 6], "type": "尖峰"}]), both]
    replies += [entries((5, 6, "尖峰")).replace('"interval"', '"range"'), entries((5, 6, "尖峰"))]
    folder = chatts(tmp_path, *({"output": text} for text in [*replies, *PROSE]))
    assert trained(tokenise(folder)) == [entries((5, 6, "尖峰"))] * 5 + PROSE
    assert "4 answers rewritten as one JSON object (in 4 records)" in log.text
    assert "1 answer entries of a normal state" in log.text
    assert "1 answer entries whose interval stood under another key" in log.text


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            {"timeseries": [[0.5, 1, 0.25, 1, -0.5, 1, 2.75, 1, 0, 0]]},
            "series 0: found a series of 10 numbers of which",
        ),
        ({"input": "[Value Offset: -51.2|Value Scaling: 8.2]<ts><ts/> ?"}, "found '[Value Offset' in 'input'"),
        ({"input": "[offset=1|scaling=2|length=40]<ts><ts/> ?"}, "a processor has scaled this series and said so"),
        ({"output": " "}, "found no text in 'output'; expected the answer that is to be learned"),
    ],
)
def test_chatts_records_that_are_refused(
    record: dict[str, Any], said: str, tmp_path: Path, tokenise: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match=r"1 of 2 records can't be used") as fault:
        tokenise(chatts(tmp_path, {"output": "yes"}, {"output": "yes", **record}))
    assert said in str(fault.value)


@pytest.mark.parametrize("series", [[0.0, 1.0] * 20, [1.0] * 40, [5.0, 1.0, 7.0, 1.0, 9.0, 1.0, 2.0, 1.0]])
def test_a_series_that_is_measured_so_is_read(
    series: list[float], tmp_path: Path, tokenise: Callable[..., Any]
) -> None:
    run = tokenise(chatts(tmp_path, {"output": "yes", "timeseries": [series]}))
    assert run["train_dataset"][0]["audios"] == [series]


PREDICTS = {"do_train": False, "do_predict": True, "predict_with_generate": True, "dataset": None, "eval_dataset": "a"}


def test_records_without_label_are_predicted_and_not_trained_on(gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
    asked = annotation()
    asked["conversations"] = asked["conversations"][:1]
    gdsh.records(annotation(reply=""), asked, annotation(reply=answer((3, 5))))
    run = tokenise(gdsh.folder, **PREDICTS)
    labels = [run["tokenizer"].decode(row, skip_special_tokens=True).strip() for row in run["eval_dataset"]["labels"]]
    assert labels == ["", "", answer((3, 5))]
    with pytest.raises(ValueError, match="2 of 3 records can't be used") as fault:
        tokenise(gdsh.folder)
    assert "record 0 (a.jpg): the answer is empty; for a series without anomalies write" in str(fault.value)
    assert "needs none where a run predicts" in str(fault.value)


def test_check_takes_records_without_label_where_a_run_predicts(gdsh: Gdsh, demo: Path, tmp_path: Path) -> None:
    gdsh.records(annotation(reply=""), annotation(reply=answer((3, 5))))
    assert checked(gdsh, demo, tmp_path).has_faults
    values = {"model_name_or_path": str(demo / "model"), "template": "chatts", "dataset_dir": str(gdsh.folder)}
    predicts = {"predict_with_generate": True, "do_train": False, "do_predict": True, "eval_dataset": None}
    found = inspect(arguments({**values, **predicts, "cache_dir": str(tmp_path / "cache")}, "a"))
    assert not found.has_faults, found.findings
    (finding,) = [one for one in found.findings if one.kind == "unlabelled"]
    assert finding.text == "1 records have no answer: they are answered, and left out of scores"
    assert found.records[0].labels == () and found.types == {"点异常": 1}


def test_chatts_records_without_label_are_predicted(tmp_path: Path, tokenise: Callable[..., Any]) -> None:
    run = tokenise(chatts(tmp_path, {"output": ""}, {}), **PREDICTS)
    labels = run["eval_dataset"]["labels"]
    assert [run["tokenizer"].decode(row, skip_special_tokens=True).strip() for row in labels] == ["", ""]


def test_what_has_no_label_is_not_scored(tmp_path: Path) -> None:
    pytest.importorskip("aeon")

    from llamafactory_ext.toolbox.evaluate.predictions import EvaluateError, Prediction
    from llamafactory_ext.toolbox.evaluate.scoring import evaluate

    prompts = [f"{describe(level + np.arange(50.0))}<ts>" for level in range(3)]
    found, none = entries((5, 6, "x")), entries()
    labels = ["<|im_end|>\n", found, ""]
    lines = [Prediction(n, prompt, none, label) for n, (prompt, label) in enumerate(zip(prompts, labels, strict=True))]
    scored = evaluate(lines)
    assert (scored.scores["records"], scored.scores["records_unlabelled"], scored.scores["event_f1"]) == (1, 2, 0)
    assert [one.index for one in scored.records] == [1]
    with pytest.raises(EvaluateError, match="none of 2 predictions has a label"):
        evaluate([lines[0], lines[2]])
