"""Origin: which rows of its sensor's series the points of a record are, and when they were measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llamafactory_ext.data.formats.chatts import ROWS, TIME, original_rows, shorten_rows
from llamafactory_ext.gdsh import TableOptions, read_times


@dataclass(frozen=True, eq=False)
class Origin:
    """Where the points of a record come from."""

    rows: npt.NDArray[np.int64]
    """Shape (points,): the row of each in the sensor's series, from 0."""
    start: str = ""
    """Time of row 0, as the CSV file writes it, where rows are evenly spaced; empty where they are not, or unknown."""
    step: float = 0.0
    """From one row to the next: seconds, or units of the column where that holds numbers."""
    axis: npt.NDArray[np.object_] | None = None
    """Shape (points,): the time of each, as the CSV file writes it, where rows are not evenly spaced."""

    def at(self, places: slice | npt.NDArray[np.int64]) -> "Origin":
        """The origin of some of the points."""
        axis = None if self.axis is None else self.axis[places]
        return Origin(self.rows[places], self.start, self.step, axis)

    def as_columns(self) -> dict[str, object]:
        """The columns that say so in a record; no time where it is not known."""
        columns: dict[str, object] = {ROWS: shorten_rows(self.rows)}
        if self.start:
            columns[TIME] = {"start": self.start, "step": self.step}
        elif self.axis is not None:
            columns[TIME] = {"axis": self.axis.tolist()}
        return columns


def read_origin(fields: Mapping[str, Any], points: int) -> Origin:
    """The origin that a record's columns name; without them, the record is the series.

    Raises:
        GdshError: rows that do not fit the record's points.
    """
    rows, time = original_rows(fields.get(ROWS) or [0], points), fields.get(TIME)
    if isinstance(time, dict):
        start, step, axis = time.get("start"), time.get("step"), time.get("axis")
        if isinstance(axis, list) and len(axis) == points:
            return Origin(rows, axis=np.array(axis, dtype=object))
        if isinstance(start, str) and isinstance(step, (int, float)):
            return Origin(rows, start, float(step))
    return Origin(rows)


def find_origin(path: str, points: int, options: TableOptions) -> Origin:
    """The origin of a whole series, with the time column of its table where there is one.

    Arguments:
        points: how many rows of it were read.
    """
    rows, cells = np.arange(points, dtype=np.int64), read_times(path, options)
    if cells is None or len(cells) != points or not pc.all(pc.match_substring_regex(cells, "[0-9]")).as_py():
        return Origin(rows)
    cells = pc.replace_substring(cells, "\N{MINUS SIGN}", "-")
    for kind in (pa.timestamp("ns"), pa.float64()):
        try:
            times = pc.cast(pc.replace_substring(cells, "/", "-"), kind)
        except pa.ArrowInvalid:
            continue
        steps = np.diff(np.asarray(times.cast(pa.int64()) if kind != pa.float64() else times))
        if not steps.any():  # one row, or a date that is the same in all of them
            return Origin(rows)
        if (steps == steps[0]).all():
            return Origin(rows, cells[0].as_py(), float(steps[0]) / (1 if kind == pa.float64() else 10**9))
        break
    return Origin(rows, axis=np.array(cells.to_pylist(), dtype=object))
