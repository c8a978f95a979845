"""Trains demo/mini: a small ChatTS that reads series, from a seed, on two CPU cores.

    python tools/mini/train_mini.py OUT [--seed 0] [--pools 200] [--family qwen3]

Every record is new: they are drawn while the model learns. A second start with the same OUT goes on where the first
was stopped. OUT/model is a checkpoint at any time after the first minutes.
"""

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tokenizers import Tokenizer

from llamafactory_ext.model import FAMILIES
from llamafactory_ext.series import encode, expand
from llamafactory_ext.toolbox.demo import wordings
from llamafactory_ext.toolbox.demo.model import Family, Size, make_config, train_tokenizer, write_tokenizer


MINI = Size(width=192, layers=4, heads=6, key_value_heads=2, max_length=1024, deviation=0.08)
PATCH = 8
VOCABULARY = 768
POOL = 512  # records that a process draws, sorts by length and cuts into batches together
STEPS = 40  # batches of a pool
POOLS = 200
# From a pool on: the longest series, and the share of records that ask in one wording, for anomalies or extremes.
# Reading is what takes time; wordings and tasks are learnt beside it.
COURSE = (
    *((pool, 256, 1 - pool / 32) for pool in range(32)),
    (32, 512, 0.0),
    (42, 256, 0.7),
    (85, 1024, 0.7),
    (110, 1024, 0.2),
)
RATE = 3.0e-3
WARMUP = 100  # steps
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"

Sample = tuple[list[int], int, list[list[float]]]  # tokens, how many of them are prompt, series


def tokenise(record: dict[str, Any], tokenizer: Tokenizer) -> Sample:
    """The tokens that LLaMA-Factory's template chatts makes of a record."""
    content = record["input"]
    for series in record["timeseries"]:
        content = content.replace("<ts><ts/>", expand(np.asarray(series), PATCH), 1)
    turn = f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
    prompt = tokenizer.encode(SYSTEM).ids + tokenizer.encode(turn).ids
    answer = tokenizer.encode(f"{record['output']}<|im_end|>\n").ids
    return prompt + answer, len(prompt), record["timeseries"]


class Pools(torch.utils.data.IterableDataset):  # type: ignore[misc]
    """Batches of pools of records, from pool `start` on; pool k of a seed is always the same."""

    def __init__(self, tokenizer: str, seed: int, start: int, pools: int, rank: int, processes: int) -> None:
        self.tokenizer, self.seed, self.start, self.pools = tokenizer, seed, start, pools
        self.rank, self.processes = rank, processes

    def __iter__(self) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        torch.set_num_threads(1)
        tokenizer = Tokenizer.from_file(self.tokenizer)
        for pool in range(self.start, self.pools):
            batches = cut(draw_pool((self.seed, pool, self.rank), tokenizer))
            for place in np.random.default_rng([3, self.seed, pool, self.rank]).permutation(len(batches)):
                yield pool, collate(batches[place])


def draw_pool(key: tuple[int, int, int], tokenizer: Tokenizer) -> list[Sample]:
    """The samples of a seed, a pool and a process, the shortest first. Training begins with short and plain ones."""
    rng, pool = np.random.default_rng([1, *key]), key[1]
    _, longest, plain = next(stage for stage in reversed(COURSE) if stage[0] <= pool)
    samples = [tokenise(wordings.draw_record(rng, longest, plain), tokenizer) for _ in range(POOL)]
    return sorted(samples, key=lambda sample: len(sample[0]))


def cut(samples: list[Sample]) -> list[list[Sample]]:
    """Batches of like lengths and about equally many tokens."""
    ends = np.cumsum([len(ids) for ids, _, _ in samples])
    bounds = np.searchsorted(ends, ends[-1] * np.arange(1, STEPS) / STEPS)
    return [samples[low:high] for low, high in itertools.pairwise([0, *bounds.tolist(), len(samples)])]


def collate(samples: list[Sample]) -> dict[str, torch.Tensor]:
    """Rows filled up at their ends, which causal attention doesn't see."""
    longest = max(len(ids) for ids, _, _ in samples)
    ids = torch.zeros(len(samples), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, (tokens, prompt, _) in enumerate(samples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, prompt : len(tokens)] = ids[row, prompt : len(tokens)]
    series = [one for _, _, several in samples for one in several]
    return {"input_ids": ids, "labels": labels, "timeseries": torch.from_numpy(encode(series)).float()}


def write_start(folder: Path, seed: int, family: Family) -> None:
    """Tokenizer and config."""
    tokenizer = train_tokenizer(list(wordings.make_corpus(seed)), VOCABULARY)
    write_tokenizer(folder, tokenizer, MINI.max_length)
    stated = make_config(tokenizer, family, MINI)
    (folder / "config.json").write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")


def start_model(folder: Path, seed: int, family: Family) -> Any:
    """Random weights; the places of points start as angles in circles of 10, 100, 1,000 … points, as clocks do."""
    stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(seed)
    config_class, model_class = FAMILIES[family]
    model = model_class(config_class.from_dict(stated))
    table = model.ts_encoder.position_embedding.weight
    places = torch.arange(len(table) - 1)[:, None]
    angles = 2 * math.pi * places / torch.tensor([10, 20, 50, 100, 200, 500, 1000, 2500])
    with torch.no_grad():
        table[:-1] = 0.15 * torch.cat([angles.sin(), angles.cos()], dim=1)
    return model


def optimizers(model: Any, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between embedding and head, AdamW for the rest."""
    inner, rest = [], []
    for name, weight in model.named_parameters():
        matrix = weight.ndim == 2 and "embed" not in name and "lm_head" not in name
        (inner if matrix else rest).append(weight)
    return [
        torch.optim.Muon(inner, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def write_checkpoint(model: Any, folder: Path) -> None:
    """Weights in float16, under the published names, in place of those before."""
    from safetensors.torch import save_file

    state = {name: weight.detach().to(torch.float16).contiguous() for name, weight in model.state_dict().items()}
    save_file(state, folder / ".new", metadata={"format": "pt"})
    (folder / ".new").replace(folder / "model.safetensors")


def average_gradients(weights: list[torch.nn.Parameter]) -> None:
    """Make every process's gradients the mean of all."""
    together = torch.cat([weight.grad.flatten() for weight in weights])
    dist.all_reduce(together)
    together /= dist.get_world_size()
    for weight, part in zip(weights, together.split([weight.numel() for weight in weights]), strict=True):
        weight.grad.copy_(part.view_as(weight))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pools", type=int, default=POOLS, help="of 512 records a process")
    parser.add_argument("--family", choices=("qwen2", "qwen3"), default="qwen2", help="default: qwen2, as shipped")
    parser.add_argument("--stop", type=int, default=10**9, help="after so many pools, for a try")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    (given.out / "model").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    torch.multiprocessing.spawn(learn, (given,), nprocs=given.processes)


def learn(rank: int, given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{(given.out / 'meeting').resolve()}_{os.getppid()}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=given.processes)
    folder, main_process = given.out / "model", rank == 0
    if main_process:
        write_start(folder, given.seed, given.family)
    dist.barrier()
    model = start_model(folder, given.seed, given.family).train()
    weights = list(model.parameters())
    both = optimizers(model, RATE)
    first = step = 0
    if (given.out / "state.pt").exists():
        state = torch.load(given.out / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        for one, saved in zip(both, state["optimizers"], strict=True):
            one.load_state_dict(saved)
        first, step = state["pool"], state["step"]
    if main_process:
        print(sum(weight.numel() for weight in weights), "weights; from pool", first, flush=True)
    data = Pools(str(folder / "tokenizer.json"), given.seed, first, given.pools, rank, given.processes)
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=64)
    began = saved_at = time.time()
    losses: list[float] = []
    tokens, last = 0, first
    for pool, batch in loader:
        if pool != last:
            if main_process:
                past = time.time() - began
                print(
                    f"pool {pool} step {step} loss {np.mean(losses):.4f} {past:.0f} s {tokens / past:.0f} tokens/s",
                    flush=True,
                )
            losses, last = [], pool
            if main_process and (time.time() - saved_at > 120 or pool >= given.stop):
                write_checkpoint(model, folder)
                state = {"model": model.state_dict(), "optimizers": [one.state_dict() for one in both]}
                torch.save({**state, "pool": pool, "step": step}, given.out / "state.new")
                (given.out / "state.new").replace(given.out / "state.pt")
                saved_at = time.time()
            if pool >= given.stop:
                break
        rate = RATE * min(1.0, (step + 1) / WARMUP) * (0.01 + 0.99 * (1 + math.cos(math.pi * pool / given.pools)) / 2)
        for one in both:
            for group in one.param_groups:
                group["lr"] = rate
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        average_gradients(weights)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for one in both:
            one.step()
            one.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        tokens += batch["input_ids"].numel() * given.processes
    if main_process:
        write_checkpoint(model, folder)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
