"""Writes a folder whole or not at all, and never over one that the demo did not make."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llamafactory_ext.errors import FaultError
from llamafactory_ext.files import scratch_beside


MARKER = ".made-by-demo"


class ForeignFolderError(FaultError):
    """The folder to be written exists and does not carry the demo's marker file."""


def refuse_foreign(target: Path) -> None:
    """Raise ForeignFolderError if `target` exists, is not an empty folder, and was not made by the demo."""
    made_here = (target / MARKER).is_file()
    empty = target.is_dir() and not any(target.iterdir())
    if os.path.lexists(target) and not made_here and not empty:
        raise ForeignFolderError(
            f"{target} exists and was not made by the demo (it has no {MARKER}); "
            "move it away or name another folder: llamafactory-ext demo DIR"
        )


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """Give an empty temporary folder, which takes `target`'s place if the block ends without an error."""
    refuse_foreign(target)
    with scratch_beside(target) as scratch:
        new = scratch / "new"
        new.mkdir()
        (new / MARKER).write_text("Made by llamafactory-ext demo, which replaces this folder when it runs again.\n")
        yield new
        if os.path.lexists(target):
            target.rename(scratch / "old")
        new.rename(target)
