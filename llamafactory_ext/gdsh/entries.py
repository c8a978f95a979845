"""Entries: one thing that an answer says of a series, where that is, and whether it is an anomaly at all.

GDSH writes ``{"interval": [start, end], "type": ..., "reason": ...}``. Other tools name the interval otherwise; a name
that can mean one thing is read. An entry without interval is a remark on the whole series. Anything else is refused:
a place that is not understood must not become "nothing there".
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from llamafactory_ext.errors import GdshError, excerpt, printable


Pair = tuple[int, int]
"""First and last index, 0-based, both counted. Where times are allowed, what the entry holds in their place."""

# fmt: off
NORMAL_TYPES = frozenset({
    "无异常", "无", "没有异常", "未见异常", "未发现异常", "无明显异常", "非异常", "正常", "正常状态",
    "正常区间", "正常数据", "正常波动",
    "normal", "normal state", "no anomaly", "no anomalies", "none", "not anomalous", "non anomalous",
})
"""Types that say that there is no anomaly, as `type_key` gives them."""

# Keys, as `_key` gives them.
_PAIRS = frozenset({
    "interval", "intervals", "range", "ranges", "segment", "segments", "span", "spans", "indexrange",
    "indexinterval", "anomalyinterval", "anomalyintervals", "anomalyrange", "区间", "异常区间", "区段",
    "异常区段", "范围", "索引范围", "索引区间",
})
_LISTS = frozenset({
    "detectedanomalies", "anomalies", "anomalylist", "annotations", "异常", "异常列表", "检测结果",
})
# What an entry without interval may hold, whatever it says.
_REMARKS = frozenset({
    "type", "reason", "label", "category", "overallattribute", "overallattributes", "attribute",
    "attributes", "description", "desc", "explanation", "summary", "remark", "remarks", "comment",
    "comments", "note", "notes", "severity", "level", "confidence", "score", "probability", "id", "color",
    "sure", "status", "类型", "原因", "理由", "描述", "说明", "备注", "严重程度", "置信度", "整体属性",
    "全局属性",
})
# fmt: on
_ENDS = (
    ("start", "end"),
    ("startindex", "endindex"),
    ("startidx", "endidx"),
    ("startrow", "endrow"),
    ("startpoint", "endpoint"),
    ("begin", "end"),
    ("from", "to"),
    ("起始", "结束"),
    ("开始", "结束"),
    ("起点", "终点"),
    ("起始索引", "结束索引"),
    ("开始索引", "结束索引"),
)
_ENDS_KEYS = frozenset(key for pair in _ENDS for key in pair)
_FIX = 'write it as "interval": [start, end], rows from 0, both ends counted'


def type_key(kind: str) -> str:
    """A type as it is compared: without case, and blanks, `_` and `-` made one."""
    return " ".join(re.split(r"[\s_\-]+", unicodedata.normalize("NFKC", kind).casefold().strip(" .。!！")))


def normal_types(more: Iterable[str] = ()) -> frozenset[str]:
    """The words for the normal state, with those that a data set's entry names besides."""
    return NORMAL_TYPES | {type_key(word) for word in more}


def is_normal(entry: object, normal: frozenset[str]) -> bool:
    """Whether an entry, or a word in its place, says that there is no anomaly."""
    kind = entry.get("type") if isinstance(entry, Mapping) else entry
    return isinstance(kind, str) and type_key(kind) in normal


def is_entry(value: Mapping[str, object]) -> bool:
    """Whether an object that stands by itself is an entry: it has a type, or marks a place."""
    keys = set(map(_key, value))
    return bool(keys & {"type", *_PAIRS}) or any(keys.issuperset(ends) for ends in _ENDS)


def list_key(value: Mapping[str, object]) -> str | None:
    """The key under which an object holds its entries, or None.

    Raises:
        GdshError: there are two.
    """
    if "detected_anomalies" in value:
        return "detected_anomalies"
    found = [key for key in value if _key(key) in _LISTS and isinstance(value[key], list)]
    if len(found) > 1:
        raise GdshError(f"{excerpt(found)} may each be the list of anomalies; keep one, as 'detected_anomalies'")
    return found[0] if found else None


def locate(entry: Mapping[str, object], times: bool = False) -> tuple[list[Pair], dict[str, object], bool]:
    """Find the intervals of an entry.

    Args:
        entry: an object of an answer.
        times: bounds may be any texts and numbers, which only the series' time column can place.

    Returns:
        The intervals; what else the entry says; and whether another key than ``interval`` named them.

    Raises:
        GdshError: an interval that is none, two keys that name different ones, or numbers under a key that is not
            known, in an entry that marks no interval.
    """
    if entry.get("interval") is not None:
        interval = entry["interval"]
        found = _pairs(interval, times=times)
        return found, _without(entry, {"interval"}), not _is_plain(interval)
    spelt = {key: _key(key) for key in entry}
    places = _places(entry, spelt)
    if not places:
        _refuse_places(entry, spelt)
        return [], dict(entry), False
    by_key: dict[frozenset[str], list[Pair]] = {}
    faults = []
    for keys, value in places.items():
        try:
            by_key[keys] = _pairs(value, ", ".join(sorted(keys)), times)
        except GdshError as error:  # beside rows there may be times
            faults.append(error)
    if not by_key:
        raise faults[0]
    found, *others = by_key.values()
    if any(other != found for other in others):
        named = ", ".join(sorted({key for keys in by_key for key in keys}))
        raise GdshError(f"{named} name different intervals in {excerpt(dict(entry))}; keep one and {_FIX}")
    return found, _without(entry, {"interval", *(key for keys in by_key for key in keys)}), True


def has_remarks_only(value: Mapping[str, object]) -> bool:
    """Whether an object that is no entry says something of the whole series, as ``overall_attribute`` does."""
    return bool(value.keys() - {"status"}) and all(_key(key) in _REMARKS for key in value)


def _places(entry: Mapping[str, object], spelt: Mapping[str, str]) -> dict[frozenset[str], object]:
    """What may be the interval, by the keys that name it."""
    found: dict[frozenset[str], object] = {
        frozenset({key}): entry[key] for key, name in spelt.items() if name in _PAIRS and entry[key] not in (None, [])
    }
    by_name = {name: key for key, name in spelt.items()}
    for ends in _ENDS:
        if by_name.keys() >= set(ends):
            keys = [by_name[end] for end in ends]
            values = [entry[key] for key in keys]
            if values != [None, None]:
                found[frozenset(keys)] = values
    return found


def _key(key: object) -> str:
    return re.sub(r"[\s_\-]+", "", str(key).casefold())


def _without(entry: Mapping[str, object], keys: set[str]) -> dict[str, object]:
    return {key: value for key, value in entry.items() if key not in keys}


def _refuse_places(entry: Mapping[str, object], spelt: Mapping[str, str]) -> None:
    """Refuse numbers under an unknown key: they may say where something is."""
    for key, name in spelt.items():
        if name not in _REMARKS and key != "interval" and (name in _ENDS_KEYS or re.search(r"\d", str(entry[key]))):
            raise GdshError(
                f"an entry has no interval, but {excerpt(entry[key])} under {excerpt(key)}; if that is its place, "
                f"{_FIX}; if it is a remark on the whole series, put it into 'reason'"
            )


def _is_plain(interval: object) -> bool:
    return isinstance(interval, (list, tuple)) and not any(isinstance(one, (list, tuple, dict)) for one in interval)


def _pairs(value: object, key: str = "interval", times: bool = False) -> list[Pair]:
    """One pair, an object with start and end, or a list of either."""
    items = value if isinstance(value, (list, tuple)) else ()
    several = items and all(isinstance(one, (list, tuple, dict)) for one in items)
    return [_one(item, key, times) for item in items] if several else [_one(value, key, times)]


def _one(value: object, key: str, times: bool) -> Pair:
    if isinstance(value, dict):
        found = [pair for pair in _ENDS if {_key(one) for one in value}.issuperset(pair)]
        if len(found) == 1:
            spelt = {_key(one): value[one] for one in value}
            return _pair([spelt[end] for end in found[0]], key, times)
    return _pair(value, key, times)


def _pair(interval: Any, key: str, times: bool) -> Pair:
    if isinstance(interval, (list, tuple)) and len(interval) == 2:
        if all(map(_is_whole, interval)):
            return int(interval[0]), int(interval[1])
        if times and len({isinstance(one, str) for one in interval}) == 1 and all(map(_is_bound, interval)):
            return interval[0], interval[1]
    fix = "correct the interval"
    if (
        not times
        and isinstance(interval, (list, tuple))
        and any(isinstance(one, str) and ":" in one for one in interval)
    ):
        fix = "times become rows by `llamafactory-ext import SOURCE --labels gdsh:FILE`"
    wanted = "two times or two rows" if times else "two whole numbers"
    raise GdshError(f"{printable(key)} is {excerpt(interval)}, expected [start, end], {wanted}; {fix}")


def _is_whole(number: object) -> bool:
    if isinstance(number, float):
        return number.is_integer()
    return isinstance(number, int) and not isinstance(number, bool)


def _is_bound(bound: object) -> bool:
    if isinstance(bound, str):
        return bool(bound.strip())
    return isinstance(bound, (int, float)) and not isinstance(bound, bool) and math.isfinite(bound)
