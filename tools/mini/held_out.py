"""Writes series that mini was not trained on, to score it by.

    python tools/mini/held_out.py OUT [--seed 0] [--records 500]

ChatTS records, every one a sensor of its own, and their entries:

    mini_thresholds.jsonl   what the detectors' thresholds are chosen on
    mini_plain.jsonl        asked for anomalies in several wordings, all types count
    mini_asked.jsonl        other series, and prompts that name the types that count
    mini_exchanged.jsonl    the control: the records of mini_plain, each with another one's series
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from llamafactory_ext.toolbox.demo import wordings
from llamafactory_ext.toolbox.demo.series import ALL_SHAPES


SET_ASIDE = 2  # training draws from [1, seed, …]
COLUMNS = {"prompt": "input", "response": "output", "timeseries": "timeseries"}


def draw(part: str, count: int, seed: int, every_type: bool) -> list[dict[str, Any]]:
    """Draw records that ask for anomalies and their types."""
    rng = np.random.default_rng([SET_ASIDE, seed, *part.encode()])
    records: list[dict[str, Any]] = []
    while len(records) < count:
        record, counted = wordings.draw_detection(rng)
        if (len(counted) == len(ALL_SHAPES)) == every_type:
            records.append({"name": f"{part}_{len(records):04d}", **record})
    return records


def exchange_series(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give each record the series of the record that comes next in length, so that answers still fit most of them."""
    order = sorted(range(len(records)), key=lambda place: len(records[place]["timeseries"][0]))
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    return [{**one, "timeseries": records[following[place]]["timeseries"]} for place, one in enumerate(records)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--records", type=int, default=500)
    given = parser.parse_args()
    plain = draw("plain", given.records, given.seed, every_type=True)
    parts = {
        "mini_thresholds": draw("thresholds", 200, given.seed, every_type=True),
        "mini_plain": plain,
        "mini_asked": draw("asked", given.records, given.seed, every_type=False),
        "mini_exchanged": exchange_series(plain),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    for part, records in parts.items():
        lines = [json.dumps(one, ensure_ascii=False, separators=(",", ":")) + "\n" for one in records]
        (given.out / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    entries = {part: {"file_name": f"{part}.jsonl", "columns": COLUMNS} for part in parts}
    (given.out / "dataset_info.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
