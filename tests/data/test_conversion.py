"""Converted once, and never stale: what the caches of a run are made from."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Gdsh, annotation, answer, log_history, run_cli
from filelock import FileLock

from llamafactory_ext.data.series_cache import delete_left, read_once, shared_series
from llamafactory_ext.files import private_folder
from llamafactory_ext.gdsh import GdshError, tables


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Counter[str]]:
    """Counts how often each CSV file was read, in this process and in those forked from it."""
    scan, log = tables.scan, tmp_path / "opened"
    log.touch()

    def noted(path: Path, data: bytes | None = None) -> Any:
        with log.open("a") as file:  # one short write in append mode: whole, whichever process makes it
            file.write(f"{Path(path).name}\n")
        return scan(path, data)

    monkeypatch.setattr(tables, "scan", noted)
    return lambda: Counter(log.read_text().split())


@pytest.mark.parametrize("workers", [None, 2])
def test_each_csv_is_read_once(
    workers: int | None, gdsh: Gdsh, tokenise: Callable[..., Any], opened: Callable[[], Counter[str]]
) -> None:
    names = "abcd"
    for place, name in enumerate(names):
        gdsh.csv(f"{name}.csv", [place + i / 8 for i in range(20)])
    gdsh.csv("数据集e.csv", [1.5, 2, 2.5])
    pictures = [f"/x/{names[number % 4]}.jpg" for number in range(12)] + ["/x/e.jpg"]
    gdsh.records(*(annotation(picture) for picture in pictures))
    rows = tokenise(gdsh.folder, preprocessing_num_workers=workers)["train_dataset"]
    assert [series[0][0] for series in rows["audios"]] == [number % 4 for number in range(12)] + [1.5]
    assert opened() == {"a.csv": 1, "b.csv": 1, "c.csv": 1, "d.csv": 1, "数据集e.csv": 1}


def test_what_was_read_once_is_the_same_again(tmp_path: Path, opened: Callable[[], Counter[str]]) -> None:
    path = tmp_path / "s.csv"
    path.write_text("n,value\n0,0.1\n1,Bad\n2,-0.0\n")
    with shared_series(tmp_path / "cache"):
        first, again = read_once(str(path)), read_once(str(path))
        assert opened() == {"s.csv": 1}
        with pytest.raises(GdshError, match="No such file"):
            read_once(str(tmp_path / "none.csv"))
    assert np.array_equal(first.values, again.values)
    assert np.array_equal(np.signbit(first.values), np.signbit(again.values))
    assert first.filled == again.filled == 1
    assert not any((tmp_path / "cache").iterdir())
    assert read_once(str(path)).filled == 1  # outside of a run too


def test_folders_of_killed_processes_are_deleted(tmp_path: Path) -> None:
    """Own names only, a day old, and none that a process holds."""
    cache = private_folder(tmp_path / "cache")
    names = ("series-abcd1234", "series-abcd1235", "series-mine", "a-0123456789abcdef")
    for name in names[:4]:
        (cache / name).mkdir()
        (cache / name / "x.npz").touch()
    (cache / "series-abcd1237").symlink_to(cache / "a-0123456789abcdef")
    held = FileLock(cache / "series-abcd1235" / ".alive.lock")
    held.acquire()
    old = time.time() - 25 * 3600
    for path in list(cache.iterdir()):
        os.utime(path, (old, old), follow_symlinks=False)
    (cache / "series-abcd1236").mkdir()
    left = {path.name for path in cache.iterdir()} - {"series-abcd1234"}
    with shared_series(cache):
        (own,) = {path.name for path in cache.iterdir()} - left
        os.utime(cache / own, (old, old))
        delete_left(cache)
        assert (cache / own).is_dir(), "a run of more than a day"
    assert {path.name for path in cache.iterdir()} == left
    held.release()
    os.utime(cache / "series-abcd1235", (old, old))
    delete_left(cache)
    assert {path.name for path in cache.iterdir()} == left - {"series-abcd1235"}


def test_a_changed_csv_is_trained_on(gdsh: Gdsh, demo: Path, tmp_path: Path) -> None:
    path = gdsh.csv("b.csv", [1.25, 2.5, 3.75])
    gdsh.records(annotation("/x/b.jpg", answer((1, 1))))
    keys = {
        "model_name_or_path": str(demo / "model"),
        "dataset_dir": str(gdsh.folder),
        "cache_dir": str(tmp_path / "cache"),
        **{"dataset": "a", "template": "chatts", "stage": "sft", "do_train": True, "finetuning_type": "lora"},
        **{"max_steps": 1, "logging_steps": 1, "use_cpu": True, "report_to": "none"},
    }

    def first_loss(name: str) -> float:
        (tmp_path / "recipe.yaml").write_text(json.dumps(keys))
        run = run_cli("train", "recipe.yaml", f"output_dir={name}", cwd=tmp_path)
        assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
        return float(log_history(tmp_path / name)[0]["loss"])

    before, info = first_loss("before"), path.stat()
    gdsh.csv("b.csv", [1.25, 9.5, 3.75])  # as long as it was, and made to look as old
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert path.stat().st_size == info.st_size
    assert first_loss("changed") != before
    gdsh.csv("b.csv", [1.25, 2.5, 3.75])
    assert first_loss("again") == before


def test_only_what_changed_is_converted_anew(
    gdsh: Gdsh, tokenise: Callable[..., Any], opened: Callable[[], Counter[str]]
) -> None:
    gdsh.records(annotation("/x/a.jpg"))
    gdsh.csv("unused.csv", [1])
    tokenise(gdsh.folder)
    gdsh.csv("unused.csv", [2])
    gdsh.csv("new.csv", [2], folder="whlj")
    tokenise(gdsh.folder)
    assert opened() == {"a.csv": 1}
    gdsh.csv("a.csv", range(40))
    assert tokenise(gdsh.folder)["train_dataset"]["audios"][0][0][-1] == 39
    assert opened() == {"a.csv": 2}


def test_records_that_contradict_each_other_are_named(
    gdsh: Gdsh, tokenise: Callable[..., Any], log: pytest.LogCaptureFixture
) -> None:
    gdsh.csv("copy.csv", [i / 4 for i in range(40)])
    one, other = annotation("/x/a.jpg", answer((1, 2))), annotation("/x/a.jpg", answer((3, 4)))
    gdsh.records(one, other, one, annotation("/x/copy.jpg", answer((5, 6))), annotation("/x/a.jpg", user="<image>?"))
    assert len(tokenise(gdsh.folder)["train_dataset"]) == 5
    [warning] = [record.getMessage() for record in log.records if "contradict an earlier" in record.getMessage()]
    assert "2 records contradict an earlier one" in warning
    assert "llamafactory-ext prepare --merge-points" in warning
    assert warning.splitlines()[1:] == ["  record 1 (a.jpg)", "  record 3 (copy.jpg)"]


def test_nothing_is_said_where_nothing_contradicts(
    gdsh: Gdsh, tokenise: Callable[..., Any], log: pytest.LogCaptureFixture
) -> None:
    gdsh.csv("b.csv", [i / 8 for i in range(40)])
    gdsh.records(annotation("/x/a.jpg", answer((1, 2))), annotation("/x/b.jpg", answer((3, 4))))
    tokenise(gdsh.folder)
    assert not any("contradict an earlier" in record.getMessage() for record in log.records)
