"""Sixteen clients of `llamafactory-cli api` at once, bad requests among good ones: no wrong, mixed or late answer.

    python tests/resilience/clients.py                          # 16 clients, 120 s, a tiny model made for it
    python tests/resilience/clients.py --clients 4 --seconds 20

Each good request has an answer that it got alone, before; no two of them are the same. Meanwhile /v1/models is asked
every 20 ms. Exit status 1 where an answer is wrong, is another request's, a bad request is not refused with its status
and reason, or /v1/models takes longer than ``--late`` milliseconds.

What a busy machine adds is left out of that, as Linux counts it (/proc/PID/task/TID/schedstat): how long the server's
main thread, and the one that asks, had work and no core. On cores that are free it is next to nothing.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import httpx
import numpy as np


CHAT, MODELS = "/v1/chat/completions", "/v1/models"
WORDS = ("what is wrong?", "请找出异常区间", "describe this", "which of them rises?")
PLACED = 8192  # points and tokens that the model places


def body(*items: Any, **settings: Any) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    for item in items:
        is_series = item.startswith(("data:", "http")) or item.endswith(".csv")
        content.append(
            {"type": "audio_url", "audio_url": {"url": item}} if is_series else {"type": "text", "text": item}
        )
    settings = {"max_tokens": 12, "temperature": 0, **settings}
    return {"model": "chatts", "messages": [{"role": "user", "content": content}], **settings}


def numbers(values: Any) -> str:
    return "data:application/json," + json.dumps([round(float(value), 3) for value in values])


def good_requests(count: int) -> list[dict[str, Any]]:
    """Requests of 1 to 4 series of 20 to 1,500 points."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        series = [numbers(rng.normal(0, 9, rng.integers(20, 1500)).cumsum()) for _ in range(rng.integers(1, 5))]
        made.append(body(*series, str(rng.choice(WORDS))))
    return made


BAD: list[tuple[bytes, int, str]] = [
    (json.dumps(request).encode() if isinstance(request, dict) else request, status, reason)
    for request, status, reason in (
        (body("data:application/json,[1, NaN, 2]", "?"), 400, "not finite numbers"),
        (body("data:application/json,[1, 2", "?"), 400, "not JSON"),
        (body("data:text/csv,value%0A", "?"), 400, "no rows"),
        (body("data:text/csv;base64,AAA", "?"), 400, "not base64"),
        (body(numbers(range(PLACED + 1)), "?"), 400, f"a series of {PLACED + 1} points"),
        (body("http://127.0.0.1:9/a.csv", "?"), 400, "nothing is fetched"),
        (body("../secret.csv", "?"), 403, "leads out of the folder"),
        (body("nope.csv", "?"), 404, "is not there"),
        (body("<ts><ts/> what?"), 400, "found 1 markers"),
        (body(numbers([1, 2]), "<ts><ts/><ts><ts/>"), 400, "found 2 markers"),
        (body("hello " * (1 << 20)), 400, "found texts of"),
        (body("hello", stream=True, temperature=-1), 400, "temperature: found -1"),
        (body("hello", n=0), 400, "n: found 0"),
        (b"[" * 100_000, 400, "error parsing the body"),
        (b"{", 422, "JSON decode error"),
        (b'"' + b"x" * (33 << 20) + b'"', 413, "over 33,554,432 bytes"),
        (body(numbers([1, 2]), "x" * (4 << 20)), 400, "found texts of"),
    )
]


@dataclass
class Tally:
    """What came back."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def answer(http: httpx.Client, request: dict[str, Any]) -> str:
    if not request.get("stream"):
        response = http.post(CHAT, json=request)
        found = response.json() if response.status_code == 200 else {}
        return found["choices"][0]["message"]["content"] if found else f"{response.status_code} {response.text[:200]}"
    with http.stream("POST", CHAT, json=request) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines if line != "[DONE]")


def ask_for(seconds: float, url: str, seed: int, good: list[dict[str, Any]], alone: list[str], tally: Tally) -> None:
    """One client."""
    draw, until = random.Random(seed), time.monotonic() + seconds
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as http:
        while time.monotonic() < until:
            kind = draw.choice(("good", "good", "stream", "bad", "bad", "leaves"))
            k = draw.randrange(len(good))
            if kind in ("good", "stream"):
                found = answer(http, {**good[k], "stream": kind == "stream"})
                if found != alone[k]:
                    whose = f"that of request {alone.index(found)}" if found in alone else f"{found!r:.200}"
                    tally.wrong.append(f"{kind} request {k}: found {whose}, expected {alone[k]!r}")
            elif kind == "bad":
                content, status, reason = draw.choice(BAD)
                response = http.post(CHAT, content=content, headers={"Content-Type": "application/json"})
                if response.status_code != status or reason not in response.text:
                    tally.wrong.append(f"bad request {content[:80]!r}: {response.status_code} {response.text[:200]}")
            else:  # its answer would take minutes
                with suppress(httpx.ReadTimeout):
                    http.post(CHAT, json={**good[k], "max_tokens": 2000}, timeout=0.5)
            tally.counts[kind] += 1


def without_a_core(task: Path) -> float:
    """Returns how many milliseconds a thread had work and no core so far."""
    return int((task / "schedstat").read_text().split()[1]) / 1e6


def watch(url: str, server: int, stop: Event, waits: "Queue[list[tuple[float, float]]]") -> None:
    """Asks /v1/models, in a process of its own: what the clients compute is not counted.

    Puts for each answer how many milliseconds it took, and how many of them there was no core for it: for the asking
    thread, or the server's main one, in which its event loop runs.
    """
    found, loop, own = [], Path(f"/proc/{server}/task/{server}"), Path("/proc/thread-self").resolve()
    with httpx.Client(timeout=600, trust_env=False) as http:
        while not stop.wait(0.02):
            before, begun = [without_a_core(one) for one in (loop, own)], time.perf_counter()
            http.get(url + MODELS).raise_for_status()
            took = 1000 * (time.perf_counter() - begun)
            found.append((took, sum(without_a_core(one) for one in (loop, own)) - sum(before)))
    waits.put(found)


@contextmanager
def server(work: Path) -> Iterator[tuple[str, int]]:
    """`llamafactory-cli api yaml/chat.yaml` on a model whose answers differ from series to series."""
    from llamafactory_ext.toolbox.demo.model import Size, write_model

    write_model(work / "model", size=Size(deviation=0.2, max_length=PLACED))
    (work / "open").mkdir()
    (work / "secret.csv").write_text("value\n1\n2\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    recipe = Path(__file__).parents[2] / "yaml" / "chat.yaml"
    env = {"API_HOST": "127.0.0.1", "API_PORT": port, "SAFE_MEDIA_PATH": "open", "CUDA_VISIBLE_DEVICES": ""}
    keys = [f"model_name_or_path={work / 'model'}", "adapter_name_or_path=null", "quantization_bit=null"]
    keys += ["embedding_on_cpu=false", "infer_dtype=float32"]
    command = [str(Path(sys.executable).with_name("llamafactory-cli")), "api", str(recipe), *keys]
    with (work / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=work, env={**os.environ, **env}, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None:
                sys.exit((work / "log").read_text()[-4000:])
            with suppress(httpx.TransportError):
                httpx.get(url + MODELS, trust_env=False)
                break
            time.sleep(0.2)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--late", type=float, default=100, help="milliseconds for /v1/models (default: 100)")
    arguments = parser.parse_args()
    tally, spawn = Tally(), get_context("spawn")
    stop, queue = spawn.Event(), spawn.Queue()
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (url, process):
        good = good_requests(24)
        with httpx.Client(base_url=url, timeout=600, trust_env=False) as http:
            alone = [answer(http, request) for request in good]
            if len(set(alone)) < len(alone):
                print(f"only {len(set(alone))} of {len(alone)} answers differ: a mixed one might not be seen")
            watcher = spawn.Process(target=watch, args=(url, process, stop, queue))
            clients = [
                threading.Thread(target=ask_for, args=(arguments.seconds, url, seed, good, alone, tally))
                for seed in range(arguments.clients)
            ]
            for thread in (watcher, *clients):
                thread.start()
            for thread in clients:
                thread.join()
            stop.set()
            waits = np.asarray(queue.get(timeout=600))
            watcher.join()
            after = [answer(http, request) for request in good]
        if after != alone:
            tally.wrong.append("asked alone again afterwards, answers differ")
    took, lacked = waits.T
    own = np.maximum(took - lacked, 0)
    late = int((own > arguments.late).sum())
    print(
        f"{arguments.clients} clients, {arguments.seconds:.0f} s: "
        + ", ".join(f"{count} {kind}" for kind, count in sorted(tally.counts.items()))
    )
    print(f"wrong or mixed: {len(tally.wrong)}", *tally.wrong[:20], sep="\n  ")
    for what, values in ((MODELS, took), ("  less what there was no core for", own)):
        print(
            f"{what}: asked {len(values)} times, median {np.median(values):.1f} ms, 99 % within "
            f"{np.quantile(values, 0.99):.1f}, longest {values.max():.1f}; over {arguments.late:.0f} ms: "
            f"{int((values > arguments.late).sum())}"
        )
    return 1 if tally.wrong or late else 0


if __name__ == "__main__":
    sys.exit(main())
