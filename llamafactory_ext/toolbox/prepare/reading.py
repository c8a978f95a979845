"""Reading: every annotation record becomes one of a point, is dropped for a stated reason, or has a fault.

What is kept goes to a temporary file, and only its place there stays in memory: answers are long, and some data
sets large.
"""

import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from llamafactory_ext.data.formats.chatts import NAME
from llamafactory_ext.files import writing
from llamafactory_ext.gdsh import GdshError, Matches, Row, SeriesFile, SeriesIndex, is_renamed, show_pictures
from llamafactory_ext.gdsh.records import read_records

from .options import Options
from .records import CHATTS_COLUMNS, GDSH_TAGS, ROUND, SYSTEM, Fault, Record, read_chatts, read_rows
from .sources import Source, Sources, own_picture


_USER, _ASSISTANT = GDSH_TAGS["user_tag"], GDSH_TAGS["assistant_tag"]


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
    texts: set[str] = field(default_factory=set)
    """Columns of texts that some record has: `SYSTEM`, `ROUND`."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Pictures whose CSV file is called otherwise, and that file."""

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
            for index, (pictures, answers, make) in enumerate(_found(spool, source, sources.catalogue, options)):
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
                spool.texts |= {SYSTEM} if record.system else set()
                spool.texts |= {ROUND} if isinstance(record.others.get(ROUND), str) else set()
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


def _found(spool: Spool, source: Source, catalogue: SeriesIndex | None, options: Options) -> Iterator[Found]:
    if source.index is None:
        for one in read_records(source.path):
            fields = one if isinstance(one, dict) else {}
            name, answer = (fields.get(key) for key in (NAME, CHATTS_COLUMNS["response"]))
            yield [name] if isinstance(name, str) else [], [str(answer)], partial(read_chatts, one, source.path)
        return
    names: dict[str, str | GdshError] = {}
    matches = Matches(source.index, (one for row in read_rows(source.path, options.normal) for one in row.pictures))
    for row in read_rows(source.path, options.normal):
        answers = [text for role, text in row.turns if role == _ASSISTANT]
        yield row.pictures, answers, partial(_gdsh_record, row, source, matches, catalogue, names, spool.renamed)


def _reason_to_drop(answers: Sequence[str], options: Options) -> str:
    for text in options.drop_answers_with:
        if any(text in answer for answer in answers):
            return f"answer contains {text!r}"
    return ""


def _gdsh_record(
    row: Row,
    source: Source,
    matches: Matches,
    catalogue: SeriesIndex | None,
    names: dict[str, str | GdshError],
    renamed: dict[str, str],
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
    found = [matches.find(picture) for picture in row.pictures]
    for picture, file in zip(row.pictures, found, strict=True):
        if is_renamed(picture, file):
            renamed[show_pictures([picture])] = file.path
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
        normal=row.normal,
        renamed=row.renamed,
        others={ROUND: row.round} if row.round else {},
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
