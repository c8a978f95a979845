"""Times the way from GDSH's files to a tokenised data set, against plain scripts, and at 10 and 100 times the size.

Every figure is taken on this machine, in processes started one after the other by this program; the data are made
up, 417 points of 5000 rows. The plain scripts are what one writes without this project: `csv.DictReader` and
`json.dump` to ChatTS's JSON lines, then LLaMA-Factory reading those.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from llamafactory_ext.toolbox.cli.terminal import FAULTS, progress, run, say
from llamafactory_ext.toolbox.demo.data import PROMPT, make_csv, make_entries, make_entry, write_answer
from llamafactory_ext.toolbox.demo.model import write_model
from llamafactory_ext.toolbox.demo.series import SHAPES, draw_intervals, draw_series


POINTS, LENGTH = 417, 5000


def write_points(folder: Path, copies: int) -> None:
    """Write `copies` times 417 points; the copies' CSV files are further names of the first ones' (hard links)."""
    rng = np.random.default_rng(0)
    series = folder / "timeseries" / "gdsh"
    series.mkdir(parents=True)
    (folder / "json").mkdir()
    records = []
    for number in range(POINTS):
        kinds = tuple(rng.choice(list(SHAPES), size=int(rng.integers(0, 6))))
        intervals = draw_intervals(kinds, LENGTH, rng) if kinds else []
        _, values = draw_series(kinds, intervals, LENGTH, rng)
        first = series / f"数据集gdsh_second_{number:05d}.PV.csv"
        first.write_bytes(make_csv(values, {}, "PV", "utf-8"))
        answer = write_answer("joined", [make_entry(kind, pair) for kind, pair in zip(kinds, intervals, strict=True)])
        for copy in range(copies):
            stem = f"gdsh_second_{number + copy * POINTS:05d}.PV"
            if copy:
                (series / f"数据集{stem}.csv").hardlink_to(first)
            turns = [{"from": "user", "value": f"<image>\n{PROMPT}"}, {"from": "assistant", "value": answer}]
            records.append({"image": f"/home/annotator/{stem}.jpg", "conversations": turns})
    (folder / "json" / "gdsh.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    columns = {"prompt": "input", "response": "output", "timeseries": "timeseries"}
    entries = {"gdsh": make_entries()["gdsh_demo"], "plain": {"file_name": "plain.jsonl", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(entries))


def convert_plainly(folder: Path, out: Path) -> None:
    """Write ChatTS's JSON lines without this project, as a plain script does."""
    names = {path.stem.removeprefix("数据集"): path for path in (folder / "timeseries" / "gdsh").glob("*.csv")}
    with out.open("w", encoding="utf-8") as lines:
        for record in json.loads((folder / "json" / "gdsh.json").read_text(encoding="utf-8")):
            with names[Path(record["image"]).stem].open(encoding="utf-8") as file:
                series = [float(row["value"]) for row in csv.DictReader(file)]
            asked, answered = (turn["value"] for turn in record["conversations"])
            line = {"input": asked.replace("<image>", "<ts><ts/>"), "output": answered, "timeseries": [series]}
            json.dump(line, lines, ensure_ascii=False)
            lines.write("\n")


def tokenise(folder: Path, dataset: str, model: Path, scratch: Path) -> float:
    """Run LLaMA-Factory's own steps to the tokenised data set, with nothing cached; return their seconds."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    recipe: dict[str, Any] = {"model_name_or_path": str(model), "dataset_dir": str(folder), "dataset": dataset}
    recipe |= {"stage": "sft", "do_train": True, "finetuning_type": "lora", "template": "chatts", "cutoff_len": 8192}
    recipe |= {"output_dir": str(scratch / "out"), "report_to": "none", "cache_dir": str(scratch / "cache")}
    model_args, data_args, training_args, _, _ = get_train_args(recipe)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    start = time.perf_counter()
    get_dataset(template, model_args, data_args, training_args, stage="sft", **module)
    return time.perf_counter() - start


def measure(*arguments: str, environment: dict[str, str] | None = None) -> tuple[float, float, str]:
    """Run a process; return its seconds, the peak memory of it and its children in MiB, and its output.

    Memory that is not shared: pages of mapped files, which the system may take back, do not count.
    """
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    )
    result: list[tuple[str, str]] = []
    reader = threading.Thread(target=lambda: result.append(process.communicate()))
    reader.start()
    while reader.is_alive():
        peak = max(peak, _private_bytes(process.pid))
        reader.join(0.05)
    seconds, (out, errors) = time.perf_counter() - start, result[0]
    if process.returncode:
        say(f"{arguments} failed:\n{errors[-3000:]}")
        sys.exit(FAULTS)
    return seconds, peak / 2**20, out


def _private_bytes(pid: int) -> int:
    """Memory of a process and its children; a page that forked processes share counts once. Linux only."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            total += int(rollup.partition("Pss_Anon:")[2].split()[0]) * 1024
    except (psutil.Error, OSError, IndexError):  # it has just ended
        pass
    return total


class Bench:
    """One folder of data, and what is timed on it."""

    def __init__(self, folder: Path, copies: int) -> None:
        self.folder, self.model = folder, folder / "model"
        write_points(folder, copies)
        write_model(self.model, seed=0)
        self.me = str(Path(__file__))

    def plain(self) -> float:
        return measure(self.me, "--step", "plain", str(self.folder))[0]

    def prepare(self) -> tuple[float, float]:
        out = self.folder / "prepared.jsonl"
        seconds, memory, _ = measure("-m", "llamafactory_ext", "prepare", str(self.folder), "--out", str(out))
        return seconds, memory

    def tokenise(self, dataset: str) -> tuple[float, float]:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            step = (self.me, "--step", dataset, str(self.folder), "--scratch", scratch)
            _, memory, out = measure(*step, environment=environment)
        return float(out.split()[-1]), memory


def compare(rounds: int) -> None:
    """Print this project's ways beside the plain ones."""
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, progress() as bar:
        task = bar.add_task("417 points of 5000 rows", total=4 * rounds)
        bench = Bench(Path(scratch, "data"), 1)
        found: dict[str, list[float]] = {"plain": [], "prepare": [], "two steps": [], "plugin": []}
        for _ in range(rounds):
            found["plain"].append(bench.plain())
            bar.advance(task)
            found["prepare"].append(bench.prepare()[0])
            bar.advance(task)
            found["two steps"].append(found["plain"][-1] + bench.tokenise("plain")[0])
            bar.advance(task)
            found["plugin"].append(bench.tokenise("gdsh")[0])
            bar.advance(task)
    best = {name: min(seconds) for name, seconds in found.items()}
    say(f"417 points of 5000 rows, best of {rounds}, seconds:\n")
    say("| way | seconds | ratio |\n|---|---|---|")
    say(f"| plain script to JSON lines (csv.DictReader, json.dump) | {best['plain']:.1f} | 1 |")
    faster, share = best["plain"] / best["prepare"], best["plugin"] / best["two steps"]
    say(f"| llamafactory-ext prepare to JSON lines | {best['prepare']:.1f} | {faster:.1f} times as fast |")
    say(f"| plain script, then LLaMA-Factory to tokens | {best['two steps']:.1f} | 1 |")
    say(f"| plugin: GDSH's files to tokens | {best['plugin']:.1f} | {share:.2f} of the time |")


def grow(sizes: list[int]) -> None:
    """Print time and memory at several sizes."""
    say("\n| records of 5000 points | prepare: seconds | peak MiB | plugin to tokens: seconds | peak MiB |")
    say("|---|---|---|---|---|")
    for copies in sizes:
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            bench = Bench(Path(scratch, "data"), copies)
            (prepared, prepare_memory), (converted, memory) = bench.prepare(), bench.tokenise("gdsh")
        cells = (POINTS * copies, f"{prepared:.1f}", f"{prepare_memory:.0f}", f"{converted:.1f}", f"{memory:.0f}")
        say(f"| {' | '.join(map(str, cells))} |")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tools/bench/files_to_tokens.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is timed; default: 3")
    parser.add_argument(
        "--grow", type=int, nargs="+", default=[], metavar="TIMES", help="also at these sizes, e.g. 1 10 100"
    )
    parser.add_argument("--step", choices=("plain", "gdsh"), help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step is None:
        compare(arguments.rounds)
        if arguments.grow:
            grow(arguments.grow)
    elif arguments.scratch is None:
        convert_plainly(arguments.folder, arguments.folder / "plain.jsonl")
    else:
        print(tokenise(arguments.folder, arguments.step, arguments.folder / "model", arguments.scratch))
    return 0


if __name__ == "__main__":
    run(main)
