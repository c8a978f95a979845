"""Records brought to one shape, a JSON object a line: Arrow refuses a file with a string here and a list there.

The lines go into a file beside datasets' own cache. It is named by the digest of its content, which holds the size and
the times of every CSV file that a record uses: so a changed CSV makes another file, and nothing that datasets has
cached for the old one is used. Times and size, not a hash of the content: that would read every CSV at every start,
8 GB for 40,000 series. The time of the inode's last change (ctime) is among them, which no tool can set back: a file
copied over with its old time, or edited twice in a second, is seen as well.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from llamafactory_ext import __version__
from llamafactory_ext.files import holds, private_folder
from llamafactory_ext.gdsh.records import MAX_RECORD


# Arrow's parser recurses: a record of 20,000 nested lists ends the process (pyarrow 26, a stack of 8 MiB).
_DEEP = 4000
_PIECE = 1 << 20  # bytes


def write_lines(lines: Iterable[str], cache: Path, stem: str) -> Path:
    """Writes the lines to ``cache``, under a name that starts with ``stem``; the same lines give the same file."""
    private_folder(cache)
    digest = hashlib.sha256(__version__.encode())
    descriptor, temporary = tempfile.mkstemp(dir=cache, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            for line in lines:
                data = f"{line}\n".encode()
                digest.update(data)
                file.write(data)
        target = cache / f"{stem}-{digest.hexdigest()[:16]}.jsonl"
        if holds(target, digest.hexdigest(), __version__.encode()):
            Path(temporary).unlink()
        else:
            Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def arrow_may_read(source: Path) -> bool:
    """Returns whether Arrow may read a file of ChatTS records; else it is to be read record by record.

    That is so for a list, which datasets would hold whole, with the last of two equal keys; and for a line that opens
    many brackets, be it in its texts: Arrow ends the process where they nest.

    Raises:
        ValueError: it does not begin as JSON does (datasets would unpack it), or holds NUL.
    """
    begun, opened, length = False, 0, 0
    with source.open("rb") as file:
        for piece in iter(lambda: file.readline(_PIECE), b""):
            start = piece.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
            if (start and not begun and start not in b"[{") or b"\0" in piece:
                raise ValueError(f"{source} is no JSON text; expected one JSON object a line: unpack or mend it.")
            if start == b"[" and not begun:
                return False
            begun = begun or bool(start)
            opened += piece.count(b"[") + piece.count(b"{")
            length += len(piece)
            if opened > _DEEP or length > MAX_RECORD:
                return False
            if piece.endswith(b"\n"):
                opened = length = 0
    return True
