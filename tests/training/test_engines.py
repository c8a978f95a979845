"""Engines that would drop the encoder are refused in one line; versions with a known fault are reported."""

import re
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


pytest.importorskip("llamafactory", reason="the keys are fields of LLaMA-Factory's arguments")
from helpers_model import config_dict
from llamafactory.hparams import DataArguments, FinetuningArguments, ModelArguments

from llamafactory_ext.training import arguments
from llamafactory_ext.training.engines import known_faults, refuse_other_engines


@pytest.mark.parametrize(
    ("transformers", "flash_attention", "accumulation", "said"),
    [
        ("5.6.0", True, 1, "or `flash_attn: sdpa`"),
        ("5.6.0", False, 16, None),
        ("5.5.4", True, 16, None),
        ("5.5.3", False, 16, r"\(16\) twice, .*: pip install transformers==5\.5\.4"),
        ("5.2.0", False, 2, "transformers 5.2.0 divides"),
        ("5.5.3", True, 1, None),
        ("5.1.0", False, 2, None),
        ("4.57.6", True, 2, None),
        ("5.8.0", True, 2, None),
    ],
)
def test_known_faults(transformers: str, flash_attention: bool, accumulation: int, said: str | None) -> None:
    found = list(known_faults(transformers, flash_attention, accumulation))
    assert len(found) == (said is not None)
    assert said is None or re.search(said, found[0])


@pytest.mark.parametrize("name", ["USE_MCA", "USE_MEGATRON_BRIDGE"])
def test_megatron_is_refused_with_our_template_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match=rf"^{name}=1 \(Megatron .* does not know ChatTS .*: remove it"):
        arguments.SeriesDataArguments(template="chatts")
    arguments.SeriesDataArguments(template="qwen")
    monkeypatch.setenv(name, "0")
    arguments.SeriesDataArguments(template="chatts")


@pytest.mark.parametrize("key", ["use_kt", "use_hyper_parallel"])
def test_engines_by_key(key: str) -> None:
    with pytest.raises(ValueError, match=f"^`{key}: true`"):
        refuse_other_engines(SimpleNamespace(), SimpleNamespace(**{key: True}))
    refuse_other_engines(SimpleNamespace(**{key: False}), FinetuningArguments())


def test_every_list_of_argument_classes_is_extended() -> None:
    """`_TRAIN_MBRIDGE_ARGS` is on LLaMA-Factory's main; the other lists may be empty."""
    upstream: Any = ModuleType("parser")
    for name in ("_TRAIN_ARGS", "_INFER_ARGS", "_EVAL_ARGS", "_TRAIN_MCA_ARGS", "_TRAIN_MBRIDGE_ARGS"):
        setattr(upstream, name, [ModelArguments, DataArguments, FinetuningArguments])
    arguments.install(upstream)
    for name, classes in vars(upstream).items():
        if name.endswith("_ARGS"):
            assert classes == [ModelArguments, arguments.SeriesDataArguments, arguments.SeriesFinetuningArguments]


def test_a_run_is_stopped_before_its_adapter() -> None:
    from llamafactory_ext.model import Qwen2TSConfig
    from llamafactory_ext.training import levers

    upstream: Any = SimpleNamespace(init_adapter=lambda *arguments: "adapted")
    levers.install(upstream)
    config = Qwen2TSConfig.from_dict(config_dict("qwen2"))
    with pytest.raises(ValueError, match="KTransformers"):
        upstream.init_adapter(config, None, SimpleNamespace(use_kt=True), SimpleNamespace(), True)
    assert upstream.init_adapter(None, None, SimpleNamespace(use_kt=True), SimpleNamespace(), True) == "adapted"


def test_faults_are_reported_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for upstream's Trainer and for the versions."""
    from llamafactory_ext.model import ChatTSProcessor
    from llamafactory_ext.training import engines, trainers

    class Trainer:
        model = SimpleNamespace(config=SimpleNamespace(_attn_implementation="flash_attention_2"))
        args = SimpleNamespace(gradient_accumulation_steps=16)
        train_dataset = None

        def __init__(self, **given: Any) -> None:
            self.given = given

        def remove_callback(self, callback: Any) -> None:
            pass

    upstream: Any = SimpleNamespace(CustomSeq2SeqTrainer=Trainer)
    trainers.install_sft(upstream)
    said: list[str] = []
    monkeypatch.setattr(engines.logger, "warning_rank0", said.append)
    processor = object.__new__(ChatTSProcessor)
    for version, words in (("5.6.0", "FlashAttention-2"), ("5.5.0", "divides gradients"), ("5.5.4", "")):
        monkeypatch.setattr(engines.importlib.metadata, "version", lambda name, found=version: found)
        for one in (processor, None):  # not for a run without series
            upstream.CustomSeq2SeqTrainer(finetuning_args=SimpleNamespace(event_f1_steps=None), processor=one)
        assert words in "".join(said) and len(said) == bool(words)
        said.clear()
