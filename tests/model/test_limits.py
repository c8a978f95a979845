"""What a checkpoint's config may say: each limit from both sides, and each fault in its whole words."""

import re
from typing import Any

import pytest
import torch
from helpers_model import config_dict, ts_section

from llamafactory_ext.model.limits import check_config


# A thousand times what the published models have, or more; powers of two.
LARGEST = {
    "ts.patch_size": 4_096,
    "ts.embedding_dim": 4_096,
    "ts.hidden_size": 65_536,
    "ts.num_layers": 64,
    "ts.max_sequence_length": 4_194_304,
    "vocab_size": 4_194_304,
    "hidden_size": 65_536,
    "intermediate_size": 1_048_576,
    "head_dim": 4_096,
    "num_hidden_layers": 1_024,
    "num_attention_heads": 1_024,
    "num_key_value_heads": 1_024,
    "max_position_embeddings": 67_108_864,
}


def faults(family: str = "qwen2", without: str = "", **changes: Any) -> list[str]:
    """What is said of a tiny config with these changes; a key with a point is one of the section `ts`."""
    config = config_dict(family)
    for key, value in changes.items():
        outer, _, inner = key.rpartition(".")
        (config["ts"] if outer else config)[inner] = value
    config.pop(without, None)
    try:
        check_config(config, "x/config.json")
    except ValueError as err:
        said = re.fullmatch(r"x/config\.json can't be used: (.*)\.", str(err))
        assert said is not None
        return re.split("; (?!take the key out)", said[1])
    return []


@pytest.mark.parametrize(("key", "largest"), LARGEST.items())
def test_sizes_from_1_to_the_largest(key: str, largest: int) -> None:
    for value in (1, largest):
        assert not [one for one in faults(**{key: value}) if one.startswith(f"{key} is {value}, expected an integer")]
    for value in (0, largest + 1, True, "8", 2.5):
        assert f"{key} is {value!r}, expected an integer from 1 to {largest}" in faults(**{key: value})


def test_all_of_an_encoder_is_bounded() -> None:
    """63 matrices of 8192 x 8192, a patch of one point by 8192 and by 8192 x 4096, 8190 places of 4096: 2^32."""
    sizes = {"hidden_size": 8192, "ts.hidden_size": 8192, "ts.num_layers": 64, "ts.patch_size": 1}
    assert faults(**sizes, **{"ts.embedding_dim": 4096, "ts.max_sequence_length": 8189}) == []
    assert faults(**sizes, **{"ts.embedding_dim": 4096, "ts.max_sequence_length": 8190}) == [
        "ts.patch_size, embedding_dim, num_layers and max_sequence_length make an encoder of 4,294,971,392 weights, "
        "expected at most 4,294,967,296"
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"without": "hidden_size"}, {"without": "vocab_size"}, {"without": "ts_token_end_index"},
        {"without": "num_key_value_heads", "num_attention_heads": 64}, {"without": "num_attention_heads"},
        {"head_dim": None}, {"num_key_value_heads": None},
        {"family": "qwen3", "num_attention_heads": 3, "num_key_value_heads": 1},  # 3 x 16 of a width of 64
        {"num_key_value_heads": 4}, {"pad_token_id": None}, {"pad_token_id": -1}, {"pad_token_id": 319},
        {"without": "vocab_size", "pad_token_id": 9999}, {"rope_theta": 1}, {"rope_theta": None},
        {"tie_word_embeddings": None}, {"ts_token_start_index": 0, "ts_token_end_index": 319}, {"ts.num_features": 2},
        {"ts.use_layer_norm": True, "ts.use_position_embedding": False}, {"architectures": None},
        {"architectures": []}, {"hidden_act": "gelu"}, {"hidden_act": None}, {"torch_dtype": "auto"},
        {"torch_dtype": None},
        {"dtype": torch.bfloat16}, {"dtype": "torch.float16"}, {"attn_implementation": "flash_attention_2"},
        {"attn_implementation": None}, {"transformers_weights": None}, {"auto_map": None},
        {"auto_map": {"AutoTokenizer": ["a.B", None], "AutoConfig": "a.C"}}, {"ts": ts_section(num_layers=1)},
        {"ts": None, "vocab_size": -1},  # no checkpoint of ours: transformers looks for its defaults
    ],
)  # fmt: skip
def test_what_a_config_may_say(changes: dict[str, Any]) -> None:
    assert faults(**changes) == []


def test_what_a_section_need_not_say() -> None:
    section = {key: ts_section()[key] for key in ("patch_size", "embedding_dim", "hidden_size", "num_layers")}
    assert faults(ts=section | {"max_sequence_length": 512}) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vocab_size": None}, "vocab_size is None, expected an integer from 1 to 4194304"),
        ({"ts.num_features": 3}, "ts.num_features is 3, expected 2 (value and mask)"),
        (
            {"ts.use_position_idx": True},
            "ts.use_position_idx is true, which no published checkpoint uses and this model does not know",
        ),
        ({"ts.use_layer_norm": 1}, "ts.use_layer_norm is 1, expected true or false"),
        ({"ts.use_position_embedding": "no"}, "ts.use_position_embedding is 'no', expected true or false"),
        ({"ts.hidden_size": 128}, "ts.hidden_size is 128, expected the language model's 64"),
        ({"without": "ts_token_start_index"}, "ts_token_start_index is missing, expected the id of the token <ts>"),
        ({"ts_token_start_index": -1}, "ts_token_start_index is -1, expected an id below vocab_size, 320"),
        ({"ts_token_end_index": 320}, "ts_token_end_index is 320, expected an id below vocab_size, 320"),
        (
            {"num_attention_heads": 3, "num_key_value_heads": 3},
            "hidden_size is 64, expected a multiple of num_attention_heads, 3",
        ),
        ({"num_key_value_heads": 3}, "num_attention_heads is 4, expected a multiple of num_key_value_heads, 3"),
        ({"pad_token_id": -2}, "pad_token_id is -2, expected an id below vocab_size, 320"),
        ({"pad_token_id": 320}, "pad_token_id is 320, expected an id below vocab_size, 320"),
        ({"pad_token_id": "a"}, "pad_token_id is 'a', expected an id below vocab_size, 320"),
        ({"rope_theta": 0}, "rope_theta is 0, expected a number above 0"),
        ({"rms_norm_eps": True}, "rms_norm_eps is True, expected a number above 0"),
        ({"initializer_range": "x"}, "initializer_range is 'x', expected a number above 0"),
        ({"rope_theta": float("nan")}, "rope_theta is nan, expected a number above 0"),
        ({"use_cache": 1}, "use_cache is 1, expected true or false"),
        ({"attention_bias": "x" * 99}, f"attention_bias is '{'x' * 59}, expected true or false"),
        ({"architectures": [5]}, "architectures is [5], expected a list of names"),
        ({"architectures": "Qwen2"}, "architectures is 'Qwen2', expected a list of names"),
        ({"hidden_act": 5}, "hidden_act is 5, expected a name that transformers knows, such as 'silu'"),
        ({"hidden_act": "os"}, "hidden_act is 'os', expected a name that transformers knows, such as 'silu'"),
        ({"dtype": "nn"}, "dtype is 'nn', expected the name of a torch type, such as 'bfloat16'"),
        ({"torch_dtype": "evil"}, "torch_dtype is 'evil', expected the name of a torch type, such as 'bfloat16'"),
        (
            {"_Attn_Implementation": "some/kernel"},
            "_Attn_Implementation is 'some/kernel', which would be fetched and executed; take the key out",
        ),
        (
            {"experts_implementation": ["a"]},
            "experts_implementation is ['a'], which would be fetched and executed; take the key out",
        ),
        (
            {"transformers_weights": "w.bin"},
            "transformers_weights is 'w.bin', weights under a name of their own; take the key out",
        ),
        ({"auto_map": "x"}, "auto_map is 'x', expected names of classes by their task"),
        ({"auto_map": {"A": [5]}}, "auto_map is {'A': [5]}, expected names of classes by their task"),
        ({"ts": [1]}, "ts is [1], expected an object"),
    ],
)  # fmt: skip
def test_what_a_config_may_not_say(changes: dict[str, Any], told: str) -> None:
    assert faults(**changes) == [told]


def test_faults_of_the_encoder_come_first() -> None:
    told = faults(**{"ts.num_features": 1, "head_dim": 0, "auto_map": 5})
    assert [one.split()[0] for one in told] == ["ts.num_features", "head_dim", "auto_map"]
