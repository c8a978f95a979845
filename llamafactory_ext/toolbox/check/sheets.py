"""Contact sheets: 24 panels in one PNG, four across, to leaf through a data set quickly."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from llamafactory_ext.toolbox.check.fonts import drawable, families
from llamafactory_ext.toolbox.pages.panels import Panel
from llamafactory_ext.toolbox.pages.thinning import value_range


ROWS, COLUMNS = 6, 4
PER_SHEET = ROWS * COLUMNS

_LARGE = 1e290
_TYPE, _TYPES = 14, 24  # characters of a type in the legend, and types: what fits above the panels
_NAME = 42  # characters of a record's name above a panel


def draw_sheet(
    panels: Sequence[tuple[str, Panel]], colours: Mapping[str, str], names: Mapping[str, str], path: Path
) -> None:
    """Writes up to 24 panels, each with its title, as PNG.

    Arguments:
        colours: by type.
        names: of the types, as they stand in the legend.
    """
    with matplotlib.rc_context({"font.family": list(families()), "font.size": 8}):
        rows = -(-len(panels) // COLUMNS)  # the last sheet may be short
        height = 1 + 2.6 * rows  # inches, the first for the legend
        figure = Figure(figsize=(20, height), dpi=80)
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
        for one, (title, panel) in zip(axes, panels, strict=False):
            _draw(one, title, panel, colours)
        for one in axes[len(panels) :]:
            one.set_axis_off()
        shown = {label.type for _, panel in panels for label in panel.labels}
        legend = {name: drawable(names[name])[:_TYPE] for name in colours if name in shown}
        handles = [Patch(color=colours[name], label=word) for name, word in legend.items()][:_TYPES]
        figure.subplots_adjust(
            left=0.03, right=0.99, bottom=0.4 / height, top=1 - 1 / height, wspace=0.14, hspace=0.42
        )
        if handles:
            drawn = figure.legend(handles=handles, loc="upper center", ncols=8, frameon=False, fontsize=11)
            for text in drawn.get_texts():
                text.set_parse_math(False)  # `$` is a sign like any other
        canvas.print_png(path)


def _draw(axes: Any, title: str, panel: Panel, colours: Mapping[str, str]) -> None:
    title = drawable(" ".join(title.split()))
    axes.set_title(title if len(title) <= _NAME else f"…{title[-_NAME:]}", fontsize=9, pad=10, parse_math=False)
    low, high = value_range(panel.values)
    # matplotlib's own arithmetic overflows near the largest float; what is lost then is the unit of the axis.
    unit = 1.0 if max(abs(low), abs(high)) < _LARGE else _LARGE
    margin = high / unit / 20 - low / unit / 20
    axes.set_xlim(-0.5, panel.length - 0.5)
    axes.set_ylim(low / unit - margin, high / unit + margin)
    least = panel.length / (250 if panel.crowded else 100)  # of the width: about 1 or 4 pixels
    for label, value in zip(panel.labels, panel.peaks, strict=True):
        middle, half = (label.start + label.end) / 2, max(label.end + 1 - label.start, least) / 2
        colour = colours[label.type]
        axes.axvspan(middle - half, middle + half, color=colour, alpha=0.3, linewidth=0)
        axes.plot([middle - half, middle + half], [1.03, 1.03], color=colour, linewidth=4, clip_on=False,
                  transform=axes.get_xaxis_transform(), solid_capstyle="butt")  # fmt: skip
        if not math.isnan(value):
            axes.plot([label.start], [value / unit], "o", color=colour, markersize=3 if panel.crowded else 6, zorder=3)
    marker = "." if len(panel.at) == 1 else None
    axes.plot(panel.at, panel.values / unit, color="#222222", linewidth=0.7, marker=marker)
    axes.tick_params(labelsize=7, length=2)
    axes.ticklabel_format(useOffset=False, style="plain" if 1e-3 < max(abs(low), abs(high)) < 1e6 else "sci", axis="y")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
