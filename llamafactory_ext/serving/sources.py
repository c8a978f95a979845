"""Where a series of a request comes from: a data URI, or a CSV file under the allowed folder. Nothing is fetched."""

import base64
import binascii
import json
import re
import stat
import tempfile
from pathlib import Path, PurePath
from urllib.parse import unquote_to_bytes

from llamafactory_ext.errors import excerpt
from llamafactory_ext.gdsh import GdshError, Series, read_series
from llamafactory_ext.series import FloatArray, SeriesError, as_series


MAX_BYTES = 4 << 20
"""Of one CSV file or one list of numbers: 128 for each of the 32,768 points that ChatTS places."""

_EXPECTED = "expected data:text/csv;base64,…, data:application/json,[1, 2.5, …] or a CSV file's path"
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class SourceError(ValueError):
    """A series that can't be had; the message says what was found, what was expected, and the fix."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status that tells it best."""


def read_source(source: str, folder: Path | None) -> Series:
    """Returns the series that a data URI holds or a path names.

    Arguments:
        folder: the only one that paths are read under, by a relative path or an absolute one; None forbids them all.

    Raises:
        SourceError: nothing that is read, larger than ``MAX_BYTES``, outside of the folder, or no series.
    """
    if source[:5].lower() == "data:":
        return _decode(source[5:])
    if _URL.match(source):
        raise SourceError(f"found the address {excerpt(source)}; {_EXPECTED}: nothing is fetched from a network")
    return _read_below(source, folder)


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
    except (FileNotFoundError, NotADirectoryError) as err:
        raise SourceError(f"{shown} is not there; expected the path of a CSV file", 404) from err
    except (OSError, ValueError) as err:
        raise SourceError(f"{shown} can't be read ({err.args[-1]}); correct the path") from err
    if not stat.S_ISREG(found.st_mode):
        raise SourceError(f"{shown} is not a regular file; expected a CSV file")
    _check_size(found.st_size, shown)
    try:
        return read_series(path)
    except GdshError as err:  # the server's folders are none of the client's business
        raise SourceError(str(err).replace(repr(str(path)), shown)) from err


def _read_below(name: str, folder: Path | None) -> Series:
    if folder is None:
        raise SourceError(
            f"found the path {excerpt(name)}, and this server opens no folder; start it with SAFE_MEDIA_PATH=FOLDER "
            "and without ALLOW_LOCAL_FILES=0, or send the series itself",
            403,
        )
    try:
        path, root = (folder / name).resolve(), folder.resolve()
    except (OSError, ValueError, RuntimeError) as err:  # NUL, a lone surrogate, a loop of links
        raise SourceError(f"found {excerpt(name)}, which is no path; {_EXPECTED}") from err
    if ".." in PurePath(name).parts or not path.is_relative_to(root):
        raise SourceError(
            f"found the path {excerpt(name)}, which leads out of the folder that is open to requests; expected a CSV "
            "file under SAFE_MEDIA_PATH, or send the series itself",
            403,
        )
    return read_csv(path, excerpt(name))


def _decode(uri: str) -> Series:
    head, comma, body = uri.partition(",")
    kind, *parameters = (word.strip() for word in head.lower().split(";"))
    if not comma or kind not in ("text/csv", "application/json"):
        raise SourceError(f"found a data URI of {excerpt(head)}; {_EXPECTED}")
    data = unquote_to_bytes(body)
    if "base64" in parameters:
        try:
            data = base64.b64decode(data, validate=True)
        except binascii.Error as err:
            raise SourceError(f"found a data URI that is not base64 ({err}); encode it with `base64 -w0`") from err
    _check_size(len(data), "the series")
    if kind == "application/json":
        return Series(parse_numbers(data), 0)
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        file.write(data)
        file.flush()
        return read_csv(Path(file.name), "the CSV")


def _check_size(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise SourceError(f"{name} has {size:,} bytes; at most {MAX_BYTES:,} are read: send fewer points", 413)
