"""A long run on a CPU: memory flat after warm-up, no file left open, log and plot complete.

    python tests/resilience/long_run.py                    # 2,000 steps of a tiny model, about ten minutes
    python tests/resilience/long_run.py --every 1          # each step logged: transformers keeps every line in memory
    python tests/resilience/long_run.py --stock            # to compare: texts and a Qwen2, this package switched off

The real ``llamafactory-cli`` trains in a process of its own; resident memory and open files are read from outside,
beside the step that its log has reached. Memory's slope is that of the least-squares line through all samples after
warm-up. Exit status 1 where memory grows by more than ``--limit``, files stay open, or a line of the log is missing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from small_runs import demo_recipe, start, write_small_data, write_stock_data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="default: 2000")
    parser.add_argument("--warm-up", type=int, default=300, help="steps that are not measured; default: 300")
    parser.add_argument("--limit", type=float, default=100.0, help="KiB per 100 steps that pass; default: 100")
    parser.add_argument("--every", type=int, default=10, help="logging_steps; default: 10")
    parser.add_argument("--stock", action="store_true", help="LLaMA-Factory alone, with texts and a Qwen2 as tiny")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_small_data(folder)
        output, out_log = folder / "out", folder / "stdout.txt"
        keys = demo_recipe(folder, output) | {"max_steps": arguments.steps, "save_steps": 200}
        keys["logging_steps"] = arguments.every
        environment = {}
        if arguments.stock:
            write_stock_data(folder)
            keys |= {"model_name_or_path": str(folder / "stock"), "template": "default", "dataset": "texts"}
            environment["LLAMAFACTORY_EXT"] = "0"
        samples = watch(start(keys, folder, out_log, **environment), output)
        lost = faults(output, samples, arguments, out_log)
    for line in lost:
        print(f"lost: {line}")
    return 1 if lost else 0


def watch(process: "subprocess.Popen[bytes]", output: Path) -> np.ndarray:
    """Returns one row per half second until the process ends: step, resident KiB, open files."""
    rows = []
    seen = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            rows.append((step_reached(output), seen.memory_info().rss / 1024, seen.num_fds()))
        except psutil.Error:
            break
        time.sleep(0.5)
    if process.wait() != 0:
        raise SystemExit(f"llamafactory-cli ended with {process.returncode}")
    return np.array(rows, dtype=float)


def step_reached(output: Path) -> int:
    log = output / "trainer_log.jsonl"
    lines = log.read_bytes().split(b"\n")[:-1] if log.is_file() else []
    return int(json.loads(lines[-1])["current_steps"]) if lines else 0


def faults(output: Path, samples: np.ndarray, arguments: argparse.Namespace, out_log: Path) -> list[str]:
    steps = arguments.steps
    measured = samples[(samples[:, 0] > arguments.warm_up) & (samples[:, 0] < steps)]
    slope, start_kib = np.polyfit(measured[:, 0] / 100, measured[:, 1], 1)
    half = len(measured) // 2
    late = np.polyfit(measured[half:, 0] / 100, measured[half:, 1], 1)[0]
    # The most common count: a checkpoint that is being written has a file or two open beside the rest.
    files = [int(np.median(part[:, 2])) for part in (measured[:half], measured[half:])]
    print(
        f"{steps} steps, {len(measured)} samples: {slope:+.1f} KiB per 100 steps (second half {late:+.1f}), "
        f"{measured[0, 1] / 1024:.1f} MiB at step {measured[0, 0]:.0f}, {measured[-1, 1] / 1024:.1f} at "
        f"{measured[-1, 0]:.0f}, at most {measured[:, 1].max() / 1024:.1f}; {files[0]} and {files[1]} files open"
    )
    lost = [] if slope <= arguments.limit else [f"memory grows by {slope:.1f} KiB per 100 steps from {start_kib:.0f}"]
    if files[1] > files[0]:
        lost.append(f"{files[0]} files open in the first half, {files[1]} in the second")
    lines = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    logged = [line["current_steps"] for line in lines if "loss" in line]
    history = json.loads((output / "trainer_state.json").read_text("utf-8"))["log_history"]
    kept = [entry["step"] for entry in history if "loss" in entry]
    expected = list(range(arguments.every, steps + 1, arguments.every))
    for name, found in (("trainer_log.jsonl", logged), ("trainer_state.json", kept)):
        if found != expected:
            lost.append(f"{name}: {len(found)} lines of losses, not {len(expected)}, or out of order")
    lost += plot_faults(output / "training_loss.png")
    if "Traceback" in out_log.read_text("utf-8", errors="replace"):
        lost.append("a traceback in the output")
    return lost


def plot_faults(path: Path) -> list[str]:
    from matplotlib import image

    if not path.is_file():
        return [f"no {path.name}"]
    shape = image.imread(path).shape
    return [] if min(shape[:2]) > 100 else [f"{path.name} is {shape}"]


if __name__ == "__main__":
    sys.exit(main())
