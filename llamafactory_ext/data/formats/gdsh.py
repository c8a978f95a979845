"""Format ``gdsh``: raw annotations, a JSON list of conversations about pictures, with the series in CSV files."""

import copy
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamafactory_ext.data.series_cache import read_once
from llamafactory_ext.errors import GdshError
from llamafactory_ext.gdsh import (
    Answer,
    Matches,
    Row,
    Series,
    check_intervals,
    index_series,
    is_renamed,
    normal_types,
    parse_answer,
    place_markers,
    read_annotations,
    read_series,
    show_pictures,
)
from llamafactory_ext.series import FloatArray, scale

from .format import Format, Notes, content, note_answer


_NAMED = 5  # labels of a record
# Stands for the series of a record with a fault: the first records tell Arrow the type of a column.
_NONE = {"path": "", "identity": "", "beside": False, "renamed": False}


def check_entry(entry: Mapping[str, Any], name: str) -> None:
    """Refuses an entry without ``folder``, and answers that are preferences."""
    columns = entry.get("columns", {})
    if entry.get("ranking") or any(key in columns for key in ("chosen", "rejected", "kto_tag")):
        raise ValueError(
            f"dataset_info.json: {name} has formatting `gdsh`, whose records hold one answer each; for stages `dpo`, "
            "`rm` and `kto` write records with `timeseries` (see dataset_info/README.md)."
        )
    if not entry.get("folder"):
        raise ValueError(
            f"dataset_info.json: the entry of {name} has formatting `gdsh` but no `folder`; "
            "add the folder of its CSV files, absolute or relative to `dataset_dir`."
        )


def lines(attr: Any, source: Path, folder: Path) -> Iterator[str]:
    """Yields the records of an annotation file, each with the CSV files of its pictures.

    Raises:
        FileNotFoundError: the entry names no file.
    """
    if not source.is_file():
        raise FileNotFoundError(f"{source} is not a file; `file_name` of a gdsh entry names one JSON file.")
    pictures = [row.pictures for row in _rows(attr, source)]
    matches = Matches(index_series(folder), (one for named in pictures for one in named))
    uses = Counter(one["path"] for named in pictures for one in _series(named, matches)[0])
    for row in _rows(attr, source):
        series, fault = _series(row.pictures, matches)
        line = row.as_dict(attr.role_tag, attr.content_tag)
        line |= {
            "record": f"record {row.index} ({show_pictures(row.pictures)})",
            "series": [{**one, "shared": uses[one["path"]] > 1} for one in series],
            "fault": row.fault or fault,
        }
        yield json.dumps(line, ensure_ascii=False)


def _rows(attr: Any, source: Path) -> Iterator[Row]:
    return read_annotations(
        source,
        messages=attr.messages,
        images=attr.images,
        role_tag=attr.role_tag,
        content_tag=attr.content_tag,
        system=attr.system,
        assistant_tag=attr.assistant_tag,
        normal=normal_types(attr.normal_types),
    )


def _series(pictures: Sequence[str], matches: Matches) -> tuple[list[dict[str, Any]], str]:
    """Returns the CSV files of a record's pictures, or what is wrong with one of them."""
    found = []
    for picture in pictures:
        try:
            file = matches.find(picture)
        except GdshError as error:
            return [_NONE], str(error)
        renamed = is_renamed(picture, file)
        if not file.path.isascii() and file.path.encode(errors="replace").decode() != file.path:
            return [_NONE], f"the name of {file.path!r} is not UTF-8; rename the file"
        identity = f"{file.size} {file.mtime_ns} {file.ctime_ns}"
        found.append({"path": file.path, "identity": identity, "beside": file.beside, "renamed": renamed})
    return found or [_NONE], ""


def read(record: dict[str, Any], attr: Any, notes: Notes) -> tuple[dict[str, Any], list[FloatArray]]:
    """Reads the CSV files, places the markers and rewrites the answers of one line of :func:`lines`."""
    if record["fault"]:
        raise GdshError(record["fault"])
    notes.answers_rewritten = record["rewritten"]
    notes.entries_without_interval = record["without_interval"]
    notes.duplicate_entries = record["duplicates"]
    notes.normal_entries = record["normal"]
    notes.intervals_renamed = record["renamed"]
    series: list[Series] = []
    for picture, file in zip(record["pictures"], record["series"], strict=True):
        read_file = read_once if file["shared"] else read_series
        found = read_file(file["path"], attr.table)
        scale(found.values)  # raises where it can't be scaled
        notes.files.append((file["path"], content(found.values)))
        notes.values_filled += found.filled
        notes.series_beside += file["beside"]
        notes.names_differ += file["renamed"]
        if file["renamed"]:
            notes.remarks.append(("name", f"{show_pictures([picture])} is read from {Path(file['path']).name}"))
        notes.remarks += [(kind, f"{Path(file['path']).name}: {text}") for kind, text in found.remarks]
        series.append(found)
    messages = copy.deepcopy(record["messages"])
    asked = [message for message in messages if message[attr.role_tag] == attr.user_tag]
    texts, moved = place_markers([message[attr.content_tag] for message in asked], len(series))
    notes.markers_moved += moved
    for message, text in zip(asked, texts, strict=True):
        message[attr.content_tag] = text
    normal = normal_types(attr.normal_types)
    unlabelled = getattr(attr, "unlabelled", False)
    if unlabelled and (not messages or messages[-1][attr.role_tag] == attr.user_tag):
        messages.append({attr.role_tag: attr.assistant_tag, attr.content_tag: ""})
    for message in messages:
        if message[attr.role_tag] == attr.assistant_tag and not (unlabelled and not message[attr.content_tag].strip()):
            answer = parse_answer(message[attr.content_tag], normal)
            check_intervals(answer.intervals, [len(one.values) for one in series])
            _note_filled(answer, series, notes)
            note_answer(answer, notes)
            message[attr.content_tag] = answer.text
    return {**record, "messages": messages}, [one.values for one in series]


def _note_filled(answer: Answer, series: list[Series], notes: Notes) -> None:
    """Notes the labels that lie over interpolated rows: there is nothing there to be seen."""
    for start, end in answer.intervals:
        filled = max(one.filled_within(start, end) for one in series)
        if filled:
            notes.labels_over_filled += 1
            if len(notes.filled_labels) < _NAMED:
                notes.filled_labels.append(f"[{start}, {end}]: {filled} of {end - start + 1} rows interpolated")


def check(converted: dict[str, Any], record: dict[str, Any], attr: Any, series: list[FloatArray]) -> None:
    """Refuses a record that LLaMA-Factory would drop for its roles."""
    if not converted["_response"]:
        roles = [message[attr.role_tag] for message in record["messages"]]
        raise GdshError(
            f"found the roles {roles}; expected {attr.user_tag!r} and {attr.assistant_tag!r} in turn, "
            f"{attr.assistant_tag!r} last: correct the record, or name its roles under `tags`"
        )


FORMAT = Format(
    name="gdsh",
    upstream="sharegpt",
    columns={"messages": "conversations", "images": "image"},
    tags={
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
    attributes={"messages": "messages", "system": "system", "images": None, "tools": None},
    record="record",
    check_entry=check_entry,
    lines=lines,
    read=read,
    check=check,
)
