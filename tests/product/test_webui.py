"""LLaMA-Factory's web UI in a real browser, without a network: from previewed data to an adapter that answers."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import yaml
from conftest import ROOT, Gdsh, annotation, answer, log_history, path_of_environment
from helpers_browser import browse
from playwright.sync_api import ElementHandle, Page


EXTRA = {
    "embedding_on_cpu": True,
    "timeseries_sft_lr": 0.001,
    "overlong_records": "drop",
    "event_f1_steps": 1,
    "event_f1_records": 1,
    "max_new_tokens": 8,
    "preprocessing_num_workers": 1,  # the page asks for 16 processes
}
"""What the page has no field for."""

OPTIONS = """[...document.querySelectorAll("ul[role=listbox] li")]"""


@dataclass(frozen=True)
class Seen:
    """What the page showed; ``output`` is the run's folder."""

    templates: list[str]
    datasets: list[list[str]]
    previews: dict[str, str]
    command: str
    finished: str
    output: Path
    reply: str
    log: str
    """The server's."""


def label(name: str) -> str:
    """The field of this name that can be seen, as an expression in JavaScript."""
    named, number = json.dumps(name), json.dumps(f"number input for {name}")
    return f"""[...document.querySelectorAll("input, textarea")].filter(one => one.getClientRects().length).find(
      one => one.ariaLabel ? [{named}, {number}].includes(one.ariaLabel)
        : (one.closest("label") || one.closest(".block")).innerText.trim().startsWith({named}))"""


def element(page: Page, expression: str) -> ElementHandle:
    """What an expression in JavaScript finds, as soon as it is there."""
    found = page.wait_for_function(expression).as_element()
    assert found
    return found


def until(page: Page, expression: str, seconds: float = 120) -> Any:
    """Waits for an expression to be true, and returns its value."""
    return page.wait_for_function(expression, timeout=1000 * seconds).json_value()


def fill(page: Page, name: str, text: str) -> None:
    """Writes into a field and leaves it."""
    element(page, label(name)).fill(text)
    page.keyboard.press("Tab")


def choose(page: Page, name: str, choice: str) -> None:
    """Takes one choice of a list."""
    field = element(page, label(name))
    field.click()
    field.fill(choice)
    element(page, f"{OPTIONS}.find(one => one.ariaLabel == {json.dumps(choice)})").click()
    leave(page)


def leave(page: Page) -> None:
    """Leaves a list, and waits until it has faded: its choices would be taken for those of the next one.

    Not by the Tab key, which goes on to the next field and opens its list.
    """
    page.evaluate("document.activeElement.blur()")
    until(page, f"!{OPTIONS}.length")


def choices(page: Page, name: str) -> list[str]:
    """What a list offers."""
    element(page, label(name)).click()
    until(page, f"{OPTIONS}.length")
    offered: list[str] = page.evaluate(f"{OPTIONS}.map(one => one.ariaLabel)")
    leave(page)
    return offered


def press(page: Page, name: str, role: Literal["button", "tab"] = "button") -> None:
    page.get_by_role(role, name=re.compile(rf"^\s*{re.escape(name)}")).locator("visible=true").first.click()


def preview(page: Page, dataset: str) -> str:
    """Opens the preview of a data set, and closes it; returns what it showed."""
    choose(page, "Dataset", dataset)
    press(page, "Preview dataset")
    shown = f"""[...document.querySelectorAll(".modal-box")].map(one => one.innerText)
      .find(text => text.includes("Samples") && text.includes("{dataset}"))"""
    found: str = until(page, shown)
    press(page, "Close")
    element(page, label("Dataset")).click()
    page.keyboard.press("Backspace")
    page.keyboard.press("Tab")
    return found


def write_data(folder: Path) -> None:
    """Two data sets of 40 points a series: GDSH's files, and ChatTS records in a sub-folder."""
    data = Gdsh(folder)
    for name in "abcdef":
        data.csv(f"{name}.csv", [len(name) + i / 4 for i in range(40)])
    data.records(*(annotation(f"/x/{name}.jpg", answer((3, 9)), f"<image>\nplant {name}?") for name in "abcdef"))
    (folder / "sub").mkdir()
    lines = [{"input": "<ts><ts/> lines?", "output": "no", "timeseries": [[1.5, 2.5, 0.5]]}] * 3
    (folder / "sub" / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = {"prompt": "input", "response": "output", "timeseries": "timeseries"}
    entries = {"plant": data.entry, "lines": {"file_name": "sub/lines.jsonl", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(entries))


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """`llamafactory-cli webui` in a folder; yields its address, and ends with all that it has started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env |= {"PATH": path_of_environment(), "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    env |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder / "gradio"), "BROWSER": "true"}
    command = [str(Path(sys.executable).with_name("llamafactory-cli")), "webui"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        wait_for(port, process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
        process.wait(30)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(log.read_text()[-4000:])


def prepare(page: Page, model: Path) -> list[str]:
    """Names model and template, as every run and chat needs it; returns the templates that are offered."""
    until(page, f"({label('Output dir')})?.value.startsWith('train_')")  # the page has got its first values
    choose(page, "Model name", "Custom")
    until(page, "document.querySelector('.toast-body')?.innerText.includes('non-instruct')")  # the last that follows
    fill(page, "Model path", str(model))
    templates = choices(page, "Chat template")
    choose(page, "Chat template", "chatts")
    return templates


def train(page: Page) -> tuple[str, str]:
    """Trains on the data set `plant`; returns the command that was previewed and what is reported at the end."""
    choose(page, "Dataset", "plant")
    for name, value in {"Epochs": "1.0", "Batch size": "2", "Gradient accumulation": "1", "Val size": "0.34"}.items():
        fill(page, name, value)
    choose(page, "Compute type", "fp32")
    press(page, "Extra configurations")
    fill(page, "Logging steps", "1")
    fill(page, "Extra arguments", json.dumps(EXTRA))
    press(page, "Preview command")
    command = until(page, "document.querySelector('pre code')?.innerText")
    press(page, "Start")
    told = "[...document.querySelectorAll('.prose')].map(one => one.innerText.trim())"
    finished = until(page, f"{told}.find(text => /^(Finished|Failed)/.test(text))", 400)
    until(page, "document.querySelector('[data-testid=matplotlib] img')?.naturalWidth > 300")  # the loss curve
    return command, finished


def chat(page: Page, run: str) -> str:
    """Loads the model with a run's adapter; returns what it answers."""
    choose(page, "Checkpoint path", run)  # not listed before the page has asked again, which empties the field
    press(page, "Chat", "tab")
    fill(page, "Extra arguments", '{"do_sample": false}')
    press(page, "Load model")
    until(page, "[...document.querySelectorAll('textarea')].some(one => one.value.startsWith('Model loaded'))")
    fill(page, "Maximum new tokens", "32")
    page.locator("textarea[placeholder^=Input]").fill("What is wrong?")
    press(page, "Submit")
    bubbles = "[...document.querySelectorAll('.message.bot')].map(one => one.innerText.trim())"
    reply: str = until(page, f"{bubbles}.find(text => text && text != 'Loading content')")
    return reply


@pytest.fixture(scope="module")
def seen(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """One way through the page, as a person goes it."""
    work = tmp_path_factory.mktemp("webui")
    write_data(work / "data")
    with serve(work) as address, browse() as page:
        page.goto(address)
        templates = prepare(page, demo / "model")
        fill(page, "Data dir", str(ROOT / "dataset_info"))
        datasets = [choices(page, "Dataset")]
        choose(page, "Stage", "Pre-Training")
        datasets.append(choices(page, "Dataset"))
        choose(page, "Stage", "Supervised Fine-Tuning")
        fill(page, "Data dir", "data")
        previews = {name: preview(page, name) for name in ("lines", "plant")}
        command, finished = train(page)
        (output,) = (work / "saves" / "Custom" / "lora").iterdir()
        reply = chat(page, output.name)
    log = (work / "log").read_text("utf-8")
    return Seen(templates, datasets, previews, command, finished, output, reply, log)


def test_template_and_data_sets_are_offered(seen: Seen) -> None:
    assert "chatts" in seen.templates
    entries = list(json.loads((ROOT / "dataset_info" / "dataset_info.json").read_text("utf-8")))
    assert seen.datasets == [entries, entries]


def test_previews_show_records(seen: Seen) -> None:
    """As one text: gradio 5.50 shows lists so, whatever their format."""
    assert "plant a?" in seen.previews["plant"] and "[3, 9]" in seen.previews["plant"]
    assert "<ts><ts/> lines?" in seen.previews["lines"] and "[1.5, 2.5, 0.5]" in seen.previews["lines"]


def test_command_holds_the_keys(seen: Seen) -> None:
    lines = [line.strip(" \\") for line in seen.command.splitlines()]
    assert {"--template chatts", "--dataset plant", "--dataset_dir data", "--stage sft"} <= set(lines)
    assert {f"--{key} {value}" for key, value in EXTRA.items()} <= set(lines)


def test_run_ends_well_and_has_got_the_keys(seen: Seen) -> None:
    assert seen.finished.startswith("Finished.")
    asked = yaml.safe_load((seen.output / "training_args.yaml").read_text("utf-8"))
    assert asked | EXTRA == asked
    told = (seen.output / "running_log.txt").read_text("utf-8")
    assert "The embedding table stays in CPU memory" in told
    assert "Learning rate of the time-series encoder: 0.001" in told
    history = log_history(seen.output)
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2]
    assert [entry["step"] for entry in history if "event_f1" in entry] == [1, 2]
    for name in ("adapter_model.safetensors", "training_loss.png", "training_event_f1.png"):
        assert (seen.output / name).is_file()


def test_adapter_answers_in_the_chat(seen: Seen) -> None:
    assert seen.reply
    assert f"Loaded adapter(s): {Path('saves', 'Custom', 'lora', seen.output.name)}" in seen.log
