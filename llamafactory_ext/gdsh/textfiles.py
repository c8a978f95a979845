"""Text files as they come from Chinese Windows machines: UTF-8 with or without a BOM, else GB18030."""

import stat
from pathlib import Path

from .errors import GdshError


def read_text(path: str | Path) -> str:
    """Read the whole file, once, and decode it strictly; a leading BOM is taken off.

    Raises:
        GdshError: no such file, not a regular file, unreadable, or in neither of the two encodings.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise GdshError(f"{str(path)!r} is not a regular file; expected a text file: correct the path")
        data = Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise GdshError(f"{str(path)!r} cannot be read ({reason}); correct the path or its permissions") from error
    return _decode(data, path).removeprefix("\ufeff")


def _decode(data: bytes, path: str | Path) -> str:
    for encoding in ("utf-8", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise GdshError(f"{str(path)!r} is neither UTF-8 nor GB18030 text; save it as UTF-8")
