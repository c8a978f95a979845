"""Which lever is pulled in which run: trained or asked, exported, with DeepSpeed or FSDP, with which checkpoints."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_model import build

from llamafactory_ext.model.attention import SDPA_REPEATED
from llamafactory_ext.model.host_embedding import HostEmbedding
from llamafactory_ext.model.streamed_head import StreamedHead
from llamafactory_ext.training import levers


PLAIN: dict[str, Any] = {"stage": "sft", "finetuning_type": "lora", "compute_accuracy": False}
PLAIN |= {"offload_checkpoints": False, "layers_without_checkpoints": 0, "train_timeseries_modules": True}
MODEL: dict[str, Any] = {"compute_dtype": torch.float32, "upcast_layernorm": False, "export_dir": None}
MODEL |= {"use_reentrant_gc": True, "use_unsloth_gc": False, "disable_gradient_checkpointing": False}


def checkpointed(**sizes: Any) -> Any:
    model = build("qwen2", **sizes)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    return model.requires_grad_(False)


def pull(model: Any, trains: bool = True, **keys: Any) -> Any:
    """Through what is put in place of `init_adapter`, with an upstream that adds none."""
    upstream: Any = SimpleNamespace(init_adapter=lambda config, model, *others: model)
    assert levers.install(upstream) == "wrapped"
    model_args = SimpleNamespace(**{key: keys.pop(key, value) for key, value in MODEL.items()})
    return upstream.init_adapter(model.config, model, model_args, SimpleNamespace(**PLAIN | keys), trains)


@pytest.mark.parametrize(
    ("trains", "export", "expected"), [(True, None, False), (False, None, True), (False, "out", False)]
)
def test_answers_use_a_cache(trains: bool, export: str | None, expected: bool) -> None:
    """What is exported says what was published; and only training meets what bitsandbytes repacks in evaluation."""
    model = checkpointed()
    model.generation_config.use_cache = False
    model.lm_head.support_avx512bf16_for_cpu = True
    pull(model, trains, export_dir=export)
    assert model.generation_config.use_cache is expected
    assert model.lm_head.support_avx512bf16_for_cpu is not trains


@pytest.mark.parametrize(
    ("trains", "deepspeed", "fsdp", "model_keys", "lean", "skips"),
    [
        (True, None, False, {}, True, True),
        (False, None, False, {}, False, False),
        (True, {}, False, {}, False, False),
        (True, None, True, {}, False, False),
        (True, None, False, {"use_reentrant_gc": False}, True, False),
        (True, None, False, {"use_unsloth_gc": True}, True, False),
    ],
)
def test_who_keeps_less(
    trains: bool, deepspeed: Any, fsdp: bool, model_keys: dict[str, Any], lean: bool, skips: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(levers, "deepspeed_config", lambda: deepspeed)
    monkeypatch.setattr(levers, "is_fsdp_enabled", lambda: fsdp)
    model = pull(checkpointed(), trains, **model_keys)
    assert ("forward" in vars(model.model.norm)) is lean
    assert ["forward" in vars(layer.mlp.down_proj) for layer in model.model.layers] == [skips] * 2


@pytest.mark.parametrize(
    ("kind", "encoder", "trains", "expected"),
    [("freeze", True, True, True), ("freeze", False, True, False), ("lora", True, True, False),
     ("freeze", True, False, False)],
)  # fmt: skip
def test_freeze_tuning_trains_the_whole_encoder(kind: str, encoder: bool, trains: bool, expected: bool) -> None:
    model = checkpointed().bfloat16()
    model.model.norm.weight.requires_grad_(True)
    pull(model, trains, finetuning_type=kind, train_timeseries_modules=encoder)
    weights = list(model.ts_encoder.parameters())
    assert {weight.requires_grad for weight in weights} == {expected}
    model = checkpointed().bfloat16()  # nothing else is trained, so that the encoder is in float32
    pull(model, trains, finetuning_type=kind, train_timeseries_modules=encoder)
    assert {weight.dtype for weight in model.ts_encoder.parameters()} == {
        torch.float32 if expected else torch.bfloat16
    }


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize(
    ("key", "kind"), [("embedding_on_cpu", HostEmbedding), ("stream_head", StreamedHead), ("", None)]
)
def test_weights_in_cpu_memory_are_kept_out_of_ddp(trains: bool, key: str, kind: Any) -> None:
    model = pull(checkpointed(), trains, **({key: True} if key else {}))
    assert [type(one) for one in model.modules() if isinstance(one, HostEmbedding | StreamedHead)] == [kind] * bool(
        key
    )
    assert hasattr(model, "_ddp_params_and_buffers_to_ignore") == (trains and bool(key))


def test_what_is_exported_is_whole() -> None:
    assert not isinstance(pull(checkpointed(), False, stream_head=True, export_dir="out").lm_head, StreamedHead)


@pytest.mark.parametrize(("trains", "ours"), [(True, True), (True, False), (False, True)])
def test_a_run_of_ours_begins(trains: bool, ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(levers, "begin_training", lambda: begun.append(1))
    monkeypatch.setattr(levers, "is_our_run", lambda args: ours)
    pull(checkpointed(), trains)
    assert len(begun) == (trains and ours)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"stage": "rm"}, True), ({"stage": "ppo"}, True), ({"stage": "kto"}, None), ({}, False),
        ({"compute_accuracy": True}, True), ({"use_asft_loss": True}, True), ({"use_asft_loss": False}, False),
    ],
)  # fmt: skip
def test_who_wants_logits(keys: dict[str, Any], expected: bool | None) -> None:
    assert pull(checkpointed(), **keys).returns_logits is expected


WAYS = [{"disable_gradient_checkpointing": True}, {"use_reentrant_gc": False}, {"use_unsloth_gc": True}]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", ["offload_checkpoints", "stream_layers"])
def test_checkpoints_as_they_are_by_default(key: str, way: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^`{key}` needs gradient checkpointing as it is by default; remove it, or"):
        pull(checkpointed(), **{key: 1}, **way)
    said = "needs weights in 4 bit" if key == "stream_layers" else None
    if said is None:
        assert pull(checkpointed(), False, **{key: 1}, **way).offload_checkpoints is False
        return
    with pytest.raises(ValueError, match=said):  # who is asked has no backward pass
        pull(checkpointed(), False, **{key: 1}, **way)


@pytest.mark.parametrize(("count", "told"), [(2, "needs weights in 4 bit"), (3, "is 3; the model has 2 layers")])
def test_layers_that_there_are(count: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        pull(checkpointed(), stream_layers=count)


@pytest.mark.parametrize(("deepspeed", "fsdp"), [({}, False), (None, True)])
@pytest.mark.parametrize("key", ["embedding_on_cpu", "stream_head", "stream_layers"])
def test_who_places_weights_himself(key: str, deepspeed: Any, fsdp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers, "deepspeed_config", lambda: deepspeed)
    monkeypatch.setattr(levers, "is_fsdp_enabled", lambda: fsdp)
    with pytest.raises(ValueError, match=f"^`{key}` does not go with DeepSpeed or FSDP"):
        pull(checkpointed(), **{key: 1})


@pytest.mark.parametrize(
    ("count", "more", "fits"),
    [(1, {}, True), (2, {}, False), (1, {"disable_gradient_checkpointing": True}, False)],
)
def test_layers_without_checkpoints(
    count: int, more: dict[str, Any], fits: bool, log: pytest.LogCaptureFixture
) -> None:
    model = checkpointed()
    assert pull(checkpointed(), False, layers_without_checkpoints=2).model.layers[1].gradient_checkpointing
    if not fits:
        with pytest.raises(ValueError, match=f"`layers_without_checkpoints` is {count}; expected less than the mo"):
            pull(model, layers_without_checkpoints=count, **more)
        return
    pull(model, layers_without_checkpoints=count)
    assert [layer.gradient_checkpointing for layer in model.model.layers] == [True, False]
    assert log.records[-1].message == "The last 1 of 2 layers are computed once a step, without checkpoints."


@pytest.mark.parametrize("trains", [True, False])
def test_float16_of_a_quantised_model(
    trains: bool, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms are upcast by upstream in training, and by us for answers; DeepSpeed casts the whole model itself."""
    for quantised, deepspeed in ((True, None), (False, None), (True, {})):
        log.clear()
        monkeypatch.setattr(levers, "deepspeed_config", lambda deepspeed=deepspeed: deepspeed)
        model = checkpointed().bfloat16()
        if quantised:
            model.quantization_method = "bitsandbytes"
        count = sum(1 for _ in model.parameters())
        pull(model, trains, compute_dtype=torch.float16, upcast_layernorm=True)
        guards = quantised and deepspeed is None
        told = [f"{count} frozen weights in the other half precision cast to torch.float16."] * (deepspeed is None)
        told += ["2 down projections are kept within float16's range."] * guards
        assert [one.message for one in log.records] == told
        assert (model.model.norm.weight.dtype == torch.float32) == (guards and not trains)
    log.clear()
    pull(checkpointed().half(), trains, compute_dtype=torch.float16)
    assert not log.records


@pytest.mark.parametrize(("card", "expected"), [((7, 5), SDPA_REPEATED), ((8, 0), "sdpa"), (None, "sdpa")])
def test_cards(
    card: tuple[int, int] | None, expected: str, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    model = build("qwen2", attention="sdpa")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: card)
    levers._fit_card(model)
    assert model.config._attn_implementation == expected
    assert ("SDPA on a card older than Ampere" in log.text) == (expected == SDPA_REPEATED)


def test_what_the_levers_say(log: pytest.LogCaptureFixture) -> None:
    """320 x 1024 numbers of 4 bytes are 1.25 MiB, of embedding and head each."""
    wide = {"hidden_size": 1024, "ts": {**build("qwen2").config.ts, "hidden_size": 1024}}
    pull(checkpointed(**wide), embedding_on_cpu=True, stream_head=True, offload_checkpoints=True)
    assert [one.message for one in log.records] == [
        "The embedding table stays in CPU memory: 1.2 MiB less on the card.",
        "The head comes from CPU memory piece by piece: 1.2 MiB less on the card.",
        "The layers' checkpoints wait for the backward pass in CPU memory.",
    ]


def test_answers_are_constrained_on_request(monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture) -> None:
    """With a tokenizer's grammars; upstream's own `generate`, bound to the model, must not stand before ours."""
    made: list[Any] = []
    monkeypatch.setattr(levers.AutoTokenizer, "from_pretrained", lambda path, revision: (path, revision))
    monkeypatch.setattr(levers, "Grammars", lambda *given: made.append(given) or "grammars")
    model = checkpointed()
    model.generate = None
    where = {"model_name_or_path": "x", "model_revision": "main"}
    monkeypatch.setattr(levers, "_fit_precision", lambda *others: None)
    assert pull(model, False).grammars is None and "generate" in vars(model)
    monkeypatch.setitem(MODEL, "model_name_or_path", "x"), monkeypatch.setitem(MODEL, "model_revision", "main")
    pull(model, False, constrained_answers=True)
    assert model.grammars == "grammars" and "generate" not in vars(model)
    assert made == [(tuple(where.values()), 320)]
    assert log.records[-1].message == "Answers about series are kept to JSON of anomalies."

    def missing(*given: Any) -> Any:
        raise ModuleNotFoundError(name="xgrammar")

    monkeypatch.setattr(levers, "Grammars", missing)
    with pytest.raises(ValueError, match=r"^`constrained_answers` needs xgrammar: pip install 'llamafactory-ext\["):
        pull(model, False, constrained_answers=True)
