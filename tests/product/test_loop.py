"""The loop's example in its short form, every step the real command: what docs/loop.md shows is what runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest


pytest.importorskip("llamafactory")
ROOT = Path(__file__).parents[2]


def test_a_round_of_the_loop(tmp_path: Path) -> None:
    """That rounds help is what the full form shows (docs/loop.md); two steps of training teach nothing."""
    sizes = {"rounds": 1, "choose": 4, "start": 6, "golden": 6, "pool": 8, "steps": 2, "arms": "confidence"}
    words = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    script = ROOT / "tools" / "demo" / "loop.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "loop"), *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 1, by confidence: 4 corrected" in done.stdout
    folder = tmp_path / "loop"

    def records(name: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]

    golden = {record["name"] for record in records("golden.jsonl")}
    train = records("train_confidence_1.jsonl")
    assert len(golden) == 6 and not golden & {record["name"] for record in train}
    assert sorted(str(record["round"]) for record in train) == [*[""] * 6, *["1"] * 4]
    # What came back from the person is what was right there, at the rows of the plant's own files.
    truth = {}
    for record in json.loads((folder / "plant" / "json" / "plant.json").read_text("utf-8")):
        name = Path(str(record["image"]).replace("\\", "/")).stem
        truth.setdefault(name, set()).update(_intervals(record["conversations"][1]["value"]))
    for record in train:
        picture = next(name for name in truth if str(record["name"]).endswith(name))
        assert set(_intervals(str(record["output"]))) == truth[picture]
    assert len((folder / "confidence" / "golden_history.jsonl").read_text("utf-8").splitlines()) == 2


def _intervals(answer: str) -> list[tuple[int, int]]:
    """Every pair of numbers after the word `interval`, in whatever form."""
    return [(int(a), int(b)) for a, b in re.findall(r"interval['\"]?\s*:\s*\[(\d+),\s*(\d+)\]", answer)]
