"""Reads ``generated_predictions.jsonl``: what LLaMA-Factory's predict run wrote."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import FaultError
from llamafactory_ext.gdsh.dialects import unique_keys


KEYS = ("prompt", "predict", "label")
MAX_LINE = 1 << 24
"""Characters of a prediction: prompt, answer and label."""
MAX_POINTS = 1 << 22
"""Points of a series that a prompt may tell of: as many as any checkpoint may place."""

# What `series.describe` puts in front of the patches of each series.
_SPECIAL = re.compile(r"<\|\w+\|>")
_DESCRIPTION = re.compile(r"\[offset=[^|\[\]]+\|scaling=[^|\[\]]+\|length=(\d{1,18})\|[^\[\]]+\]")


class EvaluateError(FaultError):
    """Predictions or data that can't be scored. The message names file, line, what was found and what was expected."""


@dataclass(frozen=True)
class Prediction:
    """One line of the file."""

    index: int
    """From 0."""
    prompt: str
    predict: str
    label: str
    known_lengths: tuple[int, ...] | None = None
    """Points of each series, where the data set told them and not the prompt."""

    @property
    def is_labelled(self) -> bool:
        """Whether there is something to compare with; a record that was only asked has no label."""
        return bool(_SPECIAL.sub("", self.label).strip())

    @property
    def descriptions(self) -> tuple[str, ...]:
        """The text in front of each series; equal for equal series."""
        return tuple(match[0] for match in _DESCRIPTION.finditer(self.prompt))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Points of each series."""
        if self.known_lengths is not None:
            return self.known_lengths
        return tuple(int(match[1]) for match in _DESCRIPTION.finditer(self.prompt))


def read_predictions(path: Path, lengths: bool = True) -> list[Prediction]:
    """Read all lines; blank ones are passed over.

    Arguments:
        lengths: whether each prompt has to tell the length of its series; the data set may tell it instead.

    Raises:
        EvaluateError: no file in UTF-8, no line, a line that is no JSON object or over `MAX_LINE`, a key that is
            missing, twice there or holds no text, or a prompt that tells the length of no series, or of one too long.
    """
    found: list[Prediction] = []
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), ""), 1):
                if line.strip():
                    found.append(_read(f"{path}, line {number}", len(found), line, lengths))
    except (OSError, UnicodeDecodeError) as err:
        raise EvaluateError(f"{path} can't be read: {getattr(err, 'strerror', None) or err}") from err
    if not found:
        raise EvaluateError(f"{path} is empty; expected one JSON object a line, with {', '.join(KEYS)}")
    return found


def _read(place: str, index: int, line: str, lengths: bool) -> Prediction:
    expected = "expected LLaMA-Factory's generated_predictions.jsonl"
    if len(line) > MAX_LINE:
        raise EvaluateError(f"{place} has more than {MAX_LINE:,} characters; {expected}")
    try:
        found: Any = json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as err:
        raise EvaluateError(f"{place} is no JSON: {err}; {expected}") from err
    if not isinstance(found, dict):
        raise EvaluateError(f"{place} holds {type(found).__name__}, no object; {expected}")
    for key in KEYS:
        if not isinstance(found.get(key), str):
            there = f"{found[key]!r:.60} in it" if key in found else f"only {', '.join(map(str, found)) or 'nothing'}"
            raise EvaluateError(f"{place} has no text {key!r}: found {there}; {expected}")
    prediction = Prediction(index, *(found[key] for key in KEYS))
    if max(prediction.lengths, default=0) > MAX_POINTS:
        raise EvaluateError(f"{place}: its prompt tells of a series of over {MAX_POINTS:,} points; {expected}")
    if lengths and not any(prediction.lengths):
        wanted = "expected [offset=…|scaling=…|length=…|…] of template chatts, or --dataset to tell it"
        raise EvaluateError(f"{place}: its prompt tells no length of a series; {wanted}")
    return prediction
