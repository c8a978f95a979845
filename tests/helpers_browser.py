"""A real browser for the tests: the system's Chromium, driven by playwright, that reaches this machine alone."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright


_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@contextmanager
def browse(width: int = 1400, height: int = 1600) -> Iterator[Page]:
    """Opens an empty page. Without a browser the test is skipped, in continuous integration it fails."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        why = "no chromium, chromium-browser or google-chrome"
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)
    with sync_playwright() as driver, driver.chromium.launch(executable_path=path, args=_FLAGS) as browser:
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(120_000)
        yield page


@dataclass(frozen=True)
class Visit:
    """What came of opening a page."""

    measured: list[Any]
    """What the script returned, for each width."""
    requests: list[str]
    """Every address that was asked for."""
    console: list[str]
    """What the browser complained about."""
    picture: Path
    """PNG of the page in the first width."""


def visit(path: Path, sizes: list[tuple[int, int]], script: str) -> Visit:
    """Opens a file in windows of these widths and heights.

    Arguments:
        script: a JavaScript function whose result has a form in JSON. The page's own policy does not concern it.
    """
    measured, requests, console, picture = [], list[str](), list[str](), path.with_suffix(".png")
    with browse() as page:
        page.on("request", lambda one: requests.append(one.url))
        page.on("console", lambda one: console.append(one.text))
        page.on("pageerror", lambda one: console.append(str(one)))
        for width, height in sizes:
            page.set_viewport_size({"width": width, "height": height})
            page.goto(path.as_uri())
            if not measured:
                page.screenshot(path=picture)
            measured.append(page.evaluate(script))
    return Visit(measured, requests, console, picture)
