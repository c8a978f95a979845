"""Engines that would drop the encoder are refused in one line; versions with a known fault are reported."""

import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


pytest.importorskip("llamafactory", reason="the keys are fields of LLaMA-Factory's arguments")
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


def test_both_are_looked_at_when_a_run_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is loaded, and for runs of ours only; with a stand-in for the version."""
    from llamafactory_ext.training import engines, runs

    said: list[str] = []
    monkeypatch.setattr(runs, "_look_into_folder", lambda *arguments: None)
    monkeypatch.setattr(runs.folder, "describe", lambda *arguments: {})
    monkeypatch.setattr(engines.logger, "warning_rank0", said.append)
    monkeypatch.setattr(engines.importlib.metadata, "version", lambda name: "5.5.0")

    def parse(template: str, **model_keys: Any) -> None:
        training_args = SimpleNamespace(
            do_train=True,
            gradient_accumulation_steps=16,
            output_dir=str(tmp_path / "none"),
            predict_with_generate=False,
            eval_strategy="no",
        )
        model_args = SimpleNamespace(model_name_or_path=str(tmp_path), flash_attn="sdpa", **model_keys)
        parsed = (model_args, SimpleNamespace(template=template), training_args, SimpleNamespace(stage="sft"), None)
        upstream: Any = SimpleNamespace(_parse_train_args=lambda args: parsed)
        runs.install_train(upstream)
        upstream._parse_train_args(None)

    parse("chatts")
    assert len(said) == 1 and "divides gradients" in said[0]
    with pytest.raises(ValueError, match="KTransformers"):
        parse("chatts", use_kt=True)
    said.clear()
    parse("qwen", use_kt=True)
    assert not said
