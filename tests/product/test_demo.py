"""The demo's data set has the field's habits, and its tokenizer and checkpoint load as published ones do."""

import ast
import csv
import hashlib
import io
import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from lift import judge

from llamafactory_ext.toolbox.cli import demo as cli
from llamafactory_ext.toolbox.demo.data import NAMING, POINTS, make_entries, write_data
from llamafactory_ext.toolbox.demo.folder import MARKER, ForeignFolderError
from llamafactory_ext.toolbox.demo.plant import COUNTED, NORMAL, draw_kinds, make_point, write_plant
from llamafactory_ext.toolbox.demo.series import ALL_SHAPES, SHAPES, draw_intervals, draw_series


CHINESE = "数据集：阶跃上升，12345 点 -3.1416|scaling=1.0 🙂\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "data"
    write_data(path)
    return path


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_records(data: Path) -> list[dict[str, Any]]:
    files = sorted((data / "json").glob("*.json"))
    return [record for path in files for record in json.loads(path.read_text("utf-8"))]


def read_values(data: Path, point: Any, picture: str) -> list[str]:
    content = (data / "timeseries" / point.plant / f"{NAMING[point.naming](picture)}.csv").read_bytes()
    rows = list(csv.DictReader(io.StringIO(content.decode(point.encoding))))
    assert list(rows[0]) == ["", "date", "category", "value"]
    return [row["value"] for row in rows]


def labelled_intervals(answer: Any) -> list[list[int]]:
    """Every `[start, end]` of an answer, whatever form it takes."""
    if isinstance(answer, list):
        entries = answer
    else:
        answers = json.loads(f"[{answer}]") if "status" in answer else ast.literal_eval(answer)
        answers = answers if isinstance(answers, list) else [answers]
        entries = [entry for item in answers for entry in item.get("detected_anomalies", [item])]
    return [entry["interval"] for entry in entries if "interval" in entry]


def test_same_seed_same_bytes(data: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "same")
    write_data(tmp_path / "other", seed=1)
    assert digest(tmp_path / "same") == digest(data)
    assert digest(tmp_path / "other") != digest(data)


def test_labelled_intervals_lie_in_their_series(data: Path) -> None:
    points = {picture: point for point in POINTS for picture in point.pictures}
    seen = 0
    for record in read_records(data):
        image = record["image"] if isinstance(record["image"], str) else record["image"][0]
        name = image.replace("\\", "/").rsplit("/", 1)[-1]
        length = len(read_values(data, points[name[:-4]], name[:-4]))
        for start, end in labelled_intervals(record["conversations"][1]["value"]):
            assert 0 <= start <= end < length
            seen += 1
    assert seen == sum(len(point.kinds) for point in POINTS)


@pytest.mark.parametrize("kind", SHAPES)
def test_anomaly_changes_its_interval_and_nothing_else(kind: str) -> None:
    rng = np.random.default_rng(3)
    intervals = draw_intervals((kind, kind), 600, rng)
    normal, values = draw_series((kind, kind), intervals, 600, rng)
    labelled = {index for start, end in intervals for index in range(start, end + 1)}
    assert set(np.flatnonzero(normal != values)) == labelled


def test_point_anomaly_is_one_point() -> None:
    (interval,) = draw_intervals(("点异常",), 400, np.random.default_rng(0))
    assert interval[0] == interval[1]


def test_gaps_lie_outside_the_labels(data: Path) -> None:
    intervals_of: dict[str, list[list[int]]] = {}
    for record in read_records(data):
        images = record["image"] if isinstance(record["image"], list) else [record["image"]]
        for image in images:
            stem = image.replace("\\", "/").rsplit("/", 1)[-1][:-4]
            intervals_of.setdefault(stem, []).extend(labelled_intervals(record["conversations"][1]["value"]))
    cells: set[str] = set()
    for point in (point for point in POINTS if point.gaps):
        for picture in point.pictures:
            values = read_values(data, point, picture)
            gaps = [index for index, cell in enumerate(values) if cell in ("", "Bad")]
            assert gaps
            assert not [gap for gap in gaps for start, end in intervals_of[picture] if start <= gap <= end]
            cells |= {values[gap] for gap in gaps}
    assert cells == {"", "Bad"}


def test_every_habit_of_the_field_occurs(data: Path) -> None:
    records = json.loads((data / "json" / "gdsh.json").read_text("utf-8"))
    images = [record["image"] for record in records]
    names = [image for image in images if isinstance(image, str)]
    files = {path.relative_to(data / "timeseries") for path in (data / "timeseries").rglob("*.csv")}
    answers = [record["conversations"][1]["value"] for record in records]
    texts = [answer for answer in answers if isinstance(answer, str)]

    assert {path.parts[0] for path in files} == {"gdsh", "whlj", "hbsn", "zhlh"}
    assert {point.naming for point in POINTS if point.annotations == "gdsh"} == set(NAMING)
    assert {point.plant for point in POINTS if point.annotations == "gdsh"} == {"gdsh", "whlj", "hbsn", "zhlh"}
    assert any(name.startswith("/home/") for name in names)
    assert any("\\" in name for name in names)
    assert any("gdsh_second_AT_" in name for name in names)
    assert any("NB.LJSJ." in name for name in names)
    assert any("zhlh_100_" in name for name in names)
    assert any(name.endswith(".OUT.jpg") for name in names)
    assert len(set(names)) < len(names)  # several records for one point
    assert any(isinstance(image, list) for image in images)
    assert any(isinstance(answer, list) for answer in answers)
    assert any("},{" in text.replace(" ", "") and text.count('"status"') > 1 for text in texts)
    assert any(text.startswith("{'") for text in texts)
    assert any(text.startswith("[{'") for text in texts)
    assert any("无异常" in text for text in texts)
    assert any("全局属性" in text for text in texts)
    assert {kind for point in POINTS for kind in point.kinds} == set(SHAPES)
    assert {point.encoding for point in POINTS} == {"utf-8", "utf-8-sig", "gb18030"}
    assert max(point.length for point in POINTS) == 5000
    assert 24 <= len(read_records(data)) <= 40


def test_entry_is_the_repositorys(data: Path) -> None:
    ours = json.loads((ROOT / "dataset_info" / "dataset_info.json").read_text("ascii"))["gdsh_demo"]
    assert ours == make_entries("../demo/data/")["gdsh_demo"]
    written = json.loads((data / "dataset_info.json").read_text("ascii"))["gdsh_demo"]
    assert (data / written["file_name"]).is_file()
    assert (data / written["folder"]).is_dir()


def test_refuses_a_folder_that_it_did_not_make(tmp_path: Path) -> None:
    own = tmp_path / "data" / "own.csv"
    own.parent.mkdir()
    own.write_text("value\n1\n")
    with pytest.raises(ForeignFolderError, match=r"exists and was not made by the demo.*name another folder"):
        write_data(tmp_path / "data")
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "own.csv"]


def test_the_command_names_a_folder_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers")
    for name, tiny in (("mini", []), ("model", ["--tiny"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own").touch()
        monkeypatch.setattr(sys, "argv", ["llamafactory-ext demo", str(tmp_path), *tiny])
        assert cli.main() == 1
        assert capsys.readouterr().err.startswith(f"error: {tmp_path / name} exists and was not made by the demo")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mini", "model", "own", "own"]


def test_replaces_its_own_folder_whole(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    (tmp_path / "data" / "left-over").touch()
    write_data(tmp_path / "data")
    assert (tmp_path / "data" / MARKER).is_file()
    assert not (tmp_path / "data" / "left-over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_tokenizer_goes_there_and_back(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from llamafactory_ext.toolbox.demo.model import SPECIAL_TOKENS, make_corpus, train_tokenizer, write_tokenizer

    trained = train_tokenizer(make_corpus(0))
    assert trained.to_str() == train_tokenizer(make_corpus(0)).to_str()
    write_tokenizer(tmp_path, trained)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")

    for text in (CHINESE, POINTS[0].pictures[0], "[offset=-12.5000|scaling=1.0000|length=5000]", *SHAPES):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("2025") == ["2", "0", "2", "5"]
    for text in SPECIAL_TOKENS:
        assert tokenizer.tokenize(text) == [text]
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == ""
    messages = [{"role": "user", "content": "好"}]
    turn = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert turn == f"{system}<|im_start|>user\n好<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_checkpoint_loads_whole_and_follows_its_seed(family: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import llamafactory_ext.model  # noqa: F401 - registers the model
    from llamafactory_ext.toolbox.demo.model import write_model

    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_model(tmp_path / name, seed, family)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a")["model.safetensors"] != digest(tmp_path / "c")["model.safetensors"]

    config = json.loads((tmp_path / "a" / "config.json").read_text("utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert "auto_map" not in config
    assert tokenizer.convert_tokens_to_ids("<ts>") == config["ts_token_start_index"]
    assert tokenizer.convert_tokens_to_ids("<ts/>") == config["ts_token_end_index"]
    assert config["vocab_size"] % 8 == 0 and config["vocab_size"] >= len(tokenizer)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(info.values())


# --- the plant that mini is taught ---


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "plant"
    write_plant(path, points=120)
    return path


def test_plant_labels_what_counts_there_and_nothing_else() -> None:
    seen = Counter()
    for number in range(200):
        rng = np.random.default_rng([0, 7, number])
        shown = draw_kinds(rng)
        records, _, _ = make_point(number, np.random.default_rng([0, 7, number]))
        texts = [record["conversations"][1]["value"] for record in records]
        named = re.findall("|".join(ALL_SHAPES), "".join(texts))
        assert sorted(named) == sorted(kind for kind in shown if kind in COUNTED)
        seen.update(shown)
    assert set(seen) == {*COUNTED, *NORMAL}
    assert sum(seen[kind] for kind in NORMAL) > 0.9 * sum(seen[kind] for kind in COUNTED)


def test_plant_same_seed_same_bytes(plant: Path, tmp_path: Path) -> None:
    write_plant(tmp_path / "same", points=120)
    write_plant(tmp_path / "other", seed=1, points=120)
    assert digest(tmp_path / "same") == digest(plant)
    once, other = (
        {name: one for name, one in digest(folder).items() if name.endswith(".csv")}
        for folder in (plant, tmp_path / "other")
    )
    assert once.keys() == other.keys() and not set(once.values()) & set(other.values())


def test_plant_has_the_habits_that_prepare_takes_away(plant: Path, tmp_path: Path) -> None:
    """The demo's command, on fewer points: every label is kept, every answer becomes strict JSON."""
    from llamafactory_ext.toolbox.cli import prepare

    out, report = tmp_path / "plant.jsonl", tmp_path / "report.json"
    arguments = ["prepare", str(plant), "--out", str(out), "--merge-points", "--compact-answers", "--split", "0.12"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*arguments, "--workers", "1", "--report", str(report)])
        assert prepare.main() == 0
    both = [out, out.with_name("plant_val.jsonl")]
    records = [json.loads(line) for file in both for line in file.read_text("utf-8").splitlines()]
    assert len(records) == 120
    assert sum(len(json.loads(one["output"])["detected_anomalies"]) for one in records) == sum(
        sum(kind in COUNTED for kind in draw_kinds(np.random.default_rng([0, 7, number]))) for number in range(120)
    )
    annotations = (plant / "json" / "plant.json").read_text("utf-8")
    assert "D:\\\\" in annotations and '"/home/' in annotations and "},{" in annotations
    names = [path.name for path in (plant / "timeseries" / "plant").iterdir()]
    assert any(name.startswith("数据集") for name in names) and any(name.startswith("gdsh_") for name in names)


def test_lift_asks_for_more_than_before_and_than_detectors() -> None:
    def scores(f1: float, strict: float = 1.0, **detectors: float) -> dict[str, Any]:
        baselines = {name: {"event_f1": one} for name, one in detectors.items()}
        return {"event_f1": f1, "baselines": baselines, "strict_json_rate": strict}

    def missed(before: float, after: float, **detectors: float) -> list[str]:
        return [name for name, _, reached in judge(scores(before), scores(after, **detectors)) if not reached]

    assert missed(0.5, 0.9, iqr=0.6, random=0.2) == []
    assert missed(0.75, 0.9, iqr=0.9) == ["before training, and 0.2", "iqr"]
    assert missed(0.2, 0.8, iqr=0.3) == ["wanted"]


def lines_of_make_demo() -> list[list[str]]:
    """What `make demo` would run, without running it."""
    done = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return [
        shlex.split(line) for line in done.stdout.replace("\\\n", " ").splitlines() if line.startswith("llamafactory-")
    ]


def test_make_demo_trains_on_what_prepare_registers_and_judges_what_was_predicted() -> None:
    lines = lines_of_make_demo()
    commands = [" ".join(words[:2]) for words in lines]
    ours = [command for command in commands if command.startswith("llamafactory-ext")]
    assert [command.split()[1] for command in ours] == [
        "demo",
        "prepare",
        "plan",
        "evaluate",
        "evaluate",
        "compare",
        "detect",
    ]
    keys = [dict(word.split("=", 1) for word in words[3:]) for words in lines if words[0] == "llamafactory-cli"]
    before, lesson, after = keys
    assert before["adapter_name_or_path"] == "null" and after["adapter_name_or_path"] == lesson["output_dir"]
    assert {
        key: before[key] for key in before if key not in ("adapter_name_or_path", "output_dir")
    }.items() <= after.items()
    predicted = {f"{one['output_dir']}/generated_predictions.jsonl" for one in (before, after)}
    assert {word for words in lines for word in words if word.endswith("generated_predictions.jsonl")} == predicted
    assert lesson["dataset"] == "plant" and "quantization_bit" not in lesson  # the recipe's 4 bit
