"""Times each lever of a training step alone, with it against without it: same weights, same records, same loss.

python tools/bench/levers.py
python tools/bench/levers.py --only packing --steps 5

Each side runs in a process of its own. Memory is what a step takes beyond weights and optimiser. Not here, for want of
a card: what lies in CPU memory instead (`embedding_on_cpu`, `offload_checkpoints`), float16, kernels for cards.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from meter import ProcessMeter
from models import add_lora, build_model
from rows import ROWS, Row, make_batch, make_config

from llamafactory_ext.model import loss as loss_module
from llamafactory_ext.series import encode
from llamafactory_ext.toolbox.cli.terminal import DONE, FAULTS, run, say


COLUMNS = ("lever", "s a step: without", "with", "ratio", "activations, MiB: without", "with", "ratio", "losses")
Batch = dict[str, torch.Tensor]
_SHORT = next(row for row in ROWS if row.name == "batch")
_LENGTHS = (40, 90, 150, 220, 330, 480, 700, 1000)  # prompts of eight short records, as unequal as the field's


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        row: the model, and the record where `batches` is None.
        batches: make what a step goes through, one pass each; None: the row's own batch.
        change: what is done to the model before.
    """

    row: Row
    batches: Callable[[], list[Batch]] | None = None
    change: Callable[[Any], None] = lambda model: None


def take_step(model: Any, batches: list[Batch], optimiser: torch.optim.Optimizer) -> float:
    """Compute one optimiser step over all batches; return the mean loss over all labels."""
    labels = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = model(**batch, num_items_in_batch=torch.tensor(labels)).loss
        loss.backward()
        total += float(loss.detach())
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return total


def measure(side: Side, steps: int) -> dict[str, Any]:
    """Return `seconds` a step (the best), `activations` in bytes, and the `loss` of the first step."""
    meter = ProcessMeter()
    meter.be_exact()
    model = build_model("ours", make_config(side.row), device="cpu", dtype=torch.float32)
    model = add_lora(model, side.row.checkpointing)
    side.change(model)
    batches = side.batches() if side.batches else [make_batch(side.row, "ours", "cpu")]
    optimiser = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)
    first = take_step(model, batches, optimiser)
    meter.settle()
    loaded = meter.now()
    meter.reset_peak()
    take_step(model, batches, optimiser)
    found = {"loss": first, "activations": meter.peak() - loaded}
    meter.be_fast()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        take_step(model, batches, optimiser)
        seconds.append(time.perf_counter() - start)
    return {**found, "seconds": min(seconds)}


def _whole_loss(model: Any) -> None:
    loss_module.labels_at_once = lambda vocab_size: sys.maxsize  # in this process alone


def _encode_one_by_one(model: Any) -> None:
    encoder = model.base_model.model.ts_encoder
    together = encoder.forward

    def one_by_one(timeseries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        patches, counts = zip(*(together(one) for one in timeseries.split(1)), strict=True)
        return torch.cat(patches), torch.cat(counts)

    encoder.forward = one_by_one


def _write_scores_out(model: Any) -> None:
    model.base_model.model.set_attn_implementation("eager")


def _keep_last_half(model: Any) -> None:
    layers = model.base_model.model.model.layers
    for layer in layers[len(layers) // 2 :]:
        layer.gradient_checkpointing = False


def _records() -> list[Batch]:
    rows = [replace(_SHORT, batch=1, points=256, prompt=prompt) for prompt in _LENGTHS]
    return [make_batch(row, "ours", "cpu", seed=place) for place, row in enumerate(rows)]


def _padded(records: list[Batch]) -> Batch:
    """Return the records as one batch, filled up on the right to the longest."""
    room = max(one["input_ids"].shape[1] for one in records)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    batch = {
        key: torch.cat(
            [torch.nn.functional.pad(one[key], (0, room - one[key].shape[1]), value=value) for one in records]
        )
        for key, value in fill.items()
    }
    return batch | {"timeseries": torch.cat([one["timeseries"] for one in records])}


def _packed(records: list[Batch]) -> Batch:
    """Return the records as one sequence in which each attends to itself alone, as LLaMA-Factory's `neat_packing`."""
    lengths = torch.tensor([one["input_ids"].shape[1] for one in records])
    owner = torch.repeat_interleave(torch.arange(len(records)), lengths)
    seen = (owner[:, None] == owner) & torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    labels = [torch.cat([torch.full((1, 1), -100), one["labels"][:, 1:]], dim=1) for one in records]
    return {
        "input_ids": torch.cat([one["input_ids"] for one in records], dim=1),
        "labels": torch.cat(labels, dim=1),
        "attention_mask": torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "timeseries": torch.cat([one["timeseries"] for one in records]),
    }


def _grouped(records: list[Batch], by_length: bool) -> list[Batch]:
    """Return four batches of two records: neighbours in length, or a short and a long one."""
    unlike = [place for near in range(4) for place in (near, 7 - near)]
    order = list(range(len(records))) if by_length else unlike
    return [_padded([records[place] for place in order[at : at + 2]]) for at in range(0, len(order), 2)]


_ANSWER, _RECORD = (next(row for row in ROWS if row.name == name) for name in ("answer", "record"))
_SERIES = replace(_SHORT, batch=16, points=256, prompt=40, answer=10)
LEVERS: dict[str, tuple[str, Side, Side]] = {
    "pieces": ("loss in pieces, 600 labels", Side(_ANSWER, change=_whole_loss), Side(_ANSWER)),
    "encoder": ("16 series encoded together", Side(_SERIES, change=_encode_one_by_one), Side(_SERIES)),
    "sdpa": ("SDPA instead of eager attention", Side(_RECORD, change=_write_scores_out), Side(_RECORD)),
    "checkpoints": ("gradient checkpoints", Side(replace(_RECORD, checkpointing=False)), Side(_RECORD)),
    "last-layers": ("2 of 4 layers without checkpoints", Side(_RECORD), Side(_RECORD, change=_keep_last_half)),
    "batch": (
        "8 unequal records in one batch, filled up, not one by one",
        Side(_SHORT, _records),
        Side(_SHORT, lambda: [_padded(_records())]),
    ),
    "grouping": (
        "batches of 2 of like length, not of unlike",
        Side(_SHORT, lambda: _grouped(_records(), by_length=False)),
        Side(_SHORT, lambda: _grouped(_records(), by_length=True)),
    ),
    "packing": (
        "the 8 records packed, not one by one",
        Side(_SHORT, _records),
        Side(_SHORT, lambda: [_packed(_records())]),
    ),
}


def collate_seconds(repeats: int = 20) -> float:
    """Return how long a record of 5000 points takes from numbers to the tensor that the model gets."""
    series = [[float(place % 97) for place in range(5000)]]
    start = time.perf_counter()
    for _ in range(repeats):
        torch.from_numpy(encode(series))
    return (time.perf_counter() - start) / repeats


def run_child(name: str, side: str, steps: int) -> dict[str, Any]:
    """Measure one side in a process of its own."""
    command = [sys.executable, __file__, "--only", name, "--side", side, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}, {side}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tools/bench/levers.py", description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=list(LEVERS), help="this lever alone")
    parser.add_argument("--steps", type=int, default=2, help="timed steps; default: 2")
    parser.add_argument("--side", choices=("without", "with"), help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(LEVERS[options.only][1 + (options.side == "with")], options.steps)))
        return DONE
    same = True
    say(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in [options.only] if options.only else LEVERS:
        without, with_it = (run_child(name, side, options.steps) for side in ("without", "with"))
        same = same and abs(without["loss"] - with_it["loss"]) < 1e-4
        cells = [LEVERS[name][0]]
        for key, scale, digits in (("seconds", 1, 2), ("activations", 2**20, 0)):
            cells += [f"{one[key] / scale:.{digits}f}" for one in (without, with_it)]
            cells.append(f"{with_it[key] / without[key]:.2f}")
        cells.append(" ".join(f"{one['loss']:.4f}" for one in (without, with_it)))
        say(f"| {' | '.join(cells)} |")
    say(f"\nFrom numbers to tensor, a record of 5000 points: {1000 * collate_seconds():.1f} ms")
    return DONE if same else FAULTS


if __name__ == "__main__":
    run(main)
