"""Entries of ``dataset_info.json``: the ``timeseries`` column, and the defaults of our two formats.

Wraps ``DatasetAttr.join`` of ``llamafactory.data.parser``, which reads an entry.
"""

import functools
from types import ModuleType
from typing import Any


FORMATS = ("gdsh", "chatts")

# Columns that the converters add to LLaMA-Factory's own: the record's name for messages, and what was found in it.
RECORD, NOTES = "_record", "_notes"

COLUMNS = {
    "gdsh": {"messages": "conversations", "images": "image"},
    "chatts": {"prompt": "input", "response": "output", "timeseries": "timeseries"},
}
TAGS = {
    "gdsh": {
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
    "chatts": {},
}


def complete(entry: dict[str, Any]) -> dict[str, Any]:
    """Returns the entry with what it leaves out; an entry of another format comes back unchanged.

    A ``timeseries`` column without ``formatting`` means ``chatts``.

    Raises:
        ValueError: a ``gdsh`` entry without ``folder``, one that does not name a local file, or columns that its
            format does not have.
    """
    columns = entry.get("columns", {})
    formatting = entry.get("formatting", "chatts" if "timeseries" in columns else "alpaca")
    _check_columns(entry, formatting)
    if formatting not in FORMATS:
        return entry
    if "file_name" not in entry:
        raise ValueError(
            f"dataset_info.json: an entry with formatting `{formatting}` needs `file_name`, a local file."
        )
    if formatting == "gdsh" and not entry.get("folder"):
        raise ValueError(
            f"dataset_info.json: the entry of {entry['file_name']} has formatting `gdsh` but no `folder`; "
            "add the folder of its CSV files, absolute or relative to `dataset_dir`."
        )
    columns = {**COLUMNS[formatting], **columns}
    tags = {**TAGS[formatting], **entry.get("tags", {})}
    completed = {**entry, "formatting": formatting, "columns": columns}
    return {**completed, "tags": tags} if tags else completed  # an empty `tags` would unset upstream's defaults


def _check_columns(entry: dict[str, Any], formatting: str) -> None:
    columns, name = entry.get("columns", {}), entry.get("file_name", "an entry")
    if "timeseries" in columns and formatting != "chatts":  # upstream's converters would leave the series out
        raise ValueError(
            f"dataset_info.json: {name} has a column `timeseries` and formatting `{formatting}`, which reads no "
            "series; remove `formatting`, and have one prompt and one answer a record."
        )
    preference = [key for key in ("chosen", "rejected", "kto_tag") if key in columns]
    if formatting == "gdsh" and (entry.get("ranking") or preference):
        raise ValueError(
            f"dataset_info.json: {name} has formatting `gdsh`, whose records hold one answer each; for stages `dpo`, "
            "`rm` and `kto` write records with `timeseries` (see dataset_info/README.md)."
        )
    if formatting == "chatts" and entry.get("ranking") and not {"chosen", "rejected"} <= columns.keys():
        raise ValueError(f"dataset_info.json: {name} has `ranking`; name its columns `chosen` and `rejected`.")


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

    attr_class.join = join_with_timeseries
    return "wrapped"
