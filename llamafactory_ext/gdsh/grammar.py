"""The grammar of an answer about anomalies, for engines that keep a model's answer to one: EBNF as xgrammar reads it.

What it lets through is one JSON object with ``status`` and ``detected_anomalies``, each entry with one interval whose
bounds are rows of the series, and texts beside it (type, reason, …). With or without a blank after colons and commas:
so a model that answers in the form that it was trained on is never turned aside. It can't hold the start before the
end: no context-free grammar compares two numbers; the reader of answers does.
"""

from functools import lru_cache


# A key does not begin with `i`: `interval` comes once, in its own rule.
_FIXED = r"""
root ::= "{" b "\"status\":" b "\"success\"," b "\"detected_anomalies\":" b "[" (entry ("," b entry)*)? "]" "}"
entry ::= "{" (text "," b)* "\"interval\":" b "[" row "," b row "]" ("," b text)* "}"
text ::= key ":" b string
key ::= "\"" [^"\\i\x00-\x1f] [^"\\\x00-\x1f]* "\""
string ::= "\"" ([^"\\\x00-\x1f] | "\\" ["\\/bfnrt] | "\\u" hex hex hex hex)* "\""
hex ::= [0-9a-fA-F]
b ::= " "?
"""


@lru_cache(maxsize=4096)
def answer_grammar(points: int) -> str:
    """Returns the grammar of answers about a series of `points` rows, the longest one of a record's."""
    if points < 1:
        raise ValueError(f"found a series of {points} points; expected 1 or more")
    return _FIXED.lstrip() + f"row ::= {' | '.join(_up_to(points - 1))}\n"


def _up_to(most: int) -> list[str]:
    """Returns alternatives that together match every whole number from 0 to `most`, without leading zeros."""
    digits = str(most)
    shorter = ["[0-9]"] + [f"[1-9]{_any(count)}" for count in range(1, len(digits) - 1)] if len(digits) > 1 else []
    same = []
    for place, digit in enumerate(digits):
        lowest = 1 if place == 0 and len(digits) > 1 else 0
        if int(digit) > lowest:  # equal so far, smaller here, then anything
            same.append(f"{_literal(digits[:place])}[{lowest}-{int(digit) - 1}]{_any(len(digits) - place - 1)}")
    return [*shorter, *same, _literal(digits)]


def _any(count: int) -> str:
    return " [0-9]" * count


def _literal(text: str) -> str:
    return f'"{text}" ' if text else ""
