"""What an import is asked, and what it reports."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .columns import Reading
from .labels import Choice
from .layout import PROMPTS


KINDS = ("auto", "column:NAME", "windows:FILE", "label-studio:FILE", "annotator:DIR", "ucr", "gdsh:FILE", "none")


@dataclass(frozen=True)
class Options:
    """One import. `llamafactory-ext import --help` says what each option is for."""

    sources: tuple[Path, ...]
    out: Path
    labels: str = "auto"
    name: str = ""
    reading: Reading = field(default_factory=Reading)
    choice: Choice = field(default_factory=Choice)
    dates: str = ""
    timezone: str | None = None
    prompt: str = PROMPTS["zh"]
    type: str = "异常"
    type_map: dict[str, str] = field(default_factory=dict)
    widen: int = 0
    drop_faulty: bool = False
    join: bool = False
    round: str = ""


@dataclass
class Report:
    """What was done."""

    kind: str = ""
    files: int = 0
    series: int = 0
    intervals: int = 0
    without_anomaly: int = 0
    unlabelled: list[str] = field(default_factory=list)
    """Series that the labels do not speak of: left out, but for `none`."""
    types: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    agreement: dict[str, float] = field(default_factory=dict)
    axes: Counter[str] = field(default_factory=Counter)
    unused_columns: Counter[str] = field(default_factory=Counter)
    unused_labels: list[str] = field(default_factory=list)
    """Names in the labels that no series has."""
    faults: list[str] = field(default_factory=list)
    done: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The report in plain JSON values."""
        return {key: dict(value) if isinstance(value, Counter) else value for key, value in vars(self).items()}
