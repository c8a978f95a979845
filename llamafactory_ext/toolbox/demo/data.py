"""Writes a made-up GDSH data set with the habits of the field's files: names, folders, encodings, answers.

What it writes:

    data/json/gdsh.json            the annotations; some of its records belong to other plants
    data/json/zhlh.json            the annotations of one more plant
    data/timeseries/<plant>/*.csv  one point (sensor) a file, columns ,date,category,value
    data/dataset_info.json         so that dataset_dir can be this folder
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from llamafactory_ext.toolbox.demo.folder import fresh_folder
from llamafactory_ext.toolbox.demo.series import (
    ALL_SHAPES,
    SHAPES,
    Interval,
    Values,
    draw_gaps,
    draw_intervals,
    draw_series,
)


PROMPT = (
    "下面是测点的时间序列。请找出其中的异常，给出起止下标（从0开始，首尾都算）和类型。\n"
    f"可选类型：{'、'.join(SHAPES)}。\n"
    '只输出JSON：{"status":"success","detected_anomalies":[{"interval":[起,止],"type":"类型","reason":"依据"}]}；'
    "没有异常时列表为空。"
)

# How the name of the CSV follows from that of the picture.
NAMING: dict[str, Callable[[str], str]] = {
    "same": lambda stem: stem,
    "prefixed": lambda stem: f"数据集{stem}",
    "shortened": lambda stem: stem.removeprefix("gdsh_second_"),
    "whlj": lambda stem: f"数据集whlj_ljsj_{stem}",
}
POSIX, WINDOWS = "/home/annotator/pictures/{}.jpg", "D:\\标注\\pictures\\{}.JPG"


@dataclass(frozen=True)
class Point:
    """A sensor, or several that show the same anomalies, and how it was annotated.

    `answers` has one entry a record: the form its answer takes (see `write_answer`). The anomalies are dealt
    out to the records in turn, as in the field, where each record of a point carries only some of them.
    """

    pictures: tuple[str, ...]
    naming: str
    length: int
    kinds: tuple[str, ...]
    answers: tuple[str, ...] = ("object",)
    plant: str = "gdsh"
    annotations: str = "gdsh"  # the file in json/
    path: str = POSIX
    encoding: str = "utf-8"
    gaps: bool = False


def _name(*tags: str) -> tuple[str, ...]:
    return tuple(f"gdsh_second_{tag}" for tag in tags)


POINTS = (
    Point(_name("1101FI20031.PV"), "prefixed", 5000, ("点异常", "阶跃上升", "震荡区间"), ("joined",)),
    Point(_name("1101TI20032.PV"), "prefixed", 600, ("上行尖峰", "缓慢漂移"), ("object",)),
    Point(_name("1101PI20033.PV"), "prefixed", 800, ("阶跃下降",), ("compact",), gaps=True),
    Point(_name("1101LI20034.PV"), "same", 500, ("双向尖峰", "点异常"), ("joined",), path=WINDOWS),
    Point(_name("1101FV20035.OUT"), "prefixed", 640, ("突然漂移",), ("literal",)),
    Point(_name("1101TV20036.OUT"), "same", 480, ("下行尖峰",), ("object",), encoding="utf-8-sig"),
    Point(_name("1101FI20037.PV"), "prefixed", 1024, ("区间异常", "点异常", "上行尖峰"), ("object",) * 3),
    Point(_name("1101TI20038.PV"), "prefixed", 900, ("上下文异常", "阶跃上升"), ("joined", "literals")),
    Point(_name("1101PI20039.PV"), "prefixed", 400, (), ("empty",)),
    Point(_name("1101PI20040.PV"), "prefixed", 560, (), ("nothing",), gaps=True),
    Point(_name("1101LI20041.PV"), "prefixed", 720, ("震荡区间",), ("list",), encoding="gb18030"),
    Point(_name("1101TI20042A.PV", "1101TI20042B.PV"), "prefixed", 450, ("阶跃下降", "点异常"), ("object",)),
    Point(_name("AT_051207.PV"), "shortened", 512, ("下行尖峰", "点异常"), ("joined",), plant="hbsn"),
    Point(_name("PT_051208.PV"), "shortened", 640, ("缓慢漂移",), ("object",), plant="hbsn", gaps=True),
    Point(("NB.LJSJ.PT_3B118A.PV",), "whlj", 1500, ("点异常", "双向尖峰", "点异常"), ("joined",) * 2, plant="whlj"),
    Point(("NB.LJSJ.TE_3B119.PV",), "whlj", 700, ("区间异常",), ("object",), plant="whlj", encoding="utf-8-sig"),
    Point(("NB.LJSJ.FT_3B120C.OUT",), "whlj", 540, ("上行尖峰",), ("compact",), plant="whlj", path=WINDOWS),
    Point(("zhlh_100_TI50211.PV",), "same", 600, ("点异常",), ("joined",), plant="zhlh"),
    Point(("zhlh_100_LV50212.OUT",), "prefixed", 750, ("突然漂移", "点异常"), ("joined",), plant="zhlh"),
    Point(("zhlh_100_PI50213B.PV",), "same", 5000, ("上下文异常", "震荡区间"), ("joined",), "zhlh", "zhlh"),
    Point(("zhlh_100_FI50214.PV",), "prefixed", 660, ("阶跃上升",), ("object",), "zhlh", "zhlh"),
    Point(("zhlh_100_AC50215.PV",), "same", 520, (), ("nothing",), "zhlh", "zhlh", encoding="gb18030"),
)


def make_entry(kind: str, interval: Interval) -> dict[str, Any]:
    """State one anomaly the way GDSH's annotators do."""
    start, end = interval
    return {"interval": [start, end], "type": kind, "reason": f"下标{start}到{end}{ALL_SHAPES[kind].reason}"}


def write_answer(form: str, entries: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Put anomalies into one of the forms that answers take in the field; `list` is the one that is no text."""
    remark = {"type": "全局属性", "reason": "有周期，噪声小"}
    whole = {"status": "success", "detected_anomalies": entries}
    match form:
        case "object" | "empty":
            return json.dumps(whole, ensure_ascii=False)
        case "compact":
            return json.dumps(whole, ensure_ascii=False, separators=(",", ":"))
        case "joined":
            return ",".join(
                json.dumps({"status": "success", "detected_anomalies": [entry]}, ensure_ascii=False)
                for entry in [*entries, remark]
            )
        case "nothing":
            nothing = {"type": "无异常", "reason": "未见异常"}
            return json.dumps({"status": "success", "detected_anomalies": [nothing]}, ensure_ascii=False)
        case "literal":
            return str(entries[0])
        case "literals":
            return str(entries)
        case "list":
            return entries
    raise ValueError(f"unknown form of answer: {form}")


def make_records(point: Point, intervals: list[Interval]) -> list[dict[str, Any]]:
    """Make the point's annotation records, one for each of its `answers`."""
    paths = [point.path.format(picture) for picture in point.pictures]
    entries = [make_entry(kind, interval) for kind, interval in zip(point.kinds, intervals, strict=True)]
    prompt = "<image>" * len(paths) + "\n" + PROMPT
    return [
        {
            "image": paths[0] if len(paths) == 1 else paths,
            "conversations": [
                {"from": "user", "value": prompt},
                {"from": "assistant", "value": write_answer(form, entries[turn :: len(point.answers)])},
            ],
        }
        for turn, form in enumerate(point.answers)
    ]


def make_csv(values: Values, gaps: dict[int, str], category: str, encoding: str) -> bytes:
    """Lay out one series as GDSH's export does: a number a minute, its place in the first, nameless column."""
    start = datetime(2025, 1, 1)
    rows = [
        f"{index},{start + timedelta(minutes=index)},{category},{gaps.get(index, f'{value:.4f}')}"
        for index, value in enumerate(values)
    ]
    return "\n".join([",date,category,value", *rows, ""]).encode(encoding)


def make_entries(folder: str = "") -> dict[str, Any]:
    """Describe the demo's annotation files for LLaMA-Factory, with paths that start with `folder`."""
    tags = {"role_tag": "from", "content_tag": "value", "user_tag": "user", "assistant_tag": "assistant"}
    return {
        f"{name}_demo": {
            "file_name": f"{folder}json/{name}.json",
            "formatting": "gdsh",
            "folder": f"{folder}timeseries/{name}",
            "columns": {"messages": "conversations", "images": "image"},
            "tags": tags,
        }
        for name in ("gdsh", "zhlh")
    }


def write_data(path: Path, seed: int = 0) -> None:
    """Write the data set to the folder `path`; the same seed gives the same bytes.

    Raises ForeignFolderError if `path` exists and was not made by the demo.
    """
    rng = np.random.default_rng(seed)
    annotations: dict[str, list[dict[str, Any]]] = {}
    with fresh_folder(path) as folder:
        for point in POINTS:
            intervals = draw_intervals(point.kinds, point.length, rng) if point.kinds else []
            annotations.setdefault(point.annotations, []).extend(make_records(point, intervals))
            plant = folder / "timeseries" / point.plant
            plant.mkdir(parents=True, exist_ok=True)
            category = "测点" if point.encoding == "gb18030" else point.plant
            for picture in point.pictures:
                _, values = draw_series(point.kinds, intervals, point.length, rng)
                gaps = draw_gaps(intervals, point.length, rng) if point.gaps else {}
                table = make_csv(values, gaps, category, point.encoding)
                (plant / f"{NAMING[point.naming](picture)}.csv").write_bytes(table)
        files = {f"json/{name}.json": records for name, records in annotations.items()}
        for name, content in {**files, "dataset_info.json": make_entries()}.items():
            (folder / name).parent.mkdir(exist_ok=True)
            text = json.dumps(content, ensure_ascii=False, indent=2)
            (folder / name).write_text(text + "\n", encoding="utf-8")
