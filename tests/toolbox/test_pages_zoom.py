"""A series looked at closely, in the browser: by mouse and keys, with hostile names, and without scripts."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_browser import browse

from llamafactory_ext.gdsh.answers import Anomaly
from llamafactory_ext.toolbox.evaluate.judging import Evaluation, Judged
from llamafactory_ext.toolbox.evaluate.page import METRICS, write_page


EVIL = "</title></svg></script><script>window.hit = 1</script><img src=x onerror=window.hit=1>\"'&"
LENGTH, SPIKE = 5000, 3000


def series() -> Any:
    values = np.sin(np.arange(LENGTH) / 50)
    values[SPIKE : SPIKE + 3] = 9.0
    values[100:110] = np.nan
    return values


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("zoom") / "index.html"
    label = (Anomaly(SPIKE, SPIKE + 2, {"type": EVIL, "reason": EVIL}),)
    one = {"length": LENGTH, "labels": label, "predicted": label, "strict": True, "problem": ""}
    alone = dict.fromkeys(METRICS, 0.5)
    records = [Judged(index=n, name=f"{EVIL} {n}", scores=alone, series=(series(),), **one) for n in range(1000)]
    write_page(Evaluation({}, records), where)
    return where


@pytest.fixture(scope="module")
def opened(path: Path) -> Iterator[tuple[Any, list[str]]]:
    said: list[str] = []
    with browse() as page:
        page.on("console", lambda one: said.append(one.text))
        page.on("pageerror", lambda one: said.append(str(one)))
        page.goto(path.as_uri())
        yield page, said


def span(page: Any) -> tuple[float, float]:
    """Rows at either end, by the legend under the pointer."""
    over = page.locator(".u-over").bounding_box()
    found = []
    for share in (0.002, 0.998):
        page.mouse.move(over["x"] + share * over["width"], over["y"] + 50)
        found.append(float(page.locator(".u-legend .u-value").first.text_content()))
    return found[0], found[1]


def test_mouse_and_keys(opened: tuple[Any, list[str]]) -> None:
    page, said = opened
    button = page.locator("button.zoom").first
    assert (button.text_content(), page.locator("canvas").count()) == ("look closely", 0)
    button.click()
    assert (button.text_content(), page.locator("svg.panel").first.is_visible()) == ("back", False)
    low, high = span(page)
    assert low < 50 and high > LENGTH - 50
    over = page.locator(".u-over").bounding_box()
    place = over["x"] + (SPIKE + 1) / LENGTH * over["width"]
    page.mouse.move(place, over["y"] + 50)
    for _ in range(20):
        page.mouse.wheel(0, -100)
    low, high = span(page)
    assert SPIKE - 60 < low < SPIKE < SPIKE + 2 < high < SPIKE + 60
    width = high - low
    page.mouse.move(over["x"] + (SPIKE + 1 - low) / width * over["width"], over["y"] + 50)
    row, value = page.locator(".u-legend .u-value").all_text_contents()
    assert SPIKE <= float(row) <= SPIKE + 2 and float(value) == pytest.approx(9, abs=0.001)
    page.keyboard.press("ArrowRight")
    moved = span(page)
    assert moved[0] > low and moved[1] - moved[0] == pytest.approx(width, abs=3)
    page.keyboard.press("-")
    wider = span(page)
    assert wider[1] - wider[0] == pytest.approx(2 * width, abs=6)
    page.keyboard.press("0")
    assert span(page)[1] > LENGTH - 50
    page.mouse.move(over["x"] + 100, over["y"] + 100)  # a stretch drawn with the mouse
    page.mouse.down()
    page.mouse.move(over["x"] + 300, over["y"] + 100, steps=5)
    page.mouse.up()
    assert span(page)[1] < LENGTH / 2
    button.click()
    assert (button.text_content(), page.locator("svg.panel").first.is_visible()) == ("look closely", True)
    assert said == []


def test_names_are_text_and_other_scripts_are_forbidden(opened: tuple[Any, list[str]]) -> None:
    page, said = opened
    assert page.evaluate("window.hit") is None
    assert page.locator("[role=group]").first.get_attribute("aria-label").startswith(EVIL)
    page.evaluate("""() => {
      const one = document.createElement("script")
      one.textContent = "window.hit = 2"
      document.body.append(one)
      document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.hit = 3'>")
    }""")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hit") is None
    assert any("Content Security Policy" in one for one in said)


def test_without_scripts_the_drawn_series_stays(opened: tuple[Any, list[str]], path: Path) -> None:
    page = opened[0].context.browser.new_context(java_script_enabled=False).new_page()
    page.goto(path.as_uri())
    assert page.locator("svg.panel polyline").first.is_visible()
    assert page.locator("button").count() == 0


def test_a_page_allows_its_own_script_alone(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    assert re.fullmatch(
        "default-src 'none'; script-src 'sha256-[A-Za-z0-9+/=]{44}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        policy,
    )
    assert text.count("<script") == 1
