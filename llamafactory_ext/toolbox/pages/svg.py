"""A panel as inline SVG. Index i of n takes the i-th of n equal parts of the width, so bands need no rounding."""

import math
from collections.abc import Mapping
from html import escape

from llamafactory_ext.toolbox.pages.panels import Panel
from llamafactory_ext.toolbox.pages.thinning import share, value_range
from llamafactory_ext.toolbox.session.labels import Label
from llamafactory_ext.toolbox.session.lengths import round_step


WIDTH, HEIGHT = 1000, 150
"""Of the drawn area, in pixels."""

_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 14, 10, 20
_NARROWEST = 3.0  # pixels: of a single point among thousands nothing would be seen otherwise
_TEXT = 300  # characters of a reason in a tooltip


def draw(panel: Panel, colours: Mapping[str, str]) -> str:
    """Returns an ``<svg>`` element: line, bands with tooltips, marks on single points, axes with numbers."""
    low, high = value_range(panel.values)
    total = f"{_LEFT + WIDTH + _RIGHT} {_TOP + HEIGHT + _BOTTOM}"
    parts = [f'<svg viewBox="0 0 {total}" role="img"><g transform="translate({_LEFT} {_TOP})">']
    parts.append(f'<rect class="area" width="{WIDTH}" height="{HEIGHT}"/>')
    parts += _axes(panel.length, low, high)
    parts += [_band(one, panel.length, colours[one.type]) for one in panel.labels]
    points = " ".join(
        f"{(index + 0.5) / panel.length * WIDTH:.2f},{_y(value, low, high):.2f}"
        for index, value in zip(panel.at.tolist(), panel.values.tolist(), strict=True)
    )
    parts.append(f'<polyline points="{points}"/>' if len(panel.at) > 1 else "")
    radius = 2.5 if panel.crowded else 4.5
    for label, value in zip(panel.labels, panel.peaks, strict=True):
        if not math.isnan(value):
            x, y = (label.start + 0.5) / panel.length * WIDTH, _y(value, low, high)
            tip = f"<title>{tooltip(label)}</title>"
            parts.append(f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius}" fill="{colours[label.type]}">{tip}</circle>')
    return "".join([*parts, "</g></svg>"])


def place(label: Label, length: int) -> tuple[float, float]:
    """Returns left edge and width of a label's band in pixels, within the drawn area, never too narrow to be seen."""
    left, width = label.start / length * WIDTH, (label.end + 1 - label.start) / length * WIDTH
    if width < _NARROWEST:
        left = min(max(0.0, left + width / 2 - _NARROWEST / 2), WIDTH - _NARROWEST)
        width = _NARROWEST
    return left, width


def tooltip(label: Label) -> str:
    """Returns type, interval and reason, escaped."""
    reason = label.reason if len(label.reason) <= _TEXT else f"{label.reason[:_TEXT]}…"
    interval = f"[{label.start}, {label.end}]"
    return escape("\n".join(filter(None, (f"{label.type or '(no type)'} {interval}", reason))))


def _band(label: Label, length: int, colour: str) -> str:
    left, width = place(label, length)
    tip = f"<title>{tooltip(label)}</title>"
    band = f'<rect class="band" x="{left:.2f}" width="{width:.2f}" height="{HEIGHT}" fill="{colour}">{tip}</rect>'
    # A bar above the area shows where the label is even where bands lie on top of one another.
    return f'{band}<rect x="{left:.2f}" y="-7" width="{width:.2f}" height="5" fill="{colour}"/>'


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - 6 - share(value, low, high) * (HEIGHT - 12)


def _axes(length: int, low: float, high: float) -> list[str]:
    parts = []
    for value in (low, low / 2 + high / 2, high):
        y = _y(value, low, high)
        parts.append(f'<path class="grid" d="M0 {y:.1f}H{WIDTH}"/><text x="-6" y="{y + 4:.1f}" text-anchor="end">')
        parts.append(f"{value:.4g}</text>")
    step = round_step(length / 8)
    for index in range(0, length, step):
        x = (index + 0.5) / length * WIDTH
        parts.append(f'<path class="grid" d="M{x:.1f} 0V{HEIGHT + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT + 16}" text-anchor="middle">{index}</text>')
    return parts
