"""Confidence: how sure a model was of an interval, from the probabilities of the tokens that it chose.

An entry's confidence is the probability that there is an anomaly of its type about there. That is the product of what
the model gave the token that begins the entry (its choice that there is one more, not the list's end), its type, and
its two numbers, each of these taken for as many rows beside it as a third of the interval has: the next row is about
as likely. Without that a short interval counts for surer than a long one that is placed as well, and hits are not
told from false alarms; docs/detect.md has what was compared. Of "no anomalies" it is the product over the answer.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llamafactory_ext.errors import GdshError
from llamafactory_ext.gdsh import parse_answer, read_anomalies, write_answer

from .engines import Answer
from .pieces import Found


_INTERVAL = re.compile(r'"interval"\s*:\s*\[\s*(\d+)\s*,\s*(\d+)\s*\]')
_TYPE = re.compile(r'"type"\s*:\s*"((?:[^"\\]|\\.)*)"')
_PLACES = 3  # decimals that are kept: 16 bit and other batches move the next ones
_NAMED = 3
_ABOUT = 0.3
_NEAR = 0.35
_NOTHING = write_answer([])


@dataclass(frozen=True)
class Read:
    """An answer, as far as it could be read."""

    found: tuple[Found, ...]
    """In rows of what was asked about."""
    nothing: float | None = None
    """Confidence that there is no anomaly, where the answer says so."""
    fault: str = ""
    """What could not be read or does not fit, empty where nothing was."""


def read(answer: Answer, points: int) -> Read:
    """Reads an answer about a series of so many points; intervals that do not fit it are left out and named."""
    fault, text = "", answer.text
    if not answer.is_whole:
        text = _whole_entries(text) or _NOTHING
        fault = f"the answer breaks off at {len(answer.tokens)} tokens, whole entries are kept: raise --max-new-tokens"
    try:
        anomalies = read_anomalies(parse_answer(text).text)[0]
    except GdshError as err:
        return Read((), fault=fault or f"the answer can't be read: {err}")
    sure = _by_interval(answer)
    found, outside = [], []
    for one in anomalies:
        if 0 <= one.start <= one.end < points:
            known = sure.get((one.start, one.end, one.type), [])
            found.append(Found(one.start, one.end, one.type, one.reason, known.pop(0) if known else None))
        else:
            outside.append(f"[{one.start}, {one.end}]")
    if outside:
        more = ", …" if len(outside) > _NAMED else ""
        fault = " ".join(
            (
                f"{len(outside)} intervals do not fit the {points} points that were asked about, and are left out: "
                f"{', '.join(outside[:_NAMED])}{more}",
                fault,
            )
        ).strip()
    return Read(tuple(found), None if found or fault else rounded(sum(answer.logprobs)), fault)


def rounded(logarithm: float) -> float:
    """Returns a probability with as many decimals as are kept."""
    return round(math.exp(min(0.0, logarithm)), _PLACES)


def share(one: Found, votes: Sequence[Sequence[Found]]) -> float:
    """Returns the share of sampled answers that name about this interval: with an IoU of `_ABOUT` or more."""
    hits = sum(any(_iou(one, two) >= _ABOUT for two in vote) for vote in votes)
    return round(hits / len(votes), _PLACES)


def _iou(one: Found, two: Found) -> float:
    common = min(one.end, two.end) - max(one.start, two.start) + 1
    return max(common, 0) / (one.end - one.start + two.end - two.start + 2 - common)


def _by_interval(answer: Answer) -> dict[tuple[int, int, str], list[float]]:
    """Returns the confidences of the entries, as they are written in the answer."""
    found: dict[tuple[int, int, str], list[float]] = {}
    ends, length = [], 0
    for token in answer.tokens:
        length += len(token)
        ends.append(length)
    for start, end, kind, spans in entries(answer.text):
        parts = [within(answer.logprobs, ends, span) for span in spans]
        near = math.log(1 + _NEAR * max(0, end - start))
        total = parts[0] + parts[3] + sum(min(0.0, part + near) for part in parts[1:3])
        found.setdefault((start, end, kind), []).append(rounded(total))
    return found


def within(logprobs: Sequence[float], ends: Sequence[int], span: tuple[int, int]) -> float:
    """Returns the sum of the logarithms of the tokens that have a character in the span."""
    total, start = 0.0, 0
    for end, one in zip(ends, logprobs, strict=True):
        if start < span[1] and end > span[0]:
            total += one
        start = end
    return total


def entries(text: str) -> Iterator[tuple[int, int, str, list[tuple[int, int]]]]:
    """Yields start, end, type of each entry with an interval, and where in the text its choices stand.

    These are its opening brace, its numbers with the mark behind each (where a number ends is a choice, too), and its
    type with the closing quote (nowhere, without type).
    """
    for opening, closing in _objects(text):
        inner = text[opening:closing]
        place = _INTERVAL.search(inner)
        if place is None:
            continue
        spans = [(opening, opening + 1)]
        spans += [(opening + place.start(group), opening + place.end(group) + 1) for group in (1, 2)]
        kind = _TYPE.search(inner)
        spans.append((opening + kind.start(1), opening + kind.end(1) + 1) if kind else (0, 0))
        name = "" if kind is None else json.loads(f'"{kind[1]}"', strict=False)
        yield int(place[1]), int(place[2]), name, spans


def _whole_entries(text: str) -> str:
    """Returns an answer that breaks off up to its last whole entry, ended; empty where it has none."""
    ends = [closing for _, closing in _objects(text)]
    return f"{text[: ends[-1]]}]}}" if ends else ""


def _objects(text: str) -> Iterator[tuple[int, int]]:
    """Yields where the innermost objects of a JSON text begin and end; braces in texts are none."""
    opening, inside, escaped = None, False, False
    for place, char in enumerate(text):
        if inside:
            inside, escaped = escaped or char != '"', not escaped and char == "\\"
        elif char == '"':
            inside = True
        elif char == "{":
            opening = place
        elif char == "}" and opening is not None:
            yield opening, place + 1
            opening = None
