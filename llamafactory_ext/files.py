"""Files that appear whole: written under a temporary name, then renamed."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from llamafactory_ext.errors import UsageError


def temporary(folder: Path, suffix: str) -> Path:
    """Returns a new, empty file beside those that it will become one of."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".part-", suffix=suffix)
    os.close(descriptor)
    return Path(name)


def write_text(path: Path, pieces: Iterable[str]) -> None:
    """Writes text piece by piece; characters that UTF-8 can't hold are written as escapes."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.writelines(pieces)


def rename(part: Path, path: Path) -> None:
    """Gives a temporary file its name, and the permissions of any other new file."""
    mask = os.umask(0)
    os.umask(mask)
    part.chmod(0o666 & ~mask)  # mkstemp's files are for their owner alone
    part.replace(path)


def write_whole(path: Path, pieces: Iterable[str]) -> None:
    """Writes a text file piece by piece; its old content stays until the new one is whole.

    Raises:
        OSError: it can't be written.
    """
    part = temporary(path.absolute().parent, path.suffix)
    try:
        write_text(part, pieces)
        rename(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def refuse_foreign(page: Path, generator: str, option: str) -> None:
    """Sees to it that a page can be written without replacing somebody else's.

    Arguments:
        generator: what stands near the beginning of our own pages.
        option: that names the folder.

    Raises:
        UsageError: its folder is a file, or the page that is there was not written by `generator`.
    """
    if page.parent.exists() and not page.parent.is_dir():
        raise UsageError(f"{page.parent} is a file; name a folder with {option}")
    if page.exists():
        with page.open(encoding="utf-8", errors="replace") as file:
            if f'content="{generator}"' not in file.read(1000):
                raise UsageError(f"{page} was not written by this tool; name another folder with {option}")
