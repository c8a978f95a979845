"""Data formats ``gdsh`` (raw annotations) and ``chatts`` (``input``, ``output``, ``timeseries``).

A record becomes LLaMA-Factory's ``_prompt``, ``_response`` and, as lists of numbers, ``_audios`` (on the fork
``_timeseries``); markers stay ``<ts><ts/>`` until the template is applied. A converter never raises for a record: it
runs in worker processes, where the first fault would hide the others. What it found goes into the column ``_notes``,
which ``loading`` reads.

Public registry of ``llamafactory.data.converter``; its converters are what ours build on. Checked on 0.9.5.
"""

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

from llamafactory.data import Role
from llamafactory.data.converter import AlpacaDatasetConverter, SharegptDatasetConverter
from llamafactory.extras.constants import AUDIO_PLACEHOLDER

from llamafactory_ext import __version__
from llamafactory_ext.dataset_entry import NOTES, RECORD
from llamafactory_ext.gdsh import (
    GdshError,
    check_intervals,
    parse_answer,
    place_markers,
    read_series,
    refuse_control_tokens,
)
from llamafactory_ext.installed import on_fork
from llamafactory_ext.register import require
from llamafactory_ext.series import MARKER, FloatArray, SeriesError, as_series, scale
from llamafactory_ext.shared_series import read_once


_SERIES = "_timeseries" if on_fork() else "_audios"


@dataclass
class Notes:
    """What was done to one record, in numbers; ``fault`` where it can't be used."""

    fault: str = ""
    asked: str = ""  # digest of prompt and series
    answered: str = ""  # digest of the answer: two for one question contradict each other
    markers_moved: int = 0
    values_filled: int = 0
    series_beside: int = 0
    names_differ: int = 0
    answers_rewritten: int = 0
    entries_without_interval: int = 0
    answers_emptied: int = 0
    duplicate_entries: int = 0


@dataclass
class Converted:
    """One record before it is handed on."""

    output: dict[str, Any]
    series: list[FloatArray]
    notes: Notes = field(default_factory=Notes)


def install(upstream: ModuleType) -> str | None:
    """Registers both converters, each unless one of that name is there; on the fork only `gdsh`."""
    added = []
    for name, converter in (("gdsh", GdshDatasetConverter), ("chatts", ChatTSDatasetConverter)):
        if name not in upstream.DATASET_CONVERTERS and not (name == "chatts" and on_fork()):
            upstream.register_dataset_converter(name, converter)
            added.append(name)
    return f"registered {', '.join(added)}" if added else None


@dataclass
class GdshDatasetConverter(SharegptDatasetConverter):  # type: ignore[misc]
    """Converts prepared annotation records (see ``json_lines.annotation_lines``)."""

    def __post_init__(self) -> None:
        require()
        self.version = __version__  # part of what datasets hashes, as every attribute is
        self.dataset_attr: Any = copy.copy(self.dataset_attr)
        self.dataset_attr.messages, self.dataset_attr.system = "messages", "system"
        self.dataset_attr.images = self.dataset_attr.tools = None

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        return _settled(lambda: self._convert(example), example["record"])

    def _convert(self, example: dict[str, Any]) -> Converted:
        if example["fault"]:
            raise GdshError(example["fault"])
        notes = Notes(
            answers_rewritten=example["rewritten"],
            entries_without_interval=example["without_interval"],
            duplicate_entries=example["duplicates"],
        )
        series = []
        for file in example["series"]:
            found = read_once(file["path"]) if file["shared"] else read_series(file["path"])
            scale(found.values)  # raises where it can't be scaled
            notes.values_filled += found.filled
            notes.series_beside += file["beside"]
            notes.names_differ += file["renamed"]
            series.append(found.values)
        example = {**example, "messages": copy.deepcopy(example["messages"])}
        self._place_markers(example["messages"], len(series), notes)
        self._rewrite_answers(example["messages"], [len(one) for one in series], notes)
        output = super().__call__(example)
        if not output["_response"]:
            roles = [message[self.dataset_attr.role_tag] for message in example["messages"]]
            attr = self.dataset_attr
            raise GdshError(
                f"found the roles {roles}; expected {attr.user_tag!r} and {attr.assistant_tag!r} in turn, "
                f"{attr.assistant_tag!r} last: mend the record, or name its roles under `tags`"
            )
        _check_texts(output)
        return Converted(output, series, notes)

    def _texts(self, messages: list[dict[str, str]], tag: str) -> list[dict[str, str]]:
        return [message for message in messages if message[self.dataset_attr.role_tag] == tag]

    def _place_markers(self, messages: list[dict[str, str]], count: int, notes: Notes) -> None:
        asked = self._texts(messages, self.dataset_attr.user_tag)
        content = self.dataset_attr.content_tag
        texts, moved = place_markers([message[content] for message in asked], count)
        for message, text in zip(asked, texts, strict=True):
            message[content] = text
        notes.markers_moved += moved

    def _rewrite_answers(self, messages: list[dict[str, str]], lengths: list[int], notes: Notes) -> None:
        content = self.dataset_attr.content_tag
        for message in self._texts(messages, self.dataset_attr.assistant_tag):
            answer = parse_answer(message[content])
            check_intervals(answer.intervals, lengths)
            message[content] = answer.text
            notes.answers_rewritten += answer.rewritten
            notes.entries_without_interval += answer.without_interval
            notes.answers_emptied += bool(notes.entries_without_interval and not answer.intervals)
            notes.duplicate_entries += answer.duplicates


@dataclass
class ChatTSDatasetConverter(AlpacaDatasetConverter):  # type: ignore[misc]
    """Converts records with a prompt, a response and one or several series of any length."""

    def __post_init__(self) -> None:
        require()
        self.version = __version__

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        return _settled(lambda: self._convert(example), "")

    def _convert(self, example: dict[str, Any]) -> Converted:
        self._check_columns(example)
        series = as_series_list(example[self.dataset_attr.timeseries])
        output = super().__call__(example)
        _check_texts(output)
        texts = [message["content"] for message in output["_prompt"] + output["_response"]]
        if any("<ts>" in text.replace(MARKER, "") or "<ts/>" in text.replace(MARKER, "") for text in texts):
            raise SeriesError(f"found a single <ts> or <ts/>; expected {MARKER}, once for each series")
        markers = sum(text.count(MARKER) for text in texts)
        if markers != len(series):
            raise SeriesError(
                f"found {markers} {MARKER} in {self.dataset_attr.prompt!r} and {len(series)} series; "
                "expected one marker for each series"
            )
        return Converted(output, series)

    def _check_columns(self, example: dict[str, Any]) -> None:
        attr = self.dataset_attr
        answers = [attr.chosen, attr.rejected] if attr.ranking else [attr.response]
        texts = [name for name in (attr.prompt, *answers) if name]
        missing = [
            name for name in (*texts, attr.kto_tag, attr.system, attr.timeseries) if name and name not in example
        ]
        if missing:
            raise SeriesError(f"found no column {missing[0]!r}, only {list(example)}; name yours under `columns`")
        for name in texts:
            if not isinstance(example[name], str):
                raise SeriesError(f"found {example[name]!r:.80} in {name!r}; expected text")
        if attr.kto_tag and not isinstance(example[attr.kto_tag], bool):  # upstream would take it for an untagged one
            raise SeriesError(f"found {example[attr.kto_tag]!r:.80} in {attr.kto_tag!r}; expected true or false")
        # Upstream tells a bad answer by its place, and an empty one by none.
        if attr.kto_tag and not example[attr.response]:
            raise SeriesError(f"found no text in {attr.response!r}; stage `kto` needs an answer to like or dislike")


def _check_texts(output: dict[str, Any]) -> None:
    """Raises GdshError where a text holds what would become more than text when the template is applied."""
    messages = output["_prompt"] + output["_response"]
    around = [text for text in (output["_system"], output["_tools"]) if text]
    for text in [*(message["content"] for message in messages), *around]:
        refuse_control_tokens(text)
    if any(AUDIO_PLACEHOLDER in message["content"] for message in messages):
        raise GdshError(f"found {AUDIO_PLACEHOLDER}, which LLaMA-Factory replaces; write it in other words")
    asking = (Role.USER.value, Role.OBSERVATION.value)
    for text in [*around, *(message["content"] for message in messages if message["role"] not in asking)]:
        if "<ts>" in text or "<ts/>" in text:
            raise GdshError(f"found <ts> in an answer, a system prompt or tools; expected {MARKER} in prompts only")


def as_series_list(values: Any) -> list[FloatArray]:
    """Returns the series of one record; a flat list of numbers counts as one series, None and [] as none.

    Raises:
        SeriesError: names the series (from 0) that can't be used.
    """
    if values is None or len(values) == 0:
        return []
    if not isinstance(values[0], (list, tuple)):
        values = [values]
    series = []
    for number, one in enumerate(values):
        try:
            series.append(as_series(one))
            scale(series[-1])
        except SeriesError as err:
            raise SeriesError(f"series {number}: {err}") from err
    return series


def _settled(convert: Callable[[], Converted], name: str) -> dict[str, Any]:
    """Returns the columns of one record; where it can't be used, well-formed ones that only carry the fault."""
    try:
        converted = convert()
    except (GdshError, SeriesError) as err:
        blank = [{"role": role, "content": ""} for role in ("user", "assistant")]
        output: dict[str, Any] = {"_prompt": blank[:1], "_response": blank[1:], "_system": "", "_tools": ""}
        output |= dict.fromkeys(("_images", "_videos"))
        converted = Converted(output, [], Notes(fault=str(err)))
    converted.notes.asked = _digest([*converted.output["_prompt"], converted.output["_system"]], converted.series)
    converted.notes.answered = _digest(converted.output["_response"], [])
    return {
        **converted.output,
        _SERIES: converted.series or None,
        RECORD: name,
        NOTES: json.dumps(asdict(converted.notes)),
    }


def _digest(texts: Any, series: list[FloatArray]) -> str:
    """Returns what tells equal contents from others, in a few characters."""
    digest = hashlib.blake2b(repr(texts).encode(errors="surrogatepass"), digest_size=12)
    for one in series:
        digest.update(len(one).to_bytes(8))
        digest.update(one.tobytes())
    return digest.hexdigest()
