"""A run goes on from its last whole checkpoint, after whatever ended it.

Wraps ``get_last_checkpoint`` in ``llamafactory.hparams.parser``; the rest is called by :mod:`.trainers`.
"""

import functools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EEXIST, EFBIG, ENOSPC, ENOTEMPTY
from itertools import count
from pathlib import Path
from typing import Any

import torch
from llamafactory.extras import logging
from llamafactory.extras.constants import TRAINER_LOG

from llamafactory_ext.files import write_whole
from llamafactory_ext.training.whole_checkpoints import checkpoints, first_fault, last_whole, step_of


logger = logging.get_logger("llamafactory.ext")

_WRITE_ERRORS = (ENOSPC, EDQUOT, EFBIG)
# safetensors (Rust) tells the system's error as text; torch.save only that its archive came out wrong.
_WRITE_MESSAGES = ("No space left", "quota exceeded", "File too large", "PytorchStreamWriter", "inline_container.cc")


def install(upstream: Any) -> str | None:
    """Lets a run that goes on by itself go on from the last whole checkpoint."""
    get_last_checkpoint = upstream.get_last_checkpoint

    @functools.wraps(get_last_checkpoint)
    def get_last_whole_checkpoint(folder: str) -> str | None:
        return take_last_whole(folder)

    upstream.get_last_checkpoint = get_last_whole_checkpoint
    torch.serialization.register_package(50, _no_tag, _restore_on_numbered_cpu)
    return "wrapped"


def take_last_whole(output_dir: str) -> str | None:
    """Returns the newest whole checkpoint, None where there is none; half ones are renamed and named in the log.

    The new name does not begin with ``checkpoint-``: transformers counts and deletes whatever does.
    """
    for checkpoint in checkpoints(Path(output_dir)):
        fault = first_fault(checkpoint)
        if fault is not None:
            _set_aside(checkpoint, "incomplete", fault)
    last = last_whole(Path(output_dir))
    return None if last is None else str(last)


def choose_checkpoint(output_dir: str, asked: str | bool | None) -> str | bool | None:
    """Returns what the Trainer is to go on from, for what ``resume_from_checkpoint`` says.

    Raises:
        ValueError: the checkpoint that is asked for is not whole.
    """
    if asked is True:
        return take_last_whole(output_dir) or True
    if not asked:
        return None
    checkpoint = Path(asked)
    fault = first_fault(checkpoint) if checkpoint.is_dir() else "there is no such folder"
    if fault is not None:
        last = last_whole(checkpoint.parent)
        instead = "there is no whole one beside it" if last is None else f"{last} is whole"
        raise ValueError(f"`resume_from_checkpoint`: {checkpoint} can't be gone on from: {fault}; {instead}.")
    if not any(path.name.startswith(("optimizer", "global_step")) for path in checkpoint.iterdir()):
        logger.warning_rank0(f"{checkpoint} holds no optimizer (save_only_model?): the run goes on with a fresh one.")
    return str(checkpoint)


def clear_way(output_dir: str, checkpoint: str | bool | None) -> None:
    """Leaves nothing in the folder that would be taken for this run's own; called by one process, before training.

    A run that starts over keeps the checkpoints of the run before under other names: the next start would go on from
    them. Lines of ``trainer_log.jsonl`` after the step that is gone on from are taken out; these steps come again.
    """
    if checkpoint is None:
        for earlier in checkpoints(Path(output_dir)):
            shutil.rmtree(earlier.with_name(f"earlier-{earlier.name}"), ignore_errors=True)
            _set_aside(earlier, "earlier", "of the run before, this one starts over")
    rewind_log(Path(output_dir, TRAINER_LOG), step_of(Path(checkpoint)) if isinstance(checkpoint, str) else 0)


def rewind_log(log: Path, step: int) -> None:
    """Takes lines after ``step``, and one that was cut off, out of ``trainer_log.jsonl``."""
    if not log.is_file():
        return
    lines = log.read_text("utf-8", errors="replace").splitlines()
    kept = [line for line in lines if _step_of_line(line) <= step]
    if len(kept) < len(lines):
        write_whole(log, (f"{line}\n" for line in kept))


def _step_of_line(line: str) -> float:
    try:
        return float(json.loads(line)["current_steps"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")


def _set_aside(checkpoint: Path, prefix: str, why: str) -> None:
    """Renames a checkpoint. Processes do this at the same time: the one that comes first says so."""
    for number in count(1):
        target = checkpoint.with_name(f"{prefix}-{checkpoint.name}" + (f"-{number}" if number > 1 else ""))
        try:
            checkpoint.rename(target)
        except FileNotFoundError:
            return
        except OSError as err:
            if err.errno not in (ENOTEMPTY, EEXIST):
                raise
        else:
            logger.warning(f"{checkpoint} is not gone on from: {why}. It is {target.name} now, and can be deleted.")
            return


@contextmanager
def full_disk_told(output_dir: str) -> Iterator[None]:
    """Turns a write that failed into one line: which folder, how much is free, what to do.

    Raises:
        OSError: in place of whatever safetensors, torch or Python raised.
    """
    try:
        yield
    except Exception as err:
        if not _is_failed_write(err):
            raise
        raise OSError(_told(Path(output_dir), err)) from None


def _is_failed_write(err: BaseException | None) -> bool:
    while err is not None:
        if isinstance(err, OSError) and err.errno in _WRITE_ERRORS:
            return True
        if any(text in str(err) for text in _WRITE_MESSAGES):
            return True
        err = err.__cause__ or err.__context__
    return False


def _told(output_dir: Path, err: Exception) -> str:
    last = last_whole(output_dir)
    free = shutil.disk_usage(output_dir).free / 2**20
    start = "from the start" if last is None else f"from {last.name}"
    size = "" if last is None else f", a checkpoint takes {_size(last) / 2**20:,.1f} MiB"
    reason = next(iter(str(err).splitlines()), "") or type(err).__name__
    return (
        f"{output_dir} can't be written: {free:,.1f} MiB free{size} ({reason}). Make room, then give the same command "
        f"again: it goes on {start}. Fewer checkpoints: save_total_limit=2."
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _no_tag(storage: Any) -> None:
    """Storages are tagged as before."""


def _restore_on_numbered_cpu(storage: Any, location: str) -> Any:
    """Several processes on a CPU read the optimizer to ``cpu:0``, a name that torch gives but does not take."""
    kind, _, number = location.partition(":")
    return storage if kind == "cpu" and number.isdigit() else None
