"""Columns beside the values: what they say of them, looked at while the rows go by."""

import re
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llamafactory_ext.errors import GdshError, excerpt

from .layout import Layout, TableOptions


_GOOD = frozenset({"good", "ok", "valid", "true", "g", "good_non_specific", "好", "良好", "正常", "有效", "合格"})
_BAD = frozenset(
    {"bad", "uncertain", "invalid", "false", "b", "u", "error", "questionable", "", "坏", "差", "不良", "无效", "异常"}
)
_FORMATS = ("%Y-%m-%d", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y-%m-%d %H:%M", "%Y/%m/%d")
_ISO = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d")
_JUMP = 10  # times the usual step


@dataclass
class Watch:
    """What the columns beside the values say; fed with the batches of a table, in order."""

    layout: Layout
    options: TableOptions
    tags: set[str] = field(default_factory=set)
    bad: int = 0
    """Rows whose quality is not good."""
    rows: int = 0
    steps: int = 0
    backwards: int = 0
    jumps: int = 0
    usual: float = 0.0
    """The usual step of time, by the first batch that has one."""
    last: float | None = None
    timed: bool = True

    def see(self, values: npt.NDArray[np.float64], others: dict[str, pa.Array]) -> None:
        """Look at a batch: its values, in which those of bad quality become NaN, and `time`, `quality`, `tag`.

        Raises:
            GdshError: a second tag, or a quality that is not known.
        """
        self.rows += len(values)
        if "tag" in others:
            self.tags.update(_texts(pc.unique(others["tag"])))
            self.tags.discard("")
            if len(self.tags) > 1:
                name = self.layout.names[self.layout.tag or 0]
                raise GdshError(
                    f"several series in one table: the column {name!r} holds {excerpt(sorted(self.tags)[:3])}; make a "
                    "file of each, which `llamafactory-ext import` does"
                )
        if "quality" in others:
            self._see_quality(values, others["quality"])
        if "time" in others and self.timed:
            self._see_time(others["time"])

    def remarks(self, values: npt.NDArray[np.float64]) -> list[tuple[str, str]]:
        """What is to be said in the end; `values` are all of them, NaN where missing."""
        found = []
        if self.bad and self.layout.quality is not None:
            name = self.layout.names[self.layout.quality]
            share = f"the column {name!r} calls {self.bad} of {self.rows} rows not good"
            if self.options.quality_column:
                found.append(("quality", f"{share}: interpolated"))
            else:
                found.append(
                    ("quality_unused", f'{share}, which is not used; "quality_column": "{name}" makes them missing')
                )
        if self.steps and self.backwards:
            found.append(("time", f"time runs backwards in {self.backwards} of {self.steps} steps from row to row"))
        if self.jumps:
            found.append(("time", f"time jumps by more than {_JUMP} times the usual step {self.jumps} times"))
        sentinel = _sentinel(values)
        if sentinel:
            number, times = sentinel
            found.append(
                (
                    "sentinel",
                    f'{number:g} stands in {times} rows, far from all other values; if it means "no value": '
                    f'"missing_values": [{number:g}]',
                )
            )
        return found

    def _see_quality(self, values: npt.NDArray[np.float64], column: pa.Array) -> None:
        encoded = pc.dictionary_encode(column.fill_null(b"" if pa.types.is_binary(column.type) else ""))
        words = _texts(encoded.dictionary)
        used = bool(self.options.quality_column)
        good = np.array([_is_good(word, used) for word in words], dtype=bool)
        bad = ~good[np.from_dlpack(encoded.indices)]
        self.bad += int(bad.sum())
        if used:
            values[bad] = np.nan

    def _see_time(self, column: pa.Array) -> None:
        times = _times(column)
        if times is None:
            self.timed = False
            return
        steps = np.diff(times if self.last is None else np.append(self.last, times))
        steps = steps[np.isfinite(steps)]
        self.last = float(times[-1]) if len(times) else self.last
        if not self.usual and len(steps):
            self.usual = float(np.median(np.abs(steps)))
        self.steps += len(steps)
        self.backwards += int((steps < 0).sum())
        self.jumps += int((steps > _JUMP * self.usual).sum()) if self.usual else 0


def _texts(column: pa.Array) -> list[str]:
    found = column.to_pylist()
    return [
        "" if one is None else one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in found
    ]


def _is_good(word: str, used: bool) -> bool:
    """Whether a quality is good: a word, or an OPC code, whose two highest bits of eight say so."""
    text = word.strip().casefold()
    if text in _GOOD or text in _BAD:
        return text in _GOOD
    try:
        code = float(text)
    except ValueError:
        code = -1.0
    if code.is_integer() and (code == 0 or 4 <= code <= 0xFFFF):
        return int(code) & 0xC0 == 0xC0
    if used:
        raise GdshError(
            f"the quality {excerpt(word)} is not known; expected Good, Bad, or OPC codes such as 192 and 0: leave "
            "`quality_column` out, and empty the cells that are to be missing"
        )
    return True


def _times(column: pa.Array) -> npt.NDArray[np.float64] | None:
    """Seconds of each row, or None where the cells are no times."""
    if not len(column) or pa.types.is_timestamp(column.type):
        return _numbers(column.cast(pa.timestamp("us")).cast(pa.int64())) / 1e6
    first = _texts(column[:1])[0]
    try:
        texts = column.cast(pa.string())
        if first.replace(".", "", 1).isdecimal():
            return _numbers(texts.cast(pa.float64()))
        if _ISO.match(first):
            return _numbers(texts.cast(pa.timestamp("us")).cast(pa.int64())) / 1e6
    except pa.ArrowInvalid:  # no UTF-8, or another form further on
        return None
    for form in _FORMATS:
        try:
            return _numbers(pc.strptime(texts, format=form, unit="us").cast(pa.int64())) / 1e6
        except pa.ArrowInvalid:
            continue
    return None


def _numbers(column: pa.Array) -> npt.NDArray[np.float64]:
    """NaN where there is none. Not to_numpy(), which imports pandas."""
    numbers = column.cast(pa.float64(), safe=False)
    return np.array(np.from_dlpack(numbers.fill_null(float("nan")) if numbers.null_count else numbers))


def _sentinel(values: npt.NDArray[np.float64]) -> tuple[float, int] | None:
    """A number such as -9999 that lies far from all others: five times as far as they lie from one another."""
    known = values[np.isfinite(values)]
    if len(known) < 3:
        return None
    for number in (float(known.min()), float(known.max())):
        if not _looks_made_up(number):
            continue
        rest = known[known != number]
        if len(rest) >= 2 and np.abs(rest - number).min() > 5 * np.ptp(rest):
            return number, len(known) - len(rest)
    return None


def _looks_made_up(number: float) -> bool:
    digits = f"{abs(number):.0f}"
    return abs(number) >= 1e20 or (
        number == int(number)
        and len(digits) >= 3
        and (set(digits) == {"9"} or digits in ("32768", "32767", "65535", "65536"))
    )
