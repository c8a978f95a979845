"""Sources: files of any form as series with values, and the time of every row as its file writes it."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llamafactory_ext.errors import GdshError
from llamafactory_ext.gdsh import read_series
from llamafactory_ext.toolbox.importing.large import Dates, copy_tables, is_large
from llamafactory_ext.toolbox.importing.layout import write_series
from llamafactory_ext.toolbox.importing.sources import Reading, Table, read_tables
from llamafactory_ext.toolbox.prepare.resampling import Floats


@dataclass(frozen=True, eq=False)
class Found:
    """One series."""

    name: str
    file: Path
    values: Floats
    """Shape (rows,), finite: rows without a value are interpolated."""
    filled: int
    time: Callable[[int], str] = field(repr=False)
    """The time of a row, as the file writes it; empty where there is no column of times."""

    @property
    def digest(self) -> str:
        """Of name and values: what an answer depends on."""
        return hashlib.blake2b(
            self.name.encode(errors="surrogatepass") + self.values.tobytes(), digest_size=16
        ).hexdigest()


@dataclass(frozen=True)
class Failure:
    """What could not be answered, or not wholly, and why."""

    file: str
    series: str
    reason: str


def read_file(path: Path, reading: Reading) -> Iterator[Found | Failure]:
    """Yields the series of one file, or why there is none.

    They are written as import writes them, and read as training reads that: one reading of numbers, gaps and words.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            tables = (
                copy_tables(path, reading, Path(folder), Dates()) if is_large(path) else read_tables(path, reading)
            )
            for number, table in enumerate(tables):
                try:
                    yield _found(table, path, Path(folder), number)
                except (GdshError, ValueError) as err:
                    yield Failure(str(path), table.name, str(err).replace(folder, str(path.parent)))
    except (GdshError, OSError) as err:
        yield Failure(str(path), "", str(err))


def _found(table: Table, path: Path, folder: Path, number: int) -> Found:
    file = folder / f"{table.name}.csv"
    if table.count and not len(table.values):  # read in pieces, and written by then
        pass
    else:
        file = folder / f"{number}.csv"
        write_series(table, file)
    read = read_series(file)
    file.unlink()
    return Found(table.name, path, read.values, read.filled, _times(table))


def _times(table: Table) -> Callable[[int], str]:
    if table.time is not None:
        cells = table.time.reset_index(drop=True)
        return lambda row: str(cells[row])
    if table.axis is not None:
        axis = table.axis
        return lambda row: axis.show(axis.values[row])
    return lambda row: ""


def names_once(found: Iterator[Found | Failure], seen: dict[str, str]) -> Iterator[Found | Failure]:
    """Passes series on, and a failure in place of one whose name is taken; `seen` is filled with names and files."""
    for one in found:
        if isinstance(one, Found) and one.name in seen:
            yield Failure(
                str(one.file),
                one.name,
                f"a series of that name is in {seen[one.name]} already; tell them apart "
                "with --names file, or leave one out",
            )
            continue
        if isinstance(one, Found):
            seen[one.name] = str(one.file)
        yield one


def in_shard(name: str, shard: tuple[int, int]) -> bool:
    """Whether a series belongs to shard I of N, counted from 1: by its name, whatever else is there."""
    number, count = shard
    return (
        int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest(), "big") % count
        == number - 1
    )


__all__: Sequence[str] = ["Failure", "Found", "in_shard", "names_once", "read_file"]
