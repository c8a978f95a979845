"""Float16 with activations as large as Qwen2's are known to get: what overflows, and what is done about it.

bitsandbytes' layers are real; float16 on a CPU is autocast's, which the Trainer does not offer here.
"""

import copy
from typing import Any

import bitsandbytes
import pytest
import torch
from helpers_model import build, inputs, labels_for, record
from torch import nn

from llamafactory_ext.model.float16 import guard_last_projections, match_half_precision, upcast_norms


SCALE = 1024.0  # of the loss, as GradScaler has it


def large_keys(model: Any) -> None:
    """Biases of the keys in the hundreds, as Qwen2 has them: products of 4,000 * 300."""
    for layer in model.model.layers:
        layer.self_attn.k_proj.bias.data.fill_(300.0)
        layer.self_attn.q_proj.bias.data.fill_(20.0)


def large_channel(model: Any) -> None:
    """One channel of the hidden states gets past 65504, through one of the MLP's."""
    for layer in model.model.layers:
        mlp = layer.mlp
        mlp.gate_proj.weight.data[5], mlp.up_proj.weight.data[5] = 6.0, 6.0
        mlp.down_proj.weight.data[3] = 0.0
        mlp.down_proj.weight.data[3, 5] = 400.0


def quantised(model: Any, upcast: bool, compute: torch.dtype = torch.float16) -> Any:
    """The model as LLaMA-Factory's QLoRA has it: 4-bit decoder layers, the rest float16, norms as told.

    With another type to compute in: the same weights, in that type.
    """
    model.half().to(compute).requires_grad_(False)
    for module in list(model.model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                layer = bitsandbytes.nn.Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=child.bias is not None,
                    compute_dtype=compute,
                    quant_type="nf4",
                )
                layer.weight = bitsandbytes.nn.Params4bit(child.weight.data, requires_grad=False, quant_type="nf4")
                layer.bias = child.bias
                layer.support_avx512bf16_for_cpu = False  # its kernel computes in another type, if the CPU has it
                setattr(module, name, layer.to("cpu"))
    for name, weight in model.named_parameters():
        if upcast and "norm" in name:
            weight.data = weight.data.float()
    return model


def run(model: Any) -> tuple[float, torch.Tensor, float]:
    """Loss, gradient of the embeddings, largest hidden state of one record under float16 autocast."""
    batch = inputs(record(1, 40, 17))
    labels, device = labels_for(batch), "cpu"
    half = any(weight.dtype == torch.float16 for weight in model.parameters())
    with torch.autocast(device, dtype=torch.float16, enabled=half):
        embeds = model._embed(batch["input_ids"], batch["timeseries"]).detach().requires_grad_()
        rest = {"attention_mask": batch["attention_mask"], "labels": labels, "output_hidden_states": True}
        outputs = model(inputs_embeds=embeds, **rest)
    (outputs.loss * SCALE).backward()
    largest = max(float(hidden.detach().abs().max()) for hidden in outputs.hidden_states)
    return float(outputs.loss.detach()), embeds.grad.float() / SCALE, largest


def test_scores_overflow_where_they_are_written_out() -> None:
    models = {kind: build("qwen2", attention=kind) for kind in ("eager", "sdpa")}
    for model in models.values():
        large_keys(model)
    expected, _, _ = run(quantised(copy.deepcopy(models["sdpa"]), False, torch.float32))
    found = {kind: run(quantised(model, upcast=False)) for kind, model in models.items()}
    assert found["eager"][0] != found["eager"][0]  # NaN
    assert found["sdpa"][0] == pytest.approx(expected, rel=0.01)
    assert bool(found["sdpa"][1].isfinite().all())


@pytest.mark.parametrize("upcast", [False, True])
def test_last_projection_overflows_unless_it_is_guarded(upcast: bool) -> None:
    exact = build("qwen2", attention="sdpa")
    large_channel(exact)
    expected, gradient, largest = run(quantised(exact, upcast, torch.float32))
    assert largest > 65504

    plain = build("qwen2", attention="sdpa")
    large_channel(plain)
    loss, _, _ = run(quantised(plain, upcast))
    assert loss != loss  # float32 between the layers alone does not help

    guarded = build("qwen2", attention="sdpa")
    large_channel(guarded)
    quantised(guarded, upcast)
    assert guard_last_projections(guarded) == 2
    loss, found, _ = run(guarded)
    assert loss == pytest.approx(expected, rel=0.01)
    cosine = nn.functional.cosine_similarity(found.flatten(), gradient.flatten(), dim=0)
    assert float(cosine) > 0.99


def test_guard_changes_ordinary_activations_by_rounding_only() -> None:
    plain, guarded = (quantised(build("qwen2", attention="sdpa"), upcast=True) for _ in range(2))
    guard_last_projections(guarded)
    (loss, gradient, _), (expected, reference, _) = run(guarded), run(plain)
    assert loss == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(gradient, reference, rtol=0.05, atol=0.02 * float(reference.abs().max()))


def test_training_step_tells_what_to_change() -> None:
    model = build("qwen2", attention="sdpa")
    large_channel(model)
    quantised(model, upcast=False).train()
    batch = inputs(record(1, 40, 17))
    with (
        torch.autocast("cpu", dtype=torch.float16),
        pytest.raises(
            FloatingPointError, match=r"in torch.float16\. Stopped: float16 ends at 65504: set `bf16: true`"
        ),
    ):
        model(**batch, labels=labels_for(batch))


@pytest.mark.parametrize("training", [True, False])
def test_a_step_in_4_bit_without_a_kept_label(training: bool) -> None:
    """No quantised projection is given a batch of no rows: some kernels end the process (bitsandbytes 0.50, CPU)."""
    model = quantised(build("qwen2", attention="sdpa"), upcast=False).train(training)
    model.ts_encoder.requires_grad_(True)
    model.returns_logits = False
    rows: list[int] = []
    for layer in model.modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            layer.register_forward_pre_hook(lambda layer, inputs: rows.append(inputs[0].numel() // layer.in_features))
    batch = inputs(record(1, 40, 17))
    with torch.autocast("cpu", dtype=torch.float16):
        loss = model(**batch, labels=torch.full_like(batch["input_ids"], -100)).loss
    assert len(rows) == 2 * 7 and rows[-3:] == [1, 1, 1] and set(rows[:-3]) == {batch["input_ids"].numel()}
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert not any(bool(weight.grad.any()) for weight in model.ts_encoder.parameters())


@torch.no_grad()
def answered(model: Any) -> torch.Tensor:
    """Logits of the next token, and that answers come of them; without autocast, as a prediction runs."""
    batch = inputs(record(1, 40, 17), record(2, 9))
    output = model.eval().generate(**batch, max_new_tokens=3, do_sample=False, use_cache=True)
    assert output.shape[1] == batch["input_ids"].shape[1] + 3
    logits: torch.Tensor = model(**batch, use_cache=True).logits[:, -1].float()
    return logits


def test_answers_where_it_overflows() -> None:
    """They would be noise; they are refused, and are right where the recipe guards the training in the same way."""
    exact, plain, guarded = (build("qwen2", attention="sdpa") for _ in range(3))
    for model in (exact, plain, guarded):
        large_channel(model)
    expected = answered(quantised(exact, False, torch.float32))
    with pytest.raises(FloatingPointError, match=r"next token's logits are not finite.*set `infer_dtype: bfloat16`"):
        answered(quantised(plain, upcast=False))
    upcast_norms(quantised(guarded, upcast=False))
    guard_last_projections(guarded)
    assert float(nn.functional.cosine_similarity(answered(guarded), expected).min()) > 0.999
    assert guarded.lm_head.weight.dtype == torch.float16 and guarded.model.norm.weight.dtype == torch.float32


def test_norms_alone_are_upcast() -> None:
    upcast_norms(model := build("qwen2").half())
    found = {name for name, weight in model.named_parameters() if weight.dtype == torch.float32}
    assert found == {name for name, _ in model.named_parameters() if name.endswith("norm.weight")} and len(found) == 5


@pytest.mark.parametrize("compute", [torch.float16, torch.bfloat16])
def test_frozen_weights_take_the_compute_type(compute: torch.dtype) -> None:
    other = {torch.float16: torch.bfloat16, torch.bfloat16: torch.float16}[compute]
    model = build("qwen2").to(other)
    model.model.norm.float()
    before = model.lm_head.weight.float()
    count = sum(1 for _ in model.parameters())
    assert match_half_precision(model, compute) == count - 1
    assert model.lm_head.weight.dtype == compute and model.model.norm.weight.dtype == torch.float32
    torch.testing.assert_close(model.lm_head.weight.float(), before, rtol=0.01, atol=1e-6)
    assert match_half_precision(model, compute) == 0
    assert match_half_precision(model, torch.float32) == 0
