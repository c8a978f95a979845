"""A folder of detections belongs to one run: by what its answers depend on, and whether a folder was begun by it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import UsageError
from llamafactory_ext.files import write_whole


RECORD = "detect_run.json"
_WHOLE = 1 << 26  # bytes of a file that are all looked at; of a larger one as many, evenly spread
_PIECE = 1 << 16
_KEPT = (".json", ".safetensors", ".bin", ".jinja", ".txt")


def contents(name: str) -> Any:
    """Returns what is in a folder of a model or an adapter, file by file; a hub's name as it is.

    Files over 64 MiB are known by their size and 1,024 pieces of 64 KiB: training changes weights everywhere.
    """
    folder = Path(name)
    if not folder.is_dir():
        return name
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _KEPT)
    return {path.name: _digest(path) for path in files if not path.name.startswith(("trainer_", "all_results"))}


def _digest(path: Path) -> str:
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _WHOLE:
            found.update(file.read())
        else:
            pieces = _WHOLE // _PIECE
            for place in range(pieces):
                file.seek((size - _PIECE) * place // (pieces - 1))
                found.update(file.read(_PIECE))
    return found.hexdigest()[:32]


def claim(folder: Path, now: dict[str, Any]) -> None:
    """Makes a folder this run's.

    Raises:
        UsageError: it is another run's, or holds what no run of detect wrote.
    """
    record = folder / RECORD
    if not record.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} holds something else than detections; name a new folder with --out")
        write_whole(record, [json.dumps(now, ensure_ascii=False, indent=1), "\n"])
        return
    refuse_other(folder, now)


def refuse_other(folder: Path, now: dict[str, Any]) -> None:
    """Raises UsageError where a folder was begun with something else, and says what."""
    try:
        before = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError) as err:
        raise UsageError(f"{folder / RECORD} can't be read ({err}); name another folder with --out") from err
    now = json.loads(json.dumps(now))
    differs = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if differs:
        told = ", ".join(_told(key, before.get(key), now.get(key)) for key in differs[:4])
        raise UsageError(f"{folder} belongs to a run with {told}; name another folder with --out")


def _told(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        files = sorted(name for name in before.keys() | now if before.get(name) != now.get(name))
        return f"another {key} ({', '.join(files[:3])})"
    short = [repr(one) if len(repr(one)) <= 40 else f"{repr(one)[:37]}..." for one in (before, now)]
    return f"{key} {short[0]} (here {short[1]})"
