"""Labels as tools and public data sets write them, each with the series that it belongs to.

Nothing is placed on rows here: bounds stay what the file says, rows or times, until the series is known.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llamafactory_ext.errors import GdshError, excerpt
from llamafactory_ext.gdsh.dialects import unique_keys
from llamafactory_ext.gdsh.textfiles import read_text

from .sources import Table, stem


_UPLOAD = re.compile(r"^[0-9a-f]{6,12}-")
AGAIN = "labels of a series, given again"
UCR = re.compile(r"_(\d+)_(\d+)_(\d+)$")


@dataclass(frozen=True)
class Label:
    """One labelled stretch, as its file says it."""

    start: Any
    end: Any
    type: str = ""
    in_rows: bool = False
    """Whether the bounds are rows, 0-based, both counted; else times or numbers of the series' own axis."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What else is said: reason, annotator …"""


@dataclass
class Labels:
    """The labels of one source, by the name of a file or of a series."""

    kind: str
    by_name: dict[str, list[Label]] = field(default_factory=lambda: defaultdict(list))
    """A name without labels stands for a series that somebody looked at and found nothing in."""
    left_out: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Annotations that were not taken, by reason."""
    agreement: dict[str, float] = field(default_factory=dict)
    """Mean overlap (intersection over union of labelled time) of each two annotators, over the series of both."""
    _places: dict[str, tuple[str, list[Label]]] = field(default_factory=dict)

    def add(self, name: str, labels: list[Label], where: str) -> None:
        """Takes the labels of a series.

        Raises:
            GdshError: it has others already; names both places.
        """
        if name in self._places:
            first, known = self._places[name]
            refuse_others(name, known, first, labels, where)
            self.left_out[AGAIN] += 1
        else:
            self._places[name] = where, labels
            self.by_name[name] = labels

    def of(self, table: Table) -> list[Label] | None:
        """Returns the labels of a series, None where the source does not speak of it."""
        for name in (table.name, table.file.name, stem(table.file)):
            if name in self.by_name:
                return self.by_name[name]
        return None


def refuse_others(name: str, known: list[Label], first: str, labels: list[Label], where: str) -> None:
    """Raises GdshError where a series is labelled twice and not alike, by two exports that overlap."""
    sides = [{(one.start, one.end, one.type) for one in side} for side in (known, labels)]
    if sides[0] != sides[1]:
        only = [sorted(side - sides[1 - place], key=str) for place, side in enumerate(sides)]
        told = [excerpt([list(one) for one in side[:3]]) if side else "nothing more" for side in only]
        raise GdshError(
            f"{where} labels {name!r} with {told[1]}, and {first} with {told[0]}; expected the labels of a series "
            "once: leave one out, or join them in the tool"
        )


@dataclass(frozen=True)
class Choice:
    """Which annotations count."""

    annotator: str = ""
    """One annotator's; ``all`` takes everybody's; empty is refused where several differ."""
    only_approved: bool = False


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        GdshError: it is none; names the place.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=unique_keys)
    except json.JSONDecodeError as err:
        raise GdshError(
            f"{path} is not valid JSON at line {err.lineno}, column {err.colno} ({err.msg}); correct it"
        ) from err


def kind_of(content: Any) -> str:
    """Returns what a JSON file holds: ``label-studio``, ``annotator``, ``windows``, ``gdsh``; else nothing."""
    first = content[0] if isinstance(content, list) and content else content
    if not isinstance(first, dict):
        return ""
    if isinstance(content, dict) and "filename" in content and "annotations" in content:
        return "annotator"
    if "conversations" in first:
        return "gdsh"
    if isinstance(content, list) and ("annotations" in first or "completions" in first or "csv" in first):
        return "label-studio"
    if isinstance(content, dict) and all(isinstance(one, list) for one in content.values()):
        return "windows"
    return ""


def from_windows(path: Path) -> Labels:
    """``{file: [[start, end], …]}`` in rows (whole numbers) or times, as NAB's ``combined_windows.json``."""
    found, content = Labels("windows"), read_json(path)
    if not isinstance(content, dict):
        raise GdshError(f"{path} holds {excerpt(content)}; expected an object: file name to list of [start, end]")
    for name, windows in content.items():
        labels: list[Label] = []
        for number, window in enumerate(windows if isinstance(windows, list) else [windows]):
            bounds = window[:2] if isinstance(window, list) and len(window) in (2, 3) else None
            if bounds is None:
                raise GdshError(f"{path}: window {number} of {name!r} is {excerpt(window)}; expected [start, end]")
            rows = all(isinstance(one, int) and not isinstance(one, bool) for one in bounds)
            labels.append(Label(bounds[0], bounds[1], type=str(window[2]) if len(window) == 3 else "", in_rows=rows))
        found.add(base_name(name), labels, f"{path}: {name!r}")
    return found


def from_annotator(paths: Iterable[Path], choice: Choice) -> Labels:
    """One JSON a series: ``filename``, ``annotations[].label.text``, ``segments[].start/end``, rows."""
    found = Labels("annotator")
    for path in paths:
        content = read_json(path)
        if kind_of(content) != "annotator":
            raise GdshError(f"{path} has no `filename` and `annotations`; expected one JSON of the annotator a series")
        approved = content.get("approved", content.get("status") in ("approved", "已审核"))
        if choice.only_approved and not approved:
            found.left_out["not approved"] += 1
            continue
        labels: list[Label] = []
        for number, annotation in enumerate(content["annotations"]):
            where = f"{path}: annotation {number}"
            label = annotation.get("label") if isinstance(annotation, dict) else None
            kind = label.get("text", "") if isinstance(label, dict) else str(label or "")
            for segment in _list(annotation, "segments", where):
                start, end = _bounds(segment, where)
                labels.append(Label(start, end, kind, in_rows=True, fields=_remarks(segment)))
        found.add(base_name(content["filename"]), labels, str(path))
    return found


def from_columns(tables: Iterable[Table], kind: str) -> Labels:
    """Runs of a 0/1 column, or of one that names types; an empty cell and 0 are no anomaly."""
    found = Labels("column")
    for table in tables:
        if table.label is None:
            raise GdshError(f"{table.file}: no column of labels; name it with --labels column:NAME")
        found.by_name[table.name] = runs(table.label, kind)
    return found


def from_names(tables: Iterable[Table], kind: str) -> Labels:
    """UCR's archive: ``…_TRAIN_START_END.txt``, the anomaly's first and last row counted from 1."""
    found = Labels("ucr")
    for table in tables:
        match = UCR.search(stem(table.file))
        if not match:
            raise GdshError(
                f"{table.file}: its name does not end with _TRAIN_START_END, as UCR's do; choose other --labels"
            )
        train, start, end = map(int, match.groups())
        fields = {"train_rows": train}
        found.by_name[table.name] = [Label(start - 1, end - 1, kind, in_rows=True, fields=fields)]
    return found


def runs(cells: pd.Series, kind: str) -> list[Label]:
    """Returns a label for each run of equal cells that mark an anomaly.

    Raises:
        GdshError: the column holds numbers besides 0 and 1.
    """
    codes, names = _codes(cells)
    starts = np.concatenate([[0], np.flatnonzero(codes[1:] != codes[:-1]) + 1])
    ends = np.append(starts[1:], len(codes)) - 1
    found = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        name = names[codes[start]]
        if name != "0":
            found.append(Label(start, end, kind if name == "1" else name, in_rows=True))
    return found


def plain_marks(cells: pd.Series) -> pd.Series:
    """Returns the cells of a column of labels as text, one for each meaning: ``0``, ``1`` or a type."""
    meant = {"0.0": "0", "1.0": "1", "": "0", "False": "0", "True": "1"}
    return cells.fillna("0").astype(str).str.strip().replace(meant)


def _codes(cells: pd.Series) -> tuple[Any, list[str]]:
    if isinstance(cells.dtype, pd.CategoricalDtype):  # plain already
        codes, names = cells.cat.codes.to_numpy(), list(cells.cat.categories)
    elif pd.api.types.is_numeric_dtype(cells) and bool(cells.isin((0, 1)).all()):
        return cells.to_numpy(dtype=np.int64), ["0", "1"]
    else:
        codes, names = pd.factorize(plain_marks(cells))
    odd = sorted(one for one in set(names) - {"0", "1"} if re.fullmatch(r"[-+.\d]+", one))
    if odd:
        raise GdshError(f"the column of labels holds {', '.join(odd[:5])}; expected 0 and 1, or the names of types")
    return codes, list(names)


def base_name(name: str) -> str:
    """The file name in a path of any machine, without the prefix that an upload got."""
    last = re.split(r"[\\/=]", str(name))[-1]
    return _UPLOAD.sub("", last)


def _list(value: Any, key: str, where: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise GdshError(f"{where} has {excerpt(found)} for {key!r}; expected a list: correct it")
    return found


def _bounds(segment: Any, where: str) -> tuple[int, int]:
    for first, last in (("start", "end"), ("start_index", "end_index")):
        if isinstance(segment, dict) and first in segment and last in segment:
            found = segment[first], segment[last]
            if all(isinstance(one, int) and not isinstance(one, bool) for one in found):
                return found
    raise GdshError(f"{where} has the segment {excerpt(segment)}; expected `start` and `end`, two rows")


def _remarks(segment: Mapping[str, Any]) -> dict[str, Any]:
    return {key: segment[key] for key in ("reason", "confidence") if segment.get(key) not in (None, "")}
