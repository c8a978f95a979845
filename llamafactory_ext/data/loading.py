"""Loads a data set in one of our formats, and says what was found in it.

Wraps ``_load_single_dataset`` of ``llamafactory.data.loader``. Before it, records are brought to one shape, since
Arrow refuses a file whose column holds a string here and a list there. After it, what the converter noted is
collected: all faults in one message, counts and contradictions in the log. That is before the model is loaded.
"""

import copy
import functools
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from datasets import config as datasets_config
from datasets.exceptions import DatasetGenerationError
from llamafactory.extras import logging

from llamafactory_ext.data.entries import NOTES, RECORD, record_name
from llamafactory_ext.data.formats import FORMATS
from llamafactory_ext.data.formats.format import contradicting
from llamafactory_ext.data.normalise import arrow_may_read, write_lines
from llamafactory_ext.data.series_cache import shared_series
from llamafactory_ext.errors import listing
from llamafactory_ext.plugin.activation import require


logger = logging.get_logger("llamafactory.ext")  # below LLaMA-Factory's own, so that its handler shows it

Heard = Callable[[Any, dict[str, str]], None]
"""Takes the ``DatasetAttr`` of an entry that was read, and a digest of each file of its series, by the file's path."""

_listeners: list[Heard] = []

_WORDING = {
    "markers_moved": "prompts without marker, series put in front",
    "values_filled": "empty cells or words for a missing value, interpolated in place",
    "labels_over_filled": "labelled intervals that hold interpolated rows: there is no anomaly to be seen there",
    "series_beside": "series found in a folder beside `folder`",
    "names_differ": "series whose CSV is named differently from the picture (one name ends with the other)",
    "answers_rewritten": "answers rewritten as one JSON object",
    "intervals_renamed": "answer entries whose interval stood under another key, now `interval`",
    "normal_entries": "answer entries of a normal state (无异常, normal, …; `normal_types`) left out: no anomalies",
    "normal_beside_anomalies": "answers that held both anomalies and a normal state",
    "entries_without_interval": "answer entries without interval left out",
    "answers_emptied": "answers that have no interval left, and now say that nothing was found",
    "duplicate_entries": "duplicate answer entries left out",
}


def listen(heard: Heard | None) -> None:
    """Has a function hear of the series' files of each entry that is read, in place of the one before.

    What it raises stops the run, before the model is loaded. Of a stream it hears nothing.
    """
    _listeners[:] = [heard] if heard else []


def install(upstream: ModuleType) -> str | None:
    """Wraps the loader."""
    load = upstream._load_single_dataset

    @functools.wraps(load)
    def load_with_series(
        dataset_attr: Any, model_args: Any, data_args: Any, training_args: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if data_args.streaming and data_args.template == "chatts":
            training_args = _prepare_stream(training_args)

        def upstream_load(attr: Any) -> Any:
            return load(attr, model_args, data_args, training_args, *args, **kwargs)

        if dataset_attr.formatting not in FORMATS:
            return upstream_load(dataset_attr)
        require()
        dataset_attr = _asked(dataset_attr, training_args)
        dataset = _load_noted(dataset_attr, model_args, data_args, upstream_load)
        return _settle(dataset, dataset_attr, _source(dataset_attr, data_args))

    upstream._load_single_dataset = load_with_series  # type: ignore[attr-defined]
    return "wrapped"


def load_with_notes(dataset_attr: Any, model_args: Any, data_args: Any, training_args: Any) -> Any:
    """Returns the converted records of one entry, those with a fault among them; see column ``_notes``.

    Takes what upstream's ``_load_single_dataset`` takes; for tools that want to see more than a run does.
    """
    from llamafactory.data import loader

    def load(attr: Any) -> Any:
        return loader._load_single_dataset.__wrapped__(attr, model_args, data_args, training_args)

    return _load_noted(_asked(dataset_attr, training_args), model_args, data_args, load)


def _asked(dataset_attr: Any, training_args: Any) -> Any:
    """Returns an entry that says whether records may lack their answers: where a run only predicts."""
    dataset_attr = copy.copy(dataset_attr)
    predicts = training_args.predict_with_generate and not training_args.do_train
    dataset_attr.unlabelled = predicts or getattr(dataset_attr, "unlabelled", False)
    return dataset_attr


def _load_noted(dataset_attr: Any, model_args: Any, data_args: Any, load: Callable[[Any], Any]) -> Any:
    """The same with ``load``, upstream's loader for one ``DatasetAttr``."""
    source = _source(dataset_attr, data_args)
    # A folder for each user: datasets' own may be shared.
    cache = Path(model_args.cache_dir or datasets_config.HF_DATASETS_CACHE) / f"llamafactory_ext-{os.getuid()}"
    form = FORMATS[dataset_attr.formatting]

    def load_lines() -> Any:
        lines = form.lines(
            dataset_attr, source, Path(data_args.dataset_dir, getattr(dataset_attr, "folder", None) or "")
        )
        prepared = write_lines(lines, cache, source.stem)
        with shared_series(cache):
            return load(_pointing_to(dataset_attr, prepared))

    if not form.as_it_is:
        return load_lines()
    too_much = [file for file in _json_files(source) if not arrow_may_read(file)]
    if too_much and not source.is_file():
        raise ValueError(f"{too_much[0]} nests deeply, or has very long records; give it an entry of its own.")
    if not too_much:
        try:
            return load(dataset_attr)
        except DatasetGenerationError:
            # e.g. whole numbers in the first megabytes and fractions later, or flat lists beside nested ones
            if not source.is_file():
                raise
            logger.info_rank0(f"{source} mixes types in one column; reading it record by record.")
    return load_lines()


def _json_files(source: Path) -> list[Path]:
    """The files of an entry that Arrow reads as JSON; none where they lie elsewhere."""
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    return [file for file in files if file.suffix in (".json", ".jsonl") and file.is_file()]


def _prepare_stream(training_args: Any) -> Any:
    """Returns arguments with which a stream has records; has each process read it, unless the recipe says otherwise.

    Upstream makes a shard for each worker of the data loader, by default none. And by default one process reads for
    all, and hands out rows of a batch: records must be of one length then, and have one series each.
    """
    accelerator = training_args.accelerator_config
    if accelerator.dispatch_batches is None:
        accelerator.dispatch_batches = False
    training_args = copy.copy(training_args)
    training_args.dataloader_num_workers = max(1, training_args.dataloader_num_workers)
    return training_args


def _source(dataset_attr: Any, data_args: Any) -> Path:
    """The file of an entry, absolute, as messages name it."""
    return Path(data_args.dataset_dir, dataset_attr.dataset_name).resolve()


def _pointing_to(attr: Any, path: Path) -> Any:
    attr = copy.copy(attr)
    attr.dataset_name = str(path.absolute())
    return attr


def _settle(dataset: Any, dataset_attr: Any, source: Path) -> Any:
    """Raises for records that can't be used, logs what was done to the others, and drops the notes."""
    if not hasattr(dataset, "num_rows"):  # streaming: nothing can be collected ahead
        return dataset.map(functools.partial(_raise_on_fault, source=str(source)), remove_columns=[NOTES])
    faults: list[str] = []
    totals: Counter[str] = Counter()
    records: Counter[str] = Counter()
    names: list[str] = []
    said: list[tuple[str, str]] = []
    files: dict[str, list[str]] = {}
    digests: dict[str, str] = {}
    for number, example in enumerate(dataset.select_columns([RECORD, NOTES])):
        note = json.loads(example[NOTES])
        names.append(record_name(example, number))
        said.append((note["asked"], note["answered"]))
        if note["fault"]:
            faults.append(f"{names[-1]}: {note['fault']}")
            continue
        counts = {key: note[key] for key in _WORDING if note[key]}
        totals.update(counts)
        for kind, text in note["remarks"]:
            if kind != "name":  # which are counted
                files.setdefault(kind, []).append(text)
        records.update(counts.keys())
        digests.update(note["files"])
    if faults:
        lines = [f"{source}: {len(faults)} of {len(dataset)} records can't be used.", *listing(faults, len(faults))]
        raise ValueError("\n".join(lines))
    for heard in _listeners:
        heard(dataset_attr, digests)
    logger.info_rank0(f"{source}: {len(dataset)} records.")
    for key, wording in _WORDING.items():
        if totals[key]:
            logger.info_rank0(f"  {totals[key]} {wording} (in {records[key]} records).")
    for texts in files.values():
        once = list(dict.fromkeys(texts))
        logger.info_rank0(f"  {once[0]}" + (f" … and {len(once) - 1} other files alike." if len(once) > 1 else "."))
    later = sorted(row for rows in contradicting(said) for row in rows if said[row] != said[rows[0]])
    if later:
        found = f"{len(later)} records contradict an earlier one: same series, same prompt, another answer"
        advice = "`llamafactory-ext prepare --merge-points` makes one record of each such point"
        lines = listing((names[row] for row in later), len(later))
        logger.warning_rank0("\n".join([f"{source}: {found}; {advice}:", *lines]))
    return dataset.remove_columns([NOTES])


def _raise_on_fault(example: dict[str, Any], source: str) -> dict[str, Any]:
    fault = json.loads(example[NOTES])["fault"]
    if fault:
        raise ValueError(f"{source}: {example[RECORD] or 'a record'}: {fault}")
    return example
