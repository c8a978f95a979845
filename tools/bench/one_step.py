"""One way of computing training steps, measured in a process of its own; `bench.py` starts it."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from meter import CudaMeter, ProcessMeter
from models import WAYS, add_lora, build_model
from rows import GPU_ROWS, ROWS, Row, count_tokens, make_batch, make_config

from llamafactory_ext.model import attention, host_embedding


def take_step(model: Any, batch: dict[str, torch.Tensor], optimiser: Any, scaler: Any = None) -> float:
    """Compute one step; with a scaler, under autocast to float16. Return the loss."""
    with torch.autocast("cuda", torch.float16) if scaler else nullcontext():
        loss = model(**batch).loss
    if scaler is None:
        loss.backward()
        optimiser.step()
    else:
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
    optimiser.zero_grad(set_to_none=True)
    return float(loss.detach())


def measure(
    row: Row,
    way: str,
    device: str,
    steps: int,
    embedding_on_cpu: bool = False,
    wait: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Build a row's model; run one step to warm up, one for the memory, and `steps` for the time.

    Arguments:
        wait: is called before each of `steps`.

    Returns:
        `seconds` a step and `cpu_seconds` of all threads, the best; `tokens` a second; `losses`. Bytes: `baseline`
        before the model is built, `loaded` with weights and the optimiser's states, `peak` of a step, `activations`
        the difference of the last two, on a card `reserved` by the allocator.
    """
    cuda = device == "cuda"
    meter = CudaMeter() if cuda else ProcessMeter()
    meter.be_exact()
    # What libraries load at their first use is no part of a step: a tiny one goes before.
    take_step(*_prepare(replace(ROWS[0], quantised=row.quantised), way, device, embedding_on_cpu))
    meter.settle()
    found: dict[str, Any] = {"row": row.name, "way": way, "device": device, "baseline": meter.now()}

    training = _prepare(row, way, device, embedding_on_cpu)
    losses = [take_step(*training)]  # the optimiser's states exist from here on
    meter.settle()
    found["loaded"] = meter.now()
    meter.reset_peak()
    losses.append(take_step(*training))
    peak = meter.peak()  # read once: a process's own goes on rising
    found |= {"peak": peak, "activations": peak - found["loaded"]}

    meter.be_fast()
    seconds, cpu_seconds = [], []
    for _ in range(steps):
        wait()
        start, cpu_start = time.perf_counter(), time.process_time()
        losses.append(take_step(*training))
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    found |= {"seconds": min(seconds), "cpu_seconds": min(cpu_seconds), "tokens": count_tokens(row)[0] / min(seconds)}
    if cuda:
        found["reserved"] = torch.cuda.max_memory_reserved()
    return found | {"losses": losses}


def _prepare(row: Row, way: str, device: str, embedding_on_cpu: bool) -> tuple[Any, dict[str, torch.Tensor], Any, Any]:
    """Return model, batch, optimiser and scaler of a row."""
    cuda = device == "cuda"
    dtype = torch.float16 if cuda else torch.float32
    model = build_model(way, make_config(row), device=device, dtype=dtype, quantised=row.quantised)
    if cuda and way == "ours":
        attention.use_where_it_suits(model, torch.cuda.get_device_capability())
    if embedding_on_cpu:
        host_embedding.move_embedding_to_cpu(model)
    model = add_lora(model, row.checkpoints(way))
    optimiser = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)
    return model, make_batch(row, way, device), optimiser, torch.amp.GradScaler("cuda") if cuda else None


def wait_for_turn() -> None:
    """Say that the next step may come, and wait until it is asked for."""
    print(flush=True)
    sys.stdin.readline()


def cap_memory(gib: float) -> None:
    """Let torch's allocator have no more than this of the card."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tools/bench/one_step.py", description=__doc__)
    parser.add_argument("row", choices=[row.name for row in ROWS + GPU_ROWS])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--embedding-on-cpu", action="store_true")
    parser.add_argument("--in-turn", action="store_true", help="before each timed step write a line, and read one")
    parser.add_argument("--cap-gib", type=float, help="let torch's allocator have no more than this of the card")
    arguments = parser.parse_args()
    if arguments.cap_gib is not None and arguments.device == "cuda":
        cap_memory(arguments.cap_gib)
    row = next(row for row in ROWS + GPU_ROWS if row.name == arguments.row)
    found = measure(
        row, arguments.way, arguments.device, arguments.steps, arguments.embedding_on_cpu,
        *([wait_for_turn] if arguments.in_turn else []),
    )  # fmt: skip
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
