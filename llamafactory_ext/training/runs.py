"""A run becomes known: its arguments have been parsed, nothing has been looked for, loaded or written yet.

Wraps ``_parse_train_args`` and ``_parse_infer_args`` of ``llamafactory.hparams.parser``, which return every argument
object. Here it is decided whether the run is ours; one that is not gets its arguments back as upstream makes them.
"""

import functools
from dataclasses import fields
from typing import Any

from llamafactory.hparams import DataArguments, FinetuningArguments

from llamafactory_ext.plugin.relevance import TEMPLATE, is_chatts_checkpoint, is_ours, note_run
from llamafactory_ext.training.arguments import SeriesDataArguments, SeriesFinetuningArguments


def install_train(upstream: Any) -> str | None:
    """Wraps ``_parse_train_args``."""
    parse = upstream._parse_train_args

    @functools.wraps(parse)
    def parse_and_note(args: Any = None) -> Any:
        parsed = parse(args)
        if note(*parsed):
            model_args, data_args, _, finetuning_args, _ = parsed
            check_template(model_args, data_args, text_only=finetuning_args.stage == "pt")
        return parsed

    upstream._parse_train_args = parse_and_note
    return "wrapped"


def install_infer(upstream: Any) -> str | None:
    """Wraps ``_parse_infer_args``: chat, API and export."""
    parse = upstream._parse_infer_args

    @functools.wraps(parse)
    def parse_and_note(args: Any = None) -> Any:
        parsed = parse(args)
        if note(*parsed):
            model_args, data_args, _, _ = parsed
            check_template(model_args, data_args, text_only=bool(model_args.export_dir) and data_args.template is None)
        return parsed

    upstream._parse_infer_args = parse_and_note
    return "wrapped"


def note(*arguments: Any) -> bool:
    """Notes whether the run with these arguments is ours, and returns it."""
    model_args, data_args, *_ = arguments
    ours = is_ours(vars(model_args) | vars(data_args))
    if not ours:
        for one in arguments:
            hand_back(one)
    note_run(ours, *arguments)
    return ours


def hand_back(arguments: Any) -> None:
    """Makes arguments what they are without the plugin: upstream's class, without our keys.

    Raises:
        ValueError: the run sets one of our keys, which would do nothing.
    """
    for ours, base in ((SeriesDataArguments, DataArguments), (SeriesFinetuningArguments, FinetuningArguments)):
        if type(arguments) is not ours:
            continue
        for key in [key for key in fields(ours) if key.name not in base.__dataclass_fields__]:
            if getattr(arguments, key.name) != key.default:
                raise ValueError(
                    f"`{key.name}` is for runs of a ChatTS checkpoint with `template: {TEMPLATE}`, and this is none: "
                    "set the template, or remove the key."
                )
            delattr(arguments, key.name)
        arguments.__class__ = base


def check_template(model_args: Any, data_args: Any, text_only: bool) -> None:
    """Raises ValueError where a ChatTS checkpoint is given another template, which knows no series."""
    if data_args.template != TEMPLATE and not text_only and is_chatts_checkpoint(vars(model_args)):
        raise ValueError(wrong_template(model_args.model_name_or_path, data_args.template))


def wrong_template(checkpoint: str, template: str | None = None) -> str:
    """Says in one line what to set."""
    found = f", and `template` is {template!r}" if template else ""
    return f"{checkpoint} is a ChatTS checkpoint{found}: set `template: {TEMPLATE}`."
