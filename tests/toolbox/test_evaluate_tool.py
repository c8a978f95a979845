"""`llamafactory-ext evaluate` as a user runs it: once in a process of its own, wrong input in this one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import NOTHING_FOUND, Gdsh, annotation, answer


pytest.importorskip("aeon")
pytest.importorskip("telemeval")

from llamafactory_ext.gdsh import read_series
from llamafactory_ext.series import describe
from llamafactory_ext.toolbox.evaluate.tallies import METRICS


@pytest.fixture
def data(gdsh: Gdsh) -> Gdsh:
    """Two points with labels, one without."""
    for name in ("b.csv", "c.csv"):
        gdsh.csv(name, [10.0 if i in (20, 21) else i % 3 for i in range(60)])
    return gdsh.records(
        annotation("a.jpg", answer((3, 5))), annotation("b.jpg", answer((20, 21))), annotation("c.jpg", NOTHING_FOUND)
    )


@pytest.fixture
def predicted(data: Gdsh) -> Path:
    """What a predict run on `data` would have written: a right answer, a broken one, a literal."""
    lines = []
    answers = (answer((3, 5)), answer((20, 21))[:-9], "{'interval': [7, 9], 'type': '点异常'}")
    labels = (answer((3, 5)), answer((20, 21)), NOTHING_FOUND)
    for name, label, predict in zip("abc", labels, answers, strict=True):
        series = read_series(data.folder / "timeseries" / "gdsh" / f"{name}.csv").values
        lines.append({"prompt": f"{describe(series)}<ts>", "predict": predict, "label": label})
    path = data.folder.parent / "generated_predictions.jsonl"
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines), encoding="utf-8")
    return path


def test_scores_of_a_data_set(data: Gdsh, predicted: Path, tmp_path: Path) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "140"}
    command = [sys.executable, "-m", "llamafactory_ext", "evaluate", predicted, "--out", tmp_path / "scores"]
    command += ["--dataset", "a", "--dataset_dir", data.folder, f"cache_dir={tmp_path}/cache"]
    done = subprocess.run(
        [*map(str, command)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads((tmp_path / "scores" / "scores.json").read_text(encoding="utf-8"))
    assert {"records", "strict_json_rate", *METRICS, "per_type", "per_point", "baselines", "confidence"} <= set(found)
    assert (found["records"], found["strict_json_rate"]) == (3, pytest.approx(1 / 3, abs=1e-6))
    assert (found["answers"]["strict"], found["answers"]["lenient"], found["answers"]["unreadable"]) == (1, 1, 1)
    assert found["events"] == {"hits": 1, "false_alarms": 1, "misses": 1}
    assert (found["event_f1"], found["point_f1"]) == (0.5, pytest.approx(3 * 2 / (3 * 2 + 3 + 2), abs=1e-6))
    assert set(found["per_point"]) == {"a", "b", "c"}
    assert set(found["baselines"]) == {"random", "zscore", "iqr"}
    assert found["baselines"]["iqr"]["event_recall"] == 0.5
    assert set(METRICS) < set(found["confidence"])
    assert found["versions"]["aeon"][0].isdigit()
    assert found["versions"]["telemeval"][0].isdigit()
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["index.html", "scores.json"]
    rows = {" ".join(line.split()) for line in done.stdout.splitlines()}
    assert {
        "strict JSON 1 (33.3%)",
        "unreadable, which find nothing and are never right 1",
        "a 0 0 1.000 1.000 1.000 1.000",
    } <= rows
    assert any(row.startswith("event 0.500 0.500 0.500") for row in rows)
    assert any(row.startswith("record 1 (b): ") for row in rows)


Tool = Callable[..., tuple[int, str]]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tool:
    """Runs the tool in this process; returns its exit status and what it complained of."""
    from llamafactory_ext.toolbox.cli import evaluate

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "hush", lambda: None)  # its variables would silence the processes of later tests

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
        capsys.readouterr()
        return evaluate.main(), capsys.readouterr().err

    return run


def test_without_data_set(predicted: Path, tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool(predicted, "--out", "a/b", "--salvage") == (0, "")
    found = json.loads(Path("a/b/scores.json").read_text(encoding="utf-8"))
    assert set(found["baselines"]) == {"random"}
    assert found["settings"]["left_out"] == ["zscore", "iqr"]
    assert (found["answers"]["salvaged"], found["answers"]["unreadable"]) == (0, 1)  # it broke off inside its entry


def one_line(found: tuple[int, str], status: int, *said: str) -> None:
    assert found[0] == status
    assert found[1].startswith("error: ")
    assert found[1].count("\n") == 1
    assert all(part in found[1] for part in said), found[1]


def test_wrong_usage(predicted: Path, data: Gdsh, tool: Tool, tmp_path: Path) -> None:
    one_line(tool("none.jsonl", "--out", "o"), 2, "none.jsonl: no such file")
    one_line(tool(predicted, "--out", predicted), 2, "generated_predictions.jsonl is a file; name a folder with --out")
    given = (predicted, "--out", "o", "--dataset-dir", data.folder)
    one_line(tool(*given, "--dataset", "b"), 2, "no data set b in", "there are: a.")
    one_line(tool(*given, "--dataset", "a", "--recipe", "none.yaml"), 2, "none.yaml: no such recipe")
    assert not Path("o").exists()


def test_wrong_input(predicted: Path, data: Gdsh, tool: Tool) -> None:
    rows = [json.loads(row) for row in predicted.read_text(encoding="utf-8").splitlines()]

    def scored(changed: list[Any], *more: object) -> tuple[int, str]:
        Path("p.jsonl").write_text("\n".join(map(json.dumps, changed)), encoding="utf-8")
        return tool("p.jsonl", "--out", "o", *more)

    named = ("--dataset", "a", "--dataset-dir", data.folder, "cache_dir=cache")
    one_line(scored([{"text": ""}]), 1, "p.jsonl, line 1 has no text 'prompt': found only text;")
    one_line(scored([rows[0], {**rows[1], "label": "?"}]), 1, "record 1: its label can't be read")
    one_line(scored(rows[:2], *named), 1, "2 predictions, but 3 records in a; name the data set that was predicted")
    one_line(scored([rows[1], rows[0], rows[2]], *named), 1, "2 of 3 predictions are of other records", "record 0")
    assert scored(rows[:2], *named, "max_samples=2") == (0, "")
    annotations = data.folder / "json" / "a.json"
    annotations.write_text(annotations.read_text(encoding="utf-8").replace("b.jpg", "none.jpg"), encoding="utf-8")
    one_line(scored(rows, *named), 1, "data set a: record 1 (none.jpg): no CSV file belongs to 'none'")
    annotations.unlink()
    one_line(scored(rows, *named), 1, "data set a: ", "a.json")


def test_files_of_others_and_full_disks(predicted: Path, tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("o").mkdir()
    Path("o/index.html").write_text("<h1>mine</h1>")
    one_line(tool(predicted, "--out", "o"), 2, "o/index.html was not written by this tool; name another folder")
    assert [path.name for path in Path("o").iterdir()] == ["index.html"]
    Path("o/index.html").unlink()
    Path("o/scores.json").mkdir()
    one_line(tool(predicted, "--out", "o"), 2, "can't be written")
    Path("o/scores.json").rmdir()
    assert tool(predicted, "--out", "o") == tool(predicted, "--out", "o") == (0, "")


def test_without_the_packages_it_says_what_to_install(
    predicted: Path, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "telemeval" else find(name))
    one_line(
        tool(predicted, "--out", "o"), 2, "no module telemeval; install what scores need: pip install '.[evaluate]'"
    )


def test_val_size_takes_what_training_held_out(data: Gdsh, predicted: Path, tool: Tool) -> None:
    """A run with `dataset=a val_size=1` predicts one record, drawn by LLaMA-Factory's own split."""
    rows = predicted.read_text(encoding="utf-8").splitlines()
    named = ("--dataset", "a", "--dataset-dir", data.folder, "cache_dir=cache", "val_size=1")
    found = []
    for row in rows:
        Path("p.jsonl").write_text(row, encoding="utf-8")
        found.append(tool("p.jsonl", "--out", "o", *named)[0])
    assert sorted(found) == [0, 1, 1]


def test_history(predicted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each evaluation adds a line; the page draws those of the same records."""
    from llamafactory_ext.toolbox.cli import evaluate as cli

    history, out = tmp_path / "scores.jsonl", tmp_path / "out"
    command = ["evaluate", str(predicted), "--out", str(out), "--history", str(history)]
    for name in ("first", "<second>"):
        monkeypatch.setattr(sys, "argv", [*command, "--name", name])
        assert cli.main() == 0
    lines = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    assert [one["name"] for one in lines] == ["first", "<second>"]
    assert lines[0]["data"] == lines[1]["data"] and lines[0]["scores"]["event_f1"] == 0.5
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "History of these records" in page and "&lt;second&gt;" in page
    history.write_text("{}\n")
    assert cli.main() == 1
    assert history.read_text() == "{}\n"
