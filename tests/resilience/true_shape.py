"""ChatTS-14B's shape, random weights, by the main recipe on a CPU in 4 bit: it loads, takes a step, saves and resumes.

    python tests/resilience/true_shape.py DIR                    # 48 layers: 28 GB of disk, about 12 GiB of memory
    python tests/resilience/true_shape.py DIR --layers 4         # a rehearsal; --width, --vocabulary: smaller still

The checkpoint is written file by file, a layer each, and is left in DIR for the next start. A record of 5000 points is
trained on in bfloat16. Memory is what no other process shares, at the peak; beside it stands the plan's. Exit status
1: a run failed, the second one did not go on at the first one's checkpoint, or memory is over the plan.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from llamafactory_ext.model import Qwen2TSConfig, Qwen2TSForCausalLM
from llamafactory_ext.toolbox.plan.memory import Load, on_device
from llamafactory_ext.toolbox.plan.recipe import Recipe
from llamafactory_ext.toolbox.session.recipe import read_recipe


ROOT = Path(__file__).resolve().parents[2]
POINTS = 5000


def write_checkpoint(folder: Path, tiny: Path, layers: int, width: int, vocabulary: int) -> None:
    """Writes a checkpoint of that shape: random weights, the tiny model's tokenizer."""
    config = json.loads((tiny / "config.json").read_text("utf-8"))
    heads = width // 128
    config |= {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "torch_dtype": "float16",
        "num_key_value_heads": max(1, heads // 5), "intermediate_size": width * 27 // 10, "vocab_size": vocabulary,
        "max_position_embeddings": 32_768,
    }  # fmt: skip
    config["ts"] |= {"hidden_size": width, "max_sequence_length": 32_768, "max_length": 32_768}
    folder.mkdir(parents=True, exist_ok=True)
    for file in tiny.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    with torch.device("meta"):
        model = Qwen2TSForCausalLM(Qwen2TSConfig.from_dict(config))
    files: dict[str, dict[str, torch.Size]] = {}
    for name, weight in model.named_parameters():
        parts = name.split(".")
        part = f"layer-{int(parts[2]):02d}" if name.startswith("model.layers.") else parts[0]
        part = parts[1] if part == "model" else part
        files.setdefault(f"{part}.safetensors", {})[name] = weight.shape
    noise = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()
    for file, shapes in files.items():
        if (folder / file).exists():
            continue
        tensors = {name: _draw(name, shape, noise) for name, shape in shapes.items()}
        save_file(tensors, folder / f"{file}.half", metadata={"format": "pt"})
        (folder / f"{file}.half").rename(folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, shapes in files.items() for name in shapes}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def _draw(name: str, shape: torch.Size, noise: torch.Tensor) -> torch.Tensor:
    """The same random numbers over and over: nothing learns from them, and drawing 14 billion takes its time."""
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.float16)
    return noise.repeat(-(-shape.numel() // noise.numel()))[: shape.numel()].view(shape).clone()


def write_record(folder: Path) -> None:
    series = np.random.default_rng(0).normal(size=POINTS).cumsum().round(4).tolist()
    record = {"input": "<ts><ts/> " + "Which points are anomalies? " * 40, "output": "[]" * 40, "timeseries": [series]}
    (folder / "record.jsonl").write_text(json.dumps(record) + "\n", "utf-8")
    columns = {"prompt": "input", "response": "output", "timeseries": "timeseries"}
    entry = {"one": {"file_name": "record.jsonl", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(entry), "utf-8")


def train(folder: Path, keys: list[str], steps: int) -> tuple[int, float, int]:
    """Runs the recipe; returns exit status, seconds, and the bytes at the peak that no other process shares."""
    command = ["llamafactory-cli", "train", str(ROOT / "yaml" / "2080ti_qlora.yaml"), *keys, f"max_steps={steps}"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    env["MALLOC_MMAP_THRESHOLD_"] = "131072"  # as plan says for a CPU: else the heap's gaps are 5 GiB of the peak
    peak, start = 0, time.monotonic()
    with (folder / f"{steps}.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, _private(process.pid))
            time.sleep(0.2)
    return process.returncode, time.monotonic() - start, peak


def _private(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def planned(keys: list[str]) -> int:
    path = ROOT / "yaml" / "2080ti_qlora.yaml"
    recipe = Recipe(path, read_recipe(path, keys))
    settings = replace(recipe.settings("cpu", 1), processes=1)
    return sum(on_device(recipe.shape, settings, Load(1241, 120, POINTS // 8)).values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, default in (("layers", 48), ("width", 5120), ("vocabulary", 152_064)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "demo" / "model").is_dir():
        subprocess.run([sys.executable, "-m", "llamafactory_ext", "demo", "--tiny"], cwd=folder, check=True)
    model = folder / f"model-{given.layers}-{given.width}-{given.vocabulary}"
    write_checkpoint(model, folder / "demo" / "model", given.layers, given.width, given.vocabulary)
    write_record(folder)
    output = folder / f"adapter-{time.time_ns()}"
    keys = [
        f"model_name_or_path={model}", "dataset=one", f"dataset_dir={folder}", f"output_dir={output}", "fp16=false",
        "bf16=true", "use_cpu=true", "gradient_accumulation_steps=1", "save_steps=1", "warmup_ratio=0",
        "preprocessing_num_workers=1",
    ]  # fmt: skip
    plan, faults = planned(keys), []
    print("| run | s | GiB at the peak | planned |\n|---|---|---|---|")
    for steps in (1, 2):
        status, seconds, peak = train(folder, keys, steps)
        print(f"| to step {steps} | {seconds:.0f} | {peak / 2**30:.2f} | {plan / 2**30:.2f} |", flush=True)
        faults += [f"step {steps}: exit status {status}, {folder}/{steps}.log"] if status else []
        faults += [f"step {steps}: {peak / 2**30:.2f} GiB, over the plan"] if peak > 1.03 * plan else []
    losses = _losses(output)
    if [step for step, _ in losses] != [1, 2] or not all(np.isfinite(loss) for _, loss in losses):
        faults.append(f"expected a finite loss of each of two steps, the second after resuming; found {losses}")
    print(f"losses: {losses}", *faults, sep="\n")
    return 1 if faults else 0


def _losses(output: Path) -> list[tuple[Any, Any]]:
    state = output / "trainer_state.json"
    lines = json.loads(state.read_text("utf-8"))["log_history"] if state.is_file() else []
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


if __name__ == "__main__":
    sys.exit(main())
