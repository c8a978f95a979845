"""LLaMA-Factory's own chat engine: text alone, and a series that it calls an audio."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def chat(demo: Path) -> Any:
    from llamafactory.chat import ChatModel

    return ChatModel({"model_name_or_path": str(demo / "model"), "template": "chatts", "infer_backend": "huggingface"})


def ask(chat: Any, content: str, **settings: Any) -> Any:
    return chat.chat([{"role": "user", "content": content}], do_sample=False, max_new_tokens=4, **settings)[0]


def test_text_alone(chat: Any) -> None:
    assert ask(chat, "hello").response_length > 0


@pytest.mark.parametrize("content", ["<audio>what is wrong?", "<ts><ts/>what is wrong?"])
def test_series_as_an_audio(chat: Any, content: str) -> None:
    series = [float(i % 5) for i in range(50)]
    reply = ask(chat, content, audios=[series])
    text_alone = ask(chat, "what is wrong?")
    assert reply.prompt_length > text_alone.prompt_length + 7  # seven patches, and the text about them
    assert reply == ask(chat, "<audio>what is wrong?", audios=[series])


def test_no_marker_in_the_message(chat: Any) -> None:
    """The engine itself puts its placeholder in front."""
    series = [1.0, 2.0, 3.0]
    assert (
        ask(chat, "what?", audios=[series]).prompt_length == ask(chat, "<audio>what?", audios=[series]).prompt_length
    )


def test_csv_file(chat: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("value\n" + "\n".join(str(i % 5) for i in range(50)))
    series = [float(i % 5) for i in range(50)]
    assert ask(chat, "<audio>", audios=[str(path)]) == ask(chat, "<audio>", audios=[series])


def test_marker_without_series(chat: Any) -> None:
    with pytest.raises(ValueError, match=r"found 1 markers \(<ts><ts/> or <audio>\) in the messages and 0 series"):
        ask(chat, "<ts><ts/> what?")
