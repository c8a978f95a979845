"""Lines: one prepared record as JSON, in each of the two forms."""

from collections.abc import Sequence

import orjson

from llamafactory_ext.data.formats import FORMATS
from llamafactory_ext.gdsh.prompts import IMAGE, MARKER

from .resampling import Floats


CHATTS_COLUMNS, GDSH_COLUMNS = FORMATS["chatts"].columns, FORMATS["gdsh"].columns
GDSH_TAGS = {
    tag: name for tag, name in FORMATS["gdsh"].tags.items() if tag != "system_tag"
}  # that one is upstream's default
SYSTEM = "system"


def chatts_line(prompt: str, answer: str, series: Sequence[Floats], system: str | None) -> bytes:
    """Write a ChatTS record; numbers are floats in their shortest form that reads back to the same.

    Args:
        prompt: with one marker for each series.
        answer: JSON text.
        series: each of shape (rows,), finite.
        system: None leaves the key out: all records of a file must have the same keys.
    """
    record: dict[str, object] = {"input": prompt, "output": answer, "timeseries": list(series)}
    if system is not None:
        record[SYSTEM] = system
    line: bytes = orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY)
    return line


def gdsh_line(images: Sequence[str], prompt: str, answer: str, system: str) -> bytes:
    """Write an annotation record; the markers of its prompt become places of pictures again."""
    turns = [("user", prompt.replace(MARKER, IMAGE)), ("assistant", answer)]
    if system:
        turns.insert(0, (SYSTEM, system))
    messages = [{"from": role, "value": text} for role, text in turns]
    image = images[0] if len(images) == 1 else list(images)
    line: bytes = orjson.dumps({"image": image, "conversations": messages})
    return line
