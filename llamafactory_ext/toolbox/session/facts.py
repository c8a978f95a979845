"""What is remembered of a record after it has been read: a few numbers and digests, never its points.

So that a data set of any size can be compared record with record in little memory.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamafactory_ext.series import FloatArray
from llamafactory_ext.toolbox.session.labels import Label, read_labels


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """One series of a record."""

    length: int
    """Points."""
    digest: bytes
    """Equal for equal values."""
    constant: bool


@dataclass(frozen=True, slots=True)
class RecordFacts:
    """One record as it was converted. `fault` tells why it can't be used; everything else is empty then."""

    name: str
    fault: str = ""
    series: tuple[SeriesFacts, ...] = ()
    prompt: bytes = b""
    """Digest of all that the model is given besides the series: system text, and every turn before the last answer."""
    answer: bytes = b""
    """Digest of the last answer; of JSON its content, so that another spacing is no other answer."""
    is_json: bool = False
    """Whether every answer is a JSON object or list."""
    labels: tuple[Label, ...] = ()
    """The labelled intervals of all answers."""
    bad_interval: str = ""
    """What is wrong with an interval that is no pair of whole numbers."""
    filled: int = 0
    """Values that were no finite number and were interpolated; always 0 for records with the values inside."""
    prompt_characters: int = 0
    answer_characters: int = 0

    @property
    def length(self) -> int:
        """Points of the longest series, 0 without series: what intervals are checked against."""
        return max((one.length for one in self.series), default=0)


def series_facts(values: FloatArray) -> SeriesFacts:
    """Returns what is remembered of one series, `values` of shape ``[length]``."""
    digest = hashlib.blake2b(values.tobytes(), digest_size=16).digest()
    return SeriesFacts(len(values), digest, bool(len(values)) and bool((values == values[0]).all()))


def record_facts(
    name: str, system: str, turns: Sequence[Mapping[str, str]], series: Sequence[FloatArray], notes: Mapping[str, Any]
) -> RecordFacts:
    """Returns what is remembered of one record.

    Arguments:
        turns: messages with ``role`` and ``content``, the last one the answer that is trained on.
        notes: the converter's, with ``fault`` and ``values_filled``.
    """
    if notes["fault"]:
        return RecordFacts(name, fault=notes["fault"])
    if len(turns) % 2 or not turns:
        why = f"found {len(turns)} messages; expected prompt and answer in turn (LLaMA-Factory drops such a record)"
        return RecordFacts(name, fault=why)
    answers = [turn["content"] for turn in turns[1::2]]
    read = [read_labels(answer) for answer in answers]
    return RecordFacts(
        name,
        series=tuple(map(series_facts, series)),
        prompt=_digest([system, *(turn["content"] for turn in turns[:-1])]),
        answer=_digest(read[-1].content if read[-1].is_json else answers[-1]),
        is_json=all(one.is_json for one in read),
        labels=tuple(label for one in read for label in one.labels),
        bad_interval=next((one.fault for one in read if one.fault), ""),
        filled=notes["values_filled"],
        prompt_characters=len(system) + sum(len(turn["content"]) for turn in turns) - sum(map(len, answers)),
        answer_characters=sum(map(len, answers)),
    )


def _digest(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
