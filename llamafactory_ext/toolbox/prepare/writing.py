"""Writing: outputs appear whole, all of them together, at the very end; or not at all.

Each is written to a temporary file in its own folder first, so that its name can be given to it in one step.
"""

import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from llamafactory_ext.files import private

from .options import PrepareError


@dataclass
class Draft:
    """An output that has not got its name yet."""

    target: Path
    temporary: Path
    file: BinaryIO = field(default_factory=BytesIO)
    before: bytes = b""
    """What goes before the next record."""
    between: bytes = b"\n"
    """What goes between two records."""
    after: bytes = b"\n"
    """What goes behind the last one."""
    records: int = 0

    def add(self, record: bytes) -> None:
        """Write one more record."""
        self.write((self.between if self.records else self.before) + record)
        self.records += 1

    def write(self, data: bytes) -> None:
        """Write bytes as they are.

        Raises:
            PrepareError: they cannot be written, on a full disk for example.
        """
        with telling(self.target):
            self.file.write(data)


@contextmanager
def drafting() -> Iterator[list[Draft]]:
    """Give a list for drafts; those that were not committed when the block ends, however it ends, are removed."""
    drafts: list[Draft] = []
    try:
        yield drafts
    finally:
        for draft in drafts:
            with suppress(OSError):  # closing flushes, which may fail as the writing did
                draft.file.close()
            draft.temporary.unlink(missing_ok=True)


def open_draft(drafts: list[Draft], target: Path, *, a_list: bool = False) -> Draft:
    """Begin an output: records a line, or a JSON list of them with `a_list`. Its folder is made where needed.

    Raises:
        PrepareError: the folder cannot be made or written to.
    """
    target = target.resolve()  # a link keeps leading to the file
    with telling(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Draft(target, target.with_name(f".{target.name}-{secrets.token_hex(8)}.tmp"))
        drafts.append(draft)  # before the file is there: an interrupt in between must not leave it behind
        draft.file = open(draft.temporary, "xb", opener=private)  # noqa: SIM115
        draft.temporary.chmod(_mode(target))
    if a_list:
        draft.before, draft.between, draft.after = b"[\n", b",\n", b"\n]\n"
    return draft


def open_spool(target: Path) -> BinaryIO:
    """Open a nameless file beside `target`, for what is sorted into outputs later.

    Raises:
        PrepareError: the folder cannot be made or written to.
    """
    with telling(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=target.parent)


def commit(drafts: list[Draft]) -> None:
    """Finish all drafts and give them their names.

    Raises:
        PrepareError: one of them cannot be finished; then all old files are as they were.
    """
    for draft in drafts:
        if draft.records:
            draft.write(draft.after)
        with telling(draft.target):
            draft.file.flush()
            os.fsync(draft.file.fileno())
            draft.file.close()
    with _uninterrupted():
        while drafts:
            with telling(drafts[0].target):
                drafts[0].temporary.replace(drafts[0].target)
            drafts.pop(0)


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Turn a failure of the file system into one line that names the file.

    Raises:
        PrepareError: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise PrepareError(f"{str(path)!r} cannot be written ({error.strerror or error})") from error


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Pass over interrupts for a moment, so that the outputs of one run get their names together."""
    if threading.current_thread() is not threading.main_thread():  # no other thread is interrupted anyway
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _mode(target: Path) -> int:
    """The permissions of the file that is replaced, or what a new file gets."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
