"""Files that appear whole: written under a temporary name, then renamed; several of them all together, or none."""

import hashlib
import json
import os
import secrets
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from llamafactory_ext.errors import UsageError


class WriteError(OSError):
    """A file that can't be written: `filename` is its own name, not that of a temporary file; `strerror` says why."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises WriteError, which names `path`, instead of the block's OSError."""
    try:
        yield
    except OSError as err:
        raise WriteError(err.errno, err.strerror or str(err), str(path)) from err


class Drafts:
    """Files that get their names together; as a context manager it removes what did not get one, however it ends."""

    def __init__(self) -> None:
        self._files: list[tuple[Path, Path, BinaryIO | None]] = []
        self._spools: list[BinaryIO] = []

    def open(self, path: Path) -> BinaryIO:
        """Returns a new file that will become `path`; its folder is made where needed.

        Raises:
            WriteError: the folder can't be made or written to.
        """
        path = path.resolve()  # a link keeps leading to the file
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}-{secrets.token_hex(8)}.tmp")
            self._files.append((path, part, None))  # before it is there: an interrupt must not leave it behind
            file = open(part, "xb", opener=private)  # noqa: SIM115 - pathlib takes no opener; closed at the end
            self._files[-1] = (path, part, file)
            os.fchmod(file.fileno(), _mode(path))
        return file

    def write(self, path: Path, content: bytes) -> None:
        """Opens a file and writes all of it; raises WriteError."""
        file = self.open(path)
        with writing(path):
            file.write(content)

    def write_json(self, path: Path, value: object) -> None:
        """The same with JSON; half a character, of a file name that is not UTF-8, is written as an escape."""
        text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
        self.write(path, text.encode("utf-8", "backslashreplace"))

    def spool(self, path: Path) -> BinaryIO:
        """Returns a nameless file beside `path`, for what is sorted out later; raises WriteError."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._spools.append(tempfile.TemporaryFile(dir=path.parent))  # noqa: SIM115 - closed at the end
        return self._spools[-1]

    def commit(self) -> None:
        """Finishes all files and gives them their names, with the permissions of those they replace.

        Raises:
            WriteError: one of them can't be finished; then all old files are as they were.
        """
        for path, _, file in self._files:
            with writing(path):
                if file:
                    file.flush()
                    os.fsync(file.fileno())
                    file.close()
        with _uninterrupted():
            while self._files:
                path, part, _ = self._files[0]
                with writing(path):
                    part.replace(path)
                self._files.pop(0)

    def __enter__(self) -> "Drafts":
        return self

    def __exit__(self, *raised: object) -> None:
        for file in [*self._spools, *(file for _, _, file in self._files if file)]:
            with suppress(OSError):  # closing flushes, which may fail as the writing did
                file.close()
        for _, part, _ in self._files:
            part.unlink(missing_ok=True)


def write_whole(path: Path, pieces: Iterable[str]) -> None:
    """Writes a text file piece by piece; its old content stays until the new one is whole.

    Characters that UTF-8 can't hold are written as escapes.

    Raises:
        WriteError: it can't be written.
    """
    with Drafts() as drafts:
        file = drafts.open(path)
        with writing(path):
            file.writelines(piece.encode("utf-8", "backslashreplace") for piece in pieces)
        drafts.commit()


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside `path`, for what will be renamed to it; gone at the end, with what is left in it.

    Raises:
        WriteError: nothing can be written there.
    """
    folder = path.absolute().parent
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=folder, prefix=f".{path.name}-")
    with scratch as name:
        yield Path(name)


def copy_whole(source: Path, path: Path) -> None:
    """Copies a file; a link of that name is replaced, not followed."""
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with os.fdopen(descriptor, "wb") as file, source.open("rb") as content:
            shutil.copyfileobj(content, file)
        Path(part).chmod(_new_mode())
        Path(part).replace(path)
    finally:
        Path(part).unlink(missing_ok=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Passes over interrupts for a moment, so that files get their names together."""
    if threading.current_thread() is not threading.main_thread():  # no other thread is interrupted anyway
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _mode(path: Path) -> int:
    """The permissions of the file that is replaced, or what a new file gets."""
    return path.stat().st_mode & 0o777 if path.exists() else _new_mode()


def _new_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def refuse_foreign(page: Path, generator: str, option: str) -> None:
    """Sees to it that a page can be written without replacing somebody else's.

    Arguments:
        generator: what stands near the beginning of our own pages.
        option: that names the folder.

    Raises:
        UsageError: its folder is a file, or the page that is there was not written by `generator`.
    """
    if page.parent.exists() and not page.parent.is_dir():
        raise UsageError(f"{page.parent} is a file; name a folder with {option}")
    if page.exists():
        with page.open(encoding="utf-8", errors="replace") as file:
            if f'content="{generator}"' not in file.read(1000):
                raise UsageError(f"{page} was not written by this tool; name another folder with {option}")


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
