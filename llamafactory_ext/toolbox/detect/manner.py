"""In what manner a model is asked: as it was trained, which `prepare` and training write down, or as options say."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import UsageError, excerpt
from llamafactory_ext.gdsh import GdshError
from llamafactory_ext.series import MARKER
from llamafactory_ext.toolbox.prepare.resampling import Floats, Indices, choose_rows, lay_windows

from .engines import Question


FILE = "detect.json"
"""In an adapter's or a model's folder; beside a prepared data set X.jsonl it is called X.detect.json."""

DEFAULT_PROMPT = (
    f"{MARKER}\n请找出这条时间序列中的异常区间，只输出JSON："
    "每个异常给出区间[start, end]（从0开始的行号，两端都算）和类型。"
)
DEFAULT_POINTS = 1024  # what ChatTS was made for


@dataclass(frozen=True)
class Manner:
    """How series become questions."""

    prompt: str = DEFAULT_PROMPT
    """With one marker."""
    window: int | None = None
    """Rows of a window; None: the whole series is one question."""
    stride: int | None = None
    """Rows from one window's start to the next; None: `window`."""
    max_points: int | None = None
    """Longer series, or windows, are thinned to so many points."""

    def cut(self, values: Floats) -> list[tuple[Indices, Question]]:
        """Returns the questions about a series, each with the rows that its points are, as `prepare` would cut it.

        Raises:
            GdshError: it can't be thinned so far.
        """
        import numpy as np

        found = []
        spans = [(0, len(values))]
        if self.window is not None:
            spans = lay_windows(len(values), self.window, self.stride or self.window)
        for start, stop in spans:
            part = values[start:stop]
            kept = None if self.max_points is None else choose_rows([part], self.max_points)
            rows = np.arange(len(part), dtype=np.int64) if kept is None else kept
            found.append((rows + start, Question(self.prompt, (part[rows],))))
        return found

    def said(self) -> str:
        """Says in a few words how series are cut."""
        windows = (
            f"windows of {self.window} rows every {self.stride or self.window}" if self.window else "whole series"
        )
        return windows + (f", thinned to {self.max_points} points" if self.max_points else "")


def find_manner(folders: Sequence[str]) -> tuple[Manner, str]:
    """Returns the manner that the first of the folders with a `detect.json` names, and the file; else the default.

    Raises:
        UsageError: the file holds something else.
    """
    for folder in folders:
        path = Path(folder, FILE)
        if path.is_file():
            return read_manner(path), str(path)
    return Manner(window=DEFAULT_POINTS), ""


def read_manner(path: Path) -> Manner:
    """Reads a `detect.json`.

    Raises:
        UsageError: it holds something else.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        known = {field.name for field in fields(Manner)}
        return check_manner(Manner(**{key: found[key] for key in known & found.keys()}), str(path))
    except (OSError, ValueError, AttributeError, TypeError) as err:
        raise UsageError(f"{path} can't be read ({err}); delete it, and say --prompt and --window") from err


def check_manner(manner: Manner, place: str) -> Manner:
    """Returns the manner as it is.

    Raises:
        UsageError: it has other values than numbers from 1, or a prompt without its marker.
    """
    if not isinstance(manner.prompt, str) or manner.prompt.count(MARKER) != 1:
        raise UsageError(f"{place}: the prompt is {excerpt(manner.prompt)}; expected a text with {MARKER} once")
    for name in ("window", "stride", "max_points"):
        value = getattr(manner, name)
        if value is not None and (type(value) is not int or value < (8 if name == "max_points" else 1)):
            raise UsageError(f"{place}: {name} is {excerpt(value)}; expected a whole number of rows")
    if manner.stride and (not manner.window or manner.stride > manner.window):
        raise UsageError(
            f"{place}: stride {manner.stride} does not fit window {manner.window}; rows would be left out"
        )
    return manner


def with_options(manner: Manner, **options: Any) -> Manner:
    """Returns the manner with those options that are given in place of its own; 0 takes a number away.

    Raises:
        UsageError: they do not fit one another.
    """
    given: dict[str, Any] = {key: value or None for key, value in options.items() if value is not None and value != ""}
    if given.get("window") and "stride" not in given:
        given["stride"] = None
    return check_manner(replace(manner, **given), "options")


def write_manner(manner: Manner, seen: Sequence[str]) -> str:
    """Returns the text of a `detect.json`; `seen` are the types in the training data, for people to read."""
    return json.dumps({**asdict(manner), "types": list(seen)}, ensure_ascii=False, indent=1) + "\n"


__all__ = ["FILE", "GdshError", "Manner", "find_manner", "read_manner", "with_options", "write_manner"]
