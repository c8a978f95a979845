"""Tells from the command line whether a run has a use for the plugin, before anything of LLaMA-Factory can be asked."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml


OWN_KEYS = ("timeseries_sft_lr", "train_timeseries_modules", "overlong_records")


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
        if argument.endswith((".yaml", ".yml", ".json")) and Path(argument).is_file():
            values.update(_read(Path(argument)))
        elif argument.startswith("--"):
            values[argument.lstrip("-")] = arguments[position + 1] if position + 1 < len(arguments) else ""
        elif "=" in argument:
            key, _, value = argument.partition("=")
            values[key] = value
    return values


def _read(path: Path) -> dict[str, object]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _names_own_dataset(values: dict[str, object]) -> bool:
    info = _read(Path(str(values.get("dataset_dir", "data"))) / "dataset_info.json")
    wanted = values.get("dataset") or ""
    names = wanted if isinstance(wanted, list) else str(wanted).split(",")
    entries = json.dumps([info.get(str(name).strip()) for name in names])
    return any(word in entries for word in ('"gdsh"', '"chatts"', '"timeseries"'))
