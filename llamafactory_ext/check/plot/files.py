"""Files of a gallery: written under temporary names, and in place only when they are whole."""

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from llamafactory_ext.check.plot.page import GENERATOR


PAGE = "index.html"

_SHEET = re.compile(r"sheet-\d{3,}\.png")


class ForeignPageError(Exception):
    """The folder holds a page that is not ours."""


def sheet_name(number: int) -> str:
    """Returns the file name of a contact sheet, numbered from 1."""
    return f"sheet-{number:03}.png"


def refuse_foreign(folder: Path) -> bool:
    """Returns whether the folder holds a gallery of ours already.

    Raises:
        ForeignPageError: it is a file, or has an ``index.html`` that this tool did not write.
    """
    if folder.exists() and not folder.is_dir():
        raise ForeignPageError(f"{folder} is a file; name a folder for the pictures")
    page = folder / PAGE
    if not page.exists():
        return False
    with page.open(encoding="utf-8", errors="replace") as file:
        if GENERATOR not in file.read(1000):
            raise ForeignPageError(f"{page} was not written by this tool; name another folder for the pictures")
    return True


def temporary(folder: Path, suffix: str) -> Path:
    """Returns a new, empty file beside those that it will become one of."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".part-", suffix=suffix)
    os.close(descriptor)
    return Path(name)


def write_text(path: Path, pieces: Iterable[str]) -> None:
    """Writes text piece by piece; characters that UTF-8 can't hold are written as escapes."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.writelines(pieces)


def put_in_place(folder: Path, written: dict[str, Path], ours: bool) -> None:
    """Renames what was `written` to its names; where the gallery was `ours`, sheets that are no more are removed."""
    mask = os.umask(0)
    os.umask(mask)
    for name, path in written.items():
        path.chmod(0o666 & ~mask)  # mkstemp's files are for their owner alone
        path.replace(folder / name)
    if ours:
        for path in folder.iterdir():
            if _SHEET.fullmatch(path.name) and path.name not in written:
                path.unlink()


def write_whole(path: Path, text: str) -> None:
    """Writes a text file, whose old content stays until the new one is whole.

    Raises:
        OSError: it can't be written.
    """
    part = temporary(path.absolute().parent, path.suffix)
    try:
        write_text(part, [text])
        put_in_place(path.absolute().parent, {path.name: part}, ours=False)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
