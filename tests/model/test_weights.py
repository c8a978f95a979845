"""A checkpoint's files against the sizes that its config names, by their heads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_model import FAMILIES, build, config_dict, ts_section
from safetensors.torch import save_file

from llamafactory_ext.model import Qwen2TSConfig, Qwen3TSConfig
from llamafactory_ext.model.weights import check_weights, weight_files


# 320 x 64 of the embedding; in each of 2 layers 3 x 64 x 96 of the MLP and 64 x (4 + 2 + 2 + 4) x 16 of attention.
NUMBERS = 20_480 + 2 * (18_432 + 12_288)
EMBEDDING = {"model.embed_tokens.weight": torch.zeros(320, 64)}


def config(family: str = "qwen2", **changes: Any) -> Any:
    return {"qwen2": Qwen2TSConfig, "qwen3": Qwen3TSConfig}[family].from_dict(config_dict(family, **changes))


def differences(config: Any, folder: Path) -> list[str]:
    """What is said of config and weights."""
    try:
        check_weights(config, folder)
    except ValueError as err:
        told, begin = str(err), f"{folder}: config.json and weights differ: "
        assert told.startswith(begin) and told.endswith(".")
        return told.removeprefix(begin).removesuffix(".").split("; ")
    return []


def write(folder: Path, weights: dict[str, torch.Tensor], name: str = "model.safetensors") -> None:
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / name, metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_what_belongs_together(family: str, tmp_path: Path) -> None:
    """With the names that a bare model has, too, and of several files all are looked at."""
    assert differences(config(family), tmp_path) == []  # transformers says that there is nothing
    weights = build(family).state_dict()
    write(tmp_path, weights)
    assert differences(config(family), tmp_path) == []
    write(tmp_path, {name.removeprefix("model."): weight for name, weight in weights.items()})
    assert differences(config(family), tmp_path) == []
    (tmp_path / "model.safetensors").unlink()
    places = {name: f"{'ab'[place % 2]}.safetensors" for place, name in enumerate(weights)}
    for file in ("a.safetensors", "b.safetensors"):
        write(tmp_path, {name: weight for name, weight in weights.items() if places[name] == file}, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert differences(config(family), tmp_path) == []
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"index\.json names b\.safetensors, which is not beside it; download it ag"):
        check_weights(config(family), tmp_path)


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        ("qwen2", {"vocab_size": 319}, "model.embed_tokens.weight of [320, 64], expected [319, 64] by vocab_size, "),
        (
            "qwen3",
            {"intermediate_size": 95},
            "model.layers.0.mlp.up_proj.weight of [96, 64], expected [95, 64] by intermediate_size, hidden_size",
        ),
        (
            "qwen3",
            {"num_attention_heads": 2},
            "model.layers.0.self_attn.q_proj.weight of [64, 64], expected [32, 64] by num_attention_heads, head_dim, ",
        ),
        (
            "qwen2",
            {"num_key_value_heads": 1},
            "model.layers.0.self_attn.k_proj.weight of [32, 64], expected [16, 64] by num_key_value_heads, head_dim, ",
        ),
        (
            "qwen2",
            {"ts": ts_section(embedding_dim=4, patch_size=16)},
            "ts_encoder.mlp.0.weight of [64, 40], expected [64, 80] by ts.patch_size, ts.embedding_dim, hidden_size",
        ),
        (
            "qwen2",
            {"ts": ts_section(use_position_embedding=False)},
            "ts_encoder.mlp.0.weight of [64, 40], expected [64, 8] by ts.patch_size, ts.embedding_dim, hidden_size",
        ),
        (
            "qwen2",
            {"ts": ts_section(max_sequence_length=511)},
            "ts_encoder.position_embedding.weight of [513, 4], expected [512, 4] by ts.max_sequence_length, ts.embe",
        ),
    ],
)  # fmt: skip
def test_the_key_is_named(family: str, changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    write(tmp_path, build(family).state_dict())
    (found,) = differences(config(family, **changes), tmp_path)
    assert found.startswith(f"model.safetensors holds {told}")
    packed = config(family, **changes, quantization_config={"quant_method": "bitsandbytes"})
    assert differences(packed, tmp_path) == ([found] if "embed_tokens" in told else []), "other shapes are packed"


def test_numbers_and_layers_are_counted(tmp_path: Path) -> None:
    """Of what is named in a head only, a model would be made of random numbers."""
    write(tmp_path, {**EMBEDDING, "model.layers.1.x": torch.zeros(NUMBERS - 20_480)})
    assert differences(config(), tmp_path) == []
    assert differences(config("qwen3"), tmp_path) == []
    write(tmp_path, {**EMBEDDING, "model.layers.1.x": torch.zeros(NUMBERS - 20_481)})
    few = "the files hold 81,919 numbers, expected at least 81,920 by the sizes of the language model"
    assert differences(config(), tmp_path) == [few]
    assert differences(config(num_hidden_layers=1), tmp_path) == [
        "num_hidden_layers is 1, the files hold 2 layers",
    ]
    write(tmp_path, {"x": torch.zeros(NUMBERS)})
    assert differences(config(), tmp_path) == [
        "num_hidden_layers is 2, the files hold 0 layers",
        "the files hold no model.embed_tokens.weight",
    ]


def test_a_packed_number_holds_up_to_32_weights(tmp_path: Path) -> None:
    """20,480 + 2 x (64 x 3 x 2000 + 12,288) weights by the config are 25,408 x 32."""
    wide = config(intermediate_size=2000, quantization_config={"quant_method": "bitsandbytes"})
    write(tmp_path, {**EMBEDDING, "model.layers.1.x": torch.zeros(25_408 - 20_480)})
    assert differences(wide, tmp_path) == []
    write(tmp_path, {**EMBEDDING, "model.layers.1.x": torch.zeros(25_407 - 20_480)})
    told = "the files hold 813,024 numbers, expected at least 813,056 by the sizes of the language model"
    assert differences(wide, tmp_path) == [told]


def test_files_are_those_that_transformers_takes(tmp_path: Path) -> None:
    assert weight_files(tmp_path) == []
    shards = ["b.bin", "a.safetensors"]
    for name in (*shards, "pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).touch()
    for name in ("pytorch_model.bin.index.json", "model.safetensors.index.json"):
        (tmp_path / name).write_text(json.dumps({"weight_map": {"x": "b.bin", "y": "a.safetensors", "z": "b.bin"}}))
    for first in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        expected = sorted(shards) if first.endswith(".json") else [first]
        assert [path.name for path in weight_files(tmp_path)] == expected
        (tmp_path / first).unlink()
    assert [path.name for path in weight_files(tmp_path)] == ["a.safetensors", "b.bin"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", r"is no index of weights \(JSONDecodeError: .*\); download it again"),
        ("[]", r"is no index of weights \(TypeError: .*\); download it again"),
        ("{}", r"is no index of weights \(KeyError: .*\); download it again"),
        ('{"weight_map": {}}', "names no files; expected the names of files of weights beside it"),
        ('{"weight_map": {"a": 5}}', "names 5; expected the names"),
        ('{"weight_map": {"a": "../w.bin"}}', r"names '\.\./w\.bin'; expected the names"),
    ],
)
def test_what_is_no_index(text: str, told: str, tmp_path: Path) -> None:
    (path := tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=rf"^{path} {told}"):
        weight_files(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_in_torchs_own_form(zipped: bool, tmp_path: Path) -> None:
    torch.save(build("qwen2").state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert differences(config(), tmp_path) == []
    (found,) = differences(config(vocab_size=305), tmp_path)
    assert found.startswith("pytorch_model.bin holds model.embed_tokens.weight of [320, 64], expected [305, 64]")


@pytest.mark.parametrize("held", [[torch.zeros(1)], {"a": 5}, {"a": torch.zeros(1), "b": "x"}])
def test_what_is_no_weights(held: Any, tmp_path: Path) -> None:
    torch.save(held, path := tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"^{path} holds something else than weights by their names; download it"):
        check_weights(config(), tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_is_cut_off(share: float, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(EMBEDDING, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match=rf"(?s)^{path} holds no weights, or not all of them \(.*\); download it aga"):
        check_weights(config(), tmp_path)


def test_damaged_files_and_hidden_adapters(tmp_path: Path) -> None:
    (path := tmp_path / "model.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match=rf"^{path} is no safetensors file, or not all of it \(.*\); download it aga"):
        check_weights(config(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="makes an adapter of this checkpoint"):
        check_weights(config(), tmp_path)
