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
from llamafactory_ext.model.adapters import check_adapter
from llamafactory_ext.model.limits import check_config
from llamafactory_ext.model.weights import check_weights


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


def spoil_tokenizer(model: Path, executed: Path) -> None:
    """Its class is code of the checkpoint, which leaves a folder behind."""
    change(model, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}, tokenizer_class="T")
    code = f"import os\nos.mkdir({str(executed)!r})\nfrom transformers import PreTrainedTokenizerFast as T\n"
    (model / "evil.py").write_text(code)


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
    "_attn_implementation_internal": ["evil/kernel", ["sdpa"]],
    "_experts_implementation": ["evil/kernel"],
    "_experts_implementation_internal": ["evil/kernel"],
    "experts_implementation": [{"": "evil/kernel"}],
    "transformers_weights": ["sub/w.safetensors", "w.safetensors"],
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
    with contextlib.suppress(ValueError, OSError, TypeError):  # TypeError: transformers 4.57, of a null
        load(model)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("section", [None, 5, [1], "x"])
@pytest.mark.parametrize("command", ["infer", "train", "eval"])
def test_code_is_not_trusted_whatever_a_config_says(command: str, section: Any, model: Path, tmp_path: Path) -> None:
    """`trust_remote_code: true` is what the web UI always asks; by `ts` alone the checkpoint would not be known."""
    from llamafactory.hparams import get_eval_args, get_infer_args, get_train_args
    from llamafactory.model import load_tokenizer

    spoil_tokenizer(model, tmp_path / "executed")
    change(model, ts=section, model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    recipe = {"model_name_or_path": str(model), "template": "chatts", "trust_remote_code": True}
    if command == "infer":
        model_args = get_infer_args(recipe)[0]
    elif command == "eval":
        model_args = get_eval_args({**recipe, "task": "mmlu_test", "save_dir": str(tmp_path / "eval")})[0]
    else:
        training = {"stage": "sft", "do_train": True, "dataset": "a", "output_dir": str(tmp_path / "out")}
        model_args = get_train_args({**recipe, **training, "report_to": "none"})[0]
    assert model_args.trust_remote_code is False
    with contextlib.suppress(ValueError, OSError):
        load_tokenizer(model_args)
    assert not (tmp_path / "executed").exists()


def test_another_template_still_trusts(model: Path) -> None:
    from llamafactory.hparams import get_infer_args

    config = json.loads((model / "config.json").read_text("utf-8"))
    config.pop("ts")  # with it another template is refused
    (model / "config.json").write_text(json.dumps(config), "utf-8")
    recipe = {"model_name_or_path": str(model), "template": "qwen", "trust_remote_code": True}
    assert get_infer_args(recipe)[0].trust_remote_code is True


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


LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "target_modules": ["q_proj"]}


@pytest.mark.parametrize("where", ["r", "rank_pattern"])
@pytest.mark.parametrize(("rank", "fits"), [(0, False), (1, True), (4096, True), (4097, False), (8.0, False)])
def test_ranks_from_1_to_4096(rank: float, fits: bool, where: str, tmp_path: Path) -> None:
    keys = {"r": rank} if where == "r" else {"rank_pattern": {"q_proj": 8, "r": 8, "v_proj": rank}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA | keys))
    if fits:
        check_adapter(str(tmp_path))
        return
    with pytest.raises(
        ValueError, match=rf"is {rank}, expected (the name of a layer, and )?an integer from 1 to 4096"
    ):
        check_adapter(str(tmp_path))


SLOW = "(" + "(.*)*" * 8 + ")x"
ADAPTERS: list[tuple[dict[str, Any], str]] = [
    ({"r": 10**9}, "r is 1000000000, expected an integer from 1 to 4096"),
    ({"r": "8"}, "r is '8', expected"),
    ({"r": True}, "r is True, expected"),
    ({"r": 4096}, "r is 4096, the largest rank that adapter_model.safetensors holds is 64"),
    ({"rank_pattern": {"q_proj": 10**9}}, "rank_pattern: q_proj is 1000000000, expected"),
    ({"rank_pattern": {"q_proj": 4000}}, "q_proj is 4000, the largest rank that"),
    ({"rank_pattern": {SLOW: 8}}, "is 8, expected the name of a layer"),
    ({"alpha_pattern": {SLOW: 8}}, "is 8, expected the name of a layer"),
    ({"rank_pattern": [1]}, "rank_pattern is [1], expected an object"),
    ({"layer_replication": [[0, 10**9]]}, "layer_replication is [[0, 1000000000]], expected nothing"),
    ({"target_modules": SLOW}, "expected a list of plain names"),
    ({"target_modules": [SLOW]}, "expected a list of plain names"),
    ({"target_modules": None}, "target_modules is None, expected a list"),
    ({"exclude_modules": SLOW}, "expected a list of plain names"),
    ({"layers_pattern": SLOW, "layers_to_transform": [0]}, "expected nothing"),
    ({"modules_to_save": [SLOW]}, "expected a list of plain names"),
    ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, "megatron_config is {'a': 1}, expected nothing"),
    ({"megatron_core": "evil"}, "megatron_core is 'evil', expected nothing"),
    ({"init_lora_weights": "eva", "eva_config": {"rho": 2}}, "init_lora_weights is 'eva', expected"),
    ({"corda_config": {"covariance_file": "/etc/passwd"}}, "corda_config is {'covariance_file'"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices is [1], expected nothing"),
    ({"a key of another time": 1}, "a key of another time is 1, expected nothing"),
    ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4_000_000}, "peft_type is 'PROMPT_TUNING', expected LORA"),
    ({"peft_type": None}, "peft_type is None, expected LORA"),
    ({"lora_alpha": "x"}, "lora_alpha is 'x', expected a number"),
]  # fmt: skip


def write_adapter(folder: Path, **keys: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(LORA | keys))
    save_file({"x": torch.zeros(1)}, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(("keys", "said"), ADAPTERS)
def test_what_an_adapter_may_not_say(keys: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"adapter_config\.json can't be used: ") as caught:
        check_adapter(str(write_adapter(tmp_path, **keys)))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "5", "{", '"x"', "[" * 100_000, "\ud800"])
def test_an_adapter_of_no_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(text, errors="surrogatepass")
    with pytest.raises(ValueError, match=r"adapter_config\.json is no adapter's configuration"):
        check_adapter(str(tmp_path))


@pytest.mark.parametrize("peft", [{}, {"use_dora": True, "use_rslora": True}, {"init_lora_weights": "gaussian"}])
def test_what_peft_itself_writes_is_opened(peft: dict[str, Any], tmp_path: Path) -> None:
    from peft import LoraConfig

    patterns = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 8}, "modules_to_save": ["lm_head"]}
    LoraConfig(target_modules=["q_proj", "ts_encoder.mlp.0"], **patterns, **peft).save_pretrained(tmp_path)
    check_adapter(str(tmp_path))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], dict[str, Any]]:
    """Puts a folder into a hub's cache, from which it is opened by name; returns the keys that name the cache."""

    def put(name: str, folder: Path) -> dict[str, Any]:
        place = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("a" * 40)
        shutil.copytree(folder, place / "snapshots" / ("a" * 40))
        return {"cache_dir": str(tmp_path / "hub")}

    return put


@pytest.mark.parametrize("way", ["folder", "subfolder", "hub", "subfolder of a hub"])
def test_an_adapter_is_checked_wherever_it_lies(way: str, model: Path, tmp_path: Path, hub: Any) -> None:
    sub = "sub" if way.startswith("subfolder") else ""
    write_adapter(tmp_path / "adapter" / sub, megatron_config={"a": 1}, megatron_core="evil")
    keys: dict[str, Any] = {"adapter_name_or_path": str(tmp_path / "adapter"), "adapter_folder": sub or None}
    if way.endswith("hub"):
        keys |= {**hub("evil/adapter", tmp_path / "adapter"), "adapter_name_or_path": "evil/adapter"}
    with pytest.raises(ValueError, match=r"adapter_config\.json can't be used: megatron_c"):
        load(model, **keys)


def test_an_adapter_among_a_models_files(model: Path) -> None:
    """transformers would open it by itself, and the model that it names instead of this one."""
    write_adapter(model, base_model_name_or_path="evil/model")
    with pytest.raises(ValueError, match=r"adapter_config\.json makes an adapter of this checkpoint"):
        load(model)


PICKLED = {"pytorch_model.bin": None, "pytorch_model-00001-of-00001.bin": "pytorch_model.bin.index.json"}


def as_pickle(model: Path, name: str, index: str | None, **form: Any) -> None:
    """The same weights in torch's older form."""
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(weights, model / name, **form)
    if index:
        (model / index).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, name)}))


@pytest.mark.parametrize(("name", "index"), PICKLED.items())
@pytest.mark.parametrize("zipped", [True, False])
def test_sizes_of_pickled_weights(name: str, index: str | None, zipped: bool, model: Path) -> None:
    as_pickle(model, name, index, _use_new_zipfile_serialization=zipped)
    check_weights(read_config(str(model)), model)
    change(model, vocab_size=3_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        ValueError, match=rf"{name} holds model\.embed_tokens\.weight of \[\d+, 64\], expected \[3000000"
    ):
        load(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


def test_sizes_of_a_hubs_model(model: Path, hub: Any) -> None:
    change(model, vocab_size=3_000_000)
    keys = hub("evil/model", model)
    with pytest.raises(ValueError, match=r"evil/model: config\.json and weights differ: model\.safetensors holds"):
        load(Path("evil/model"), **keys)


@pytest.mark.parametrize("kept", ["", "model.norm.weight", "model.layers.1."])
def test_weights_that_are_not_there(kept: str, model: Path) -> None:
    """Names alone make no model: what is missing would be made, of any size."""
    weights = {name: one for name, one in load_file(model / "model.safetensors").items() if kept in name}
    weights = {"x": torch.zeros(1), **weights} if kept else {"x": torch.zeros(1)}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the files hold no model\.embed_tokens\.weight"):
        check_weights(read_config(str(model)), model)


def test_layers_that_are_named_only(model: Path) -> None:
    weights = load_file(model / "model.safetensors") | {"model.layers.999.x": torch.zeros(1)}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    change(model, num_hidden_layers=1000)
    with pytest.raises(ValueError, match=r"the files hold [\d,]+ numbers, expected at least [\d,]+ by the sizes"):
        check_weights(read_config(str(model)), model)


def test_a_quantised_models_sizes(model: Path) -> None:
    change(model, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}, vocab_size=3_000_000)
    with pytest.raises(ValueError, match=r"holds model\.embed_tokens\.weight of"):
        check_weights(read_config(str(model)), model)


INDEXES = ["", "[", "5", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {}}', '{"weight_map": {"a": 5}}']
INDEXES += ['{"weight_map": {"a": "../w.safetensors"}}', '{"weight_map": {"a": "/dev/zero"}}', "[" * 100_000]
INDEXES += ['{"weight_map": {"a": "nope.safetensors"}}', '{"weight_map": {"a": ["w.safetensors"]}}']


@pytest.mark.parametrize("text", INDEXES)
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_hostile_indexes(name: str, text: str, model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_text(text)
    with pytest.raises(ValueError, match=r"index\.json (is no index of weights|names)") as caught:
        load(model)
    assert "\n" not in str(caught.value)
