"""Draws records for mini: prompts in several wordings, answers as `prepare --compact-answers` states them.

Most ask for anomalies; some of those name the types that count, so that what counts is not always the same. A share
asks for something else: statistics, the place of an extreme value, a trend, a comparison of two series.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from llamafactory_ext.series import describe
from llamafactory_ext.toolbox.demo.components import CONTEXT, Background, draw_background, draw_places, fitting, put_in
from llamafactory_ext.toolbox.demo.series import ALL_SHAPES, INCONSPICUOUS, Interval, Values


Record = dict[str, Any]

MARKER = "<ts><ts/>"
HARD = 0.55  # the share of anomalies that stay within the range of their series
OTHER_TASKS = 0.12
COUNTS = (0.13, 0.32, 0.32, 0.15, 0.08)  # how many anomalies a series holds: none to four
SCHEMA = '{"status":"success","detected_anomalies":[{"interval":[起,止],"type":"类型"}]}'

OPENINGS = (
    "",
    "下面是测点的时间序列。",
    "以上是测点的时间序列。",
    "这是一个传感器的数据。",
    "以下为某装置的测点曲线。",
    "The series of a sensor.",
    "This is a plant's sensor.",
)
TASKS = (
    "找出异常区间和类型，用JSON回答。",
    "请找出其中的异常，给出起止下标（从0开始，首尾都算）和类型。",
    "检测异常区间，给出类型。",
    "请判断该测点有无异常，有则给出区间和类型。",
    "请标注异常。",
    "Find the anomalies: first and last index, and the type.",
    "Which intervals are anomalous? Answer in JSON.",
    "Detect anomalies and name their types.",
)
UNTYPED = ("只给出异常区间，不写类型。", "找出异常区间，无需类型。", "Give the anomalous intervals only, no types.")
ALL_LISTED = ("可选类型：{}。", "类型有：{}。", "Types: {}.")
ONLY_LISTED = ("只找：{}。其他不算异常。", "只关注以下类型：{}。", "只标注{}，其余视为正常。", "Only look for: {}.")
NOT_LISTED = ("不算异常：{}。", "{}属于正常操作，不要标注。", "Ignore: {}.")
FORMATS = (
    "",
    "",
    f"只输出JSON：{SCHEMA}；没有异常时列表为空。",
    f"输出格式：{SCHEMA}。",
    "以JSON输出，没有异常时列表为空。",
    "Answer in JSON only.",
)


def write_answer(kinds: tuple[str, ...], places: list[Interval], typed: bool = True) -> str:
    """State the anomalies as `llamafactory-ext prepare --compact-answers` does; `typed=False`: intervals alone."""
    pairs = zip(kinds, places, strict=True)
    entries = [{"interval": list(place), **({"type": kind} if typed else {})} for kind, place in pairs]
    return _json({"status": "success", "detected_anomalies": entries})


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def shares(kinds: tuple[str, ...]) -> list[float]:
    """How often each type is drawn."""
    hard = [kind in INCONSPICUOUS or kind == CONTEXT for kind in kinds]
    alike = all(hard) or not any(hard)
    return [1 / len(kinds) if alike else (HARD / sum(hard) if one else (1 - HARD) / hard.count(False)) for one in hard]


def draw_length(rng: np.random.Generator, longest: int = 1024) -> int:
    """Draw a series' length, from 64 points on; half of them have up to 256."""
    bounds = [(64, 192), (193, 256), (256, 256), (257, 512), (513, 1024)]
    low, high = bounds[rng.choice(len(bounds), p=[0.3, 0.15, 0.15, 0.25, 0.15])]
    return min(longest, int(rng.integers(low, high + 1)))


def draw_anomalies(
    background: Background, length: int, rng: np.random.Generator, allowed: tuple[str, ...] = tuple(ALL_SHAPES)
) -> tuple[tuple[str, ...], list[Interval]]:
    """Draw up to four anomalies that fit the background, and their places."""
    possible = fitting(background, allowed)
    count = min(int(rng.choice(len(COUNTS), p=COUNTS)), max(1, length // 48))
    if not count or not possible:
        return (), []
    kinds = tuple(possible[place] for place in rng.choice(len(possible), size=count, p=shares(possible)))
    return kinds, draw_places(kinds, length, rng)


def draw_record(rng: np.random.Generator, longest: int = 1024, plain: float = 0.0) -> Record:
    """Draw a record. For a start, a share `plain` asks for anomalies in one wording, or where the extremes lie."""
    if rng.random() < plain:
        return _place(rng, longest) if rng.random() < 0.25 else draw_detection(rng, longest, plain=True)[0]
    if rng.random() < OTHER_TASKS:
        return _other(rng, longest)
    return draw_detection(rng, longest)[0]


def draw_detection(
    rng: np.random.Generator, longest: int = 1024, plain: bool = False
) -> tuple[Record, tuple[str, ...]]:
    """Draw a record that asks for anomalies, and the types that count in it; `plain`: in one wording, all types."""
    length = draw_length(rng, longest)
    background = draw_background(length, rng)
    kinds, places = draw_anomalies(background, length, rng)
    values = round_values(put_in(background, kinds, places, rng), background.deviation)
    text, counted, typed = (TASKS[0], tuple(ALL_SHAPES), True) if plain else draw_prompt(kinds, rng)
    kept = [(kind, place) for kind, place in zip(kinds, places, strict=True) if kind in counted]
    answer = write_answer(tuple(kind for kind, _ in kept), [place for _, place in kept], typed)
    return {"input": text_with_marker(text, rng), "output": answer, "timeseries": [values.tolist()]}, counted


def text_with_marker(text: str, rng: np.random.Generator) -> str:
    """Put the series' marker in front of the text, as GDSH has it, or, rarely, behind."""
    return f"{MARKER}\n{text}" if rng.random() < 0.9 else f"{text}\n{MARKER}"


def draw_prompt(kinds: tuple[str, ...], rng: np.random.Generator) -> tuple[str, tuple[str, ...], bool]:
    """Draw a wording: the text, the types that are to be answered, and whether types are to be named."""

    def one(texts: tuple[str, ...]) -> str:
        return str(texts[rng.integers(len(texts))])

    opening = one(OPENINGS) if rng.random() < 0.6 else ""
    everything = tuple(ALL_SHAPES)
    form = rng.random()
    if form < 0.08:
        return opening + one(UNTYPED), everything, False
    text, counted = opening + one(TASKS), everything
    if form < 0.30:
        order = list(everything) if rng.random() < 0.5 else [everything[i] for i in rng.permutation(len(everything))]
        text += one(ALL_LISTED).format("、".join(order))
    elif form < 0.55:
        # Types that the series shows are named about half of the time, so that the list has to be read.
        named = [kind for kind in everything if rng.random() < (0.5 if kind in kinds else 0.25)]
        named = [named[i] for i in rng.permutation(len(named))] or [everything[rng.integers(len(everything))]]
        if form < 0.45:
            text, counted = text + one(ONLY_LISTED).format("、".join(named)), tuple(named)
        else:
            named = named[:5]
            text += one(NOT_LISTED).format("、".join(named))
            counted = tuple(kind for kind in everything if kind not in named)
    return text + one(FORMATS), counted, True


def round_values(values: Values, deviation: float) -> Values:
    """Round to what a sensor resolves: a fiftieth of the noise or finer."""
    return values.round(max(0, int(np.ceil(-np.log10(deviation))) + 2))


def _other(rng: np.random.Generator, longest: int) -> Record:
    tasks = (_place, _statistics, _trend, _higher, _anomalous)
    return tasks[rng.choice(len(tasks), p=[0.25, 0.25, 0.15, 0.15, 0.2])](rng, longest)


def _any_series(rng: np.random.Generator, longest: int) -> Values:
    length = draw_length(rng, longest)
    background = draw_background(length, rng)
    kinds, places = draw_anomalies(background, length, rng)
    return round_values(put_in(background, kinds, places, rng), background.deviation)


def _place(rng: np.random.Generator, longest: int) -> Record:
    values, high, chinese = _any_series(rng, longest), rng.random() < 0.5, rng.random() < 0.5
    if chinese:
        text = f"{'最大' if high else '最小'}值的下标是多少？"
    else:
        text = f"Index of the {'maximum' if high else 'minimum'}?"
    answer = {"index": int(values.argmax() if high else values.argmin())}
    return {"input": text_with_marker(text, rng), "output": _json(answer), "timeseries": [values.tolist()]}


def _statistics(rng: np.random.Generator, longest: int) -> Record:
    values = _any_series(rng, longest)
    found = (
        ("max", "最大值", round(float(values.max()), 4)),
        ("min", "最小值", round(float(values.min()), 4)),
        ("length", "长度", len(values)),
        ("left", "第一个值", round(float(values[0]), 4)),
        ("right", "最后一个值", round(float(values[-1]), 4)),
    )
    name, word, value = found[rng.integers(len(found))]
    text = f"{word}是多少？" if rng.random() < 0.5 else f"What is its {name}?"
    return {"input": text_with_marker(text, rng), "output": _json({name: value}), "timeseries": [values.tolist()]}


def _trend(rng: np.random.Generator, longest: int) -> Record:
    length = draw_length(rng, longest)
    background, slope = draw_background(length, rng), int(rng.integers(-1, 2))
    values = background.values + slope * background.swing * rng.uniform(2, 5) * np.linspace(0, 1, length)
    values = round_values(values, background.deviation)
    text = "整体趋势是上升、下降还是平稳？" if rng.random() < 0.5 else "Overall trend: 上升, 下降 or 平稳?"
    answer = {"trend": ("平稳", "上升", "下降")[slope]}
    return {"input": text_with_marker(text, rng), "output": _json(answer), "timeseries": [values.tolist()]}


def _higher(rng: np.random.Generator, longest: int) -> Record:
    length = draw_length(rng, min(longest, 256))
    backgrounds = [draw_background(length, rng) for _ in range(2)]
    both, chosen = [one.values for one in backgrounds], int(rng.integers(2))
    gap = max(one.deviation for one in backgrounds) * rng.uniform(1, 30)
    both[chosen] += both[1 - chosen].mean() - both[chosen].mean() + gap
    text = "哪一条的均值更高？" if rng.random() < 0.5 else "Which has the higher mean?"
    return _comparison(text, backgrounds, both, {"higher": chosen + 1})


def _anomalous(rng: np.random.Generator, longest: int) -> Record:
    length = draw_length(rng, min(longest, 256))
    backgrounds = [draw_background(length, rng) for _ in range(2)]
    both, chosen = [one.values for one in backgrounds], int(rng.integers(2))
    possible = fitting(backgrounds[chosen], tuple(ALL_SHAPES))
    kinds = (possible[rng.choice(len(possible), p=shares(possible))],)
    both[chosen] = put_in(backgrounds[chosen], kinds, draw_places(kinds, length, rng), rng)
    text = "哪一条有异常？" if rng.random() < 0.5 else "Which one holds an anomaly?"
    return _comparison(text, backgrounds, both, {"anomalous": chosen + 1, "type": kinds[0]})


def _comparison(text: str, backgrounds: list[Background], both: list[Values], answer: dict[str, Any]) -> Record:
    series = [round_values(x, one.deviation).tolist() for x, one in zip(both, backgrounds, strict=True)]
    return {"input": f"1：{MARKER}\n2：{MARKER}\n{text}", "output": _json(answer), "timeseries": series}


def make_corpus(seed: int) -> Iterator[str]:
    """Texts for a tokenizer: prompts, answers, what stands before a series, and the demo's own prompts."""
    rng = np.random.default_rng([seed, *b"corpus"])
    for _ in range(1500):
        record = draw_record(rng)
        yield "system\nYou are a helpful assistant.\nuser\nassistant\n"
        yield record["input"]
        yield record["output"]
        yield from (describe(np.array(series)) for series in record["timeseries"])
