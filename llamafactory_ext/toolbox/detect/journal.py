"""The journal: all that was answered, in lines that are added and never changed, one write and fsync a batch.

A line is a batch of answers, a series that is finished, or a file all of whose series are. Lines of one write that a
kill has torn are cut off when the journal is opened again. In memory are keys and places, not contents.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from llamafactory_ext.errors import UsageError


Key = tuple[str, str]
"""File (`reading.digest`) and series."""


class Journal:
    """The journals of a folder: those of other shards are read, this one's is written.

    Raises:
        UsageError: another process writes it, or it can't be written.
    """

    def __init__(self, folder: Path, shard: str, others: Iterable[Path] = (), again: bool = False) -> None:
        name = f"journal{'' if not shard else '-' + shard.replace('/', '-of-')}.jsonl"
        self.path = folder / name
        self.shard = shard
        self.answers: dict[Key, dict[int, Any]] = {}
        """Of series that are not finished."""
        self._series: dict[Key, tuple[int, int]] = {}
        self._files: dict[str, tuple[int, int]] = {}
        self._lock = FileLock(folder / f".{name}.lock", timeout=1, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise UsageError(f"another detect writes to {self.path}; wait until it has ended") from None
        if again:
            self.path.unlink(missing_ok=True)
        read = [] if again else sorted(folder.glob("journal*.jsonl"))
        for other in others:
            read += sorted(other.glob("journal*.jsonl"))
        self._open: list[BinaryIO] = []
        for path in dict.fromkeys(read):
            if path != self.path:
                self._index(path.open("rb"), own=False)
        self._own = self.path.open("a+b")
        self._own.truncate(self._index(self._own, own=True))
        self._own.seek(0, os.SEEK_END)

    def has_series(self, key: Key) -> bool:
        """Whether a series is finished."""
        return key in self._series

    def series(self, key: Key) -> dict[str, Any]:
        """Returns what is known of a finished series."""
        found: dict[str, Any] = self._read(self._series[key])
        return found

    def file(self, name: str) -> dict[str, Any] | None:
        """Returns what is known of a file that is finished for this shard; None otherwise."""
        place = self._files.get(name)
        return None if place is None else self._read(place)

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Adds lines; once it returns, they are on the disk."""
        if not lines:
            return
        start = self._own.seek(0, os.SEEK_END)
        written = [json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n" for line in lines]
        self._own.write(b"".join(written))
        self._own.flush()
        os.fsync(self._own.fileno())
        for line, text in zip(lines, written, strict=True):
            self._note(line, (len(self._open) - 1, start))
            start += len(text)

    def close(self) -> None:
        """Lets others write."""
        for file in self._open:
            file.close()
        self._lock.release()

    def _index(self, file: BinaryIO, own: bool) -> int:
        """Notes what a file holds; returns where its last whole line ends."""
        self._open.append(file)
        file.seek(0)
        start = 0
        for text in _lines(file):
            try:
                line = json.loads(text.decode("utf-8", "surrogatepass"))
                self._note(line, (len(self._open) - 1, start))
            except (ValueError, KeyError, TypeError):
                break  # torn: a disk may have kept a later part of a write and not an earlier one
            start += len(text)
        return start

    def _note(self, line: dict[str, Any], place: tuple[int, int]) -> None:
        if line["kind"] == "answers":
            for digest, name, number, answer in line["answers"]:
                if (digest, name) not in self._series:
                    self.answers.setdefault((digest, name), {})[number] = answer
        elif line["kind"] == "series":
            key = (line["file"], line["series"])
            self._series[key] = place
            self.answers.pop(key, None)
        elif line["shard"] in ("", self.shard):
            self._files[line["file"]] = place

    def _read(self, place: tuple[int, int]) -> Any:
        number, start = place
        file = self._open[number]
        file.seek(start)
        return json.loads(file.readline().decode("utf-8", "surrogatepass"))


def _lines(file: BinaryIO) -> Iterator[bytes]:
    for text in file:
        if not text.endswith(b"\n"):
            return
        yield text
