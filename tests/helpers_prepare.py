"""What the tests of `llamafactory-ext prepare` share: data sets, and the tool in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llamafactory_ext.gdsh import Anomaly


TOOL = [sys.executable, "-m", "llamafactory_ext", "prepare"]

Entry = dict[str, Any]


def entry(start: int, end: int, kind: str = "点异常", reason: str = "…") -> Entry:
    """One entry of an answer."""
    return {"interval": [start, end], "type": kind, "reason": reason}


def reply(*entries: Entry) -> str:
    """An answer of such entries."""
    return json.dumps({"status": "success", "detected_anomalies": entries}, ensure_ascii=False)


def record(picture: Any, answer: Any, prompt: str = "<image>\n找异常", system: str | None = None) -> dict[str, Any]:
    """An annotation record."""
    turns = [{"from": "user", "value": prompt}, {"from": "assistant", "value": answer}]
    first = [{"from": "system", "value": system}] if system is not None else []
    return {"image": picture, "conversations": [*first, *turns]}


def write_csv(path: Path, values: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{place},2025-01-01 00:00:{place % 60:02d},PV,{value}" for place, value in enumerate(values)]
    path.write_text("\n".join([",date,category,value", *rows]) + "\n", encoding="utf-8")
    return path


def write_data(
    root: Path, annotations: dict[str, Sequence[Any]], series: dict[str, Sequence[Any]], folder: str = "gdsh"
) -> Path:
    """Write ROOT/json/<name>.json for each of `annotations` and ROOT/timeseries/<folder>/<name>.csv."""
    (root / "json").mkdir(parents=True, exist_ok=True)
    (root / "timeseries").mkdir(exist_ok=True)
    for name, records in annotations.items():
        (root / "json" / f"{name}.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    for name, values in series.items():
        write_csv(root / "timeseries" / folder / f"{name}.csv", values)
    return root


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a ChatTS file, each line parsed strictly."""
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text[:-1].split("\n")]


def entries_of(answer: str) -> list[Entry]:
    """The entries of a written answer."""
    found = json.loads(answer)
    assert found["status"] == "success"
    entries: list[Entry] = found["detected_anomalies"]
    return entries


def intervals_of(answer: str) -> list[tuple[int, int]]:
    return [(found["interval"][0], found["interval"][1]) for found in entries_of(answer)]


def check_accounts(report: dict[str, Any]) -> None:
    """The numbers of a report add up."""
    records, windows = report["records"], report["windows"]
    assert records["read"] == sum(item["records"] for item in report["inputs"])
    assert records["read"] == sum(records["dropped"].values()) + records["merged_away"] + records["prepared"]
    if report["done"]:
        cut = report["options"]["window"] is not None
        wanted = windows["cut"] - windows["left_out"] if cut else records["prepared"]
        assert records["written"] + records["validation"] == wanted
        assert report["intervals"] == sum(report["types"].values()) == report["interval_lengths"]["count"]
    faulty = [fault for fault in report["faults"] if fault["record"] is not None]
    assert records["dropped"].get("faulty", 0) == len(faulty)


def run_tool(*arguments: Any, cwd: Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run `llamafactory-ext prepare` and see that it never ends with a traceback."""
    done = subprocess.run(
        [*TOOL, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
        **options,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def leftovers(folder: Path) -> list[str]:
    """Temporary files that should have been removed."""
    return [path.name for path in folder.rglob(".*") if path.is_file()]


def anomaly(start: int, end: int, kind: str = "点异常", **fields: Any) -> Anomaly:
    return Anomaly(start, end, {"type": kind, **fields})
