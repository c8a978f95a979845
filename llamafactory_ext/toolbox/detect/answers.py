"""Answers read: intervals on their series' own rows, each with a confidence, those of overlapping windows joined."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from llamafactory_ext.gdsh import Anomaly, GdshError, parse_answer, read_anomalies
from llamafactory_ext.toolbox.prepare.resampling import Indices

from .engines import Answer


_INTERVAL = re.compile(r'"interval"\s*:\s*\[\s*(\d+)\s*,\s*(\d+)\s*\]')
_TYPE = re.compile(r'"type"\s*:\s*"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Detection:
    """One interval of a series."""

    start: int
    """First row, 0-based, of the series as it is in its file."""
    end: int
    """Last row, counted."""
    type: str = ""
    confidence: float = 0.0
    reason: str = ""


@dataclass
class Read:
    """What the answers about one series say."""

    detections: list[Detection] = field(default_factory=list)
    confidence: float = 1.0
    """The least of its detections'; where there are none, how sure the model was of that."""
    faults: list[str] = field(default_factory=list)
    """Answers, or entries of them, that could not be used."""


def read_answers(rows: Sequence[Indices], answers: Sequence[Answer], votes: Sequence[Sequence[Answer]] = ()) -> Read:
    """Reads the answers about one series.

    Arguments:
        rows: for each question, the rows that its points are, shape (points,).
        answers: to the questions.
        votes: sampled answers to each question; with them a confidence is the share that overlaps.
    """
    found, sure = Read(), []
    for place, (known, answer) in enumerate(zip(rows, answers, strict=True)):
        where = f"rows {known[0]} to {known[-1]}"
        try:
            anomalies = _anomalies(answer)
        except GdshError as err:
            found.faults.append(f"{where}: {'cut off by max_new_tokens' if not answer.is_whole else err}")
            continue
        others = [_or_none(one) for one in votes[place]] if votes else []
        scores = _scores(answer, anomalies) if not votes else [_share(one, others) for one in anomalies]
        if not anomalies:
            nothing = [not one for one in others if one is not None]
            sure.append(sum(nothing) / max(len(others), 1) if votes else _mean(answer.logprobs))
        for anomaly, score in zip(anomalies, scores, strict=True):
            if not 0 <= anomaly.start <= anomaly.end < len(known):
                found.faults.append(
                    f"{where}: the interval [{anomaly.start}, {anomaly.end}] is not in {len(known)} points"
                )
                continue
            start, end = int(known[anomaly.start]), int(known[anomaly.end])
            found.detections.append(Detection(start, end, anomaly.type, round(score, 4), anomaly.reason))
    found.detections = join(found.detections) if len(rows) > 1 else sorted(found.detections, key=_order)
    least = [one.confidence for one in found.detections] or sure
    found.confidence = round(min(least, default=0.0), 4)
    return found


def join(detections: Sequence[Detection]) -> list[Detection]:
    """Joins what windows found of one anomaly: intervals of a type that share a row or follow one another.

    The joined one goes from the first start to the last end, with confidence and reason of the most confident.
    """
    joined: list[Detection] = []
    for one in sorted(detections, key=lambda one: (one.type, one.start, one.end)):
        last = joined[-1] if joined else None
        if last is None or last.type != one.type or one.start > last.end + 1:
            joined.append(one)
            continue
        surer = max(last, one, key=lambda each: each.confidence)
        joined[-1] = replace(surer, start=last.start, end=max(last.end, one.end))
    return sorted(joined, key=_order)


def _order(one: Detection) -> tuple[int, int, str]:
    return one.start, one.end, one.type


def _anomalies(answer: Answer) -> list[Anomaly]:
    return read_anomalies(parse_answer(answer.text).text)[0]


def _or_none(answer: Answer) -> list[Anomaly] | None:
    try:
        return _anomalies(answer)
    except GdshError:
        return None


def _share(anomaly: Anomaly, others: Sequence[Sequence[Anomaly] | None]) -> float:
    """The share of sampled answers with an interval that overlaps by 0.3 of both together."""
    agree = sum(any(_iou(anomaly, one) >= 0.3 for one in other or ()) for other in others)
    return agree / max(len(others), 1)


def _iou(one: Anomaly, other: Anomaly) -> float:
    shared = min(one.end, other.end) - max(one.start, other.start) + 1
    return max(shared, 0) / (max(one.end, other.end) - min(one.start, other.start) + 1) if shared > 0 else 0.0


def _scores(answer: Answer, anomalies: Sequence[Anomaly]) -> list[float]:
    """The confidence of each anomaly: the geometric mean of its numbers' and its type's tokens' probabilities."""
    ends = np.cumsum([len(token) for token in answer.tokens]) if answer.tokens else np.zeros(0)
    starts = ends - np.array([len(token) for token in answer.tokens])
    spans: dict[tuple[int, int], list[list[tuple[int, int]]]] = {}
    for match in _INTERVAL.finditer(answer.text):
        parts = [match.span(1), match.span(2)]
        low, high = answer.text.rfind("{", 0, match.start()), answer.text.find("}", match.end())
        high = high if high >= 0 else len(answer.text)
        kind = _TYPE.search(answer.text, max(low, 0), high)
        parts += [kind.span(1)] if kind else []
        spans.setdefault((int(match[1]), int(match[2])), []).append(parts)
    scores = []
    for anomaly in anomalies:
        held = spans.get((anomaly.start, anomaly.end))
        if not held:  # written in another form: all of the answer stands for it
            scores.append(_mean(answer.logprobs))
            continue
        parts = held.pop(0) if len(held) > 1 else held[0]
        inside = [
            logprob
            for start, end, logprob in zip(starts, ends, answer.logprobs, strict=True)
            if any(start < last and first < end for first, last in parts)
        ]
        scores.append(_mean(inside))
    return scores


def _mean(logprobs: Any) -> float:
    return math.exp(sum(logprobs) / len(logprobs)) if len(logprobs) else 0.0
