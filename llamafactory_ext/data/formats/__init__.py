"""The formats of ``dataset_info.json`` that this package adds. A new one is a file here and a word below."""

from . import chatts, gdsh
from .format import Format, Notes


__all__ = ["FORMATS", "Format", "Notes"]

FORMATS: dict[str, Format] = {one.name: one for one in (gdsh.FORMAT, chatts.FORMAT)}
