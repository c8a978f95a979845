"""Pages: one frame, one style and one way to draw a series, for all of them.

One file each, with nothing from the network. Names, prompts and reasons come from data and models that nobody vouches
for: the templates escape every value, what a terminal would obey is spelt out, and a policy in the page forbids
requests and all scripts but one, by its digest: uPlot (MIT, in uplot/) and zoom.js, which turn a drawn series into a
chart to zoom and to move. Where scripts are off the drawn series stays.
"""

import base64
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from llamafactory_ext.errors import printable


_LAYOUT = "\n\t\u3000\xa0"  # what no text is without, and harms nobody


def generator(command: str) -> str:
    """Returns what tells the pages that a command wrote from those of others."""
    return f"llamafactory_ext {command}"


def render(template: str, **values: Any) -> Iterator[str]:
    """Yields a page piece by piece; what the template goes through one by one is never held together."""
    return environment().get_template(template).generate(**values)


@functools.cache
def environment() -> Environment:
    """Returns where the templates are found, and how they show values."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["score"] = _score
    found.globals |= {"script": script, "script_digest": script_digest, "zoom_style": zoom_style}
    return found


@functools.cache
def script() -> Markup:
    """Returns the one script that pages have."""
    here = Path(__file__).parent
    parts = (here / "uplot" / "uPlot.iife.min.js", here / "templates" / "zoom.js")
    return Markup("\n".join(part.read_text(encoding="utf-8") for part in parts))


@functools.cache
def script_digest() -> str:
    """Returns what the policy knows the script by."""
    return base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()


@functools.cache
def zoom_style() -> Markup:
    return Markup(Path(__file__).with_name("uplot").joinpath("uPlot.min.css").read_text(encoding="utf-8"))


def _shown(value: object) -> object:
    is_text = isinstance(value, str) and not hasattr(value, "__html__")
    return printable(value, _LAYOUT) if is_text else value  # type: ignore[arg-type]


def _score(value: object) -> str:
    """A score with three digits, or a dash where there is none."""
    return f"{value:.3f}" if isinstance(value, (int, float)) else "–"
