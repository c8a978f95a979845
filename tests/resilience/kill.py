"""Kills training runs with signal 9 and lets the same command go on; also fills the disk under one.

    python tests/resilience/kill.py                      # all of it, about half an hour on two cores
    python tests/resilience/kill.py --only run --times 4

``run``: one process, all weights and LoRA by turns, killed again and again: at a random moment, or while a checkpoint
is being written. ``workers``: one of two processes under torchrun, which starts both again. ``disk``: a small file
system is full while a checkpoint is written (needs leave to mount). Each run is let go on until its end, by the same
command; then weights (to the bit), losses and both logs must be those of a run that nothing happened to.
Exit status 1 where they are not, or where a half checkpoint was resumed from.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file
from small_runs import ZERO2, demo_recipe, start, write_small_data


STEPS = 40
KINDS = {"full": {}, "lora": {"finetuning_type": "lora", "lora_target": "q_proj,k_proj,v_proj"}}  # by turns
TORCHRUN = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("run", "workers", "disk"), help="default: all three")
    parser.add_argument("--times", type=int, default=20, help="kills of single runs; default: 20")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments; default: 0")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    lost: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_small_data(folder)
        parts: dict[str, Callable[[], Iterator[str]]] = {
            "run": lambda: kill_runs(folder, arguments.times),
            "workers": lambda: kill_workers(folder),
            "disk": lambda: fill_disk(folder),
        }
        for part in [arguments.only] if arguments.only else parts:
            found = list(parts[part]())
            lost += found
    for line in lost:
        print(f"lost: {line}")
    return 1 if lost else 0


def recipe(folder: Path, output: Path, kind: str) -> dict[str, Any]:
    extra = {"deepspeed": str(folder / "zero2.json")} if kind == "zero2" else KINDS[kind]
    keys = demo_recipe(folder, output) | extra
    return keys | {"max_steps": STEPS, "save_steps": 2, "learning_rate": 1e-3, "lora_rank": 8}


def finish(process: "subprocess.Popen[bytes]") -> int:
    try:
        return process.wait(timeout=900)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def reference(folder: Path, kind: str, name: str = "", **environment: str) -> Path:
    """Trains once without a fault."""
    output = folder / f"reference_{kind}{name}"
    if not output.exists() and finish(start(recipe(folder, output, kind), folder, folder / "log", **environment)):
        raise SystemExit((folder / "log").read_text("utf-8")[-4000:])
    return output


def kill_runs(folder: Path, times: int) -> Iterator[str]:
    """Kills runs up to four times each, the kinds by turns."""
    killed = halves = 0
    number = 0
    while killed < times:
        kind = list(KINDS)[number % len(KINDS)]
        whole = reference(folder, kind)
        output, log = folder / f"run{number}", folder / f"run{number}.log"
        keys = recipe(folder, output, kind)
        for attempt in range(min(4, times - killed)):
            process = start(keys, folder, log)
            in_checkpoint = attempt % 2 == 1
            wait_for_moment(process, output, in_checkpoint)
            if process.poll() is not None:  # it had ended before its moment came
                break
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            good, half = judge(output)
            halves += len(half)
            print(f"kill {killed} ({kind}): newest whole {good}, half {half or 'none'}", flush=True)
            yield from going_on(keys, folder, log, good) if attempt == 3 else ()
        if finish(start(keys, folder, log)):
            yield f"run {number} did not go on: {log.read_text('utf-8', errors='replace')[-2000:]}"
        yield from differences(whole, output, f"run {number} ({kind})")
        number += 1
    print(f"{killed} kills of {number} runs, {halves} checkpoints cut off")


def wait_for_moment(process: "subprocess.Popen[bytes]", output: Path, in_checkpoint: bool) -> None:
    """Waits for a random moment of the run, or until some of a new checkpoint's files are there."""
    before, lines = set(output.glob("checkpoint-*")), log_lines(output)
    while process.poll() is None and log_lines(output) <= lines and not set(output.glob("checkpoint-*")) - before:
        time.sleep(0.002)
    if not in_checkpoint:
        time.sleep(random.uniform(0, 1.5))
        return
    before = set(output.glob("checkpoint-*"))
    while process.poll() is None:
        if set(output.glob("checkpoint-*")) - before:
            time.sleep(random.uniform(0, 0.06))
            return
        time.sleep(0.0005)


def log_lines(output: Path) -> int:
    log = output / "trainer_log.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def judge(output: Path) -> tuple[int, list[int]]:
    """Returns the step of the newest checkpoint that loads in full (0: none), and those that do not. Reads all."""
    good, half = [0], []
    for checkpoint in output.glob("checkpoint-*"):
        step = int(checkpoint.name.split("-")[1])
        try:
            state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
            (weights,) = checkpoint.glob("*model.safetensors")
            load_file(weights)
            rng = sorted(checkpoint.glob("rng_state*.pth"))
            for path in (checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *rng):
                torch.load(path, weights_only=False)
            assert rng and state["global_step"] == step
            good.append(step)
        except Exception:  # however it is broken
            half.append(step)
    return max(good), sorted(half)


def going_on(keys: dict[str, Any], folder: Path, log: Path, good: int) -> Iterator[str]:
    """Lets a run go on to its end and looks where it resumed from."""
    seen = len(log.read_bytes())
    if finish(start(keys, folder, log)):
        yield f"{log.name}: did not go on"
    text = log.read_bytes()[seen:].decode("utf-8", errors="replace")
    resumed = text.partition("Resuming training from ")[2].split(".\n")[0].split("checkpoint-")[-1]
    if good and resumed.split(".")[0] != str(good):
        yield f"{log.name}: resumed from {resumed or 'the start'}, checkpoint-{good} is the newest whole one"


def differences(whole: Path, output: Path, name: str) -> Iterator[str]:
    """Tells where a run's results are not those of the undisturbed one."""
    (path,) = whole.glob("*model.safetensors")
    if not (output / path.name).is_file():
        yield f"{name}: no {path.name}"
        return
    expected, found = load_file(path), load_file(output / path.name)
    unequal = [key for key in expected if not torch.equal(expected[key], found[key])]
    if unequal or set(expected) != set(found):
        yield f"{name}: {len(unequal)} of {len(expected)} weights differ"
    if losses(output / "trainer_state.json") != losses(whole / "trainer_state.json"):
        yield f"{name}: another loss curve"
    if lines(output) != lines(whole):
        yield f"{name}: trainer_log.jsonl holds {lines(output)}"
    if not (output / "training_loss.png").is_file():
        yield f"{name}: no plot"


def losses(state: Path) -> list[tuple[float, ...]]:
    history = json.loads(state.read_text("utf-8"))["log_history"]
    return [(one["step"], one["loss"], one["grad_norm"], one["learning_rate"]) for one in history if "loss" in one]


def lines(output: Path) -> list[tuple[int, float]]:
    found = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    return [(one["current_steps"], one["loss"]) for one in found if "loss" in one]


def kill_workers(folder: Path) -> Iterator[str]:
    """Kills one of two processes; torchrun starts both again, which go on."""
    (folder / "zero2.json").write_text(json.dumps(ZERO2), "utf-8")
    for kind, rank in (("full", 0), ("full", 1), ("zero2", 0), ("zero2", 1)):
        whole = reference(folder, kind, "_two", **TORCHRUN)
        output, log = folder / f"workers_{kind}{rank}", folder / f"workers_{kind}{rank}.log"
        keys = recipe(folder, output, kind)
        process = start(keys, folder, log, **TORCHRUN, RDZV_ID=f"kill_{kind}{rank}", MAX_RESTARTS="2")
        while process.poll() is None and not (output / "checkpoint-4" / "trainer_state.json").exists():
            time.sleep(0.01)
        wait_for_moment(process, output, True)
        (worker,) = [one for one in workers(process.pid) if one.environ().get("LOCAL_RANK") == str(rank)]
        worker.kill()
        status = finish(process)
        text = log.read_text("utf-8", errors="replace")
        resumed = text.count("Resuming training from")
        print(
            f"worker {rank} of 2 killed ({kind}): exit status {status}, resumed {resumed // 2} times by 2 processes",
            flush=True,
        )
        if status or not resumed:
            yield f"worker {rank} ({kind}): exit status {status}: {text[-3000:]}"
        yield from differences(whole, output, f"worker {rank} ({kind})")


def workers(launcher: int) -> list[psutil.Process]:
    """Returns the training processes below torchrun."""
    return [one for one in psutil.Process(launcher).children(recursive=True) if "LOCAL_RANK" in one.environ()]


def fill_disk(folder: Path) -> Iterator[str]:
    """Runs on a file system that has no room for the third checkpoint, then on the same one enlarged."""
    whole = reference(folder, "full")
    output, log = folder / "disk", folder / "disk.log"
    output.mkdir()
    keys = recipe(folder, output, "full") | {"save_total_limit": 5}
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(output)], capture_output=True)
    if done.returncode:
        print(f"full disk: skipped, {done.stderr.decode().strip()}")
        return
    try:
        status = finish(start(keys, folder, log))
        text = log.read_text("utf-8", errors="replace")
        message = next((line for line in text.splitlines() if " MiB free" in line), text[-3000:])
        good, half = judge(output)
        print(f"full disk: exit status {status}, newest whole {good}, half {half}\n  {message}", flush=True)
        if not status or " MiB free" not in message or not good:
            yield f"full disk: exit status {status}, {message}"
        subprocess.run(["mount", "-o", "remount,size=100m", str(output)], check=True)
        yield from going_on(keys, folder, log, good)
        yield from differences(whole, output, "full disk")
    finally:
        subprocess.run(["umount", str(output)], check=False)


if __name__ == "__main__":
    sys.exit(main())
