"""vLLM's own OpenAI server, asked about series over HTTP."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from helpers_vllm import checkpoints  # noqa: F401


CHAT = "/v1/chat/completions"
VALUES = [round(float(value), 3) for value in np.random.default_rng(0).normal(0, 3, 300).cumsum()]


class Server(NamedTuple):
    http: httpx.Client
    folder: Path


@pytest.fixture(scope="module")
def server(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    work = tmp_path_factory.mktemp("server")
    (work / "open").mkdir()
    (work / "open" / "a.csv").write_text("value\n" + "\n".join(map(str, VALUES)) + "\n")
    (work / "secret.csv").write_text("value\n1\n2\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoints["qwen2"])]
    command += ["--served-model-name", "chatts", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "4096", "--max-num-seqs", "8", "--enforce-eager", "--limit-mm-per-prompt"]
    command += ['{"audio": 8}', "--allowed-local-media-path", str(work / "open")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    env.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with (work / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=work, env=env, stdout=log, stderr=log)
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300, trust_env=False)
    try:
        for _ in range(1800):
            assert process.poll() is None, (work / "log").read_text()[-6000:]
            try:
                http.get("/health").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield Server(http, work / "open")
        assert process.poll() is None, (work / "log").read_text()[-6000:]
    finally:
        http.close()
        process.terminate()
        process.wait(60)


def url(source: str) -> dict[str, Any]:
    return {"type": "audio_url", "audio_url": {"url": source}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def numbers(values: Any) -> dict[str, Any]:
    return url("data:application/json," + json.dumps(values))


def body(*content: Any, **settings: Any) -> dict[str, Any]:
    settings = {"temperature": 0, "max_tokens": 8, **settings}
    return {"model": "chatts", "messages": [{"role": "user", "content": list(content)}], **settings}


def ask(server: Server, *content: Any, **settings: Any) -> tuple[str, int]:
    response = server.http.post(CHAT, json=body(*content, **settings))
    assert response.status_code == 200, response.text
    found = response.json()
    return found["choices"][0]["message"]["content"], found["usage"]["prompt_tokens"]


def test_same_series_every_way(server: Server) -> None:
    csv = base64.b64encode((server.folder / "a.csv").read_bytes()).decode()
    ways = [url("a.csv"), url(f"file://{server.folder}/a.csv"), url(f"data:text/csv;base64,{csv}"), numbers(VALUES)]
    found = {ask(server, way, text("what is wrong?")) for way in ways}
    assert len(found) == 1
    assert found.pop()[1] > -(-len(VALUES) // 8)  # a token a patch
    assert ask(server, url("a.csv"), text("<ts><ts/>\nwhat is wrong?")) == ask(
        server, *ways[:1], text("what is wrong?")
    )
    other = ask(server, numbers(VALUES[::-1]), text("what is wrong?"))
    assert other != ask(server, ways[0], text("what is wrong?"))


def test_curl(server: Server) -> None:
    command = ["curl", "-s", f"{server.http.base_url}".rstrip("/") + CHAT, "-H", "Content-Type: application/json"]
    command += ["-d", json.dumps(body(url("a.csv"), text("请找出异常区间，用JSON回答。")))]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(run.stdout)["choices"][0]["message"]["content"]


def test_openai_client(server: Server) -> None:
    from openai import OpenAI

    client = OpenAI(
        base_url=str(server.http.base_url).rstrip("/") + "/v1",
        api_key="none",
        http_client=httpx.Client(trust_env=False),
    )
    answer = client.chat.completions.create(**body(url("a.csv"), text("what is wrong?")))
    assert answer.choices[0].message.content == ask(server, url("a.csv"), text("what is wrong?"))[0]


REFUSED: list[tuple[dict[str, Any], str]] = [
    (body(url("data:application/json,[1, NaN]"), text("?")), "not finite numbers, the first at index 1"),
    (body(url("data:application/json,[1, 2"), text("?")), "not JSON"),
    (body(url("data:text/csv;base64,AAA"), text("?")), "is not base64"),
    (body(url("data:audio/wav;base64,AAAA"), text("?")), "found a data URI of"),
    (body(url("http://127.0.0.1:9/a.csv"), text("?")), "nothing is fetched"),
    (body(url("../secret.csv"), text("?")), "leads out of the folder"),
    (body(url("/etc/passwd"), text("?")), "leads out of the folder"),
    (body(url("file:///etc/passwd"), text("?")), "leads out of the folder"),
    (body(url("nope.csv"), text("?")), "is not there"),
    (body(numbers([0.0] * 8193), text("?")), "found a series of 8193 points"),
    (body(*[numbers([0.0] * 8000)] * 5, text("?")), "4096"),
    (body(*[numbers([1.0])] * 9, text("?")), "At most 8"),
    (body(text("<ts><ts/> what?")), "found <ts><ts/> and no series"),
    (body(numbers([1.0]), text("<ts><ts/><ts><ts/>")), "more '<ts><ts/>' placeholders"),
    (body(numbers([1.0]), text("a single <ts>")), "found a single <ts>"),
    (body({"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}), "image"),
]  # fmt: skip


def test_wrong_input_is_refused_with_a_reason(server: Server) -> None:
    before = ask(server, url("a.csv"), text("what?"))
    wrong = []
    for request, reason in REFUSED:
        for streams in (False, True):
            response = server.http.post(CHAT, json={**request, "stream": streams})
            if response.status_code != 400 or reason not in response.text or len(response.text) > 2000:
                wrong.append((json.dumps(request)[:120], reason, response.status_code, response.text[:400]))
    assert not wrong, "\n".join(map(str, wrong))
    assert ask(server, url("a.csv"), text("what?")) == before
