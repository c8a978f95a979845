"""What an adapter's configuration may say: each key from both sides, and each fault in its whole words."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llamafactory_ext.model.adapters import check_adapter, refuse_hidden_adapter


LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "target_modules": ["q_proj"]}
NAMES = [f"layer.{number}" for number in range(4097)]
A_NAME = "expected the name of a layer, and"


@pytest.fixture
def faults(tmp_path: Path) -> Any:
    """Takes keys of a configuration; returns what is said of them."""

    def run(**keys: Any) -> list[str]:
        path = tmp_path / "sub" / "adapter_config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(LORA | keys))
        check_adapter(str(tmp_path))  # it has none itself
        try:
            check_adapter(str(tmp_path), "sub")
        except ValueError as err:
            said = re.fullmatch(rf"{path} can't be used: (.*)\.", str(err))
            assert said is not None
            return re.split("; (?!take the key out)", said[1])
        return []

    return run


@pytest.mark.parametrize(
    "keys",
    [
        {}, {"r": 1}, {"r": 4096}, {"target_modules": NAMES[:4096]}, {"target_modules": ["x" * 255]},
        {"modules_to_save": None}, {"exclude_modules": ["a.b-c_1"]}, {"target_parameters": []},
        {"rank_pattern": dict.fromkeys(NAMES[:4096], 8)}, {"rank_pattern": None, "alpha_pattern": {}},
        {"rank_pattern": {"q_proj": 1, "v_proj": 4096}}, {"alpha_pattern": {"q_proj": 0.5, "v_proj": -1}},
        {"init_lora_weights": True}, {"init_lora_weights": None}, {"init_lora_weights": "pissa_niter_16"},
        {"megatron_core": None}, {"megatron_core": "megatron.core"}, {"lora_alpha": 16}, {"lora_dropout": 0.5},
        {"lora_alpha": None}, {"bias": "all"}, {"use_dora": True}, {"another": None}, {"another": False},
        {"another": ""}, {"another": []}, {"another": {}},
    ],
)  # fmt: skip
def test_what_an_adapter_may_say(keys: dict[str, Any], faults: Any) -> None:
    assert faults(**keys) == []


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected LORA, which is what the recipes train"),
        ({"r": 0}, "r is 0, expected an integer from 1 to 4096"),
        ({"r": 4097}, "r is 4097, expected an integer from 1 to 4096"),
        ({"r": True}, "r is True, expected an integer from 1 to 4096"),
        ({"target_modules": None}, "target_modules is None, expected a list of plain names"),
        ({"target_modules": ["a", "b*"]}, "target_modules is ['a', 'b*'], expected a list of plain names"),
        ({"target_modules": NAMES}, f"target_modules is {str(NAMES)[:60]}, expected a list of plain names"),
        ({"exclude_modules": "q_proj"}, "exclude_modules is 'q_proj', expected a list of plain names"),
        ({"rank_pattern": [1]}, "rank_pattern is [1], expected an object of layers' names"),
        (
            {"alpha_pattern": dict.fromkeys(NAMES, 1)},
            f"alpha_pattern is {str(dict.fromkeys(NAMES, 1))[:60]}, expected an object of layers' names",
        ),
        ({"rank_pattern": {"a": 0}}, f"rank_pattern: a is 0, {A_NAME} an integer from 1 to 4096"),
        ({"rank_pattern": {"a+": 8}}, f"rank_pattern: a+ is 8, {A_NAME} an integer from 1 to 4096"),
        ({"alpha_pattern": {"a": True}}, f"alpha_pattern: a is True, {A_NAME} a number"),
        ({"alpha_pattern": {"a+": 8}}, f"alpha_pattern: a+ is 8, {A_NAME} a number"),
        ({"init_lora_weights": "eva"}, "init_lora_weights is 'eva', expected true, false or a way that needs no data"),
        ({"init_lora_weights": 5}, "init_lora_weights is 5, expected true, false or a way that needs no data"),
        ({"megatron_core": "os"}, "megatron_core is 'os', expected nothing: a module of that name would be imported"),
        ({"lora_alpha": "16"}, "lora_alpha is '16', expected a number"),
        ({"lora_dropout": False}, "lora_dropout is False, expected a number"),
        ({"another": 0}, "another is 0, expected nothing; take the key out"),
        ({"another": True}, "another is True, expected nothing; take the key out"),
        ({"another": [0]}, "another is [0], expected nothing; take the key out"),
    ],
)  # fmt: skip
def test_what_an_adapter_may_not_say(keys: dict[str, Any], told: str, faults: Any) -> None:
    assert faults(**keys) == [told]


def test_eight_faults_are_told(faults: Any) -> None:
    assert faults(**{f"key {number}": 1 for number in range(10)}) == [
        f"key {number} is 1, expected nothing; take the key out" for number in range(8)
    ]


@pytest.mark.parametrize("named", ["a.lora_A.weight", "a.lora_embedding_A"])
def test_ranks_are_those_of_the_weights(named: str, faults: Any, tmp_path: Path) -> None:
    """Whatever the file holds, 64 is taken: it builds next to nothing."""
    weights = tmp_path / "sub" / "adapter_model.safetensors"
    weights.parent.mkdir()
    save_file({named: torch.zeros(100, 2), "b.lora_A.weight": torch.zeros(8, 2), "c": torch.zeros(999)}, weights)
    assert faults(r=100, rank_pattern={"a": 100}) == []
    assert faults(r=101, rank_pattern={"a": 102, "b": 9}) == [
        "r is 101, the largest rank that adapter_model.safetensors holds is 100",
        "a is 102, the largest rank that adapter_model.safetensors holds is 100",
    ]
    save_file({"b.lora_A.weight": torch.zeros(8, 2)}, weights)
    assert faults(r=64) == []
    assert faults(r=65) == ["r is 65, the largest rank that adapter_model.safetensors holds is 64"]
    weights.write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match=rf"^{weights} is no safetensors file, or not all of it \(.*\); download"):
        check_adapter(str(tmp_path), "sub")


@pytest.mark.parametrize(("text", "why"), [("{", r" \(.*\)"), ("[1]", ", but a list")])
def test_what_is_no_configuration(text: str, why: str, tmp_path: Path) -> None:
    (path := tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"^{path} is no adapter's configuration{why}; download it again\.$"):
        check_adapter(str(tmp_path))


def test_an_adapter_among_a_models_files_is_refused(tmp_path: Path) -> None:
    refuse_hidden_adapter(str(tmp_path))
    (path := tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"^{path} makes an adapter of this checkpoint; expected a model by itself"):
        refuse_hidden_adapter(str(tmp_path))
