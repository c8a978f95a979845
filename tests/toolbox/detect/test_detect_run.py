"""The command, answered by a stub: rows and times, what failed, going on after a kill, shards, and who reads on."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from helpers_detect import Stub, results, write_series

from llamafactory_ext.files import write_whole
from llamafactory_ext.gdsh.prompts import ASKING
from llamafactory_ext.toolbox.cli import detect as command
from llamafactory_ext.toolbox.detect.journal import Journal
from llamafactory_ext.toolbox.prepare.asking import Asking


Run = Callable[..., tuple[int, str, Stub]]


@pytest.fixture
def detect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the command in this process over ``plant``, answered by a stub; returns status, what it said, the stub."""
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")

    def run(*options: str, out: str = "out", source: str = "plant", stub: Stub | None = None) -> tuple[int, str, Stub]:
        engine = stub or Stub()
        monkeypatch.setattr(command, "open_engine", lambda name, settings: engine)
        monkeypatch.setattr("sys.argv", ["detect", source, "--model", "model", "--out", out, *options])
        capsys.readouterr()
        status = command.main()
        said = capsys.readouterr()
        return status, said.out + said.err, engine

    return run


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def plant(folder: Path, series: int = 6) -> Path:
    """One sensor a file, of other lengths, and a wide one, a long one, and such as can't be read."""
    for number in range(series):
        write_series(folder / f"s{number:03}.csv", 30 + 5 * number, number + 1)
    times = pd.date_range("2025-03-01", periods=20, freq="h")
    pd.DataFrame({"time": times, "w1": np.arange(20.0), "w2": -np.arange(20.0)}).to_csv(
        folder / "wide.csv", index=False
    )
    long = pd.concat([pd.DataFrame({"time": times, "tag": tag, "value": np.eye(20)[3]}) for tag in ("l1", "l2")])
    long.to_csv(folder / "long.csv.gz", index=False)
    (folder / "words.csv").write_text("a,b\nx,y\n")
    (folder / "empty.csv").write_text("")
    write_series(folder / "long_question.csv", 13, 1)
    (folder / "back.csv").write_text("time,value\n2025-01-01,1\n2025-01-03,2\n2025-01-02,3\n")
    write_series(folder / "zwide" / "w1.csv", 10, 3)
    return folder


def test_every_series_is_answered_or_named(detect: Run, tmp_path: Path) -> None:
    plant(tmp_path / "plant")
    status, said, stub = detect("--mask", "--batch", "4")
    found = {row["series"]: row for row in rows(tmp_path / "out" / "detections.csv")}
    assert status == 1 and "asked by default" in said
    assert found.keys() == {*(f"s{number:03}" for number in range(6)), "w1", "w2", "l1", "l2"}
    peak = found["s002"]
    assert (peak["start"], peak["end"], peak["type"]) == ("21", "22", "高")
    assert (peak["start_time"], peak["end_time"]) == ("2025-03-01 08:21:00", "2025-03-01 08:22:00")
    assert found["l2"]["start_time"] == "2025-03-01 03:00:00"
    assert found["w2"]["start"] == found["w2"]["type"] == "" and found["w2"]["confidence"] == "1.000"
    failed = {(Path(row["file"]).name, row["series"]): row["reason"] for row in rows(tmp_path / "out" / "failed.csv")}
    assert failed.keys() == {
        ("words.csv", ""), ("empty.csv", ""), ("back.csv", "back"), ("long_question.csv", "long_question"),
        ("w1.csv", "w1"),
    }  # fmt: skip
    assert "runs back and forth" in failed["back.csv", "back"]
    assert "could not be asked: a question of 13 points" in failed["long_question.csv", "long_question"]
    assert "wide.csv" in failed["w1.csv", "w1"]
    assert all(len(asked) <= 4 for asked in stub.asked)
    marks = (tmp_path / "out" / "masks" / "s002.csv").read_text().split()
    assert marks[0] == "anomaly" and [place for place, mark in enumerate(marks[1:]) if mark == "1"] == [21, 22]
    assert len(marks) == 41
    lines = [json.loads(line) for line in (tmp_path / "out" / "detections.jsonl").open(encoding="utf-8")]
    assert next(one for one in lines if one["series"] == "s002")["answers"][0]["text"].startswith('{"status"')
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert "08:20:00" in page and page.index("long_question</h3>") < page.index("s002</h3>")


@pytest.mark.parametrize("options", [(), ("--window", "16", "--stride", "10"), ("--points", "12"), ("--window", "0")])
def test_an_interval_is_found_at_its_own_row_however_it_was_asked(
    detect: Run, tmp_path: Path, options: tuple[str, ...]
) -> None:
    for number in range(3):
        write_series(tmp_path / "plant" / f"s{number}.csv", 60, number)
    assert detect(*options)[0] == 0
    for row in rows(tmp_path / "out" / "detections.csv"):
        peak = int(row["series"][1]) * 7
        if int(row["start"]) <= peak <= int(row["end"]):
            assert row["start_time"] == f"2025-03-01 08:{row['start']:>02}:00"
            break
    else:
        raise AssertionError("the peak is not among the intervals")


def test_it_is_asked_as_it_was_trained_and_options_come_first(detect: Run, tmp_path: Path) -> None:
    write_series(tmp_path / "plant" / "a.csv", 100, 1)
    asking = Asking("<ts><ts/>\n有何异常？", window=50, stride=25, types=("高",))
    write_whole(tmp_path / "adapter" / ASKING, [asking.as_json()])
    (tmp_path / "adapter" / "checkpoint-5").mkdir()
    status, said, stub = detect("--adapter", "adapter/checkpoint-5")
    assert (status, stub.asked) == (0, [[50, 50, 50]]) and f"as {tmp_path / 'adapter' / ASKING} says" in said
    assert detect("--adapter", "adapter", "--window", "40", out="b")[2].asked == [[40, 40, 40]]
    assert detect("--adapter", "adapter", "--window", "0", "--points", "20", out="c")[2].asked == [[20]]
    (tmp_path / "adapter" / ASKING).write_text('{"prompt": "no place"}')
    status, said, _ = detect("--adapter", "adapter", out="d")
    assert status == 2 and "expected a prompt with one" in said


def test_a_folder_belongs_to_one_run(detect: Run, tmp_path: Path) -> None:
    write_series(tmp_path / "plant" / "a.csv", 40, 1)
    assert detect()[0] == 0
    status, said, _ = detect("--window", "20")
    assert status == 2 and "belongs to a run with" in said and "window 1024 (here 20)" in said
    (tmp_path / "model" / "config.json").write_text('{"other": 1}')
    status, said, _ = detect()
    assert status == 2 and "another model (config.json)" in said and said.count("\n") == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert detect(out="mine")[0] == 2 and (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_only_what_is_new_is_asked_about(detect: Run, tmp_path: Path) -> None:
    plant(tmp_path / "plant")
    detect()
    before = results(tmp_path / "out")
    _, _, stub = detect()
    assert stub.asked == [] and results(tmp_path / "out") == before
    write_series(tmp_path / "plant" / "s002.csv", 77, 3)
    write_series(tmp_path / "plant" / "new.csv", 33, 3)
    (tmp_path / "plant" / "s005.csv").unlink()
    assert sorted(detect()[2].points) == [33, 77]
    names = {row["series"] for row in rows(tmp_path / "out" / "detections.csv")}
    assert "new" in names and "s005" not in names
    fresh = detect(out="fresh")[2]
    assert results(tmp_path / "fresh") == results(tmp_path / "out")
    assert sorted(detect("--again")[2].points) == sorted(fresh.points)
    assert results(tmp_path / "fresh") == results(tmp_path / "out")


def test_masks_are_of_the_same_night_as_the_tables(detect: Run, tmp_path: Path) -> None:
    """What a run left that was killed while it wrote is removed, and so are masks of series that are gone."""
    for number in range(3):
        write_series(tmp_path / "plant" / f"s{number}.csv", 40, number)
    detect("--mask")
    out = tmp_path / "out"
    left = [
        out / ".detections.csv-0123456789abcdef.tmp",
        out / ".index.html-0123456789abcdef.tmp",
        out / "masks" / ".s1.csv-0123456789abcdef.tmp",
    ]
    for path in (*left, out / "mine.tmp"):
        path.write_text("torn")
    (tmp_path / "plant" / "s0.csv").unlink()
    write_series(tmp_path / "plant" / "s1.csv", 50, 1)
    assert "masks/" in detect()[1]  # not asked for again, and yet there
    detect("--mask", out="fresh")
    assert results(out) == results(tmp_path / "fresh") and len(list((out / "masks").iterdir())) == 2
    assert not any(path.exists() for path in left) and (out / "mine.tmp").exists()


class Stops(Stub):
    """Is interrupted when it is asked for the n-th time."""

    def __init__(self, turn: int) -> None:
        super().__init__()
        self.turn = turn

    def ask(self, *arguments: Any) -> Any:
        if len(self.asked) == self.turn:
            raise KeyboardInterrupt
        return super().ask(*arguments)


@pytest.mark.parametrize("turn", [0, 1, 3])
@pytest.mark.parametrize("torn", [0, 1, 40])
def test_it_goes_on_in_the_same_batches(detect: Run, tmp_path: Path, turn: int, torn: int) -> None:
    plant(tmp_path / "plant")
    (tmp_path / "plant" / "long_question.csv").unlink()  # or a batch would be asked twice, and then one by one
    options = ("--batch", "3", "--window", "16", "--stride", "9", "--mask")
    undisturbed = detect(*options, out="whole")[2]
    status, said, first = detect(*options, stub=Stops(turn))
    assert status == 130 and "goes on" in said and not (tmp_path / "out" / "detections.csv").exists()
    journal = tmp_path / "out" / "journal.jsonl"
    kept = journal.read_bytes()
    journal.write_bytes(kept + b'{"kind": "answers", "answers": [["'[:torn])
    _, _, second = detect(*options)
    assert first.asked + second.asked == undisturbed.asked
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_shards_give_results_as_one(detect: Run, tmp_path: Path) -> None:
    plant(tmp_path / "plant", series=20)
    detect(out="whole")
    asked = [detect("--shard", f"{number}/3")[2].points for number in (3, 1)]
    asked.append(detect("--shard", "2/3", out="elsewhere")[2].points)
    assert all(asked) and not (tmp_path / "out" / "detections.csv").exists()
    _, _, last = detect("--join", "elsewhere")
    assert last.asked == [] and results(tmp_path / "out") == results(tmp_path / "whole")
    assert detect("--shard", "4/3")[0] == 2
    assert detect("--join", "elsewhere", "--window", "9", out="other")[0] == 2


def test_series_of_a_large_table_are_spread(detect: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamafactory_ext.toolbox.detect.pipeline._SPREAD", 1)
    times = pd.date_range("2025-03-01", periods=20, freq="h")
    wide = {f"w{number}": np.arange(20.0) + number for number in range(12)}
    (tmp_path / "plant").mkdir()
    pd.DataFrame({"time": times, **wide}).to_csv(tmp_path / "plant" / "wide.csv", index=False)
    detect(out="whole")
    counts = [len(detect("--shard", f"{number}/2")[2].points) for number in (1, 2)]
    assert sum(counts) == 12 and all(counts)
    assert detect()[2].asked == [] and results(tmp_path / "out") == results(tmp_path / "whole")


def test_one_process_writes_a_journal(tmp_path: Path) -> None:
    held = Journal(tmp_path, "")
    code = "import sys; from pathlib import Path; from llamafactory_ext.toolbox.detect.journal import Journal\n"
    code += "from llamafactory_ext.errors import UsageError\n"
    code += "try: Journal(Path(sys.argv[1]), '')\nexcept UsageError as err: print(err)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "another detect writes" in done.stdout, done.stderr
    held.close()


KILLED = """
import sys; sys.path.insert(0, sys.argv.pop(1))
from helpers_detect import Stub
from llamafactory_ext.toolbox.cli import detect
detect.open_engine = lambda name, settings: Stub(0.03)
sys.exit(detect.main())
"""


def test_killed_again_and_again_it_ends_with_the_same_bytes(detect: Run, tmp_path: Path) -> None:
    plant(tmp_path / "plant", series=25)
    options = ["--window", "16", "--stride", "5", "--batch", "4", "--mask"]
    detect(*options, out="whole")
    arguments = ["plant", "--model", "model", "--out", "out", *options]
    command = [sys.executable, "-c", KILLED, str(ROOT / "tests"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    journal, kills, rng = tmp_path / "out" / "journal.jsonl", 0, random.Random(0)
    for _ in range(30):
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        before = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and kills < 4:
            if journal.exists() and journal.stat().st_size > before:  # it is at work: any moment is as good
                time.sleep(rng.random() * 0.3)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 1:  # some failed, as they should: it has ended
            break
    assert kills >= 1 and results(tmp_path / "out") == results(tmp_path / "whole")


def test_labels_and_evaluate_take_the_detections(detect: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory_ext.toolbox.evaluate.foreign import read_foreign
    from llamafactory_ext.toolbox.evaluate.points import Source
    from llamafactory_ext.toolbox.importing.back import choose, replace_anomalies
    from llamafactory_ext.toolbox.importing.layout import read_layout
    from llamafactory_ext.toolbox.importing.options import Options
    from llamafactory_ext.toolbox.importing.pipeline import import_data

    for number in range(4):
        write_series(tmp_path / "plant" / f"s{number}.csv", 40, number)
    pd.DataFrame({"value": np.zeros(30)}).to_csv(tmp_path / "plant" / "quiet.csv", index=False)
    assert detect()[0] == 0
    import_data(Options((tmp_path / "plant",), tmp_path / "data", labels="none"))
    path = tmp_path / "out" / "detections.csv"
    series = replace_anomalies(list(read_layout(tmp_path / "data")), path)
    found = {one.name: [(a.start, a.end, a.type) for a in one.anomalies or ()] for one in series}
    assert found == {"quiet": [], **{f"s{n}": [(n * 7, n * 7 + 1, "高")] for n in range(4)}}
    assert [one.name for one in choose(series, path, 2)] == ["s3", "s2"]
    sources = [Source(one.name, "", (np.zeros(40),)) for one in series]
    predicted = read_foreign(path, sources, "data")
    assert [json.loads(one.predict)["detected_anomalies"] for one in predicted][:2] == [
        [],
        [{"interval": [0, 1], "type": "高", "confidence": 1.0}],
    ]


def test_nothing_heavy_is_imported_to_start() -> None:
    """In vLLM's environment there is no LLaMA-Factory."""
    heavy = ("llamafactory", "torch", "transformers", "peft", "datasets")
    code = f"import sys, llamafactory_ext.toolbox.cli.detect; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
