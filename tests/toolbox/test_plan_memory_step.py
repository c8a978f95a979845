"""What a step keeps and takes, tensor by tensor, for a decoder small enough to add up by hand."""

from dataclasses import replace
from typing import Any

import pytest

from llamafactory_ext.model import streamed_head
from llamafactory_ext.toolbox.plan import memory_step
from llamafactory_ext.toolbox.plan.memory import Load, Settings, at_worst, on_device
from llamafactory_ext.toolbox.plan.memory_step import (
    forward_bytes,
    input_bytes,
    kept_bytes,
    layer_bytes,
    loss_bytes,
    saved_bytes,
)
from llamafactory_ext.toolbox.plan.shape import Shape


SLIM = Shape(hidden_size=1000, layers=4, heads=10, kv_heads=2, head_dim=60, intermediate_size=3000, vocab_size=50_000)
QLORA = Settings(quantization_bit=4)  # rank 8 on query, key and value; float16
SAFE: dict[str, Any] = {"upcast_layernorm": True}
LORA: dict[str, Any] = {"quantization_bit": None}
FULL: dict[str, Any] = {"quantization_bit": None, "finetuning_type": "full"}
FREEZE: dict[str, Any] = {"quantization_bit": None, "finetuning_type": "freeze"}
GATHERED: dict[str, Any] = {"quantization_bit": None, "zero_stage": 2}
CPU: dict[str, Any] = {
    "device": "cpu", "quantization_bit": None, "mixed_precision": False, "weight_dtype": "float32",
}  # fmt: skip
SEVEN = Load(tokens=7, labels=3, patches=5)

ATTENTION = 4 * 600 * 2 + 10 * 4
"""Query, key, value, both repeated to 10 heads of 60, and output; the logarithms of each head's sums."""
GATE_UP = 2 * 3000 * 2
INNER = 3 * 8 * 2
"""What the LoRAs of query, key and value hand on."""


@pytest.mark.parametrize(
    ("changes", "each"),
    [
        # The second norm's input; that of query, key and value, once; the first norm's is the checkpoint.
        ({}, 2000 + 2000 + INNER + GATE_UP + ATTENTION),
        # In float32 a norm keeps a number beside; autocast casts an input for each of the three.
        (SAFE, 4000 + 2 * 4 + 3 * 2000 + INNER + 2 * GATE_UP + ATTENTION),
        # PEFT casts for each, too, where no bitsandbytes is.
        (LORA, 2000 + 3 * 2000 + INNER + GATE_UP + ATTENTION),
        ({**LORA, "mixed_precision": False}, 2000 + 2000 + INNER + GATE_UP + ATTENTION),
        # Where DeepSpeed gathers weights: both norms' inputs in float32, gate before and after its activation, up.
        (GATHERED, 2 * (4000 + 4) + 3 * 2000 + INNER + 3 * 3000 * 2 + ATTENTION),
        ({**GATHERED, "weight_dtype": "float32"}, 4000 + 2 * 4 + 3 * 2000 + INNER + 3 * 3000 * 2 + ATTENTION),
        # All inputs, in half for each layer: of query, key, value; gate, up; down. That of output is attention's.
        (FULL, 4000 + 2 * 4 + 5 * 2000 + 3000 * 2 + GATE_UP + ATTENTION),
        # What freeze tuning trains, alike, but in half precision between the layers; without layers nothing is.
        *(
            ({**FREEZE, "trainable_layers": layers}, 2000 + 5 * 2000 + 3000 * 2 + GATE_UP + ATTENTION)
            for layers in (1, 2)
        ),
        (FREEZE, 2000 + GATE_UP + ATTENTION),
        ({"compute_dtype": "bfloat16", "weight_dtype": "bfloat16"}, 2000 + 2000 + INNER + GATE_UP + ATTENTION),
        ({"lora_target": ("o_proj",)}, 2000 + 8 * 2 + GATE_UP + ATTENTION),
        ({"lora_target": ("up_proj", "down_proj")}, 2000 + 2000 + 3000 * 2 + 2 * 8 * 2 + GATE_UP + ATTENTION),
        ({"lora_target": ()}, 2000 + GATE_UP + ATTENTION),
        # In float32; keys and values of two heads, or repeated where scores are written out: 10 heads, 7 places.
        (CPU, 4000 + 8 + 4000 + 2 * INNER + 2 * GATE_UP + (2 * 600 + 2 * 120) * 4 + 10 * 4),
        (
            {**CPU, "attention": "eager"},
            4000 + 8 + 4000 + 2 * INNER + 2 * GATE_UP + 4 * 600 * 4 + 10 * 4 + 10 * 7 * (4 + 4),
        ),
    ],
)
def test_what_a_layer_saves_tensor_by_tensor(changes: dict[str, Any], each: int) -> None:
    assert saved_bytes(SLIM, replace(QLORA, **changes), SEVEN) == 7 * each


@pytest.mark.parametrize(
    ("changes", "row"),
    [({}, 60 * 2), (SAFE, 60 * 4 + 4), (GATHERED, 60 * 4 + 4)],
)
def test_normalised_queries_and_keys_keep_their_inputs(changes: dict[str, Any], row: int) -> None:
    """Ten heads of queries, two of keys; in float32 with a number beside."""
    chosen, qwen3 = replace(QLORA, **changes), replace(SLIM, qk_norm=True, attention_bias=False)
    assert saved_bytes(qwen3, chosen, SEVEN) - saved_bytes(SLIM, chosen, SEVEN) == 7 * 12 * row


@pytest.mark.parametrize(
    ("changes", "each"),
    [
        ({}, 4 * 2),
        (SAFE, 2 + 3 * 4),  # the first layer's comes from an embedding in half precision
        ({**SAFE, "weight_dtype": "float32"}, 4 * 4),
        ({"offload_checkpoints": True}, 2),
        ({"offload_checkpoints": True, **SAFE}, 4),
        ({"offload_checkpoints": True, "checkpointing": False}, 4 * 2),
        ({"offload_checkpoints": True, **CPU}, 5 * 4),
        (LORA, 5 * 2),  # the embedding's output, which PEFT wants a gradient of
        ({**LORA, "checkpointing": False}, 4 * 2),
        (FULL, 4 * 4),
    ],
)
def test_inputs_of_the_layers_wait(changes: dict[str, Any], each: int) -> None:
    assert input_bytes(SLIM, replace(QLORA, **changes), SEVEN) == 7 * 1000 * each


@pytest.mark.parametrize(
    ("changes", "unread"),
    [
        ({}, GATE_UP),
        (SAFE, 2 * GATE_UP),
        (GATHERED, 3 * 3000 * 2),
        ({"lora_target": ("up_proj", "down_proj")}, GATE_UP + 2000 + 3000 * 2 + 2 * 8 * 2),
    ],
)
def test_the_last_mlp_keeps_what_labels_follow(changes: dict[str, Any], unread: int) -> None:
    """Of seven tokens three."""
    chosen = replace(QLORA, **changes)
    one = saved_bytes(SLIM, chosen, SEVEN)
    for layers, count in ((0, 0), (1, 1), (3, 3), (4, 4), (5, 4)):
        found = kept_bytes(SLIM, replace(chosen, layers_without_checkpoints=layers), SEVEN)
        assert found == count * one - (4 * unread if count else 0)
    more = replace(SEVEN, labels=9)
    assert kept_bytes(SLIM, replace(chosen, checkpointing=False), more) == 4 * saved_bytes(SLIM, chosen, more)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_scores_and_mask_of_a_batch(rows: int, attention: str) -> None:
    """Places of the longest row count for each; the mask is written out for more than one."""
    load = Load(tokens=7, labels=3, patches=0, rows=rows)
    length = {1: 7, 2: 4, 3: 3}[rows]
    scores = 10 * 7 * length * (4 + 2) if attention == "eager" else 0
    mask = 7 * length * 2 if rows > 1 else 0
    found = saved_bytes(SLIM, replace(QLORA, attention=attention), load)
    assert found - saved_bytes(SLIM, QLORA, SEVEN) == mask + scores


LORA_WEIGHTS = 4 * 8 * (1600 + 2 * 1120) + 8 * (136 + 1000 + 4 * 2000)
"""Of four layers' query, key and value, and of the encoder: 8 points and 8 places of 16 numbers, five layers."""
WEIGHT = 1000 * 3000 * 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Input of `up_proj`, gate and up; a weight written out; what autocast made of the adapter.
        ({}, 7 * (2000 + GATE_UP) + WEIGHT + 2 * LORA_WEIGHTS),
        (SAFE, 7 * (4000 + 2 * GATE_UP) + WEIGHT + 2 * LORA_WEIGHTS),
        ({"layers_without_checkpoints": 1}, WEIGHT + 2 * LORA_WEIGHTS),
        (LORA, 7 * (2000 + GATE_UP) + 2 * LORA_WEIGHTS),
        ({**LORA, "weight_dtype": "float32"}, 7 * (4000 + GATE_UP) + WEIGHT + 2 * LORA_WEIGHTS),
        (CPU, 7 * (4000 + 2 * GATE_UP)),
        (FULL, 7 * (4000 + GATE_UP)),
    ],
)
def test_the_forward_pass_at_its_peak(changes: dict[str, Any], expected: int) -> None:
    assert forward_bytes(SLIM, replace(QLORA, **changes), SEVEN) == expected


def test_the_loss_of_large_and_of_streamed_heads() -> None:
    """Two pieces of the head's weight and, in float32, three times the logits by one; five rows a label, beside."""
    assert (
        memory_step._PIECE == streamed_head._PIECE and memory_step._LOGITS_OF_A_PIECE == streamed_head._LOGITS_AT_ONCE
    )
    chosen, norm = replace(QLORA, stream_head=True), 2 * 7 * 2000
    rows = 33_554  # 64 MiB of 2,000 bytes
    for labels, logits in ((3, 3 * rows), (250, 250 * rows), (251, 8 * 1024 * 1024)):
        expected = 2 * rows * 2000 + 12 * logits + 20 * labels * 1000 + norm + labels * 2000 + 2 * LORA_WEIGHTS
        assert loss_bytes(SLIM, chosen, replace(SEVEN, labels=labels)) == expected
    large = replace(SLIM, vocab_size=2**21)  # of which a row is all that is in float32, twice
    assert loss_bytes(large, QLORA, SEVEN) == (3 * 2 + 8) * 2**21 + norm + 2 * 3 * 2000 + 2 * LORA_WEIGHTS
    small = replace(SLIM, vocab_size=500)
    expected = 2 * 500 * 2000 + 12 * 3 * 500 + 20 * 3 * 1000 + norm + 3 * 2000 + 2 * LORA_WEIGHTS
    assert loss_bytes(small, chosen, SEVEN) == expected


MLP, HIDDEN = 1000 * 3000 * 2, 1000 * 1000 * 2
"""A thousand tokens' inner and outer states, in float16."""
SAVED = 1000 * (2000 + 2000 + INNER + GATE_UP + ATTENTION)
LONG = Load(tokens=1000, labels=3, patches=5)
DOWN: dict[str, Any] = {"lora_target": ("down_proj",)}


@pytest.mark.parametrize(
    ("changes", "tokens", "beyond"),
    [
        # The layer's gradient; that of the product, and the weight that it came through, or of its three results.
        ({}, 7, 7 * 2000 + 7 * 6000 + WEIGHT),
        ({}, 1000, HIDDEN + 3 * MLP),
        ({"offload_checkpoints": True}, 1000, 2 * HIDDEN + 3 * MLP),
        (DOWN, 7, 7 * 2000 + 7 * 6000 + WEIGHT),  # the product has been saved
        (DOWN, 1000, HIDDEN + 2 * MLP),
        (LORA, 7, 7 * 2000 + 3 * 7 * 6000),
        ({**LORA, "weight_dtype": "float32"}, 7, 7 * 4000 + 7 * 6000 + WEIGHT),
        # Gathered, computed again: the product, its weight, the output.
        ({"zero_stage": 2}, 7, 7 * 2000 + 7 * 6000 + WEIGHT + 7 * 2000),
        ({"zero_stage": 2, **DOWN}, 7, 7 * 2000 + max(7 * 6000, 7 * 2000) + WEIGHT),
        # In float32 the product, and what is cast of it.
        ({"zero_stage": 2, **SAFE}, 7, 7 * 4000 + 7 * (12_000 + 6000) + WEIGHT + 7 * 2000),
        (SAFE, 1000, 2 * HIDDEN + 3 * 2 * MLP),
        # As many scores as are kept, less gate and up: 10 heads of 1000 x 1000, in 6 bytes.
        ({"attention": "eager"}, 1000, HIDDEN + 60_000_000 - 2 * MLP),
    ],
)
def test_a_layer_that_is_computed_again(changes: dict[str, Any], tokens: int, beyond: int) -> None:
    chosen, load = replace(QLORA, **changes), replace(LONG, tokens=tokens)
    assert layer_bytes(SLIM, chosen, load) == saved_bytes(SLIM, chosen, load) + beyond


@pytest.mark.parametrize(
    ("model", "layers", "labels", "beyond"),
    [
        # The last layer's MLP has three tokens; the one before all of them, when what the last one kept is free.
        (4, 4, 3, 3 * MLP - (SAVED - 997 * GATE_UP)),
        (4, 3, 3, 3 * MLP - (SAVED - 997 * GATE_UP)),
        (2, 2, 3, 3 * MLP - (SAVED - 997 * GATE_UP)),
        (1, 1, 3, 3 * 6000 + WEIGHT),
        (4, 4, 2000, 3 * MLP),
        (4, 1, 3, SAVED + 3 * MLP - (SAVED - 997 * GATE_UP)),  # the next one is computed again
    ],
)
def test_layers_that_kept_everything(model: int, layers: int, labels: int, beyond: int) -> None:
    """Beside the layer's output and the gradient that comes to it."""
    chosen = replace(QLORA, layers_without_checkpoints=layers)
    found = layer_bytes(replace(SLIM, layers=model), chosen, replace(LONG, labels=labels))
    assert found == 2 * HIDDEN + beyond


def test_the_parts_of_a_step() -> None:
    """CUDA's context of 0.45 GiB, and a tenth of what comes and goes; on a CPU the interpreter's 0.94 GiB."""
    many = Load(tokens=500, labels=1342, patches=5)
    chosen = replace(QLORA, stream_layers=3, layers_without_checkpoints=0)
    layer, loss, way = layer_bytes(SLIM, chosen, many), loss_bytes(SLIM, chosen, many), 2 * 5_220_000
    parts = on_device(SLIM, chosen, many)
    assert parts["logits"] == loss - layer - way > 0
    assert parts["checkpoints"] == 4 * 500 * 2000 and parts["layers on their way"] == way
    assert parts["context"] == 483_183_820
    assert parts["reserve"] == (parts["encoder activations"] + parts["checkpoints"] + loss - way) // 10
    kept = replace(QLORA, layers_without_checkpoints=2)
    assert on_device(SLIM, kept, LONG)["checkpoints"] == 4 * HIDDEN + 2 * SAVED - 997 * GATE_UP
    on_cpu = on_device(SLIM, replace(chosen, device="cpu"), many)
    assert (on_cpu["context"], on_cpu["reserve"]) == (1_009_317_314, 0)


@pytest.mark.parametrize(("labels", "most"), [(0, 0), (1342, 1342), (1343, 1342), (2683, 1342), (2684, 2684)])
def test_the_worst_number_of_labels_fills_its_pieces(labels: int, most: int) -> None:
    """2**26 logits of 50,000 are those of 1342 labels."""
    assert at_worst(SLIM, replace(LONG, labels=labels)) == replace(LONG, labels=most)
