"""The real server, asked about series over HTTP: answers, refusals, streams, and that it lives on."""

import base64
import contextlib
import gc
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
from conftest import ROOT, path_of_environment
from fastapi import FastAPI

from llamafactory_ext.serving.api import install_app
from llamafactory_ext.toolbox.demo.plant import write_plant


CHAT = "/v1/chat/completions"
SERIES = [[round((i % (5 + k)) * 1.5 - k, 2) for i in range(20 + 7 * k)] for k in range(20)]
LIMIT = 8192  # points of a series, and tokens, that the demo's model places


class Server(NamedTuple):
    http: httpx.Client
    process: psutil.Process
    folder: Path


@pytest.fixture(scope="module")
def adapter(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as training leaves it, on attention and encoder, that changes answers."""
    import torch
    from peft import LoraConfig, get_peft_model

    from llamafactory_ext.model import Qwen2TSForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    layers = ["q_proj", "k_proj", "v_proj", *(f"ts_encoder.mlp.{layer}" for layer in (0, 2, 4, 6, 8))]
    config = LoraConfig(r=8, target_modules=layers, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(Qwen2TSForCausalLM.from_pretrained(demo / "model"), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(demo: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`llamafactory-cli api yaml/chat.yaml`, in 4 bit and with an adapter; the demo's CSV files are open to it."""
    work = tmp_path_factory.mktemp("server")
    folder = work / "open"
    shutil.copytree(demo / "data" / "timeseries", folder)
    write_plant(work / "demo" / "plant", points=41)  # whose files docs/serving.md asks about
    shutil.copytree(work / "demo" / "plant" / "timeseries" / "plant", folder / "plant")
    (work / "secret.csv").write_text("value\n1\n2\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env |= {"PATH": path_of_environment(), "API_HOST": "127.0.0.1", "API_PORT": str(port), "SAFE_MEDIA_PATH": "open"}
    keys = [f"model_name_or_path={demo / 'model'}", f"adapter_name_or_path={adapter}", "max_new_tokens=8"]
    command = [str(Path(sys.executable).with_name("llamafactory-cli")), "api", str(ROOT / "yaml" / "chat.yaml"), *keys]
    with (work / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=work, env=env, stdout=log, stderr=log)
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False)
    try:
        wait_for(http, process, work / "log")
        yield Server(http, psutil.Process(process.pid), folder)
        assert process.poll() is None, (work / "log").read_text()[-4000:]
    finally:
        http.close()
        process.terminate()
        process.wait(30)


def wait_for(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            http.get("/v1/models")
            return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(log.read_text()[-4000:])


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def url(source: str) -> dict[str, Any]:
    return {"type": "audio_url", "audio_url": {"url": source}}


def numbers(values: list[float]) -> dict[str, Any]:
    return url(f"data:application/json,{json.dumps(values)}")


def body(*content: Any, **settings: Any) -> dict[str, Any]:
    content = content if content and isinstance(content[0], dict) else (content or ("hello",))[0]
    return {"model": "chatts", "messages": [{"role": "user", "content": content}], **settings}


def ask(server: Server, *content: Any, **settings: Any) -> tuple[str, int]:
    """Returns the answer and the number of the prompt's tokens."""
    response = server.http.post(CHAT, json=body(*content, **settings))
    assert response.status_code == 200, response.text
    found = response.json()
    return found["choices"][0]["message"]["content"], found["usage"]["prompt_tokens"]


def stream(server: Server, *content: Any, **settings: Any) -> str:
    with server.http.stream("POST", CHAT, json=body(*content, stream=True, **settings)) as response:
        assert response.status_code == 200, response.read()
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines)


# Answers


def test_text_alone(server: Server) -> None:
    answer, tokens = ask(server, "hello")
    assert answer and ask(server, [text("hel"), text("lo")]) == (answer, tokens)
    assert stream(server, "hello") == answer


def test_same_series_every_way(server: Server) -> None:
    path = next((server.folder / "gdsh").glob("*.csv"))
    values = [float(line.split(",")[-1]) for line in path.read_text("utf-8").splitlines()[1:]]
    csv = base64.b64encode(path.read_bytes()).decode()
    ways = [f"gdsh/{path.name}", str(path), f"data:text/csv;base64,{csv}"]
    found = {ask(server, url(way), text("what?")) for way in ways} | {ask(server, numbers(values), text("what?"))}
    assert len(found) == 1
    (answer, tokens) = found.pop()
    assert tokens > -(-len(values) // 8) + ask(server, "what?")[1]  # a token a patch, and the text about them
    assert stream(server, url(ways[0]), text("what?")) == answer


@pytest.mark.parametrize("streams", [False, True])
def test_the_head_counts_interpolated_values(server: Server, streams: bool) -> None:
    csv = "data:text/csv,n%2Cvalue%0A" + "%0A".join(f"0%2C{cell}" for cell in ["1", "", "3", "Bad", *range(9)])
    settings = {"max_tokens": 1, "stream": streams}
    answered = server.http.post(CHAT, json=body(url(csv), text("what?"), **settings))
    assert (answered.status_code, answered.headers["x-interpolated-values"]) == (200, "2")
    whole = server.http.post(CHAT, json=body(url(csv.replace("Bad", "4").replace("2C%0A", "2C2%0A")), **settings))
    assert "x-interpolated-values" not in whole.headers


def test_place_of_a_series(server: Server) -> None:
    """Where its item stands, or where the text says."""
    one, other = numbers(SERIES[0]), numbers(SERIES[1])
    items = ask(server, text("first "), one, text(" second "), other, text(" differ?"))
    assert items == ask(server, text("first <ts><ts/> second <ts><ts/> differ?"), one, other)


def test_series_of_an_earlier_turn(server: Server) -> None:
    turns = body(numbers(SERIES[0]), text("what?"))
    turns["messages"] += [{"role": "assistant", "content": "a spike"}, {"role": "user", "content": "where?"}]
    turns["messages"].insert(0, {"role": "system", "content": [text("Answer "), text("shortly.")]})
    response = server.http.post(CHAT, json=turns)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["prompt_tokens"] > ask(server, numbers(SERIES[0]), text("what?"))[1]


def test_several_answers(server: Server) -> None:
    response = server.http.post(CHAT, json=body(numbers(SERIES[0]), text("what?"), n=3))
    assert len(response.json()["choices"]) == 3


def test_longest_series(server: Server) -> None:
    assert ask(server, numbers([0.5, 1.5] * (LIMIT // 2)), text("what?"))[1] > LIMIT / 8


def test_twenty_at_once_are_answered_as_each_alone(server: Server) -> None:
    alone = [ask(server, numbers(series), text("what is wrong?")) for series in SERIES]
    assert len({answer for answer, _ in alone}) > 5  # the series make the difference

    def one(k: int) -> tuple[str, int]:
        if k % 4 == 0:
            return stream(server, numbers(SERIES[k]), text("what is wrong?")), alone[k][1]
        return ask(server, numbers(SERIES[k]), text("what is wrong?"))

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(one, range(20))) == alone


# Refusals

TOO_LONG = "1," * LIMIT + "1"
SPIKE = {"type": "function", "function": {"name": "f", "description": "<ts>", "parameters": {}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def said(*turns: tuple[str, Any], **settings: Any) -> dict[str, Any]:
    return {"model": "x", "messages": [{"role": role, "content": content} for role, content in turns], **settings}


REFUSED: list[tuple[Any, int, str]] = [
    # paths
    (body(url("../secret.csv")), 403, "leads out of the folder"),
    (body(url("/etc/passwd")), 403, "leads out of the folder"),
    (body(url("gdsh/../../../secret.csv")), 403, "leads out of the folder"),
    (body(url("nope.csv")), 404, "messages[0].content[0]: 'nope.csv' is not there"),
    (body(url("a\0b.csv")), 400, "is no path"),
    (body(url("x" * 300)), 400, "255 bytes in each part"),
    (body(url("x/" * 300_000)), 400, "found a path of 600,000 characters"),
    (body(url("data:text/csv," + "%" * (8 << 20))), 413, "at most 4,194,304 are read"),
    (body(url(".hidden.csv")), 403, "which is hidden"),
    (body("<image> what?"), 400, "found 1 markers"),
    (body("hello", max_completion_tokens=LIMIT), 400, "max_position_embeddings"),
    (body("hello " * (1 << 20)), 400, "found texts of 6,291,456 characters"),
    (body(url("gdsh")), 400, "is not a regular file"),
    (body(url("")), 400, "is not a regular file"),
    # addresses
    (body(url("http://127.0.0.1:9/x.csv")), 400, "nothing is fetched"),
    (body(url("file:///etc/passwd")), 400, "nothing is fetched"),
    # data
    (body(url("data:audio/wav;base64,AAAA")), 400, "found a data URI of 'audio/wav;base64'"),
    (body(url("data:text/csv;base64,AAA")), 400, "is not base64"),
    (body(url("data:text/csv,a%2Cx%0A1%2C2%0A")), 400, "no column 'value' in the header"),
    (body(url("data:text/csv,value%0A")), 400, "a header, but no rows"),
    (body(url("data:text/csv,value%0Ax%0A")), 400, "no finite number"),
    (body(url("data:application/json,[1, null]")), 400, "not finite numbers, the first at index 1"),
    (body(url("data:application/json,[1, 2")), 400, "not JSON"),
    (body(url("data:application/json,[[1], [2]]")), 400, "of shape [2, 1]"),
    (body(url("data:application/json,[]")), 400, "without points"),
    (body(url("data:application/json,[1.7e308, 1.7e308]")), 400, "overflows"),
    (body(url(f"data:application/json,[{TOO_LONG}]")), 400, f"a series of {LIMIT + 1} points"),
    (body(url("data:application/json,[" + "1.000000," * 500_000 + "1]")), 413, "4,500,003 bytes"),
    (body(*[numbers([1.0])] * 65), 400, "more than 64 series"),
    # markers
    (body("<ts><ts/> what?"), 400, "found 1 markers"),
    (body("<audio> what?"), 400, "found 1 markers"),
    (body(numbers([1.0]), text("<ts><ts/><ts><ts/>")), 400, "found 2 markers in its text and 1 series"),
    (body(numbers([1.0]), text("a single <ts>")), 400, "found a single <ts>"),
    (said(("system", "<ts>"), ("user", "hello")), 400, "found <ts> in a message by system"),
    (body("hello", tools=[SPIKE]), 400, "or in a tool"),
    # items
    (body({"type": "audio_url"}), 400, "audio_url without its field"),
    (body({"type": "text"}), 400, "text without its field"),
    (body({"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}), 400, "found image_url"),
    (body({"type": "video_url", "video_url": {"url": "/etc/passwd"}}), 400, "found video_url"),
    (body({"type": "input_audio", "input_audio": {"data": "AAAA"}}), 422, "Input should be 'text'"),
    (said(("user", None)), 400, "messages[0].content: found none"),
    (said(("user", [numbers([1.0])]), ("assistant", [numbers([1.0])]), ("user", "?")), 400, "by assistant"),
    # turns
    (said(), 400, "by nobody"),
    (said(("system", "hello")), 400, "by system"),
    (said(("user", "a"), ("user", "b"), ("user", "c")), 400, "by user, user, user"),
    (said(("user", "a"), ("assistant", "b")), 400, "the last by user"),
    (said(("user", "a"), ("function", "no JSON"), ("user", "c")), 400, "the template can't write them"),
    (said(("boss", "hello")), 422, "Input should be 'user'"),
    # settings
    (body("hello", n=0), 400, "n: found 0; expected 1 to 128"),
    (body("hello", max_tokens=-1), 400, "max_tokens: found -1"),
    (body("hello", max_tokens=LIMIT), 400, "max_position_embeddings"),
    (body("hello " * LIMIT), 400, "max_position_embeddings"),
    (body("hello", temperature=-1), 400, "temperature: found -1"),
    (body("hello", top_p=2, do_sample=True), 400, "top_p: found 2"),
    (body("hello", presence_penalty=0), 400, "repetition_penalty"),
    (body("hello", tools=[{"type": "function"}]), 400, "without its function"),
    # bodies
    ({}, 422, "Field required"),
    (b"{", 422, "JSON decode error"),
    (b"\xff", 400, "error parsing the body"),
    (b"[" * 100_000, 400, "error parsing the body"),
    (b'{"model": "x", "messages": NaN}', 422, "valid list"),
    (b'{"model": "x", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "surrogate"),
    (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}', 400, "surrogate"),
    (b'{"model": "x", "messages": [{"role": "\\ud800", "content": "x"}]}', 422, "Input should be"),
    (b'{"model": "x", "messages": [' + b"0," * (15 << 20) + b"0]}", 422, "valid dictionary or object"),
    (b'{"model": "x", "messages": [' + b"[]," * (1 << 20) + b"0]}", 413, "over 1,048,576 brackets and quotes"),
    (said(*[("user", "a"), ("assistant", "b")] * 3000), 422, "at most 4096 items"),
    (b'"' + b"x" * (33 << 20) + b'"', 413, "over 33,554,432 bytes"),
]  # fmt: skip


def test_wrong_input_is_refused_with_a_reason(server: Server) -> None:
    before = ask(server, numbers(SERIES[0]), text("what?"))
    streams = [
        ({**request, "stream": True}, status, reason)
        for request, status, reason in REFUSED
        if isinstance(request, dict) and request and not {"n", "tools"} & set(request)
    ]
    streams += [(body("hello", stream=True, n=2), 400, "several answers")]
    streams += [(body("hello", stream=True, tools=[SPIKE]), 400, "with tools")]
    assert len(REFUSED) >= 50
    wrong = []
    for request, status, reason in REFUSED + streams:
        content = request if isinstance(request, bytes) else json.dumps(request).encode()
        response = server.http.post(CHAT, content=content, headers={"Content-Type": "application/json"})
        found = response.text
        told = response.status_code == status and "detail" in json.loads(found) and reason in found
        if not told or len(found) > 4000:
            wrong.append((content[:100], status, reason, response.status_code, found[:300]))
    assert not wrong, wrong
    assert ask(server, numbers(SERIES[0]), text("what?")) == before


def test_client_that_leaves(server: Server) -> None:
    """Its 6,000 tokens would take minutes: nobody waits for them, neither the next client."""
    before = ask(server, numbers(SERIES[0]), text("what?"))
    request = body(numbers(SERIES[0]), text("what?"), max_tokens=6000)
    for _ in range(3):
        with server.http.stream("POST", CHAT, json={**request, "stream": True}) as response:
            next(response.iter_lines())
        with contextlib.suppress(httpx.ReadTimeout):
            server.http.post(CHAT, json=request, timeout=0.5)
    assert ask(server, numbers(SERIES[0]), text("what?")) == before


@pytest.mark.parametrize("ours", [True, False])
def test_the_collector_leaves_alone_what_a_server_of_ours_begins_with(ours: bool) -> None:
    """Or it stops all requests for half a second, at times of its own and every five minutes."""
    plain = FastAPI()
    plain.add_api_route("/v1/chat/completions", lambda: None, methods=["POST"])
    upstream = SimpleNamespace(create_app=lambda chat_model: plain)
    install_app(upstream)
    template = SimpleNamespace(mm_plugin=SimpleNamespace(reads_series=ours))
    gc.unfreeze()  # what other tests' servers began with
    try:
        upstream.create_app(SimpleNamespace(engine=SimpleNamespace(template=template)))
        assert (gc.get_freeze_count() > 10_000) == ours
    finally:
        gc.unfreeze()


def test_memory_stays_flat(server: Server) -> None:
    csv = "data:text/csv," + "%0A".join(["value", *map(str, range(LIMIT))])

    def round_of_requests() -> int:
        for k in range(4):
            ask(server, url(csv), text("what?"))
            stream(server, numbers(SERIES[k]), text("what?"))
            server.http.post(CHAT, json=body(url(csv + "%0A1"), text("what?")))
        return int(server.process.memory_info().rss)

    warm = round_of_requests()
    later = [round_of_requests() for _ in range(3)]
    assert later[-1] - warm < 64 << 20, [warm, *later]


# Examples


def examples(language: str) -> list[str]:
    """The code in docs/serving.md."""
    section = (ROOT / "docs" / "serving.md").read_text("utf-8").split("\n## As a server\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def test_readme_curl(server: Server) -> None:
    (command,) = [code for code in examples("bash") if code.startswith("curl ")]
    command = command.replace("http://127.0.0.1:8000", str(server.http.base_url).rstrip("/"))
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(run.stdout)["choices"][0]["message"]["content"]


def test_readme_python(server: Server) -> None:
    pytest.importorskip("openai")
    (code,) = examples("python")
    code = code.replace("http://127.0.0.1:8000", str(server.http.base_url).rstrip("/"))
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=server.folder.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0 and run.stdout.strip(), run.stderr
