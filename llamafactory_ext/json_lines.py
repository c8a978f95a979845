"""Records brought to one shape, a JSON object a line: Arrow refuses a file with a string here and a list there.

The lines go into a file beside datasets' own cache. It is named by the digest of its content, which holds the size and
the times of every CSV file that a record uses: so a changed CSV makes another file, and nothing that datasets has
cached for the old one is used. Times and size, not a hash of the content: that would read every CSV at every start,
8 GB for 40,000 series. The time of the inode's last change (ctime) is among them, which no tool can set back: a file
copied over with its old time, or edited twice in a second, is seen as well.
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llamafactory_ext import __version__
from llamafactory_ext.gdsh import (
    GdshError,
    Row,
    SeriesIndex,
    index_series,
    picture_name,
    read_annotations,
    show_pictures,
)


# Stands for the series of a record with a fault: the first records tell Arrow the type of a column.
_NONE = {"path": "", "identity": "", "beside": False, "renamed": False}


def write_lines(lines: Iterable[str], cache: Path, stem: str) -> Path:
    """Writes the lines to ``cache``, under a name that starts with ``stem``; the same lines give the same file."""
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(__version__.encode())
    descriptor, temporary = tempfile.mkstemp(dir=cache, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            for line in lines:
                data = f"{line}\n".encode()
                digest.update(data)
                file.write(data)
        target = cache / f"{stem}-{digest.hexdigest()[:16]}.jsonl"
        if target.exists():
            Path(temporary).unlink()
        else:
            Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def annotation_lines(attr: Any, source: Path, folder: Path) -> Iterator[str]:
    """Yields the records of an annotation file, each with the CSV files of its pictures.

    Arguments:
        attr: LLaMA-Factory's ``DatasetAttr`` of the entry.
        source: the annotation file.
        folder: the folder of its CSV files.
    """
    index = index_series(folder)
    uses = Counter(one["path"] for row in _rows(attr, source) for one in _series(row, index)[0])
    for row in _rows(attr, source):
        series, fault = _series(row, index)
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
    )


def _series(row: Row, index: SeriesIndex) -> tuple[list[dict[str, Any]], str]:
    """Returns the CSV files of a row's pictures, or what is wrong with one of them."""
    found = []
    for picture in row.pictures:
        try:
            file = index.find(picture)
        except GdshError as error:
            return [_NONE], str(error)
        renamed = file.stem != Path(picture_name(picture)).stem
        identity = f"{file.size} {file.mtime_ns} {file.ctime_ns}"
        found.append({"path": file.path, "identity": identity, "beside": file.beside, "renamed": renamed})
    return found or [_NONE], ""


def chatts_lines(attr: Any, source: Path) -> Iterator[str]:
    """Yields the records of a ChatTS file, every series a list of floats."""
    for number, record in _records(source):
        if not isinstance(record, dict):
            raise ValueError(f"{source}: record {number} is no JSON object; mend or remove it.")
        series = record.get(attr.timeseries)
        if isinstance(series, list) and series and not isinstance(series[0], list):
            series = [series]
        if isinstance(series, list):
            series = [[float(v) if isinstance(v, int) else v for v in one] for one in series]
        yield json.dumps({**record, attr.timeseries: series}, ensure_ascii=False)


def _records(source: Path) -> Iterator[tuple[int, Any]]:
    """Reads a JSON list, or a file with one record a line, of which only a line is held at a time."""
    place = ""
    try:
        with source.open(encoding="utf-8-sig") as file:
            if source.suffix == ".json":
                yield from enumerate(json.load(file))
                return
            for number, line in enumerate(line for line in file if line.strip()):
                place = f", record {number}"
                yield number, json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"{source}{place} is not valid JSON in UTF-8: {err}; mend or remove it.") from err
