"""Asks mini about series that it has not seen, and says what the confidences of its answers are worth.

    python tools/mini/confidence.py RECORDS.jsonl [--model DIR] [--adapter DIR] [--votes K]

RECORDS: ChatTS records with one series and its anomalies, such as mini_plain.jsonl of held_out.py. An interval is a
hit where a label that no other one took has an IoU of 0.3 or more with it. Prints the area under the curve of hits
against false alarms, by confidence and by length alone, and how many are hits at each confidence. Exit status 1: it is
not above 0.5.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llamafactory_ext.gdsh import read_anomalies
from llamafactory_ext.toolbox.demo.writing import MINI
from llamafactory_ext.toolbox.detect.confidence import read, share
from llamafactory_ext.toolbox.detect.engines import Engine, Question, Settings, open_engine
from llamafactory_ext.toolbox.detect.pieces import Found


BANDS = (0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0001)
ABOUT = 0.3


def iou(one: Any, other: Any) -> float:
    common = max(min(one.end, other.end) - max(one.start, other.start) + 1, 0)
    return common / (one.end - one.start + other.end - other.start + 2 - common)


def judged(found: list[Found], labels: list[Any]) -> Iterator[tuple[float, int, bool]]:
    """Yields confidence, length, whether it is a hit; labels are taken by the best pairs first."""
    pairs = sorted(((iou(one, label), i, k) for i, one in enumerate(found) for k, label in enumerate(labels)))
    hits, taken = set(), set()
    for value, i, k in reversed(pairs):
        if value >= ABOUT and i not in hits and k not in taken:
            hits.add(i)
            taken.add(k)
    for i, one in enumerate(found):
        if one.confidence is not None:
            yield one.confidence, one.end - one.start + 1, i in hits


def area(values: np.ndarray, hits: np.ndarray) -> float:
    """The share of pairs of a hit and a false alarm in which the hit's value is larger; equal ones count half."""
    above = values[hits][:, None] - values[~hits][None]
    return float((np.sign(above) + 1).mean() / 2)


def ask(engine: Engine, records: list[dict[str, Any]], votes: int) -> Iterator[tuple[float, int, bool]]:
    for start in range(0, len(records), 50):
        part = records[start : start + 50]
        asked = [Question(one["input"], (np.asarray(one["timeseries"][0], dtype=float),)) for one in part]
        sampled = [engine.ask(asked, 1.0, 1 + vote * 10_000) for vote in range(votes)]
        for place, (record, answer) in enumerate(zip(part, engine.ask(asked), strict=True)):
            points = asked[place].points
            found = list(read(answer, points).found)
            if votes:
                named = [read(vote[place], points).found for vote in sampled]
                found = [Found(one.start, one.end, one.type, "", share(one, named)) for one in found]
            yield from judged(found, read_anomalies(record["output"])[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--model", default=str(MINI))
    parser.add_argument("--adapter", default="")
    parser.add_argument("--votes", type=int, default=0)
    parser.add_argument("--first", type=int, default=500, help="so many records (default: 500)")
    given = parser.parse_args()
    records = [json.loads(line) for line in given.records.read_text("utf-8").splitlines()][: given.first]
    engine = open_engine("transformers", Settings(given.model, given.adapter, max_new_tokens=128, batch=50))
    rows = list(ask(engine, records, given.votes))
    sure, lengths = (np.array([row[place] for row in rows], dtype=float) for place in (0, 1))
    hits = np.array([row[2] for row in rows], dtype=bool)
    print(f"{len(records)} series, {len(rows)} intervals, {int((~hits).sum())} false alarms")
    print(f"area under the curve: {area(sure, hits):.3f} by confidence, {area(lengths, hits):.3f} by length alone")
    for low, high in pairwise(BANDS):
        within = (sure >= low) & (sure < high)
        if within.any():
            print(f"{low:.2f} to {min(high, 1):.2f}: {int(within.sum())} intervals, {hits[within].mean():.0%} hits")
    return 0 if area(sure, hits) > 0.5 else 1


if __name__ == "__main__":
    sys.exit(main())
