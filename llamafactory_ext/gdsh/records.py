"""Records of a JSON file, one after another, so that memory holds one of them and not the file."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from llamafactory_ext.errors import GdshError, excerpt

from .dialects import unique_keys
from .textfiles import open_text


MAX_RECORD = 1 << 26
"""Characters of one record: 64 series of 32,768 points with 20 digits are 1.5 times less."""

_CHUNK = 1 << 20  # characters
_LONGEST_TOKEN = 20  # more than -Infinity or an escape have
_SPACE = re.compile(r"[ \t\n\r]*")
_AFTER = tuple(" \t\n\r,]")  # what ends a number
_EXPECTED = "expected a JSON list of records, or one record a line"
_IMPORT = "convert it with `llamafactory-ext import`"
_TOO_LONG = f"a record of more than {MAX_RECORD:,} characters"


def read_records(path: str | Path) -> Iterator[object]:
    """Yield the items of a JSON list, of a file with one JSON text a line, or of one that is a single record.

    Raises:
        GdshError: unreadable, empty, not JSON, of another kind, a key twice in one object, or a record over
            `MAX_RECORD`; names line and column. Raised when that place is reached: the
            records before it have been yielded by then.
    """
    with open_text(path) as file:
        start, first = file.tell(), ""
        while not first and (line := file.readline(_CHUNK)):
            first = line.lstrip()[:1]
        if not first:
            raise GdshError(f"{str(path)!r} is empty; {_EXPECTED}")
        file.seek(start)
        if first == "[":
            items = _items(_Window(file, path))
        else:
            items = _single(_Window(file, path)) if _goes_on(line) else _lines(file, path)
        for number, item in enumerate(items):
            if number == 0:
                _refuse_foreign(item, path)
            yield item


def _goes_on(line: str) -> bool:
    """Whether an object that begins in a line does not end there."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return line.lstrip()[:1] == "{" and line.endswith("\n") and not line[error.pos :].strip()
    except (ValueError, RecursionError):
        return False
    return False


def _single(window: "_Window") -> Iterator[object]:
    window.next_mark()
    yield window.item()
    if window.next_mark():
        raise window.unexpected("Extra data")


def _refuse_foreign(record: object, path: str | Path) -> None:
    """Name a file of another program for what it is."""
    if not isinstance(record, dict) or "conversations" in record:
        return
    notes = record.get("annotations")
    if "filename" in record and isinstance(notes, list):
        raise GdshError(f"{str(path)!r} is an annotator's own file (filename, annotations), not records; {_IMPORT}")
    if ("data" in record and isinstance(notes, list)) or ("timeseriesLabels" in record):
        raise GdshError(f"{str(path)!r} is an export of Label Studio, not records; {_IMPORT}")


def _lines(file: TextIO, path: str | Path) -> Iterator[object]:
    for number, line in enumerate(iter(lambda: file.readline(MAX_RECORD + 1), ""), start=1):
        if line.strip():
            try:
                if len(line) > MAX_RECORD:
                    raise ValueError(_TOO_LONG)
                yield json.loads(line.rstrip("\n"), object_pairs_hook=unique_keys)
            except (ValueError, RecursionError) as error:
                raise _fault(error, line, path, number, 0) from error


_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


class _Window:
    """A stretch of a file's text, and where in the file it begins."""

    def __init__(self, file: TextIO, path: str | Path) -> None:
        self.file, self.path = file, path
        self.text, self.at = "", 0
        self.line, self.column = 1, 0  # of the first character of `text`

    def grow(self) -> bool:
        """Read on, at least as much as there is already; False at the end of the file."""
        if len(self.text) - self.at > MAX_RECORD:
            raise self.fault(ValueError(_TOO_LONG))
        more = self.file.read(max(_CHUNK, len(self.text)))
        self.text += more
        return bool(more)

    def drop(self) -> None:
        """Forget what lies before `at`, where that is worth the copy."""
        if self.at >= _CHUNK:
            done = self.text[: self.at]
            self.line += done.count("\n")
            self.column = len(done) - done.rfind("\n") - 1 if "\n" in done else self.column + len(done)
            self.text, self.at = self.text[self.at :], 0

    def next_mark(self) -> str:
        """Go to the next character that is no white space and give it; empty at the end of the file."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # matches nothing, too
            self.drop()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""

    def item(self) -> object:
        """Read one JSON value and go behind it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                if self._may_go_on(error) and self.grow():
                    continue
                raise self.fault(error) from error
            # A number that reaches the window's end may have more digits behind it.
            closed = isinstance(value, (dict, list, str)) or self.text[end : end + 1] in _AFTER
            if closed or not self.grow():
                self.at = end
                return value

    def _may_go_on(self, error: Exception) -> bool:
        """Whether the window's end, and not the text, may be what is wrong: then more text is worth reading."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or len(self.text) - error.pos < _LONGEST_TOKEN

    def fault(self, error: Exception) -> GdshError:
        line = self.line
        if not isinstance(error, json.JSONDecodeError):  # which names its place itself
            line += self.text.count("\n", 0, self.at)
        return _fault(error, self.text, self.path, line, self.column)

    def unexpected(self, message: str) -> GdshError:
        return self.fault(json.JSONDecodeError(message, self.text, self.at))


def _items(window: _Window) -> Iterator[object]:
    window.next_mark()
    window.at += 1  # the list's own bracket
    mark = window.next_mark()
    while mark != "]":
        yield window.item()
        window.drop()
        mark = window.next_mark()
        if mark == ",":
            window.at += 1
            if window.next_mark() == "]":
                raise window.unexpected("a comma with no record behind it")
        elif mark != "]":
            raise window.unexpected("Expecting ',' delimiter" if mark else "the list is not closed")
    window.at += 1
    if window.next_mark():
        raise window.unexpected("Extra data")


def _fault(error: Exception, text: str, path: str | Path, line: int, column: int) -> GdshError:
    """State a fault in `text`, whose first character stands at `line` (from 1) and `column` (from 0) of the file."""
    if isinstance(error, json.JSONDecodeError):
        shift = column if error.lineno == 1 else 0
        where = f"line {line + error.lineno - 1}, column {error.colno + shift}"
        shown = excerpt(text, error.pos)
        return GdshError(
            f"{str(path)!r} is not valid JSON at {where} ({error.msg}): {shown}; {_EXPECTED}: correct that place"
        )
    said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return GdshError(f"{str(path)!r} cannot be read as JSON from line {line} on ({said}); correct it")
