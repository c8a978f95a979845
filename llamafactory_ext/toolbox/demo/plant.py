"""Writes a made-up plant with a rule of its own about what counts, as GDSH files, for mini to learn.

Spikes are normal operation there (valves are blown through) and carry no label. What is labelled stays within the
range of the series: values that freeze, bursts of noise. A model that reports all that is unusual is wrong half of the
time, and so is a fence around the values.

What it writes:

    json/plant.json                the annotations, with the habits of the field's files
    timeseries/plant/*.csv         one point (sensor) a file
    today/*.csv                    other sensors, without labels: what a trained model is to find anomalies in
    dataset_info.json              names them `annotations`, so that dataset_dir can be this folder
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from llamafactory_ext.toolbox.demo.data import NAMING, POSIX, WINDOWS, make_csv, make_entries, make_entry, write_answer
from llamafactory_ext.toolbox.demo.folder import fresh_folder
from llamafactory_ext.toolbox.demo.series import draw_gaps, draw_intervals, draw_series


LENGTH = 256
POINTS = 460
TODAY = 12
SHRINK = 0.42  # of intervals and of the day, so that four of them find room
COUNTED = ("数值冻结", "噪声增大")
NORMAL = ("上行尖峰", "下行尖峰", "双向尖峰")
COUNTS = (0.15, 0.5, 0.35)  # how many a series holds of what counts: none, one, two; of spikes:
SPIKES = (0.1, 0.35, 0.55)
PROMPT = "<image>\n下面是测点的时间序列。请找出其中的异常，给出起止下标（从0开始，首尾都算）和类型，用JSON回答。"

TAGS = ("FI", "TI", "PI", "LI", "AI")
FORMS = ("object", "joined", "compact", "joined", "literals")
ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "gb18030")


def draw_kinds(rng: np.random.Generator) -> tuple[str, ...]:
    """Draw what a series shows, in order: events that count and spikes that don't."""
    counted = rng.choice(COUNTED, size=rng.choice(len(COUNTS), p=COUNTS))
    spikes = rng.choice(NORMAL, size=rng.choice(len(SPIKES), p=SPIKES))
    return tuple(str(kind) for kind in rng.permutation([*counted, *spikes]))


def make_point(number: int, rng: np.random.Generator) -> tuple[list[dict[str, Any]], str, bytes]:
    """Make one sensor: its annotation records, its file's name, and the file."""
    kinds = draw_kinds(rng)
    intervals = draw_intervals(kinds, LENGTH, rng, SHRINK) if kinds else []
    _, values = draw_series(kinds, intervals, LENGTH, rng, SHRINK)
    picture = f"gdsh_second_{TAGS[number % len(TAGS)]}{40001 + number}.PV"
    gaps = draw_gaps(intervals, LENGTH, rng) if number % 23 == 0 else {}
    encoding = ENCODINGS[number % len(ENCODINGS)]
    entries = [make_entry(kind, place) for kind, place in zip(kinds, intervals, strict=True) if kind in COUNTED]
    form = FORMS[number % len(FORMS)] if entries else "nothing"
    # Some annotators wrote a record for every anomaly of a point.
    parts = [[entry] for entry in entries] if number % 7 == 0 and entries else [entries]
    path = (WINDOWS if number % 5 == 0 else POSIX).format(picture)
    records = [
        {
            "image": path,
            "conversations": [
                {"from": "user", "value": PROMPT},
                {"from": "assistant", "value": write_answer(form, part)},
            ],
        }
        for part in parts
    ]
    name = NAMING["same" if number % 4 == 0 else "prefixed"](picture)
    return records, f"{name}.csv", make_csv(values, gaps, "plant", encoding)


def write_plant(path: Path, seed: int = 0, points: int = POINTS) -> None:
    """Write the plant's files to the folder `path`; the same seed gives the same bytes.

    Raises ForeignFolderError if `path` exists and was not made by the demo.
    """
    records: list[dict[str, Any]] = []
    with fresh_folder(path) as folder:
        (folder / "json").mkdir()
        (folder / "timeseries" / "plant").mkdir(parents=True)
        (folder / "today").mkdir()
        for number in range(points + TODAY):
            of_point, name, table = make_point(number, np.random.default_rng([seed, 7, number]))
            labelled = number < points
            records += of_point if labelled else []
            (folder / ("timeseries/plant" if labelled else "today") / name).write_bytes(table)
        entry = make_entries()["gdsh_demo"] | {"file_name": "json/plant.json", "folder": "timeseries/plant"}
        for file, content in {"json/plant.json": records, "dataset_info.json": {"annotations": entry}}.items():
            text = json.dumps(content, ensure_ascii=False, indent=2)
            (folder / file).write_text(text + "\n", encoding="utf-8")
