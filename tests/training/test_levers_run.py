"""Memory levers through LLaMA-Factory: applied where they belong, refused elsewhere, and the run stays the same."""

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, log_history, run_cli
from helpers_model import build, gradients, inputs, labels_for, record

from llamafactory_ext.model.host_embedding import HostEmbedding
from llamafactory_ext.model.streamed_head import StreamedHead


LEVERS = ("embedding_on_cpu=true", "offload_checkpoints=true")
Adapt = Callable[..., Any]


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    """Puts a model through LLaMA-Factory's loader as it is right after loading; takes recipe keys."""

    def run(model: Any, trains: bool = True, compute: torch.dtype = torch.float32, **keys: Any) -> Any:
        from llamafactory.hparams import get_train_args
        from llamafactory.model import loader

        recipe = {"model_name_or_path": str(tmp_path), "dataset": "none", "output_dir": str(tmp_path / "out")}
        recipe |= {"stage": "sft", "do_train": True, "template": "chatts", "report_to": "none", "use_cpu": True}
        model_args, _, _, finetuning_args, _ = get_train_args(recipe | keys)
        model_args.compute_dtype = compute  # a CPU has no `fp16`
        return loader.init_adapter(model.config, model, model_args, finetuning_args, trains)

    return run


def test_nothing_is_changed_unless_asked_for(adapt: Adapt) -> None:
    model = adapt(build("qwen2"), lora_target="q_proj")
    assert not isinstance(model.get_input_embeddings(), HostEmbedding)
    assert model.base_model.model.offload_checkpoints is False


@pytest.mark.parametrize("trains", [True, False])
def test_embedding_is_moved(adapt: Adapt, trains: bool, log: pytest.LogCaptureFixture) -> None:
    model = adapt(build("qwen2"), trains, lora_target="q_proj", embedding_on_cpu=True)
    assert isinstance(model.get_input_embeddings(), HostEmbedding)
    if trains:
        (name,) = model._ddp_params_and_buffers_to_ignore
        assert model.get_parameter(name) is model.get_input_embeddings().weight
        assert not model.get_parameter(name).requires_grad
    assert "The embedding table stays in CPU memory: 0.1 MiB less" in log.text


@pytest.mark.parametrize("kind", ["full", "freeze"])
def test_embedding_that_is_trained_stops_the_run(adapt: Adapt, kind: str) -> None:
    keys = {"finetuning_type": kind, "freeze_extra_modules": "embed_tokens"} if kind == "freeze" else {}
    with pytest.raises(ValueError, match="`embedding_on_cpu` needs a frozen embedding, but this run trains it"):
        adapt(build("qwen2"), embedding_on_cpu=True, **{"finetuning_type": kind, **keys})


def test_embedding_and_deepspeed(adapt: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory_ext.training import levers

    monkeypatch.setattr(levers, "deepspeed_config", lambda: {"zero_optimization": {"stage": 2}})
    with pytest.raises(ValueError, match="`embedding_on_cpu` does not go with DeepSpeed or FSDP"):
        adapt(build("qwen2"), embedding_on_cpu=True)


@pytest.mark.parametrize("keys", [{"disable_gradient_checkpointing": True}, {"use_reentrant_gc": False}])
def test_offloading_what_is_not_there(adapt: Adapt, keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`offload_checkpoints` needs gradient checkpointing as it is by default"):
        adapt(build("qwen2"), offload_checkpoints=True, **keys)


def test_checkpoints_are_moved(adapt: Adapt, log: pytest.LogCaptureFixture) -> None:
    model = adapt(build("qwen2"), lora_target="q_proj", offload_checkpoints=True)
    assert model.base_model.model.offload_checkpoints is True
    assert "checkpoints wait for the backward pass in CPU memory" in log.text
    assert adapt(build("qwen2"), trains=False, offload_checkpoints=True).offload_checkpoints is False


def count_runs(layers: Any) -> Counter[int]:
    """Returns how often each layer has run, kept up to date."""
    runs: Counter[int] = Counter()
    for number, layer in enumerate(layers):
        layer.self_attn.register_forward_pre_hook(lambda *_, number=number: runs.update([number]))
    return runs


def test_last_layers_are_computed_once(adapt: Adapt, log: pytest.LogCaptureFixture) -> None:
    """As often as each layer runs in a step, and the loss and gradients of a run with all checkpoints."""
    batch = inputs(record(1, 40, 17), record(2, 9), side="right")
    batch |= {"labels": labels_for(batch)}
    found = {}
    for count in (0, 1, 2):
        torch.manual_seed(0)
        model = build("qwen2", num_hidden_layers=3)
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        model = adapt(model, lora_target="q_proj", layers_without_checkpoints=count).train()
        runs = count_runs(model.base_model.model.model.layers)
        loss = model(**batch).loss
        loss.backward()
        assert [runs[number] for number in range(3)] == [2] * (3 - count) + [1] * count
        assert (f"The last {count} of 3 layers" in log.text) == (count > 0)
        found[count] = (float(loss.detach()), gradients(model))
    for loss, slopes in found.values():
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        for name, slope in slopes.items():
            torch.testing.assert_close(slope, found[0][1][name], msg=name)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"layers_without_checkpoints": 2}, "is 2; expected less than the model's 2 layers"),
        ({"layers_without_checkpoints": 1, "disable_gradient_checkpointing": True}, "is 1; expected less than"),
    ],
)
def test_layers_without_checkpoints_that_can_not_be(adapt: Adapt, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"`layers_without_checkpoints` {says}"):
        adapt(build("qwen2"), **keys)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"stream_layers": 3}, "`stream_layers` is 3; the model has 2 layers"),
        ({"stream_layers": 1}, "`stream_layers` needs weights in 4 bit"),
        ({"stream_layers": 1, "disable_gradient_checkpointing": True}, "`stream_layers` needs gradient checkpointing"),
    ],
)
def test_streams_that_can_not_be(adapt: Adapt, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        adapt(build("qwen2"), **keys)


def test_head_is_streamed(adapt: Adapt, log: pytest.LogCaptureFixture) -> None:
    model = adapt(build("qwen2"), lora_target="q_proj", stream_head=True)
    assert isinstance(model.get_output_embeddings(), StreamedHead)
    assert "lm_head.weight" in " ".join(model._ddp_params_and_buffers_to_ignore)
    assert "The head comes from CPU memory piece by piece: 0.1 MiB less" in log.text


@pytest.mark.parametrize(
    ("keys", "tied", "expected"),
    [
        ({}, False, ()),
        ({"embedding_on_cpu": True}, False, ("model.embed_tokens",)),
        ({"embedding_on_cpu": True, "stream_head": True}, False, ("model.embed_tokens", "lm_head")),
        ({"embedding_on_cpu": True}, True, ()),
    ],
)
def test_what_is_never_read_onto_the_card(
    tmp_path: Path, keys: dict[str, Any], tied: bool, expected: tuple[str, ...]
) -> None:
    """As LLaMA-Factory's loader asks for the config; other arguments than the run's, a reference model's, get none."""
    from llamafactory.hparams import get_train_args
    from llamafactory.model import loader

    build("qwen2", tie_word_embeddings=tied).save_pretrained(tmp_path)
    recipe = {"model_name_or_path": str(tmp_path), "dataset": "none", "output_dir": str(tmp_path / "out")}
    recipe |= {"stage": "sft", "do_train": True, "template": "chatts", "report_to": "none", "use_cpu": True}
    model_args = get_train_args(recipe | keys)[0]
    assert loader.load_config(model_args).on_cpu == expected
    assert loader.load_config(copy.copy(model_args)).on_cpu == ()


@pytest.mark.parametrize(
    ("keys", "expected"), [({}, False), ({"compute_accuracy": True}, True), ({"stage": "dpo"}, None)]
)
def test_who_gets_whole_logits(adapt: Adapt, keys: dict[str, Any], expected: bool | None) -> None:
    assert adapt(build("qwen2"), lora_target="q_proj", **keys).base_model.model.returns_logits is expected


@pytest.mark.parametrize(
    ("quantised", "upcast", "compute", "expected"),
    [
        (True, True, torch.float16, True),
        (False, True, torch.float16, False),
        (True, False, torch.float16, False),
        (True, True, torch.bfloat16, False),
    ],
)
def test_projections_are_guarded_in_safe_float16_only(
    adapt: Adapt, quantised: bool, upcast: bool, compute: torch.dtype, expected: bool
) -> None:
    model = build("qwen2")
    if quantised:
        model.quantization_method = "bitsandbytes"
    adapt(model, compute=compute, lora_target="q_proj", upcast_layernorm=upcast)
    assert bool(model.model.layers[0].mlp.down_proj._forward_hooks) is expected


def test_frozen_weights_in_the_other_half_precision(adapt: Adapt) -> None:
    model = build("qwen2").bfloat16()
    adapt(model, compute=torch.float16, lora_target="q_proj")
    assert model.lm_head.weight.dtype == torch.float16
    model = build("qwen2").bfloat16()
    adapt(model, trains=False, compute=torch.float16)
    assert model.lm_head.weight.dtype == torch.float16  # prediction computes in its own type, too


@pytest.mark.parametrize("key", ["embedding_on_cpu", "offload_checkpoints"])
def test_levers_are_on_or_off(adapt: Adapt, key: str) -> None:
    with pytest.raises(ValueError, match=f"`{key}` is 'auto'; expected `true` or `false`"):
        adapt(build("qwen2"), **{key: "auto"})


def train(demo: Path, cwd: Path, output: str, *keys: str, **environment: str) -> list[dict[str, Any]]:
    fixed = [f"model_name_or_path={demo / 'model'}", "dataset=gdsh_demo", f"dataset_dir={demo / 'data'}"]
    fixed += ["max_steps=3", "fp16=false", "gradient_accumulation_steps=2", "warmup_ratio=0", f"output_dir={output}"]
    recipe = str(ROOT / "yaml" / "2080ti_qlora_safe.yaml")
    run = run_cli("train", recipe, *fixed, *keys, cwd=cwd, **environment)
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]
    return log_history(cwd / output)


def test_two_processes_with_every_lever(demo: Path, tmp_path: Path) -> None:
    """The same losses, gradient norms and validation loss as without; the first step of the optimizer, too."""
    processes = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}
    common = ("val_size=0.2", "do_eval=true", "eval_strategy=steps", "eval_steps=3", "per_device_train_batch_size=2")
    off = [lever.replace("true", "false") for lever in LEVERS]
    plain = train(demo, tmp_path, "plain", *common, *off, **processes)
    every = train(demo, tmp_path, "every", *common, *LEVERS, **processes)
    compared = ("loss", "grad_norm", "eval_loss")
    rows = [[{key: entry[key] for key in compared if key in entry} for entry in run] for run in (plain, every)]
    assert len(rows[0]) == len(rows[1]) and any("eval_loss" in row for row in rows[1])
    for one, other in zip(*rows, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    # One that excludes another: in place of it.
    last = ("offload_checkpoints=false", "layers_without_checkpoints=1", "optim=paged_adamw_8bit")
    paged = train(demo, tmp_path, "paged", *common, LEVERS[0], *last, "compute_accuracy=true", **processes)
    assert paged[0]["loss"] == pytest.approx(every[0]["loss"], rel=1e-4)  # its moments are in 8 bit from then on
    assert 0 <= next(entry["eval_accuracy"] for entry in paged if "eval_accuracy" in entry) <= 1
