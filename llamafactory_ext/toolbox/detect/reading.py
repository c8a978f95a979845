"""Sources: the series of a file, read as `import` and then `prepare` read them: a model sees what it was taught."""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llamafactory_ext.errors import GdshError
from llamafactory_ext.gdsh import read_series
from llamafactory_ext.toolbox.importing.columns import Reading
from llamafactory_ext.toolbox.importing.large import Dates, copy_tables, is_large
from llamafactory_ext.toolbox.importing.layout import write_series
from llamafactory_ext.toolbox.importing.sources import Table, read_tables
from llamafactory_ext.toolbox.importing.times import read_times

from .pieces import Floats


@dataclass(frozen=True)
class How:
    """How files are read."""

    tables: Reading = field(default_factory=Reading)
    dates: str = ""
    timezone: str | None = None


@dataclass(frozen=True, eq=False)
class Series:
    """One series."""

    name: str
    values: Floats
    """Shape (rows,), all finite."""
    filled: int
    """How many rows were interpolated."""
    times: Any = None
    """One cell a row, as the file has it; None where it has no times."""

    def time(self, row: int) -> str:
        """Returns when a row was measured, as the file writes it; empty where it does not say."""
        if self.times is None:
            return ""
        cell = self.times.iloc[row]
        return str(cell.isoformat(sep=" ")) if isinstance(cell, pd.Timestamp) else str(cell)


@dataclass(frozen=True)
class Fault:
    """What can't be asked about."""

    series: str
    """Empty where it is a whole file."""
    reason: str


def digest(path: Path) -> str:
    """Returns what a file is known by: its content and the name that its series may have."""
    with path.open("rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}:{path.name}"


def read_file(path: Path, how: How) -> tuple[int, Iterator[Series | Fault]]:
    """Returns how many series a file has, and yields them one after another; those that can't be read as faults.

    Raises:
        GdshError: the file can't be read at all.
    """
    if is_large(path):
        return _read_large(path, how)
    tables = list(read_tables(path, how.tables))
    return len(tables), (_read(table, how, None) for table in tables)


def _read_large(path: Path, how: How) -> tuple[int, Iterator[Series | Fault]]:
    folder = tempfile.TemporaryDirectory(prefix="detect-")  # lives as long as the series are gone through
    dates = Dates(how.dates.replace("-", " "), how.timezone)
    tables = list(copy_tables(path, how.tables, Path(folder.name), dates))

    def every() -> Iterator[Series | Fault]:
        with folder:
            for table in tables:
                yield _read(table, how, Path(folder.name) / f"{table.name}.csv")

    return len(tables), every()


def _read(table: Table, how: How, copied: Path | None) -> Series | Fault:
    try:
        axis, times = table.axis, table.time
        if copied is not None and axis is not None:
            times = pd.read_csv(copied, usecols=["time"], dtype=str, keep_default_na=False)["time"]
        elif times is not None:
            axis = read_times(times, how.dates.replace("-", " "), how.timezone)
        if axis is not None and axis.turn:
            raise GdshError(axis.turn)
        plain = plain_values(table.values) if copied is None else None
        if plain is not None:
            return Series(table.name, plain, 0, times)
        if copied is not None:
            read = read_series(copied)
        else:
            with tempfile.TemporaryDirectory(prefix="detect-") as folder:
                path = Path(folder) / "series.csv"
                write_series(table, path)
                read = _without_name(path)
        return Series(table.name, read.values, read.filled, times)
    except GdshError as err:
        return Fault(table.name, str(err))


def plain_values(column: Any) -> Floats | None:
    """Returns a column's values where it holds numbers alone, which `read_series` would read as they are; else None.

    Not float32, whose 0.1 is written as such, and read as another number than it was.
    """
    if not isinstance(column.dtype, np.dtype) or not (column.dtype.kind in "iu" or column.dtype == np.float64):
        return None
    values: Floats = column.to_numpy(np.float64, copy=True)
    return values if len(values) and bool(np.isfinite(values).all()) else None


def _without_name(path: Path) -> Any:
    try:
        return read_series(path)
    except GdshError as err:
        raise GdshError(str(err).replace(repr(str(path)), "the series")) from err
