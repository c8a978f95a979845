"""Files of a gallery: written under temporary names, and in place only when they are whole."""

import re
from pathlib import Path

from llamafactory_ext import files
from llamafactory_ext.toolbox.pages.check_page import GENERATOR


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


def put_in_place(folder: Path, written: dict[str, Path], ours: bool) -> None:
    """Renames what was `written` to its names; where the gallery was `ours`, sheets that are no more are removed."""
    for name, path in written.items():
        files.rename(path, folder / name)
    if ours:
        for path in folder.iterdir():
            if _SHEET.fullmatch(path.name) and path.name not in written:
                path.unlink()


def write_whole(path: Path, text: str) -> None:
    """Writes a text file, whose old content stays until the new one is whole.

    Raises:
        OSError: it can't be written.
    """
    files.write_whole(path, [text])
