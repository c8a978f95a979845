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
from llamafactory_ext.gdsh.errors import excerpt
from llamafactory_ext.gdsh.records import MAX_RECORD, read_records
from llamafactory_ext.messages import listing


# Arrow's parser recurses: a record of 20,000 nested lists ends the process (pyarrow 26, a stack of 8 MiB).
_DEEP = 4000
_PIECE = 1 << 20  # bytes

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
        if not file.path.isascii() and file.path.encode(errors="replace").decode() != file.path:
            return [_NONE], f"the name of {file.path!r} is not UTF-8; rename the file"
        identity = f"{file.size} {file.mtime_ns} {file.ctime_ns}"
        found.append({"path": file.path, "identity": identity, "beside": file.beside, "renamed": renamed})
    return found or [_NONE], ""


def arrow_may_read(source: Path) -> bool:
    """Returns whether Arrow may read a file of ChatTS records; else it is to be read record by record.

    That is so for a list, which datasets would hold whole, with the last of two equal keys; and for a line that opens
    many brackets, be it in its texts: Arrow ends the process where they nest.

    Raises:
        ValueError: it does not begin as JSON does (datasets would unpack it), or holds NUL.
    """
    begun, opened, length = False, 0, 0
    with source.open("rb") as file:
        for piece in iter(lambda: file.readline(_PIECE), b""):
            start = piece.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
            if (start and not begun and start not in b"[{") or b"\0" in piece:
                raise ValueError(f"{source} is no JSON text; expected one JSON object a line: unpack or mend it.")
            if start == b"[" and not begun:
                return False
            begun = begun or bool(start)
            opened += piece.count(b"[") + piece.count(b"{")
            length += len(piece)
            if opened > _DEEP or length > MAX_RECORD:
                return False
            if piece.endswith(b"\n"):
                opened = length = 0
    return True


def chatts_lines(attr: Any, source: Path) -> Iterator[str]:
    """Yields the records of a ChatTS file: the columns that the entry names, every series a list of floats.

    Raises:
        ValueError: at the end, names all records that Arrow could not put beside the others; or, at once, no JSON.
    """
    faults, count = [], 0
    for number, record in enumerate(read_records(source)):
        count += 1
        try:
            yield _chatts_line(attr, record)
        except GdshError as err:
            faults.append(f"record {number}: {err}")
    if faults:
        lines = [f"{source}: {len(faults)} of {count} records can't be used.", *listing(faults, len(faults))]
        raise ValueError("\n".join(lines))


def _chatts_line(attr: Any, record: Any) -> str:
    if not isinstance(record, dict):
        raise GdshError(f"found {excerpt(record)}; expected a JSON object: mend or remove it")
    texts = {attr.prompt, attr.query, attr.response, attr.system, attr.tools}
    named = texts | {attr.history, attr.chosen, attr.rejected, attr.kto_tag, attr.images, attr.videos, attr.audios}
    kept = {key: value for key, value in record.items() if key in named}
    for key, value in kept.items():
        if key in texts and not isinstance(value, str | None):
            raise GdshError(f"found {excerpt(value)} in {key!r}; expected text")
    line = json.dumps({**kept, attr.timeseries: _floats(record.get(attr.timeseries))}, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError as err:
        raise GdshError(f"found half a character: {excerpt(line, err.start)}; correct it") from err
    return line


def _floats(series: Any) -> list[list[float | None]] | None:
    if series is None:
        return None
    if isinstance(series, list):
        series = series if not series or isinstance(series[0], list) else [series]
        if all(isinstance(one, list) and all(isinstance(v, int | float | None) for v in one) for one in series):
            return [[_float(v) for v in one] for one in series]
    raise GdshError(f"found {excerpt(series)} for series; expected lists of numbers: [[0.5, 1, 2.25]]")


def _float(number: int | float | None) -> float | None:
    try:
        return None if number is None else float(number)
    except OverflowError:
        return float("inf")  # which is refused with the other numbers that are not finite
