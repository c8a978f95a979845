"""Token lengths of `llamafactory-ext check` against those of a real run, the histogram, and a record as shown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import NOTHING_FOUND, ROOT, USER, Gdsh, annotation, answer

from llamafactory_ext.toolbox.check import inspection
from llamafactory_ext.toolbox.check.report import report, shorten_patches, show
from llamafactory_ext.toolbox.session import recipe
from llamafactory_ext.toolbox.session.framework import validation_rows
from llamafactory_ext.toolbox.session.tokens import histogram, percentiles


Inspect = Callable[..., inspection.Inspection]


@pytest.fixture
def inspected(demo: Path, tmp_path: Path) -> Inspect:
    """Inspects a data set with the main recipe and the demo's model."""

    def run(dataset_dir: Path, dataset: str = "a", validation: str | None = None, **keys: Any) -> Any:
        values = recipe.read_recipe(ROOT / "yaml" / "2080ti_qlora.yaml")
        values |= {"dataset_dir": str(dataset_dir), "model_name_or_path": str(demo / "model")}
        values |= {"cache_dir": str(tmp_path / "check_cache"), **keys}
        return inspection.inspect(recipe.arguments(values, dataset, validation))

    return run


def kinds(found: inspection.Inspection, severity: str = "fault") -> list[str]:
    return [one.kind for one in found.findings if one.severity == severity]


def write_chatts(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    return path


def chatts(series: list[Any], reply: str = NOTHING_FOUND, prompt: str = "<ts><ts/> ?") -> dict[str, Any]:
    return {"input": prompt, "output": reply, "timeseries": series}


def wave(phase: int = 0, length: int = 80) -> list[float]:
    return [float((i * 7 + phase) % 13) + phase for i in range(length)]


def test_lengths_are_those_of_training(demo: Path, tokenise: Callable[..., Any], inspected: Inspect) -> None:
    found = inspected(demo / "data", "gdsh_demo")
    trained = tokenise(demo / "data", "gdsh_demo", cutoff_len=100_000)
    patch = trained["tokenizer"].convert_tokens_to_ids("<ts>")
    rows = trained["train_dataset"]
    assert len(rows) == len(found.tokens) == 23
    for row, tokens in zip(rows, found.tokens, strict=True):
        assert tokens is not None
        assert tokens.whole == len(row["input_ids"])
        assert tokens.series == row["input_ids"].count(patch) == sum(-(-len(one) // 8) for one in row["audios"])
        assert tokens.answer == sum(label != -100 for label in row["labels"])
        assert tokens.text > 0


def test_parts_make_up_the_whole_where_the_prompt_is_trained_on(gdsh: Gdsh, inspected: Inspect) -> None:
    folder = gdsh.records(annotation()).folder
    (usual,), (all_trained,) = inspected(folder).tokens, inspected(folder, train_on_prompt=True).tokens
    assert usual is not None
    assert all_trained is not None
    assert (all_trained.text, all_trained.series, all_trained.whole) == (0, 5, usual.whole)


def test_lengths_of_a_file_of_records(tmp_path: Path, tokenise: Callable[..., Any], inspected: Inspect) -> None:
    records = [chatts([wave(i, 64 + 9 * i)], answer((i, i + 5))) for i in range(4)]
    path = write_chatts(tmp_path / "train.jsonl", *records, chatts([], "text only", "hello"))
    entry = {"a": {"file_name": "train.jsonl", "formatting": "chatts"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entry))
    found = inspected(tmp_path / "nowhere", str(path))
    rows = tokenise(tmp_path)["train_dataset"]
    assert [one.whole for one in found.tokens if one] == [len(row["input_ids"]) for row in rows]
    assert [one.name for one in found.records] == [f"record {i}" for i in range(5)]
    assert [one.length for one in found.records] == [64, 73, 82, 91, 0]


def test_faulty_records_are_left_out_and_named(gdsh: Gdsh, inspected: Inspect) -> None:
    good, bad = annotation("a.jpg", answer((3, 5))), annotation("missing.jpg")
    found = inspected(gdsh.records(bad, good, bad).folder)
    assert [tokens is None for tokens in found.tokens] == [True, False, True]
    assert [place.row for place in found.findings[0].places] == [0, 2]
    assert "'missing'" in found.findings[0].places[0].detail
    assert kinds(found) == ["unusable"]
    assert "can't be used" in "\n".join(show(found, 2))
    assert report(found)["usable"] == 1


def test_all_records_faulty(gdsh: Gdsh, inspected: Inspect) -> None:
    found = inspected(gdsh.records(annotation("missing.jpg")).folder)
    assert found.tokens == [None]
    assert kinds(found) == ["unusable"]


@pytest.mark.parametrize(("keys", "severity"), [({}, "fault"), ({"overlong_records": "drop"}, "notice")])
def test_overlong_is_what_training_says(
    keys: dict[str, str], severity: str, gdsh: Gdsh, tokenise: Callable[..., Any], inspected: Inspect
) -> None:
    folder = gdsh.records(annotation(), annotation(reply=answer(*[(i, i) for i in range(40)]))).folder
    found = inspected(folder, cutoff_len=200, **keys)
    (finding,) = [one for one in found.findings if one.kind == "overlong"]
    assert ([place.row for place in finding.places], finding.severity) == ([1], severity)
    longest = max(one.whole for one in found.tokens if one)
    assert f"cutoff_len: {longest}," in finding.advice
    with pytest.raises(ValueError, match=f"Set `cutoff_len: {longest}`"):
        tokenise(folder, cutoff_len=200)


def test_packing_keeps_one_token_back(gdsh: Gdsh, inspected: Inspect) -> None:
    tokens = inspected(gdsh.records(annotation()).folder).tokens[0].whole  # type: ignore[union-attr]
    whole = -(-tokens // 8) * 8  # which is what packing wants of cutoff_len; a digit is a token
    folder = gdsh.records(annotation(user=USER + "7" * (whole - tokens))).folder
    assert "overlong" not in kinds(inspected(folder, cutoff_len=whole))
    found = inspected(folder, cutoff_len=whole, packing=True)
    assert "overlong" in kinds(found)
    assert f"cutoff_len: {whole + 8}," in found.findings[0].advice


def test_without_a_tokenizer_the_rest_goes_on(gdsh: Gdsh, inspected: Inspect, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    folder = gdsh.records(annotation(reply=answer((0, 5))), annotation(reply=answer((7, 7)))).folder
    found = inspected(folder, model_name_or_path=str(tmp_path / "empty"))
    assert found.no_tokens.startswith(f"no tokenizer for {tmp_path / 'empty'}")
    assert "\n" not in found.no_tokens
    assert found.tokens == [None, None]
    assert kinds(found) == ["contradiction"]
    assert "border" in kinds(found, "notice")
    assert USER.replace("<image>", "<ts><ts/>") in "\n".join(show(found, 0))


def test_validation_shares_a_series(tmp_path: Path, inspected: Inspect) -> None:
    train = write_chatts(tmp_path / "train.jsonl", chatts([wave(0)]), chatts([wave(1)]))
    shared = write_chatts(tmp_path / "shared.jsonl", chatts([wave(1)], prompt="another <ts><ts/>"))
    apart = write_chatts(tmp_path / "apart.jsonl", chatts([wave(2)]))
    found = inspected(tmp_path, str(train), str(shared))
    assert kinds(found) == ["leak"]
    assert [place.row for place in found.findings[0].places] == [1]
    assert kinds(inspected(tmp_path, str(train), str(apart))) == []
    assert kinds(inspected(tmp_path, str(train), eval_dataset=str(shared))) == ["leak"]


def test_unusable_validation_stops_training_too(tmp_path: Path, inspected: Inspect) -> None:
    train = write_chatts(tmp_path / "train.jsonl", chatts([wave(0)]))
    broken = write_chatts(tmp_path / "broken.jsonl", chatts([wave(1)], prompt="no marker"))
    found = inspected(tmp_path, str(train), str(broken))
    assert kinds(found) == ["unusable_validation"]


def test_val_size_splits_as_training_does(tmp_path: Path, tokenise: Callable[..., Any], inspected: Inspect) -> None:
    series = [wave(i % 4) for i in range(12)]  # each three times
    write_chatts(tmp_path / "train.jsonl", *(chatts([one], prompt=f"{i} <ts><ts/>") for i, one in enumerate(series)))
    entry = {"a": {"file_name": "train.jsonl", "formatting": "chatts"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entry))
    for seed in (42, 7):
        found = inspected(tmp_path, val_size=0.25, seed=seed)
        trained = tokenise(tmp_path, val_size=0.25, seed=seed)
        held_out = {tuple(row["audios"][0]) for row in trained["eval_dataset"]}
        both = held_out & {tuple(row["audios"][0]) for row in trained["train_dataset"]}
        assert both
        (finding,) = [one for one in found.findings if one.kind == "leak"]
        assert f"{len(both)} series would be in training and in validation" in finding.text
        assert [place.row for place in finding.places] == [i for i, one in enumerate(series) if tuple(one) in both]
        assert sorted(validation_rows([12], found.arguments)) == [
            place.row for place in finding.places if place.detail == "in validation"
        ]


def test_several_data_sets_are_one(tmp_path: Path, inspected: Inspect) -> None:
    entries = {name: {"file_name": f"{name}.jsonl", "formatting": "chatts"} for name in ("a", "b")}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    write_chatts(tmp_path / "a.jsonl", chatts([wave(0)]), chatts([wave(1)]))
    write_chatts(tmp_path / "b.jsonl", chatts([wave(1)], answer((3, 4))))
    found = inspected(tmp_path, "a, b")
    assert [one.name for one in found.records] == ["a: record 0", "a: record 1", "b: record 0"]
    assert kinds(found) == ["contradiction"]
    assert show(found, 2)[0] == "b: record 0"
    assert all(found.tokens)


def test_a_record_as_the_model_sees_it(gdsh: Gdsh, inspected: Inspect) -> None:
    folder = gdsh.records(annotation(user="which?"), annotation(reply=answer((3, 5)))).folder
    lines = show(inspected(folder), 1)
    text = "\n".join(lines)
    given, trained = text.split("── given ──\n")[1].split("── trained on ──\n")
    assert given.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n[offset=")
    assert "right=9.7500]<ts>×5\n" in given
    assert "<ts><ts>" not in text
    assert trained.startswith(f"{answer((3, 5))}<|im_end|>\n")
    assert "tensor of the series: [1, 80, 1], float16" in trained
    assert "40 points: 0, 0.25, 0.5," in trained
    assert "done to the record: nothing" in text
    assert "notice: length" in text
    assert "1 markers moved" in "\n".join(show(inspected(folder), 0))


def test_no_such_record(gdsh: Gdsh, inspected: Inspect) -> None:
    found = inspected(gdsh.records(annotation()).folder)
    for row in (1, -1):
        with pytest.raises(recipe.UsageError, match=f"no record {row}; expected 0 to 0"):
            show(found, row)


def test_runs_of_patches_are_shortened() -> None:
    assert shorten_patches("a<ts><ts><ts>b<ts>") == "a<ts>×3b<ts>×1"


def test_percentiles_are_values_that_occur() -> None:
    assert percentiles(range(1, 101)) == {"min": 1, "median": 50, "p95": 95, "p99": 99, "max": 100}
    assert percentiles([7]) == dict.fromkeys(("min", "median", "p95", "p99", "max"), 7)


@pytest.mark.parametrize("values", [[1], [5, 5, 5], list(range(1, 700, 3)), [10, 100_000]])
@pytest.mark.parametrize("limit", [None, 1, 5, 400, 4096])
def test_histogram_counts_every_value_once(values: list[int], limit: int | None) -> None:
    lines = histogram(values, limit)
    bins = [line for line in lines if "–" in line]
    counted = 0
    for line in bins:
        low, high = (int(edge) for edge in line.split(" █")[0].split()[0].split("–")) if " –" not in line else (0, 0)
        inside = sum(low <= value <= high for value in values)
        shown = line.split()[-1]
        assert (int(shown) if len(line.split()) > 2 and shown.isdigit() else 0) == inside
        counted += inside
    assert counted == len(values)
    assert max(line.count("█") for line in bins) <= 50
    if limit is not None:
        before = [line for line in lines[: next(i for i, line in enumerate(lines) if "cutoff" in line)] if "–" in line]
        assert all(int(line.split("–")[1].split()[0]) <= limit for line in before) or limit >= max(values)
