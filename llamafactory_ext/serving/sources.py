"""Where a series of a request comes from: a data URI, or a CSV file under the allowed folder. Nothing is fetched.

Lengths are looked at before anything is decoded, and a path is opened part by part below the folder, no link followed:
what lies there when it is opened is what is read, whatever it was when it was checked.
"""

import base64
import binascii
import errno
import json
import os
import re
import stat
import tempfile
from pathlib import Path, PurePath

import numpy as np

from llamafactory_ext.errors import excerpt
from llamafactory_ext.gdsh import GdshError, Series, read_series
from llamafactory_ext.series import FloatArray, SeriesError, as_series


MAX_BYTES = 4 << 20
"""Of one CSV file or one list of numbers: 128 for each of the 32,768 points that ChatTS places."""

MAX_PATH = 4096
"""Characters of a path."""

MAX_PART = 255
"""Bytes of a name in it."""

_OPENING = {"SAFE_MEDIA_PATH": "SAFE_MEDIA_PATH=FOLDER and without ALLOW_LOCAL_FILES=0"}
_EXPECTED = "expected data:text/csv;base64,…, data:application/json,[1, 2.5, …] or a CSV file's path"
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SUFFIX = ".csv"
_MAX_HEAD = 256  # characters of a data URI before its comma
_CONTENTS = re.compile(r"[\[\"'].*[\]\"']", re.DOTALL)  # what a message shows of a file


class SourceError(ValueError):
    """A series that can't be had; the message says what was found, what was expected, and the fix."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status that fits best."""


def read_source(source: str, folder: Path | None, setting: str = "SAFE_MEDIA_PATH") -> Series:
    """Returns the series that a data URI holds or a path names.

    Arguments:
        folder: the only one that paths are read under, by a relative path or an absolute one; None forbids them all.
        setting: what names that folder where the server is started.

    Raises:
        SourceError: nothing that is read, larger than ``MAX_BYTES``, outside of the folder, or no series.
    """
    if source[:5].lower() == "data:":
        return _decode(source)
    if _URL.match(source):
        raise SourceError(f"found the address {excerpt(source)}; {_EXPECTED}: nothing is fetched from a network")
    return _read_below(source, folder, setting)


def parse_numbers(text: str | bytes) -> FloatArray:
    """Returns the series that a JSON list of numbers is.

    Raises:
        SourceError: no JSON, or no list of finite numbers.
    """
    try:
        return as_series(json.loads(text))
    except SeriesError as err:
        raise SourceError(str(err)) from err
    except (ValueError, RecursionError) as err:  # ValueError: JSON, its encoding, or an integer of 5000 digits
        raise SourceError(f"found numbers that are not JSON ({err}); expected e.g. [0.5, 1, 2.25]") from err


def read_csv(path: Path, shown: str) -> Series:
    """Returns the ``value`` column of a CSV file of at most ``MAX_BYTES``; messages call the file ``shown``.

    Raises:
        SourceError: not there, not a file, too large, or no series.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as err:
        raise _unreadable(shown, err) from err
    if not stat.S_ISREG(found.st_mode):
        raise SourceError(f"{shown} is not a regular file; expected a CSV file")
    _check_size(found.st_size, shown)
    try:
        return read_series(path)
    except GdshError as err:  # the server's folders are none of the client's business
        raise SourceError(str(err).replace(repr(str(path)), shown)) from err


def _read_below(name: str, folder: Path | None, setting: str) -> Series:
    shown = excerpt(name)
    if folder is None:
        raise SourceError(
            f"found the path {shown}, and this server opens no folder; start it with "
            f"{_OPENING.get(setting, setting)}, or send the series itself",
            403,
        )
    if len(name) > MAX_PATH or any(len(os.fsencode(part)) > MAX_PART for part in _parts_of(name)):
        raise SourceError(
            f"found a path of {len(name):,} characters, {shown}; expected at most {MAX_PATH:,}, and {MAX_PART} bytes "
            "in each part"
        )
    data = _read_part_by_part(_place(name, folder, setting), folder.resolve(), shown)
    try:
        return _read_bytes(data, shown)
    except SourceError as err:  # what stands in a file is not told to who only knows its name
        start, rest = (shown, str(err).removeprefix(shown)) if str(err).startswith(shown) else ("", str(err))
        kept = rest.replace("'value'", "\0")
        raise SourceError(start + _CONTENTS.sub("…", kept).replace("\0", "'value'"), err.status) from None


def _parts_of(name: str) -> tuple[str, ...]:
    try:
        name.encode()
    except UnicodeEncodeError as err:
        raise SourceError(f"found {excerpt(name)}, which is no path; {_EXPECTED}") from err
    return PurePath(name).parts


def _place(name: str, folder: Path, setting: str) -> PurePath:
    """Returns where a path leads below the folder, links resolved."""
    try:
        root = folder.resolve()
        path = (folder / name).resolve()
    except (OSError, ValueError, RuntimeError) as err:  # NUL, a loop of links
        raise SourceError(f"found {excerpt(name)}, which is no path; {_EXPECTED}") from err
    if ".." in PurePath(name).parts or not path.is_relative_to(root):
        raise SourceError(
            f"found the path {excerpt(name)}, which leads out of the folder that is open to requests; expected a CSV "
            f"file under {setting}, or send the series itself",
            403,
        )
    place = path.relative_to(root)
    named = PurePath(name).parts if not PurePath(name).is_absolute() else ()
    if any(part.startswith(".") for part in (*place.parts, *named)):
        raise SourceError(f"found the path {excerpt(name)}, which is hidden; expected a CSV file in plain sight", 403)
    if not place.parts:
        raise SourceError(f"{excerpt(name)} is not a regular file; expected a CSV file")
    return place


def _read_part_by_part(place: PurePath, root: Path, shown: str) -> bytes:
    """Opens each folder in the one before it. A link that has come meanwhile is not followed."""
    *folders, last = place.parts
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe would be waited for
    descriptor = os.open(root, flags | os.O_DIRECTORY)
    try:
        for part in folders:
            inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        _check_kind(os.lstat(last, dir_fd=descriptor).st_mode, last, shown)
        inner = os.open(last, flags, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
        found = os.fstat(descriptor)
        _check_kind(found.st_mode, last, shown)
        _check_size(found.st_size, shown)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as err:
        raise _unreadable(shown, err) from err
    finally:
        os.close(descriptor)
    _check_size(len(data), shown)
    return data


def _check_kind(mode: int, name: str, shown: str) -> None:
    if not stat.S_ISREG(mode):
        raise SourceError(f"{shown} is not a regular file; expected a CSV file")
    if not name.lower().endswith(_SUFFIX):
        raise SourceError(f"{shown} is no {_SUFFIX} file; expected a CSV file", 403)


def _unreadable(shown: str, err: OSError | ValueError) -> SourceError:
    if isinstance(err, FileNotFoundError | NotADirectoryError):
        return SourceError(f"{shown} is not there; expected the path of a CSV file", 404)
    if isinstance(err, OSError) and err.errno == errno.ELOOP:
        return SourceError(f"{shown} is a link, which is not followed; expected a CSV file", 403)
    return SourceError(f"{shown} can't be read ({err.args[-1]}); correct the path")


def _decode(uri: str) -> Series:
    comma = uri.find(",", 5, _MAX_HEAD)
    head = uri[5:comma] if comma > 0 else uri[5:_MAX_HEAD]
    kind, *parameters = (word.strip() for word in head.lower().split(";"))
    if comma < 0 or kind not in ("text/csv", "application/json"):
        raise SourceError(f"found a data URI of {excerpt(head)}; {_EXPECTED}")
    encoded = "base64" in parameters
    # Each byte takes three characters at most, and four in base64 are three.
    _check_size((len(uri) - comma) // (4 if encoded else 3), "the series")
    data = _unquote(uri[comma + 1 :].encode(errors="surrogatepass"))
    if encoded:
        _check_size(len(data) // 4 * 3 - data[-2:].count(b"="), "the series")
        try:
            data = base64.b64decode(data, validate=True)
        except binascii.Error as err:
            raise SourceError(f"found a data URI that is not base64 ({err}); encode it with `base64 -w0`") from err
    _check_size(len(data), "the series")
    return Series(parse_numbers(data)) if kind == "application/json" else _read_bytes(data, "the CSV")


def _unquote(text: bytes) -> bytes:
    """Returns the bytes with %XX decoded. As ``urllib.parse.unquote_to_bytes``, which takes 170 times their memory."""
    if b"%" not in text:
        return text
    found = np.frombuffer(text, np.uint8)
    digits = np.full(256, 255, np.uint8)
    for value, digit in enumerate("0123456789abcdef"):
        digits[[ord(digit), ord(digit.upper())]] = value
    high, low = digits[found[1:-1]], digits[found[2:]]
    places = np.flatnonzero((found[:-2] == ord("%")) & (high < 16) & (low < 16))
    decoded = found.copy()
    decoded[places] = high[places] << 4 | low[places]
    kept = np.ones(len(found), bool)
    kept[places + 1] = kept[places + 2] = False
    return bytes(decoded[kept])


def _read_bytes(data: bytes, shown: str) -> Series:
    with tempfile.NamedTemporaryFile(suffix=_SUFFIX) as file:
        file.write(data)
        file.flush()
        return read_csv(Path(file.name), shown)


def _check_size(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise SourceError(f"{name} has {size:,} bytes; at most {MAX_BYTES:,} are read: send fewer points", 413)
