"""Pictures of `llamafactory-ext check`: labels sit where the intervals are, and nothing of the data becomes markup."""

import json
import re
import warnings
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import answer
from hypothesis import given
from hypothesis import strategies as st
from llamafactory_ext.toolbox.check.gallery import draw_gallery, fonts, gallery
from llamafactory_ext.toolbox.check.gallery_files import ForeignPageError, write_whole
from llamafactory_ext.toolbox.check.sheets import draw_sheet
from llamafactory_ext.toolbox.pages.colours import colours, numbers
from llamafactory_ext.toolbox.pages.panels import make_panel, thin
from llamafactory_ext.toolbox.pages.svg import HEIGHT, WIDTH, draw, place

from llamafactory_ext.toolbox.check.findings import Finding, Place
from llamafactory_ext.toolbox.check.inspection import Inspection
from llamafactory_ext.toolbox.session.records import Label, Record, record_facts
from llamafactory_ext.toolbox.session.tokens import Tokens


EVIL = "</title><script>alert(1)</script>\"'&$\\frac{$"
COLOURS = {"spike": "#d55e00", "step": "#0072b2", "": "#009e73", EVIL: "#cc79a7"}


def series(length: int = 500) -> Any:
    values = np.sin(np.arange(length) / 20)
    values[length // 2] = 9.0
    return values


@given(st.integers(1, 100_000), st.data())
def test_a_band_is_where_its_interval_is(length: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, length - 1))
    end = data.draw(st.integers(start, length - 1))
    left, width = place(Label(start, end, ""), length)
    assert left >= 0
    assert left + width <= WIDTH + 1e-6
    assert width >= 3 or np.isclose(width, 3)
    middle = (start + end + 1) / 2 / length * WIDTH
    if width > 3.001:
        assert left == pytest.approx(start / length * WIDTH)
        assert width == pytest.approx((end - start + 1) / length * WIDTH)
    assert abs(left + width / 2 - middle) <= 1.5 + 1e-6


def test_the_svg_has_each_label_with_its_tooltip() -> None:
    labels = [Label(100, 199, "step", "jumps <b>up</b>"), Label(250, 250, "spike", "x" * 400), Label(490, 510, "step")]
    text = draw(make_panel(series(), labels), COLOURS)
    root = ET.fromstring(text)
    bands = root.findall(".//rect[@class='band']")
    assert [(float(b.get("x", "")), float(b.get("width", ""))) for b in bands] == [(200.0, 200.0), (499.5, 3.0)]
    assert [b.get("fill") for b in bands] == ["#0072b2", "#d55e00"]
    assert bands[0].findtext("title") == "step [100, 199]\njumps <b>up</b>"
    assert bands[1].findtext("title") == f"spike [250, 250]\n{'x' * 300}…"
    (mark,) = root.findall(".//circle")
    assert (float(mark.get("cx", "")), float(mark.get("cy", ""))) == (501.0, 6.0)  # the highest value
    assert float(mark.get("r", "")) >= 3


@pytest.mark.parametrize("values", [[5.0], [5.0] * 70, [0.0, 1e308, -1e308], [1e-320, 2e-320], [-0.0, 0.0]])
def test_every_series_can_be_drawn(values: list[float], tmp_path: Path) -> None:
    panel = make_panel(np.array(values), [Label(0, len(values) - 1, "spike")])
    root = ET.fromstring(draw(panel, COLOURS))
    for line in root.findall(".//polyline"):
        points = [tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()]
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_sheet([("a", panel)], COLOURS, COLOURS, tmp_path / "a.png")


def test_thinning_keeps_every_spike_and_the_labelled_points() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    values[[4321, 12_345]] = 50.0, -50.0
    at = thin(values)
    assert len(at) <= 1000
    assert {0, 4321, 12_345, 19_999} <= set(at.tolist())
    assert (np.diff(at) > 0).all()
    assert thin(values[:1000]).tolist() == list(range(1000))
    quiet = make_panel(values, [Label(777, 777, "spike")])
    assert 777 in quiet.at.tolist()
    assert quiet.values.tolist() == values[quiet.at].tolist()
    assert quiet.peaks == (values[777],)


def test_labels_outside_the_series_are_not_drawn() -> None:
    panel = make_panel(series(10), [Label(0, 10, ""), Label(-1, 3, ""), Label(5, 4, ""), Label(0, 9, "")])
    assert panel.labels == (Label(0, 9, ""),)


def found(tmp_path: Path, count: int = 3, name: str = "record %", kind: str = "spike") -> Inspection:
    """An inspection of records that were never in a file."""
    reply = answer((250, 250), (100, 199), kind=kind)
    turns = [{"role": "user", "content": f"<ts><ts/> {EVIL}"}, {"role": "assistant", "content": reply}]
    notes: dict[str, Any] = {"fault": "", "values_filled": 0}

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
    made = found(tmp_path, name=EVIL + " %", kind=EVIL)
    made.findings = [Finding("unusable", "fault", EVIL, (Place(1, EVIL),), EVIL)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_gallery(made, tmp_path / "out", EVIL, 10)
    page, text = read_page(tmp_path / "out")
    assert "script" not in page.tags
    assert "<script" not in text
    assert page.text.count("<script>alert(1)</script>") >= 8
    assert "http" not in "".join(page.links)
    assert "default-src 'none'" in text


def test_page_index_and_order(tmp_path: Path) -> None:
    made = found(tmp_path, count=30)
    made.findings = [
        Finding("contradiction", "fault", "two differ", (Place(28, "also asked in record 3"),)),
        Finding("border", "notice", "touch", (Place(5), Place(28))),
    ]
    drawn = draw_gallery(made, tmp_path, "data", 27)
    page, text = read_page(tmp_path)
    names = re.findall(r"<h3>(.*?)</h3>", text)
    assert names == [f"record {i}" for i in (28, 5, *(i for i in range(26) if i != 5))]
    assert "27 of 30 records drawn" in page.text
    assert {f"#r{i}" for i in range(27)} | {"sheet-001.png", "sheet-002.png", "data:,"} == set(page.links)
    assert page.ids == [f"r{i}" for i in range(27)]
    assert "contradiction: also asked in record 3" in page.text
    assert drawn.sheets[28] == ("sheet-001.png",)
    assert drawn.sheets[25] == ("sheet-002.png",)
    assert len(drawn.sheets) == 27
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "sheet-001.png", "sheet-002.png"]


def pixels(path: Path) -> Any:
    from matplotlib import image

    return image.imread(path)[..., :3]


def test_the_sheet_shows_line_and_band_at_the_right_place(tmp_path: Path) -> None:
    panel = make_panel(np.where(np.arange(1000) < 500, 0.0, 1.0), [Label(600, 899, "step")])
    draw_sheet([("a", panel)], {"step": "#0000ff"}, {"step": "step"}, tmp_path / "a.png")
    shown = pixels(tmp_path / "a.png")
    first, others = np.split(shown, [shown.shape[1] // 4], axis=1)
    row = first[first.shape[0] // 2]  # between the two levels of the line
    blue = np.flatnonzero((row[:, 2] > 0.9) & (row[:, 0] < 0.8))
    dark = np.flatnonzero(row.sum(axis=1) < 1.8)
    left, jump = dark.min(), dark.max()  # the left axis, and the step in the middle
    scale = (jump - left) / 500
    assert blue.min() == pytest.approx(left + 600 * scale, abs=4)
    assert blue.max() == pytest.approx(left + 900 * scale, abs=4)
    assert (others[80:] == 1).all()  # panels that are not there leave the sheet white


def test_a_single_point_is_seen_on_the_sheet(tmp_path: Path) -> None:
    panel = make_panel(np.zeros(5000), [Label(2500, 2500, "spike")])
    draw_sheet([("a", panel)], {"spike": "#ff0000"}, {"spike": "spike"}, tmp_path / "a.png")
    shown = pixels(tmp_path / "a.png")
    area = shown[60:, : shown.shape[1] // 4]
    red = (area[..., 0] > 0.9) & (area[..., 1] < 0.8)
    rows = [np.flatnonzero(row) for row in red if row.any()]
    assert len(rows) > 80  # from the bottom of the panel to above its top
    assert all(3 <= np.ptp(row) + 1 <= 16 for row in rows)


def test_types_without_glyphs_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "families", lambda: ("DejaVu Sans",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw_gallery(found(tmp_path, name="数据集 % 😀", kind="点异常"), tmp_path / "a", "点异常", 9)
        plain = draw_gallery(found(tmp_path, kind="spike"), tmp_path / "b", "data", 9)
    assert drawn.keys == {"T1": "点异常"}
    assert "T1 点异常 × 6" in read_page(tmp_path / "a")[0].text
    assert plain.keys == {}
    assert fonts.drawable("点 spike", ["DejaVu Sans"]) == "? spike"


def test_an_old_gallery_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    draw_gallery(found(tmp_path, count=50), tmp_path, "data", 500)
    assert (tmp_path / "sheet-003.png").exists()
    draw_gallery(found(tmp_path, count=2), tmp_path, "data", 500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "notes.txt", "sheet-001.png"]


def test_a_foreign_page_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>mine</h1>")
    with pytest.raises(ForeignPageError, match="not written by this tool"):
        draw_gallery(found(tmp_path), tmp_path, "data", 500)
    assert (tmp_path / "index.html").read_text() == "<h1>mine</h1>"
    with pytest.raises(ForeignPageError, match="is a file"):
        draw_gallery(found(tmp_path), tmp_path / "index.html", "data", 500)


def test_sheets_of_somebody_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sheet-009.png").write_bytes(b"mine")
    draw_gallery(found(tmp_path), tmp_path, "data", 500)
    assert (tmp_path / "sheet-009.png").read_bytes() == b"mine"


def test_an_interrupt_leaves_the_old_gallery_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_gallery(found(tmp_path), tmp_path, "old", 500)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gallery, "draw_sheet", interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw_gallery(found(tmp_path, count=30), tmp_path, "new", 500)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_whole(path, '"old"\n')
    with pytest.raises(TypeError):
        write_whole(path, 5)  # type: ignore[arg-type]
    assert json.loads(path.read_text()) == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_colours_differ_and_types_are_numbered() -> None:
    types = [f"type {i}" for i in range(15)]
    chosen = colours(types)
    assert len(set(list(chosen.values())[:12])) == 12
    assert len(chosen) == 15
    assert numbers(types)["type 14"] == "T15"
