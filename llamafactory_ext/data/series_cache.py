"""Series that several records show: each CSV file is read once a run, whichever worker process needs it first.

Inside ``shared_series()`` what was read lies as a NumPy file in a temporary folder, whose path the environment hands
on to worker processes.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock

from llamafactory_ext.files import private_folder
from llamafactory_ext.gdsh import Series, TableOptions, read_series


_FOLDER = "LLAMAFACTORY_EXT_SERIES"


@contextmanager
def shared_series(cache: Path) -> Iterator[None]:
    """Keeps what `read_once` reads in a folder under ``cache``, until the block ends."""
    with tempfile.TemporaryDirectory(
        dir=private_folder(cache), prefix="series-", ignore_cleanup_errors=True
    ) as folder:
        before = os.environ.get(_FOLDER)
        os.environ[_FOLDER] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[_FOLDER]
            else:
                os.environ[_FOLDER] = before


def read_once(path: str, options: TableOptions = TableOptions()) -> Series:  # noqa: B008 - it is frozen
    """Reads a CSV file, or takes what this process or another one has read of it.

    Raises:
        GdshError: see ``read_series``.
    """
    if _FOLDER not in os.environ:
        return read_series(path, options)
    digest = hashlib.sha256(f"{path}\0{options}".encode(errors="surrogatepass")).hexdigest()[:32]
    stored = Path(os.environ[_FOLDER], f"{digest}.npz")
    with FileLock(f"{stored}.lock"):
        if not stored.exists():
            series = read_series(path, options)
            # A temporary name, lest a full disk leave half a series.
            part = stored.with_suffix(".part.npz")
            np.savez(part, values=series.values, gaps=series.gaps, remarks=json.dumps(series.remarks))
            part.replace(stored)
            return series
    with np.load(stored) as found:
        remarks = tuple((kind, text) for kind, text in json.loads(str(found["remarks"])))
        return Series(found["values"], found["gaps"], remarks)
