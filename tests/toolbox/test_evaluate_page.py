"""The page of an evaluation: in a real browser, and as HTML."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import answer
from helpers_browser import Visit, visit

from llamafactory_ext.gdsh.answers import Anomaly
from llamafactory_ext.toolbox.evaluate import page as pages
from llamafactory_ext.toolbox.evaluate.history import add_line, data_of, read_history
from llamafactory_ext.toolbox.evaluate.judging import Evaluation, Judged
from llamafactory_ext.toolbox.evaluate.page import BEST, METRICS, WORST, order, page, write_page
from llamafactory_ext.toolbox.evaluate.predictions import EvaluateError


EVIL = "</title></svg><script>alert(1)</script>\"'&"
LENGTH = 5000
WIDE, PHONE = (1200, 4000), (360, 6000)


def anomalies(*pairs: tuple[int, int], kind: str = "点异常") -> tuple[Anomaly, ...]:
    return tuple(Anomaly(start, end, {"type": kind, "reason": "偏离 <b>"}) for start, end in pairs)


def judged(index: int, score: float = 0.5, **given: Any) -> Judged:
    known: dict[str, Any] = {"labels": (), "predicted": (), "strict": True, "problem": "", "name": f"point {index}"}
    return Judged(**{"index": index, "length": LENGTH, "scores": dict.fromkeys(METRICS, score), **known, **given})


def scores(**more: Any) -> dict[str, Any]:
    """What scores.json holds."""
    four = {"event_f1": 0.612, "range_f1": 0.5, "affiliation_f1": 0.7, "point_f1": 0.4}
    found: dict[str, Any] = {"strict_json_rate": 0.875, **four, "event_precision": 0.75, "event_recall": 0.52}
    found |= {"event_f1_iou30": 0.5, "vus_pr": 0.7, "false_alarms_per_1000_points": 0.4, "right_type": None}
    found["confidence"] = {"event_f1": [0.551, 0.664]}
    found["baselines"] = {"random": dict.fromkeys(four, 0.1), "zscore": {**four, "event_f1": 0.65}}
    found["per_type"] = {
        kind: {**four, "labels": 3, "predicted": 2, "recall_of_any_type": 0.5} for kind in ("点异常", EVIL)
    }
    return {**found, "answers": {"strict": 7, "cut_off": 1}, "events": {"hits": 5}, **more}


def series(spike: int = 3000) -> Any:
    values = np.sin(np.arange(LENGTH) / 50)
    values[spike] = 9.0
    return values


def known() -> Evaluation:
    labels, predicted = anomalies((1000, 1999), (3000, 3000)), anomalies((2500, 2749), (4000, 4000), kind="阶跃上升")
    records = [
        judged(0, 1.0, name="right", labels=labels, predicted=labels, series=(series(), series()[:3000])),
        judged(1, 0.0, name="wrong", labels=labels, predicted=predicted, series=(series(),)),
        judged(2, 0.0, name=EVIL * 4, problem=f"no JSON: {EVIL}", strict=False, labels=anomalies((0, 9), kind=EVIL)),
    ]
    return Evaluation(scores(), records)


MEASURE = """() => {
  const page = document, box = ({left, right, top, bottom}) => ({left, right, top, bottom})
  const boxes = (where, what) => [...where.querySelectorAll(what)].map(one => box(one.getBoundingClientRect()))
  const card = page.getElementById("r1")
  return {
    names: [...page.querySelectorAll("h3")].filter(one => one.closest(".card")).map(one => one.textContent),
    tiles: [...page.querySelectorAll(".tiles b")].map(one => one.textContent),
    area: boxes(card, ".area")[0], labels: boxes(card, ".lane.label rect"), guesses: boxes(card, ".lane.guess rect"),
    dots: boxes(card, ".marks.label circle"), rings: boxes(card, ".marks.guess circle"),
    line: boxes(card, "polyline")[0],
    scripts: page.scripts.length, resources: performance.getEntriesByType("resource").map(one => one.name),
    width: page.documentElement.scrollWidth, letters: getComputedStyle(card.querySelector("svg text")).fontSize,
    numbers: [...card.querySelectorAll(".middle")].filter(one => one.getClientRects().length)
      .map(one => one.textContent),
    references: [...page.querySelectorAll("svg.panel")].map(
      one => one.getAttribute("aria-labelledby").split(" ").map(id => page.getElementById(id).parentNode == one)),
  }
}"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """The known evaluation in a browser, on a wide screen and on a phone."""
    path = tmp_path_factory.mktemp("page") / "index.html"
    write_page(known(), path)
    return visit(path, [WIDE, PHONE], MEASURE)


def test_the_browser_finds_nothing_to_complain_about_and_nothing_to_load(seen: Visit) -> None:
    assert seen.console == []
    assert len(set(seen.requests)) == 1
    assert seen.requests[0].endswith("/index.html")
    for one in seen.measured:
        assert one["resources"] == []
        assert one["scripts"] == 1


def test_headline_and_order(seen: Visit) -> None:
    wide = seen.measured[0]
    assert wide["tiles"] == ["87.5%", "0.612", "0.500", "0.700", "0.400", "–"]
    assert wide["names"] == [EVIL * 4, "wrong", "right"]


@pytest.mark.parametrize("which", [0, 1], ids=["wide", "phone"])
def test_bands_are_where_their_intervals_are(seen: Visit, which: int) -> None:
    found = seen.measured[which]
    area = found["area"]
    width = area["right"] - area["left"]
    for kind, pairs in {"labels": [(1000, 2000), (3000, 3001)], "guesses": [(2500, 2750), (4000, 4001)]}.items():
        assert len(found[kind]) == 2
        for band, (start, end) in zip(found[kind], pairs, strict=True):
            assert band["left"] == pytest.approx(area["left"] + start / LENGTH * width, abs=0.1)
            assert band["right"] == pytest.approx(area["left"] + end / LENGTH * width, abs=0.1)
    assert all(band["bottom"] < area["top"] for band in found["labels"])
    assert all(band["top"] > area["bottom"] for band in found["guesses"])
    (dot,), (ring,) = found["dots"], found["rings"]
    assert (dot["left"] + dot["right"]) / 2 == pytest.approx(area["left"] + 3000.5 / LENGTH * width, abs=0.1)
    assert (dot["top"] + dot["bottom"]) / 2 == pytest.approx(found["line"]["top"], abs=1)  # the highest value
    assert (ring["left"] + ring["right"]) / 2 == pytest.approx(area["left"] + 4000.5 / LENGTH * width, abs=0.1)
    assert area["top"] < found["line"]["top"] < found["line"]["bottom"] < area["bottom"]
    assert found["line"]["left"] == pytest.approx(area["left"], abs=1)
    assert found["line"]["right"] == pytest.approx(area["right"], abs=1)


def test_the_phone_shows_all_of_it_and_can_be_read(seen: Visit) -> None:
    wide, phone = seen.measured
    assert phone["width"] == PHONE[0]  # nothing sticks out
    assert wide["letters"] == phone["letters"] == "11px"
    assert wide["numbers"] == ["0", "1000", "2000", "3000", "4000"]
    assert phone["numbers"] == ["0", "2000", "4000"]


def test_every_picture_has_a_title_and_a_description(seen: Visit) -> None:
    assert seen.measured[0]["references"] == [[True, True]] * 4  # one record has two series


def test_what_is_painted(seen: Visit) -> None:
    """Labels are filled, predictions hatched, single points wide enough to be seen."""
    from matplotlib import image

    pixels = np.asarray(image.imread(seen.picture))[..., :3]
    found = seen.measured[0]
    blue, orange = ((pixels[..., a] > pixels[..., b] + 0.3) for a, b in ((2, 0), (0, 2)))

    def columns(colour: Any, kind: str, place: int) -> Any:
        band = found[kind][place]
        rows = colour[round(band["top"]) + 2 : round(band["bottom"]) - 2]
        near = slice(round(band["left"]) - 20, round(band["right"]) + 20)
        return rows[:, near], near.start

    label, start = columns(blue, "labels", 0)
    painted = np.flatnonzero(label.all(axis=0)) + start
    assert painted.min() == pytest.approx(found["labels"][0]["left"], abs=1.5)
    assert painted.max() == pytest.approx(found["labels"][0]["right"], abs=1.5)
    assert len(painted) == np.ptp(painted) + 1
    hatched, start = columns(orange, "guesses", 0)
    painted = np.flatnonzero(hatched.any(axis=0)) + start
    assert painted.min() == pytest.approx(found["guesses"][0]["left"], abs=1.5)
    assert painted.max() == pytest.approx(found["guesses"][0]["right"], abs=1.5)
    inside = hatched[:, painted.min() - start + 3 : painted.max() - start - 2]
    assert 0.25 < inside.mean() < 0.75
    for colour, kind in ((blue, "labels"), (orange, "guesses")):
        assert 2 <= columns(colour, kind, 1)[0].any(axis=0).sum() <= 5


class Reader(HTMLParser):
    """Collects what a page is made of, and sees to it that tags are closed in order."""

    EMPTY = frozenset(("meta", "link", "br"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.cells: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]
        self.open += [] if tag in self.EMPTY else [tag]
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th") and self.cells:
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open = self.open[:-1]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data


def read(evaluation: Evaluation) -> Reader:
    return Reader("".join(page(evaluation)))


def test_hostile_texts_stay_texts() -> None:
    found = read(known())
    assert found.tags.count("script") == 1
    assert not any(key.startswith("on") for key, _ in found.attributes)
    assert {value for key, value in found.attributes if key in ("href", "src")} == {"data:,", "#r0", "#r1", "#r2"}
    assert found.text.count("<script>alert(1)</script>") >= 12
    assert "偏离 <b>" in found.text
    identities = [value for key, value in found.attributes if key == "id"]
    assert len(identities) == len(set(identities))


def test_scores_in_words() -> None:
    found = read(known())
    assert "0.551 to 0.664 (95%)" in found.text
    assert "precision 0.750" in found.text
    assert ["event F1", "0.612", "0.551 to 0.664", "0.100", "0.650"] in found.cells
    assert "Not better than a baseline: event F1 (rolling z-score), range F1 (rolling z-score)" in found.text
    assert ["点异常", "点异常: event F1 0.6120.612", "3", "2", "0.500", "0.500", "0.700", "0.400"] in found.cells
    assert "cut off1" in found.text
    widths = re.findall(r'class="fill" width="([\d.]+)%"', "".join(page(known())))
    assert widths == ["61.20", "61.20"]


def test_intervals_in_words() -> None:
    text = read(known()).text
    assert "labels (2)1000–1999 点异常 missed3000 点异常 missed" in text
    assert "predicted (2)2500–2749 阶跃上升 false alarm4000 阶跃上升 false alarm" in text
    assert "predicted (2)1000–1999 点异常3000 点异常" in text
    many = judged(0, labels=anomalies(*((place, place) for place in range(0, 100, 2))))
    text = read(Evaluation(scores(), [many])).text
    assert "labels (50)" in text
    assert "30 more" in text
    assert text.count("点异常 missed") == 50


def test_an_empty_evaluation_and_a_single_record() -> None:
    assert "There are none." in read(Evaluation({}, [])).text
    assert "0 records of 0 points" in read(Evaluation(scores(), [])).text
    alone = read(Evaluation({"strict_json_rate": 1.0, "confidence": {}, "baselines": {}, "per_type": {}}, [judged(0)]))
    assert "1 record of 1 point" in alone.text
    assert alone.tags.count("article") == 1
    assert "baseline" not in alone.text


def many(count: int) -> Evaluation:
    rng = np.random.default_rng(0)
    values = np.cumsum(rng.normal(size=LENGTH))
    pairs = [(start, start + 40) for start in range(0, LENGTH, 250)]
    some = anomalies(*pairs)
    return Evaluation(
        scores(),
        [judged(i, (i * 7 % count) / count, labels=some, predicted=some, series=(values,)) for i in range(count)],
    )


def test_of_many_records_both_ends_are_drawn_and_the_others_counted(tmp_path: Path) -> None:
    evaluation = many(1000)
    write_page(evaluation, tmp_path / "index.html")
    assert (tmp_path / "index.html").stat().st_size < 1_600_000  # 20 intervals of each kind a record, 5000 points
    found = Reader((tmp_path / "index.html").read_text(encoding="utf-8"))
    ranked = order(evaluation.records)
    assert [one.scores["event_f1"] for one in ranked] == sorted(one.scores["event_f1"] for one in ranked)
    drawn = [one.index for one in [*ranked[:WORST], *reversed(ranked[-BEST:])]]
    assert len(drawn) == 30 + 10
    cards = [value for key, value in found.attributes if key == "id" and re.fullmatch(r"r\d+", value)]
    assert cards == [f"r{index}" for index in drawn]
    assert f"the other {1000 - WORST - BEST} are in the table of all records only" in found.text
    rows = [row for row in found.cells if re.fullmatch(r"point \d+", row[0])]
    assert [row[1] for row in rows] == [str(one.index) for one in ranked]
    links = {value for key, value in found.attributes if key == "href" and value.startswith("#r")}
    assert links == {f"#r{index}" for index in drawn}


def test_all_are_drawn_where_that_is_not_many() -> None:
    found = read(many(WORST + BEST))
    assert found.tags.count("article") == WORST + BEST
    assert "the other" not in found.text


def test_of_many_series_the_first_are_drawn_and_the_others_counted() -> None:
    found = read(Evaluation(scores(), [judged(0, series=(series(),) * 9)]))
    assert "series 6 of 9" in found.text
    assert "series 7 of 9" not in found.text
    assert "3 more series are not drawn." in found.text


def test_unreadable_answers_are_worse_than_wrong_ones() -> None:
    records = [judged(0, 0.0), judged(1, 1.0, problem="no JSON", strict=False), judged(2, 0.0), judged(3, 0.4)]
    records += [judged(4, 0.3, problem="cut off", strict=False, predicted=anomalies((1, 2)))]  # salvaged
    assert [one.index for one in order(records)] == [1, 0, 2, 4, 3]


def test_real_scores_are_shown() -> None:
    """What scoring gives has the names that the page looks for."""
    pytest.importorskip("aeon", reason="scores need it")
    from llamafactory_ext.series import describe
    from llamafactory_ext.toolbox.evaluate.points import Source
    from llamafactory_ext.toolbox.evaluate.predictions import Prediction
    from llamafactory_ext.toolbox.evaluate.scoring import evaluate

    values = series(300)[:600]
    labels = answer((300, 300), (100, 199))
    replies = [labels, answer((250, 320), kind="阶跃上升"), "no"]
    predictions = [Prediction(i, describe(values), reply, labels) for i, reply in enumerate(replies)]
    sources = [Source(f"p{i}", labels, (values,)) for i in range(len(replies))]
    found = read(evaluate(predictions, sources))
    assert "strict JSON66.7%" in found.text
    assert "(95%)precision" in found.text
    assert ["score", "model", "95%", "random places", "rolling z-score", "quartile fences"] in found.cells
    assert all(
        "–" not in cell for row in found.cells for cell in row if row[0] in [*METRICS.values(), "VUS-PR", "点异常"]
    )
    assert "Answersstrict2lenient0" in found.text
    assert "Eventshits3" in found.text
    assert [row[0] for row in found.cells if re.fullmatch(r"p\d", row[0])] == ["p2", "p1", "p0"]
    bare = read(evaluate(predictions))
    assert re.search("Left out: (rolling z-score|quartile fences) and (rolling z-score|quartile fences)", bare.text)


def test_each_score_stands_beside_the_detectors_and_the_best_is_known() -> None:
    own = {"event_f1": 0.5, "range_f1": 0.4, "vus_pr": None, "mean_delay": 3.0, "confidence": {"event_f1": [0.1, 0.9]}}
    others = {
        "iqr": {"event_f1": 0.5, "range_f1": 0.3, "vus_pr": 0.2, "mean_delay": 2.0},
        "random": {"event_f1": 0.1, "range_f1": None, "vus_pr": 0.1, "mean_delay": 3.5},
        "mine": {},
    }
    given = {**own, "vus_from": "intervals"}
    assert list(pages._against(given, others)) == [
        ("event F1", [0.1, 0.9], [0.5, 0.5, 0.1, None], 0.5),
        ("VUS-PR, from intervals", None, [None, 0.2, 0.1, None], 0.2),
        ("points until the first hit, less is better", None, [3.0, 2.0, 3.5, None], 2.0),
        ("range F1", None, [0.4, 0.3, None, None], 0.4),
    ]
    assert [name for name, *_ in pages._against({**own, "vus_from": "confidences"}, others)][1] == "VUS-PR"
    assert list(pages._against(given, {})) == []
    assert list(pages._not_beaten(given, others)) == [
        "event F1 (quartile fences)",
        "VUS-PR (quartile fences, random places)",
        "points until the first hit (quartile fences)",
    ]
    assert [pages.named(name) for name in ("zscore", "random", "mine")] == ["rolling z-score", "random places", "mine"]


def test_of_a_long_history_the_last_lines_are_shown(tmp_path: Path) -> None:
    path, evaluation = tmp_path / "history.jsonl", known()
    lines = [add_line(path, evaluation, f"run {place:02d}!", "d") for place in range(22)][-1]
    assert [len(lines), lines[-1]["name"], lines[-1]["records"], len(lines[-1]["data"])] == [22, "run 21!", 3, 12]
    text = "".join(page(evaluation, lines))
    assert [f"run {place:02d}!" in text for place in range(22)] == [False] * 2 + [True] * 20
    drawn = "".join(page(evaluation, lines[:2])).count("<svg"), "".join(page(evaluation, lines[:1])).count("<svg")
    assert drawn[0] > drawn[1], "one line is no curve"
    # Lines of other data stay and are passed over; a line without end is ended; anything else is no history.
    path.write_text(path.read_text().splitlines()[0] + '\n\n{"data": "another", "scores": {}}', encoding="utf-8")
    assert [one["name"] for one in add_line(path, evaluation, "new", "d")] == ["run 00!", "new"]
    assert [one["name"] for one in read_history(path, lines[0]["data"])] == ["run 00!", "new"]
    turned = [replace(one, labels=one.labels[::-1]) for one in evaluation.records]
    assert data_of(Evaluation({}, turned)) == data_of(evaluation) != data_of(Evaluation({}, turned[::-1]))
    path.write_text(json.dumps({"data": lines[0]["data"], "scores": [1]}), encoding="utf-8")
    assert read_history(path, lines[0]["data"]) == []
    for wrong in ("{", "[]", '{"data": 1'):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(EvaluateError, match=r"history.jsonl is no history of scores: .+; name another file, or"):
            read_history(path, "")


def test_the_old_page_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index.html"
    write_page(known(), path)
    before = path.read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pages, "panels", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_page(known(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
