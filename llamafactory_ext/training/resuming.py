"""A run resumes from its last whole checkpoint, after whatever ended it.

Wraps ``get_last_checkpoint`` in ``llamafactory.hparams.parser``; the rest is called by :mod:`.lasting`.
"""

import functools
import json
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EEXIST, EFBIG, ENOSPC, ENOTEMPTY, EROFS
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from llamafactory.extras import logging
from llamafactory.extras.constants import TRAINER_LOG
from transformers import TrainerCallback

from llamafactory_ext.files import write_whole
from llamafactory_ext.plugin.relevance import this_run_is_ours
from llamafactory_ext.training.folder import is_finished
from llamafactory_ext.training.whole_checkpoints import checkpoints, first_fault, last_whole, step_of


logger = logging.get_logger("llamafactory.ext")

_MEASURES_NOTHING = {"current_steps", "total_steps", "epoch", "percentage", "elapsed_time", "remaining_time"}
_WRITE_ERRORS = (ENOSPC, EDQUOT, EFBIG, EROFS)
# safetensors (Rust) tells the system's error as text; torch.save only that its archive came out wrong.
_WRITE_MESSAGES = ("No space left", "quota exceeded", "File too large", "PytorchStreamWriter", "inline_container.cc")
# torch, oneDNN beneath it, C++ and the system itself.
_MEMORY_MESSAGES = ("can't allocate memory", "could not create a primitive", "bad_alloc", "Cannot allocate memory")


def install(upstream: Any) -> str | None:
    """Lets a run of ours that resumes by itself do so from the last whole checkpoint."""
    get_last_checkpoint = upstream.get_last_checkpoint

    @functools.wraps(get_last_checkpoint)
    def get_last_whole_checkpoint(folder: str) -> str | None:
        if this_run_is_ours():
            return take_last_whole(folder)
        found: str | None = get_last_checkpoint(folder)
        return found

    upstream.get_last_checkpoint = get_last_whole_checkpoint
    return "wrapped"


@functools.cache
def name_numbered_cpus() -> None:
    """Lets ``torch.load`` take ``cpu:0`` for a place: several processes on a CPU read the optimizer to there, a name
    that torch gives but does not take. For the rest of the process; places that torch knows stay as they are."""
    torch.serialization.register_package(50, _no_tag, _restore_on_numbered_cpu)


def take_last_whole(output_dir: str) -> str | None:
    """Returns the newest whole checkpoint, None where there is none; half ones are renamed and named in the log.

    The new name does not begin with ``checkpoint-``: transformers counts and deletes whatever does.
    """
    for checkpoint in checkpoints(Path(output_dir)) if os.environ.get("LOCAL_RANK", "0") == "0" else ():
        fault = first_fault(checkpoint)
        if fault is not None:
            _set_aside(checkpoint, "incomplete", fault)
    last = last_whole(Path(output_dir))
    return None if last is None else str(last)


def choose_checkpoint(output_dir: str, asked: str | bool | None) -> str | bool | None:
    """Returns what the Trainer is to resume from, for what ``resume_from_checkpoint`` says.

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
        raise ValueError(f"`resume_from_checkpoint`: {checkpoint} can't be resumed from: {fault}; {instead}.")
    if not any(path.name.startswith(("optimizer", "global_step")) for path in checkpoint.iterdir()):
        logger.warning_rank0(f"{checkpoint} holds no optimizer (save_only_model?): the run resumes with a fresh one.")
    return str(checkpoint)


def require_one_step(checkpoint: str | bool | None) -> None:
    """Raises ValueError where the processes of a run would resume from different steps: they would wait for ever."""
    state = PartialState()
    if state.num_processes == 1:
        return
    own = (step_of(Path(checkpoint)) if isinstance(checkpoint, str) else 0, socket.gethostname())
    found = gather_object([own])
    if len({step for step, _ in found}) > 1:
        told = ", ".join(f"process {number} on {host}: step {step}" for number, (step, host) in enumerate(found))
        raise ValueError(
            f"The processes resume from different checkpoints ({told}): give them one `output_dir` that all see, or "
            "copy the newest checkpoint to each machine."
        )


class RefuseNoStep(TrainerCallback):  # type: ignore[misc]
    """Stops a run that has no step left and its final model already: nothing would be trained."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < state.max_steps:
            return
        if is_finished(Path(args.output_dir), state.global_step):
            raise ValueError(
                f"{args.output_dir}: this run has ended at step {state.global_step} of {state.max_steps}, no step is "
                "left. Raise `num_train_epochs` or `max_steps`, set `overwrite_output_dir: true` to start over, or "
                "name another `output_dir`."
            )
        logger.warning_rank0(f"No step is left after {state.global_step}: only the final model is written.")


def order_by_step(newest: Path) -> None:
    """Gives older checkpoints than this one times in the order of their steps, where the clock says otherwise.

    transformers deletes by time: after a clock was set back, that would be the newest.
    """
    older = [path for path in checkpoints(newest.parent) if path != newest]
    times = [path.stat().st_mtime for path in (newest, *older)]
    if times != sorted(times, reverse=True):
        for number, path in enumerate(older):
            os.utime(path, (times[0] - 2 * number - 2,) * 2)


def clear_way(output_dir: str, checkpoint: str | bool | None) -> None:
    """Leaves nothing in the folder that would be taken for this run's own; called by one process, before training.

    A run that starts over keeps the checkpoints of the run before under other names: the next start would resume
    from them. Lines of ``trainer_log.jsonl`` after the step to resume from are taken out; these steps come again.
    """
    if checkpoint is None:
        for earlier in checkpoints(Path(output_dir)):
            _set_aside(earlier, "earlier", "of the run before, this one starts over")
    rewind_log(Path(output_dir, TRAINER_LOG), step_of(Path(checkpoint)) if isinstance(checkpoint, str) else 0)


def rewind_log(log: Path, step: int) -> None:
    """Takes lines after ``step``, one that ended the run, and one that was cut off out of ``trainer_log.jsonl``."""
    if not log.is_file():
        return
    lines = log.read_text("utf-8", errors="replace").splitlines()
    kept = [line for line in lines if _stays(line, step)]
    if len(kept) < len(lines):
        write_whole(log, (f"{line}\n" for line in kept))


def _stays(line: str, step: int) -> bool:
    try:
        entry = json.loads(line)
        return float(entry["current_steps"]) <= step and not entry.keys() <= _MEASURES_NOTHING
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _set_aside(checkpoint: Path, prefix: str, why: str) -> None:
    """Renames a checkpoint. Processes do this at the same time: the one that comes first says so."""
    for number in count(1):
        target = checkpoint.with_name(f"{prefix}-{checkpoint.name}" + (f"-{number}" if number > 1 else ""))
        if os.path.lexists(target):  # an empty folder would be replaced
            continue
        try:
            checkpoint.rename(target)
        except FileNotFoundError:
            return
        except OSError as err:
            if err.errno not in (ENOTEMPTY, EEXIST):
                raise
        else:
            logger.warning(f"{checkpoint} is not resumed from: {why}. It is {target.name} now, and can be deleted.")
            return


class FullDiskError(OSError):
    """A write failed, or memory: told in one line."""


@contextmanager
def full_disk_told(output_dir: str) -> Iterator[None]:
    """Turns a write that failed, or a limit of memory that was met, into one line: what it lacks, what to do.

    Raises:
        FullDiskError: in place of whatever safetensors, torch or Python raised.
    """
    try:
        yield
    except FullDiskError:  # told already, further in
        raise
    except Exception as err:
        if not _is_failed_write(err, output_dir) and not _is_out_of_memory(err):
            raise
        raise FullDiskError(_told(Path(output_dir), err)) from None


def _is_failed_write(err: BaseException | None, output_dir: str) -> bool:
    while err is not None:
        if isinstance(err, OSError) and err.errno in _WRITE_ERRORS:
            return True
        if isinstance(err, PermissionError) and str(err.filename).startswith(output_dir):
            return True
        if any(text in str(err) for text in _WRITE_MESSAGES):
            return True
        err = err.__cause__ or err.__context__
    return False


def _is_out_of_memory(err: BaseException | None) -> bool:
    """Whether this process was refused memory; a card's is another matter."""
    while err is not None:
        if isinstance(err, MemoryError) or any(text in str(err) for text in _MEMORY_MESSAGES):
            return True
        err = err.__cause__ or err.__context__
    return False


def _told(output_dir: Path, err: Exception) -> str:
    last = last_whole(output_dir)
    start = "starts again" if last is None else f"resumes from {last.name}"
    reason = next(iter(str(err).splitlines()), "") or type(err).__name__
    if _is_out_of_memory(err):
        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        limit = "" if most == resource.RLIM_INFINITY else f", which may have {most / 2**30:,.2f} GiB (ulimit -v)"
        return (
            f"There is no memory left for this process{limit} ({reason}). Allow it more, then give the same command "
            f"again: it {start}."
        )
    lack, remedy = _lack(output_dir, last, str(err))
    return f"{output_dir} can't be written: {lack} ({reason}). {remedy}, then give the same command again: it {start}."


def _lack(output_dir: Path, last: Path | None, text: str) -> tuple[str, str]:
    """Returns what is wrong with the place, and what to do."""
    system = os.statvfs(output_dir)
    if system.f_flag & os.ST_RDONLY or "Read-only file system" in text:
        return "its file system is read-only", "Make it writable"
    if "Permission denied" in text or not os.access(output_dir, os.W_OK):
        return "it may not be written to by this user", "Allow it"
    if system.f_files and not system.f_favail:
        return "its file system has no inode free, for all the room", "Delete files of any size"
    longest = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if longest != resource.RLIM_INFINITY and last is not None and _size(last) > longest:
        return f"a file may have {longest / 2**20:,.1f} MiB here (ulimit -f)", "Allow longer files"
    free = system.f_bavail * system.f_frsize / 2**20
    size = "" if last is None else f", a checkpoint takes {_size(last) / 2**20:,.1f} MiB"
    return f"{free:,.1f} MiB free{size}", "Make room (fewer checkpoints: save_total_limit=2)"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _no_tag(storage: Any) -> None:
    """Storages are tagged as before."""


def _restore_on_numbered_cpu(storage: Any, location: str) -> Any:
    kind, _, number = location.partition(":")
    return storage if kind == "cpu" and number.isdigit() else None
