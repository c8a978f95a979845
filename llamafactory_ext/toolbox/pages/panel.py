"""One series as inline SVG: labels above it, predictions below, so that agreement is a column from top to bottom."""

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.gdsh.answers import Anomaly
from llamafactory_ext.series import FloatArray
from llamafactory_ext.toolbox.pages.frame import LANE, Frame, draw_axes
from llamafactory_ext.toolbox.pages.thinning import thin, value_range


LABEL, GUESS = "label", "guess"
"""Classes of what belongs to the labels, and to the predictions."""

HATCH = (
    '<svg class="hidden" width="0" height="0" aria-hidden="true"><defs><pattern id="hatch" width="5" height="5" '
    'patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect class="ground" width="5" height="5"/>'
    '<rect class="stripe" width="2.5" height="5"/></pattern></defs></svg>'
)
"""What predictions are filled with; once in a page, before its panels."""

_ACROSS, _DOWN = 4000, 1000  # units of the part that stretches with the width; whole numbers keep the page small
_CROWD = 60  # single points: marks of more would hide the series
_REASON = 160  # characters in a tooltip


def draw_panel(
    title: str,
    number: str,
    length: int,
    labels: Sequence[Anomaly],
    predicted: Sequence[Anomaly],
    series: FloatArray | None = None,
) -> str:
    """Returns an ``<svg>`` element.

    Arguments:
        number: tells its parts from those of other panels of the page.
        length: points of the axis.
        labels, predicted: 0-based, both ends counted; what shares no point with the axis is not drawn.
        series: shape ``[points]``, not longer than the axis; values that are not finite are left out of the line.
    """
    labels, predicted = _fitting(labels, length), _fitting(predicted, length)
    values = np.array([]) if series is None else series
    at = np.flatnonzero(np.isfinite(values))
    frame = Frame(length, value_range(values[at]) if len(at) else None)
    said = (
        f"{len(labels)} labelled intervals above, {len(predicted)} predicted ones below, on an axis of {length} "
        "points; they are listed below."
    )
    return (
        f'<svg class="panel" height="{frame.height}" role="img" aria-labelledby="t{number} d{number}">'
        f'<title id="t{number}">{escape(title)}</title><desc id="d{number}">{said}</desc>{draw_axes(frame)}'
        f'<svg y="{frame.top}" width="100%" height="{frame.plot}" viewBox="0 0 {_ACROSS} {_DOWN}" '
        f'preserveAspectRatio="none">{_tint(frame, labels, LABEL, 0)}{_tint(frame, predicted, GUESS, _DOWN // 2)}'
        f"{_line(frame, values, at, [*labels, *predicted])}</svg>"
        f"{_marks(frame, values, labels, LABEL)}{_marks(frame, values, predicted, GUESS)}"
        f"{_lane(frame, labels, LABEL, 'labels', 0)}{_lane(frame, predicted, GUESS, 'predicted', frame.second)}</svg>"
    )


def _fitting(anomalies: Iterable[Anomaly], length: int) -> list[Anomaly]:
    """Those that share a point with the axis, widest first, so that narrow ones end up on top."""
    fit = [one for one in anomalies if max(one.start, 0) <= min(one.end, length - 1)]
    return sorted(fit, key=lambda one: one.start - one.end)


def _lane(frame: Frame, anomalies: Sequence[Anomaly], kind: str, name: str, y: int) -> str:
    """A row of bars; their outline keeps single points visible at any width."""
    bars = []
    for one in anomalies:
        left, width = frame.place(one)
        size = f'x="{left:.3f}%" y="{y}" width="{width:.3f}%" height="{LANE}"'
        bars.append(f"<rect {size}><title>{_tooltip(one)}</title></rect>")
    return f'<g class="{kind}"><text class="end" x="-6" y="{y + 10}">{name}</text>{"".join(bars)}</g>'


def _tint(frame: Frame, anomalies: Iterable[Anomaly], kind: str, y: int) -> str:
    """One half of the plot's height, coloured where there are intervals."""
    columns = []
    for one in anomalies:
        left, width = (round(part / 100 * _ACROSS) for part in frame.place(one))
        columns.append(f"M{left} {y}h{width}v{_DOWN // 2}h-{width}z")
    return f'<path class="tint {kind}" d="{"".join(columns)}"/>' if columns else ""


def _line(frame: Frame, values: FloatArray, at: NDArray[np.int64], anomalies: Iterable[Anomaly]) -> str:
    """The series, thinned; `at` are the indices of finite values. Extremes and single points are always kept."""
    if not len(at):
        return ""
    single = np.array([one.start for one in anomalies if one.start == one.end], dtype=np.int64)
    drawn = np.union1d(at[thin(values[at])], np.intersect1d(single, at))
    points = " ".join(
        f"{round(frame.across(index) / 100 * _ACROSS)},{round(frame.down(value) / frame.plot * _DOWN)}"
        for index, value in zip(drawn.tolist(), values[drawn].tolist(), strict=True)
    )
    if len(drawn) == 1:  # a line of no length is drawn as a dot
        return f'<polyline class="dot" points="{points} {points}"/>'
    return f'<polyline points="{points}"/>'


def _marks(frame: Frame, values: FloatArray, anomalies: Iterable[Anomaly], kind: str) -> str:
    """Dots on labelled single points, rings around predicted ones."""
    single = [one for one in anomalies if 0 <= one.start == one.end < len(values) and np.isfinite(values[one.start])]
    radius = {LABEL: 3.5, GUESS: 5.5} if len(single) <= _CROWD else {LABEL: 2, GUESS: 3}
    circles = []
    for one in single:
        y = frame.top + frame.down(float(values[one.start]))
        place = f'cx="{frame.across(one.start):.3f}%" cy="{y:.1f}" r="{radius[kind]}"'
        circles.append(f"<circle {place}><title>{_tooltip(one)}</title></circle>")
    return f'<g class="{kind}">{"".join(circles)}</g>' if circles else ""


def _tooltip(one: Anomaly) -> str:
    reason = str(one.fields.get("reason", ""))
    reason = reason if len(reason) <= _REASON else f"{reason[:_REASON]}…"
    return escape("\n".join(filter(None, (f"{one.type or '(no type)'} [{one.start}, {one.end}]", reason))))
