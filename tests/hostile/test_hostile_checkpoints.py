"""Checkpoints of strangers: nothing of them is executed, and a wrong size is told before memory is taken."""

import contextlib
import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_model import config_dict, ts_section
from safetensors.torch import load_file, save_file

from llamafactory_ext.model import read_config
from llamafactory_ext.model.limits import check_config
from llamafactory_ext.model.weights import check_adapter, check_weights


HUGE = 10**12


@pytest.fixture
def model(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo's model, to be spoilt."""
    return Path(shutil.copytree(demo / "model", tmp_path / "model"))


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def load(folder: Path, **keys: Any) -> Any:
    """Through LLaMA-Factory's own loading, as every command does."""
    from llamafactory.hparams import get_infer_args
    from llamafactory.model import load_model, load_tokenizer

    recipe = {"model_name_or_path": str(folder), "template": "chatts", **keys}
    model_args, _, finetuning_args, _ = get_infer_args(recipe)
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    return load_model(tokenizer, model_args, finetuning_args)


def change(folder: Path, name: str = "config.json", **keys: Any) -> None:
    found = json.loads((folder / name).read_text())
    for key, value in keys.items():
        outer, _, inner = key.rpartition("__")
        (found[outer] if outer else found)[inner] = value
    (folder / name).write_text(json.dumps(found))


CONFIGS = {
    "vocab_size": [HUGE, 0, -5, None, "1000", 2.5, True],
    "hidden_size": [HUGE, 0, -1, "64", 65],
    "intermediate_size": [HUGE, 0, -1, [1]],
    "num_hidden_layers": [10**9, 0, -1, "2", 2.5, None],
    "num_attention_heads": [10**9, 0, 3, {}],
    "num_key_value_heads": [10**9, 0, 3],
    "head_dim": [10**9, 0, "16"],
    "max_position_embeddings": [HUGE, 0, "a"],
    "rope_theta": [0, -1, "x", float("nan")],
    "rms_norm_eps": ["a", -1e-6, float("nan")],
    "pad_token_id": [HUGE, "x"],
    "hidden_act": ["os.system", 5, ["silu"]],
    "torch_dtype": ["evil", "nn", 5],
    "architectures": [5, [5], "Qwen2TSForCausalLM"],
    "auto_map": ["x", {"AutoConfig": 5}, {"AutoConfig": [5]}],
    "attn_implementation": ["evil/kernel", {"": "evil/kernel"}],
    "_attn_implementation": ["evil/kernel@main:f"],
    "tie_word_embeddings": ["x", 1],
    "ts_token_start_index": [-1, 320, HUGE, "300"],
    "ts_token_end_index": [-1, HUGE],
    "ts": [[1], "x", 5, {}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in CONFIGS.items() for value in values])
def test_what_a_config_may_not_say(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"x/config\.json can't be used: .*\b{key}\b"):
        check_config(config_dict("qwen2", **{key: value}), "x/config.json")


def test_sizes_that_are_fine_by_themselves() -> None:
    sizes = {"patch_size": 4096, "embedding_dim": 4096, "max_sequence_length": 1 << 22}
    with pytest.raises(ValueError, match=r"make an encoder of 1\d,\d{3},\d{3},\d{3} weights, expected at most 4,294"):
        check_config(config_dict("qwen2", ts=ts_section(**sizes)))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_published_configs_pass(family: str) -> None:
    """The sizes of ChatTS-14B and -8B, and of the largest models of their families."""
    for hidden, layers, heads, width in ((5120, 48, 40, 13824), (4096, 36, 32, 12288), (8192, 80, 64, 29568)):
        sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
        sizes |= {"intermediate_size": width, "num_key_value_heads": 8, "vocab_size": 152064}
        section = ts_section(hidden_size=hidden, max_sequence_length=32768, embedding_dim=16)
        check_config(config_dict(family, ts=section, **sizes))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"num_hidden_layers": 1000}, "num_hidden_layers is 1000, the files hold 2 layers"),
        (
            {"vocab_size": 1 << 22},
            r"model\.safetensors holds model\.embed_tokens\.weight of \[\d+, 64\], expected \[41943",
        ),
        ({"intermediate_size": 1 << 20}, r"holds model\.layers\.0\.mlp\.up_proj\.weight of .* by intermediate_size"),
        ({"head_dim": 4096}, r"holds model\.layers\.0\.self_attn\.q_proj\.weight of .* head_dim"),
        ({"num_key_value_heads": 4}, r"holds model\.layers\.0\.self_attn\.k_proj\.weight of .* num_key_value_heads"),
        ({"ts__patch_size": 16}, r"holds ts_encoder\.mlp\.0\.weight of .* by ts\.patch_size"),
        (
            {"ts__max_sequence_length": 1 << 22},
            r"holds ts_encoder\.position_embedding\.weight of .*max_sequence_length",
        ),
        ({"ts__max_sequence_length": HUGE}, r"model/config\.json can't be used: ts\.max_sequence_length is 1000000"),
        (
            {"_attn_implementation": "evil/kernel"},
            r"config\.json can't be used: _attn_implementation is 'evil/kernel', w",
        ),
    ],
)
def test_a_size_is_told_before_memory_is_taken(keys: dict[str, Any], said: str, model: Path) -> None:
    change(model, **keys)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=said) as caught:
        load(model)
    assert str(caught.value).startswith(str(model))
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB; 200 MiB


def test_a_checkpoint_without_its_encoder_still_loads(model: Path) -> None:
    """That is how training of an encoder begins: a language model's weights, and `ts` in its config."""
    weights = {name: one for name, one in load_file(model / "model.safetensors").items() if "ts_encoder" not in name}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert load(model).ts_encoder is not None


HEADERS: dict[str, Callable[[bytes], bytes]] = {
    "too large": lambda data: (10**15).to_bytes(8, "little") + data[8:],
    "no JSON": lambda data: (100).to_bytes(8, "little") + b"[" * 100,
    "truncated": lambda data: data[: len(data) // 2],
    "too short": lambda data: data[:5],
    "empty": lambda data: b"",
    "zip": lambda data: b"PK\3\4" + data,
    "overlapping": lambda data: (
        (len(head := b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,99999999]}}')).to_bytes(8, "little") + head
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_damaged_safetensors(name: str, model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(HEADERS[name](path.read_bytes()))
    with pytest.raises(
        ValueError, match=r"model\.safetensors is no safetensors file, or not all of it \(.*\); download"
    ):
        check_weights(read_config(str(model)), model)


def test_damaged_weights_stop_the_command(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"model\.safetensors is no safetensors file"):
        load(model)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["base", "shard", "adapter"])
def test_pickles_are_not_executed(place: str, legacy: bool, model: Path, tmp_path: Path) -> None:
    """torch reads weights only since 2.6, and transformers and PEFT ask for that."""
    trap = {"model.norm.weight": Trap(tmp_path / "executed")}
    target = model / "pytorch_model.bin"
    keys: dict[str, Any] = {}
    if place == "shard":
        target = model / "pytorch_model-00001-of-00001.bin"
        index = {"metadata": {}, "weight_map": {"model.norm.weight": target.name}}
        (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    if place == "adapter":
        target = tmp_path / "adapter" / "adapter_model.bin"
        target.parent.mkdir()
        lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "target_modules": ["q_proj"]}
        (target.parent / "adapter_config.json").write_text(json.dumps(lora | {"base_model_name_or_path": str(model)}))
        keys["adapter_name_or_path"] = str(target.parent)
    else:
        (model / "model.safetensors").unlink()
    target.write_bytes(pickle.dumps(trap)) if legacy else torch.save(trap, target)
    with pytest.raises(pickle.UnpicklingError, match=r"Weights only load failed|Unsupported"):
        load(model, **keys)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("auto_map", [["evil.T", None], [None, "evil.T"], "evil.T", {"AutoTokenizer": "evil.T"}])
@pytest.mark.parametrize("unknown", [False, True])
def test_a_tokenizer_of_its_own_code(auto_map: Any, unknown: bool, model: Path, tmp_path: Path) -> None:
    change(model, "tokenizer_config.json", auto_map={"AutoTokenizer": auto_map})
    if unknown:
        change(model, "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    (model / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\nclass T: pass\n")
    with contextlib.suppress(ValueError, OSError):
        load(model)
    assert not (tmp_path / "executed").exists()


def test_a_tokenizer_that_names_code_can_be_saved(model: Path, tmp_path: Path) -> None:
    """LLaMA-Factory registers its class to be saved with code, which there is none of: a run's first save failed."""
    from llamafactory.hparams import get_infer_args
    from llamafactory.model import load_model, load_tokenizer

    change(model, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    recipe = {"model_name_or_path": str(model), "template": "chatts"}
    model_args, _, finetuning_args, _ = get_infer_args(recipe)
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    load_model(tokenizer, model_args, finetuning_args)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer_config.json").exists()


def test_generation_of_its_own_code(model: Path, tmp_path: Path) -> None:
    (model / "custom_generate").mkdir()
    (model / "custom_generate" / "generate.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n")
    settings = {"custom_generate": str(model), "trust_remote_code": True, "temperature": -5, "max_length": HUGE}
    (model / "generation_config.json").write_text(json.dumps(settings))
    loaded = load(model)
    inputs = torch.tensor([[1, 2, 3]])
    with contextlib.suppress(ValueError, OSError):
        loaded.generate(input_ids=inputs, max_new_tokens=2)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("names", ["../../evil.C", "/etc/evil.C", "sub/evil.C", "other/repo--../evil.C", ".C", ""])
def test_modules_outside_of_a_checkpoint_are_not_copied(names: str, model: Path, tmp_path: Path) -> None:
    from llamafactory_ext.model.published import copy_published_files

    (tmp_path / "evil.py").write_text("")
    (model / "sub").mkdir()
    (model / "sub" / "evil.py").write_text("")
    change(model, auto_map={"AutoConfig": names, "AutoModel": ["beside.M", None]})
    (model / "beside.py").write_text("")
    (out := tmp_path / "out").mkdir()
    assert copy_published_files(read_config(str(model)), out) == ["beside.py"]
    assert [path.name for path in out.iterdir()] == ["beside.py"]


@pytest.mark.parametrize("where", ["r", "rank_pattern"])
@pytest.mark.parametrize(("rank", "fits"), [(0, False), (1, True), (4096, True), (4097, False), (8.0, False)])
def test_ranks_from_1_to_4096(rank: float, fits: bool, where: str, tmp_path: Path) -> None:
    keys = {"r": rank} if where == "r" else {"rank_pattern": {"q_proj": 8, "r": 8, "v_proj": rank}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(keys))
    if fits:
        check_adapter(tmp_path)
        return
    with pytest.raises(ValueError, match=rf"is {rank}, expected an integer from 1 to 4096"):
        check_adapter(tmp_path)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"r": 10**9}, "r is 1000000000, expected an integer from 1 to 4096"),
        ({"r": "8"}, "r is '8', expected"),
        ({"rank_pattern": {"q_proj": 10**9}}, "q_proj is 1000000000, expected"),
        ({"rank_pattern": [1]}, r"is no adapter's configuration"),
        ({"layer_replication": [[0, 10**9]]}, "layer_replication makes a model of other layers"),
    ],
)
def test_an_adapter_of_absurd_size(keys: dict[str, Any], said: str, model: Path, tmp_path: Path) -> None:
    lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(lora | {"base_model_name_or_path": str(model)} | keys))
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=rf"adapter_config\.json .*{said}"):
        load(model, adapter_name_or_path=str(tmp_path))
