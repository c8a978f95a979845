"""Answers read with a confidence from their own tokens."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory_ext.toolbox.detect.confidence import entries, read, share
from llamafactory_ext.toolbox.detect.engines import Answer
from llamafactory_ext.toolbox.detect.pieces import Found


def answer(*pieces: tuple[str, float], whole: bool = True) -> Answer:
    """An answer of tokens with their probabilities."""
    tokens = tuple(text for text, _ in pieces)
    return Answer("".join(tokens), tokens, tuple(math.log(p) for _, p in pieces), whole)


BEFORE = [('{"status":"success","', 0.1), ("detected_anomalies", 0.1), ('":', 0.1)]


def test_the_tokens_of_an_entry_are_its_brace_numbers_and_type() -> None:
    said = answer(
        *BEFORE, ("[{", 0.5), ('"interval":[', 0.1), ("1", 0.8), ("2", 0.9), (",", 0.5), ("1", 0.5), ("4", 1.0),
        ('],"', 0.5), ('type":"', 0.1), ("点", 0.9), ("异常", 0.9), ('"}', 0.5), (",{", 0.25), ('"interval":[', 0.1),
        ("20", 1.0), (",", 1.0), ("3", 1.0), ("0", 1.0), ("]", 1.0), ("}]}", 0.1),
    )  # fmt: skip
    found = read(said, 31)
    near = 1 + 0.35 * 2
    first = 0.5 * (0.8 * 0.9 * 0.5 * near) * (0.5 * 1.0 * 0.5 * near) * (0.9 * 0.9 * 0.5)
    assert found.found == (Found(12, 14, "点异常", "", round(first, 3)), Found(20, 30, "", "", 0.25))
    assert (found.nothing, found.fault) == (None, "")


def test_no_anomalies_counts_with_all_of_its_tokens() -> None:
    assert read(answer(*BEFORE, ("[]}", 0.5)), 5).nothing == round(0.1**3 * 0.5, 3)


def test_intervals_that_do_not_fit_are_left_out_and_named() -> None:
    text = '{"status":"success","detected_anomalies":[{"interval":[5,3]},{"interval":[1,2]},{"interval":[4,9]}]}'
    found = read(answer((text, 0.5)), 9)
    assert [(one.start, one.end) for one in found.found] == [(1, 2)]
    assert "[5, 3], [4, 9]" in found.fault and found.nothing is None


@pytest.mark.parametrize("text", ["", "no JSON", '{"status":"failed"}', "[1]"])
def test_what_can_not_be_read_says_so(text: str) -> None:
    found = read(answer((text, 0.5)), 9)
    assert found.found == () and found.nothing is None and "can't be read" in found.fault


def test_of_an_answer_that_breaks_off_whole_entries_are_kept() -> None:
    text = '{"status":"success","detected_anomalies":[{"interval":[1,2],"type":"a"},{"interval":[4,'
    found = read(answer((text, 0.5), whole=False), 9)
    assert [(one.start, one.end) for one in found.found] == [(1, 2)] and "breaks off at 1 tokens" in found.fault
    nothing = read(answer(('{"status":"success","detected_', 0.5), whole=False), 9)
    assert nothing.found == () and nothing.nothing is None and "breaks off" in nothing.fault


texts = st.text(alphabet='ab{}[]",\\:点"', max_size=8)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), texts, texts), max_size=4), st.booleans())
def test_entries_are_found_where_they_stand_whatever_texts_hold(
    wanted: list[tuple[int, int, str, str]], ascii_only: bool
) -> None:
    listed = [{"interval": [start, end], "type": kind, "reason": why} for start, end, kind, why in wanted]
    text = json.dumps({"status": "success", "detected_anomalies": listed}, ensure_ascii=ascii_only)
    found = list(entries(text))
    assert [(start, end, kind) for start, end, kind, _ in found] == [(s, e, k) for s, e, k, _ in wanted]
    for (_, _, _, spans), (start, end, kind, _) in zip(found, wanted, strict=True):
        shown = [text[begin:stop] for begin, stop in spans]
        assert shown == ["{", f"{start},", f"{end}]", f"{json.dumps(kind, ensure_ascii=ascii_only)[1:]}"]


def test_votes_are_the_share_that_names_about_the_interval() -> None:
    votes = [[Found(0, 9, "b")], [Found(3, 12), Found(90, 90)], [], [Found(9, 20)], [Found(10, 19)]]
    assert share(Found(0, 9, "a"), votes) == 0.4  # IoU 1, 7 of 13, none, 1 of 21, none
    assert share(Found(5, 5), [[Found(5, 7)], [Found(5, 8)]]) == 0.5
