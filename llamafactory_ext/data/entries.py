"""Entries of ``dataset_info.json``: the ``timeseries`` column, and the defaults of our formats.

Wraps ``DatasetAttr.join`` of ``llamafactory.data.parser``, which reads an entry.
"""

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from llamafactory_ext.data.formats import FORMATS
from llamafactory_ext.errors import excerpt, printable
from llamafactory_ext.gdsh import TableOptions


# Columns that the converters add to LLaMA-Factory's own: the record's name for messages, and what was found in it.
RECORD, NOTES = "_record", "_notes"


def _words(entry: Mapping[str, Any]) -> tuple[str, ...]:
    words = entry.get("normal_types", [])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"normal_types is {excerpt(words)}; expected a list of words, e.g. ['健康', 'healthy']")
    return tuple(words)


def _table(entry: Mapping[str, Any]) -> TableOptions:
    """The keys about tables; what is wrong names its own key."""
    for key in ("value_column", "quality_column"):
        if not isinstance(entry.get(key), str | None):
            raise ValueError(f"{key} is {excerpt(entry[key])}; expected a column's name")
    missing = entry.get("missing_values", [])
    if not isinstance(missing, list) or not all(isinstance(one, str | int | float) for one in missing):
        raise ValueError(f"missing_values is {excerpt(missing)}; expected a list of numbers or words, e.g. [-9999]")
    return TableOptions(entry.get("value_column"), entry.get("quality_column"), tuple(map(str, missing)))


OPTIONS: dict[str, Callable[[Mapping[str, Any]], Any]] = {"normal_types": _words, "table": _table}
"""Keys of an entry beside upstream's, with what reads them (ValueError where they can't be right)."""


def record_name(example: Mapping[str, Any], number: int) -> str:
    """Returns what a record is called in messages: its number, from 0, and its name where it has one."""
    name = example.get(RECORD) or ""
    if name.startswith("record "):  # a gdsh record's: its place in its own file, and its pictures
        return str(name)
    return f"record {number} ({printable(name)})" if name else f"record {number}"


def complete(entry: dict[str, Any]) -> dict[str, Any]:
    """Returns the entry with what it leaves out; an entry of another format comes back unchanged.

    A ``timeseries`` column without ``formatting`` means ``chatts``.

    Raises:
        ValueError: an entry that does not name a local file, or has columns that its format does not have.
    """
    columns, name = entry.get("columns", {}), entry.get("file_name", "an entry")
    formatting = entry.get("formatting", "chatts" if "timeseries" in columns else "alpaca")
    form = FORMATS.get(formatting)
    if "timeseries" in columns and "timeseries" not in (form.columns if form else ()):
        raise ValueError(  # upstream's converters would leave the series out
            f"dataset_info.json: {name} has a column `timeseries` and formatting `{formatting}`, which reads no "
            "series; remove `formatting`, and have one prompt and one answer a record."
        )
    if form is None:
        return entry
    if "file_name" not in entry:
        raise ValueError(
            f"dataset_info.json: an entry with formatting `{formatting}` needs `file_name`, a local file."
        )
    form.check_entry(entry, name)
    for read in OPTIONS.values():
        try:
            read(entry)
        except ValueError as err:
            raise ValueError(f"dataset_info.json: {name}: {err}") from err
    completed = {**entry, "formatting": formatting, "columns": {**form.columns, **columns}}
    tags = {**form.tags, **entry.get("tags", {})}
    return {**completed, "tags": tags} if tags else completed  # an empty `tags` would unset upstream's defaults


def install(upstream: ModuleType) -> str | None:
    """Wraps ``join``. On the fork, which knows the column, only ``gdsh`` is completed."""
    attr_class = upstream.DatasetAttr
    join = attr_class.join
    knows_timeseries = "timeseries" in getattr(attr_class, "__dataclass_fields__", {})

    @functools.wraps(join)
    def join_with_timeseries(self: Any, attr: dict[str, Any]) -> None:
        if knows_timeseries and attr.get("formatting") != "gdsh":
            join(self, attr)
            return
        entry = complete(attr)
        join(self, entry)
        if entry.get("formatting") in FORMATS:
            self.timeseries = entry["columns"].get("timeseries")
            for key, read in OPTIONS.items():
                setattr(self, key, read(entry))

    attr_class.join = join_with_timeseries
    return "wrapped"
