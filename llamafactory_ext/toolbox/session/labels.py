"""Labels: the intervals that an answer names, with their types and reasons."""

import json
import sys
from dataclasses import dataclass

from llamafactory_ext.gdsh import Anomaly, GdshError, parse_answer, read_anomalies


@dataclass(frozen=True, slots=True)
class Label:
    """One labelled interval: 0-based, both ends counted."""

    start: int
    end: int
    type: str
    """Empty where the answer names none."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Labels:
    """What an answer says."""

    is_json: bool
    """Whether it is a JSON object or list, as it stands."""
    labels: tuple[Label, ...] = ()
    fault: str = ""
    """What is wrong with an interval; `labels` is empty then."""
    content: object = None
    """The JSON, read."""


def read_labels(text: str, reasons: bool = False) -> Labels:
    """Reads one answer. An answer of any other form than GDSH's has no labels, which is no fault."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return Labels(False)
    if not isinstance(content, (dict, list)):
        return Labels(False)
    try:
        answer = parse_answer(text)
    except GdshError as err:
        return Labels(True, fault=str(err), content=content)
    try:
        found = read_anomalies(text)[0]
    except GdshError:  # other keys than GDSH's; the intervals are known all the same
        found = [Anomaly(start, end, {}) for start, end in answer.intervals]
    return Labels(True, tuple(_label(one, reasons) for one in found), content=content)


def _label(anomaly: Anomaly, reasons: bool) -> Label:
    reason = str(anomaly.fields.get("reason", "")) if reasons else ""
    return Label(anomaly.start, anomaly.end, sys.intern(anomaly.type), reason)  # few types, many labels
