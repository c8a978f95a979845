"""The page of `llamafactory-ext check`: what is drawn, in which order, and that nothing of the data becomes markup."""

import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import answer
from helpers_browser import visit

from llamafactory_ext.errors import UsageError
from llamafactory_ext.toolbox.check import page as pages
from llamafactory_ext.toolbox.check.findings import Finding, Place
from llamafactory_ext.toolbox.check.inspection import Inspection
from llamafactory_ext.toolbox.check.page import write_page
from llamafactory_ext.toolbox.session.records import Record, record_facts
from llamafactory_ext.toolbox.session.tokens import Tokens


EVIL = "</title><script>alert(1)</script>\"'&$\\frac{$"


def series(length: int = 500) -> Any:
    values = np.sin(np.arange(length) / 20)
    values[length // 2] = 9.0
    return values


def found(
    count: int = 3, name: str = "record %", kind: str = "spike", more: tuple[tuple[int, int], ...] = ()
) -> Inspection:
    """An inspection of records that were never in a file."""
    reply = answer((250, 250), (100, 199), *more, kind=kind)
    turns = [{"role": "user", "content": f"<ts><ts/> {EVIL}"}, {"role": "assistant", "content": reply}]
    notes: dict[str, Any] = {"fault": "", "values_filled": 0, "asked": "1:a", "answered": "b"}

    class Made(Inspection):
        def record(self, row: int) -> Record:
            return Record(name.replace("%", str(row)), "", turns, [series()], notes)

    arguments: Any = SimpleNamespace(data=SimpleNamespace(cutoff_len=100))
    made = Made(arguments, [])
    made.records = [record_facts(name.replace("%", str(row)), "", turns, [series()], notes) for row in range(count)]
    made.tokens = [Tokens(1, 2, 3)] * count
    return made


class Checker(HTMLParser):
    """Collects the tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        assert not any(key.startswith("on") for key in values)
        self.links += [value for key, value in attrs if key in ("href", "src") and value]
        self.ids += [values["id"]] if values.get("id") else []  # type: ignore[list-item]

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(folder: Path) -> tuple[Checker, str]:
    text = (folder / "index.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    return checker, text


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    made = found(name=EVIL + " %", kind=EVIL)
    made.findings = [Finding("unusable", "fault", EVIL, (Place(1, EVIL),), EVIL)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_page(made, tmp_path / "out", EVIL, 10)
    page, text = read_page(tmp_path / "out")
    assert page.tags.count("script") == 1
    assert text.count("<script") == 1
    assert page.text.count("<script>alert(1)</script>") >= 8
    assert "http" not in "".join(page.links)
    assert "default-src 'none'" in text


def test_order_of_cards_and_the_table_after_them(tmp_path: Path) -> None:
    made = found(count=30)
    made.findings = [
        Finding("contradiction", "fault", "two differ", (Place(28, "also asked in record 3"),)),
        Finding("border", "notice", "touch", (Place(5), Place(28), Place(29))),
    ]
    drawn = write_page(made, tmp_path, "data", 27)
    page, text = read_page(tmp_path)
    names = re.findall(r"<h3>(.*?)</h3>", text)
    assert names == [f"record {i}" for i in (28, 5, 29, *(i for i in range(25) if i != 5))]
    assert "27 of 30 records drawn" in page.text
    assert {f"#r{i}" for i in range(27)} | {"#all", "data:,"} == set(page.links)
    assert [one for one in page.ids if one.startswith("r")] == [f"r{i}" for i in range(27)]
    assert text.rindex("<section") < text.index('id="all"') < text.index("<table")
    assert "contradiction also asked in record 3" in page.text
    assert len(page.ids) == len(set(page.ids))
    assert (drawn.records, drawn.of) == (27, 30)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_findings_lead_to_the_records_that_they_concern(tmp_path: Path) -> None:
    made = found(count=30)
    made.findings = [Finding("border", "notice", "touch", tuple(Place(row) for row in range(10, 20)), "look")]
    write_page(made, tmp_path, "data", 8)
    text = read_page(tmp_path)[1]
    said = text[text.index("<h2>Findings") : text.index("<h2>Records")]
    assert re.findall(r'<a href="#r(\d)">record (\d+)</a>', said) == [(str(i), str(10 + i)) for i in range(5)]
    assert "and 5 more" in said
    assert "→ look" in said


def test_what_holds_for_all_records_is_said_once(tmp_path: Path) -> None:
    made = found(count=30)
    everywhere = tuple(Place(row) for row in range(30))
    made.findings = [
        Finding("length", "notice", "30 are short", everywhere),
        Finding("wide", "notice", "29 are wide", everywhere[1:]),
        Finding("gaps", "notice", "30 have gaps", tuple(Place(row, f"{row} values") for row in range(30))),
    ]
    write_page(made, tmp_path, "data", 500)
    text = read_page(tmp_path)[1]
    assert text.count(">length</span>") == 1
    assert "30 are short: every record" in text
    assert text.count(">wide</span>") == 1 + 2 * 29
    assert text.count(">gaps</span>") == 1 + 2 * 30  # of each something else
    assert "29 values" in text


def test_labels_outside_the_series_are_listed_but_not_drawn(tmp_path: Path) -> None:
    write_page(found(count=1, more=((480, 500),)), tmp_path, "data", 500)
    page, text = read_page(tmp_path)
    assert "labels (3)" in page.text
    assert "480–500 spike outside, not drawn" in page.text
    assert text.count("<title>spike [") == 2 + 1  # two bars and a dot
    assert "[480, 500]" not in re.sub("<pre>.*?</pre>", "", text, flags=re.DOTALL)


def test_types_have_colours_of_their_own(tmp_path: Path) -> None:
    write_page(found(kind="点异常"), tmp_path, "data", 500)
    page, text = read_page(tmp_path)
    assert "点异常 × 6" in page.text
    assert text.count('<rect class="t0"') == 3 * 2 * 2  # bars and bands


MEASURE = """() => ({
  width: document.documentElement.scrollWidth, scripts: document.scripts.length,
  fill: [...document.querySelectorAll(".lane.label rect, .marks.label circle, .legend .key")]
    .map(one => one.matches("i") ? getComputedStyle(one).backgroundColor : getComputedStyle(one).fill),
  bars: [...document.querySelectorAll("#r0 .lane.label rect, #r0 .area")]
    .map(one => one.getBoundingClientRect().toJSON())
})"""


def test_in_a_browser(tmp_path: Path) -> None:
    write_page(found(name=EVIL + " %", kind="spike"), tmp_path, EVIL, 500)
    seen = visit(tmp_path / "index.html", [(1200, 2000), (360, 2000)], MEASURE)
    assert seen.console == []
    assert set(seen.requests) == {(tmp_path / "index.html").as_uri()}
    for one, width in zip(seen.measured, (1200, 360), strict=True):
        assert (one["width"], one["scripts"]) == (width, 1)
        assert set(one["fill"]) == {"rgb(213, 94, 0)"}
        area, wide, single = one["bars"]
        assert wide["left"] == pytest.approx(area["left"] + 0.2 * area["width"], abs=0.1)
        assert single["left"] == pytest.approx(area["left"] + 0.5 * area["width"], abs=0.1)
        assert wide["width"] == pytest.approx(0.2 * area["width"], abs=0.1)
        assert wide["bottom"] < area["top"]


def test_an_old_page_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "sheet-009.png").write_bytes(b"mine")
    write_page(found(count=50), tmp_path, "data", 500)
    write_page(found(count=2), tmp_path, "data", 500)
    assert read_page(tmp_path)[1].count("<section") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "notes.txt", "sheet-009.png"]


def test_a_foreign_page_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>mine</h1>")
    with pytest.raises(UsageError, match="not written by this tool"):
        write_page(found(), tmp_path, "data", 500)
    assert (tmp_path / "index.html").read_text() == "<h1>mine</h1>"
    with pytest.raises(UsageError, match="is a file"):
        write_page(found(), tmp_path / "index.html", "data", 500)


def test_an_interrupt_leaves_the_old_page_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_page(found(), tmp_path, "old", 500)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pages, "make_panels", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_page(found(count=30), tmp_path, "new", 500)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
