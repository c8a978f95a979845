"""From keys to what is planned with, and from the plan to what is reported."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers_model import config_dict
from helpers_plan import GIB, Make

from llamafactory_ext.errors import UsageError
from llamafactory_ext.toolbox.plan.cards import CARDS, Card
from llamafactory_ext.toolbox.plan.data import Data
from llamafactory_ext.toolbox.plan.memory import Load, Settings
from llamafactory_ext.toolbox.plan.planning import Plan, _processes, _siblings, report
from llamafactory_ext.toolbox.plan.preflight import Check
from llamafactory_ext.toolbox.plan.recipe import Recipe, _config_of
from llamafactory_ext.toolbox.plan.shape import KNOWN, Shape
from llamafactory_ext.toolbox.plan.steps import Rhythm, Steps, count_steps
from llamafactory_ext.toolbox.plan.verdict import Change, Recommendation, Verdict
from llamafactory_ext.toolbox.session.tokens import Tokens


pytestmark = pytest.mark.usefixtures("no_network")


# Keys


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, Rhythm(1, 1, 3.0, -1, False)),
        ({"per_device_train_batch_size": None}, Rhythm(8, 1, 3.0, -1, False)),
        ({"num_train_epochs": 0.5, "gradient_accumulation_steps": 16}, Rhythm(1, 16, 0.5, -1, False)),
        ({"num_train_epochs": 0, "max_steps": 1}, Rhythm(1, 1, 0, 1, False)),
        ({"max_steps": -7, "dataloader_drop_last": True}, Rhythm(1, 1, 3.0, -7, True)),
    ],
)
def test_rhythm(make: Make, keys: dict[str, Any], expected: Rhythm) -> None:
    assert make(**keys).rhythm == expected


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0; expected more than 0"),
        ({"gradient_accumulation_steps": 0.5}, "gradient_accumulation_steps is 0.5; expected more than 0"),
        ({"gradient_accumulation_steps": True}, "gradient_accumulation_steps is True; expected a number"),
        ({"num_train_epochs": "3"}, "num_train_epochs is '3'; expected a number"),
        ({"num_train_epochs": 0, "max_steps": 0}, "num_train_epochs is 0; expected more than 0"),
        ({"num_train_epochs": -1, "max_steps": 5}, "num_train_epochs is -1; expected more than 0"),
    ],
)
def test_a_rhythm_that_is_none(make: Make, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        _ = make(**keys).rhythm
    assert str(caught.value) == said


def test_rhythm_and_steps_are_the_trainers() -> None:
    """Its defaults; `max_steps: 0` is no step at all."""
    from transformers import TrainingArguments

    theirs = TrainingArguments.__dataclass_fields__
    assert vars(Rhythm()) == {key: theirs[key].default for key in vars(Rhythm())}
    assert count_steps(10, Rhythm(1, 4, 2.5, max_steps=0)) == Steps(3, 0, 0.0, 6)
    assert count_steps(10, Rhythm(1, 4, 2.5, max_steps=-1)) == Steps(3, 8, 2.5, 6)


PLAIN = Settings(quantization_bit=4, trainable_layers=2)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, PLAIN),
        ({"lora_target": None}, replace(PLAIN, lora_target=("all",))),
        ({"lora_target": ["o_proj", " up_proj "]}, replace(PLAIN, lora_target=("o_proj", "up_proj"))),
        ({"fp16": False}, replace(PLAIN, mixed_precision=False)),
        ({"fp16": False, "pure_bf16": True}, replace(PLAIN, compute_dtype="bfloat16", weight_dtype="bfloat16")),
        (
            {
                "double_quantization": False, "lora_rank": 16, "train_timeseries_modules": False,
                "freeze_trainable_layers": -3, "optim": "sgd", "disable_gradient_checkpointing": True,
                "layers_without_checkpoints": 4, "offload_checkpoints": True, "embedding_on_cpu": True,
                "stream_head": True, "stream_layers": 5, "upcast_layernorm": True, "flash_attn": "disabled",
            },
            replace(
                PLAIN, double_quantization=False, lora_rank=16, train_encoder=False, trainable_layers=3,
                optimizer="sgd", checkpointing=False, layers_without_checkpoints=4, offload_checkpoints=True,
                embedding_on_cpu=True, stream_head=True, stream_layers=5, upcast_layernorm=True, attention="eager",
            ),
        ),
        (
            {"deepspeed": {"zero_optimization": {
                "stage": 3, "offload_param": {"device": "cpu", "pin_memory": True},
                "offload_optimizer": {"device": "nvme"},
            }}},
            replace(PLAIN, zero_stage=3, offload_param=True, pin_memory=True, offload_optimizer=True),
        ),
        (
            {"deepspeed": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}}},
            replace(PLAIN, zero_stage=2),
        ),
    ],
)  # fmt: skip
def test_settings(make: Make, keys: dict[str, Any], expected: Settings) -> None:
    assert make(**keys).settings("cuda", 1) == expected
    assert make(**keys).settings("cpu", 2) == replace(expected, device="cpu", processes=2)


@pytest.mark.parametrize(
    ("stated", "keys", "weights", "compute"),
    [
        ("bfloat16", {}, "float16", "float16"),  # frozen weights are cast to what is computed in
        ("float32", {}, "float32", "float16"),
        ("bfloat16", {"fp16": False}, "bfloat16", "bfloat16"),
        ("float32", {"deepspeed": {"zero_optimization": {"stage": 3}}}, "float16", "float16"),
        ("float32", {"deepspeed": {"zero_optimization": {"stage": 2}}}, "float32", "float16"),
        ("float32", {"deepspeed": {"zero_optimization": {"stage": 3}}, "fp16": False}, "float32", "float32"),
    ],
)
def test_types_of_weights(
    make: Make, monkeypatch: pytest.MonkeyPatch, stated: str, keys: dict[str, Any], weights: str, compute: str
) -> None:
    monkeypatch.setattr("llamafactory_ext.toolbox.plan.recipe._config_of", lambda *_: {"dtype": stated, "ts": {}})
    found = make(**keys).settings("cuda", 1)
    assert (found.weight_dtype, found.compute_dtype) == (weights, compute)


def test_the_model_is_read_or_known_by_its_name(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make().config is None and make().shape is KNOWN["chatts-14b"]
    assert make(model_name_or_path="other/CHATTS-8B-0801").shape is KNOWN["chatts-8b"]
    (tmp_path / "chatts-14b").mkdir()
    expected = "; expected ChatTS-14B, ChatTS-8B or a folder"
    for name, said in (
        (str(tmp_path / "chatts-14b"), f"{tmp_path / 'chatts-14b'}: no ChatTS checkpoint (no config.json with `ts`)"),
        ("some/where", "some/where: neither there nor known"),
        (None, "model_name_or_path: neither there nor known"),
    ):
        with pytest.raises(UsageError) as caught:
            _ = make(model_name_or_path=name).shape
        assert str(caught.value) == said + expected
    config = config_dict("qwen3")
    monkeypatch.setattr("llamafactory_ext.toolbox.plan.recipe._config_of", lambda *_: config)
    for name in ("none/ChatTS-14B", "some/where"):
        assert make(model_name_or_path=name).shape == Shape.from_config(config), "what is there counts"


def test_deepspeeds_configuration(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    assert make().deepspeed == {}
    for text, expected in (('{"zero_optimization": {"stage": 1}}', 1), ("[1]", 0)):
        path.write_text(text)
        assert make(deepspeed=str(path)).settings("cuda", 1).zero_stage == expected
    path.write_text("{")
    with pytest.raises(UsageError, match=r"deepspeed: .*zero.json can't be read \(.*\); expected a JSON file of Deep"):
        _ = make(deepspeed=str(path)).deepspeed


def test_a_config_is_read_from_its_folder(tmp_path: Path) -> None:
    good, bad = config_dict("qwen2"), config_dict("qwen2") | {"num_hidden_layers": 10**6}
    for name, config in (("good", good), ("bad", bad)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    found = _config_of(str(tmp_path / "good"), None, None)
    assert found is not None and Shape.from_config(found) == Shape.from_config(good)
    assert _config_of(str(tmp_path), None, None) is None
    with pytest.raises(UsageError, match="num_hidden_layers"):
        _config_of(str(tmp_path / "bad"), None, None)


def test_shapes_from_a_config() -> None:
    """What a config may leave out: heads of keys are those of queries; a head's width, by family."""
    plain = {key: value for key, value in config_dict("qwen2").items() if key not in ("head_dim", "architectures")}
    plain |= {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": None}
    found = Shape.from_config(plain)
    assert (found.head_dim, found.kv_heads, found.attention_size, found.kv_size) == (16, 6, 96, 96)
    assert (found.attention_bias, found.qk_norm) == (True, False)
    qwen3 = Shape.from_config(plain | {"model_type": "qwen3ts"})
    assert (qwen3.head_dim, qwen3.attention_bias, qwen3.qk_norm) == (128, False, True)
    assert Shape.from_config(plain | {"model_type": "chatts", "architectures": ["Qwen3TSForCausalLM"]}) == qwen3


# The heaviest batch


@pytest.mark.parametrize(
    ("batch", "expected"),
    [(1, Load(40, 30, 9, 1)), (2, Load(80, 33, 14, 2)), (3, Load(120, 34, 14, 3)), (5, Load(120, 34, 14, 3))],
)
def test_the_heaviest_batch_has_the_longest_of_all(batch: int, expected: Load) -> None:
    """Padded to a multiple of 8; most labels and most patches may be other records'."""
    tokens = [Tokens(10, 5, 3), Tokens(20, 0, 1), Tokens(0, 9, 30)]
    data = Data(3, 3, 0, tokens)
    assert data.load(batch) == expected and not data.estimated
    longer = replace(data, tokens=[*tokens[:2], Tokens(2, 9, 30)], why_estimated="no tokenizer")
    assert longer.load(1) == Load(48, 30, 9, 1) and longer.load(1, pad_to=1).tokens == 41 and longer.estimated


# The plan


@pytest.fixture
def plan(make: Make) -> Plan:
    return Plan(
        recipe=make(),
        data=Data(5, 3, 2, [Tokens(10, 5, 3), Tokens(20, 0, 1), Tokens(0, 9, 30)]),
        processes=2,
        steps=Steps(3, 8, 2.5, 6),
        load=Load(40, 30, 9),
        card=Card("card", 11.5, (7, 5), found=True),
        device_bytes={"weights": 3 * GIB, "context": GIB // 2},
        loading_bytes={"weights": 3 * GIB, "context": GIB // 2},
        host_bytes={"processes": GIB, "optimiser": GIB},
        host_gib=2.0,
        disk_gib={"free": 7.0},
        verdict=Verdict(False, [Change("slower", {"a": True, "b": 2})]),
        faster=Change("more memory", {"c": False}),
        recommended=Recommendation(make(), "fits"),
        checks=[Check("warning", "look")],
        seconds=7200.0,
    )


def test_what_is_reported(plan: Plan) -> None:
    found = report(plan)
    assert found == {
        "recipe": "mine.yaml", "records": 5, "records_held_out": 2, "rows": 3, "estimated": False,
        "tokens": {"longest": 39, "median": 21, "total": 78, "most_labels": 30, "most_patches": 9},
        "processes": 2, "steps_per_epoch": 3, "steps_total": 8, "epochs": 2.5, "rule_of_thumb": 6,
        "memory_gib": {"weights": 3.0, "context": 0.5, "total": 3.5},
        "loading_gib": {"weights": 3.0, "context": 0.5, "total": 3.5},
        "tightest": "step",
        "card": {"name": "card", "gib": 11.5, "found": True, "device": "cuda"},
        "host_gib": {"processes": 1.0, "optimiser": 1.0, "total": 2.0, "machine": 2.0},
        "disk_gib": {"free": 7.0}, "seconds": 7200.0, "fits": False, "verdict": "fits with a=true b=2",
        "changes": [{"change": "a=true b=2", "price": "slower"}],
        "faster": {"change": "c=false", "price": "more memory"},
        "recommended_recipe": "mine.yaml", "recommended_why": "fits",
        "preflight": [{"level": "warning", "text": "look"}],
    }  # fmt: skip
    bare = report(replace(plan, faster=None, recommended=None))
    assert (bare["faster"], bare["recommended_recipe"], bare["recommended_why"]) == (None, None, None)


def test_what_makes_a_plan_fail(plan: Plan) -> None:
    """A fault, or a byte more than the machine's memory has."""
    assert plan.fits_host and not plan.has_faults
    assert replace(plan, checks=[*plan.checks, Check("fault", "stop")]).has_faults
    more = replace(plan, host_bytes={"processes": 2 * GIB + 1})
    assert not more.fits_host and more.has_faults
    assert replace(plan, loading_bytes={"weights": 3 * GIB, "context": GIB // 2 + 1}).tightest == "loading"


@pytest.mark.parametrize(
    ("environment", "cards", "expected"),
    [
        ({}, 0, 1),
        ({}, 2, 2),
        ({"NPROC_PER_NODE": "1"}, 2, 1),
        ({"NPROC_PER_NODE": "3", "NNODES": "2"}, 0, 6),
        ({"NNODES": "2"}, 0, 2),
        ({"NNODES": "3"}, 2, 6),
        ({"NPROC_PER_NODE": "auto"}, 2, 1),
    ],
)
def test_processes_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], cards: int, expected: int
) -> None:
    for key in ("NPROC_PER_NODE", "NNODES"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("llamafactory_ext.toolbox.plan.cards.present", lambda: [CARDS["3060"]] * cards)
    assert _processes() == expected


def test_recipes_beside_with_this_ones_model(make: Make, tmp_path: Path) -> None:
    for name, text in {
        "b.yaml": "do_train: true\nmodel_name_or_path: other\n", "a.yaml": "do_train: true\nlora_rank: 4\n",
        "c.yaml": "do_predict: true\n", "d.yaml": "learning: 1\n", "e.txt": "do_train: true\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    mine = replace(make(), path=tmp_path / "mine.yaml")
    same = {"do_train": True, "model_name_or_path": "none/ChatTS-14B"}
    expected = [Recipe(tmp_path / "a.yaml", same | {"lora_rank": 4}), Recipe(tmp_path / "b.yaml", same)]
    assert _siblings(mine, None) == expected
    assert _siblings(make(), tmp_path) == expected
