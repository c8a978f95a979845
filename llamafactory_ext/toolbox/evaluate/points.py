"""The data set behind the predictions: names and series of its records, checked against the predictions' order."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.gdsh.readings import UNREADABLE, read_answer
from llamafactory_ext.toolbox.evaluate.predictions import EvaluateError, Prediction


_PICTURES = re.compile(r"record \d+ \((.+)\)")  # the converter's name of an annotation record


@dataclass(frozen=True)
class Source:
    """One record of the data set."""

    name: str
    """The stems of its pictures; empty where it has none."""
    answer: str
    series: tuple[NDArray[np.float64], ...]


def read_sources(arguments: Any) -> list[Source]:
    """Read the data sets of `session.recipe.Arguments`, LLaMA-Factory's own way; with `val_size`, what it holds out.

    Raises:
        EvaluateError: a file that can't be read, or a record that the predict run would have stopped at.
    """
    from llamafactory_ext.toolbox.session import framework
    from llamafactory_ext.toolbox.session.records import Part, read

    sources, counts = [], []
    try:
        for name, entry in arguments.entries.items():
            entry.unlabelled = True  # what was only asked is left out later
            part = Part(name, framework.load(entry, arguments))
            counts.append(len(part.dataset))
            for record in read(part):
                if record.notes["fault"]:
                    raise EvaluateError(f"data set {name}: {record.name}: {record.notes['fault']}")
                sources.append(Source(_stems(record.name), record.answers[-1], tuple(record.series)))
        held_out = framework.validation_rows(counts, arguments)
    except framework.CheckError as err:
        raise EvaluateError(f"data set {', '.join(arguments.entries)}: {err}") from err
    return [sources[row] for row in held_out] if held_out else sources


def fill_lengths(predictions: Sequence[Prediction], sources: Sequence[Source]) -> list[Prediction]:
    """Give predictions whose prompts tell no length those of the data set's series, by their order."""
    found = list(predictions)
    for place, (one, source) in enumerate(zip(predictions, sources, strict=False)):
        if not any(one.lengths):
            found[place] = replace(one, known_lengths=tuple(map(len, source.series)))
    return found


def check_order(predictions: Sequence[Prediction], sources: Sequence[Source], dataset: str) -> None:
    """Check that line n of the predictions is record n of the data set.

    Raises:
        EvaluateError: another number of records, other lengths of series, or other labels.
    """
    advice = (
        "name the data set that was predicted (the recipe's eval_dataset), as it was then, with the same keys where "
        "they were set: max_samples, val_size, seed"
    )
    if len(predictions) != len(sources):
        raise EvaluateError(f"{len(predictions)} predictions, but {len(sources)} records in {dataset}; {advice}")
    pairs = zip(predictions, sources, strict=True)
    wrong = [(one.index, said) for one, source in pairs if (said := _difference(one, source))]
    if wrong:
        index, said = wrong[0]
        raise EvaluateError(
            f"{len(wrong)} of {len(predictions)} predictions are of other records than those in {dataset}; "
            f"the first is record {index}: {said}; {advice}"
        )


def point_names(predictions: Sequence[Prediction], sources: Sequence[Source] | None) -> list[str]:
    """The point of each record: its pictures, else the first record with the same series.

    Without the data set series are the same that are described in the same words: offset, scaling, length, extremes.
    """
    first: dict[Hashable, str] = {}
    if sources is None:
        return [first.setdefault(one.descriptions, f"record {one.index}") for one in predictions]
    names = []
    for index, source in enumerate(sources):
        content = tuple(series.tobytes() for series in source.series)
        names.append(source.name or first.setdefault(content, f"record {index}"))
    return names


def _difference(prediction: Prediction, source: Source) -> str:
    lengths = tuple(map(len, source.series))
    if prediction.lengths != lengths:
        return f"its prompt has series of {list(prediction.lengths)} points, the data set {list(lengths)}"
    said, meant = prediction.label.strip(), source.answer.strip()
    if said == meant:
        return ""
    if said and meant.startswith(said):
        return f"its label is cut off after {len(said)} of {len(meant)} characters: predict with a larger cutoff_len"
    one, other = read_answer(said), read_answer(meant)
    if one.form != UNREADABLE and one.anomalies == other.anomalies:  # a tokenizer may change white space
        return ""
    return f"its label is {said[:60]!r}, the data set's {meant[:60]!r}"


def _stems(name: str) -> str:
    pictures = _PICTURES.fullmatch(name)
    return ", ".join(PurePath(one).stem for one in pictures[1].split(", ")) if pictures else ""
