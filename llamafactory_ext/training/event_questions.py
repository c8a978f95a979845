"""Validation records as questions with known intervals, for :mod:`.event_f1`.

They come tokenised, as the loss sees them: the last answer is cut off, and what is left is the prompt. Answers are
read and counted as :mod:`llamafactory_ext.evaluate` does it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamafactory_ext.evaluate.answers import UNREADABLE, place, read_answer
from llamafactory_ext.evaluate.events import Counts, Interval, event_counts


_IGNORED = -100


@dataclass(frozen=True)
class Question:
    """One record, its answer taken away."""

    features: Mapping[str, Any]
    """What the collator takes: the prompt's tokens, and the series."""
    intervals: frozenset[Interval]
    """Those of its answer."""
    length: int
    """Points of its longest series."""


def validation_questions(trainer: Any, count: int) -> list[Question]:
    """Returns up to ``count`` records, evenly spread over the validation data; the same in every process.

    Raises:
        ValueError: there are none, or they can't be asked; the message says what to change.
    """
    datasets = trainer.eval_dataset
    datasets = list(datasets.values()) if isinstance(datasets, dict) else [datasets]
    if any(dataset is None for dataset in datasets):
        raise ValueError(
            "`event_f1_steps` needs validation data, and this run has none: set `eval_dataset` "
            "(python tools/prepare.py --split 0.1 --register makes one) or `val_size`; or remove `event_f1_steps`."
        )
    if not all(hasattr(dataset, "num_rows") for dataset in datasets):
        raise ValueError("`event_f1_steps` does not go with `streaming`; remove one of them.")
    places = [(dataset, row) for dataset in datasets for row in range(len(dataset))]
    chosen = [places[number * len(places) // count] for number in range(count)] if count < len(places) else places
    generates = trainer.args.predict_with_generate
    return [_question(dataset[row], row, trainer.processing_class, generates) for dataset, row in chosen]


def score(question: Question, text: str) -> tuple[Counts, bool]:
    """Returns the events of an answer, counted as the evaluation counts them, and whether it could be read."""
    reading = read_answer(text)
    placed = place(reading.anomalies, question.length)
    found = event_counts(question.intervals, {(one.start, one.end) for one in placed.inside})
    return found._replace(false_alarms=found.false_alarms + len(placed.outside)), reading.form != UNREADABLE


def _question(example: dict[str, Any], row: int, tokenizer: Any, generates: bool) -> Question:
    """Arguments: ``generates``: prompt and answer stand apart already, as ``predict_with_generate`` has them."""
    if "position_ids" in example:  # several records in one row
        raise ValueError("`event_f1_steps` does not go with `packing`; remove one of them.")
    ids, labels = example["input_ids"], np.asarray(example["labels"])
    if generates:
        end, answer = len(ids), labels
    else:
        gaps = np.flatnonzero(labels == _IGNORED)
        if not gaps.size:
            raise ValueError("`event_f1_steps` does not go with `train_on_prompt`: no answer can be told; remove one.")
        end = int(gaps[-1]) + 1
        answer = labels[end:]
    reading = read_answer(tokenizer.decode(answer, skip_special_tokens=True))
    if reading.form == UNREADABLE:
        raise ValueError(
            "`event_f1_steps` reads intervals from answers, and can't read that of validation record "
            f"{row}: {reading.problem}. Mend the record, or remove `event_f1_steps`."
        )
    length = max((len(series) for series in example.get("audios") or ()), default=0)
    intervals = frozenset((one.start, one.end) for one in place(reading.anomalies, length).inside)
    features = {"input_ids": ids[:end], "attention_mask": [1] * end}
    features |= {key: example[key] for key in ("images", "videos", "audios") if key in example}
    return Question(features, intervals, length)
