"""A real browser for the tests: pages from a server of their own, measured by a script and photographed; and pages
of another server, used as a person would, with keys and clicks."""

import base64
import itertools
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener


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


@dataclass
class Tab:
    """A page in a browser that reaches this machine alone, by the browser's DevTools protocol."""

    socket: Any
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=120))
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def value(self, script: str) -> Any:
        """Returns the value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (script, found)
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 120) -> Any:
        """Waits for an expression to be true and returns its value."""
        end = time.monotonic() + seconds
        while not (found := self.value(script)):
            assert time.monotonic() < end, f"{script}\nis not so after {seconds} s; the page:\n{self.text()[-4000:]}"
            time.sleep(0.1)
        return found

    def click(self, element: str) -> None:
        """Clicks into the middle of an element, as soon as it is there, enabled, and nothing lies over it."""
        place = f"""(element => {{
          if (!element || element.disabled) return null
          element.scrollIntoView({{block: "center"}})
          const box = element.getBoundingClientRect(), x = box.left + box.width / 2, y = box.top + box.height / 2
          const top = document.elementFromPoint(x, y)
          return box.width && top && (element.contains(top) || top.contains(element)) ? [x, y] : null
        }})({element})"""
        x, y = self.until(place)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, text: str) -> None:
        """Types a text where the cursor is."""
        self.call("Input.insertText", text=text)

    def key(self, name: str, code: int) -> None:
        """Presses a key that types nothing; ``code`` as in ``KeyboardEvent.keyCode``."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def text(self) -> str:
        """What can be read on the page."""
        return str(self.value("document.body.innerText"))

    def photograph(self, path: Path) -> None:
        """Writes a PNG of the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browse(address: str, folder: Path, size: tuple[int, int] = (1400, 1600)) -> Iterator[Tab]:
    """Opens a page of this machine; ``folder`` takes the browser's profile."""
    from websockets.sync.client import connect

    assert BROWSER
    own = [f"--user-data-dir={folder / 'profile'}", f"--window-size={size[0]},{size[1]}", "--remote-debugging-port=0"]
    own += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "about:blank"]
    with (folder / "browser.log").open("w") as log:
        process = subprocess.Popen([BROWSER, *_FLAGS, *own], stdout=log, stderr=log)
    try:
        with connect(_debugger(process, folder), max_size=None, proxy=None) as socket:
            tab = Tab(socket)
            tab.call("Page.navigate", url=address)
            yield tab
            tab.call("Browser.close")
            process.wait(30)
    finally:
        process.kill()
        process.wait(30)


def _debugger(process: subprocess.Popen[bytes], folder: Path) -> str:
    """Returns the address that the browser's first page is steered at."""
    opener = build_opener(ProxyHandler({}))
    for _ in range(600):
        assert process.poll() is None, (folder / "browser.log").read_text()[-4000:]
        try:
            port = (folder / "profile" / "DevToolsActivePort").read_text().split()[0]
            with opener.open(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                pages = [one for one in json.load(answer) if one["type"] == "page"]
            return str(pages[0]["webSocketDebuggerUrl"])
        except (OSError, IndexError):
            time.sleep(0.1)
    raise AssertionError((folder / "browser.log").read_text()[-4000:])
