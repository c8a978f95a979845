"""Head and layers that come from CPU memory: same loss, same gradients, and nowhere but where they are used."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_model import FAMILIES, build, gradients, inputs, labels_for, record
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llamafactory_ext.model import placement, read_config, streamed_head
from llamafactory_ext.model.copying import Copier, pin
from llamafactory_ext.model.host_embedding import keep_out_of_ddp
from llamafactory_ext.model.streamed_head import StreamedHead
from llamafactory_ext.model.streamed_layers import LayerStream, spread


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 33 rows, the last one smaller, and of 9 labels by one of them."""
    monkeypatch.setattr(streamed_head, "_PIECE", 33 * 64 * 4)
    monkeypatch.setattr(streamed_head, "_LOGITS_AT_ONCE", 9 * 33)


def batch() -> dict[str, torch.Tensor]:
    records = inputs(record(1, 40, 17), record(2, 9), record(3, 25, text=11), side="right")
    return records | {"labels": labels_for(records)}


def trained(model: Any) -> Any:
    """In training with reentrant checkpoints, as LLaMA-Factory sets them up; embedding and head are frozen."""
    model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    model.get_input_embeddings().requires_grad_(False)
    model.get_output_embeddings().requires_grad_(False)
    return model


def step(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch()).loss
    loss.backward()
    return float(loss.detach()), gradients(model)


def check_same(found: tuple[float, dict[str, torch.Tensor]], expected: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1].keys() == expected[1].keys()
    assert any(name.startswith("ts_encoder") for name in found[1])
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=1e-4, atol=1e-6, msg=name)


# The head


def test_step_with_a_streamed_head(family: str, small_pieces: None) -> None:
    model, plain = trained(build(family)), trained(build(family))
    size = model.get_output_embeddings().weight.numel() * 4
    assert streamed_head.stream_head(model) == size
    assert isinstance(model.get_output_embeddings(), StreamedHead)
    check_same(step(model), step(plain))


@pytest.mark.parametrize("side", ["eval", "train"])
def test_logits_of_a_streamed_head(small_pieces: None, side: str) -> None:
    """Where they are wanted whole: answers, metrics, and their gradient for losses of others."""
    model, plain = trained(build("qwen2")), trained(build("qwen2"))
    streamed_head.stream_head(model)
    found, expected = (getattr(one, side)()(**batch() | {"labels": None}).logits for one in (model, plain))
    torch.testing.assert_close(found, expected)
    for logits in (found, expected):
        logits.square().mean().backward()
    check_same((0.0, gradients(model)), (0.0, gradients(plain)))


def test_answers_of_a_streamed_head(small_pieces: None) -> None:
    answers = []
    for streams in (False, True):
        model = build("qwen2")
        if streams:
            streamed_head.stream_head(model)
        answers.append(model.generate(**inputs(record(1, 40, 17)), max_new_tokens=9, do_sample=False))
    assert torch.equal(*answers)


@given(
    labels=st.integers(0, 30),
    vocabulary=st.integers(1, 40),
    piece=st.integers(1, 50),
    sure=st.floats(0, 60),
    seed=st.integers(0, 9),
)
@settings(deadline=None)
def test_loss_by_pieces(labels: int, vocabulary: int, piece: int, sure: float, seed: int) -> None:
    """Against cross entropy in float64, from guesses to labels that the model is sure of."""
    torch.manual_seed(seed)
    weight, hidden = torch.randn(vocabulary, 5), torch.randn(labels, 5)
    targets = torch.randint(0, vocabulary, (labels,))
    hidden += sure * weight[targets]
    head = StreamedHead(5, vocabulary, bias=False)
    head.weight = nn.Parameter(weight, requires_grad=False)
    ours = hidden.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed_head, "_PIECE", piece * 20)
        patch.setattr(streamed_head, "_LOGITS_AT_ONCE", 7 * piece)
        found = head.summed_loss(ours, targets)
    (3 * found).backward()
    theirs = hidden.double().requires_grad_()
    expected = nn.functional.cross_entropy(theirs @ weight.double().T, targets, reduction="sum")
    (3 * expected).backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    scale = float(theirs.grad.abs().max()) if labels else 0.0
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-5 * scale + 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sure", [0.0, 3.0])
def test_loss_in_half_precision_is_as_good_as_the_plain_one(dtype: torch.dtype, sure: float) -> None:
    """Under autocast with a float16's loss scale: the error against float64 is no larger than the plain way's."""
    torch.manual_seed(0)
    weight = torch.randn(3000, 64) / 8
    targets = torch.randint(0, 3000, (50,))
    hidden = torch.randn(50, 64) + sure * weight[targets] * 8
    exact = hidden.double().requires_grad_()
    nn.functional.cross_entropy(exact @ weight.to(dtype).double().T, targets).backward()
    head = StreamedHead(64, 3000, bias=False)
    head.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    errors = []
    for ours in (True, False):
        mine = hidden.clone().requires_grad_()
        with torch.autocast("cpu", dtype):
            if ours:
                loss = head.summed_loss(mine, targets) / 50
            else:
                loss = nn.functional.cross_entropy(nn.functional.linear(mine, head.weight).float(), targets)
        (2.0**12 * loss).backward()
        errors.append(float((mine.grad / 2.0**12 - exact.grad).norm() / exact.grad.norm()))
    assert errors[0] < 1.2 * errors[1] + 1e-6, errors


def test_pieces_of_a_large_head() -> None:
    """ChatTS-14B's in 16 bit: 64 MiB are 6,553 rows, and 1,280 labels by one of them take 32 MiB in float32."""
    head = StreamedHead(5120, 152_064, bias=False, device="meta", dtype=torch.bfloat16)
    assert head.rows_at_once == 6553
    hidden, targets = torch.empty(3000, 1, device="meta"), torch.empty(3000, device="meta")
    assert [len(part) for part, _ in streamed_head._in_parts(hidden, targets, head)] == [1280, 1280, 440]
    small = StreamedHead(5120, 4, bias=False, device="meta")
    assert len(list(streamed_head._in_parts(hidden, targets, small))) == 1
    assert StreamedHead(2**26, 4, bias=False, device="meta").rows_at_once == 1


def test_copies_come_one_ahead() -> None:
    """Two rooms in turn; the last piece may be shorter."""
    copier, pieces = Copier(torch.device("cpu")), [*torch.arange(7.0).split(2)]
    assert [one.tolist() for one in copier.one_ahead(pieces)] == [[0, 1], [2, 3], [4, 5], [6]]
    places = [one.data_ptr() for one in copier.one_ahead(pieces)]
    assert places[0] == places[2] != places[1] == places[3] and pieces[0].data_ptr() not in places
    assert pin(pieces, torch.device("cpu")) is False
    rooms = [torch.zeros(2)]
    (copied,) = copier.start(pieces[:1], rooms).wait()
    assert copied is rooms[0] and copied.tolist() == [0, 1]


def test_head_that_is_not_its_own() -> None:
    model = build("qwen2")
    model.lm_head.bias = nn.Parameter(torch.zeros(320))
    with pytest.raises(ValueError, match="`stream_head` needs a head of its own"):
        streamed_head.stream_head(model)
    model = build("qwen2")
    model.lm_head = type("Quantised", (nn.Linear,), {})(64, 320, bias=False)
    with pytest.raises(ValueError, match="`stream_head` needs a head of its own"):
        streamed_head.stream_head(model)
    model = build("qwen2", tie_word_embeddings=True)
    model.tie_weights()
    with pytest.raises(ValueError, match="`stream_head` needs a head of its own"):
        streamed_head.stream_head(model)


def test_trained_head_is_refused() -> None:
    model = build("qwen2").requires_grad_(False)
    streamed_head.stream_head(model)
    keep_out_of_ddp(model)
    assert set(model._ddp_params_and_buffers_to_ignore) == {"lm_head.weight"}
    with pytest.raises(ValueError, match="`stream_head` needs a frozen head"):
        keep_out_of_ddp(model.requires_grad_(True))


def test_whoever_moves_the_model_leaves_the_head() -> None:
    model = build("qwen2")
    streamed_head.stream_head(model)
    model.to("meta").half()
    assert model.lm_head.weight.device.type == "cpu" and model.lm_head.weight.dtype == torch.float16
    assert model.device.type == "meta" and "lm_head.weight" in model.state_dict()


# Layers


def quantised(path: Path, family: str, layers: int = 6) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if not path.exists():
        build(family, num_hidden_layers=layers).save_pretrained(path)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32, bnb_4bit_quant_storage=torch.float16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(path, config=read_config(str(path)), quantization_config=config)
    for module in model.modules():
        module.support_avx512bf16_for_cpu = False  # answers in float32 on any CPU
    return model


def with_adapter(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    layers = ["q_proj", "down_proj", *(f"ts_encoder.mlp.{number}" for number in (0, 2, 4))]
    adapted = get_peft_model(trained(model), LoraConfig(r=2, target_modules=layers, init_lora_weights=False))
    return adapted.train()


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_step_with_streamed_layers(family: str, count: int, tmp_path: Path) -> None:
    """Twice over, with real 4-bit weights: a copy is written over with noise as soon as it is given back."""
    plain = with_adapter(quantised(tmp_path / "model", family))
    model = quantised(tmp_path / "model", family)
    stream = LayerStream(model, count)
    model = with_adapter(model)
    spoil_what_has_left(stream)
    expected = step_of(plain)
    for _ in range(2):
        check_same_adapter(step_of(model), expected)
    assert len(stream._here) <= (1 if count <= 3 else 2)


def spoil_what_has_left(stream: LayerStream) -> None:
    leave = stream._leave

    def leave_and_spoil(number: int) -> None:
        copy = stream._here.get(number)
        leave(number)
        for tensor in copy.tensors if copy else []:
            tensor.fill_(7)

    stream._leave = leave_and_spoil  # type: ignore[method-assign]


def step_of(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch()).loss
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def check_same_adapter(found: Any, expected: Any) -> None:
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys() and len(found[1]) > 12
    for name, gradient in found[1].items():
        assert torch.equal(gradient, expected[1][name]), name


def test_streamed_layers_answer_and_take_no_memory(tmp_path: Path) -> None:
    plain, model = (quantised(tmp_path / "model", "qwen2") for _ in range(2))
    stream = LayerStream(model, 2)
    layers = [model.model.layers[number] for number in (1, 4)]
    streamed = [weight for layer in layers for weight in layer.parameters() if hasattr(weight, "quant_state")]
    assert len(streamed) == 14 and stream.size == sum(weight.numel() * 2 for weight in streamed)
    assert {weight.untyped_storage().nbytes() for weight in streamed} == {2}
    whole, split = (sum(weight.numel() for weight in one.parameters()) for one in (plain, model))
    assert whole == split  # what is printed of the model
    question = inputs(record(1, 40, 17))
    answers = [one.generate(**question, max_new_tokens=9, do_sample=False) for one in (plain, model)]
    assert torch.equal(*answers)
    keep_out_of_ddp(model.requires_grad_(False))
    ignored = set(model._ddp_params_and_buffers_to_ignore)
    left = [name for name, weight in model.named_parameters() if weight.untyped_storage().nbytes() == 2]
    assert left and set(left) == ignored


def test_weights_come_while_the_neighbour_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantised(tmp_path / "model", "qwen2")
    stream, seen = LayerStream(model, 3), []
    start = stream._copier.start
    monkeypatch.setattr(stream._copier, "start", lambda tensors: seen.append("copy") or start(tensors))
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.q_proj.register_forward_pre_hook(lambda *_, number=number: seen.append(number))
    model = with_adapter(model)
    step_of(model), seen.clear()
    step_of(model)
    # Of 1, 3 and 5: each copied once a pass, before its neighbour computes; 5 begins the backward pass and is there.
    forward, backward = seen[: seen.index(5) + 1], seen[seen.index(5) + 1 :]
    assert forward == ["copy", 0, 1, "copy", 2, 3, "copy", 4, 5] or forward == [
        0,
        "copy",
        1,
        "copy",
        2,
        3,
        "copy",
        4,
        5,
    ]
    assert backward == [5, "copy", 4, 3, "copy", 2, 1, 0]


def test_layers_in_16_bit_are_refused() -> None:
    with pytest.raises(ValueError, match="`stream_layers` needs weights in 4 bit"):
        LayerStream(build("qwen2"), 1)


@given(layers=st.integers(1, 100), data=st.data())
def test_streamed_layers_are_spread(layers: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, layers))
    numbers = spread(layers, count)
    gaps = [after - before for before, after in itertools.pairwise(numbers)]
    assert len(set(numbers)) == count and numbers[0] >= 0 and numbers[-1] < layers
    assert count > layers // 2 or min(gaps, default=2) >= 2


# Read into CPU memory


@pytest.mark.parametrize("bits", [None, 4])
def test_parts_are_never_on_the_device(bits: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The device is `meta`, where what has been there has lost its numbers."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    plain = build("qwen2")
    plain.save_pretrained(tmp_path)
    config = read_config(str(tmp_path))
    config.on_cpu = (placement.EMBEDDING, placement.HEAD)
    quantisation = BitsAndBytesConfig(load_in_4bit=True) if bits else None
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, config=config, device_map={"": torch.device("meta")}, quantization_config=quantisation
    )
    devices = {name: weight.device.type for name, weight in model.named_parameters()}
    on_cpu = {"model.embed_tokens.weight", "lm_head.weight"}
    assert {name for name, device in devices.items() if device == "cpu"} == on_cpu
    assert set(devices.values()) == {"cpu", "meta"}
    for name in on_cpu:
        assert torch.equal(model.get_parameter(name), plain.get_parameter(name))
    hooked = [name for name, module in model.named_modules() if hasattr(module, "_hf_hook") or "to" in vars(module)]
    assert not hooked and model.hf_device_map == {"": torch.device("meta")}
    assert "meta device" not in caplog.text
    assert "on_cpu" not in model.config.to_dict()
    assert quantisation is None or not quantisation.llm_int8_enable_fp32_cpu_offload


@pytest.mark.parametrize("device_map", [None, "auto", {"": "cpu"}, {"model": 0, "lm_head": 1}])
def test_other_maps_are_left_alone(device_map: Any) -> None:
    assert placement.split(device_map, ("lm_head",)) is None
    assert placement.split({"": 0}, ()) is None


def test_every_part_has_its_place() -> None:
    """A part that no entry of the map covers would be read into CPU memory without a word."""
    for family in FAMILIES:
        model = build(family)
        names = [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
        parts = placement.split({"": 0}, ("lm_head",))
        assert all(any(name.startswith(f"{part}.") for part in parts) for name in names)
