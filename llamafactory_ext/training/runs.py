"""A run becomes known: its arguments have been parsed, nothing has been looked for, loaded or written yet.

Wraps ``_parse_train_args`` and ``_parse_infer_args`` of ``llamafactory.hparams.parser``, which return every argument
object. Here it is decided whether the run is ours; one that is not gets its arguments back as upstream makes them.
"""

import functools
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from llamafactory.extras import logging
from llamafactory.hparams import DataArguments, FinetuningArguments

from llamafactory_ext.data import loading
from llamafactory_ext.plugin.relevance import TEMPLATE, is_chatts_checkpoint, is_ours, note_run, this_run
from llamafactory_ext.training import folder
from llamafactory_ext.training.arguments import SeriesDataArguments, SeriesFinetuningArguments
from llamafactory_ext.training.asking import write_asking
from llamafactory_ext.training.engines import refuse_other_engines, report_known_faults
from llamafactory_ext.training.whole_checkpoints import read_json


logger = logging.get_logger("llamafactory.ext")

_described: dict[str, dict[str, Any]] = {}  # what the run that was noted last is trained with


def install_train(upstream: Any) -> str | None:
    """Wraps ``_parse_train_args``."""
    parse = upstream._parse_train_args

    @functools.wraps(parse)
    def parse_and_note(args: Any = None) -> Any:
        parsed = parse(args)
        loading.listen(None)
        if note(*parsed):
            model_args, data_args, training_args, finetuning_args, _ = parsed
            check_template(model_args, data_args, text_only=finetuning_args.stage == "pt")
            refuse_other_engines(model_args, finetuning_args)
            if training_args.do_train:
                report_known_faults(model_args.flash_attn == "fa2", training_args.gradient_accumulation_steps)
                _check_generation(training_args)
                _described.clear()  # now: LLaMA-Factory changes some of them later on
                _described.update(folder.describe(model_args, data_args, training_args, finetuning_args))
                _look_into_folder(training_args)
                loading.listen(functools.partial(_hear_of_series, data_args, training_args))
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
            _warn_of_lower_adapters(model_args)
            check_template(model_args, data_args, text_only=bool(model_args.export_dir) and data_args.template is None)
        return parsed

    upstream._parse_infer_args = parse_and_note
    return "wrapped"


def begin_training() -> None:
    """The data have been read and the model is about to be trained: the folder becomes this run's."""
    _, data_args, training_args, *_ = this_run()
    if training_args.do_train and is_first_process():
        output_dir = Path(training_args.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        folder.lock(output_dir)
        folder.write_record(output_dir, _described)
        write_asking(output_dir, data_args)


def is_first_process() -> bool:
    """True in one process of a run; known before torch connects them."""
    return os.environ.get("RANK", "0") == "0"


def _look_into_folder(training_args: Any) -> None:
    """Raises ValueError where another run is in the folder, or its result."""
    output_dir = Path(training_args.output_dir)
    if not output_dir.is_dir():
        return
    if is_first_process():
        folder.lock(output_dir)
    if not training_args.overwrite_output_dir:
        folder.refuse_another_run(output_dir, _described)


def _hear_of_series(data_args: Any, training_args: Any, entry: Any, digests: dict[str, str]) -> None:
    """Adds the series of a data set that is trained on to what is described; raises ValueError where they are others
    than those of the run in the folder. Files are named as seen from the entry's folder, which may be moved."""
    files = Path(data_args.dataset_dir, getattr(entry, "folder", None) or "").resolve()
    now = {os.path.relpath(Path(path).resolve(), files): digest for path, digest in digests.items()}
    for name, held in _described["data"]["dataset"].items():
        known = held["entry"] or {}
        if now and (known.get("file_name"), known.get("folder")) == (
            entry.dataset_name,
            getattr(entry, "folder", None),
        ):
            if not training_args.overwrite_output_dir:
                folder.refuse_other_series(Path(training_args.output_dir), name, now)
            _described.setdefault("series", {})[name] = now


def _check_generation(training_args: Any) -> None:
    if training_args.predict_with_generate and str(training_args.eval_strategy) not in ("no", "IntervalStrategy.NO"):
        raise ValueError(
            "`predict_with_generate` does not go with `eval_strategy` while training: every evaluation would answer "
            "all validation records. Set `event_f1_steps`, which answers some, and predict when it is trained "
            "(yaml/predict.yaml)."
        )


def _warn_of_lower_adapters(model_args: Any) -> None:
    """An adapter that was trained on top of another one is nothing without it."""
    adapters = [Path(adapter) for adapter in model_args.adapter_name_or_path or ()]
    for path in adapters:
        record = read_json(path / folder.RECORD) or read_json(path.parent / folder.RECORD)
        below = record.get("model", {}).get("adapter_name_or_path", {})
        if record.get("method", {}).get("create_new_adapter") and len(adapters) <= len(below):
            logger.warning_rank0(
                f"{path} was trained on top of adapter {', '.join(below)}, which is not named here: name both, in "
                "that order, in `adapter_name_or_path`."
            )


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
