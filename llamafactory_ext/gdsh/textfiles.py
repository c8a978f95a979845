"""Text files as they come from Chinese Windows machines: UTF-8 with or without a BOM, else GB18030."""

import codecs
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from llamafactory_ext.errors import GdshError


_ENCODINGS = ("utf-8", "gb18030")
MAX_BYTES = 64 << 20
"""Of a file that is read as a whole: about a million rows of GDSH's four columns."""

_CHUNK = 1 << 20  # bytes


def read_text(path: str | Path) -> str:
    """Read the whole file, once, and decode it strictly; a leading BOM is taken off.

    Raises:
        GdshError: no such file, not a regular file, over `MAX_BYTES`, unreadable, or in neither of the two encodings.
    """
    try:
        _refuse_irregular(path)
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(data) > MAX_BYTES:
        raise GdshError(f"{str(path)!r} has more than {MAX_BYTES:,} bytes, which are read at most; split it")
    for encoding in _ENCODINGS:
        try:
            return data.decode(encoding).removeprefix("\ufeff")
        except UnicodeDecodeError:
            continue
    raise _undecodable(path)


@contextmanager
def open_text(path: str | Path) -> Iterator[TextIO]:
    """Open a file to be read piece by piece; line ends stay as they are, and only a newline ends a line.

    It is read through once before, to find out its encoding.

    Raises:
        GdshError: as `read_text`; also where the file can no longer be read in the middle.
    """
    try:
        _refuse_irregular(path)
        encoding = _find_encoding(path)
        with Path(path).open(encoding=encoding, newline="\n") as file:
            if file.read(1) != "\ufeff":
                file.seek(0)
            yield file
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:  # it has changed since it was read through
        raise _undecodable(path) from error


def _find_encoding(path: str | Path) -> str:
    for encoding in _ENCODINGS:
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            with Path(path).open("rb") as file:
                while chunk := file.read(_CHUNK):
                    decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            continue
        return encoding
    raise _undecodable(path)


def _refuse_irregular(path: str | Path) -> None:
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise GdshError(f"{str(path)!r} is not a regular file; expected a text file: correct the path")


def _unreadable(path: str | Path, error: OSError) -> GdshError:
    reason = error.strerror or error
    return GdshError(f"{str(path)!r} cannot be read ({reason}); correct the path or its permissions")


def _undecodable(path: str | Path) -> GdshError:
    return GdshError(f"{str(path)!r} is neither UTF-8 nor GB18030 text; save it as UTF-8")
