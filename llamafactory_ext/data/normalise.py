"""Records brought to one shape, a JSON object a line: Arrow refuses a file with a string here and a list there.

The lines go into a file beside datasets' own cache. It is named by the digest of its content, which holds the size and
the times of every CSV file that a record uses: so a changed CSV makes another file, and nothing that datasets has
cached for the old one is used. Times and size, not a hash of the content: that would read every CSV at every start,
8 GB for 40,000 series. The time of the inode's last change (ctime) is among them, which no tool can set back: a file
copied over with its old time, or edited twice in a second, is seen as well.

What no entry has used for 30 days is deleted. A use is the file's time of access, which is set for it: that of change
is part of what datasets knows the file by.
"""

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from llamafactory_ext import __version__
from llamafactory_ext.files import holds, private_folder
from llamafactory_ext.gdsh.records import MAX_RECORD


# Arrow's parser recurses: a record of 20,000 nested lists ends the process (pyarrow 26, a stack of 8 MiB).
_DEEP = 4000
_PIECE = 1 << 20  # bytes

_OURS = re.compile(r"(\.part-.+|.+-[0-9a-f]{16})\.jsonl")
_KEPT = 30 * 24 * 3600  # seconds


def write_lines(lines: Iterable[str], cache: Path, stem: str) -> Path:
    """Writes the lines to ``cache``, under a name that starts with ``stem``; the same lines give the same file."""
    private_folder(cache)
    digest = hashlib.sha256(__version__.encode())
    descriptor, name = tempfile.mkstemp(dir=cache, prefix=".part-", suffix=".jsonl")
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for line in lines:
                data = f"{line}\n".encode()
                digest.update(data)
                file.write(data)
        target = cache / f"{stem}-{digest.hexdigest()[:16]}.jsonl"
        if holds(target, digest.hexdigest(), __version__.encode()):
            os.utime(target, ns=(time.time_ns(), target.stat().st_mtime_ns))
        else:
            part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    delete_unused(cache)
    return target


def delete_unused(cache: Path) -> None:
    """Deletes files that are named as ours are, and that were neither used nor written for 30 days."""
    oldest = time.time() - _KEPT
    for path in cache.iterdir():
        if not _OURS.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        with suppress(OSError):  # another process deletes, too; or it is someone else's
            state = path.stat()
            if max(state.st_atime, state.st_mtime) < oldest:
                path.unlink()


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
                raise ValueError(f"{source} is no JSON text; expected one JSON object a line: unpack or correct it.")
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
