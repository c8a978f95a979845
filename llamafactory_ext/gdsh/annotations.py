"""Annotations: the records of a GDSH file, each brought to one shape or marked with what is wrong with it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from llamafactory_ext.errors import GdshError, excerpt, printable

from .answers import Answer, parse_answer
from .entries import NORMAL_TYPES
from .prompts import refuse_control_tokens
from .records import read_records


@dataclass(frozen=True)
class Row:
    """One record."""

    index: int
    """Its place in the file, from 0."""
    pictures: tuple[str, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    """(role, text) in the order of the conversation; empty where `fault` says why."""
    system: str = ""
    fault: str | None = None
    rewritten: int = 0
    """Answers that were a list or an object instead of text, and now are JSON text."""
    without_interval: int = 0
    duplicates: int = 0
    normal: int = 0
    renamed: int = 0
    round: str = ""
    """Which round of corrections it comes from, where the record says so."""

    def as_dict(self, role_tag: str, content_tag: str) -> dict[str, object]:
        """The record in plain types, the same ones for every record, to be written as a line of JSON."""
        return {
            "record": self.index,
            "pictures": list(self.pictures),
            "messages": [{role_tag: role, content_tag: text} for role, text in self.turns],
            "system": self.system,
            "fault": self.fault or "",
            "rewritten": self.rewritten,
            "without_interval": self.without_interval,
            "duplicates": self.duplicates,
            "normal": self.normal,
            "renamed": self.renamed,
        }


def read_annotations(
    path: str | Path,
    *,
    messages: str,
    images: str,
    role_tag: str,
    content_tag: str,
    system: str | None,
    assistant_tag: str = "assistant",
    normal: frozenset[str] = NORMAL_TYPES,
) -> Iterator[Row]:
    """Read a JSON list of records, or a file with one record a line; only one record is held at a time.

    Args:
        path: the file, UTF-8 or GB18030.
        messages: key of a record's conversation, a list of objects.
        images: key of its picture, a path or a list of paths.
        role_tag: key of a message's role.
        content_tag: key of a message's text.
        system: key of the record's system prompt, or None where there is none.
        assistant_tag: the role whose text may also be a list or an object.
        normal: types that mean the normal state.

    Raises:
        GdshError: the file cannot be read as JSON, raised when that place is reached. A fault of a single record
            is reported in its row instead.
    """
    for index, record in enumerate(read_records(path)):
        row = Row(index)
        try:
            row = replace(row, pictures=_pictures(record, images))
            row = replace(row, system=_system(record, system), round=_round(record))
            turns, answers = _turns(record, messages, role_tag, content_tag, assistant_tag, normal)
            row = replace(
                row,
                turns=turns,
                rewritten=len(answers),
                without_interval=sum(answer.without_interval for answer in answers),
                duplicates=sum(answer.duplicates for answer in answers),
                normal=sum(answer.normal for answer in answers),
                renamed=sum(answer.renamed for answer in answers),
            )
        except GdshError as error:
            row = replace(row, fault=str(error))
        except RecursionError:
            row = replace(row, fault="the record is nested too deeply to be read; correct or remove it")
        yield row


def _pictures(record: object, images: str) -> tuple[str, ...]:
    found = _member(_object(record, "the record"), images, "the record")
    pictures = found if isinstance(found, list) else [found]
    if not pictures:
        raise GdshError(f"{images!r} is an empty list; expected the path of a picture, or a list of paths: add it")
    return tuple(_text(picture, f"a picture of {images!r}") for picture in pictures)


def _turns(
    record: object, messages: str, role_tag: str, content_tag: str, assistant_tag: str, normal: frozenset[str]
) -> tuple[tuple[tuple[str, str], ...], list[Answer]]:
    """The conversation, and the answers in it that had to be turned into text."""
    found = _member(_object(record, "the record"), messages, "the record")
    if not isinstance(found, list) or not found:
        raise GdshError(f"{messages!r} is {excerpt(found)}; expected a list of messages: add them")
    turns: list[tuple[str, str]] = []
    answers: list[Answer] = []
    for number, message in enumerate(found):
        name = f"message {number}"
        role = _text(_member(_object(message, name), role_tag, name), f"{role_tag!r} of {name}")
        content = _member(_object(message, name), content_tag, name)
        if role == assistant_tag and isinstance(content, (list, dict)):
            answers.append(parse_answer(content, normal))
            content = answers[-1].text
        text = _text(content, f"{content_tag!r} of {name} ({printable(role)})")
        refuse_control_tokens(text, by_model=role == assistant_tag)
        turns.append((role, text))
    return tuple(turns), answers


def _system(record: object, system: str | None) -> str:
    prompt = None if system is None else _object(record, "the record").get(system)
    if prompt is None:
        return ""
    text = _text(prompt, repr(system))
    refuse_control_tokens(text)
    return text


def _round(record: object) -> str:
    found = record.get("round") if isinstance(record, dict) else None
    return str(found) if isinstance(found, (str, int)) else ""


def _object(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise GdshError(f"{name} is {excerpt(value)}; expected an object: correct or remove it")
    return value


def _member(fields: Mapping[str, object], key: str, name: str) -> object:
    if key not in fields:
        raise GdshError(f"{name} has no {key!r}, only {excerpt(list(fields))}; add it, or name the key that it has")
    return fields[key]


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise GdshError(f"{name} is {excerpt(value)}; expected text: correct it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise GdshError(
            f"{name} holds half a character at {error.start}: {excerpt(value, error.start)}; correct it"
        ) from error
    return value
