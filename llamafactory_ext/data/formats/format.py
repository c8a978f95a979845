"""What a format of records has to say about itself. Pure: the tools that run without a training stack read it, too."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamafactory_ext.series import FloatArray


@dataclass
class Notes:
    """What was done to one record, in numbers; ``fault`` where it can't be used."""

    fault: str = ""
    asked: str = ""  # digest of prompt and series
    answered: str = ""  # digest of the answer: two for one question contradict each other
    markers_moved: int = 0
    values_filled: int = 0
    series_beside: int = 0
    names_differ: int = 0
    answers_rewritten: int = 0
    entries_without_interval: int = 0
    answers_emptied: int = 0
    duplicate_entries: int = 0


@dataclass(frozen=True)
class Format:
    """One format. Its functions get ``attr``, LLaMA-Factory's ``DatasetAttr`` of the entry, completed.

    Whatever is wrong with a record is raised as ``GdshError`` or ``SeriesError``, without the record's name.
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
