"""Reading: every annotation record becomes one of a point, is dropped for a stated reason, or has a fault.

What is kept goes to a temporary file, and only its place there stays in memory: answers are long, and some data
sets large.
"""

import pickle
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from llamafactory_ext.data.formats import FORMATS
from llamafactory_ext.files import writing
from llamafactory_ext.gdsh import GdshError, Row, SeriesFile, SeriesIndex, read_annotations, show_pictures

from .options import Options
from .sources import Source, Sources, own_picture


CHATTS_COLUMNS, GDSH_COLUMNS = FORMATS["chatts"].columns, FORMATS["gdsh"].columns
GDSH_TAGS = {
    tag: name for tag, name in FORMATS["gdsh"].tags.items() if tag != "system_tag"
}  # that one is upstream's default
SYSTEM = "system"
_USER, _ASSISTANT = GDSH_TAGS["user_tag"], GDSH_TAGS["assistant_tag"]


@dataclass(frozen=True)
class Record:
    """One annotation record that has a prompt, an answer and its CSV files."""

    file: str
    """The annotation file."""
    index: int
    """Its place in that file, from 0."""
    pictures: tuple[str, ...]
    """As the record names them."""
    series: tuple[str, ...]
    """Path of the CSV file of each picture: the record's point."""
    images: tuple[str, ...]
    """The pictures' names in cleaned annotations: each CSV file's own, so that it is found by equal name."""
    system: str
    prompt: str
    answer: str
    rewritten: int
    without_interval: int
    duplicates: int


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
    names: dict[str, str | GdshError] = {}
    for source in sources.annotations:
        file = str(source.path)
        spool.files[file] = 0
        try:
            for row in _rows(source.path):
                spool.files[file] += 1
                reason = _reason_to_drop(row, options)
                if reason:
                    spool.dropped[reason] += 1
                    continue
                try:
                    record = _record(row, source, sources.catalogue, names)
                except GdshError as error:
                    spool.faults.append(Fault(file, row.index, show_pictures(row.pictures), str(error)))
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


def _rows(path: Path) -> Iterator[Row]:
    keys = {**GDSH_COLUMNS, "role_tag": GDSH_TAGS["role_tag"], "content_tag": GDSH_TAGS["content_tag"]}
    yield from read_annotations(path, **keys, system=None, assistant_tag=_ASSISTANT)


def _reason_to_drop(row: Row, options: Options) -> str:
    answers = [text for role, text in row.turns if role == _ASSISTANT]
    for text in options.drop_answers_with:
        if any(text in answer for answer in answers):
            return f"answer contains {text!r}"
    return ""


def _record(row: Row, source: Source, catalogue: SeriesIndex | None, names: dict[str, str | GdshError]) -> Record:
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
    files = [source.index.find(picture) for picture in row.pictures]
    return Record(
        file=str(source.path),
        index=row.index,
        pictures=row.pictures,
        series=tuple(file.path for file in files),
        images=tuple(_name(file, catalogue, names) for file in files) if catalogue else (),
        system=system,
        prompt=turns[0][1],
        answer=turns[1][1],
        rewritten=row.rewritten,
        without_interval=row.without_interval,
        duplicates=row.duplicates,
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
