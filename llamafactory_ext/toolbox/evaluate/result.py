"""What an evaluation found: passed from scoring to the page and to scores.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.gdsh.answers import Anomaly


@dataclass(frozen=True)
class Judged:
    """One record: its labels, what was predicted, and how well they agree."""

    index: int
    """Its line in the predictions, from 0."""
    name: str
    """The point: the stems of its CSV files; "record 12" where they are not known."""
    length: int
    """Points of its longest series."""
    labels: tuple[Anomaly, ...]
    predicted: tuple[Anomaly, ...]
    strict: bool
    """Whether the answer is strict JSON."""
    problem: str
    """Why the answer could not be read; empty otherwise."""
    scores: Mapping[str, float]
    """event_f1, range_f1, affiliation_f1 and point_f1 of this record alone, each from 0 to 1."""
    series: tuple[NDArray[np.float64], ...] = ()
    """Its series, shape [length] each, where the data set was given."""


@dataclass(frozen=True)
class Evaluation:
    """All records, and what scores.json holds of them."""

    scores: Mapping[str, Any]
    records: Sequence[Judged]
