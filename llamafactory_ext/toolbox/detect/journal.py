"""The journal: what was answered so far, so that a run that was killed goes on and a file is asked about once.

One JSON object a line for each finished series, appended and synced; a last line without its end was being written
when the run died, and counts as not there. ``run.json`` says whose answers they are.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llamafactory_ext.errors import UsageError, excerpt
from llamafactory_ext.files import write_whole

from .answers import Detection


RUN = "run.json"
_NAME = "journal{}.jsonl"


@dataclass(frozen=True)
class Entry:
    """One series that was answered."""

    name: str
    file: str
    digest: str
    """Of name and values (`Found.digest`)."""
    rows: int
    filled: int
    confidence: float
    detections: tuple[Detection, ...] = ()
    times: tuple[tuple[str, str], ...] = ()
    """Of each detection's first and last row."""
    answers: tuple[str, ...] = ()
    """As the model gave them, one a window."""
    faults: tuple[str, ...] = field(default=())


class Journal:
    """The entries of one folder; those of all shards are read, one's own are appended to.

    Raises:
        UsageError: the folder holds another run's answers, a file that is none of a run, or a run is on right now.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], shard: tuple[int, int] | None = None) -> None:
        self.folder = folder
        self.path = folder / _NAME.format(f"-{shard[0]}-of-{shard[1]}" if shard else "")
        _claim(folder, run)
        self._lock = FileLock(folder / f".{self.path.stem}.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise UsageError(
                f"{self.path} is being written by another run; wait for it, or name another --out"
            ) from None
        self.entries: dict[str, Entry] = {}
        for path in sorted(folder.glob(_NAME.format("*"))):
            for entry in read_journal(path):
                self.entries[entry.name] = entry
        _cut_half_line(self.path)

    def add(self, entries: Sequence[Entry]) -> None:
        """Appends entries; they are on the disk when it returns."""
        with self.path.open("ab") as file:
            for entry in entries:
                file.write(json.dumps(asdict(entry), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
                self.entries[entry.name] = entry
            file.flush()
            os.fsync(file.fileno())

    def has(self, name: str, digest: str) -> bool:
        """Whether this very series was answered."""
        return name in self.entries and self.entries[name].digest == digest


def read_journal(path: Path) -> list[Entry]:
    """Returns the entries of one journal, later ones of a name in place of earlier ones."""
    found: dict[str, Entry] = {}
    for line in path.read_bytes().split(b"\n")[:-1]:
        one = json.loads(line)
        one["detections"] = tuple(Detection(**each) for each in one["detections"])
        one["times"] = tuple((first, last) for first, last in one["times"])
        one["answers"], one["faults"] = tuple(one["answers"]), tuple(one["faults"])
        found[one["name"]] = Entry(**one)
    return list(found.values())


def describe_run(engine: str, settings: Mapping[str, Any], manner: Mapping[str, Any], votes: int) -> dict[str, Any]:
    """Returns what answers depend on, as `run.json` holds it."""
    kept = {key: settings[key] for key in ("max_new_tokens", "constrained", "dtype", "quantization_bit", "batch")}
    model, adapter = Path(settings["model"]), Path(settings["adapter"]) if settings["adapter"] else None
    return {
        "model": settings["model"] if not model.is_dir() else _digest(model),
        "adapter": _digest(adapter) if adapter else "",
        "engine": engine,
        "votes": votes,
        **kept,
        **manner,
    }


def _digest(folder: Path) -> str:
    """A digest of the files that a model is made of: small ones by content, weights by name, size and a sample."""
    found = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.glob("*")):
        if not path.is_file() or path.suffix not in (".json", ".safetensors", ".bin"):
            continue
        if path.name in ("trainer_state.json", "all_results.json", "train_results.json") or "log" in path.name:
            continue
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for place in range(0, size, max(1 << 20, size // 64)):
                file.seek(place)
                found.update(file.read(1 << 16))
    return found.hexdigest()


def _claim(folder: Path, run: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUN
    now = json.loads(json.dumps(run))
    if not path.exists():
        others = [one.name for one in folder.iterdir() if not one.name.startswith(".")]
        if others:
            raise UsageError(
                f"{folder} holds {others[0]} and no {RUN}: it is not a run's; name a new folder with --out"
            )
        write_whole(path, [json.dumps(now, ensure_ascii=False, indent=1), "\n"])
        return
    try:
        before = json.loads(path.read_text("utf-8"))
    except ValueError as err:
        raise UsageError(f"{path} can't be read ({err}); name a new folder with --out") from err
    differing = [key for key in now.keys() | before.keys() if now.get(key) != before.get(key)]
    if differing:
        key = sorted(differing)[0]
        raise UsageError(
            f"{folder} holds answers of another run: {key} was {excerpt(before.get(key))}, now {excerpt(now.get(key))}"
            f"{f' and {len(differing) - 1} more' if len(differing) > 1 else ''}; name a new folder with --out"
        )


def _cut_half_line(path: Path) -> None:
    if path.exists():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with path.open("r+b") as file:
                file.truncate(whole)
