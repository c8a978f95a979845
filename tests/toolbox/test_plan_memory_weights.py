"""What stays on the device or lies in CPU memory all the time, for a decoder small enough to add up by hand."""

from dataclasses import replace
from typing import Any

import pytest

from llamafactory_ext.toolbox.plan.memory import Load, Settings, on_device, on_host, while_loading
from llamafactory_ext.toolbox.plan.memory_weights import (
    gradient_bytes,
    layers_away,
    layers_on_their_way,
    offloaded_weight_bytes,
    optimiser_bytes,
    trained_parameters,
    weight_bytes,
)
from llamafactory_ext.toolbox.plan.shape import KNOWN, Shape


SLIM = Shape(hidden_size=1000, layers=4, heads=10, kv_heads=2, head_dim=60, intermediate_size=3000, vocab_size=50_000)
BIG = KNOWN["chatts-14b"]
QLORA = Settings(quantization_bit=4)  # rank 8 on query, key and value; float16
LORA: dict[str, Any] = {"quantization_bit": None}
FULL: dict[str, Any] = {"quantization_bit": None, "finetuning_type": "full"}
FREEZE: dict[str, Any] = {"quantization_bit": None, "finetuning_type": "freeze", "trainable_layers": 2}
ZERO3: dict[str, Any] = {"quantization_bit": None, "zero_stage": 3}
SHORT = Load(tokens=7, labels=3, patches=5)

LINEAR = 4 * (2 * 600_000 + 2 * 120_000 + 3 * 3_000_000)
BIASES = 4 * (600 + 2 * 120)
NORMS = 4 * 2 * 1000 + 1000
DECODER = LINEAR + BIASES + NORMS
TABLE = 50_000_000
ENCODER = 32_769 * 16 + 137_000 + 4 * 1_001_000  # embeddings of places; five linear layers with biases
EVERY = DECODER + 2 * TABLE + ENCODER
ADAPTER = 4 * 8 * (1600 + 2 * 1120) + 8 * (136 + 1000 + 4 * 2000)


def test_the_parameters_of_the_small_shape() -> None:
    assert SLIM.linear_parameters == LINEAR and SLIM.bias_parameters == BIASES and SLIM.norm_parameters == NORMS
    assert SLIM.encoder_parameters == ENCODER and SLIM.parameters == EVERY
    assert SLIM.lora_parameters(8, ("q_proj", "k_proj", "v_proj"), True) == ADAPTER


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 21_542_695 + 2 * (BIASES + NORMS)),  # 0.5 byte, 1/64, 1/4096 each
        ({"double_quantization": False}, LINEAR * 9 // 16 + 2 * (BIASES + NORMS)),
        ({"quantization_bit": 8}, LINEAR + 2 * (BIASES + NORMS)),
        ({"upcast_layernorm": True}, 21_542_695 + 2 * BIASES + 4 * NORMS),
        (LORA, 2 * DECODER),
        ({**LORA, "weight_dtype": "float32"}, 4 * DECODER),
        (FULL, 4 * DECODER + 2 * LINEAR),  # and what autocast makes of them
        ({**FULL, "mixed_precision": False}, 4 * DECODER),
        (FREEZE, 2 * DECODER + 2 * DECODER // 2),  # two layers of four in float32
        ({**FREEZE, "trainable_layers": 9}, 4 * DECODER),
        ({**LORA, "trainable_layers": 2}, 2 * DECODER),  # a key of freeze tuning alone
        (ZERO3, 2 * EVERY),  # fewer than 10**9: what was gathered stays
        ({**ZERO3, "offload_param": True}, 2 * EVERY),
    ],
)
def test_weights_of_the_decoder(changes: dict[str, Any], expected: int) -> None:
    assert weight_bytes(SLIM, replace(QLORA, **changes)) == expected


def test_zero_keeps_a_share_and_what_was_gathered() -> None:
    """Of 14,876,137,488 weights a seventh, rounded up, and 10**9."""
    zero = Settings(zero_stage=3, processes=7)
    assert weight_bytes(BIG, zero) == 2 * (2_125_162_499 + 1_000_000_000)
    assert weight_bytes(BIG, replace(zero, offload_param=True)) == 2 * 1_000_000_000


@pytest.mark.parametrize(
    ("changes", "table", "encoder"),
    [
        ({}, 2, 2),
        ({"weight_dtype": "float32"}, 4, 4),
        (FULL, 4, 4),
        ({**FULL, "train_encoder": False}, 4, 2),
        (FREEZE, 2, 4),
        ({**FREEZE, "train_encoder": False}, 2, 2),
        (ZERO3, 0, 0),  # among the decoder's
    ],
)
def test_tables_and_encoder(changes: dict[str, Any], table: int, encoder: int) -> None:
    parts = on_device(SLIM, replace(QLORA, **changes), SHORT)
    assert (parts["embedding"], parts["head"]) == (table * TABLE, table * TABLE)
    assert parts["encoder"] == encoder * ENCODER


@pytest.mark.parametrize(
    ("changes", "trained", "adapter", "gradient"),
    [
        ({}, ADAPTER, 4 * ADAPTER, 4 * ADAPTER),
        (ZERO3, ADAPTER, 2 * ADAPTER, 2 * ADAPTER),
        ({"train_encoder": False}, 4 * 8 * 3840, 16 * 8 * 3840, 16 * 8 * 3840),
        (FULL, EVERY, 0, 4 * EVERY),
        ({**FULL, "train_encoder": False}, EVERY - ENCODER, 0, 4 * (EVERY - ENCODER)),
        (FREEZE, DECODER // 2 + ENCODER, 0, 4 * (DECODER // 2 + ENCODER)),
        ({**FREEZE, "trainable_layers": 0}, ENCODER, 0, 4 * ENCODER),
        ({**FREEZE, "trainable_layers": 5, "train_encoder": False}, DECODER, 0, 4 * DECODER),
    ],
)
def test_what_is_trained(changes: dict[str, Any], trained: int, adapter: int, gradient: int) -> None:
    chosen = replace(QLORA, **changes)
    parts = on_device(SLIM, chosen, SHORT)
    assert trained_parameters(SLIM, chosen) == trained
    assert (parts["adapter"], parts["gradients"]) == (adapter, gradient)
    assert trained_parameters(SLIM, Settings(finetuning_type="freeze")) == ENCODER


@pytest.mark.parametrize(
    ("changes", "gradient", "optimiser"),
    [
        ({"processes": 3}, 4 * ADAPTER, 8 * ADAPTER),
        ({"processes": 3, "zero_stage": 1}, 2 * ADAPTER, 4 * ADAPTER),  # 8 of Adam and 4 of the weights, a third
        ({"processes": 3, "zero_stage": 2}, 130_646, 4 * ADAPTER),  # a third of 391,936, rounded up
        ({"processes": 5, "zero_stage": 2}, 78_388, 470_324),  # a fifth of it and of 2,351,616
        ({"processes": 3, "zero_stage": 2, "offload_optimizer": True}, 97_984, 4 * ADAPTER),  # a layer's: a fourth
        ({"processes": 5, "zero_stage": 2, "offload_optimizer": True}, 78_388, 470_324),
    ],
)
def test_shares_of_gradients_and_optimiser(changes: dict[str, Any], gradient: int, optimiser: int) -> None:
    chosen = replace(QLORA, **changes)
    assert ADAPTER == 195_968
    assert (gradient_bytes(SLIM, chosen), optimiser_bytes(SLIM, chosen)) == (gradient, optimiser)


@pytest.mark.parametrize(
    ("name", "each"),
    [
        ("adamw_torch", 8), ("adamw_torch_fused", 8), ("adamw_8bit", 2), ("paged_adamw_8bit", 2),
        ("paged_adamw_32bit", 8), ("sgd", 0), ("lion_32bit", 4), ("paged_lion_8bit", 2), ("adafactor", 0),
        ("something_new", 8),
    ],
)  # fmt: skip
def test_states_of_an_optimiser(name: str, each: int) -> None:
    """Moments that it has a weight: two, one or none, in float32 or 8 bit; an unknown one counts as Adam."""
    assert optimiser_bytes(SLIM, replace(QLORA, optimizer=name)) == each * ADAPTER


def test_streamed_layers() -> None:
    """10,440,000 weights a layer in half a byte; of neighbours two are on the device."""
    packed = 5_220_000
    found = [
        (layers_away(SLIM, chosen), layers_on_their_way(SLIM, chosen))
        for chosen in (replace(QLORA, stream_layers=layers) for layers in range(6))
    ]
    assert found == [(count * packed, way * packed) for count, way in ((0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (4, 2))]
    assert layers_away(SLIM, replace(QLORA, stream_layers=3, device="cpu")) == 0, "they are on the device there"
    assert layers_on_their_way(replace(SLIM, layers=1), replace(QLORA, stream_layers=1)) == packed


def test_weights_that_zero_keeps_in_cpu_memory() -> None:
    """Two processes, float16. Pinned: each tensor's half in a block of a power of two."""
    both = replace(QLORA, **ZERO3, offload_param=True, processes=2)
    assert offloaded_weight_bytes(SLIM, both) == 2 * EVERY
    assert offloaded_weight_bytes(SLIM, replace(both, zero_stage=2, pin_memory=True)) == 0
    assert offloaded_weight_bytes(SLIM, replace(both, offload_param=False, pin_memory=True)) == 0
    kib = 2 * 1024 + 2 * 128 + 3 * 4096  # a layer's query and output, key and value, MLP
    kib = 4 * kib + 2 * 65_536 + 256 + 4 * 1024  # embedding and head; the encoder
    assert offloaded_weight_bytes(SLIM, replace(both, pin_memory=True)) == 2 * 1024 * (kib + 1024)  # and its places
    lines = replace(SLIM, use_position_embedding=False)  # 8 points wide
    assert offloaded_weight_bytes(lines, replace(both, pin_memory=True)) == 2 * 1024 * (kib - 256 + 8)


def test_while_a_checkpoint_is_read() -> None:
    """On the device the largest weight beside what it became; in CPU memory twice the table, or with ZeRO-3 all."""
    parts = while_loading(SLIM, replace(QLORA, **LORA, upcast_layernorm=True))
    assert parts == {
        "weights": 2 * DECODER, "embedding": 2 * TABLE, "head": 2 * TABLE, "encoder": 2 * ENCODER,
        "weight being read": 0, "context": 483_183_820, "reserve": 2 * 3_000_000,
    }  # fmt: skip
    thin = replace(SLIM, encoder_layers=1)  # which is smaller than one of the decoder's
    encoder = 2 * (32_769 * 16 + 137_000)
    found = while_loading(thin, QLORA)
    assert (found["encoder"], found["weight being read"], found["reserve"]) == (encoder, 6_000_000 - encoder, encoder)
    assert while_loading(thin, replace(QLORA, device="cpu"))["reserve"] == 0
    assert while_loading(SLIM, replace(QLORA, **FULL)) == while_loading(SLIM, replace(QLORA, **LORA))
    for shape in (SLIM, replace(SLIM, vocab_size=2000)):
        largest = max(shape.vocab_size * 1000, 3_000_000)
        assert on_host(shape, replace(QLORA, processes=3), SHORT)["while loading"] == 12 * largest
    assert on_host(SLIM, replace(QLORA, **ZERO3, processes=3), SHORT)["while loading"] == 2 * EVERY


def test_what_lies_in_cpu_memory() -> None:
    moved = replace(
        QLORA, embedding_on_cpu=True, stream_head=True, stream_layers=3, offload_checkpoints=True,
        optimizer="paged_adamw_32bit", processes=2,
    )  # fmt: skip
    assert on_host(SLIM, moved, replace(SHORT, tokens=700)) == {
        "processes": 2 * 1_009_317_314,
        "while loading": 8 * TABLE,
        "offloaded weights": 0,
        "embedding": 2 * 2 * TABLE,
        "streamed weights": 2 * (2 * TABLE + 3 * 5_220_000),
        "checkpoints": 2 * 4 * 2**21,  # 1,400,000 bytes each, pinned
        "optimiser": 2 * 8 * ADAPTER,
    }
    tied = replace(SLIM, tied=True)
    assert on_host(tied, moved, SHORT)["embedding"] == 0, "the head needs it on the device"
    assert on_device(tied, moved, SHORT)["embedding"] == 2 * TABLE and on_device(tied, moved, SHORT)["head"] == 0
    assert on_host(tied, moved, SHORT)["streamed weights"] == 2 * 3 * 5_220_000
    parts = on_device(SLIM, moved, SHORT)
    assert (parts["embedding"], parts["head"], parts["optimiser"]) == (0, 0, 0)
    assert on_host(SLIM, replace(moved, checkpointing=False), SHORT)["checkpoints"] == 0
    on_cpu = replace(moved, device="cpu")
    assert on_host(SLIM, on_cpu, SHORT) == {"training": 2 * sum(on_device(SLIM, on_cpu, SHORT).values())}
