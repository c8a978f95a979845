"""A folder belongs to one run: what was trained with lies beside the checkpoints, and one process writes there.

``chatts_run.json`` holds what a run's result depends on: data, method and model, and of each series' file a digest of
its numbers, as they were read. Another run in a folder with a checkpoint or a model is refused. Settings that may
differ between two starts of one run (more epochs, logging, saving) are named in the log. Called by :mod:`.runs` when
the arguments are known, when a data set has been read, and when the model is about to be trained, which is when it is
written: a start that fails before that leaves no trace.
"""

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from llamafactory.extras import logging
from llamafactory.extras.constants import CHECKPOINT_NAMES

from llamafactory_ext.files import write_whole
from llamafactory_ext.training.whole_checkpoints import WRITTEN_LAST, checkpoints, first_fault, read_json


logger = logging.get_logger("llamafactory.ext")

RECORD = "chatts_run.json"
LOCK, OWNER = ".chatts_run.lock", ".chatts_run.owner.json"
_WAIT = 3  # seconds: for worker processes of a run that has just been killed
_SHOWN = 5
_START_OVER = "set `overwrite_output_dir: true` to start over, or name another `output_dir`."

# Arguments by which two runs differ in their result. Model, adapters and data are described by what they hold.
_DATA = (
    "template cutoff_len train_on_prompt mask_history packing neat_packing val_size max_samples overlong_records "
    "mix_strategy interleave_probs streaming buffer_size default_system tool_format tokenized_path"
)
_METHOD = (
    "stage finetuning_type lora_rank lora_alpha lora_dropout lora_target additional_target use_rslora use_dora "
    "loraplus_lr_ratio pissa_init create_new_adapter freeze_trainable_layers freeze_trainable_modules "
    "freeze_extra_modules train_timeseries_modules timeseries_sft_lr pure_bf16 use_galore use_apollo use_badam "
    "use_muon use_adam_mini pref_beta pref_loss pref_ftx ref_model learning_rate lr_scheduler_type "
    "lr_scheduler_kwargs warmup_ratio warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon "
    "max_grad_norm label_smoothing_factor neftune_noise_alpha per_device_train_batch_size "
    "gradient_accumulation_steps seed data_seed fp16 bf16"
)
_MODEL = "model_revision quantization_bit quantization_method resize_vocab add_tokens add_special_tokens rope_scaling"
_MAY_DIFFER = (
    "num_train_epochs max_steps logging_steps save_strategy save_steps save_total_limit save_only_model eval_strategy "
    "eval_steps eval_dataset event_f1_steps event_f1_records report_to world_size"
)

_locks: dict[Path, FileLock] = {}


def describe(model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any) -> dict[str, dict[str, Any]]:
    """Returns what a run is trained with, as JSON holds it: parts ``data``, ``method``, ``model``, ``may differ``."""
    every = {**vars(model_args), **vars(data_args), **vars(finetuning_args), **vars(training_args)}
    every["world_size"] = training_args.world_size

    def chosen(names: str) -> dict[str, Any]:
        return {name: every[name] for name in names.split() if name in every}

    adapters = {Path(adapter).name: _weights(Path(adapter)) for adapter in model_args.adapter_name_or_path or ()}
    found = {
        "data": {"dataset": dict(_entries(data_args)), **chosen(_DATA)},
        "method": chosen(_METHOD),
        "model": {"model_name_or_path": _model(model_args), "adapter_name_or_path": adapters, **chosen(_MODEL)},
        "may differ": chosen(_MAY_DIFFER),
    }
    described: dict[str, dict[str, Any]] = json.loads(json.dumps(found, default=str, ensure_ascii=False))
    return described


def _entries(data_args: Any) -> Iterator[tuple[str, Any]]:
    """Yields data sets by their names: the entry, and a digest of its file."""
    info = read_json(Path(str(data_args.dataset_dir), "dataset_info.json"))
    for name in data_args.dataset or ():
        entry = info.get(name)
        path = Path(str(data_args.dataset_dir), str(entry.get("file_name", ""))) if isinstance(entry, dict) else Path()
        content = None
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        yield name, {"entry": entry, "content": content}


def _model(model_args: Any) -> Any:
    """A hub's name; of a folder what it holds, since it may lie elsewhere at the next start."""
    folder = Path(str(model_args.model_name_or_path))
    return _weights(folder) if folder.is_dir() else str(model_args.model_name_or_path)


def _weights(folder: Path) -> dict[str, int]:
    """Returns the sizes of config and weights of a model or adapter, by their names."""
    kept = [path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin") or path.name == "config.json"]
    return {path.name: path.stat().st_size for path in sorted(kept) if path.is_file()}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns what differs, ``learning_rate 0.001 (here 0.002)``; what only one of the two knows is passed over."""
    found = []
    for key in before.keys() & now.keys():
        if before[key] == now[key]:
            continue
        if isinstance(before[key], dict) and isinstance(now[key], dict):
            told = _told(before[key], now[key])
        else:
            told = f" {before[key]} (here {now[key]})"
        found.append(f"{key}{told}")
    return sorted(found)


def _told(before: dict[str, Any], now: dict[str, Any]) -> str:
    if before.keys() != now.keys():
        return f" {', '.join(before) or 'none'} (here {', '.join(now) or 'none'})"
    return f" {', '.join(key for key in before if before[key] != now[key])} of other content"


def refuse_another_run(folder: Path, now: Mapping[str, Any]) -> None:
    """Raises ValueError, in one line that names what differs, where the folder holds another run's result."""
    before = read_json(folder / RECORD)
    if not _holds_result(folder):
        return
    if not before:
        logger.warning_rank0(f"{folder} holds checkpoints and no {RECORD}: whether they are of this run is not known.")
        return
    found = [one for part in ("data", "method", "model") for one in differences(before.get(part, {}), now[part])]
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ValueError(f"{folder} holds a run with {', '.join(found[:_SHOWN])}{more}: {_START_OVER}")
    allowed = differences(before.get("may differ", {}), now["may differ"])
    if allowed:
        logger.info_rank0(f"Otherwise than when {folder} was begun: {', '.join(allowed)}.")


def refuse_other_series(folder: Path, name: str, now: Mapping[str, str]) -> None:
    """The same where a data set's annotations are those of the run in the folder, but not the numbers of its series.

    Arguments:
        name: the data set's.
        now: a digest of each file, as ``series`` in the record holds them.
    """
    before = read_json(folder / RECORD).get("series", {}).get(name, {})
    found = sorted(file for file in before.keys() | now.keys() if before.get(file) != now.get(file))
    if before and found and _holds_result(folder):
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ValueError(
            f"{folder} holds a run with series of other content in {name}: {', '.join(found[:_SHOWN])}{more}: "
            f"{_START_OVER}"
        )


def _holds_result(folder: Path) -> bool:
    return bool(checkpoints(folder)) or any((folder / name).exists() for name in CHECKPOINT_NAMES)


def write_record(folder: Path, now: Mapping[str, Any]) -> None:
    """Writes what is trained with beside the checkpoints to come."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RECORD, [json.dumps(now, ensure_ascii=False, indent=1), "\n"])


def is_finished(folder: Path, step: int) -> bool:
    """True where the folder holds the final model of a run that ended at this step or later."""
    ended = read_json(folder / WRITTEN_LAST).get("global_step")
    if not isinstance(ended, int) or ended < step or first_fault(folder, deep=False) is not None:
        return False
    return any((folder / name).exists() for name in CHECKPOINT_NAMES)


def lock(folder: Path) -> None:
    """Keeps other runs out of the folder until this process ends; called by the first process of a run.

    Raises:
        ValueError: a run is in there; the message names its process and host.
    """
    folder = folder.resolve()
    held = _locks.setdefault(folder, FileLock(folder / LOCK, timeout=_WAIT, thread_local=False))
    if held.is_locked:
        return
    try:
        held.acquire()
    except Timeout:
        owner = read_json(folder / OWNER)
        raise ValueError(
            f"{folder} is in use by process {owner.get('process', '?')} on host {owner.get('host', '?')}: wait until "
            "it has ended, or name another `output_dir`."
        ) from None
    except (OSError, NotImplementedError) as err:  # no place to write, or a file system without locks
        logger.warning_rank0(f"{folder} can't be locked ({err}): start no other run there.")
        return
    write_whole(folder / OWNER, [json.dumps({"process": os.getpid(), "host": socket.gethostname()})])
