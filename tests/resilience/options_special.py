"""Options that one run does not show: several runs, files between them, or a script of their own."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from conftest import ROOT
from resilience.options_bench import Bench, Run


@dataclass(frozen=True)
class Verdict:
    """What is known of an option: ``works``, ``refused`` or ``WRONG``, and the numbers or the line that tell it."""

    result: str
    told: str


SHARDED = """
import json, os, torch
from helpers_model import build, inputs, labels_for, record
from torch.distributed.fsdp import fully_shard
from llamafactory_ext.model import loss

def step(model, batch):
    model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = model(**batch, labels=labels_for(batch)).loss
    found.backward()
    weights = [model.model.layers[0].self_attn.q_proj.weight, model.ts_encoder.mlp[0].weight, model.lm_head.weight]
    gradients = [getattr(weight.grad, "full_tensor", lambda weight=weight: weight.grad)() for weight in weights]
    return float(found.detach()), torch.cat([gradient.flatten() for gradient in gradients])

loss.labels_at_once = lambda vocab_size: 4  # the loss in pieces, which run the head several times
torch.distributed.init_process_group("gloo")
batches = [inputs(record(0, 40, text=30)), inputs(record(1, text=20))]
rank = int(os.environ["RANK"])
alone = [step(build("qwen2"), batch) for batch in batches]
model = build("qwen2")
for part in [*model.model.layers, model]:
    fully_shard(part, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (2,)))
found, gradient = step(model, batches[rank])
expected = (alone[0][1] + alone[1][1]) / 2
apart = float((gradient - expected).abs().max() / expected.abs().max())
print(json.dumps({"rank": rank, "loss": found, "alone": alone[rank][0], "gradients_apart": apart}), flush=True)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def sharded(bench: Bench, plain: Run | None = None) -> Verdict:
    """Takes a step under torch's own FSDP: accelerate leaves out the recipe's ``fsdp`` on a CPU."""
    (bench.folder / "sharded.py").write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29673"]
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*command, str(bench.folder / "sharded.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    found = [json.loads(text) for text in re.findall(r"\{[^{}]*\}", done.stdout)]
    if len(found) != 2:
        return Verdict("WRONG", done.stderr[-2000:])
    right = all(
        math.isclose(row["loss"], row["alone"], rel_tol=1e-5) and row["gradients_apart"] < 1e-4 for row in found
    )
    told = ", ".join(f"loss {row['loss']:.5f} ({row['alone']:.5f} alone)" for row in found)
    return Verdict("works" if right else "WRONG", f"{told}; gradients {found[0]['gradients_apart']:.0e} apart")


def tokenised(bench: Bench, plain: Run) -> Verdict:
    """Writes ``tokenized_path``, trains from it, and again after its CSV files have changed."""
    keys = {"tokenized_path": "tokens", "dataset": "moving"}
    losses = [bench.train("tokens_written", keys).metric("loss"), bench.train("tokens_read", keys).metric("loss")]
    for file in (bench.folder / "data" / "timeseries" / "moving").iterdir():
        file.write_bytes((file.parents[1] / "exchanged" / file.name).read_bytes())
    changed = bench.train("tokens_changed", keys)
    losses.append(changed.metric("loss"))
    told = "Loading dataset from disk will ignore other data arguments" in changed.output
    right = told and all(math.isclose(loss, plain.metric("loss"), rel_tol=1e-5) for loss in losses)
    return Verdict(
        "works" if right else "WRONG", f"losses {losses}; changed CSV files are not looked at, a line says so"
    )


def tokenised_without_plugin(bench: Bench, plain: Run) -> Verdict:
    """Trains from tokens that were made without the plugin, by another template, which leaves the series out."""
    keys = {"tokenized_path": "tokens_off", "dataset": "lines"}
    bench.train("tokens_off_written", {**keys, "template": "qwen"}, LLAMAFACTORY_EXT="0")
    if not (bench.folder / "tokens_off").is_dir():
        return Verdict("WRONG", "nothing was written")
    run = bench.train("tokens_off_read", keys)
    refused = run.status != 0 and "'loss'" not in run.output and "delete `tokenized_path`" in run.error
    return Verdict("refused" if refused else "WRONG", run.error)


def resized(bench: Bench, plain: Run) -> Verdict:
    """Trains with more tokens than the vocabulary has room for, exports, and opens what was exported."""
    tokens = ",".join(f"<unit{number}>" for number in range(20))
    more = {"add_tokens": tokens, "resize_vocab": True}
    trained = bench.train("resized", more)
    if trained.status != 0:
        return Verdict("WRONG", trained.error)
    keys = {"model_name_or_path": "model", "adapter_name_or_path": "resized", "template": "chatts", **more}
    bench.write("resized_export.yaml", {**keys, "export_dir": "resized_merged", "infer_dtype": "float32"})
    exported = bench.run("resized_export", "export")
    if exported.status != 0:
        return Verdict("WRONG", exported.error)
    again = bench.train("resized_again", {"model_name_or_path": "resized_merged"})
    found, continued = again.metric("loss"), trained.metric("loss", 1)
    right = trained.metric("loss") != plain.metric("loss") and found < continued
    return Verdict("works" if right else "WRONG", f"loss {continued:.4f} at the second step, {found:.4f} after export")


SPECIAL: dict[str, Callable[[Bench, Run], Verdict]] = {
    "FSDP by torch's fully_shard, 2 processes": sharded,
    "tokenized_path, then changed CSV files": tokenised,
    "tokenized_path made without the plugin": tokenised_without_plugin,
    "resize_vocab, add_tokens, export": resized,
}
