"""The loss in pieces under ZeRO-3: real DeepSpeed, real torchrun, two gloo processes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, path_of_environment


pytest.importorskip("deepspeed")

SCRIPT = """
import json, os, sys
import deepspeed, torch
from helpers_model import inputs, labels_for, record
from llamafactory_ext.model import Qwen2TSForCausalLM, loss, read_config
from transformers.integrations import HfDeepSpeedConfig

folder, zero3, trains_head = sys.argv[1], sys.argv[2] == "3", sys.argv[3] == "True"
rank = int(os.environ["RANK"]) if zero3 else int(sys.argv[4])
loss.labels_at_once = lambda vocab_size: 4
batch = inputs(record(rank, 40, text=[3, 40][rank]))
labels = labels_for(batch) if rank else torch.full_like(batch["input_ids"], -100)
if zero3:
    deepspeed.init_distributed("gloo")
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    settings |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    kept = HfDeepSpeedConfig(settings)
model = Qwen2TSForCausalLM.from_pretrained(folder, config=read_config(folder)).train()
model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
model.enable_input_require_grads()
model.lm_head.requires_grad_(trains_head)
weight = model.model.layers[0].self_attn.q_proj.weight
if zero3:
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.0)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
    found = engine(**batch, labels=labels).loss
    engine.backward(found)
    gradient = deepspeed.utils.safe_get_full_grad(weight)  # the mean of both processes'
else:
    found = model(**batch, labels=labels).loss
    found.backward()
    gradient = weight.grad
print(json.dumps({"rank": rank, "loss": float(found.detach()), "gradient": float(gradient.double().pow(2).sum())}))
if zero3:  # a process that leaves while the other one still listens to it can abort that one
    sys.stdout.flush()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


def run(command: list[str], folder: Path) -> list[dict[str, float]]:
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "tools"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "PATH": path_of_environment(), "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "MASTER_PORT": "29641"}
    for _ in range(2):
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        # As `conftest.run_cli`: gloo may abort a process that has told its result and is leaving. That alone, once.
        if "exitcode  : -6" not in done.stderr or len(re.findall(r"\{[^{}]*\}", done.stdout)) < 2:
            break
    assert done.returncode == 0, done.stderr[-6000:]
    printed = re.findall(r"\{[^{}]*\}", done.stdout)  # both processes may print onto one line
    return sorted(map(json.loads, printed), key=lambda row: row["rank"])


@pytest.mark.parametrize("trains_head", [False, True])
def test_processes_with_unequally_many_labels_stay_in_step(trains_head: bool, tmp_path: Path) -> None:
    """One has no label and the other one 21 pieces of them: the head's weights are gathered by both together."""
    from helpers_model import build

    build("qwen2").save_pretrained(tmp_path / "model")
    script = tmp_path / "step.py"
    script.write_text(SCRIPT)
    arguments = [str(script), str(tmp_path / "model")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29641"]
    found = run([*torchrun, *arguments, "3", str(trains_head)], tmp_path)
    plain = [run([sys.executable, *arguments, "0", "True", rank], tmp_path)[0] for rank in ("0", "1")]
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in plain], rel=1e-5)
    assert found[0]["loss"] == 0.0
    expected = plain[1]["gradient"] / 4  # half of it, since the other process has none, squared
    assert [row["gradient"] for row in found] == pytest.approx([expected, expected], rel=1e-3)
