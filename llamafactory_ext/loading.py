"""Loads a data set in one of our formats, and says what was found in it.

Wraps ``_load_single_dataset`` of ``llamafactory.data.loader``. Before it, records are brought to one shape, since
Arrow refuses a file whose column holds a string here and a list there. After it, what the converter noted is
collected: all faults in one message, counts in the log. That is before the model is loaded.
"""

import copy
import functools
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from datasets import config as datasets_config
from datasets.exceptions import DatasetGenerationError
from llamafactory.extras import logging

from llamafactory_ext import __version__
from llamafactory_ext.dataset_entry import FORMATS, NOTES, RECORD
from llamafactory_ext.gdsh import read_annotations
from llamafactory_ext.register import require


logger = logging.get_logger("llamafactory.ext")  # below LLaMA-Factory's own, so that its handler shows it

_SHOWN = 20

_WORDING = {
    "markers_moved": "prompts without marker, series put in front",
    "values_filled": "values that were no finite number, interpolated in place",
    "series_beside": "series found in a folder beside `folder`",
    "names_differ": "series whose CSV is named differently from the picture (one name ends with the other)",
    "answers_rewritten": "answers rewritten as one JSON object",
    "entries_without_interval": "answer entries without interval left out",
    "answers_emptied": "answers that have no interval left, and now say that nothing was found",
    "duplicate_entries": "duplicate answer entries left out",
}


def install(upstream: ModuleType) -> str | None:
    """Wraps the loader."""
    load = upstream._load_single_dataset

    @functools.wraps(load)
    def load_with_series(
        dataset_attr: Any, model_args: Any, data_args: Any, training_args: Any, *args: Any, **kwargs: Any
    ) -> Any:
        def upstream_load(attr: Any) -> Any:
            return load(attr, model_args, data_args, training_args, *args, **kwargs)

        if dataset_attr.formatting not in FORMATS:
            return upstream_load(dataset_attr)
        require()
        cache = Path(model_args.cache_dir or datasets_config.HF_DATASETS_CACHE) / "llamafactory_ext"
        source = Path(data_args.dataset_dir, dataset_attr.dataset_name).resolve()  # to be read in messages
        dataset = _load(dataset_attr, source, cache, upstream_load)
        return _settle(dataset, source)

    upstream._load_single_dataset = load_with_series  # type: ignore[attr-defined]
    return "wrapped"


def _load(attr: Any, source: Path, cache: Path, upstream_load: Callable[[Any], Any]) -> Any:
    if attr.formatting == "gdsh":
        if not source.is_file():
            raise FileNotFoundError(f"{source} is not a file; `file_name` of a gdsh entry names one JSON file.")
        lines = _write_lines(source, cache, _annotation_lines(attr, source), str(attr.__dict__))
        return upstream_load(_pointing_to(attr, lines))
    try:
        return upstream_load(attr)
    except DatasetGenerationError:
        # e.g. whole numbers in the first megabytes and fractions later, or flat lists beside nested ones
        if not source.is_file():
            raise
        logger.info_rank0(f"{source} mixes types in one column; reading it record by record.")
        lines = _write_lines(source, cache, _chatts_lines(attr, source), attr.timeseries)
        return upstream_load(_pointing_to(attr, lines))


def _pointing_to(attr: Any, path: Path) -> Any:
    attr = copy.copy(attr)
    attr.dataset_name = str(path.absolute())
    return attr


def _write_lines(source: Path, cache: Path, lines: Iterable[str], settings: str) -> Path:
    """Writes the prepared records beside datasets' own cache, under a name that tells what they were made from."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(f"{source}\0{settings}\0{__version__}".encode())
    target = cache / f"{source.stem}-{digest.hexdigest()[:16]}.jsonl"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=cache, suffix=".part")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink()
            raise
    return target


def _annotation_lines(attr: Any, source: Path) -> Iterator[str]:
    rows = read_annotations(
        source,
        messages=attr.messages,
        images=attr.images,
        role_tag=attr.role_tag,
        content_tag=attr.content_tag,
        system=attr.system,
        assistant_tag=attr.assistant_tag,
    )
    for row in rows:
        yield json.dumps(row.as_dict(attr.role_tag, attr.content_tag), ensure_ascii=False)


def _chatts_lines(attr: Any, source: Path) -> Iterator[str]:
    for number, record in _records(source):
        if not isinstance(record, dict):
            raise ValueError(f"{source}: record {number} is no JSON object; mend or remove it.")
        series = record.get(attr.timeseries)
        if isinstance(series, list) and series and not isinstance(series[0], list):
            series = [series]
        if isinstance(series, list):
            series = [[float(v) if isinstance(v, int) else v for v in one] for one in series]
        yield json.dumps({**record, attr.timeseries: series}, ensure_ascii=False)


def _records(source: Path) -> Iterator[tuple[int, Any]]:
    """Reads a JSON list, or a file with one record a line, of which only a line is held at a time."""
    place = ""
    try:
        with source.open(encoding="utf-8-sig") as file:
            if source.suffix == ".json":
                yield from enumerate(json.load(file))
                return
            for number, line in enumerate(line for line in file if line.strip()):
                place = f", record {number}"
                yield number, json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"{source}{place} is not valid JSON in UTF-8: {err}; mend or remove it.") from err


def _settle(dataset: Any, source: Path) -> Any:
    """Raises for records that can't be used, logs what was done to the others, and drops the notes."""
    if not hasattr(dataset, "num_rows"):  # streaming: nothing can be collected ahead
        return dataset.map(functools.partial(_raise_on_fault, source=str(source)), remove_columns=[NOTES])
    notes = [json.loads(note) for note in dataset[NOTES]]
    faults = [(number, note["fault"]) for number, note in enumerate(notes) if note["fault"]]
    if faults:
        raise ValueError(_fault_message(dataset, faults, source))
    logger.info_rank0(f"{source}: {len(notes)} records.")
    totals: Counter[str] = Counter()
    records: Counter[str] = Counter()
    for note in notes:
        counts = {key: note[key] for key in _WORDING if note[key]}
        totals.update(counts)
        records.update(counts.keys())
    for key, wording in _WORDING.items():
        if totals[key]:
            logger.info_rank0(f"  {totals[key]} {wording} (in {records[key]} records).")
    return dataset.remove_columns([NOTES])


def _fault_message(dataset: Any, faults: list[tuple[int, str]], source: Path) -> str:
    shown = [f"  {_record_name(dataset, number)}: {fault}" for number, fault in faults[:_SHOWN]]
    if len(faults) > _SHOWN:
        shown.append(f"  … and {len(faults) - _SHOWN} more")
    return f"{source}: {len(faults)} of {len(dataset)} records can't be used.\n" + "\n".join(shown)


def _record_name(dataset: Any, number: int) -> str:
    name: str = dataset[number][RECORD]
    return f"record {number}" if name == "record" else name


def _raise_on_fault(example: dict[str, Any], source: str) -> dict[str, Any]:
    fault = json.loads(example[NOTES])["fault"]
    if fault:
        raise ValueError(f"{source}: {example[RECORD]}: {fault}")
    return example
