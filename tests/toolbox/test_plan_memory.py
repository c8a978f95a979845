"""The arithmetic of memory: against real models, against sums done by hand, and what must never lower or raise it."""

from dataclasses import fields, replace

import pytest
import torch
from helpers_model import FAMILIES, WIDTH, build, config_dict, ts_section
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory_ext.model.keep_less import keep_less
from llamafactory_ext.toolbox.plan.memory import Load, Settings, at_worst, on_device, on_host, while_loading
from llamafactory_ext.toolbox.plan.memory_step import (
    encoder_activation_bytes,
    final_norm_bytes,
    kept_bytes,
    labels_at_once,
    layer_bytes,
    loss_bytes,
    saved_bytes,
)
from llamafactory_ext.toolbox.plan.memory_weights import pinned, trained_parameters
from llamafactory_ext.toolbox.plan.shape import KNOWN, Shape


GIB = 2**30
BIG, SMALL = KNOWN["chatts-14b"], KNOWN["chatts-8b"]
QLORA = Settings(quantization_bit=4)
ON_CPU = Settings(device="cpu", compute_dtype="float32", weight_dtype="float32", mixed_precision=False)
RECORD = Load(tokens=1045, labels=120, patches=625)


def device_total(shape: Shape = BIG, load: Load = RECORD, **changes: object) -> int:
    return sum(on_device(shape, replace(QLORA, **changes), load).values())


# Shapes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 4, "intermediate_size": 160, "num_hidden_layers": 3},
        {"ts": ts_section(use_position_embedding=False, num_layers=2)},
        {"ts": ts_section(patch_size=16, embedding_dim=3, max_sequence_length=100)},
    ],
)
def test_parameters_are_those_of_the_model(family, changes):
    model = build(family, **changes)
    shape = Shape.from_config(config_dict(family, **changes))
    assert shape.parameters == model.num_parameters()
    assert shape == Shape.from_config(model.config), "a config object counts as its file"

    def numbers(*names: str) -> int:
        return sum(p.numel() for name, p in model.named_parameters() if any(part in name for part in names))

    assert shape.encoder_parameters == numbers("ts_encoder")
    assert shape.embedding_parameters == numbers("embed_tokens")
    assert shape.head_parameters == numbers("lm_head")
    assert shape.norm_parameters == numbers("norm")
    assert shape.linear_parameters == numbers(*(f"{name}.weight" for name in shape.linears))


def test_biases_of_qwen3_include_the_output_projection():
    model = build("qwen3", attention_bias=True)
    assert Shape.from_config(model.config).parameters == model.num_parameters()


@pytest.mark.parametrize("layers", [0, 1, 5])
def test_freeze_tuning_trains_the_encoder_and_whole_layers(layers: int) -> None:
    model = build("qwen2")
    shape = Shape.from_config(model.config)
    own = [f".{number}." for number in range(shape.layers)][-layers:] if layers else []
    trained = sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if "ts_encoder" in name or any(part in name for part in own)
    )
    freeze = Settings(finetuning_type="freeze", trainable_layers=layers)
    found = trained_parameters(shape, freeze)
    assert 0 <= found - trained <= WIDTH * min(layers, shape.layers)  # the last norm is spread over the layers
    assert trained_parameters(shape, replace(freeze, train_encoder=False)) == found - shape.encoder_parameters
    parts = on_device(shape, freeze, RECORD)
    alone = replace(freeze, finetuning_type="lora", lora_target=())
    assert sum(parts.values()) < sum(on_device(shape, replace(freeze, finetuning_type="full"), RECORD).values())
    assert parts["encoder"] == 2 * on_device(shape, alone, RECORD)["encoder"]  # float32


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", [("q_proj", "k_proj", "v_proj"), ("all",), ("down_proj",)])
@pytest.mark.parametrize("encoder", [True, False])
def test_lora_parameters_are_those_of_peft(family, targets, encoder):
    from peft import LoraConfig, get_peft_model

    model = build(family)
    shape = Shape.from_config(model.config)
    names = list(shape.linears) if targets == ("all",) else list(targets)
    if encoder:
        names += [f"ts_encoder.mlp.{2 * number}" for number in range(5)]
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=names))
    assert shape.lora_parameters(4, targets, encoder) == wrapped.get_nb_trainable_parameters()[0]


def test_missing_keys_are_named_together():
    config = config_dict("qwen2")
    del config["vocab_size"], config["ts"]["patch_size"]
    with pytest.raises(ValueError, match=r"no vocab_size, ts\.patch_size; expected"):
        Shape.from_config(config)


def test_published_checkpoints_have_the_sizes_of_their_names():
    """Qwen2.5-14B has 14,770,033,664 weights and Qwen3-8B 8,190,735,360; the encoder comes on top."""
    assert BIG.parameters - BIG.encoder_parameters == 14_770_033_664
    assert SMALL.parameters - SMALL.encoder_parameters == 8_190_735_360
    assert BIG.parameters == 14_876_137_488


# Against autograd


ALL_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", [("q_proj", "k_proj", "v_proj"), ("gate_proj", "o_proj"), ALL_TARGETS])
@pytest.mark.parametrize("labels", [None, 60])
def test_what_a_layer_saves_is_what_autograd_saves(family, targets, labels):
    """Frozen layers, norms, rotary positions, SDPA, LoRA and MLP, in float32 on a CPU: to one per cent.

    The last layer, too, where its MLP runs for some tokens only.
    """
    from peft import LoraConfig, get_peft_model

    model = build(family, attention="sdpa", intermediate_size=224, num_attention_heads=8, head_dim=8)
    wrapped = get_peft_model(model.requires_grad_(False).train(), LoraConfig(r=4, target_modules=list(targets)))
    keep_less(model)
    tokens = 500
    hidden = torch.randn(1, tokens, WIDTH, requires_grad=True)
    positions = model.model.rotary_emb(hidden, torch.arange(tokens)[None])
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer, rows = (model.model.layers[-1], torch.arange(labels)) if labels else (model.model.layers[0], None)
        layer(hidden, attention_mask=None, position_embeddings=positions, read_rows=rows)
    for elsewhere in (hidden, *positions, *wrapped.parameters()):
        saved.pop(elsewhere.untyped_storage().data_ptr(), None)
    found = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())

    chosen, shape = replace(ON_CPU, lora_rank=4, lora_target=targets), Shape.from_config(model.config)
    load = Load(tokens, labels or tokens, 1)
    others = (shape.layers - 1) * saved_bytes(shape, chosen, load)
    every = kept_bytes(shape, replace(chosen, checkpointing=False), load)
    every -= kept_bytes(shape, replace(chosen, checkpointing=True), load)
    assert every - others == pytest.approx(found, rel=0.01)


# By hand


def test_what_is_on_the_card_while_weights_are_loaded():
    """6.35 in 4 bit, 1.45 each for embedding and head, 0.2 for the encoder, a weight as it is read, CUDA's context."""
    whole = while_loading(BIG, QLORA)
    assert whole["embedding"] == 152_064 * 5120 * 2 and sum(whole.values()) / GIB == pytest.approx(10.03, abs=0.01)
    recipe = replace(QLORA, embedding_on_cpu=True)
    loading, step = while_loading(BIG, recipe), on_device(BIG, recipe, RECORD)
    assert loading["embedding"] == step["embedding"] == 0, "never on the card"
    assert loading["weight being read"] == 0, "it has gone when the encoder, which is larger, is read"
    assert loading["reserve"] == 5120 * 13_824 * 2
    assert all(loading[name] == step[name] for name in ("quantised weights", "head", "encoder", "context"))
    assert sum(loading.values()) / GIB == pytest.approx(8.58, abs=0.01)
    assert while_loading(BIG, replace(recipe, zero_stage=3)).keys() == {"context"}


def test_streamed_weights_are_in_the_machines_memory():
    """The head of 152,064 x 5120 in float16; of 8 layers 4-bit weights, one of them on the card at a time."""
    small = replace(QLORA, embedding_on_cpu=True, stream_head=True, stream_layers=8)
    layer, head = 13_212_057_600 // 48 // 2, 152_064 * 5120 * 2
    plain, found = (on_device(BIG, settings, RECORD) for settings in (replace(small, stream_layers=0), small))
    assert plain["quantised weights"] - found["quantised weights"] == 8 * layer
    assert (plain["layers on their way"], found["layers on their way"]) == (0, layer)
    assert on_device(BIG, replace(small, stream_layers=25), RECORD)["layers on their way"] == 2 * layer
    assert found["head"] == while_loading(BIG, small)["head"] == 0
    assert while_loading(BIG, small)["quantised weights"] == plain["quantised weights"], "they leave afterwards"
    assert on_host(BIG, small, RECORD)["streamed weights"] == head + 8 * layer
    assert on_host(BIG, replace(small, processes=2), RECORD)["streamed weights"] == 2 * (head + 8 * layer)


@pytest.mark.parametrize(
    "lever",
    [
        {"embedding_on_cpu": True},
        {"stream_head": True},
        {"offload_checkpoints": True},
        {"optimizer": "paged_adamw_32bit"},
        {"zero_stage": 3, "offload_param": True},
        {"zero_stage": 2, "offload_optimizer": True},
    ],
)
def test_on_a_cpu_all_is_counted_wherever_it_lies(lever: dict[str, object]) -> None:
    """The device is the machine's memory: levers that move something there move nothing, and lose nothing."""
    plain = replace(ON_CPU, zero_stage=lever.get("zero_stage", 0))
    before, after = (on_device(BIG, settings, RECORD) for settings in (plain, replace(plain, **lever)))
    assert after | {"gradients": 0} == before | {"gradients": 0}
    assert on_host(BIG, replace(plain, **lever, processes=2), RECORD).keys() == {"training"}
    streamed = replace(ON_CPU, quantization_bit=4, stream_layers=8)
    assert (
        on_device(BIG, streamed, RECORD)["quantised weights"]
        == on_device(BIG, replace(streamed, stream_layers=0), RECORD)["quantised weights"]
    )


def test_weights_of_chatts_14b_in_4_bit():
    parts = on_device(BIG, QLORA, RECORD)
    # 48 layers x (5120 x (2 x 5120 + 2 x 1024) + 3 x 5120 x 13,824) = 13,212,057,600 weights, each 0.5 byte, 1/64 for
    # its block's scale and 4 / (64 x 256) for that scale's block; 1.18 million norms and biases in float16.
    assert parts["quantised weights"] == int(13_212_057_600 * (0.5 + 1 / 64 + 4 / 16_384)) + 2 * 840_704
    assert parts["quantised weights"] / GIB == pytest.approx(6.35, abs=0.005)
    assert parts["embedding"] == parts["head"] == 152_064 * 5120 * 2
    assert parts["embedding"] / GIB == pytest.approx(1.45, abs=0.005)
    assert sum(parts[key] for key in ("quantised weights", "embedding", "head")) / GIB == pytest.approx(9.25, abs=0.01)


def test_without_double_quantisation_a_scale_takes_four_bytes():
    double = on_device(BIG, QLORA, RECORD)["quantised weights"]
    single = on_device(BIG, replace(QLORA, double_quantization=False), RECORD)["quantised weights"]
    assert single - double == pytest.approx(13_212_057_600 * (4 / 64 - 1 / 64 - 4 / 16_384), abs=2)


def test_adapter_gradients_and_optimiser_of_the_main_recipe():
    # Rank 8: 48 x (5120 + 5120 + 2 x (5120 + 1024)) and the encoder's 136 + 5120 + 4 x 2 x 5120 widths.
    trained = 8 * (48 * 22_528 + 46_216)
    parts = on_device(BIG, QLORA, RECORD)
    assert parts["adapter"] == parts["gradients"] == 4 * trained
    assert parts["optimiser"] == 8 * trained
    assert on_device(BIG, replace(QLORA, optimizer="adamw_8bit"), RECORD)["optimiser"] == 2 * trained


def test_checkpoints_are_one_hidden_state_a_layer():
    assert on_device(BIG, QLORA, RECORD)["checkpoints"] == 48 * 1045 * 5120 * 2
    # In float32, but for the first layer's input, which comes from a half-precision embedding.
    safe = replace(QLORA, upcast_layernorm=True)
    assert on_device(BIG, safe, RECORD)["checkpoints"] == (47 * 4 + 2) * 1045 * 5120
    assert on_device(BIG, replace(QLORA, offload_checkpoints=True), RECORD)["checkpoints"] == 1045 * 5120 * 2


def test_pinned_memory_is_rounded_up_to_powers_of_two():
    assert [pinned(size) for size in (0, 1, 2, 3, 4096, 4097)] == [0, 1, 2, 4, 4096, 8192]
    offload = Settings(zero_stage=3, offload_param=True, offload_optimizer=True)
    plain = on_host(BIG, offload, RECORD)["offloaded weights"]
    assert plain / GIB == pytest.approx(27.7, abs=0.1)
    # A layer: 2 x 64 MiB, 2 x 16 MiB, 3 x 256 MiB; embedding and head 2 GiB each; the encoder 4 x 64 MiB and less.
    by_hand = (48 * (2 * 64 + 2 * 16 + 3 * 256) + 2 * 2048 + 4 * 64) / 1024
    fixed = on_host(BIG, replace(offload, pin_memory=True), RECORD)["offloaded weights"] / GIB
    assert fixed == pytest.approx(by_hand, abs=0.01)
    assert fixed == pytest.approx(47.5 + 0.25, abs=0.1)


def test_logits_are_taken_in_the_pieces_that_the_model_takes():
    from llamafactory_ext.model.loss import labels_at_once as real

    for size in (320, 1024, 151_936, 152_064, 2**24):
        assert labels_at_once(size) == real(size)


@pytest.mark.parametrize(
    ("labels", "at_once", "changes", "hidden"),
    [
        (0, 0, {}, 2),
        (1, 1, {}, 2),
        (120, 120, {}, 2),
        (441, 441, {}, 2),  # 2**26 // 152,064: the last number that is one piece
        (442, 221, {}, 2),
        (1000, 334, {}, 2),
        (120, 120, {"upcast_layernorm": True}, 4),
        (120, 120, {"finetuning_type": "full", "quantization_bit": None}, 4),
    ],
)
def test_the_loss_is_that_of_one_piece_of_labels(labels, at_once, changes, hidden):
    # Of a piece its logits in float16, and six rows of them (2**20 // 152,064) twice in float32; what the final norm
    # takes and gives; states that labels follow, and their gradients; of LoRA's weights (48 layers' q, k, v, and the
    # encoder's five) what autocast made of them.
    lora = 48 * 8 * (5120 + 5120 + 2 * (5120 + 1024)) + 8 * (136 + 5120) + 4 * 8 * (5120 + 5120)
    cast = 0 if "finetuning_type" in changes else 2 * lora
    logits = (2 * at_once + 8 * min(6, at_once)) * 152_064
    expected = logits + 2 * 1045 * 5120 * hidden + 2 * labels * 5120 * hidden + cast
    assert loss_bytes(BIG, replace(QLORA, **changes), replace(RECORD, labels=labels)) == expected


def test_a_small_vocabulary_is_taken_at_once_and_a_large_one_in_sixteens():
    for vocabulary, at_once in ((2**26, 16), (2**22, 16), (2**22 - 1, 16), (2**26 // 17, 17), (2**10, 2**16)):
        assert labels_at_once(vocabulary) == at_once


def test_what_a_step_takes_beyond_the_largest_layer_is_the_loss():
    layer, loss = layer_bytes(BIG, QLORA, RECORD), loss_bytes(BIG, QLORA, RECORD)
    assert layer > loss and on_device(BIG, QLORA, RECORD)["logits"] == 0
    few, plain = Load(tokens=441, labels=441, patches=0), replace(QLORA, quantization_bit=None)
    layer, loss = layer_bytes(BIG, plain, few), loss_bytes(BIG, plain, few)
    assert loss > layer and on_device(BIG, plain, few)["logits"] == loss - layer


@pytest.mark.parametrize(("changes", "each"), [({}, 2 * 2 + 3 * 4), ({"upcast_layernorm": True}, 2 * 4 + 4 * 4)])
def test_with_layers_that_kept_all_the_last_norm_can_be_the_peak(changes, each):
    """Of 4096 tokens, where a piece of the loss takes less, and the next layers' backward passes recompute nothing."""
    long = Load(tokens=4096, labels=600, patches=2500)
    chosen = replace(QLORA, layers_without_checkpoints=2, **changes)
    assert final_norm_bytes(BIG, chosen, long) == 4096 * 5120 * each
    layer = layer_bytes(BIG, chosen, long)
    assert on_device(BIG, chosen, long)["logits"] == 4096 * 5120 * each - layer > 0


def test_a_layers_backward_pass():
    saved, residual, mlp = saved_bytes(BIG, QLORA, RECORD), 1045 * 5120 * 2, 1045 * 13_824 * 2
    # Gradient of the product, with the weight that it came through; and the layer's own.
    weight = 5120 * 13_824 * 2
    assert layer_bytes(BIG, QLORA, RECORD) == saved + residual + mlp + weight
    # At `down_proj`, computed again where it is not skipped: product, weight, and the MLP's input.
    assert layer_bytes(BIG, replace(QLORA, zero_stage=2), RECORD) - saved_bytes(
        BIG, replace(QLORA, zero_stage=2), RECORD
    ) == (2 * residual + mlp + weight)
    # The gradients of the MLP's three results, where they take more than its weight written out does.
    many = replace(RECORD, tokens=8 * 1045)
    saved, residual, mlp = saved_bytes(BIG, QLORA, many), 8 * residual, 8 * mlp
    assert layer_bytes(BIG, QLORA, many) == saved + residual + 3 * mlp
    # Weights in 16 bit are computed with as they are; float32 ones are cast by autocast, but by nothing else.
    few = replace(RECORD, tokens=10)
    backward = {}
    for kind, changes in {
        "as they are": {},
        "cast": {"weight_dtype": "float32"},
        "float32": {"weight_dtype": "float32", "mixed_precision": False},
    }.items():
        chosen = replace(QLORA, quantization_bit=None, **changes)
        rest = saved_bytes(BIG, chosen, few) + 10 * 5120 * (2 if kind == "as they are" else 4)
        backward[kind] = layer_bytes(BIG, chosen, few) - rest
    mlp, weight = 10 * 13_824 * 2, 5120 * 13_824 * 2
    assert backward == {"as they are": 3 * mlp, "cast": mlp + weight, "float32": 2 * 3 * mlp}


def test_layers_that_kept_everything_are_done_when_one_is_computed_again():
    all_kept = layer_bytes(BIG, replace(QLORA, layers_without_checkpoints=48), RECORD)
    residual = 1045 * 5120 * 2
    assert all_kept == 2 * residual + 120 * 13_824 * 2 + 5120 * 13_824 * 2  # the last one's MLP sees labels alone
    more, every = (replace(QLORA, layers_without_checkpoints=layers) for layers in (99, 48))
    assert layer_bytes(BIG, more, RECORD) == all_kept
    assert kept_bytes(BIG, more, RECORD) == kept_bytes(BIG, every, RECORD)
    assert layer_bytes(BIG, replace(QLORA, checkpointing=False), RECORD) == all_kept
    one = replace(QLORA, layers_without_checkpoints=1)
    kept = kept_bytes(BIG, one, RECORD) - kept_bytes(BIG, QLORA, RECORD)
    assert 0 < kept < saved_bytes(BIG, QLORA, RECORD)
    assert layer_bytes(BIG, one, RECORD) == layer_bytes(BIG, QLORA, RECORD) - kept + residual


def test_the_encoder_keeps_the_inputs_of_its_layers():
    # 8 points and 8 places of 16 numbers; then four layers, of which each keeps its input and its GELU's.
    assert encoder_activation_bytes(BIG, QLORA, RECORD) == 625 * 2 * (8 * 17 + 4 * 2 * 5120)
    assert encoder_activation_bytes(BIG, replace(QLORA, train_encoder=False), RECORD) == 0


def test_levers_move_bytes_to_the_host():
    plain = on_host(BIG, QLORA, RECORD)
    assert plain["embedding"] == plain["checkpoints"] == plain["optimiser"] == plain["offloaded weights"] == 0
    moved = replace(QLORA, embedding_on_cpu=True, offload_checkpoints=True, optimizer="paged_adamw_8bit")
    assert on_device(BIG, moved, RECORD)["embedding"] == on_device(BIG, moved, RECORD)["optimiser"] == 0
    host = on_host(BIG, moved, RECORD)
    assert host["embedding"] == 152_064 * 5120 * 2
    assert host["checkpoints"] == 48 * 16 * 2**20  # 10.2 MiB each, pinned
    assert host["optimiser"] == 2 * 8 * (48 * 22_528 + 46_216)
    assert on_host(BIG, replace(moved, processes=2), RECORD)["embedding"] == 2 * host["embedding"]


def test_zero_with_offload_keeps_the_optimiser_on_the_host():
    full = Settings(finetuning_type="full", zero_stage=3, offload_optimizer=True, processes=4)
    assert on_device(SMALL, full, RECORD)["optimiser"] == 0
    # Adam's two states and the weights in float32, a share each process.
    assert on_host(SMALL, full, RECORD)["optimiser"] == pytest.approx(12 * SMALL.parameters, abs=100)


def test_on_a_cpu_the_host_holds_the_device():
    assert sum(on_host(SMALL, ON_CPU, RECORD).values()) == sum(on_device(SMALL, ON_CPU, RECORD).values())


def test_eager_attention_writes_its_scores():
    squares = 40 * 3000 * 3000
    difference = device_total(load=Load(3000, 100, 625), attention="eager") - device_total(load=Load(3000, 100, 625))
    assert difference > squares * 4


# Properties


DTYPES = st.sampled_from(["float16", "bfloat16", "float32"])
TARGETS = st.sampled_from([("q_proj", "k_proj", "v_proj"), ("all",), ("o_proj", "down_proj"), ("gate_proj",)])
SHAPES = st.sampled_from([BIG, SMALL, replace(SMALL, tied=True), Shape.from_config(config_dict("qwen2"))])
LOADS = st.builds(
    Load,
    tokens=st.integers(1, 10_000),
    labels=st.integers(0, 3000),
    patches=st.integers(0, 5000),
    rows=st.integers(1, 8),
)


def as_recipes_can_be(one: Settings) -> Settings:
    """Autocast is to a half precision; layers without checkpoints are refused with offloaded ones."""
    mixed = one.mixed_precision and one.compute_dtype != "float32"
    layers = 0 if one.offload_checkpoints else one.layers_without_checkpoints
    return replace(one, mixed_precision=mixed, layers_without_checkpoints=layers)


ALL_SETTINGS = st.builds(
    Settings,
    device=st.sampled_from(["cuda", "cpu"]),
    quantization_bit=st.sampled_from([None, 4, 8]),
    double_quantization=st.booleans(),
    compute_dtype=DTYPES,
    weight_dtype=DTYPES,
    mixed_precision=st.booleans(),
    finetuning_type=st.sampled_from(["lora", "full"]),
    lora_rank=st.integers(1, 256),
    lora_target=TARGETS,
    train_encoder=st.booleans(),
    optimizer=st.sampled_from(["adamw_torch", "adamw_8bit", "paged_adamw_32bit", "sgd", "unknown"]),
    checkpointing=st.booleans(),
    layers_without_checkpoints=st.integers(0, 60),
    offload_checkpoints=st.booleans(),
    embedding_on_cpu=st.booleans(),
    upcast_layernorm=st.booleans(),
    attention=st.sampled_from(["sdpa", "eager"]),
    zero_stage=st.sampled_from([0, 2, 3]),
    offload_param=st.booleans(),
    offload_optimizer=st.booleans(),
    pin_memory=st.booleans(),
    processes=st.integers(1, 8),
).map(as_recipes_can_be)


def total(where, shape, chosen, load) -> int:
    parts = where(shape, chosen, load)
    assert all(isinstance(size, int) and size >= 0 for size in parts.values()), parts
    return sum(parts.values())


@settings(max_examples=300, deadline=None)
@given(SHAPES, ALL_SETTINGS, LOADS, st.integers(1, 500), st.sampled_from(["tokens", "labels", "patches"]))
def test_more_to_compute_never_takes_less(shape, chosen, load, more, what):
    heavier = at_worst(shape, replace(load, **{what: getattr(load, what) + more}))
    for where in (on_device, on_host):
        assert total(where, shape, chosen, at_worst(shape, load)) <= total(where, shape, chosen, heavier)


@settings(max_examples=300, deadline=None)
@given(SHAPES, ALL_SETTINGS, LOADS, st.integers(0, 2000))
def test_the_worst_batch_takes_as_much_as_any_with_no_more_labels(shape, chosen, load, labels):
    """Up to what a piece of labels holds beside its logits, in the last layer as well; and its reserve."""
    load, most = replace(load, labels=labels), labels_at_once(shape.vocab_size)
    bound = total(on_device, shape, chosen, at_worst(shape, load))
    few, many = (kept_bytes(shape, chosen, replace(load, labels=count)) for count in (0, most))
    spare = 1.1 * (4 * most * (2 * shape.hidden_size + 3 * shape.intermediate_size) + many - few)
    for fewer in {*range(max(0, labels - 40), labels + 1), most}:
        if fewer <= labels:
            assert total(on_device, shape, chosen, replace(load, labels=fewer)) <= bound + spare


@settings(max_examples=300, deadline=None)
@given(SHAPES, ALL_SETTINGS, LOADS, st.integers(1, 100))
def test_a_higher_rank_never_takes_less(shape, chosen, load, more):
    higher = replace(chosen, lora_rank=chosen.lora_rank + more)
    for where in (on_device, on_host):
        assert total(where, shape, chosen, load) <= total(where, shape, higher, load)


LEVERS = [
    {"embedding_on_cpu": True},
    {"offload_checkpoints": True, "layers_without_checkpoints": 0},
    {"checkpointing": True, "layers_without_checkpoints": 0},
    {"layers_without_checkpoints": 0},
    {"offload_optimizer": True},
    {"optimizer": "paged_adamw_8bit"},
    {"attention": "sdpa"},
    {"upcast_layernorm": False},
    {"double_quantization": True},
    {"train_encoder": False},
    {"offload_param": True},
]


@settings(max_examples=500, deadline=None)
@given(SHAPES, ALL_SETTINGS, LOADS, st.sampled_from(LEVERS))
def test_levers_never_take_more_of_the_device(shape, chosen, load, lever):
    if "optimizer" in lever and chosen.optimizer == "sgd":  # which has no states to begin with
        chosen = replace(chosen, optimizer="adamw_torch")
    assert total(on_device, shape, replace(chosen, **lever), load) <= total(on_device, shape, chosen, load)


def test_every_setting_matters_somewhere():
    changes = {
        "device": "cpu",
        "quantization_bit": 8,
        "double_quantization": False,
        "compute_dtype": "float32",
        "weight_dtype": "float32",
        "mixed_precision": False,
        "finetuning_type": "full",
        "lora_rank": 16,
        "lora_target": ("all",),
        "train_encoder": False,
        "optimizer": "sgd",
        "checkpointing": False,
        "layers_without_checkpoints": 3,
        "offload_checkpoints": True,
        "embedding_on_cpu": True,
        "stream_head": True,
        "stream_layers": 2,
        "trainable_layers": 2,
        "upcast_layernorm": True,
        "attention": "eager",
        "zero_stage": 3,
        "offload_param": True,
        "offload_optimizer": True,
        "pin_memory": True,
        "processes": 2,
    }
    assert changes.keys() == {field.name for field in fields(Settings)}
    long = Load(tokens=4000, labels=120, patches=625)
    for key, value in changes.items():
        offloaded = {"zero_stage": 3, "offload_param": True} if key in ("offload_param", "pin_memory") else {}
        before = replace(QLORA, quantization_bit=None if offloaded or key == "mixed_precision" else 4, **offloaded)
        before = replace(before, weight_dtype="float32") if key == "mixed_precision" else before
        before = replace(before, offload_param=False) if key == "offload_param" else before
        before = (
            replace(before, finetuning_type="freeze", quantization_bit=None) if key == "trainable_layers" else before
        )
        after = replace(before, **{key: value})
        both = [(on_device(BIG, chosen, long), on_host(BIG, chosen, long)) for chosen in (before, after)]
        assert both[0] != both[1], key
