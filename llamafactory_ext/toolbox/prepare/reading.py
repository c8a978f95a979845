"""Reading: every annotation record becomes one of a point, is dropped for a stated reason, or has a fault.

What is kept goes to a temporary file, and only its place there stays in memory: answers are long, and some data
sets large.
"""

import hashlib
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from llamafactory_ext.data.formats import FORMATS
from llamafactory_ext.data.formats.chatts import NAME, ROWS, as_series_list, original_rows, shorten_rows
from llamafactory_ext.errors import excerpt
from llamafactory_ext.files import writing
from llamafactory_ext.gdsh import (
    GdshError,
    Row,
    SeriesFile,
    SeriesIndex,
    read_annotations,
    refuse_control_tokens,
    show_pictures,
)
from llamafactory_ext.gdsh.records import read_records

from .options import Options
from .resampling import Floats
from .sources import Source, Sources, own_picture


CHATTS_COLUMNS, GDSH_COLUMNS = FORMATS["chatts"].columns, FORMATS["gdsh"].columns
GDSH_TAGS = {
    tag: name for tag, name in FORMATS["gdsh"].tags.items() if tag != "system_tag"
}  # that one is upstream's default
SYSTEM = "system"
_USER, _ASSISTANT = GDSH_TAGS["user_tag"], GDSH_TAGS["assistant_tag"]


@dataclass(frozen=True)
class Record:
    """One record that has a prompt, an answer and its series."""

    file: str
    """The file that it stands in."""
    index: int
    """Its place in that file, from 0."""
    pictures: tuple[str, ...]
    """As the record names them."""
    series: tuple[str, ...]
    """What its point is known by: the path of each picture's CSV file, or a digest of each series in the record."""
    system: str
    prompt: str
    answer: object
    images: tuple[str, ...] = ()
    """The pictures' names in cleaned annotations: each CSV file's own, so that it is found by equal name."""
    name: str = ""
    """Of its sensor."""
    rewritten: int = 0
    without_interval: int = 0
    duplicates: int = 0
    values: tuple[Floats, ...] = ()
    """The series of a ChatTS record, which has no CSV files."""
    rows: tuple[int, ...] = (0,)
    """Where the points of `values` come from; see `original_rows`."""
    others: dict[str, object] = field(default_factory=dict)
    """Further columns of a ChatTS record, which go where it goes."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a record, or with a whole annotation file."""

    file: str
    record: int | None
    """None: the whole file cannot be read."""
    picture: str
    fault: str


def fault_of(record: Record, error: object) -> Fault:
    """Tell a fault of `record`."""
    return Fault(record.file, record.index, show_pictures(record.pictures), str(error))


@dataclass
class Spool:
    """The records to prepare, and what was found while reading them."""

    file: BinaryIO
    points: list[list[int]] = field(default_factory=list)
    """Where each task's records begin in `file`: those of a point where points are merged, else one each."""
    sensors: set[tuple[str, ...]] = field(default_factory=set)
    """The distinct points."""
    files: dict[str, int] = field(default_factory=dict)
    """Each annotation file, and how many records it held."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Records left out on purpose, by reason."""
    faults: list[Fault] = field(default_factory=list)
    with_system: bool = False

    def task(self, offsets: list[int]) -> list[bytes]:
        """The records of one task, pickled."""
        records = []
        for offset in offsets:
            self.file.seek(offset)
            records.append(self.file.read(int.from_bytes(self.file.read(4), "big")))
        return records


@contextmanager
def spooling() -> Iterator[Spool]:
    """Give an empty spool, whose file is gone when the block ends.

    Raises:
        WriteError: there is no room for temporary files.
    """
    with writing(Path(tempfile.gettempdir())):
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    with file:
        yield Spool(file)


def read_all(spool: Spool, sources: Sources, options: Options) -> None:
    """Read all annotation files into `spool`; faults are collected there.

    Raises:
        WriteError: no room for temporary files.
    """
    tasks: dict[tuple[str, ...], list[int]] = {}
    for source in sources.annotations:
        file = str(source.path)
        spool.files[file] = 0
        try:
            for index, (pictures, answers, make) in enumerate(_found(source, sources.catalogue)):
                spool.files[file] += 1
                reason = _reason_to_drop(answers, options)
                if reason:
                    spool.dropped[reason] += 1
                    continue
                try:
                    record = make(index)
                except ValueError as error:  # GdshError or SeriesError
                    spool.faults.append(Fault(file, index, show_pictures(pictures), str(error)))
                    continue
                spool.with_system |= bool(record.system)
                spool.sensors.add(record.series)
                offset = _append(spool.file, pickle.dumps(record))
                if options.merge_points:
                    tasks.setdefault(record.series, []).append(offset)
                else:
                    spool.points.append([offset])
        except GdshError as error:
            spool.faults.append(Fault(file, None, "", str(error)))
    spool.points += tasks.values()


Found = tuple[Sequence[str], Sequence[str], Callable[[int], Record]]
"""A record of a file: its pictures, its answers, and what makes a `Record` of it by its place."""


def _found(source: Source, catalogue: SeriesIndex | None) -> Iterator[Found]:
    if source.index is None:
        for one in read_records(source.path):
            fields = one if isinstance(one, dict) else {}
            name, answer = (fields.get(key) for key in (NAME, CHATTS_COLUMNS["response"]))
            yield [name] if isinstance(name, str) else [], [str(answer)], partial(_chatts_record, one, source.path)
        return
    names: dict[str, str | GdshError] = {}
    for row in _rows(source.path):
        answers = [text for role, text in row.turns if role == _ASSISTANT]
        yield row.pictures, answers, partial(_gdsh_record, row, source, source.index, catalogue, names)


def _rows(path: Path) -> Iterator[Row]:
    keys = {**GDSH_COLUMNS, "role_tag": GDSH_TAGS["role_tag"], "content_tag": GDSH_TAGS["content_tag"]}
    yield from read_annotations(path, **keys, system=None, assistant_tag=_ASSISTANT)


def _reason_to_drop(answers: Sequence[str], options: Options) -> str:
    for text in options.drop_answers_with:
        if any(text in answer for answer in answers):
            return f"answer contains {text!r}"
    return ""


def _gdsh_record(
    row: Row,
    source: Source,
    files: SeriesIndex,
    catalogue: SeriesIndex | None,
    names: dict[str, str | GdshError],
    at: int,
) -> Record:
    """Find a row's prompt, answer and series.

    Raises:
        GdshError: the row has a fault, another conversation than one question and answer, or no series.
    """
    if row.fault:
        raise GdshError(row.fault)
    roles = [role for role, _ in row.turns]
    system, turns = ("", row.turns) if roles[0] != SYSTEM else (row.turns[0][1], row.turns[1:])
    if [role for role, _ in turns] != [_USER, _ASSISTANT]:
        raise GdshError(
            f"the conversation goes {', '.join(roles)}; expected {_USER}, {_ASSISTANT}, with {SYSTEM} in front or "
            "without: make a record of each question and answer"
        )
    found = [files.find(picture) for picture in row.pictures]
    return Record(
        file=str(source.path),
        index=at,
        pictures=row.pictures,
        series=tuple(file.path for file in found),
        images=tuple(_name(file, catalogue, names) for file in found) if catalogue else (),
        name=", ".join(file.stem for file in found),
        system=system,
        prompt=turns[0][1],
        answer=turns[1][1],
        rewritten=row.rewritten,
        without_interval=row.without_interval,
        duplicates=row.duplicates,
    )


def _chatts_record(fields: object, path: Path, at: int) -> Record:
    """Check a ChatTS record, and take it apart.

    Raises:
        GdshError: a column is missing or of another kind.
        SeriesError: a series holds something else than finite numbers.
    """
    if not isinstance(fields, dict):
        raise GdshError(f"the record is {excerpt(fields)}; expected an object: correct or remove it")
    prompt, answer, series = CHATTS_COLUMNS.values()
    missing = [key for key in (prompt, answer, series) if key not in fields]
    if missing:
        raise GdshError(f"the record has no {missing[0]!r}, only {excerpt(list(fields))}; add it")
    texts = [fields[prompt], fields.get(SYSTEM) or "", fields.get(NAME) or ""]
    for text in texts:
        if not isinstance(text, str):
            raise GdshError(f"found {excerpt(text)}; expected text as {prompt!r}, {SYSTEM!r} and {NAME!r}: correct it")
        refuse_control_tokens(text)
    values = tuple(as_series_list(fields[series]))
    if not values:
        raise GdshError(f"{series!r} is empty; expected a list of numbers for each series: add it, or drop the record")
    longest = max(map(len, values))
    rows = original_rows(fields.get(ROWS) or [0], longest)
    known = {prompt, answer, series, SYSTEM, NAME, ROWS}
    return Record(
        file=str(path),
        index=at,
        pictures=(texts[2],) if texts[2] else (),
        series=tuple(hashlib.blake2b(one.tobytes(), digest_size=16).hexdigest() for one in values),
        name=texts[2],
        system=texts[1],
        prompt=texts[0],
        answer=fields[answer],
        values=values,
        rows=tuple(shorten_rows(rows)),
        others={key: value for key, value in fields.items() if key not in known},
    )


def _name(file: SeriesFile, catalogue: SeriesIndex, names: dict[str, str | GdshError]) -> str:
    """`own_picture`, asked once for each file."""
    if file.path not in names:
        try:
            names[file.path] = own_picture(catalogue, file)
        except GdshError as error:
            names[file.path] = error
    name = names[file.path]
    if isinstance(name, GdshError):
        raise GdshError(str(name))
    return name


def _append(file: BinaryIO, record: bytes) -> int:
    with writing(Path(tempfile.gettempdir())):
        offset = file.tell()
        file.write(len(record).to_bytes(4, "big") + record)
    return offset
