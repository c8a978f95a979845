"""Where things lie in a panel: places along the series in percent of the width, heights in pixels.

So letters and strokes keep their size while the width follows the screen, from a phone to a wide one.
"""

from dataclasses import dataclass

from llamafactory_ext.gdsh.answers import Anomaly
from llamafactory_ext.toolbox.pages.thinning import share
from llamafactory_ext.toolbox.session.lengths import round_step


LANE = 12
"""Height of a row of bars, in pixels; the labels' row begins at 0."""

_GAP = 4  # between a row and the plot
_PLOT, _BARE = 120, 16  # height of the plot, with a series and without
_PAD = 6  # that the line keeps from the plot's edges
_AXIS = 18  # below the predictions' row, for the numbers


@dataclass(frozen=True)
class Frame:
    """The axes of one panel. Index i of n takes the i-th of n equal parts of the width."""

    length: int
    """Points of the horizontal axis."""
    values: tuple[float, float] | None = None
    """Lowest and highest value, unequal; none without a series."""

    @property
    def top(self) -> int:
        """Upper edge of the plot."""
        return LANE + _GAP

    @property
    def plot(self) -> int:
        """Height of the plot."""
        return _BARE if self.values is None else _PLOT

    @property
    def second(self) -> int:
        """Upper edge of the predictions' row."""
        return self.top + self.plot + _GAP

    @property
    def height(self) -> int:
        """Of all."""
        return self.second + LANE + _AXIS

    def place(self, one: Anomaly) -> tuple[float, float]:
        """Returns left edge and width in percent; what is beyond the axis is cut."""
        start, end = max(one.start, 0), min(one.end, self.length - 1)
        return start / self.length * 100, (end + 1 - start) / self.length * 100

    def across(self, index: int) -> float:
        """Returns where the middle of a point is, in percent."""
        return (index + 0.5) / self.length * 100

    def down(self, value: float) -> float:
        """Returns how far below the plot's upper edge a value lies, in pixels."""
        low, high = self.values or (0.0, 1.0)
        return _PAD + (1 - share(value, low, high)) * (self.plot - 2 * _PAD)


def draw_axes(frame: Frame) -> str:
    """Returns the plot's ground, vertical lines with indices, and the values at the left."""
    bottom = frame.second + LANE
    parts = [f'<rect class="area" y="{frame.top}" width="100%" height="{frame.plot}"/>']
    for number, index in enumerate(range(0, frame.length, round_step(frame.length / 8))):
        x = f"{frame.across(index):.3f}%"
        kind = ' class="wide"' if number % 2 else ""  # a phone shows every other one
        parts.append(f'<g{kind}><line class="grid" x1="{x}" x2="{x}" y1="{frame.top}" y2="{bottom + 3}"/>')
        parts.append(f'<text class="middle" x="{x}" y="{bottom + 15}">{index}</text></g>')
    if frame.values is not None:
        low, high = frame.values
        for value in (low, low / 2 + high / 2, high):
            parts.append(f'<text class="end" x="-6" y="{frame.top + frame.down(value) + 4:.1f}">{value:.4g}</text>')
    return "".join(parts)
