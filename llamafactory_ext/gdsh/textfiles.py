"""Text files of Chinese Windows machines: UTF-8 with or without a BOM, else GB18030; tables may be UTF-16."""

import codecs
import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from llamafactory_ext.errors import GdshError


_ENCODINGS = ("utf-8", "gb18030")
MAX_BYTES = 64 << 20
"""Of a file that is read as a whole: about a million rows of GDSH's four columns."""

MAX_TABLE = 2 << 30
"""Bytes of a table, which is read piece by piece."""

_CHUNK = 1 << 20  # bytes
_HEAD, _TAIL = 1 << 16, 1 << 12


@dataclass(frozen=True)
class Scan:
    """What one look through a table's bytes tells."""

    path: Path
    data: bytes | None
    """All bytes, where they are few."""
    encoding: str
    head: str
    """The beginning, without BOM."""
    tail: str
    """The last lines; all of them where `is_whole`."""
    is_whole: bool
    """Whether `head` and `tail` are the whole file."""
    has_quotes: bool
    has_nul: bool
    newlines: int
    returns: int
    """Carriage returns, and those of them that stand before a newline."""
    pairs: int

    def open(self) -> BinaryIO:
        """Opens the bytes once more."""
        return io.BytesIO(self.data) if self.data is not None else self.path.open("rb")


def scan(path: Path, data: bytes | None = None) -> Scan:
    """Look through a table once.

    Args:
        path: the file.
        data: its content, where it was read already.

    Raises:
        GdshError: no such file, not a regular file, over `MAX_TABLE`, unreadable, or in none of the encodings.
    """
    with opened(path) as file:
        if data is None:
            data = file.read(_CHUNK)
            if len(data) == _CHUNK:
                data = None
                file.seek(0)
        for encoding in _ENCODINGS:
            found = _look_through(path, data, io.BytesIO(data) if data is not None else file, encoding)
            if found:
                return found
            file.seek(0)
    raise _undecodable(path)


def _look_through(path: Path, data: bytes | None, file: BinaryIO, encoding: str) -> Scan | None:
    """What `scan` gives; None where the file is not in this encoding."""
    size = newlines = returns = pairs = 0
    has_quotes = has_nul = False
    head = tail = b""
    decoder = None
    while chunk := file.read(_CHUNK):
        if decoder is None:
            encoding = "utf-16" if chunk[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else encoding
            decoder = codecs.getincrementaldecoder(encoding)()
        try:
            text = decoder.decode(chunk)
        except UnicodeDecodeError:
            return None
        size += len(chunk)
        if size > MAX_TABLE:
            raise GdshError(f"{str(path)!r} has more than {MAX_TABLE:,} bytes, which are read at most; split it")
        newlines += chunk.count(b"\n")
        returns += chunk.count(b"\r")
        if returns:
            pairs += chunk.count(b"\r\n") + (tail.endswith(b"\r") and chunk.startswith(b"\n"))
        has_quotes = has_quotes or b'"' in chunk
        has_nul = has_nul or "\0" in text
        head = head if len(head) >= _HEAD else (head + chunk)[:_HEAD]
        tail = (tail + chunk)[-_TAIL:] if len(chunk) < _TAIL else chunk[-_TAIL:]
    try:
        if decoder is not None:
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return None
    is_whole = size <= _TAIL
    first = head.decode(encoding, "ignore").removeprefix("\ufeff")
    last = first if is_whole else "".join(_whole_lines(tail, encoding))
    return Scan(path, data, encoding, first, last, is_whole, has_quotes, has_nul, newlines, returns, pairs)


def _whole_lines(tail: bytes, encoding: str) -> list[str]:
    """The lines of a file's end, less the first, which may be cut."""
    if encoding == "utf-16":
        return []
    return tail.partition(b"\n")[2].decode(encoding, "ignore").splitlines(keepends=True)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file; what the system says against it is a fault of the data.

    Raises:
        GdshError: no such file, not a regular file, or unreadable.
    """
    try:
        _refuse_irregular(path)
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise _unreadable(path, error) from error


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
