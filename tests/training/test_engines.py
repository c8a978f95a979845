"""Engines that would drop the encoder are refused in one line; versions with a known fault are reported."""

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


pytest.importorskip("llamafactory", reason="the keys are fields of LLaMA-Factory's arguments")
from llamafactory.hparams import DataArguments, FinetuningArguments, ModelArguments

from llamafactory_ext.training import arguments
from llamafactory_ext.training.engines import known_faults, refuse_other_engines


@pytest.mark.parametrize(
    ("transformers", "given", "said"),
    [
        ("5.6.0", {"flash_attn": "fa2"}, "or `flash_attn: sdpa`"),
        ("5.6.0", {"flash_attn": "sdpa", "gradient_accumulation_steps": 16}, None),
        ("5.5.4", {"flash_attn": "fa2", "gradient_accumulation_steps": 16}, None),
        ("5.5.3", {"gradient_accumulation_steps": 16}, r"\(16\) twice, .*: pip install transformers==5\.5\.4"),
        ("5.2.0", {"gradient_accumulation_steps": 2}, "transformers 5.2.0 divides"),
        ("5.5.3", {"gradient_accumulation_steps": 1, "flash_attn": "fa2"}, None),
        ("5.1.0", {"gradient_accumulation_steps": 2}, None),
        ("4.57.6", {"flash_attn": "fa2", "gradient_accumulation_steps": 2}, None),
        ("5.8.0", {"flash_attn": "fa2", "gradient_accumulation_steps": 2}, None),
    ],
)
def test_known_faults(transformers: str, given: dict[str, Any], said: str | None) -> None:
    import re

    both = SimpleNamespace(**given)
    found = list(known_faults(transformers, both, both))
    assert len(found) == (said is not None)
    assert said is None or re.search(said, found[0])


def test_flash_attention_as_llamafactory_names_it() -> None:
    """`flash_attn` is an enumeration there, not a text."""
    model_args = ModelArguments(model_name_or_path="none", flash_attn="fa2")
    assert len(list(known_faults("5.6.0", model_args, SimpleNamespace()))) == 1


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
