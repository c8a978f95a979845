"""A real browser for the tests: pages from a server of their own, measured by a script, and photographed."""

import json
import re
import shutil
import subprocess
import threading
from dataclasses import dataclass
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)

_PROBE = """<!DOCTYPE html><link rel="icon" href="data:,"><style>body{margin:0}iframe{border:0;display:block}</style>
%s<pre id="found"></pre><script>
addEventListener("load", () => {
  const measure = %s
  document.getElementById("found").textContent = JSON.stringify(Array.from(frames).map(frame => measure(frame)))
})</script>"""


@dataclass(frozen=True)
class Visit:
    """What came of opening a page."""

    measured: list[Any]
    """What the script returned, for each width."""
    requests: list[str]
    """Every path that the server was asked for."""
    console: list[str]
    """Lines of the console."""
    picture: Path
    """PNG of the page in all widths, one below the other."""


def visit(page: Path, sizes: list[tuple[int, int]], script: str) -> Visit:
    """Opens a page in frames of these widths and heights.

    Arguments:
        script: a JavaScript function of a frame's window, whose result has a form in JSON. The page's own policy
            does not concern it, since it runs outside of the frames.
    """
    assert BROWSER
    folder, asked = page.parent, []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    frames = "".join(
        f'<iframe src="{page.name}" width="{width}" height="{height}"></iframe>' for width, height in sizes
    )
    (folder / "probe.html").write_text(_PROBE % (frames, script), encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        size = f"--window-size={max(width for width, _ in sizes)},{sum(height for _, height in sizes)}"
        own = [f"--user-data-dir={folder / 'profile'}", size, "--dump-dom", f"--screenshot={folder / 'page.png'}"]
        address = f"http://127.0.0.1:{server.server_port}/probe.html"
        done = subprocess.run(
            [BROWSER, *_FLAGS, *own, address], capture_output=True, text=True, timeout=120, check=True
        )
    finally:
        server.shutdown()
        server.server_close()
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found
    assert found[1], done.stderr  # an error in the script itself
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Visit(json.loads(unescape(found[1])), asked, console, folder / "page.png")
