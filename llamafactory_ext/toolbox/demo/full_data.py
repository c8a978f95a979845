"""Writes made-up series of 256 points with the demo's anomalies, enough of them that a model can learn to read them.

What it writes, as ChatTS records, one JSON object a line; every record is a point (sensor) of its own:

    train.jsonl               what is learnt from
    validation.jsonl          other points
    exchanged.jsonl           the same prompts and answers, each with another record's series: what remains right
                              there was not read in the series
    dataset_info.json         so that dataset_dir can be this folder
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llamafactory_ext.series import describe
from llamafactory_ext.toolbox.demo.folder import fresh_folder
from llamafactory_ext.toolbox.demo.series import ALL_SHAPES, INCONSPICUOUS, draw_intervals, draw_series


LENGTH = 256
SHRINK = 0.5  # of the intervals and of the day: GDSH's would fill a series of this length
ANOMALIES = (0.1, 0.45, 0.45)  # how many a series holds: none, one, two
CONTEXT = "上下文异常"
HARD = 0.55  # the share of anomalies that stay within the range of their series
PROMPT = "<ts><ts/>\n找出异常区间和类型，用JSON回答。"

Record = dict[str, Any]


def write_answer(kinds: tuple[str, ...], intervals: list[tuple[int, int]]) -> str:
    """State the anomalies as `llamafactory-ext prepare --compact-answers` does."""
    entries = [{"interval": list(place), "type": kind} for kind, place in zip(kinds, intervals, strict=True)]
    return json.dumps({"status": "success", "detected_anomalies": entries}, ensure_ascii=False, separators=(",", ":"))


def draw_record(name: str, rng: np.random.Generator, allowed: tuple[str, ...] = tuple(ALL_SHAPES)) -> Record:
    """Draw a point that shows up to two anomalies of the `allowed` types, most of them within the series' range."""
    count = rng.choice(len(ANOMALIES), p=ANOMALIES)
    kinds = tuple(allowed[place] for place in rng.choice(len(allowed), size=count, p=shares(allowed)))
    intervals = draw_intervals(kinds, LENGTH, rng, SHRINK) if kinds else []
    _, values = draw_series(kinds, intervals, LENGTH, rng, SHRINK)
    series = [values.round(3).tolist()]
    return {"point": name, "input": PROMPT, "output": write_answer(kinds, intervals), "timeseries": series}


def shares(kinds: tuple[str, ...]) -> list[float]:
    """How often each type is drawn."""
    hard = [kind in INCONSPICUOUS or kind == CONTEXT for kind in kinds]
    alike = all(hard) or not any(hard)
    return [1 / len(kinds) if alike else (HARD / sum(hard) if one else (1 - HARD) / hard.count(False)) for one in hard]


def draw_records(part: str, count: int, seed: int) -> Iterator[Record]:
    """Draw the points of a part of the data; those of different parts or seeds have nothing in common."""
    rng = np.random.default_rng([seed, *part.encode()])
    return (draw_record(f"{part}_{seed}_{number:06d}", rng) for number in range(count))


def exchange_series(records: list[Record]) -> list[Record]:
    """Give each record the series of another one, half the records away."""
    half = len(records) // 2
    others = records[half:] + records[:half]
    return [{**record, "timeseries": other["timeseries"]} for record, other in zip(records, others, strict=True)]


def make_corpus(seed: int) -> list[str]:
    """Collect texts for a tokenizer: prompts, answers, and the line of statistics before a series."""
    roles = "system\nYou are a helpful assistant.\nuser\nassistant\n"
    corpus = [roles, *ALL_SHAPES]
    for record in draw_records("corpus", 500, seed):
        corpus += [record["input"], record["output"], describe(np.array(record["timeseries"][0])), roles]
    return corpus


def make_entries(folder: str = "") -> dict[str, Any]:
    """Describe the files for LLaMA-Factory, with paths that start with `folder`."""
    columns = {"prompt": "input", "response": "output", "timeseries": "timeseries"}
    parts = ("train", "validation", "exchanged")
    return {f"demo_full_{part}": {"file_name": f"{folder}{part}.jsonl", "columns": columns} for part in parts}


def write_data(path: Path, seed: int = 0, training: int = 60_000, validation: int = 500) -> None:
    """Write the data set to the folder `path`; the same seed gives the same bytes.

    Raises ForeignFolderError if `path` exists and was not made by the demo.
    """
    held_out = list(draw_records("validation", validation, seed))
    with fresh_folder(path) as folder:
        _write_lines(folder / "train.jsonl", draw_records("train", training, seed))
        _write_lines(folder / "validation.jsonl", held_out)
        _write_lines(folder / "exchanged.jsonl", exchange_series(held_out))
        text = json.dumps(make_entries(), ensure_ascii=False, indent=2)
        (folder / "dataset_info.json").write_text(text + "\n", encoding="utf-8")


def _write_lines(path: Path, records: Iterator[Record] | list[Record]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
