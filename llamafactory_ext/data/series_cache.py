"""Series that several records show: each CSV file is read once a run, whichever worker process needs it first.

Inside ``shared_series()`` what was read lies as a NumPy file in a temporary folder, whose path the environment hands
on to worker processes. A process that is killed leaves its folder behind, which a later one deletes.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from llamafactory_ext.files import private_folder
from llamafactory_ext.gdsh import Series, TableOptions, read_series


_FOLDER = "LLAMAFACTORY_EXT_SERIES"


_OURS = re.compile(r"series-[a-z0-9_]{8}")  # as `tempfile` names them
_ALIVE = ".alive.lock"
_KEPT = 24 * 3600  # seconds


@contextmanager
def shared_series(cache: Path) -> Iterator[None]:
    """Keeps what `read_once` reads in a folder under ``cache``, until the block ends."""
    delete_left(private_folder(cache))
    with tempfile.TemporaryDirectory(dir=cache, prefix="series-", ignore_cleanup_errors=True) as folder:
        alive = FileLock(Path(folder, _ALIVE))
        with suppress(OSError, NotImplementedError):  # a file system without locks
            alive.acquire(timeout=0)
        before = os.environ.get(_FOLDER)
        os.environ[_FOLDER] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[_FOLDER]
            else:
                os.environ[_FOLDER] = before
            alive.release()


def delete_left(cache: Path) -> None:
    """Deletes folders that are named as ours are, were not changed for a day, and that no process holds."""
    oldest = time.time() - _KEPT
    for folder in cache.iterdir():
        if not _OURS.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        with suppress(OSError, NotImplementedError, Timeout):  # another process deletes, too; or it can't be known
            if folder.stat().st_mtime < oldest:
                with FileLock(folder / _ALIVE).acquire(timeout=0):
                    shutil.rmtree(folder)


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
