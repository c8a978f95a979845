"""The mm-plugin by itself: placeholders, and batches whose tokens and series do not belong together."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llamafactory_ext.data import template


AUDIO, MARKER = "<audio>", "<ts><ts/>"
USER = {"role": "user"}


def processor(points: int = 100) -> Any:
    return SimpleNamespace(
        max_series_length=points, patch_size=4, tokenizer=SimpleNamespace(convert_tokens_to_ids={"<ts>": 7}.get)
    )


@pytest.mark.parametrize(
    ("first", "second", "series", "kept"),
    [
        (f"{AUDIO}{MARKER} what?", "", 1, f"{MARKER} what?"),
        (f"{AUDIO}{AUDIO}{MARKER} and", f"{MARKER}", 2, f"{MARKER} and"),
        (f"{AUDIO} what?", "", 1, f"{AUDIO} what?"),
        (f"{MARKER}{AUDIO} what?", "", 1, f"{MARKER}{AUDIO} what?"),
        (f"{AUDIO}{MARKER}{MARKER}", "", 1, f"{AUDIO}{MARKER}{MARKER}"),
        (f"{AUDIO}{AUDIO}{MARKER}", "", 1, f"{AUDIO}{AUDIO}{MARKER}"),
        ("what?", "", 0, "what?"),
    ],
)
def test_the_chat_engines_placeholders_go_where_markers_stand_for_all(
    first: str, second: str, series: int, kept: str
) -> None:
    messages = [{**USER, "content": first}, {**USER, "content": second}]
    found = template._without_engines_markers(messages, series)
    assert [one["content"] for one in found] == [kept, second] and messages[0]["content"] == first


@pytest.mark.parametrize(
    ("ids", "lengths", "said"),
    [
        ([[7, 7, 1], [7]], (8, 1), None),
        ([[7, 1], [7]], (8, 1), "found 2 <ts> tokens in a batch and 3 patches of its 2 series"),
        ([[7, 7, 7, 7]], (8, 1), "found 4 <ts> tokens"),
        ([[7] * 3], (9,), None),
        ([], (9,), None),
    ],
)
def test_tokens_and_patches_of_a_batch(ids: list[list[int]], lengths: tuple[int, ...], said: str | None) -> None:
    series = [np.arange(length) for length in lengths]
    if said is None:
        template.check_tokens(series, ids, processor())
        return
    with pytest.raises(ValueError, match=said):
        template.check_tokens(series, ids, processor())
    template.check_tokens(series, ids, SimpleNamespace())


def test_a_series_of_the_last_place_fits() -> None:
    plugin = template.ChatTSPlugin(None, None, None)
    messages = [{**USER, "content": MARKER}]
    (one,) = plugin.process_messages(messages, [], [], [list(range(100))], processor())
    assert one["content"].endswith("<ts>" * 25) and not one["content"].endswith("<ts>" * 26)
    with pytest.raises(ValueError, match="found a series of 101 points; the encoder of this checkpoint places 100"):
        plugin.process_messages(messages, [], [], [list(range(101))], processor())


@pytest.mark.parametrize("call", ["messages", "inputs"])
@pytest.mark.parametrize("given", [(["x.png"], []), ([], ["x.mp4"])])
def test_images_and_videos_are_refused(call: str, given: tuple[list[str], list[str]]) -> None:
    plugin = template.ChatTSPlugin(None, None, None)
    with pytest.raises(ValueError, match="reads series, not images or videos"):
        if call == "messages":
            plugin.process_messages([{**USER, "content": "hi"}], *given, [], processor())
        else:
            plugin.get_mm_inputs(*given, [], [], [], [], [], processor())


def test_series_for_a_model_that_reads_none(tmp_path: Path) -> None:
    plugin = template.ChatTSPlugin(None, None, None)
    assert plugin.get_mm_inputs([], [], [], [], [], [], [[1]], None) == {}
    for call in (
        lambda: plugin.get_mm_inputs([], [], [[1.0]], [], [], [], [], None),
        lambda: plugin.process_messages([{**USER, "content": MARKER}], [], [], [[1.0]], None),
    ):
        with pytest.raises(ValueError, match="the model is no ChatTS checkpoint"):
            call()
    with pytest.raises(ValueError, match="found a series in dict; expected a list of numbers or a CSV file's path"):
        plugin.get_mm_inputs([], [], [{}], [], [], [], [], processor())


@pytest.mark.parametrize("apply", [template.CheckedSystem, template.CheckedTools])
@pytest.mark.parametrize("text", ["Look at <ts>", "Look at <ts><ts/>", "Look at <audio>", r"Look at \u003cts>"])
def test_no_marker_beside_the_conversation(apply: Any, text: str) -> None:
    made = apply(slots=["{{content}}"]) if apply is template.CheckedSystem else apply(tool_format="qwen")
    with pytest.raises(ValueError, match="in a system prompt or in tools; expected it by user"):
        made.apply(content=text)
    with pytest.raises(ValueError, match=r"the control token <\|im_end\|>"):
        made.apply(content="a<|im_end|>")


@pytest.mark.parametrize("role", ["assistant", "function"])
def test_no_marker_in_an_answer(role: str) -> None:
    for text in (MARKER, AUDIO, "<ts>", "<ts/>"):
        with pytest.raises(ValueError, match=f"in a message by {role}; expected it by user"):
            template.expand_messages([{"role": role, "content": text}], [], 8)
