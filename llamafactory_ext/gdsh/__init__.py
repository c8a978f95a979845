"""GDSH's own files, annotations and series, read into prompts, answers and numbers.

Needs the standard library and numpy only: usable, and tested, without the training stack. Every fault of the
data is a `GdshError`.
"""

from llamafactory_ext.errors import GdshError

from .annotations import Row, read_annotations
from .answers import Anomaly, Answer, check_intervals, parse_answer, read_anomalies, read_labels, write_answer
from .entries import NORMAL_TYPES, normal_types, type_key
from .layout import TableOptions
from .pictures import (
    Matches,
    SeriesFile,
    SeriesIndex,
    index_files,
    index_series,
    is_renamed,
    picture_name,
    show_pictures,
)
from .prompts import place_markers, refuse_control_tokens, unescaped
from .tables import Series, read_series, read_times


__all__ = [
    "NORMAL_TYPES",
    "Anomaly",
    "Answer",
    "GdshError",
    "Matches",
    "Row",
    "Series",
    "SeriesFile",
    "SeriesIndex",
    "TableOptions",
    "check_intervals",
    "index_files",
    "index_series",
    "is_renamed",
    "normal_types",
    "parse_answer",
    "picture_name",
    "place_markers",
    "read_annotations",
    "read_anomalies",
    "read_labels",
    "read_series",
    "read_times",
    "refuse_control_tokens",
    "show_pictures",
    "type_key",
    "unescaped",
    "write_answer",
]
