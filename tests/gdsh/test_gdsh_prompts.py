"""Every series has exactly one marker in the prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_ext.gdsh import GdshError, place_markers


MARKER = "<ts><ts/>"
pieces = st.lists(st.sampled_from(["<image>", MARKER, "分析", "\n", "<b>"]), max_size=6)


@given(messages=st.lists(pieces, min_size=1, max_size=3), series=st.integers(0, 4))
def test_one_marker_for_each_series(messages: list[list[str]], series: int) -> None:
    texts = ["".join(message) for message in messages]
    places = sum(piece in ("<image>", MARKER) for message in messages for piece in message)
    replaced = ["".join(MARKER if piece == "<image>" else piece for piece in message) for message in messages]
    if places == series:
        assert place_markers(texts, series) == (replaced, False)
    elif places == 0 and series == 1:
        assert place_markers(texts, series) == ([MARKER + "\n" + replaced[0], *replaced[1:]], True)
    else:
        with pytest.raises(GdshError, match=f"but {series} series; expected one for each series"):
            place_markers(texts, series)


@pytest.mark.parametrize(
    ("messages", "series", "said"),
    [
        (["<image> <image>"], 1, "2 <image> but 1 series; expected one for each series"),
        (["<image>", MARKER], 1, "1 <image> and 1 <ts><ts/> but 1 series"),
        (["分析"], 2, "0 <image> but 2 series"),
        ([], 1, "0 <image> but 1 series"),
        (["<ts>"], 1, "half a marker in the prompt; expected <ts><ts/> whole"),
        (["<image><ts/>"], 1, "half a marker"),
    ],
)
def test_faults(messages: list[str], series: int, said: str) -> None:
    with pytest.raises(GdshError) as fault:
        place_markers(messages, series)
    assert said in str(fault.value)


def test_the_given_messages_are_not_changed() -> None:
    messages = ["分析"]
    assert place_markers(messages, 1) == (["<ts><ts/>\n分析"], True)
    assert messages == ["分析"]
