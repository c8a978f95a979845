"""Tells from the command line whether a run has a use for the plugin, before LLaMA-Factory can be asked."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml


OWN_KEYS = (
    "timeseries_sft_lr",
    "train_timeseries_modules",
    "overlong_records",
    "embedding_on_cpu",
    "offload_checkpoints",
    "layers_without_checkpoints",
    "event_f1_steps",
    "event_f1_records",
)


def run_needs_plugin(arguments: Sequence[str]) -> bool:
    """True where a recipe or the command line names the template, one of our keys, or a data set in our formats.

    Arguments:
        arguments: ``sys.argv``. What can't be read counts as no need: LLaMA-Factory itself will say what is wrong.
    """
    values = _values(arguments)
    return values.get("template") == "chatts" or any(key in values for key in OWN_KEYS) or _names_own_dataset(values)


def _values(arguments: Sequence[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for position, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        if key.startswith("--"):  # LLaMA-Factory's parser takes `--key value`, `--key=value`, and hyphens in the key
            following = arguments[position + 1] if position + 1 < len(arguments) else ""
            values[key.lstrip("-").replace("-", "_")] = value if equals else following
        elif argument.endswith((".yaml", ".yml", ".json")) and Path(argument).is_file():
            values.update(_read(Path(argument)))
        elif equals:
            values[key] = value
    return values


def _read(path: Path) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
        # JSON may be indented with tabs, which YAML refuses.
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _names_own_dataset(values: dict[str, object]) -> bool:
    info = _read(Path(str(values.get("dataset_dir", "data"))) / "dataset_info.json")
    entries = [info.get(name) for key in ("dataset", "eval_dataset") for name in _names(values.get(key))]
    return any(word in json.dumps(entries) for word in ('"gdsh"', '"chatts"', '"timeseries"'))


def _names(value: object) -> list[str]:
    """Returns the names in ``a, b``, in a list, and in a list on the command line (``[a, b]``)."""
    names = value if isinstance(value, list) else str(value or "").strip("[]").split(",")
    return [str(name).strip() for name in names]
