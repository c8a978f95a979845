"""Records on their way: what reading hands on, how a ChatTS record becomes that, and how a fault is reported."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llamafactory_ext.data.formats import FORMATS
from llamafactory_ext.data.formats.chatts import NAME, ROWS, TIME, as_floats, as_series_list, refuse_processed
from llamafactory_ext.errors import excerpt
from llamafactory_ext.gdsh import NORMAL_TYPES, GdshError, Row, read_annotations, refuse_control_tokens, show_pictures

from .origin import Origin, read_origin
from .resampling import Floats


CHATTS_COLUMNS, GDSH_COLUMNS = FORMATS["chatts"].columns, FORMATS["gdsh"].columns
GDSH_TAGS = {
    tag: name for tag, name in FORMATS["gdsh"].tags.items() if tag != "system_tag"
}  # that one is upstream's default
SYSTEM = "system"
ROUND = "round"
"""Which round of corrections a record comes from; `import --round` writes it."""


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
    normal: int = 0
    renamed: int = 0
    values: tuple[Floats, ...] = ()
    """The series of a ChatTS record, which has no CSV files."""
    origin: Origin | None = None
    """Where the points of `values` come from."""
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
    """Report a fault of `record`."""
    return Fault(record.file, record.index, show_pictures(record.pictures), str(error))


def read_rows(path: Path, normal: frozenset[str] = NORMAL_TYPES) -> Iterator[Row]:
    """Read an annotation file; see `read_annotations`."""
    yield from read_annotations(
        path,
        messages=GDSH_COLUMNS["messages"],
        images=GDSH_COLUMNS["images"],
        role_tag=GDSH_TAGS["role_tag"],
        content_tag=GDSH_TAGS["content_tag"],
        assistant_tag=GDSH_TAGS["assistant_tag"],
        system=None,
        normal=normal,
    )


def read_chatts(fields: object, path: Path, at: int) -> Record:
    """Check a ChatTS record, and take it apart.

    Raises:
        GdshError: a column is missing or of another kind.
        SeriesError: a series holds numbers that are not finite, or has been scaled already.
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
    values = tuple(as_series_list(as_floats(fields[series])))
    refuse_processed(texts[0], prompt, list(values))
    if not values:
        raise GdshError(f"{series!r} is empty; expected a list of numbers for each series: add it, or drop the record")
    known = {prompt, answer, series, SYSTEM, NAME, ROWS, TIME}
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
        origin=read_origin(fields, max(map(len, values))),
        others={key: value for key, value in fields.items() if key not in known},
    )
