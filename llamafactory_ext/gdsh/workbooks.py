"""Workbooks: series in files that are no text, Excel's and Parquet."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llamafactory_ext.errors import GdshError

from .layout import SAMPLE, Layout, TableOptions, find_layout
from .textfiles import opened


def write_as_csv(path: Path) -> bytes:
    """Returns the first sheet of an Excel file as CSV, every number to the last digit.

    Raises:
        GdshError: no such file, no Excel file, or no pandas and openpyxl to read it with.
    """
    try:
        import openpyxl  # type: ignore[import-untyped]  # noqa: F401
        import pandas as pd
    except ImportError as error:
        raise GdshError(
            f"an Excel file, which needs pandas and openpyxl, and {error.name} is not there; install them, or save "
            "the sheet as CSV"
        ) from error
    with opened(path) as file:
        try:
            table = pd.read_excel(file, header=None, dtype=object)
        except Exception as error:  # of a zip file, of XML, of the reader's own: one for each way to be broken
            raise GdshError(f"can't be read as an Excel file ({error}); save the sheet as CSV") from error
    text: str = table.to_csv(header=False, index=False)
    return text.encode()


def read_parquet(
    path: Path, options: TableOptions
) -> tuple[Layout, Iterator[tuple[npt.NDArray[np.float64], dict[str, Any]]]]:
    """Returns the layout of a Parquet file, and its batches: values, and what stands beside them.

    Raises:
        GdshError: no Parquet file, no column that is meant, or one that holds no numbers.
    """
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        first = next(file.iter_batches(batch_size=SAMPLE), None)
    except (pa.ArrowException, OSError) as error:
        raise GdshError(f"can't be read as a Parquet file ({error}); export it anew") from error
    names = file.schema_arrow.names
    columns = [column.to_pylist() for column in first.columns] if first is not None else []
    head = [["" if cell is None else str(cell) for cell in row] for row in zip(*columns, strict=True)]
    layout = find_layout(names, head, [], options)
    kind = file.schema_arrow.field(layout.value).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise GdshError(f"the column {names[layout.value]!r} holds {kind}; expected numbers: convert it")
    return layout, _batches(file, layout)


def _batches(file: Any, layout: Layout) -> Iterator[tuple[npt.NDArray[np.float64], dict[str, Any]]]:
    places = {"time": layout.time, "quality": layout.quality, "tag": layout.tag}
    others = {key: layout.names[place] for key, place in places.items() if place is not None and place != layout.value}
    for batch in file.iter_batches(columns=[layout.names[layout.value], *others.values()]):
        column = batch.column(layout.names[layout.value]).cast(pa.float64(), safe=False)
        values = np.array(column.fill_null(float("nan")).to_numpy(zero_copy_only=False))
        values[np.isinf(values)] = np.nan
        beside = {key: batch.column(name) for key, name in others.items()}
        yield (
            values,
            {key: one if pa.types.is_timestamp(one.type) else one.cast(pa.string()) for key, one in beside.items()},
        )
