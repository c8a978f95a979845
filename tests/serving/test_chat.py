"""LLaMA-Factory's own chat: its engine in this process, its terminal in one of its own, and the recipe of both."""

import asyncio
import functools
import json
import subprocess
import sys
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, path_of_environment


SERIES = [float(i % 5) for i in range(50)]


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
    reply = ask(chat, content, audios=[SERIES])
    text_alone = ask(chat, "what is wrong?")
    assert reply.prompt_length > text_alone.prompt_length + 7  # seven patches, and the text about them
    assert reply == ask(chat, "<audio>what is wrong?", audios=[SERIES])


def test_no_marker_in_the_message(chat: Any) -> None:
    """The engine itself puts its placeholder in front."""
    series = [1.0, 2.0, 3.0]
    assert (
        ask(chat, "what?", audios=[series]).prompt_length == ask(chat, "<audio>what?", audios=[series]).prompt_length
    )


def test_csv_file(chat: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("value\n" + "\n".join(map(str, SERIES)))
    assert ask(chat, "<audio>", audios=[str(path)]) == ask(chat, "<audio>", audios=[SERIES])


def test_neither_numbers_nor_a_file(chat: Any) -> None:
    with pytest.raises(ValueError, match="found a series in bytes; expected a list of numbers or a CSV file's path"):
        ask(chat, "<audio>", audios=[b"1,2"])


def test_marker_without_series(chat: Any) -> None:
    with pytest.raises(ValueError, match=r"found 1 markers \(<ts><ts/> or <audio>\) in the messages and 0 series"):
        ask(chat, "<ts><ts/> what?")


def test_series_of_a_request_in_order(chat: Any) -> None:
    """What the API makes of a request: text alone, and the series in the order of their markers."""
    from llamafactory.api.protocol import ChatCompletionRequest

    from llamafactory_ext.serving.prompt import prepare

    def item(values: str) -> dict[str, Any]:
        return {"type": "audio_url", "audio_url": {"url": f"data:application/json,[{values}]"}}

    def words(text: str) -> dict[str, Any]:
        return {"type": "text", "text": text}

    contents = [
        "be short",
        [words("a "), item("1"), words(" b "), item("2, 2")],
        "ok",
        [words("<ts><ts/>?"), item("3")],
    ]
    roles = ["system", "user", "assistant", "user"]
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    request = ChatCompletionRequest.model_validate({"model": "x", "messages": messages})
    before = request.model_copy(deep=True)
    prompt = prepare(request, chat.engine, None)
    assert [message.content for message in prompt.request.messages] == [
        "be short",
        "a <audio> b <audio>",
        "ok",
        "<audio>?",
    ]
    assert [series.tolist() for series in prompt.series] == [[1], [2, 2], [3]]
    assert request == before


def test_a_prompt_is_counted_with_its_tools(chat: Any) -> None:
    """As many tokens as the engine then takes: what is placed at most is allowed, one more is not."""
    from llamafactory.api.protocol import ChatCompletionRequest

    from llamafactory_ext.serving.prompt import prepare

    function = {"name": "look", "description": "at a series " * 30, "parameters": {"type": "object", "properties": {}}}
    place, messages = chat.engine.model.config.max_position_embeddings, [{"role": "user", "content": "what?"}]
    bare, told = (
        chat.chat(messages, tools=tools, do_sample=False, max_new_tokens=1)[0].prompt_length
        for tools in (None, json.dumps([function]))
    )
    assert told > bare + 100
    for tools, tokens in (([], bare), ([{"type": "function", "function": function}], told)):
        asked = {"model": "x", "messages": messages, "tools": tools}
        prepare(ChatCompletionRequest.model_validate(asked | {"max_tokens": place - tokens}), chat.engine, None)
        with pytest.raises(ValueError, match=f"a prompt of {tokens:,} tokens, and room for {place - tokens + 1:,}"):
            prepare(
                ChatCompletionRequest.model_validate(asked | {"max_tokens": place - tokens + 1}), chat.engine, None
            )


@pytest.mark.parametrize("kind", ["images", "videos"])
def test_pictures_are_refused(chat: Any, kind: str) -> None:
    """Either kind by itself, where messages are written and where a batch is made; series beside them or not."""
    plugin, processor = chat.engine.template.mm_plugin, chat.engine.processor
    images, videos = (["a.png"], []) if kind == "images" else ([], ["a.mp4"])
    for series in ([], [SERIES]):
        with pytest.raises(ValueError, match="reads series, not images or videos"):
            plugin.process_messages([{"role": "user", "content": "?"}], images, videos, series, processor)
        with pytest.raises(ValueError, match="reads series, not images or videos"):
            plugin.get_mm_inputs(images, videos, series, [len(images)], [len(videos)], [len(series)], [], processor)


def client(chat: Any) -> Any:
    """Upstream's application, as its server would have it."""
    from fastapi.testclient import TestClient
    from llamafactory.api import app

    return TestClient(app.create_app(chat), base_url="http://127.0.0.1:8000")


def test_answer_is_that_of_the_engine(chat: Any) -> None:
    """By way of upstream's API and back: the series arrive at the engine in their order, and none is lost."""
    http = client(chat)

    def served(*series: list[float]) -> str:
        items = [{"type": "audio_url", "audio_url": {"url": f"data:application/json,{one}"}} for one in series]
        messages = [{"role": "user", "content": [*items, {"type": "text", "text": "what?"}]}]
        settings = {"model": "x", "do_sample": False, "max_tokens": 12}
        response = http.post("/v1/chat/completions", json={"messages": messages, **settings})
        return str(response.json()["choices"][0]["message"]["content"])

    def own(*series: list[float]) -> str:
        messages = [{"role": "user", "content": "<audio>" * len(series) + "what?"}]
        (reply,) = chat.chat(messages, audios=list(series), do_sample=False, max_new_tokens=12)
        return str(reply.response_text)

    pairs = [([1.0 * k] * 3 + SERIES[:k], [5.0, -k, 9.5 * k]) for k in range(1, 9)]
    assert [served(*pair) for pair in pairs] == [own(*pair) for pair in pairs]
    assert [served(*pair) for pair in pairs] != [served(*reversed(pair)) for pair in pairs]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream waits for a stream's next piece for ever; here for 20 s, so that a test fails instead of hanging."""
    from llamafactory.chat import hf_engine

    patient = hf_engine.TextIteratorStreamer
    monkeypatch.setattr(hf_engine, "TextIteratorStreamer", functools.partial(patient, timeout=20))


@pytest.mark.usefixtures("impatient")
def test_stream_whose_generation_fails_ends(chat: Any) -> None:
    """A setting that transformers refuses gets as far as the model's thread; the stream would wait for ever."""
    from llamafactory_ext.serving.streams import Failure, end_failed_streams

    end_failed_streams(chat.engine)
    wrong = {"do_sample": True, "top_k": -1, "max_new_tokens": 4}
    found = list(chat.stream_chat([{"role": "user", "content": "hello"}], **wrong))
    assert isinstance(found[-1], Failure) and "top_k" in found[-1]
    assert ask(chat, "hello").response_length > 0
    with pytest.raises(ValueError, match="found <ts> in a system prompt"):
        ask(chat, "hello", system="<ts>")


@pytest.mark.usefixtures("impatient")
def test_answer_to_a_stream_that_fails(chat: Any) -> None:
    """The status has been sent by then: the last event tells, in the form that OpenAI's clients look for."""
    settings = {"model": "x", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "stream": True}
    chat_args, chat.engine.generating_args = chat.engine.generating_args, {**chat.engine.generating_args, "top_k": -1}
    try:
        lines = client(chat).post("/v1/chat/completions", json=settings).text.splitlines()
    finally:
        chat.engine.generating_args = chat_args
    first, last = (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert last["error"]["code"] == 500 and "top_k" in last["error"]["message"]


def counted(chat: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of tokens that the model is given, call by call."""
    from transformers import PreTrainedModel

    model = chat.engine.model
    while not isinstance(model, PreTrainedModel):
        model = model._model
    widths: list[int] = []
    forward = model.forward

    @functools.wraps(forward)
    def count(*args: Any, **inputs: Any) -> Any:
        widths.append(inputs["input_ids"].shape[1])
        return forward(*args, **inputs)

    monkeypatch.setattr(model, "forward", count)
    return widths


def test_keys_and_values_are_cached(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's checkpoint says `use_cache: false`, as the published ones do."""
    widths = counted(chat, monkeypatch)
    ask(chat, "<audio>what is wrong?", audios=[SERIES])
    assert widths[0] > 10 and widths[1:] == [1] * (len(widths) - 1) and len(widths) > 1


def test_nobody_waits_for_the_answer(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for is 2,000 tokens; the client leaves at the fifth."""
    from llamafactory_ext.serving.streams import engine_for

    widths, stop = counted(chat, monkeypatch), threading.Event()
    tokens = chat.engine.tokenizer.encode("hello")

    async def read() -> None:
        engine = engine_for(chat.engine, tokens, stop)
        settings = {"do_sample": False, "max_new_tokens": 2000}
        number = 0
        async for _ in engine.stream_chat([{"role": "user", "content": "hello"}], **settings):
            number += 1
            if number == 5:
                stop.set()

    monkeypatch.setattr(chat.engine.template, "stop_words", [])
    asyncio.run(read())
    assert len(widths) < 200


def test_a_text_is_tokenised_once(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not in the event loop: in a stream upstream does both there."""
    template, threads = chat.engine.template, list[str]()
    encode = template.encode_oneturn

    def noting(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return encode(*args)

    monkeypatch.setattr(template, "encode_oneturn", noting)
    for stream in (True, False):
        body = {"model": "x", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "stream": stream}
        assert client(chat).post("/v1/chat/completions", json=body).status_code == 200
    assert len(threads) == 2 and all(name.startswith("asyncio_") for name in threads)


@pytest.mark.parametrize("keys", [{"max_completion_tokens": 3}, {"max_completion_tokens": 3, "max_tokens": 9}])
def test_the_newer_name_of_max_tokens(keys: dict[str, int], chat: Any) -> None:
    body = {"model": "x", "messages": [{"role": "user", "content": "hi"}], "do_sample": False, **keys}
    answer = client(chat).post("/v1/chat/completions", json=body).json()
    assert answer["usage"]["completion_tokens"] <= 3
    refused = client(chat).post("/v1/chat/completions", json={**body, "max_completion_tokens": 0})
    assert refused.status_code == 400 and "max_completion_tokens: found 0" in refused.text


def test_the_picture_of_a_copied_prompt(chat: Any) -> None:
    """The series stands where the picture was in the data."""
    from llamafactory_ext.serving.prompt import SeriesRequest, prepare
    from llamafactory_ext.serving.sources import SourceError

    def prepared(*content: Any) -> Any:
        messages = [{"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}]
        return prepare(SeriesRequest(model="x", messages=messages), chat.engine, None)

    text = {"type": "text", "text": "<image>\nwhat?"}
    series = {"type": "audio_url", "audio_url": {"url": "data:application/json,[1, 2]"}}
    for prompt in (prepared(text, series), prepared(series, text)):
        assert prompt.request.messages[0].content == "<audio>\nwhat?"
    for wrong in ([text], ["<image>\nwhat?"], [text, series, series], [{**text, "text": "<image><image>"}, series]):
        with pytest.raises(SourceError, match="markers"):
            prepared(*wrong)


def test_a_long_text_is_not_tokenised(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat.engine.template, "encode_oneturn", None)
    monkeypatch.setattr(chat.engine.template.mm_plugin, "process_messages", None)
    for content in ("a b " * (1 << 20), [{"type": "text", "text": "a b " * (1 << 18)}] * 4):
        body = {"model": "x", "messages": [{"role": "user", "content": content}]}
        for stream in (False, True):
            answer = client(chat).post("/v1/chat/completions", json={**body, "stream": stream})
            assert answer.status_code == 400 and "found texts of 4,194,304 characters" in answer.text


def test_terminal(demo: Path, tmp_path: Path) -> None:
    """Series between the marker's halves, kept for later turns; a line that is wrong is not asked."""
    (tmp_path / "x.csv").write_text("value\n" + "\n".join(map(str, SERIES)))
    lines = [
        "<ts>nope.csv<ts/> what?",
        "<ts><ts/> what?",
        "a single <ts>",
        "<ts>[1, null]<ts/> what?",
        f"<ts>{[0.0] * 9000}<ts/> what?",
        "clear",
        "<ts>x.csv<ts/> what?",
        "and <ts>[1, 2, 3]<ts/> beside it?",
        "thanks",
        "exit",
    ]
    keys = [f"model_name_or_path={demo / 'model'}", "adapter_name_or_path=null", "quantization_bit=null"]
    command = [str(Path(sys.executable).with_name("llamafactory-cli")), "chat", str(ROOT / "yaml" / "chat.yaml")]
    run = subprocess.run(
        [*command, *keys, "max_new_tokens=4"],
        input="\n".join(lines) + "\n",
        cwd=tmp_path,
        env={"PATH": path_of_environment(), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    told = [line for line in run.stdout.splitlines() if "Not asked: " in line]
    reasons = ["'nope.csv' is not there", "nothing between", "a single <ts>", "at index 1", "a series of 9000 points"]
    assert len(told) == len(reasons)
    assert all(reason in line for reason, line in zip(reasons, told, strict=True))
    assert run.stdout.count("Assistant: ") == 3
    assert "A series is a CSV file or numbers between <ts> and <ts/>" in run.stdout


def test_recipe() -> None:
    """It asks what the main recipe trains, and LLaMA-Factory knows its keys."""
    from llamafactory.hparams import parser

    recipe, main = (
        yaml.safe_load((ROOT / "yaml" / f"{name}.yaml").read_text("utf-8")) for name in ("chat", "2080ti_qlora")
    )
    assert set(recipe) <= {field.name for arguments in parser._INFER_ARGS for field in fields(arguments)}
    assert recipe.pop("adapter_name_or_path") == main["output_dir"]
    own = {"infer_backend": "huggingface", "do_sample": False, "max_new_tokens": 1024}
    assert recipe == own | {key: main[key] for key in recipe.keys() - own.keys()}
