"""Records on their way: what the reading of annotations hands on, and how a fault of one is told."""

from dataclasses import dataclass

from llamafactory_ext.gdsh import show_pictures


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
