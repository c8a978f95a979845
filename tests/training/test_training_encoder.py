"""What of the encoder is trained, and how fast: LLaMA-Factory's own adapters, PEFT, the Trainer's optimizer."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_model import FAMILIES, build, tokenizer, ts_section
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM


QKV = ["q_proj", "k_proj", "v_proj"]
ALL = [*QKV, "o_proj", "gate_proj", "up_proj", "down_proj"]
ENCODER = [f"ts_encoder.mlp.{layer}" for layer in (0, 2, 4, 6, 8)]

Parse = Callable[..., tuple[Any, ...]]


@pytest.fixture
def parse(tmp_path: Path) -> Parse:
    from llamafactory.hparams import get_train_args

    def parse_recipe(**values: Any) -> tuple[Any, ...]:
        """Returns model, training and fine-tuning arguments of a recipe."""
        recipe = {
            "model_name_or_path": str(tmp_path),
            "stage": "sft",
            "do_train": True,
            "dataset": "none",
            "template": "chatts",
            "output_dir": str(tmp_path / "out"),
            "report_to": "none",
            "use_cpu": True,
            "learning_rate": 1e-4,
            "weight_decay": 0.1,
        }
        model_args, _, training_args, finetuning_args, _ = get_train_args(recipe | values)
        return model_args, training_args, finetuning_args

    return parse_recipe


def adapt(model: Any, model_args: Any, finetuning_args: Any) -> Any:
    from llamafactory.model.adapter import init_adapter

    return init_adapter(model.config, model, model_args, finetuning_args, is_trainable=True)


def plain_model() -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=320, num_key_value_heads=2, **sizes))


def in_decoder(targets: list[str]) -> set[str]:
    kind = {name: "self_attn" if name[1] == "_" else "mlp" for name in targets}
    return {f"model.layers.{layer}.{kind[name]}.{name}" for layer in (0, 1) for name in targets}


def with_lora(model: Any) -> set[str]:
    prefix = "base_model.model."
    return {name.removeprefix(prefix) for name, module in model.named_modules() if hasattr(module, "lora_A")}


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# --- what is trained ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("target", "modules"), [("q_proj,k_proj,v_proj", QKV), ("all", ALL)])
@pytest.mark.parametrize("train_encoder", [True, False])
def test_lora_trains_exactly_these(
    parse: Parse, family: str, target: str, modules: list[str], train_encoder: bool
) -> None:
    model_args, _, finetuning_args = parse(lora_target=target, train_timeseries_modules=train_encoder)
    model = adapt(build(family), model_args, finetuning_args)
    expected = in_decoder(modules) | set(ENCODER if train_encoder else [])
    assert with_lora(model) == expected
    assert trained(model) == {f"base_model.model.{one}.lora_{ab}.default.weight" for one in expected for ab in "AB"}


def test_targets_name_the_encoders_layers_in_full(parse: Parse) -> None:
    from llamafactory.model import adapter

    model = build("qwen2")
    _, _, finetuning_args = parse()
    every = adapter.find_all_linear_modules(model, False)
    assert {"0", "2", "4", "6", "8"} <= set(every), "upstream names layers by their last part"
    assert sorted(adapter.patch_target_modules(model, finetuning_args, every)) == sorted(ALL + ENCODER)
    assert adapter.patch_target_modules(model, finetuning_args, QKV) == QKV + ENCODER
    assert adapter.patch_target_modules(model, finetuning_args, QKV + ENCODER) == QKV + ENCODER
    _, _, finetuning_args = parse(train_timeseries_modules=False)
    assert sorted(adapter.patch_target_modules(model, finetuning_args, every)) == sorted(ALL)


@pytest.mark.parametrize("train_encoder", [True, False])
def test_full_tuning(parse: Parse, train_encoder: bool) -> None:
    model_args, _, finetuning_args = parse(finetuning_type="full", train_timeseries_modules=train_encoder)
    model = adapt(build("qwen3"), model_args, finetuning_args)
    everything = {name for name, _ in model.named_parameters()}
    encoder = {name for name in everything if name.startswith("ts_encoder.")}
    assert len(encoder) == 11
    assert trained(model) == (everything if train_encoder else everything - encoder)


def test_freeze_tuning_leaves_the_encoder_on_request(parse: Parse) -> None:
    # Without the wrapper, `.0.` would match the encoder's first layer beside the decoder's.
    values = {"finetuning_type": "freeze", "freeze_trainable_layers": 2, "train_timeseries_modules": False}
    model_args, _, finetuning_args = parse(**values)
    model = adapt(build("qwen2"), model_args, finetuning_args)
    assert trained(model) and all(name.startswith("model.layers.") for name in trained(model))


# --- how fast ---


def make_trainer(model: Any, training_args: Any, finetuning_args: Any) -> Any:
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

    return CustomSeq2SeqTrainer(
        model=model, args=training_args, finetuning_args=finetuning_args, processor=None, tokenizer=None
    )


def settings(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Returns what applies to each parameter that the optimizer holds, by name; fails where one is held twice."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [(names[id(one)], group) for group in optimizer.param_groups for one in group["params"]]
    assert len({name for name, _ in held}) == len(held)
    return {name: {key: value for key, value in group.items() if key != "params"} for name, group in held}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_optimizer_differs_from_the_trainers_in_the_encoders_rate_only(parse: Parse, family: str, kind: str) -> None:
    model_args, training_args, finetuning_args = parse(finetuning_type=kind)
    model = build(family, ts=ts_section(use_layer_norm=True))
    model = adapt(model, model_args, finetuning_args)
    usual = make_trainer(model, training_args, finetuning_args)
    usual.create_optimizer()
    before = settings(usual.optimizer, model)

    _, _, finetuning_args = parse(finetuning_type=kind, timeseries_sft_lr=3e-6)
    trainer = make_trainer(model, training_args, finetuning_args)
    trainer.create_optimizer()
    after = settings(trainer.optimizer, model)

    assert type(trainer.optimizer) is type(usual.optimizer)
    assert set(after) == set(before) == trained(model)
    encoder = {name for name in after if "ts_encoder." in name}
    assert encoder and encoder != set(after)
    assert {name for name in after if after[name]["lr"] == 3e-6} == encoder
    assert {name for name in after if after[name]["lr"] == 1e-4} == set(after) - encoder
    for name in after:
        assert {**after[name], "lr": 1e-4} == before[name]

    decaying = {name for name in after if after[name]["weight_decay"] == 0.1}
    assert decaying == set(trainer.get_decay_parameter_names(model)) & trained(model)
    if kind == "full":  # some of each kind, so that the comparison says something
        assert encoder & decaying and encoder - decaying and decaying - encoder and set(after) - encoder - decaying


def test_scheduler_keeps_the_ratio_and_the_log_shows_the_language_models_rate(parse: Parse) -> None:
    model_args, training_args, finetuning_args = parse(timeseries_sft_lr=1e-6, lr_scheduler_type="linear")
    model = adapt(build("qwen2"), model_args, finetuning_args)
    trainer = make_trainer(model, training_args, finetuning_args)
    trainer.create_optimizer_and_scheduler(num_training_steps=10)
    assert trainer.lr_scheduler.get_last_lr()[0] == 1e-4
    for _ in range(5):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert sorted(set(trainer.lr_scheduler.get_last_lr())) == pytest.approx([5e-7, 5e-5])


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What the package logs. Through a handler of its own: LLaMA-Factory's loggers do not propagate."""
    logger, shown = logging.getLogger("llamafactory.ext"), []
    handler = logging.Handler()
    handler.emit = lambda one: shown.append(one.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    yield shown
    logger.removeHandler(handler)


def test_rate_is_logged(parse: Parse, messages: list[str]) -> None:
    from llamafactory.train.sft import trainer

    model_args, training_args, finetuning_args = parse(timeseries_sft_lr=1e-6)
    model = adapt(build("qwen2"), model_args, finetuning_args)
    assert trainer.create_custom_optimizer(model, training_args, finetuning_args) is not None
    assert any(message.startswith("LoRA on the time-series encoder: ts_encoder.mlp.0, ") for message in messages)
    count = sum(one.numel() for name, one in model.named_parameters() if one.requires_grad and "ts_encoder" in name)
    rate = (
        f"Learning rate of the time-series encoder: 1e-06 ({count:,} parameters in 10 tensors); of the rest: 0.0001."
    )
    assert rate in messages


@pytest.mark.parametrize("other", [{"loraplus_lr_ratio": 16.0}, {"use_muon": True}], ids=["LoRA+", "Muon"])
def test_other_optimizers_are_refused(parse: Parse, other: dict[str, Any]) -> None:
    from llamafactory.train.sft import trainer

    model_args, training_args, finetuning_args = parse(timeseries_sft_lr=1e-6, **other)
    model = adapt(build("qwen2"), model_args, finetuning_args)
    with pytest.raises(ValueError, match="`timeseries_sft_lr` does not work with the optimizer that was chosen"):
        trainer.create_custom_optimizer(model, training_args, finetuning_args)
    _, _, finetuning_args = parse(**other)
    assert trainer.create_custom_optimizer(model, training_args, finetuning_args) is not None


def test_rate_without_a_trained_encoder_is_refused(parse: Parse) -> None:
    from llamafactory.train.sft import trainer

    values = {"finetuning_type": "freeze", "freeze_trainable_layers": 1}  # layer 1: no part of the encoder
    model_args, training_args, finetuning_args = parse(timeseries_sft_lr=1e-6, **values)
    model = adapt(build("qwen2"), model_args, finetuning_args)
    with pytest.raises(ValueError, match="no parameter of a time-series encoder is trained"):
        trainer.create_custom_optimizer(model, training_args, finetuning_args)


@pytest.mark.parametrize("key", ["params", "model", "optimizer_dict"])
def test_optimizers_that_group_parameters_themselves(parse: Parse, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Trainer

    from llamafactory_ext.training.encoder import optimizer_with_encoder_lr

    _, training_args, _ = parse()
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", lambda args, model: (torch.optim.SGD, {key: []}))
    with pytest.raises(
        ValueError, match="does not work with the `optim` that was chosen, which groups parameters its"
    ):
        optimizer_with_encoder_lr(build("qwen2"), training_args, 1e-6)


# --- another model ---


def test_another_model_is_untouched(parse: Parse, tmp_path: Path) -> None:
    from llamafactory.model import adapter, loader
    from llamafactory.train.sft import trainer

    model = plain_model()
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model_args, training_args, finetuning_args = parse(template="qwen", lora_target="all")

    targets = adapter.find_all_linear_modules(model, False)
    assert adapter.patch_target_modules(model, finetuning_args, targets) is targets
    assert adapter.get_forbidden_modules(model.config, finetuning_args) == set()
    assert trainer.create_custom_optimizer(model, training_args, finetuning_args) is None
    config = loader.load_config(model_args)
    assert type(config) is Qwen2Config
    assert config.to_dict() == loader.load_config.__wrapped__(model_args).to_dict()
    theirs = loader.AutoProcessor.__base__.from_pretrained(str(tmp_path))
    assert type(loader.AutoProcessor.from_pretrained(str(tmp_path))) is type(theirs)
    assert with_lora(adapt(model, model_args, finetuning_args)) == in_decoder(ALL)


def test_another_model_is_untouched_in_full_tuning(parse: Parse) -> None:
    with pytest.raises(ValueError, match="`train_timeseries_modules` is for runs of a ChatTS checkpoint"):
        parse(template="qwen", finetuning_type="full", train_timeseries_modules=False)
    model_args, _, finetuning_args = parse(template="qwen", finetuning_type="full")
    model = adapt(plain_model(), model_args, finetuning_args)
    assert trained(model) == {name for name, _ in model.named_parameters()}
