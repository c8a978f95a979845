"""What a format of records has to say about itself, and what is noted of each record that is read by it.

Pure: the tools that run without a training stack read it, too.
"""

import contextlib
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamafactory_ext.gdsh import Answer
from llamafactory_ext.series import FloatArray


@dataclass
class Notes:
    """What was done to one record, in numbers; ``fault`` where it can't be used."""

    fault: str = ""
    asked: str = ""  # what `asked` returns
    answered: str = ""  # what `answered` returns
    markers_moved: int = 0
    values_filled: int = 0
    labels_over_filled: int = 0
    series_beside: int = 0
    names_differ: int = 0
    answers_rewritten: int = 0
    entries_without_interval: int = 0
    intervals_renamed: int = 0
    normal_entries: int = 0
    normal_beside_anomalies: int = 0
    answers_emptied: int = 0
    duplicate_entries: int = 0
    filled_labels: list[str] = field(
        default_factory=list
    )  # intervals with rows that were interpolated, the first ones
    remarks: list[tuple[str, str]] = field(default_factory=list)  # kind and text, of what is not as usual
    files: list[tuple[str, str]] = field(default_factory=list)  # path of a series' file, and `content` of what it held


def note_answer(answer: Answer, notes: Notes) -> None:
    """Counts what was done to an answer of a record."""
    notes.answers_rewritten += answer.rewritten
    notes.entries_without_interval += answer.without_interval
    notes.intervals_renamed += answer.renamed
    notes.normal_entries += answer.normal
    notes.normal_beside_anomalies += bool(notes.normal_entries and answer.intervals)
    notes.answers_emptied += bool((notes.entries_without_interval or notes.normal_entries) and not answer.intervals)
    notes.duplicate_entries += answer.duplicates


def asked(texts: object, series: Sequence[FloatArray]) -> str:
    """Returns what tells equal questions from others: the number of series, and a digest of them and the texts."""
    digest = hashlib.blake2b(repr(texts).encode(errors="surrogatepass"), digest_size=12)
    for one in series:
        digest.update(len(one).to_bytes(8))
        digest.update(one.tobytes())
    return f"{len(series)}:{digest.hexdigest()}"


def content(series: FloatArray) -> str:
    """Returns a digest of the numbers of a series."""
    return hashlib.blake2b(series.tobytes(), digest_size=8).hexdigest()


def answered(text: str) -> str:
    """Returns a digest of an answer; of JSON its content, so that another spacing is no other answer."""
    with contextlib.suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(text), sort_keys=True)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def contradicting(records: Iterable[tuple[str, str]]) -> list[list[int]]:
    """Returns groups of places in `records`: of each the same was asked, but answered differently.

    Arguments:
        records: what `asked` and `answered` return, both empty for a record that can't be used. Questions without
            series are left out: they may have many answers.
    """
    groups: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for place, (question, answer) in enumerate(records):
        if question and not question.startswith("0:"):
            groups[question].append((place, answer))
    return [[place for place, _ in some] for some in groups.values() if len({answer for _, answer in some}) > 1]


@dataclass(frozen=True)
class Format:
    """One format, in a file of its name. Its functions get ``attr``, LLaMA-Factory's ``DatasetAttr`` of the entry,
    completed; where its ``unlabelled`` is true, the run predicts, and records may lack the answer.

    Whatever is wrong with a record is raised by `read` or `check` as ``GdshError`` or ``SeriesError``, without the
    record's name; `lines` names file and record itself, and gives each key one type.
    """

    name: str
    """The word after ``formatting`` in an entry."""
    upstream: str
    """LLaMA-Factory's own format that a record is brought to: ``alpaca`` or ``sharegpt``."""
    columns: Mapping[str, str]
    """``columns`` of an entry that names none."""
    check_entry: Callable[[Mapping[str, Any], str], None]
    """Raises ValueError for an entry that can't be right; its second argument names the entry."""
    lines: Callable[[Any, Path, Path], Iterator[str]]
    """(attr, file, folder of its series): the file's records as lines of JSON, each of one shape."""
    read: Callable[[dict[str, Any], Any, Notes], tuple[dict[str, Any], list[FloatArray]]]
    """(record, attr, notes): the record as LLaMA-Factory's own format reads it, and its series."""
    check: Callable[[dict[str, Any], dict[str, Any], Any, list[FloatArray]], None]
    """(converted, record, attr, series): a last look at what LLaMA-Factory made of the record."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """``tags`` of an entry that names none."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """What differs in ``attr`` for LLaMA-Factory's own converter."""
    record: str = ""
    """The column of a line that holds the record's name; empty where records have none."""
    as_it_is: bool = False
    """Whether Arrow may read a file by itself where it can; else it is always read by ``lines``."""
