"""How a model was taught to be asked: written beside the data set, copied by training into the adapter's folder."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafactory_ext.gdsh import GdshError
from llamafactory_ext.gdsh.prompts import MARKER


@dataclass(frozen=True)
class Asking:
    """One way to ask."""

    prompt: str
    """The commonest one of records with one series."""
    system: str = ""
    """Its system text; empty for the template's."""
    window: int | None = None
    """Rows; None where series were whole."""
    stride: int | None = None
    points: int | None = None
    """That longer series were thinned to."""
    compact_answers: bool = False
    types: tuple[str, ...] = ()
    """Of the anomalies, the commonest first."""
    others: tuple[str, ...] = ()
    """Data sets of the same training that were asked otherwise."""

    def as_json(self) -> str:
        """The file's content."""
        said = {key: value for key, value in vars(self).items() if key != "others" or value}
        return json.dumps(said, ensure_ascii=False, indent=1) + "\n"


def commonest(prompts: Counter[tuple[str, str]]) -> tuple[str, str]:
    """Returns the prompt and system text that most records with one series have; the first of equals by its text."""
    single = {key: count for key, count in prompts.items() if key[0].count(MARKER) == 1}
    return min(single, key=lambda key: (-single[key], key), default=("", ""))


def read_asking(path: Path) -> Asking:
    """Reads the file.

    Raises:
        GdshError: it is not what `prepare` writes.
    """
    try:
        found: Any = json.loads(path.read_text("utf-8"))
        lists = {key: tuple(found.get(key, ())) for key in ("types", "others")}
        asking = Asking(**{**found, **lists})
        numbers = (asking.window, asking.stride, asking.points)
        if asking.prompt.count(MARKER) != 1 or not all(one is None or int(one) > 0 for one in numbers):
            raise ValueError(f"expected a prompt with one {MARKER}, and numbers of rows from 1 on")
    except (OSError, ValueError, TypeError, AttributeError) as err:
        raise GdshError(f"{path} can't be read ({err}); write it anew with prepare, or remove it") from err
    return asking
