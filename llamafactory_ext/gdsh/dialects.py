"""Dialects: the forms besides plain JSON in which annotators' tools write an answer.

One or several bracketed parts, joined by commas or white space, each of them JSON or a Python literal.
"""

import ast
import json
import re
import warnings

from llamafactory_ext.errors import GdshError, excerpt


MAX_ANSWER = 1 << 20
"""Characters of an answer: twenty times the longest known, and more than any model's context holds."""

FIX = 'write the answer as one JSON object, {"status": "success", "detected_anomalies": [...]}, and nothing else'
# A whole string in either kind of quotes, a bracket, or a quote that never closes.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|\'[^\'\\]*(?:\\.[^\'\\]*)*\'|[\[\]{}"\']', re.DOTALL)


def read_json(text: str) -> object:
    """Read strict JSON: no NaN or Infinity, and no key twice in one object.

    Raises:
        ValueError: anything else.
    """
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=unique_keys)


def read_parts(text: str) -> list[object]:
    """Read each bracketed part of `text`.

    Raises:
        GdshError: a part that is neither JSON nor a Python literal, or that is cut off, or text between parts.
    """
    return [_read_part(text, start, end) for start, end in _split(text)]


def _refuse_constant(name: str) -> None:
    raise GdshError(f"{name} is no JSON number")


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make an object of its keys and values, for `json`.

    Raises:
        GdshError: a key occurs twice: readers differ in which value they take.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise GdshError(f"a key occurs twice in one object: {excerpt(twice)}")
    return found


def _split(text: str) -> list[tuple[int, int]]:
    """Find the bracketed parts of `text`, joined by nothing but white space and single commas."""
    parts: list[tuple[int, int]] = []
    start = end = depth = 0
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark in ("[", "{"):
            if depth == 0:
                start = token.start()
                _check_gap(text, end, start, joined=bool(parts))
            depth += 1
        elif mark in ("]", "}") and depth:
            depth -= 1
            if depth == 0:
                end = token.end()
                parts.append((start, end))
        elif depth == 0:  # whatever it is, it is no part: said at once, lest each of many quotes be sought an end
            _check_gap(text, end, len(text), joined=False)
        elif mark in ('"', "'"):
            raise GdshError(
                f"a quote opens at character {token.start()} and never closes: "
                f"{excerpt(text, token.start())}; the answer was cut off or misquoted: {FIX}"
            )
    if depth:
        raise GdshError(
            f"the bracket that opens at character {start} never closes, the text ends with "
            f"{excerpt(text, len(text) - 40)}; the answer was cut off: restore it, and {FIX}"
        )
    _check_gap(text, end, len(text), joined=False)
    return parts


def _check_gap(text: str, start: int, end: int, *, joined: bool) -> None:
    gap = text[start:end].strip()
    if not gap or (joined and gap == ","):
        return
    at = text.index(gap, start)
    kind = "a Markdown code fence" if gap.startswith("```") else "a comma" if gap == "," else "text"
    raise GdshError(f"{kind} at character {at} that is not part of the JSON: {excerpt(text, at)}; {FIX}")


def _read_part(text: str, start: int, end: int) -> object:
    part = text[start:end]
    try:
        return read_json(part)
    except ValueError as error:
        fault: ValueError = error
    try:
        return _python_literal(part)
    except GdshError as error:
        fault = error
    except (ValueError, SyntaxError, TypeError):
        pass
    at = start + (fault.pos if isinstance(fault, json.JSONDecodeError) else 0)
    said = fault.msg if isinstance(fault, json.JSONDecodeError) else str(fault)
    raise GdshError(f"neither JSON nor a Python literal at character {at} ({said}): {excerpt(text, at)}; {FIX}")


def _python_literal(text: str) -> object:
    with warnings.catch_warnings():  # '\d' reads as itself, with a warning that is of no use here
        warnings.simplefilter("ignore")
        tree = ast.parse(text, mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            unique_keys([(repr(key.value), None) for key in node.keys if isinstance(key, ast.Constant)])
    return ast.literal_eval(tree)
