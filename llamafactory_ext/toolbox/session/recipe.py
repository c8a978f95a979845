"""From a recipe to LLaMA-Factory's arguments: only what bears on the data, so that no card is needed."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import UsageError
from llamafactory_ext.toolbox.session.silence import silence


# Of the model's keys those that its tokenizer is loaded with; the rest (quantization, kernels) may ask for a card.
_MODEL_KEYS = {
    "model_name_or_path",
    "model_revision",
    "cache_dir",
    "hf_hub_token",
    "ms_hub_token",
    "om_hub_token",
    "use_fast_tokenizer",
    "split_special_tokens",
    "add_tokens",
    "add_special_tokens",
    "new_special_tokens_config",
    "trust_remote_code",
}
# Of the data's keys not these: the first would be read or written instead of the data, the second needs max_steps.
_LEFT_OUT = {"tokenized_path", "streaming", "buffer_size"}


@dataclass(frozen=True)
class Arguments:
    """LLaMA-Factory's own argument objects, and the entries to read."""

    model: Any
    data: Any
    training: Any
    entries: dict[str, Any]
    """`DatasetAttr` by name, of the data sets that are trained on."""
    validation: dict[str, Any]
    """The same of those that are validated on."""


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the keys of a recipe with `key=value` overrides, read as ``llamafactory-cli train`` reads them.

    Raises:
        UsageError: no such file, no YAML mapping, or a key that LLaMA-Factory does not know.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not path.is_file():
        raise UsageError(f"{path}: no such recipe; expected a YAML file such as yaml/2080ti_qlora.yaml")
    try:
        recipe = OmegaConf.load(path)
        values = OmegaConf.to_container(OmegaConf.merge(recipe, OmegaConf.from_cli(list(overrides))))
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as err:
        raise UsageError(f"{path} can't be read as a recipe: {err}") from err
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds {type(values).__name__}; expected keys and values")
    unknown = sorted(str(key) for key in values.keys() - _known_keys())
    if unknown:
        raise UsageError(f"unknown key {', '.join(unknown)} in {path} or on the command line: LLaMA-Factory has none")
    if values.get("stage", "sft") != "sft":
        raise UsageError(f"stage is {values['stage']!r}; only data for stage sft can be checked")
    return {str(key): value for key, value in values.items()}


def arguments(values: dict[str, Any], dataset: str, validation: str | None = None) -> Arguments:
    """Returns LLaMA-Factory's arguments for the recipe's `values`, with `dataset` to train on.

    Arguments:
        dataset: names in dataset_info.json, with commas, or the path of a ``.jsonl`` file of ChatTS records.
        validation: the same; None means what the recipe says (`eval_dataset`).

    Raises:
        UsageError: a data set that is not there, or a value that LLaMA-Factory refuses.
    """
    from llamafactory.hparams import get_train_args

    folder = values.get("dataset_dir", "data")
    entries = _entries(dataset, folder)
    named = validation or values.get("eval_dataset")
    held_out = _entries(named if isinstance(named, str) else ",".join(named), folder) if named else {}
    if values.get("predict_with_generate") and not values.get("do_train"):
        for entry in (*entries.values(), *held_out.values()):
            entry.unlabelled = True  # records may lack their answers, as they may in such a run
    wanted = (set(_data_keys()) | _MODEL_KEYS) - _LEFT_OUT
    chosen = {key: value for key, value in values.items() if key in wanted and value is not None}
    chosen |= {"stage": "sft", "do_train": True, "finetuning_type": "lora", "report_to": "none", "use_cpu": True}
    chosen |= {"seed": values.get("seed", 42), "dataset": ",".join(entries)}
    chosen |= {"eval_dataset": ",".join(held_out)} if held_out else {}
    chosen |= {"val_size": 0.0} if validation else {}
    if len(entries) == 1 and _is_file(dataset):
        chosen["dataset_dir"] = str(Path(dataset).absolute().parent)
    with tempfile.TemporaryDirectory() as output, silence():
        try:
            model, data, training, *_ = get_train_args({**chosen, "output_dir": f"{output}/none"})
        except (ValueError, TypeError) as err:
            raise UsageError(f"LLaMA-Factory refuses the recipe: {err}") from err
    for key, types in (("cutoff_len", int), ("val_size", int | float), ("preprocessing_num_workers", int | None)):
        if not isinstance(getattr(data, key), types):
            raise UsageError(f"{key} is {getattr(data, key)!r}; expected a number")
    return Arguments(model, data, training, entries, held_out)


def check_method(values: dict[str, Any]) -> None:
    """Looks at the recipe's keys of method and memory, which ``arguments`` replaces, as training will.

    Raises:
        UsageError: a value that LLaMA-Factory or the plugin refuses.
    """
    from llamafactory.hparams import FinetuningArguments

    from llamafactory_ext.training.arguments import is_count

    for key in ("lora_rank", "quantization_bit"):  # upstream does not check their types
        value = values.get(key)
        if value is not None and not is_count(value):
            raise UsageError(f"{key} is {value!r}; expected a whole number from 1")
    method = _in_use(FinetuningArguments)
    chosen = {key: values[key] for key in method.__dataclass_fields__ if values.get(key) is not None}
    try:
        method(**chosen)
    except (ValueError, TypeError, AttributeError) as err:
        raise UsageError(f"LLaMA-Factory refuses the recipe: {err}") from err


def _entries(names: str, folder: Any) -> dict[str, Any]:
    """Returns upstream's entries by name; a path has the entry that a file of ChatTS records would have."""
    from llamafactory.data.parser import get_dataset_list

    from llamafactory_ext.data.formats import FORMATS

    if _is_file(names):
        path = Path(names)
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
        entry = {"file_name": str(path.absolute()), "formatting": "chatts"}
        return {path.name: get_dataset_list([path.name], {path.name: entry})[0]}
    wanted = [name.strip() for name in names.split(",")]
    info = Path(folder) / "dataset_info.json"
    if not info.is_file():
        raise UsageError(f"{info}: no such file; name the folder of dataset_info.json with --dataset-dir")
    try:
        known = json.loads(info.read_text(encoding="utf-8"))
        missing = [name for name in wanted if name not in known]
        if missing:
            there = ", ".join(known) or "none"
            raise UsageError(
                f"no data set {', '.join(missing)} in {info}; there are: {there}. A path must end in .jsonl."
            )
        found = dict(zip(wanted, get_dataset_list(wanted, str(folder)), strict=True))
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as err:
        raise UsageError(f"{info}: {err}") from err
    for name, entry in found.items():
        if entry.formatting not in FORMATS:
            known_ones = ", ".join(FORMATS)
            raise UsageError(
                f"{info}: {name} has formatting {entry.formatting!r}; what can be checked is {known_ones}"
            )
    return found


def _is_file(name: str) -> bool:
    return name.endswith(".jsonl")


def _data_keys() -> set[str]:
    from llamafactory.hparams import DataArguments

    return set(_in_use(DataArguments).__dataclass_fields__)


def _in_use(base: Any) -> Any:
    """Returns the class of arguments that training reads in place of ``base``: the plugin's, with its keys."""
    from llamafactory.hparams.parser import _TRAIN_ARGS

    return next((one for one in _TRAIN_ARGS if issubclass(one, base)), base)


def _known_keys() -> set[str]:
    from llamafactory.hparams.parser import _TRAIN_ARGS

    return {key for one in _TRAIN_ARGS for key in one.__dataclass_fields__}
