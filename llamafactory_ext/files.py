"""Files that appear whole: written under a temporary name, then renamed."""

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path


def temporary(folder: Path, suffix: str) -> Path:
    """Returns a new, empty file beside those that it will become one of."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".part-", suffix=suffix)
    os.close(descriptor)
    return Path(name)


def write_text(path: Path, pieces: Iterable[str]) -> None:
    """Writes text piece by piece; characters that UTF-8 can't hold are written as escapes."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.writelines(pieces)


def rename(part: Path, path: Path) -> None:
    """Gives a temporary file its name, and the permissions of any other new file."""
    mask = os.umask(0)
    os.umask(mask)
    part.chmod(0o666 & ~mask)  # mkstemp's files are for their owner alone
    part.replace(path)


def write_whole(path: Path, pieces: Iterable[str]) -> None:
    """Writes a text file piece by piece; its old content stays until the new one is whole.

    Raises:
        OSError: it can't be written.
    """
    part = temporary(path.absolute().parent, path.suffix)
    try:
        write_text(part, pieces)
        rename(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def private(path: str, flags: int) -> int:
    """An opener for ``open``: what it makes is its owner's alone from the first moment on, and no link is followed."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def private_folder(folder: Path) -> Path:
    """Returns a folder of this user alone, made where it is missing: what lies in it was put there by nobody else.

    Raises:
        PermissionError: it is another user's, a link, or others may write to it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is a link, another user's, or others may write to it; name another cache")
    return folder


def holds(path: Path, digest: str, start: bytes = b"") -> bool:
    """True for a regular file whose content, behind ``start``, has this SHA-256 digest (hexadecimal)."""
    found = hashlib.sha256(start)
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                found.update(piece)
    except OSError:
        return False
    return found.hexdigest() == digest
