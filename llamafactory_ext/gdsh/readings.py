"""Answers of a model: read as training data are read, counted by how much good will that took.

strict      JSON (one object or list, each key once, no NaN) made of anomalies, as the model was taught to answer
lenient     what the converter reads besides: JSON objects joined by commas, Python literals, other keys for intervals
salvaged    only on request: the whole entries of an answer that breaks off, as it does at ``max_new_tokens``
unreadable  anything else; it counts as "no anomalies found"

Markdown fences, text around the JSON, a status other than "success" are unreadable: what uses the answers would
stumble there as well.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from llamafactory_ext.gdsh import Anomaly, GdshError, parse_answer, read_anomalies
from llamafactory_ext.gdsh.dialects import FIX, MAX_ANSWER
from llamafactory_ext.gdsh.entries import NORMAL_TYPES, is_entry


STRICT, LENIENT, SALVAGED, UNREADABLE = FORMS = ("strict", "lenient", "salvaged", "unreadable")

_ADVICE = re.compile(rf"; (?:the answer was cut off[^;]*)?{re.escape(FIX)}$")  # for those who write training data
_CLOSING = {"[": "]", "{": "}"}
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?$)', re.DOTALL)


@dataclass(frozen=True)
class Reading:
    """What one answer says."""

    form: str
    """One of `FORMS`."""
    anomalies: tuple[Anomaly, ...] = ()
    problem: str = ""
    """Why it is not strict or lenient; empty where it is."""
    cut_off: bool = False
    """Whether it breaks off inside of a bracket."""
    without_interval: int = 0
    """Entries that mark no interval: left out."""
    normal: int = 0
    """Entries that say that there is no anomaly, with an interval or without: left out."""


@dataclass(frozen=True)
class Placed:
    """Anomalies of one answer within their series."""

    inside: tuple[Anomaly, ...]
    outside: tuple[Anomaly, ...]
    """Those that share no point with the series, or end before they start."""
    clipped: int
    """How many of `inside` were cut at the series' ends."""


def read_answer(text: str, salvage: bool = False, normal: frozenset[str] = NORMAL_TYPES) -> Reading:
    """Read one answer; never raises."""
    try:
        answer = parse_answer(text, normal)
        anomalies, without = read_anomalies(answer.text)
    except (GdshError, RecursionError, MemoryError) as err:
        problem = _ADVICE.sub("", str(err)) or "the answer is nested too deeply"
        cut_off = len(text) <= MAX_ANSWER and _is_cut_off(text)
        saved = _salvage(text, normal) if salvage and cut_off else ()
        return Reading(SALVAGED if saved else UNREADABLE, saved, problem, cut_off)
    form = STRICT if answer.was_json and not answer.renamed else LENIENT
    without += answer.without_interval
    return Reading(form, tuple(anomalies), without_interval=without, normal=answer.normal)


def place(anomalies: Iterable[Anomaly], length: int) -> Placed:
    """Cut anomalies to a series of `length` points."""
    inside, outside, clipped = [], [], 0
    for one in anomalies:
        start, end = max(one.start, 0), min(one.end, length - 1)
        if start > end:
            outside.append(one)
        else:
            clipped += (start, end) != (one.start, one.end)
            inside.append(replace(one, start=start, end=end))
    return Placed(tuple(inside), tuple(outside), clipped)


def _is_cut_off(text: str) -> bool:
    bare = _STRING.sub("", text.strip())
    waiting: list[str] = []
    for mark in bare if bare[:1] in ("[", "{") else "":
        if mark in _CLOSING:
            waiting.append(_CLOSING[mark])
        elif mark in _CLOSING.values() and (not waiting or waiting.pop() != mark):
            return False
    return bool(waiting)


def _salvage(text: str, normal: frozenset[str]) -> tuple[Anomaly, ...]:
    """The entries before the place where an answer breaks off."""
    decoder, entries, at = json.JSONDecoder(), [], text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except RecursionError:  # and so from every bracket inside of it on
            break
        except ValueError:
            end = at + 1
        else:
            entries += [value] if is_entry(value) else []
        at = text.find("{", end)
    try:
        return tuple(read_anomalies(parse_answer(entries, normal).text)[0])
    except GdshError:
        return ()
