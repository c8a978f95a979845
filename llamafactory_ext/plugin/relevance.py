"""Whether a run is ours: template ``chatts``, or a ChatTS checkpoint. Decided here and nowhere else.

``training.runs`` asks once a run's arguments are parsed, and notes the answer, which lasts until other arguments are
parsed in this process. What comes before, or apart from it, asks by the command line (:func:`run_needs_plugin`).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


TEMPLATE = "chatts"

OWN_KEYS = (
    "timeseries_sft_lr",
    "train_timeseries_modules",
    "overlong_records",
    "embedding_on_cpu",
    "offload_checkpoints",
    "layers_without_checkpoints",
    "stream_head",
    "stream_layers",
    "event_f1_steps",
    "event_f1_records",
    "constrained_answers",
)


_ours: tuple[Any, ...] = ()
_other: tuple[Any, ...] = ()


def is_ours(values: Mapping[str, Any]) -> bool:
    """True for a run with template ``chatts`` or of a ChatTS checkpoint.

    Arguments:
        values: a recipe's keys, or LLaMA-Factory's arguments by their names.
    """
    return values.get("template") == TEMPLATE or is_chatts_checkpoint(values)


def is_chatts_checkpoint(values: Mapping[str, Any]) -> bool:
    """True where ``model_name_or_path`` has a ``config.json`` with a ``ts`` section.

    Asks no network, which a run that is not ours would have to wait for: of a hub's checkpoints only those in the
    cache are known. One that is loaded for the first time is recognised when its config is there.
    """
    name = str(values.get("model_name_or_path") or "")
    config: object = Path(name, "config.json")
    if name and not Path(name).is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            config = try_to_load_from_cache(
                name, "config.json", cache_dir=values.get("cache_dir"), revision=values.get("model_revision")
            )
        except HFValidationError:
            return False
    return isinstance(config, str | Path) and isinstance(_read(Path(config)).get("ts"), dict)


def note_run(ours: bool, *arguments: Any) -> None:
    """Notes what was found out about the run that has these argument objects."""
    global _ours, _other
    _ours, _other = (arguments, ()) if ours else ((), arguments)


def is_our_run(argument: Any) -> bool:
    """True where this argument object belongs to the run that was noted last, and that one is ours."""
    return any(one is argument for one in _ours)


def is_other_run(argument: Any) -> bool:
    """True where it belongs to the run that was noted last, and that one is not ours."""
    return any(one is argument for one in _other)


def this_run() -> tuple[Any, ...]:
    """Returns the argument objects of the run that was noted last, where it is ours; else nothing."""
    return _ours


def this_run_is_ours() -> bool:
    """True where the run that was noted last is ours."""
    return bool(_ours)


def run_needs_plugin(arguments: Sequence[str]) -> bool:
    """True where the command line or its recipe tells of a run of ours, one of our keys, or a data set in our formats.

    Arguments:
        arguments: ``sys.argv``. What can't be read counts as no need: LLaMA-Factory itself will say what is wrong.
    """
    values = _values(arguments)
    return any(key in values for key in OWN_KEYS) or _names_own_dataset(values) or is_ours(values)


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
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _names_own_dataset(values: dict[str, object]) -> bool:
    info = _read(Path(str(values.get("dataset_dir", "data"))) / "dataset_info.json")
    entries = [info.get(name) for key in ("dataset", "eval_dataset") for name in _names(values.get(key))]
    said = json.dumps(entries)
    return any(f'"{word}"' in said for word in (*format_names(), "timeseries"))


def format_names() -> list[str]:
    """Returns the formats of data that this package adds: each is a file of its name, which is not imported here."""
    files = Path(__file__).parents[1].joinpath("data", "formats").glob("*.py")
    return sorted(file.stem for file in files if file.stem not in ("__init__", "format"))


def _names(value: object) -> list[str]:
    """Returns the names in ``a, b``, in a list, and in a list on the command line (``[a, b]``)."""
    names = value if isinstance(value, list) else str(value or "").strip("[]").split(",")
    return [str(name).strip() for name in names]
