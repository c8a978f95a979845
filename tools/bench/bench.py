"""Times one training step and its memory: this project's way against the published one, and against a plain Qwen2.

All ways get the same weights and records, each in a process of its own. On a CPU they take their steps in turn, and
time is that of the processor, so that what else runs on it does not count. A plain Qwen2, transformers' own, has text
in the series' place. LoRA of rank 8 on query, key, value and the series encoder, AdamW, gradient checkpoints but where
a row says otherwise; the CPU's rows in float32. Memory of activations is the peak of a step beyond weights and
optimiser. The last columns compare the whole peak of this project's way with what `llamafactory_ext.toolbox.plan`
predicts of it.

With `--gpu`: ChatTS-14B in 4 bit, random weights, float16. No card was at hand when this was written: those rows have
not been measured, and what they do was tested on a CPU only.
"""

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from children import run_in_turn, run_one_by_one

from llamafactory_ext.toolbox.cli.terminal import DONE, FAULTS, USAGE, complain, run, say


MIB = 2**20
COLUMNS = (
    "row",
    "s a step: ours",
    "other way",
    "ratio",
    "activations, MiB: ours",
    "other way",
    "ratio",
    "peak, MiB: ours",
    "planned",
    "off by",
)


def predict(row: Any, ours: dict[str, Any], embedding_on_cpu: bool) -> dict[str, int]:
    """Return the plan's bytes by part for a row, with the measured baseline as the process's own share."""
    from models import RANK, TARGETS
    from rows import count_tokens, make_config

    from llamafactory_ext.toolbox.plan.memory import Load, Settings, on_device
    from llamafactory_ext.toolbox.plan.shape import Shape

    cuda = ours["device"] == "cuda"
    dtype = "float16" if cuda else "float32"
    settings = Settings(
        device="cuda" if cuda else "cpu",
        quantization_bit=4 if row.quantised else None,
        compute_dtype=dtype,
        weight_dtype=dtype,
        mixed_precision=cuda,
        lora_rank=RANK,
        lora_target=TARGETS,
        checkpointing=row.checkpoints("ours"),
        embedding_on_cpu=embedding_on_cpu,
    )
    tokens, labels, patches = count_tokens(row)
    parts = on_device(Shape.from_config(make_config(row)), settings, Load(tokens, labels, patches, row.batch))
    # torch's allocator counts its own bytes only, and those exactly.
    return parts | ({"context": 0, "reserve": 0} if cuda else {"context": ours["baseline"]})


def describe(row: Any, ours: dict[str, Any], other: dict[str, Any], parts: dict[str, int]) -> list[str]:
    """Return a row's cells; where a way failed, its cells say so."""
    planned = sum(parts.values())
    cells = [row.title]
    for place, (key, scale, digits) in enumerate((("seconds", 1, 2), ("activations", MIB, 0))):
        cells += [_cell(found, key, scale, digits) for found in (ours, other)]
        both, most = "error" not in ours and "error" not in other, row.at_most[place]
        aim = f" (at most {most:.2f})" if most else ""
        cells.append(f"{ours[key] / other[key]:.2f}{aim}" if both else "–")
    if "error" in ours:  # without its baseline there is no plan, either
        return [*cells, "failed", "–", "–"]
    return [
        *cells,
        _cell(ours, "peak", MIB, 0),
        f"{planned / MIB:.0f}",
        f"{100 * (planned / ours['peak'] - 1):+.1f} %",
    ]


def _cell(found: dict[str, Any], key: str, scale: float, digits: int) -> str:
    return "failed" if "error" in found else f"{found[key] / scale:.{digits}f}"


def name_machine(gpu: bool) -> str:
    """Return processor or card, versions and date in a line."""
    from importlib.metadata import version

    import torch

    if gpu:
        machine = torch.cuda.get_device_name(0)
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
        cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
        machine = f"{name}, {cores} cores, {threads} threads, {platform.machine()}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "bitsandbytes"))
    return f"{machine}; Python {platform.python_version()}, {versions}; {datetime.now(UTC):%Y-%m-%d}"


def compare(rows: list[Any], steps: int, gpu: bool, cap_gib: float) -> list[dict[str, Any]]:
    """Measure all rows, print the table, return what was found."""
    results = []
    say(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in rows:
        if gpu:
            options = ["--steps", str(steps), "--device", "cuda"]
            own = [*options, "--embedding-on-cpu", "--cap-gib", str(cap_gib)]
            found = run_one_by_one(row.name, {"ours": own, row.other: options})
        else:
            found = run_in_turn(row.name, ("ours", row.other), steps)
            for one in found.values():
                one |= {"seconds": one["cpu_seconds"], "wall_seconds": one["seconds"]} if "seconds" in one else {}
        failed = "error" in found["ours"]
        stand_in = {"device": "cuda" if gpu else "cpu", "baseline": 0}
        parts = predict(row, stand_in if failed else found["ours"], embedding_on_cpu=gpu)
        say(f"| {' | '.join(describe(row, found['ours'], found[row.other], parts))} |")
        results.append({"row": row.name, **found, "planned": parts})
    capped = f"; ours with {cap_gib:g} GiB of the card at most, the published way with all" if gpu else ""
    say(f"\n{name_machine(gpu)}; best of {steps} steps{capped}.")
    return results


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tools/bench/bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", action="store_true", help="ChatTS-14B on one CUDA card, instead of the CPU's rows")
    parser.add_argument(
        "--cap-gib",
        type=float,
        default=10.5,
        help="what ours may take of the card; the published way may take all; default: 10.5",
    )
    parser.add_argument("--only", metavar="NAME", help="this row alone")
    parser.add_argument("--steps", type=int, help="timed steps; default: 4, on a card 20")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found here, too")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.steps is not None and arguments.steps < 1:
        complain("error: --steps is less than 1; expected at least one step")
        return USAGE
    import torch
    from models import WAYS
    from rows import GPU_ROWS, ROWS

    if arguments.gpu and not torch.cuda.is_available():
        complain("error: --gpu, but torch finds no CUDA card here; without --gpu the CPU's rows are measured")
        return USAGE
    known = GPU_ROWS if arguments.gpu else ROWS
    rows = [row for row in known if arguments.only in (None, row.name)]
    if not rows:
        complain(f"error: no row {arguments.only!r}; expected one of {', '.join(row.name for row in known)}")
        return USAGE
    results = compare(rows, arguments.steps or (20 if arguments.gpu else 4), arguments.gpu, arguments.cap_gib)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return FAULTS if any("error" in found[way] for found in results for way in WAYS if way in found) else DONE


if __name__ == "__main__":
    run(main)
