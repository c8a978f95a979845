"""A checkpointed layer's second run leaves its last product out: same gradients to the bit, fewer multiplications."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_model import FAMILIES, build, gradients, inputs, labels_for, record
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from llamafactory_ext.model import read_config
from llamafactory_ext.model.float16 import guard_last_projections, upcast_norms
from llamafactory_ext.model.keep_less import keep_less
from llamafactory_ext.model.last_product import _Skipped, skip_last_products


def batch() -> dict[str, torch.Tensor]:
    records = inputs(record(1, 40, 17), record(2, 9), side="right")
    return records | {"labels": labels_for(records)}


def prepared(model: Any, targets: tuple[str, ...] = ("q_proj",), reentrant: bool = True) -> Any:
    """With LoRA and checkpoints, as LLaMA-Factory sets them up."""
    torch.manual_seed(0)
    encoder = [f"ts_encoder.mlp.{number}" for number in (0, 2, 4)]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=[*targets, *encoder], init_lora_weights=False))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    return adapted.train()


def step(model: Any, dtype: torch.dtype | None = None) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the second of two steps, with other weights of the adapter than the first."""
    for number in range(2):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = model(**batch()).loss
        model.zero_grad()
        loss.backward()
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        for weight in trained if number == 0 else []:
            weight.data -= weight.grad
    return float(loss.detach()), gradients(model)


def multiplications(model: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        model(**batch()).loss.backward()
    model.zero_grad()
    return int(counter.get_total_flops()) // 2


def check(plain: Any, lean: Any, dtype: torch.dtype | None, layers: int) -> None:
    assert skip_last_products(lean.get_base_model()) == layers
    (found, ours), (expected, theirs) = step(lean, dtype), step(plain, dtype)
    assert found == expected
    assert ours.keys() == theirs.keys() and len(ours) >= 10
    for name, gradient in ours.items():
        assert torch.equal(gradient, theirs[name]), name


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_gradients_for_fewer_multiplications(family: str, dtype: torch.dtype | None) -> None:
    plain = prepared(build(family, attention="sdpa"))
    lean = copy.deepcopy(plain)
    keep_less(lean.get_base_model())
    before = multiplications(lean)
    check(plain, lean, dtype, 2)
    given, config = batch(), lean.config
    read = int((given["labels"][:, 1:] != -100).sum())  # all that the last layer's MLP sees
    rows = given["input_ids"].numel() + read
    assert before - multiplications(lean) == rows * config.intermediate_size * config.hidden_size


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_4_bit(family: str, guarded: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    build(family).save_pretrained(tmp_path)
    models = []
    for _ in range(2):
        quantised = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float16 if guarded else torch.float32,
        )  # fmt: skip
        config = read_config(str(tmp_path))
        model = AutoModelForCausalLM.from_pretrained(tmp_path, config=config, quantization_config=quantised)
        for module in model.modules():
            module.support_avx512bf16_for_cpu = False
        if guarded:
            upcast_norms(model)
            guard_last_projections(model)
        models.append(prepared(model))
    check(*models, None, 2)


def test_a_layer_in_4_bit_multiplies_in_its_own_type() -> None:
    """Which differs from its input's behind a norm in float32; float32 would be another gradient."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    torch.manual_seed(0)
    linear = Linear4bit(64, 32, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    linear.weight = Params4bit(torch.randn(32, 64), requires_grad=False, quant_type="nf4", module=linear).to("cpu")
    linear.support_avx512bf16_for_cpu = False
    given, slope = torch.randn(3, 64, requires_grad=True), torch.randn(3, 32)
    (expected,) = torch.autograd.grad(linear(given), given, slope)
    (found,) = torch.autograd.grad(_Skipped.apply(given, linear), given, slope)
    assert torch.equal(found, expected)


def test_layers_that_need_it_keep_it() -> None:
    """With an adapter, trained, or without a checkpoint; and answers are what they were."""
    assert skip_last_products(prepared(build("qwen2"), ("down_proj",)).get_base_model()) == 0
    assert skip_last_products(build("qwen2").train()) == 0
    model = build("qwen2").train()
    model.gradient_checkpointing_enable()
    assert skip_last_products(model) == 0
    plain = prepared(build("qwen2"))
    lean = copy.deepcopy(plain)
    for one in (plain, lean):
        one.get_base_model().model.layers[-1].gradient_checkpointing = False
    check(plain, lean, None, 1)
    answers = [one.eval()(**batch()).logits for one in (plain, lean)]
    assert torch.equal(*answers)


def test_whoever_takes_checkpoints_away_afterwards_gets_the_same() -> None:
    plain = prepared(build("qwen2"))
    lean = copy.deepcopy(plain)
    assert skip_last_products(lean.get_base_model()) == 2
    for one in (plain, lean):
        one.get_base_model().gradient_checkpointing_disable()
    (found, ours), (expected, theirs) = step(lean), step(plain)
    assert found == expected
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
