"""Label Studio's exports of time series as labels, one annotator's or everybody's, with their agreement."""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from llamafactory_ext.errors import GdshError, excerpt
from llamafactory_ext.gdsh.textfiles import read_text

from .labels import AGAIN, Choice, Label, Labels, base_name, read_json, refuse_others


def from_label_studio(path: Path, choice: Choice) -> Labels:
    """Label Studio's exports of time series: JSON, JSON_MIN and CSV.

    Cancelled annotations, drafts and predictions are left out. Bounds are on the series' own time column.
    """
    tasks = _csv_tasks(path) if path.suffix.lower() == ".csv" else read_json(path)
    if not isinstance(tasks, list):
        raise GdshError(f"{path} holds {excerpt(tasks)}; expected Label Studio's list of tasks")
    found = Labels("label-studio")
    by_annotator: dict[str, dict[str, list[Label]]] = defaultdict(dict)
    places: dict[tuple[str, str], str] = {}
    for number, task in enumerate(tasks):
        where = f"{path}: task {task.get('id', number) if isinstance(task, dict) else number}"
        if not isinstance(task, dict):
            raise GdshError(f"{where} is {excerpt(task)}; expected an object")
        name = _series_of(task, where)
        for annotator, labels in _annotations(task, where, choice, found):
            before = by_annotator[annotator].setdefault(name, [])
            if choice.annotator != "all" and (annotator, name) in places:
                refuse_others(name, before, places[annotator, name], labels, where)
                found.left_out[AGAIN] += 1
                continue
            places.setdefault((annotator, name), where)
            before += labels
    chosen = _choose(by_annotator, choice, path)
    found.agreement = _agreement(by_annotator)
    for annotator in chosen:
        for name, labels in by_annotator[annotator].items():
            known = {(one.start, one.end, one.type) for one in found.by_name[name]}
            found.by_name[name] += [one for one in labels if (one.start, one.end, one.type) not in known]
    return found


def _series_of(task: Mapping[str, Any], where: str) -> str:
    data = task.get("data", task)
    named = [
        value for key, value in data.items() if isinstance(value, str) and re.search(r"\.(csv|tsv|txt)(\.gz)?$", value)
    ]
    if task.get("file_upload") and not named:
        named = [task["file_upload"]]
    if len({base_name(one) for one in named}) != 1:
        raise GdshError(f"{where} names {excerpt(named)}; expected one CSV file among its data")
    return base_name(named[0])


def _annotations(
    task: Mapping[str, Any], where: str, choice: Choice, found: Labels
) -> Iterable[tuple[str, list[Label]]]:
    """Yields annotator and labels of each annotation that counts."""
    if "annotations" not in task and "completions" not in task:  # JSON_MIN and CSV: one flat task an annotation
        yield str(task.get("annotator", "")), [_region(one, where) for one in task.get("label") or []]
        return
    for one in task.get("annotations", task.get("completions")) or []:
        if one.get("was_cancelled") or one.get("skipped"):
            found.left_out["cancelled"] += 1
            continue
        reviews = one.get("reviews") or []
        if choice.only_approved and not (one.get("ground_truth") or (reviews and reviews[-1].get("accepted"))):
            found.left_out["not approved"] += 1
            continue
        who = one.get("completed_by", "")
        who = who.get("email") or who.get("id") if isinstance(who, dict) else who
        regions = [
            result for result in one.get("result", []) if result.get("type", "timeserieslabels") == "timeserieslabels"
        ]
        found.left_out["results that are no time-series labels"] += len(one.get("result", [])) - len(regions)
        yield str(who), [_region(result.get("value"), where) for result in regions]


def _region(value: Any, where: str) -> Label:
    if not isinstance(value, dict) or "start" not in value or not ("end" in value or value.get("instant")):
        raise GdshError(f"{where} has the region {excerpt(value)}; expected `start` and `end`")
    names = value.get("timeserieslabels") or [""]
    if len(names) > 1:
        raise GdshError(f"{where} gives one region {len(names)} labels: {excerpt(names)}; expected one")
    end = value["start"] if value.get("instant") else value["end"]
    return Label(value["start"], end, str(names[0]))


def _csv_tasks(path: Path) -> list[dict[str, Any]]:
    rows = csv.DictReader(read_text(path).splitlines())
    tasks = []
    for number, row in enumerate(rows):
        try:
            label = json.loads(row.get("label") or "[]")
        except ValueError as err:
            raise GdshError(
                f"{path}: row {number + 2} has {excerpt(row.get('label'))} for `label`; expected JSON"
            ) from err
        tasks.append({**row, "label": label})
    return tasks


def _choose(by_annotator: Mapping[str, Mapping[str, Any]], choice: Choice, path: Path) -> list[str]:
    everybody = sorted(by_annotator)
    if choice.annotator and choice.annotator != "all":
        if choice.annotator not in by_annotator:
            raise GdshError(
                f"{path} has no annotator {choice.annotator!r}; there are {', '.join(everybody) or 'none'}"
            )
        return [choice.annotator]
    shared = {
        name for one, other in combinations(everybody, 2) for name in by_annotator[one].keys() & by_annotator[other]
    }
    if shared and not choice.annotator:
        raise GdshError(
            f"{path}: {len(shared)} series were labelled by several annotators ({', '.join(everybody)}), e.g. "
            f"{sorted(shared)[0]}; take one with --annotator NAME, or everybody's labels with --annotator all"
        )
    return everybody


def _agreement(by_annotator: Mapping[str, Mapping[str, list[Label]]]) -> dict[str, float]:
    found = {}
    for one, other in combinations(sorted(by_annotator), 2):
        shared = by_annotator[one].keys() & by_annotator[other].keys()
        ratios = [_overlap(by_annotator[one][name], by_annotator[other][name]) for name in sorted(shared)]
        if ratios:
            found[f"{one} and {other}"] = round(sum(ratios) / len(ratios), 4)
    return found


def _overlap(one: list[Label], other: list[Label]) -> float:
    """Intersection over union of the labelled time of two annotators; 1 where neither found anything."""
    spans = [_spans(one), _spans(other)]
    if not spans[0] and not spans[1]:
        return 1.0
    edges = sorted({edge for group in spans for span in group for edge in span})
    both = either = 0.0
    for low, high in pairwise(edges):
        held = [any(start <= low and high <= end for start, end in group) for group in spans]
        both += (high - low) * all(held)
        either += (high - low) * any(held)
    return both / either if either else float(spans[0] == spans[1])


def _spans(labels: list[Label]) -> list[tuple[float, float]]:
    found = []
    for one in labels:
        bounds = [pd.to_numeric(str(edge), errors="coerce") for edge in (one.start, one.end)]
        if any(pd.isna(bounds)):
            bounds = [pd.Timestamp(str(edge)).value / 1e9 for edge in (one.start, one.end)]
        found.append((float(bounds[0]), float(bounds[1])))
    return sorted(found)
