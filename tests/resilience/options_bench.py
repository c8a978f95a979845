"""A tiny model, data sets for each stage, and runs of LLaMA-Factory with them; used by ``options.py``."""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import Gdsh, annotation, answer, log_history, run_cli
from resilience.small_runs import ZERO2


RECORDS = 8
PROMPT = "<ts><ts/>\n请找出异常区间，用JSON回答。"
PLAIN = {
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_target": "q_proj,k_proj,v_proj",
    "template": "chatts",
    "dataset": "series",
    "cutoff_len": 504,
    "per_device_train_batch_size": RECORDS,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0.01,
    "max_steps": 2,
    "logging_steps": 1,
    "report_to": "none",
    "seed": 1,
    "use_cpu": True,
    "overwrite_output_dir": True,
}
COLUMNS: dict[str, dict[str, str]] = {
    "lines": {"response": "output"},
    "pairs": {"chosen": "chosen", "rejected": "rejected"},
    "tagged": {"response": "output", "kto_tag": "good"},
}


@dataclass(frozen=True)
class Run:
    """What came of a run."""

    status: int
    output: str
    log: list[dict[str, Any]]

    def metric(self, name: str, place: int = 0) -> float:
        """The metric as it was logged first, or later; NaN where it was not."""
        values = [entry[name] for entry in self.log if name in entry]
        return float(values[place]) if len(values) > place else math.nan

    @property
    def error(self) -> str:
        """The first exception's line, which is what a user reads."""
        lines = [line.strip() for line in self.output.splitlines()]
        return next((line for line in lines if "Error: " in line), (lines or [""])[-1])


# One process imports what takes long; each run is a fork of it that goes through the command line's own entry point.
SERVER = """
import os, sys, traceback
told = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from llamafactory.cli import main
from llamafactory.train import tuner
for line in sys.stdin:
    sys.argv = ["llamafactory-cli", *line.split()]
    child = os.fork()
    if child == 0:
        status = 1
        log = os.open(sys.argv[2].replace(".yaml", ".log"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            main()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=told, flush=True)
"""


class Bench:
    """A folder with a model, data and runs; a context, since a process of its own stands by."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.server = subprocess.Popen([sys.executable, "-c", SERVER], cwd=folder, env=env, text=True, **pipes)

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *error: object) -> None:
        self.server.communicate("")  # the end of what it reads

    def train(self, name: str, keys: dict[str, Any], processes: int = 1, **environment: str) -> Run:
        """Trains into the folder ``name``, with a cache of its own."""
        recipe = {**PLAIN, "model_name_or_path": "model", "dataset_dir": "data", "cache_dir": f"cache/{name}"}
        self.write(f"{name}.yaml", {**recipe, "output_dir": name, **keys})
        if processes > 1:
            environment |= {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(processes)}
        return self.run(name, "train", **environment)

    def run(self, name: str, command: str, **environment: str) -> Run:
        """Runs a command of LLaMA-Factory's with ``name``.yaml; with an environment, in a process of its own."""
        if environment:
            done = run_cli(command, f"{name}.yaml", cwd=self.folder, timeout=1800, **environment)
            status, output = done.returncode, done.stdout + done.stderr
        else:
            assert self.server.stdin and self.server.stdout
            self.server.stdin.write(f"{command} {name}.yaml\n")
            self.server.stdin.flush()
            status = int(self.server.stdout.readline())
            output = (self.folder / f"{name}.log").read_text()
        finished = status == 0 and (self.folder / name / "trainer_state.json").is_file()
        return Run(status, output, log_history(self.folder / name) if finished else [])

    def write(self, name: str, content: Any) -> None:
        (self.folder / name).write_text(json.dumps(content, ensure_ascii=False))  # JSON is YAML


def prepare(folder: Path) -> Bench:
    """Writes the model and the data sets: ``series`` and one for each stage, and ``…_exchanged`` beside each."""
    from llamafactory_ext.toolbox.demo.model import Size, write_model

    write_model(folder / "model", size=Size(deviation=0.15))  # large weights: the series move the loss
    data, info = Gdsh(folder / "data"), {}
    for number in range(RECORDS):
        values = [math.sin(index * (number + 2) / 9) * 5 + index % 7 for index in range(48 + 8 * number)]
        for kind, cells in (("gdsh", values), ("moving", values), ("exchanged", exchanged(values))):
            data.csv(f"{number}.csv", cells, kind)
    data.records(*(annotation(f"/x/{number}.jpg", answer((number, number + 3))) for number in range(RECORDS)))
    for name, kind in (("series", "gdsh"), ("moving", "moving"), ("series_exchanged", "exchanged")):
        info[name] = {"file_name": "json/a.json", "formatting": "gdsh", "folder": f"timeseries/{kind}"}
    bench = Bench(folder)
    for suffix, kind in (("", "gdsh"), ("_exchanged", "exchanged")):
        rows = [row(data.folder / "timeseries" / kind, number) for number in range(RECORDS)]
        for name, columns in COLUMNS.items():
            kept = ["input", "timeseries", *columns.values()]
            bench.write(f"data/{name}{suffix}.json", [{key: row[key] for key in kept} for row in rows])
            all_columns = {"prompt": "input", "timeseries": "timeseries", **columns}
            info[name + suffix] = {"file_name": f"{name}{suffix}.json", "columns": all_columns}
            info[name + suffix] |= {"ranking": True} if "chosen" in columns else {}
    texts = [{"instruction": f"count {i}", "input": "", "output": f"{i} {i + 1}"} for i in range(3)]
    bench.write("data/text.json", texts)
    bench.write("data/dataset_info.json", {**info, "text": {"file_name": "text.json"}})
    bench.write("z2.json", ZERO2)
    return bench


def exchanged(values: list[float]) -> list[float]:
    """The same points in another order, first, last, largest and smallest ones in place: the text says the same."""
    kept = {0, len(values) - 1, values.index(max(values)), values.index(min(values))}
    places = [index for index in range(len(values)) if index not in kept]
    moved = list(values)
    for place, source in zip(places, reversed(places), strict=True):
        moved[place] = values[source]
    return moved


def row(folder: Path, number: int) -> dict[str, Any]:
    """A record with everything that a stage may want."""
    lines = (folder / f"{number}.csv").read_text().splitlines()[1:]
    good, bad = answer((number, number + 3)), answer((number + 9, number + 20))
    record = {"input": PROMPT, "output": good if number % 2 else bad, "good": bool(number % 2)}
    return {**record, "chosen": good, "rejected": bad, "timeseries": [[float(x.rpartition(",")[2]) for x in lines]]}


def exchange(keys: dict[str, Any]) -> dict[str, Any]:
    """The same keys with the same records, whose points stand in another order."""
    names = str(keys.get("dataset", PLAIN["dataset"])).split(",")
    return {**keys, "dataset": ",".join(name if name == "text" else f"{name}_exchanged" for name in names)}
