"""The command answered by the shipped small model: shares of the work, each in batches of its own, end as one run."""

from pathlib import Path

import pytest
from helpers_detect import results, write_series

from llamafactory_ext.toolbox.cli import detect as command
from llamafactory_ext.toolbox.demo.writing import MINI
from llamafactory_ext.toolbox.detect.engines import Settings, open_engine


pytest.importorskip("xgrammar")


def test_shards_end_with_the_bytes_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        write_series(tmp_path / "plant" / f"s{number}.csv", 30 + 17 * number, number + 1)
    engine = open_engine("transformers", Settings(str(MINI), max_new_tokens=100))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "open_engine", lambda name, settings: engine)

    def detect(out: str, *more: str) -> int:
        arguments = ["plant", "--model", str(MINI), "--out", out, "--window", "100", "--stride", "60", "--batch", "4"]
        monkeypatch.setattr("sys.argv", ["detect", *arguments, "--mask", *more])
        return command.main()

    status = detect("whole")  # of one window the model says [12, 4], which is named
    assert detect("shares", "--shard", "2/2") == detect("one", "--shard", "1/2") == 0
    for journal in ("shares/journal-2-of-2.jsonl", "one/journal-1-of-2.jsonl"):
        assert (tmp_path / journal).stat().st_size  # both had something to do
    assert detect("shares", "--join", "one") == status
    found = results(tmp_path / "whole")
    assert results(tmp_path / "shares") == found and found["detections.csv"].count(b"\n") > 9
