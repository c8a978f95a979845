"""Which checkpoints of a run are whole. Knows the files only, not LLaMA-Factory; checked on transformers 4.57 and 5.6.

The Trainer writes ``checkpoint-N`` in place, file by file, with ``trainer_state.json`` last, and resumes from the
highest number. A run that is killed meanwhile leaves a folder that looks like a checkpoint. Here one is whole where
``trainer_state.json`` can be read and no file of weights or states is cut off. Which files there must be is not asked:
those of adapters, whole models, DeepSpeed and FSDP differ.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open


WRITTEN_LAST = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_INDEX = ".index.json"
_TORCH = (".pt", ".pth", ".bin")


def step_of(checkpoint: Path) -> int:
    """Returns the step in a checkpoint's name."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(output_dir: Path) -> list[Path]:
    """Returns the folders that transformers takes for checkpoints, the newest first."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def last_whole(output_dir: Path) -> Path | None:
    """Returns the newest checkpoint that is whole; None where there is none."""
    return next((path for path in checkpoints(output_dir) if first_fault(path) is None), None)


def first_fault(checkpoint: Path, deep: bool = True) -> str | None:
    """Returns what a checkpoint lacks, None where it is whole. Reads heads and ends of files, no weights.

    Arguments:
        deep: folders in it are looked at, too. An output folder, which is written in the same order, has others in it.
    """
    return next(_faults(checkpoint, "rglob" if deep else "glob"), None)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a file; an empty one where there is none, or it can't be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _faults(checkpoint: Path, look: str) -> Iterator[str]:
    if not (checkpoint / WRITTEN_LAST).is_file():
        yield f"no {WRITTEN_LAST}, which is written last"
        return
    for path in sorted(getattr(checkpoint, look)("*")):
        if path.is_file() and _is_cut_off(path):
            yield f"{path.relative_to(checkpoint)} is cut off at {path.stat().st_size:,} bytes"
        elif path.name == WRITTEN_LAST and not _is_state(path):
            yield f"{path.relative_to(checkpoint)} is not what a Trainer writes"
        elif path.name.endswith(_INDEX):
            parts = _parts(path)
            if parts is None:
                yield f"{path.relative_to(checkpoint)} is no index of files beside it"
                return
            yield from (f"no {name}, which {path.name} names" for name in parts if not (path.parent / name).is_file())


def _is_cut_off(path: Path) -> bool:
    if path.name == WRITTEN_LAST or path.name.endswith(_INDEX):
        return not _is_json(path)
    if path.suffix == ".safetensors":
        return not _is_safetensors(path)
    if path.suffix in _TORCH:
        return not _is_torch(path)
    return False


def _parts(index: Path) -> list[str] | None:
    """Returns the files that an index names; None where it can't be read so."""
    try:
        names = set(json.loads(index.read_text("utf-8")).get("weight_map", {}).values())
    except (ValueError, RecursionError, AttributeError, TypeError):
        return None
    return sorted(names) if all(isinstance(name, str) and Path(name).name == name for name in names) else None


def _is_state(path: Path) -> bool:
    """Whether transformers makes a run's state of it, which it does of whatever has the right names."""
    from transformers import TrainerState  # takes its time, and most folders hold no checkpoint

    try:
        state = TrainerState(**json.loads(path.read_text("utf-8")))
    except (ValueError, RecursionError, TypeError, AttributeError):
        return False
    steps = (state.global_step, state.max_steps)
    return (
        isinstance(state.log_history, list)
        and all(isinstance(line, dict) for line in state.log_history)
        and all(isinstance(step, int) and step >= 0 for step in steps)
    )


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        return False
    return True


def _is_safetensors(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy"):  # compares the head with the file's size
            return True
    except SafetensorError:
        return False


def _is_torch(path: Path) -> bool:
    """torch.save writes a ZIP archive, whose directory comes last; its older form can't be judged and is taken."""
    with path.open("rb") as file:
        head = file.read(2)
    return zipfile.is_zipfile(path) if head == b"PK" else len(head) == 2
