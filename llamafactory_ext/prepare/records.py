"""Records on their way: what the reading of annotations hands on, and how a fault of one is told."""

from dataclasses import dataclass

from llamafactory_ext.gdsh import picture_name


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

    def __str__(self) -> str:
        if self.record is None:
            return self.fault
        named = f" ({self.picture})" if self.picture else ""
        return f"{self.file}: record {self.record}{named}: {self.fault}"


def fault_of(record: Record, error: object) -> Fault:
    """Tell a fault of `record`."""
    return Fault(record.file, record.index, show_pictures(record.pictures), str(error))


def show_pictures(pictures: tuple[str, ...]) -> str:
    """The file names of a record's pictures: their folders lie on another machine and say nothing here."""
    return ", ".join(map(picture_name, pictures))
