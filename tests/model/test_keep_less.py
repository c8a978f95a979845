"""What is computed again in the backward pass: the same to the bit, and less is kept."""

import copy
from typing import Any

import pytest
import torch
from helpers_model import FAMILIES, build, gradients, inputs, labels_for, record
from torch.autograd.graph import saved_tensors_hooks

from llamafactory_ext.model.keep_less import keep_less


def batch() -> dict[str, torch.Tensor]:
    records = inputs(record(1, 40, 17), record(2, 9), side="right")
    return records | {"labels": labels_for(records)}


def run(model: Any, dtype: torch.dtype | None) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss, gradients, and the bytes that are saved for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = model(**batch()).loss
    size = sum(kept.values())
    loss.backward()
    return loss.detach(), gradients(model), size


@pytest.mark.parametrize("trains", ["all", "attention", "norms"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_to_the_bit(family: str, half: bool, trains: str) -> None:
    plain = build(family, attention="sdpa").train()
    if trains != "all":
        plain.requires_grad_(False)
        for name, weight in plain.named_parameters():
            weight.requires_grad_("q_proj" in name if trains == "attention" else "norm" in name)
    plain = plain.bfloat16() if half else plain
    lean = copy.deepcopy(plain)
    assert keep_less(lean) == 2
    lean = copy.deepcopy(lean)  # as PEFT copies what it saves whole: nothing must lead back to the original
    found, ours, small = run(lean, torch.bfloat16 if half else None)
    expected, theirs, large = run(plain, torch.bfloat16 if half else None)
    assert torch.equal(found, expected)
    assert ours.keys() == theirs.keys() and len(ours) >= 2
    for name, gradient in ours.items():
        assert torch.equal(gradient, theirs[name]), name
    assert small < large


def test_other_kernels_are_left_alone() -> None:
    model = build("qwen2")
    model.model.layers[0].mlp.__class__ = type("LigerSwiGLUMLP", (type(model.model.layers[0].mlp),), {})
    keep_less(model)
    assert "forward" not in vars(model.model.layers[0].mlp) and "forward" in vars(model.model.layers[1].mlp)
