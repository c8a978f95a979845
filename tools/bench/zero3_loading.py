"""Memory while a checkpoint is loaded for DeepSpeed ZeRO-3 with offload to CPU memory: real processes, gloo, a CPU.

python tools/bench/zero3_loading.py --gib 2 --processes 1 2

Anonymous memory is what a machine must have. Files are mapped: all processes share their pages, and the system takes
them back where it needs the room.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamafactory_ext.toolbox.cli.terminal import DONE, FAULTS, USAGE, complain, print_table, run


ZERO3 = {
    "train_micro_batch_size_per_gpu": 1,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu", "pin_memory": False}},
}
# Matrices over 32 MiB, as ChatTS-14B has: below, glibc keeps what was freed, which would hide what is asked for.
_WIDTH, _INTERMEDIATE, _VOCABULARY = 4096, 8192, 16_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tools/bench/zero3_loading.py", description=__doc__.split("\n")[0])
    parser.add_argument("--gib", type=float, default=2, help="size of the checkpoint of random weights (default: 2)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="how many load it together")
    parser.add_argument("--json", action="store_true", help="print rows as JSON, and nothing else")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)  # in a process that torchrun has started
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load(options.load)))
        return DONE
    try:
        import deepspeed  # noqa: F401
    except ModuleNotFoundError:
        complain("error: no module deepspeed: pip install '.[train,deepspeed]'")
        return USAGE
    with tempfile.TemporaryDirectory(prefix="loading-") as folder:
        size = write_checkpoint(Path(folder), options.gib)
        rows = [measure(Path(folder), size, processes) for processes in options.processes]
    if options.json:
        print(json.dumps(rows))
        return DONE
    columns = ("processes", "checkpoint", "peak beyond start-up", "ratio", "mapped files at the peak")
    keys = ("processes", "checkpoint_gib", "peak_gib", "ratio", "mapped_gib")
    cells = [[f"{row[key]:.3g}" for key in keys] for row in rows]
    print_table("Loading for ZeRO-3, GiB, all processes together", columns, cells)
    wrong = sum(row["wrong"] for row in rows)
    if wrong:
        complain(f"error: {wrong} weights differ from the checkpoint's")
    return FAULTS if wrong else DONE


def write_checkpoint(folder: Path, gib: float) -> int:
    """Writes a ChatTS checkpoint of about that size in bfloat16, in files of an eighth. Returns its bytes."""
    import torch
    from rows import Row, make_config

    from llamafactory_ext.model import Qwen2TSConfig, Qwen2TSForCausalLM

    layer = 2 * (2 * _WIDTH**2 + 2 * _WIDTH * 512 + 3 * _WIDTH * _INTERMEDIATE)
    layers = max(1, round((gib * 2**30 - 4 * _VOCABULARY * _WIDTH) / layer))
    row = Row("", "", _WIDTH, layers, heads=32, kv_heads=4, intermediate=_INTERMEDIATE, vocabulary=_VOCABULARY)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = Qwen2TSForCausalLM(Qwen2TSConfig.from_dict(make_config(row)))
    finally:
        torch.set_default_dtype(default)
    model.save_pretrained(folder, max_shard_size=f"{max(1, round(gib * 128))}MB")
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def measure(folder: Path, size: int, processes: int) -> dict[str, Any]:
    """Loads it in processes of their own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, __file__, "--load", str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    found = [json.loads(one) for one in re.findall(r'\{"anonymous[^{}]*\}', done.stdout)]  # maybe several on one line
    assert len(found) == processes, done.stdout
    peak = sum(one["anonymous"] for one in found)
    return {
        "processes": processes,
        "checkpoint_gib": size / 2**30,
        "peak_gib": peak / 2**30,
        "ratio": peak / size,
        "mapped_gib": sum(one["mapped"] for one in found) / 2**30,
        "wrong": sum(one["wrong"] for one in found),
    }


def load(folder: Path) -> Mapping[str, int]:
    """Loads it as training does; returns bytes at the peak beyond what was taken before."""
    import deepspeed
    from safetensors import safe_open
    from transformers.integrations import HfDeepSpeedConfig

    from llamafactory_ext.model import Qwen2TSForCausalLM, read_config

    deepspeed.init_distributed("gloo")
    kept = HfDeepSpeedConfig(ZERO3)  # transformers holds it weakly
    config = read_config(str(folder))
    before, peaks, ended = _memory(), {"Pss_Anon": 0, "Pss_File": 0}, threading.Event()

    def watch() -> None:
        while not ended.is_set():
            for key, value in _memory().items():
                peaks[key] = max(peaks[key], value)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = Qwen2TSForCausalLM.from_pretrained(folder, config=config, dtype=config.dtype)
    ended.set()
    watcher.join()
    del kept
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    wrong = 0
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters(parameter), safe_open(folder / index[name], framework="pt") as file:
            wrong += not parameter.equal(file.get_tensor(name))
    return {"anonymous": peaks["Pss_Anon"] - before["Pss_Anon"], "mapped": peaks["Pss_File"], "wrong": wrong}


def _memory() -> dict[str, int]:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    pairs = (line.split()[:2] for line in lines[1:])
    return {key[:-1]: int(value) * 1024 for key, value in pairs if key in ("Pss_Anon:", "Pss_File:")}


if __name__ == "__main__":
    run(main)
