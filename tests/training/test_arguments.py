"""The package's YAML keys go through LLaMA-Factory's own parser, and their bad values are told there."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


Parse = Callable[..., tuple[Any, ...]]


@pytest.fixture
def parse(tmp_path: Path) -> Parse:
    from llamafactory.hparams import get_train_args

    def parse_recipe(**values: Any) -> tuple[Any, ...]:
        recipe = {
            "model_name_or_path": "none",
            "stage": "sft",
            "do_train": True,
            "dataset": "none",
            "template": "chatts",
            "output_dir": str(tmp_path),
            "report_to": "none",
        }
        return tuple(get_train_args(recipe | values))

    return parse_recipe


def test_defaults(parse: Parse) -> None:
    from llamafactory_ext.plugin.relevance import OWN_KEYS

    _, data_args, _, finetuning_args, _ = parse()
    found = {key: getattr(one, key) for key in OWN_KEYS for one in (data_args, finetuning_args) if hasattr(one, key)}
    assert found == {
        "overlong_records": "error",
        "timeseries_sft_lr": None,
        "train_timeseries_modules": True,
        "embedding_on_cpu": False,
        "offload_checkpoints": False,
        "layers_without_checkpoints": 0,
        "stream_head": False,
        "stream_layers": 0,
        "event_f1_steps": None,
        "event_f1_records": 16,
        "constrained_answers": False,
    }


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"streaming": True, "val_size": 5},
            "`val_size` does not go with `streaming`: from the second epoch on, train",
        ),
        ({"streaming": True}, None),
        ({"val_size": 5}, None),
        ({"packing": True, "streaming": True}, "`packing` does not go with `streaming`: whether records fit must be"),
        ({"packing": True, "cutoff_len": 1024}, None),
        (
            {"packing": True, "cutoff_len": 1},
            "`packing` needs a `cutoff_len` that is a multiple of 8, found 1; set 8.",
        ),
        ({"packing": True, "cutoff_len": 1023}, "of 8, found 1023; set 1024."),
        ({"neat_packing": True, "cutoff_len": 1025}, "of 8, found 1025; set 1032."),
        ({"cutoff_len": 1023}, None),
    ],
)
def test_data_that_does_not_go_together(keys: dict[str, Any], told: str | None) -> None:
    """With another template it is upstream's business."""
    from llamafactory_ext.training.arguments import SeriesDataArguments

    SeriesDataArguments(template="qwen", dataset="a", **keys)
    if told is None:
        SeriesDataArguments(template="chatts", dataset="a", **keys)
        return
    with pytest.raises(ValueError, match=re.escape(told)):
        SeriesDataArguments(template="chatts", dataset="a", **keys)


LAYERS = "`layers_without_checkpoints` does not go with"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"layers_without_checkpoints": 1}, None),
        ({"layers_without_checkpoints": 0.5}, "`layers_without_checkpoints` is 0.5; expected a whole number from 0."),
        ({"layers_without_checkpoints": -1}, "`layers_without_checkpoints` is -1; expected a whole number from 0."),
        ({"layers_without_checkpoints": True}, "`layers_without_checkpoints` is True; expected a whole number from 0"),
        ({"layers_without_checkpoints": 1, "offload_checkpoints": True}, f"{LAYERS} `offload_checkpoints`, which wou"),
        ({"layers_without_checkpoints": 1, "stream_layers": 1}, f"{LAYERS} `stream_layers`: a streamed layer's weigh"),
        ({"offload_checkpoints": True, "stream_layers": 1, "stream_head": True}, None),
        ({"stream_layers": -1}, "`stream_layers` is -1; expected a whole number from 0."),
        ({"stream_layers": "1"}, "`stream_layers` is '1'; expected a whole number from 0."),
        ({"stream_layers": 1, "finetuning_type": "full"}, "`stream_layers` needs weights that are not trained: `fine"),
        ({"stream_head": True, "finetuning_type": "freeze"}, "`stream_head` needs weights that are not trained: `fin"),
        ({"stream_head": "yes"}, "`stream_head` is 'yes'; expected `true` or `false`."),
        ({"embedding_on_cpu": 1}, "`embedding_on_cpu` is 1; expected `true` or `false`."),
        ({"constrained_answers": "no"}, "`constrained_answers` is 'no'; expected `true` or `false`."),
        ({"event_f1_steps": 1, "event_f1_records": 1}, None),
        *(
            ({key: value}, f"`{key}` is {value!r}; expected a whole number from 1.")
            for key in ("event_f1_steps", "event_f1_records")
            for value in (0, -1, 2.5, True, "often")
        ),
        ({"event_f1_records": None}, "`event_f1_records` is None; expected a whole number from 1."),
        ({"event_f1_steps": 1, "stage": "kto"}, "`event_f1_steps` works in stage `sft`, not `kto`; remove it."),
        ({"event_f1_records": 4, "stage": "kto"}, None),
        ({"timeseries_sft_lr": 5}, None),
        ({"timeseries_sft_lr": 1e-9}, None),
        *(
            ({"timeseries_sft_lr": rate}, f"`timeseries_sft_lr` is {rate!r}; expected a positive number.")
            for rate in (0, -1e-5, float("nan"), float("inf"), "fast")
        ),
        (
            {"timeseries_sft_lr": 1.0, "stage": "kto"},
            "`timeseries_sft_lr` works in stage `sft`, not `kto`; remove it.",
        ),
        ({"timeseries_sft_lr": 1.0, "train_timeseries_modules": False}, "`train_timeseries_modules` is false; remove"),
        ({"train_timeseries_modules": False, "stage": "kto"}, None),
    ],
)
def test_levers_that_do_not_go_together(keys: dict[str, Any], told: str | None) -> None:
    from llamafactory_ext.training.arguments import SeriesFinetuningArguments

    if told is None:
        assert SeriesFinetuningArguments(**{"stage": "sft", **keys})
        return
    with pytest.raises(ValueError, match=re.escape(told)):
        SeriesFinetuningArguments(**{"stage": "sft", **keys})


def test_what_is_put_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless upstream has the fields by then, or builds its list otherwise."""
    from types import SimpleNamespace

    from llamafactory.hparams import DataArguments, FinetuningArguments

    from llamafactory_ext.training import arguments

    upstream: Any = SimpleNamespace(_TRAIN_ARGS=[DataArguments, FinetuningArguments])
    assert arguments.install(upstream) == "extended DataArguments, FinetuningArguments"
    with pytest.raises(TypeError, match=r"^`_TRAIN_ARGS` lacks one of DataArguments, FinetuningArguments$"):
        arguments.install(SimpleNamespace(_TRAIN_ARGS=[DataArguments]))  # type: ignore[arg-type]
    monkeypatch.setitem(FinetuningArguments.__dataclass_fields__, "timeseries_sft_lr", None)
    assert arguments.install(upstream) == "extended DataArguments"
    monkeypatch.setitem(DataArguments.__dataclass_fields__, "overlong_records", None)
    assert arguments.install(upstream) is None


def test_keys_reach_the_arguments(parse: Parse) -> None:
    _, data_args, _, finetuning_args, _ = parse(overlong_records="drop", timeseries_sft_lr=2e-5, event_f1_steps=50)
    assert data_args.overlong_records == "drop"
    assert (finetuning_args.timeseries_sft_lr, finetuning_args.event_f1_steps) == (2e-5, 50)
    assert parse(train_timeseries_modules=False)[3].train_timeseries_modules is False


def test_upstreams_own_checks_still_run(parse: Parse) -> None:
    _, data_args, _, finetuning_args, _ = parse(dataset="a, b", lora_target="q_proj,k_proj")
    assert data_args.dataset == ["a", "b"]
    assert finetuning_args.lora_target == ["q_proj", "k_proj"]
    with pytest.raises(ValueError, match="mask_history"):
        parse(mask_history=True, train_on_prompt=True)


@pytest.mark.parametrize("value", ["maybe", True, None, "Drop"])
def test_overlong_records_must_be_known(parse: Parse, value: Any) -> None:
    with pytest.raises(ValueError, match=r"`overlong_records` is .*; expected `error` or `drop`\."):
        parse(overlong_records=value)


def test_every_key_tells_that_the_plugin_is_needed() -> None:
    from dataclasses import fields

    from llamafactory_ext.plugin.relevance import OWN_KEYS
    from llamafactory_ext.training import arguments

    ours = (arguments.SeriesDataArguments, arguments.SeriesFinetuningArguments)
    added = [{one.name for one in fields(cls)} - {one.name for one in fields(cls.__base__)} for cls in ours]
    assert set(OWN_KEYS) == set.union(*added)


def test_unknown_key_is_still_refused(parse: Parse) -> None:
    with pytest.raises(ValueError, match=r"not used by the HfArgumentParser: \['timeseries_lr'\]"):
        parse(timeseries_lr=1e-5)


def test_command_line(parse: Parse, tmp_path: Path) -> None:
    from llamafactory.hparams import get_train_args

    arguments = "--model_name_or_path none --do_train --dataset none --template chatts --report_to none"
    ours = "--timeseries_sft_lr 1e-5 --train_timeseries_modules true --overlong_records drop"
    _, data_args, _, finetuning_args, _ = get_train_args([*f"{arguments} {ours} --output_dir".split(), str(tmp_path)])
    assert (data_args.overlong_records, finetuning_args.timeseries_sft_lr) == ("drop", 1e-5)


def test_inference_accepts_the_same_recipe() -> None:
    from llamafactory.hparams import get_infer_args

    keys = {"overlong_records": "drop", "timeseries_sft_lr": 1e-5, "train_timeseries_modules": True}
    _, data_args, finetuning_args, _ = get_infer_args({"model_name_or_path": "none", "template": "chatts", **keys})
    assert (data_args.overlong_records, finetuning_args.timeseries_sft_lr) == ("drop", 1e-5)


def test_evaluation_that_would_answer_everything_is_refused(parse: Parse) -> None:
    with pytest.raises(ValueError, match="`predict_with_generate` does not go with `eval_strategy` while training"):
        parse(predict_with_generate=True, eval_strategy="steps", eval_dataset="none")
    parse(predict_with_generate=True, eval_dataset="none")


# --- runs that are not ours, and checkpoints with another template ---


@pytest.mark.parametrize("template", ["qwen", None])
def test_a_chatts_checkpoint_wants_its_template(parse: Parse, demo: Path, template: str | None) -> None:
    from llamafactory.hparams import get_infer_args

    model = str(demo / "model")
    with pytest.raises(ValueError, match=r"model is a ChatTS checkpoint.*: set `template: chatts`\.$"):
        parse(model_name_or_path=model, template=template)
    with pytest.raises(ValueError, match=r"model is a ChatTS checkpoint.*: set `template: chatts`\.$"):
        get_infer_args({"model_name_or_path": model, "template": template})
    parse(model_name_or_path=model, template=template, stage="pt")


def test_a_chatts_checkpoint_that_was_downloaded_wants_its_template(parse: Parse, demo: Path) -> None:
    """What it is, was not known when the arguments were read."""
    from llamafactory.model import loader

    model_args = parse(template="qwen")[0]
    model_args.model_name_or_path = str(demo / "model")
    with pytest.raises(ValueError, match=r"model is a ChatTS checkpoint: set `template: chatts`\.$"):
        loader.load_config(model_args)
    model_args = parse()[0]
    model_args.model_name_or_path = str(demo / "model")
    assert loader.load_config(model_args).model_type == "chatts"


def test_a_run_that_is_not_ours_has_upstreams_arguments(parse: Parse) -> None:
    from llamafactory.hparams import DataArguments, FinetuningArguments

    _, data_args, _, finetuning_args, _ = parse(template="qwen")
    assert (type(data_args), type(finetuning_args)) == (DataArguments, FinetuningArguments)
    assert not hasattr(data_args, "overlong_records") and not hasattr(finetuning_args, "event_f1_steps")
    with pytest.raises(ValueError, match="`event_f1_steps` is for runs of a ChatTS checkpoint with"):
        parse(template="qwen", event_f1_steps=5)


def test_the_trainer_of_a_run_that_is_not_ours_is_upstreams(parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory.train.dpo import trainer as dpo
    from llamafactory.train.kto import workflow as kto
    from llamafactory.train.pt import workflow as pt
    from llamafactory.train.rm import workflow as rm
    from llamafactory.train.sft import workflow as sft

    trainers = (sft.CustomSeq2SeqTrainer, kto.CustomKTOTrainer, dpo.CustomDPOTrainer, pt.CustomTrainer)
    for trainer in (*trainers, rm.PairwiseTrainer):
        _, base = trainer.__bases__
        monkeypatch.setattr(base, "__init__", lambda self, **kwargs: None)
        args = parse(template="qwen")[2]
        assert type(trainer(args=args)) is base
        assert isinstance(trainer.__new__(trainer, args=parse()[2]), trainer)


def test_an_adapter_on_top_of_another_one_is_not_used_alone(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    from llamafactory.hparams import get_infer_args

    upper = tmp_path / "upper" / "checkpoint-4"
    upper.mkdir(parents=True)
    record = {"model": {"adapter_name_or_path": {"lower": {}}}, "method": {"create_new_adapter": True}}
    (tmp_path / "upper" / "chatts_run.json").write_text(json.dumps(record))
    keys = {"model_name_or_path": "none", "template": "chatts"}
    get_infer_args({**keys, "adapter_name_or_path": f"lower,{upper}"})
    assert "on top of" not in log.text
    get_infer_args({**keys, "adapter_name_or_path": str(upper)})
    assert f"{upper} was trained on top of adapter lower, which is not named here" in log.text
