"""Whatever goes wrong, old outputs stay whole, nothing half-written is left, and one clear line says why."""

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_prepare import (
    TOOL,
    check_accounts,
    entry,
    leftovers,
    read_lines,
    record,
    reply,
    run_tool,
    write_csv,
    write_data,
)

from llamafactory_ext.toolbox.prepare import Options, PrepareError, prepare


OLD = "the old output\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    records = [record(f"{name}.jpg", reply(entry(1, 2))) for name in "abc"]
    series = {name: [place + number for place in range(9)] for number, name in enumerate("abc")}
    (tmp_path / "train.jsonl").write_text(OLD, encoding="utf-8")
    return write_data(tmp_path / "data", {"gdsh": records}, series)


def run_and_refuse(root: Path, *arguments: Any) -> str:
    """Run on faulty data; the old output must stay. Gives what was said."""
    done = run_tool("data", "--out", "train.jsonl", *arguments, cwd=root.parent)
    assert done.returncode == 1, done.stdout + done.stderr
    assert (root.parent / "train.jsonl").read_text(encoding="utf-8") == OLD
    assert not leftovers(root.parent)
    return done.stderr


def break_annotations(root: Path, data: bytes) -> None:
    (root / "json" / "gdsh.json").write_bytes(data)


def test_done_and_usage_statuses(root: Path) -> None:
    done = run_tool("data", "--out", "new/deep/train.jsonl", cwd=root.parent)
    assert done.returncode == 0, done.stderr
    assert len(read_lines(root.parent / "new" / "deep" / "train.jsonl")) == 3
    assert "written to" in done.stdout
    for wrong in ([], ["--out"], ["data", "--out", "x", "--stride", "3"], ["nowhere", "--out", "x"], ["--nonsense"]):
        assert run_tool(*wrong, cwd=root.parent).returncode == 2, wrong
    assert run_tool("--help", cwd=root.parent).stdout.count("--merge-points") > 1


def test_unreadable_json_is_told_with_its_position(root: Path) -> None:
    data = (root / "json" / "gdsh.json").read_bytes()
    break_annotations(root, b"\n\n" + data[:-2] + b"!" + data[-2:])
    said = run_and_refuse(root, "--drop-faulty", "--report", "r.json")
    assert "gdsh.json" in said and "line 3, column" in said
    report = json.loads((root.parent / "r.json").read_text(encoding="utf-8"))
    assert not report["done"]
    assert [one["record"] for one in report["faults"]] == [None]
    check_accounts(report)


def test_wrong_encodings_are_told(root: Path) -> None:
    break_annotations(root, b'[{"image": "\xff\xff"}]')
    assert "neither UTF-8 nor GB18030" in run_and_refuse(root)
    write_data(root, {"gdsh": [record("a.jpg", reply())]}, {})
    (root / "timeseries" / "gdsh" / "a.csv").write_bytes(",value\n0,1\xff\xff\n".encode("latin-1"))
    assert "a.csv" in run_and_refuse(root)


def test_chinese_encodings_are_read(root: Path) -> None:
    text = json.dumps([record("D:\\标注\\a.JPG", reply(entry(1, 2, "阶跃上升")))], ensure_ascii=False)
    outputs = []
    for encoding in ("utf-8", "utf-8-sig", "gb18030"):
        break_annotations(root, text.encode(encoding))
        assert run_tool("data", "--out", "new.jsonl", cwd=root.parent).returncode == 0
        outputs.append((root.parent / "new.jsonl").read_bytes())
    assert len(set(outputs)) == 1


def test_a_csv_that_became_a_folder_is_told(root: Path) -> None:
    (root / "timeseries" / "gdsh" / "b.csv").unlink()
    (root / "timeseries" / "gdsh" / "b.csv").mkdir()
    said = run_and_refuse(root)
    assert "record 1 (b.jpg): no CSV file belongs to 'b'" in said


def spoil(root: Path) -> None:
    records = [
        record("a.jpg", reply(entry(1, 2))),
        record("missing.jpg", reply()),
        record("a.jpg", reply(entry(1, 9))),
        record("b.jpg", "cut off: {"),
        record("b.jpg", reply(), "<image><image>"),
        {"image": "c.jpg", "conversations": [{"from": "assistant", "value": "x"}, {"from": "human", "value": "y"}]},
        record("b.jpg", reply(entry(3, 3))),
        "no record",
        record("empty.jpg", reply()),
        record("empty.jpg", reply()),
    ]
    write_csv(root / "timeseries" / "gdsh" / "empty.csv", ["", ""])
    write_data(root, {"gdsh": records}, {})


def test_all_faults_are_told_at_once(root: Path) -> None:
    spoil(root)
    said = run_and_refuse(root, "--report", "r.json", "--merge-points")
    wanted = {
        1: "no CSV file",
        2: "[1, 9]; expected 0 <= start",
        3: "cut off",
        4: "2 <image> but 1 series",
        5: "assistant, human; expected user, assistant",
        7: "expected an object",
        8: "no finite number",
        9: "no finite number",
    }
    for number, message in wanted.items():
        assert any(f"record {number}" in line and message in line for line in said.splitlines()), (number, said)
    report = json.loads((root.parent / "r.json").read_text(encoding="utf-8"))
    assert sorted(one["record"] for one in report["faults"]) == sorted(wanted)
    check_accounts(report)


def test_drop_faulty_leaves_them_out_and_names_them(root: Path) -> None:
    spoil(root)
    command = ["data", "--out", "train.jsonl", "--report", "r.json", "--drop-faulty", "--merge-points"]
    done = run_tool(*command, cwd=root.parent)
    assert done.returncode == 0
    assert "record 3 (b.jpg)" in done.stderr
    lines = read_lines(root.parent / "train.jsonl")
    assert [line["timeseries"][0][0] for line in lines] == [0, 1]
    report = json.loads((root.parent / "r.json").read_text(encoding="utf-8"))
    check_accounts(report)
    assert report["records"]["dropped"] == {"faulty": 8}


def test_many_faults_are_counted_and_none_left_is_no_success(root: Path) -> None:
    write_data(root, {"gdsh": [record("missing.jpg", reply())] * 30}, {})
    assert "and 10 more" in run_and_refuse(root)
    assert "none is left" in run_and_refuse(root, "--drop-faulty")
    write_data(root, {"gdsh": []}, {})
    assert "no records" in run_and_refuse(root)


def test_deep_and_odd_answers_are_faults(root: Path) -> None:
    deep = '{"detected_anomalies":' * 3000 + "[]" + "}" * 3000
    odd = [deep, "[" * 900 + "]" * 900, reply(entry(1, 2) | {"deep": json.loads("[" * 900 + "]" * 900)})]
    odd += ['{"status":"success","detected_anomalies":[{"interval":[1,2],"type":"\\ud800"}]}', "NaN", "7", "{}"]
    write_data(root, {"gdsh": [record("a.jpg", answer) for answer in odd]}, {})
    report = prepare(Options(root, out=root.parent / "train.jsonl", compact_answers=True, merge_points=True))
    assert {one["record"] for one in report["faults"]} >= {0, 3, 4, 5, 6}


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def test_a_full_disk_leaves_the_old_output(root: Path) -> None:
    """A limit on file size stands for the full disk: writing fails in the middle, the same way."""
    for name in "abc":
        write_csv(root / "timeseries" / "gdsh" / f"{name}.csv", [place / 7 for place in range(9000)])
    for more in ([], ["--split", "0.4"], ["--annotations", "clean.json"]):
        done = run_tool("data", "--out", "train.jsonl", *more, cwd=root.parent, preexec_fn=limit_file_size)
        assert done.returncode == 1
        assert "train.jsonl' cannot be written (File too large)" in done.stderr
        assert done.stderr.count("\n") == 1
        assert (root.parent / "train.jsonl").read_text(encoding="utf-8") == OLD
        assert not leftovers(root.parent) and not (root.parent / "clean.json").exists()


def test_a_folder_that_cannot_be_written_is_named(root: Path) -> None:
    (root.parent / "file").write_text("", encoding="utf-8")
    done = run_tool("data", "--out", "file/train.jsonl", "--report", "r.json", cwd=root.parent)
    assert done.returncode == 1
    assert "train.jsonl" in done.stderr and "cannot be written" in done.stderr
    assert json.loads((root.parent / "r.json").read_text(encoding="utf-8"))["error"]
    done = run_tool("data", "--out", "data", cwd=root.parent)
    assert done.returncode == 2 and "is a folder" in done.stderr


def test_outputs_appear_together_or_not_at_all(root: Path) -> None:
    """The second output fails after the first was written to the end: none gets its name."""
    with pytest.raises(PrepareError, match="cannot be written"):
        blocked = root.parent / "train.jsonl" / "clean.json"  # a folder where a file is
        prepare(Options(root, out=root.parent / "new.jsonl", annotations=blocked))
    assert not (root.parent / "new.jsonl").exists() and not leftovers(root.parent)


def test_permissions_are_those_of_the_old_file(root: Path) -> None:
    (root.parent / "train.jsonl").chmod(0o640)
    mask = os.umask(0o022)
    try:
        prepare(Options(root, out=root.parent / "train.jsonl", annotations=root.parent / "clean.json"))
    finally:
        os.umask(mask)
    modes = [(root.parent / name).stat().st_mode & 0o777 for name in ("train.jsonl", "clean.json")]
    assert modes == [0o640, 0o644]


@pytest.fixture
def busy(root: Path) -> Iterator[Path]:
    """Data that takes a few seconds to read: cells in quotes are read the slow way."""
    folder = root / "timeseries" / "gdsh"
    rows = "".join(f'{place},"{place / 3}"\n' for place in range(20_000))
    (folder / "first.csv").write_text(f",value\n{rows}", encoding="utf-8")
    names = [f"s{number}" for number in range(200)]
    for name in names:
        os.link(folder / "first.csv", folder / f"{name}.csv")
    write_data(root, {"gdsh": [record(f"{name}.jpg", reply()) for name in names]}, {})
    yield root


def start(busy: Path, workers: int) -> "subprocess.Popen[str]":
    """Start the tool and wait until it is writing."""
    command = [*TOOL, "data", "--out", "train.jsonl", "--workers", str(workers)]
    process = subprocess.Popen(
        command,
        cwd=busy.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A job in the background ignores interrupts, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not list(busy.parent.glob(".train.jsonl-*")):
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    return process


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_the_old_output(busy: Path, workers: int, number: signal.Signals) -> None:
    process = start(busy, workers)
    if number == signal.SIGINT:  # as from a keyboard, which reaches all processes
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert said == "interrupted: nothing was written\n"
    assert (busy.parent / "train.jsonl").read_text(encoding="utf-8") == OLD
    assert not leftovers(busy.parent)


def test_a_killed_worker_is_told(busy: Path) -> None:
    process = start(busy, 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1, said
    assert said == "error: a worker process was killed, most likely because memory ran out; try fewer --workers\n"
    assert (busy.parent / "train.jsonl").read_text(encoding="utf-8") == OLD
    assert not leftovers(busy.parent)


def test_chinese_names_under_an_ascii_locale(root: Path) -> None:
    """LC_ALL=C without Python's UTF-8 mode: names are found, printed and written as elsewhere."""
    write_data(root, {"标注": [record("图/数据_a.jpg", reply(entry(1, 2, "点异常")))]}, {"数据_a": range(9)}, "标注")
    (root / "json" / "gdsh.json").unlink()
    plain = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    ascii_only = {**plain, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run_tool("data", "--out", "训练.jsonl", "--report", "r.json", cwd=root.parent, env=ascii_only)
    assert done.returncode == 0, done.stderr
    assert "训练.jsonl" in done.stdout and "点异常" in done.stdout
    (line,) = read_lines(root.parent / "训练.jsonl")
    assert line["name"] == "数据_a"
    done = run_tool("data", "--out", "训练.jsonl", cwd=root.parent, env=plain | {"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0, done.stderr
    assert r"\u8bad\u7ec3.jsonl" in done.stdout
