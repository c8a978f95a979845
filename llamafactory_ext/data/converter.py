"""Registers the formats: a record becomes LLaMA-Factory's ``_prompt``, ``_response`` and, as numbers, ``_audios``.

(On the fork ``_timeseries``.) Markers stay ``<ts><ts/>`` until the template is applied. A converter never raises for a
record: it runs in worker processes, where the first fault would hide the others. What it found goes into the column
``_notes``, which ``loading`` reads.

Public registry of ``llamafactory.data.converter``; its converters are what ours hand on to. Checked on 0.9.5.
"""

import copy
import functools
import json
from dataclasses import asdict
from types import ModuleType
from typing import Any

from llamafactory.data import Role
from llamafactory.data.converter import AlpacaDatasetConverter, SharegptDatasetConverter
from llamafactory.extras.constants import AUDIO_PLACEHOLDER

from llamafactory_ext import __version__
from llamafactory_ext.data.entries import NOTES, RECORD
from llamafactory_ext.data.formats import FORMATS, Notes
from llamafactory_ext.data.formats.format import answered, asked
from llamafactory_ext.errors import GdshError
from llamafactory_ext.gdsh import refuse_control_tokens, unescaped
from llamafactory_ext.plugin.activation import require
from llamafactory_ext.plugin.versions import on_fork
from llamafactory_ext.series import MARKER, FloatArray, SeriesError


_SERIES = "_timeseries" if on_fork() else "_audios"
_UPSTREAM = {"alpaca": AlpacaDatasetConverter, "sharegpt": SharegptDatasetConverter}


def install(upstream: ModuleType) -> str | None:
    """Registers a converter for each format, unless one of that name is there; on the fork only `gdsh`."""
    added = []
    for name in FORMATS:
        if name not in upstream.DATASET_CONVERTERS and not (name == "chatts" and on_fork()):
            upstream.register_dataset_converter(name, functools.partial(SeriesConverter, name))
            added.append(name)
    return f"registered {', '.join(added)}" if added else None


class SeriesConverter:
    """Converts one record of a format, by way of LLaMA-Factory's own converter for texts."""

    def __init__(self, name: str, dataset_attr: Any, data_args: Any) -> None:
        require()
        # Part of what datasets hashes, as every attribute is: other notes are not read from its cache.
        self.version = (__version__, *Notes.__dataclass_fields__)
        self.name = name
        self.attr = copy.copy(dataset_attr)
        for key, value in FORMATS[name].attributes.items():
            setattr(self.attr, key, value)
        self.upstream = _UPSTREAM[FORMATS[name].upstream](dataset_attr=self.attr, data_args=data_args)

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        """Returns the columns of one record; where it can't be used, well-formed ones that only carry the fault."""
        form, notes, series = FORMATS[self.name], Notes(), list[FloatArray]()
        try:
            record, series = form.read(example, self.attr, notes)
            converted = self.upstream(record)
            _check_texts(converted)
            form.check(converted, record, self.attr, series)
        except (GdshError, SeriesError) as err:
            blank = [{"role": role, "content": ""} for role in ("user", "assistant")]
            converted = {"_prompt": blank[:1], "_response": blank[1:], "_system": "", "_tools": ""}
            converted |= dict.fromkeys(("_images", "_videos"))
            series, notes = [], Notes(fault=str(err))
        if not notes.fault:
            notes.asked = asked([*converted["_prompt"], converted["_system"]], series)
            notes.answered = answered("".join(turn["content"] for turn in converted["_response"]))
        name = example.get(form.record)
        return {
            **converted,
            _SERIES: series or None,
            RECORD: name if isinstance(name, str) else "",
            NOTES: json.dumps(asdict(notes)),
        }


def _check_texts(output: dict[str, Any]) -> None:
    """Raises GdshError where a text holds what would become more than text when the template is applied."""
    messages = output["_prompt"] + output["_response"]
    around = [text for text in (output["_system"], output["_tools"]) if text]
    for message in messages:
        refuse_control_tokens(message["content"], by_model=message["role"] == Role.ASSISTANT.value)
    for text in around:
        refuse_control_tokens(text)
    if any(AUDIO_PLACEHOLDER in message["content"] for message in messages):
        raise GdshError(f"found {AUDIO_PLACEHOLDER}, which LLaMA-Factory replaces; write it in other words")
    asking = (Role.USER.value, Role.OBSERVATION.value)
    for text in [*around, *(message["content"] for message in messages if message["role"] not in asking)]:
        if "<ts>" in (plain := unescaped(text)) or "<ts/>" in plain:
            raise GdshError(f"found <ts> in an answer, a system prompt or tools; expected {MARKER} in prompts only")
