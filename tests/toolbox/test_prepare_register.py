"""`--register` adds or updates entries of dataset_info.json and leaves everything else as it is."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from helpers_prepare import entry, leftovers, record, reply, run_tool, write_data

from llamafactory_ext.data.formats import FORMATS
from llamafactory_ext.errors import UsageError
from llamafactory_ext.gdsh import index_series
from llamafactory_ext.toolbox.prepare import Options, prepare
from llamafactory_ext.toolbox.prepare.points import prepare_batch
from llamafactory_ext.toolbox.prepare.records import CHATTS_COLUMNS, GDSH_COLUMNS, GDSH_TAGS
from llamafactory_ext.toolbox.prepare.registering import read_registry


@pytest.fixture
def root(tmp_path: Path) -> Path:
    records = [record(f"{name}.jpg", reply(entry(1, 2))) for name in "abc"]
    series = {name: [place + number for place in range(9)] for number, name in enumerate("abc")}
    return write_data(tmp_path / "data", {"gdsh": records}, series)


def options(root: Path, **more: Any) -> Options:
    folder = root.parent / "out"
    info = root.parent / "info" / "dataset_info.json"
    return Options(
        root, **{"out": folder / "train.jsonl", "annotations": folder / "clean.json", "register": info, **more}
    )


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_keys_are_those_of_the_plugin() -> None:
    assert (FORMATS["chatts"].columns, FORMATS["gdsh"].columns) == (CHATTS_COLUMNS, GDSH_COLUMNS)
    assert GDSH_TAGS.items() <= FORMATS["gdsh"].tags.items()
    shipped = read(ROOT / "dataset_info" / "dataset_info.json")["gdsh"]
    assert (shipped["columns"], shipped["tags"]) == (GDSH_COLUMNS, GDSH_TAGS)


def test_new_file_gets_an_entry_for_each_output(root: Path) -> None:
    run = options(root, split=0.4)
    report = prepare(run)
    assert report["registered"] == str(run.register)
    assert run.register is not None
    info = read(run.register)
    assert list(info) == ["train", "clean", "train_val", "clean_val"]
    for name in info:
        assert (run.register.parent / info[name]["file_name"]).resolve().is_file()
        assert "\\" not in info[name]["file_name"]
    assert info["train"] == {"file_name": "../out/train.jsonl", "columns": CHATTS_COLUMNS}
    assert info["clean"] == {
        "file_name": "../out/clean.json",
        "formatting": "gdsh",
        "folder": "../data/timeseries",
        "columns": GDSH_COLUMNS,
        "tags": GDSH_TAGS,
    }
    # The registered folder leads from the registered pictures to the series.
    index = index_series(run.register.parent / info["clean"]["folder"])
    for one in json.loads((run.register.parent / info["clean"]["file_name"]).read_text(encoding="utf-8")):
        assert Path(index.find(one["image"]).path).name == one["image"].replace(".jpg", ".csv")
    assert not run.register.with_name("dataset_info.json.bak").exists()


def test_other_entries_and_their_order_stay_and_the_old_file_is_kept(root: Path) -> None:
    run = options(root)
    assert run.register is not None
    run.register.parent.mkdir()
    old = '{"z": {"file_name": "数据.json", "x": [1, 2.50]},\n "train": {"file_name": "../out/train.jsonl"}, "a": {}}'
    run.register.write_text(old, encoding="utf-8")
    with pytest.raises(UsageError, match="'train'"):
        prepare(run)
    assert run.register.read_text(encoding="utf-8") == old
    assert not (root.parent / "out").exists()
    prepare(options(root, force=True))
    info = read(run.register)
    assert list(info) == ["z", "train", "a", "clean"]
    assert info["z"] == {"file_name": "数据.json", "x": [1, 2.5]}
    assert run.register.with_name("dataset_info.json.bak").read_text(encoding="utf-8") == old
    # Nothing new: the file is not touched, and the older state stays in .bak.
    before = run.register.stat()
    assert prepare(run)["registered"] == ""
    assert run.register.stat() == before
    assert run.register.with_name("dataset_info.json.bak").read_text(encoding="utf-8") == old
    assert not leftovers(root.parent)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,}', "line 1, column"),
        ('{"a": 1, "a": 2}', "a key occurs twice in one object: 'a'"),
        ('{"b": {"k": 1, "k": 2}}', "a key occurs twice in one object: 'k'"),
        ("[]", "not a JSON object"),
        ("", "not valid JSON"),
        ("[" * 100_000, "cannot be kept"),
    ],
)
def test_an_unusable_file_stops_the_run_before_any_work(root: Path, text: str, message: str) -> None:
    info = root.parent / "dataset_info.json"
    info.write_text(text, encoding="utf-8")
    done = run_tool("data", "--out", "train.jsonl", "--register", "dataset_info.json", cwd=root.parent)
    assert done.returncode == 2
    assert message in done.stderr
    assert info.read_text(encoding="utf-8") == text
    assert not (root.parent / "train.jsonl").exists() and not leftovers(root.parent)


def test_an_entry_of_another_name_needs_force_on_the_command_line(root: Path) -> None:
    info = root.parent / "dataset_info.json"
    info.write_text('{"train": {"file_name": "x"}}', encoding="utf-8")
    command = ["data", "--out", "train.jsonl", "--register", "dataset_info.json"]
    assert run_tool(*command, cwd=root.parent).returncode == 2
    assert run_tool(*command, "--force", cwd=root.parent).returncode == 0
    assert read(info)["train"]["file_name"] == "train.jsonl"


def test_outputs_of_one_stem_cannot_share_an_entry(root: Path) -> None:
    with pytest.raises(UsageError, match="named 'train'"):
        prepare(options(root, annotations=root.parent / "out" / "train.json"))


def test_registered_outputs_are_the_same_to_training(root: Path, tokenise: Callable[..., Any]) -> None:
    """LLaMA-Factory loads both forms by their entries, and sees the same texts and series."""
    run = options(root, merge_points=True, compact_answers=True)
    prepare(run)
    assert run.register is not None
    seen = []
    for name in ("train", "clean"):
        rows = tokenise(run.register.parent, dataset=name)["train_dataset"]
        seen.append([(row["input_ids"], row["labels"]) for row in rows])
    assert len(seen[0]) == 3
    assert seen[0] == seen[1]


def test_four_runs_at_once_register_all_their_outputs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits in the middle, so that without a lock all would start from the same, empty file."""
    info, names = root.parent / "info" / "dataset_info.json", ["a", "b", "数据", "d"]

    def read_slowly(path: Path) -> dict[str, Any]:
        found = read_registry(path)
        time.sleep(0.2)
        return found

    monkeypatch.setattr("llamafactory_ext.toolbox.prepare.registering.read_registry", read_slowly)
    with ThreadPoolExecutor(len(names)) as pool:
        runs = [Options(root, out=root.parent / f"{name}.jsonl", register=info) for name in names]
        reports = list(pool.map(prepare, runs))
    assert all(report["registered"] for report in reports)
    assert sorted(read(info)) == sorted(names)
    assert not leftovers(root.parent)


def test_a_run_does_not_replace_an_entry_that_came_meanwhile(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Options(root, out=root.parent / "train.jsonl", register=root.parent / "dataset_info.json")
    assert run.register is not None

    def meanwhile(records: list[bytes], *rest: Any) -> Any:
        assert run.register is not None
        run.register.write_text('{"train": {"file_name": "another.jsonl"}}', encoding="utf-8")
        return prepare_batch(records, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("llamafactory_ext.toolbox.prepare.pipeline.prepare_batch", meanwhile)
    with pytest.raises(UsageError, match="'train'"):
        prepare(run)
    assert not (root.parent / "train.jsonl").exists() and not leftovers(root.parent)
    assert read(run.register) == {"train": {"file_name": "another.jsonl"}}
