"""What all pages are made of: the drawn series, the style, and how values become text."""

import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory_ext import toolbox
from llamafactory_ext.errors import UsageError
from llamafactory_ext.files import refuse_foreign
from llamafactory_ext.gdsh.answers import Anomaly
from llamafactory_ext.toolbox.pages import environment, render
from llamafactory_ext.toolbox.pages.panel import GUESS, LABEL, make_panel, thin
from llamafactory_ext.toolbox.session.records import Label


def anomalies(*pairs: tuple[int, int]) -> tuple[Anomaly, ...]:
    return tuple(Anomaly(start, end, {"type": "点异常", "reason": "偏离 <b>"}) for start, end in pairs)


def draw(*given: Any, **more: Any) -> str:
    """The SVG of a panel."""
    module: Any = environment().get_template("parts.html.j2").module
    return str(module.panel(make_panel("a", "1", *given, **more)))


def both(length: int, labels: Sequence[Any], guesses: Sequence[Any], series: Any = None) -> str:
    return draw(length, {LABEL: labels, GUESS: guesses}, series)


def edges(svg: str, kind: str) -> list[tuple[float, float]]:
    """Left and right edge of each bar, in percent."""
    bars = ET.fromstring(svg).findall(f"./g[@class='{kind}']/rect")
    found = [(float(bar.get("x", "")[:-1]), float(bar.get("width", "")[:-1])) for bar in bars]
    return [(left, left + width) for left, width in found]


@given(st.integers(1, 100_000), st.integers(-10, 100_010), st.integers(-10, 100_010))
def test_bars_of_any_interval(length: int, start: int, end: int) -> None:
    svg = both(length, anomalies((start, end)), anomalies((end, start)))
    found = [*edges(svg, "lane label"), *edges(svg, "lane guess")]
    assert found == [*edges(svg, "tint label"), *edges(svg, "tint guess")]
    low, high = sorted((start, end))
    shown = max(low, 0) <= min(high, length - 1)
    assert len(found) == (2 if shown and start == end else shown)
    for left, right in found:
        assert left == pytest.approx(max(low, 0) / length * 100, abs=0.001)
        assert right == pytest.approx((min(high, length - 1) + 1) / length * 100, abs=0.002)


def test_predictions_tint_the_lower_half() -> None:
    root = ET.fromstring(both(9, anomalies((1, 2)), anomalies((1, 2)), np.arange(9.0)))
    halves = [root.find(f"./g[@class='tint {kind}']/rect") for kind in ("label", "guess")]
    assert [(float(one.get("y", "")), float(one.get("height", ""))) for one in halves if one is not None] == [
        (16.0, 60.0),
        (76.0, 60.0),
    ]


def test_labels_alone_are_drawn_by_type_with_tooltips() -> None:
    values = np.sin(np.arange(500) / 20)
    values[250] = 9.0
    labels = [Label(100, 199, "step", "jumps <b>up</b>"), Label(250, 250, "spike", "x" * 400)]
    root = ET.fromstring(draw(500, {LABEL: labels}, values, {"step": "t1", "spike": "t0"}))
    for kind in ("lane label", "tint label"):
        bars = root.findall(f"./g[@class='{kind}']/rect")
        places = [(b.get("class"), b.get("x"), b.get("width")) for b in bars]
        assert places == [("t1", "20.000%", "20.000%"), ("t0", "50.000%", "0.200%")]
    assert {b.get("height") for b in root.findall("./g[@class='tint label']/rect")} == {"120.0"}
    tips = [bar.findtext("title") for bar in root.findall("./g[@class='lane label']/rect")]
    assert tips == ["step [100, 199]\njumps <b>up</b>", f"spike [250, 250]\n{'x' * 300}…"]
    (mark,) = root.findall(".//circle")
    assert (mark.get("class"), mark.get("cx"), mark.get("cy")) == ("t0", "50.100%", "22.0")  # the highest value
    assert float(mark.get("r", "")) >= 3
    assert root.findall("./g[@class='lane guess']") == []


def test_narrow_intervals_lie_on_wide_ones() -> None:
    given_edges = edges(draw(100, {LABEL: anomalies((5, 5), (0, 99), (10, 20))}), "lane label")
    assert [right - left for left, right in given_edges] == [100.0, 11.0, 1.0]


def line(svg: str) -> list[tuple[int, int]]:
    points = re.findall(r'<polyline.*?points="(.*?)"', svg)
    return [(int(x), int(y)) for pair in points[0].split() for x, y in [pair.split(",")]]


@settings(max_examples=30)
@given(st.integers(2, 6000), st.data())
def test_a_thinned_line_keeps_extremes_and_single_points(length: int, data: st.DataObject) -> None:
    high, low, single = (data.draw(st.integers(0, length - 1)) for _ in range(3))
    values = np.random.default_rng(length).normal(size=length)
    values[high], values[low] = 50.0, -50.0
    drawn = line(both(length, anomalies((single, single)), (), values))
    assert len(drawn) <= 1002
    assert (round((low + 0.5) / length * 4000), 950) in drawn
    if high != low:
        assert (round((high + 0.5) / length * 4000), 50) in drawn
    assert round((single + 0.5) / length * 4000) in [x for x, _ in drawn]


def test_thinning_keeps_every_spike() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    values[[4321, 12_345]] = 50.0, -50.0
    at = thin(values)
    assert len(at) <= 1000
    assert {0, 4321, 12_345, 19_999} <= set(at.tolist())
    assert (np.diff(at) > 0).all()
    assert thin(values[:1000]).tolist() == list(range(1000))


@pytest.mark.parametrize(
    "values", [[5.0], [5.0] * 70, [0.0, 1e308, -1e308], [1e-320, 2e-320], [-0.0, 0.0], [np.nan, 1.0, np.inf]]
)
def test_every_series_can_be_drawn(values: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = both(len(values), anomalies((0, 0)), anomalies((0, 0)), np.array(values))
        drawn = line(svg) + line(draw(len(values), {LABEL: anomalies((0, 0))}, np.array(values)))
    assert ('class="dot"' in svg) == (np.isfinite(values).sum() == 1)
    assert all(0 <= x <= 4000 and 0 <= y <= 1000 for x, y in drawn)


@pytest.mark.parametrize("values", [None, [], [np.nan, np.nan]])
def test_without_values_the_bars_stay(values: list[float] | None) -> None:
    series = None if values is None else np.array(values)
    svg = both(200, anomalies((50, 99)), anomalies((100, 100)), series)
    assert edges(svg, "lane label") == [(25.0, 50.0)]
    assert edges(svg, "lane guess") == [(50.0, 50.5)]
    assert "polyline" not in svg


STYLE = Path(toolbox.__path__[0], "pages", "templates", "style.css").read_text(encoding="utf-8")


def themes() -> Iterator[Mapping[str, str]]:
    """Colours by name, light and dark."""
    for block in re.findall(r":root\{(.*?)\}", STYLE, re.DOTALL):
        yield dict(re.findall(r"--(\w+):(#\w+)", block))


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    digits = colour[1:] if len(colour) == 7 else "".join(one * 2 for one in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_contrast_in_both_modes() -> None:
    types = {f"t{number}": 3.0 for number in range(12)}
    found = list(themes())
    assert len(found) == 2
    for colours in found:
        assert len({colours[name] for name in types}) == 12
        least = {"ink": 4.5, "quiet": 4.5, "link": 4.5, "bad": 4.5, "label": 3, "guess": 3, **types}
        for name, ratio in least.items():
            for ground in ("back", "card", "area", "ground"):
                low, high = sorted((luminance(colours[name]), luminance(colours[ground])))
                assert (high + 0.05) / (low + 0.05) >= ratio, (name, ground, colours)


def test_values_are_escaped_and_what_would_not_be_seen_is_spelt_out() -> None:
    empty: Mapping[str, Any] = {"notes": [], "findings": [], "types": {}, "colours": {}, "entries": [], "cards": []}
    title = "<b>&\"' \u202e\x00\x1b[31m\udc80 数据\u3000😀"
    text = "".join(render("check.html.j2", generator="x", title=title, **empty))
    assert "<h1>&lt;b&gt;&amp;&#34;&#39; \\u202e\\x00\\x1b[31m\\udc80 数据\u3000😀</h1>" in text
    for rule in ("default-src 'none'", "base-uri 'none'", "form-action 'none'"):
        assert rule in text


def test_no_more_than_a_card_is_held() -> None:
    """Cards are asked for as the page is written, each after the one before it."""
    asked, seen = [], []

    def cards() -> Iterator[Any]:
        for number in range(50):
            asked.append(number)
            entry = {"name": f"record {number}", "lengths": [5], "labels": 0, "tokens": None, "badges": []}
            yield {"entry": entry, "panels": iter(()), "labels": [], "texts": []}

    given: Mapping[str, Any] = {"notes": [], "findings": [], "types": {}, "colours": {}, "entries": []}
    for piece in render("check.html.j2", generator="x", title="x", cards=cards(), **given):
        seen += re.findall(r"record (\d+)", piece)
        assert len(asked) <= len(seen) + 2
    assert len(seen) == len(asked) == 50


def test_a_foreign_page_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    refuse_foreign(page, "llamafactory_ext check", "--plot")
    page.write_text('<meta name="generator" content="llamafactory_ext check">')
    refuse_foreign(page, "llamafactory_ext check", "--plot")
    with pytest.raises(UsageError, match="not written by this tool; name another folder with --out"):
        refuse_foreign(page, "llamafactory_ext evaluate", "--out")
    with pytest.raises(UsageError, match="is a file"):
        refuse_foreign(page / "index.html", "llamafactory_ext check", "--plot")
