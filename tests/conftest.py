"""What the tests share: the demo, a GDSH data set to spoil, and LLaMA-Factory run in this process or in its own."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest


try:
    from hypothesis import settings
except ModuleNotFoundError:  # in environments where only some tests run
    pass
else:  # a machine may be busy with other things
    settings.register_profile("patient", deadline=None)
    settings.load_profile("patient")

# Tests of the plugin for vLLM want its own environment (`make vllm`). The folder vllm/ here is no such package.
_vllm = importlib.util.find_spec("vllm")
collect_ignore = [] if _vllm is not None and _vllm.origin is not None else ["vllm"]

pytest_plugins = "helpers_plan"  # fixtures that three files of tests share

ROOT = Path(__file__).parent.parent
SHARED_RECORDS = ROOT.parent / "shared" / "real"
os.environ["HF_HUB_OFFLINE"] = "1"  # before its modules are imported: no test asks a network for anything

CLI = str(Path(sys.executable).with_name("llamafactory-cli"))
USER = "<image>\n请找出异常区间，用JSON回答。"
NOTHING_FOUND = '{"status":"success","detected_anomalies":[]}'


@pytest.fixture(autouse=True, scope="module")
def environment_stays() -> Iterator[None]:
    """A command in a test's process silences the training stack through the environment, which later runs inherit."""
    before = dict(os.environ)
    yield
    for key in os.environ.keys() - before.keys():
        del os.environ[key]
    os.environ.update(before)


def answer(*intervals: tuple[int, int], kind: str = "点异常") -> str:
    """A valid JSON answer with these intervals."""
    entries = [{"interval": list(interval), "type": kind, "reason": "…"} for interval in intervals]
    return json.dumps({"status": "success", "detected_anomalies": entries}, ensure_ascii=False)


def annotation(picture: Any = "/home/x/a.jpg", reply: Any = NOTHING_FOUND, user: str = USER) -> dict[str, Any]:
    """One GDSH record."""
    turns = [{"from": "user", "value": user}, {"from": "assistant", "value": reply}]
    return {"image": picture, "conversations": turns}


class Gdsh:
    """A GDSH data set in a folder, written by a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entry: dict[str, Any] = {"file_name": "json/a.json", "formatting": "gdsh", "folder": "timeseries/gdsh"}

    def csv(self, name: str, values: Sequence[Any], folder: str = "gdsh") -> Path:
        """Writes a CSV file with these cells in its `value` column."""
        path = self.folder / "timeseries" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{i},2025-01-01 00:00:{i % 60:02d},PV,{value}" for i, value in enumerate(values)]
        path.write_text("\n".join([",date,category,value", *rows]) + "\n", encoding="utf-8")
        return path

    def records(self, *records: Any) -> "Gdsh":
        """Writes the annotations and the entry `a` of dataset_info.json."""
        (self.folder / "json").mkdir(parents=True, exist_ok=True)
        (self.folder / "json" / "a.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
        return self.describe()

    def describe(self) -> "Gdsh":
        (self.folder / "dataset_info.json").write_text(json.dumps({"a": self.entry}), encoding="utf-8")
        return self


@pytest.fixture
def gdsh(tmp_path: Path) -> Gdsh:
    """An empty data set with one series, ``a.csv``, of 40 points."""
    data = Gdsh(tmp_path / "data")
    data.csv("a.csv", [i / 4 for i in range(40)])
    return data


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as `llamafactory-ext demo --tiny` writes it: ``model`` and ``data``."""
    from llamafactory_ext.toolbox.demo.writing import write_tiny_demo

    folder = tmp_path_factory.mktemp("demo") / "demo"
    write_tiny_demo(folder)
    return folder


@pytest.fixture(scope="session")
def qwen3_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of the other family."""
    from llamafactory_ext.toolbox.demo.model import write_model

    folder = tmp_path_factory.mktemp("qwen3") / "model"
    write_model(folder, seed=0, family="qwen3")
    return folder


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """What LLaMA-Factory's logger says, which otherwise goes to its own handler alone; and nobody else's."""
    from llamafactory.extras import logging as upstream

    logger = upstream.get_logger("llamafactory")
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, logger="llamafactory")

    def is_ours(record: logging.LogRecord) -> bool:
        return record.name.startswith("llamafactory")

    caplog.handler.addFilter(is_ours)
    yield caplog
    caplog.handler.removeFilter(is_ours)


@pytest.fixture
def tokenise(demo: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs LLaMA-Factory's own steps up to the tokenised data set; takes recipe keys, returns its data set module."""

    def run(dataset_dir: Path, dataset: str = "a", model: Path = demo / "model", **keys: Any) -> dict[str, Any]:
        from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
        from llamafactory.hparams import get_train_args
        from llamafactory.model import load_tokenizer

        recipe = {"model_name_or_path": str(model), "dataset_dir": str(dataset_dir), "dataset": dataset}
        recipe |= {"stage": "sft", "do_train": True, "finetuning_type": "lora", "template": "chatts"}
        recipe |= {"output_dir": str(tmp_path / "out"), "report_to": "none", "cache_dir": str(tmp_path / "cache")}
        model_args, data_args, training_args, finetuning_args, _ = get_train_args({**recipe, **keys})
        module = load_tokenizer(model_args)
        template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
        datasets = get_dataset(template, model_args, data_args, training_args, stage=finetuning_args.stage, **module)
        return {**datasets, **module, "template": template}

    return run


def run_cli(*arguments: str, cwd: Path, timeout: int = 600, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the real ``llamafactory-cli`` of this environment in a process of its own."""
    env = cli_environment(**environment)

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [CLI, *arguments, *more]
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)

    done = run()
    if "exitcode: -6" in done.stderr and "train_runtime" in done.stdout:
        # Seen once in a dozen runs with torch 2.11: training was finished and logged, one of two gloo processes had
        # left, and the other was aborted while leaving. Only that is tried again, and only once.
        done = run("overwrite_output_dir=true")
    return done


def start_cli(*arguments: str, cwd: Path, log: Path, **environment: str) -> "subprocess.Popen[bytes]":
    """Starts it in a session of its own and returns at once; what it prints is added to ``log``."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [CLI, *arguments],
            cwd=cwd,
            env=cli_environment(**environment),
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def cli_environment(**environment: str) -> dict[str, str]:
    # One thread: the models are tiny, and threads that wait for one another take most of the time of two cores.
    defaults = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **defaults, "PATH": path_of_environment(), **environment}


def path_of_environment() -> str:
    """PATH with this environment's programs first: llamafactory-cli starts torchrun by name."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def log_history(output: Path) -> list[dict[str, Any]]:
    """The Trainer's log, one dict a step."""
    history: list[dict[str, Any]] = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return history
