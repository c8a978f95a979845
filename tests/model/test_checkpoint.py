"""Checkpoints in the published form: recognised, loaded, saved, quantised; nothing that came with them is executed."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_model import FAMILIES, TS_START, build, config_dict, inputs, labels_for, record, tokenizer, ts_section
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from llamafactory_ext.model import (
    ChatTSProcessor,
    Qwen2TSConfig,
    Qwen2TSForCausalLM,
    Qwen3TSConfig,
    Qwen3TSForCausalLM,
    is_chatts,
    read_config,
)
from llamafactory_ext.series import describe, encode


SPELLINGS = [("qwen2", "qwen2"), ("qwen2", "chatts"), ("qwen3", "qwen3"), ("qwen3", "qwen3ts")]
NATIVE = {"qwen2": (Qwen2TSConfig, Qwen2TSForCausalLM), "qwen3": (Qwen3TSConfig, Qwen3TSForCausalLM)}
BATCH = inputs(record(1, 30), record(2), record(3, 1, 100, 17))


def write_config(folder: Path, config: dict[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def python_files(config: dict[str, Any]) -> set[str]:
    return {f"{name.split('.')[0]}.py" for name in config["auto_map"].values()}


def write_checkpoint(folder: Path, family: str, **changes: Any) -> str:
    """A checkpoint as it is published, its Python files leaving a trace and raising where they are run."""
    config = config_dict(family, **changes)
    write_config(folder, config)
    weights = {name: weight.contiguous() for name, weight in build(family).state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name in python_files(config):
        trace = folder / "was_executed"
        (folder / name).write_text(f"# {name}\nopen({str(trace)!r}, 'w').close()\nraise SystemExit('executed')\n")
    tokenizer().save_pretrained(folder)
    return str(folder)


def load(path: str, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, config=read_config(path), **options)


def logits(model: Any) -> torch.Tensor:
    """Those of all real positions: at padding each way of attention has its own."""
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**BATCH).logits[BATCH["attention_mask"].bool()]
    return found


def original(family: str) -> Any:
    return build(family, "sdpa")


def saved_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


# Recognising a checkpoint


@pytest.mark.parametrize(("family", "spelling"), SPELLINGS)
def test_every_spelling_is_recognised(tmp_path, family, spelling):
    config = read_config(write_config(tmp_path, config_dict(family, model_type=spelling)))
    assert type(config) is NATIVE[family][0]
    assert is_chatts(config)
    assert config.ts == config_dict(family)["ts"]
    assert config.ts_token_start_index == TS_START
    assert not hasattr(config, "auto_map"), "while loaded there is nothing that could be executed"


def test_architecture_decides_where_the_model_type_is_the_general_one(tmp_path):
    assert isinstance(read_config(write_config(tmp_path, config_dict("qwen3", model_type="chatts"))), Qwen3TSConfig)


def test_a_folder_without_config_is_left_to_whoever_loads_it(tmp_path):
    assert read_config(str(tmp_path)) is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("section", ["absent", None])
def test_a_plain_language_model_is_none_of_ours(tmp_path, family, section):
    config = config_dict(family, ts=section)
    if section == "absent":
        del config["ts"]
    assert read_config(write_config(tmp_path, config)) is None


def test_a_language_model_that_is_not_known(tmp_path):
    path = write_config(tmp_path, config_dict("qwen2", model_type="llama", architectures=["LlamaTSForCausalLM"]))
    with pytest.raises(ValueError, match=r"not known \(llamatsforcausallm llama\); expected qwen2 or qwen3"):
        read_config(path)


def test_all_faults_stand_in_one_message(tmp_path):
    section = ts_section(patch_size="8", num_features=3, use_position_idx=True, hidden_size=128)
    del section["embedding_dim"]
    config = config_dict("qwen2", ts=section)
    del config["ts_token_start_index"]
    with pytest.raises(ValueError, match="can't be used") as caught:
        read_config(write_config(tmp_path, config))
    for fault in (
        "ts.patch_size is '8', expected an integer from 1 to 4096",
        "ts.embedding_dim is None",
        "ts.num_features is 3, expected 2",
        "ts.use_position_idx is true",
        "ts.hidden_size is 128, expected the language model's 64",
        "ts_token_start_index is missing",
    ):
        assert fault in str(caught.value)


@pytest.mark.parametrize("key", ["patch_size", "embedding_dim", "hidden_size", "num_layers", "max_sequence_length"])
@pytest.mark.parametrize("value", [0, -8, 2**40, 1.5, True, None, "8", [8]])
def test_absurd_sizes(tmp_path, key, value):
    path = write_config(tmp_path, config_dict("qwen3", ts=ts_section(**{key: value})))
    with pytest.raises(ValueError, match=rf"ts\.{key} is .*, expected an integer from 1 to \d+"):
        read_config(path)


# Loading and saving


@pytest.mark.parametrize(("family", "spelling"), SPELLINGS)
def test_round_trip_keeps_the_published_form(tmp_path, family, spelling):
    path = write_checkpoint(tmp_path / "published", family, model_type=spelling)
    published = saved_config(tmp_path / "published")
    before = logits(original(family))

    for number in range(2):  # what was saved is as good a start as what was published
        model = load(path)
        assert type(model) is NATIVE[family][1]
        assert torch.equal(logits(model), before)
        folder = tmp_path / f"saved{number}"
        model.save_pretrained(folder)
        path = str(folder)

        saved = saved_config(folder)
        for key in ("model_type", "auto_map", "architectures", "ts", "ts_token_start_index", "ts_token_end_index"):
            assert saved[key] == published[key], key
        for key in ("rope_theta", "vocab_size", "hidden_size", "pad_token_id", "torch_dtype", "ignore_index"):
            assert saved[key] == published[key], key
        assert "published" not in saved
        for name in python_files(published):
            assert (folder / name).read_bytes() == (tmp_path / "published" / name).read_bytes()
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert set(file.keys()) == set(build(family).state_dict())

    assert not list(tmp_path.glob("*/was_executed"))


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_names_are_the_published_ones(family):
    expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        expected |= {f"{prefix}.self_attn.{part}_proj.weight" for part in "qkvo"}
        expected |= {f"{prefix}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
        expected |= {f"{prefix}.{part}_layernorm.weight" for part in ("input", "post_attention")}
        if family == "qwen2":
            expected |= {f"{prefix}.self_attn.{part}_proj.bias" for part in "qkv"}
        else:
            expected |= {f"{prefix}.self_attn.{part}_norm.weight" for part in "qk"}
    expected.add("ts_encoder.position_embedding.weight")
    expected |= {f"ts_encoder.mlp.{index}.{part}" for index in (0, 2, 4, 6, 8) for part in ("weight", "bias")}
    assert set(build(family).state_dict()) == expected


@pytest.mark.parametrize(("family", "spelling"), [("qwen2", "chatts"), ("qwen3", "qwen3ts")])
def test_own_model_types_load_without_more_ado(tmp_path, family, spelling):
    path = write_checkpoint(tmp_path, family, model_type=spelling)
    assert type(AutoConfig.from_pretrained(path)) is NATIVE[family][0]
    model = AutoModelForCausalLM.from_pretrained(path)
    assert type(model) is NATIVE[family][1]
    assert torch.equal(logits(model), logits(original(family)))
    assert not (tmp_path / "was_executed").exists()


@pytest.mark.parametrize(("family", "spelling"), SPELLINGS)
def test_llamafactory_runs_no_code_of_a_checkpoint_whatever_it_is_asked(tmp_path, family, spelling):
    """LLaMA-Factory's web UI sets `trust_remote_code` for every run."""
    pytest.importorskip("llamafactory", reason="the model classes work without it")
    from llamafactory.hparams import get_infer_args
    from llamafactory.model import load_model, load_tokenizer

    path = write_checkpoint(tmp_path / "published", family, model_type=spelling)
    asked = {"model_name_or_path": path, "template": "chatts", "trust_remote_code": True}
    arguments, _, finetuning_arguments, _ = get_infer_args(asked)
    module = load_tokenizer(arguments)
    model = load_model(module["tokenizer"], arguments, finetuning_arguments)
    assert not (tmp_path / "published" / "was_executed").exists()
    assert isinstance(module["processor"], ChatTSProcessor)
    assert type(model) is NATIVE[family][1]


def test_long_rope_survives(tmp_path):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    config = read_config(write_config(tmp_path / "a", config_dict("qwen3", rope_scaling=scaling)))
    config.save_pretrained(tmp_path / "b")
    saved = saved_config(tmp_path / "b")
    assert saved["rope_scaling"] == scaling
    assert saved["rope_theta"] == 1000000.0
    again = read_config(str(tmp_path / "b"))
    assert {**again.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}


def test_saving_without_the_python_files_warns(tmp_path, caplog):
    path = write_checkpoint(tmp_path / "published", "qwen3")
    (tmp_path / "published" / "modeling_qwen3_ts.py").unlink()
    model = load(path)
    with caplog.at_level(logging.WARNING, logger="llamafactory_ext"):
        model.save_pretrained(tmp_path / "saved")
    assert "modeling_qwen3_ts.py was not found" in caplog.text
    assert (tmp_path / "saved" / "configuration_qwen3_ts.py").exists()
    assert torch.equal(logits(load(str(tmp_path / "saved"))), logits(model))


def test_only_the_main_process_copies(tmp_path):
    model = load(write_checkpoint(tmp_path / "published", "qwen3"))
    model.save_pretrained(tmp_path / "saved", is_main_process=False)
    assert not list((tmp_path / "saved").glob("*.py"))


def test_saving_into_the_checkpoint_itself(tmp_path):
    model = load(write_checkpoint(tmp_path, "qwen3"))
    names = {file.name for file in tmp_path.glob("*.py")}
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.glob("*.py")} == names
    assert all(file.stat().st_size for file in tmp_path.glob("*.py"))


# Quantised


def lora(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", *(f"ts_encoder.mlp.{index}" for index in (0, 2, 4, 6, 8))]
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))


def quantised(kind: str) -> BitsAndBytesConfig:
    if kind == "8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["4", "8"])
def test_only_the_language_model_is_quantised(tmp_path, family, kind):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    wanted = quantised(kind)
    options = {"quantization_config": wanted, "device_map": {"": "cpu"}, "dtype": torch.float32}
    model = load(write_checkpoint(tmp_path, family), **options)
    assert sorted(wanted.llm_int8_skip_modules) == ["lm_head", "ts_encoder"]
    assert sorted(model.config.quantization_config.llm_int8_skip_modules) == ["lm_head", "ts_encoder"]

    small = {"4": bitsandbytes.nn.Linear4bit, "8": bitsandbytes.nn.Linear8bitLt}[kind]
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert len(linears) == 2 * 7 + 1 + 5
    for name, module in linears.items():
        assert isinstance(module, small) == name.startswith("model.layers."), name
    plain = build(family).state_dict()
    for name, weight in model.state_dict().items():
        if name.startswith(("ts_encoder.", "lm_head.")):
            assert torch.equal(weight.float(), plain[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_trains_over_four_bits(tmp_path, family):
    pytest.importorskip("bitsandbytes")
    path = write_checkpoint(tmp_path, family)
    options = {"quantization_config": quantised("4"), "device_map": {"": "cpu"}, "dtype": torch.float32}
    model = lora(load(path, **options)).train()
    loss = model(**BATCH, labels=labels_for(BATCH)).loss
    loss.backward()
    assert torch.isfinite(loss)
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    assert sum("ts_encoder" in name for name in found) == 2 * 5
    for name, gradient in found.items():
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name
        assert bool(gradient.any()) == ("lora_B" in name), name  # A has none yet while B is zero


def test_a_skip_list_of_ones_own_is_kept(tmp_path):
    pytest.importorskip("bitsandbytes")
    wanted = quantised("4")
    wanted.llm_int8_skip_modules = ["ts_encoder", "lm_head", "mlp"]
    load(write_checkpoint(tmp_path, "qwen3"), quantization_config=wanted, device_map={"": "cpu"})
    assert wanted.llm_int8_skip_modules == ["ts_encoder", "lm_head", "mlp"]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_comes_back_and_merges(tmp_path, family):
    from peft import PeftModel

    path = write_checkpoint(tmp_path / "published", family)
    model = lora(load(path)).train()
    step = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(3):
        model(**BATCH, labels=labels_for(BATCH)).loss.backward()
        step.step()
        step.zero_grad()
    trained = logits(model)
    assert not torch.allclose(trained, logits(original(family)), atol=1e-2)
    model.save_pretrained(tmp_path / "adapter")

    again = PeftModel.from_pretrained(load(path), str(tmp_path / "adapter"))
    assert torch.equal(logits(again), trained)
    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert saved_config(tmp_path / "merged")["auto_map"] == config_dict(family)["auto_map"]
    torch.testing.assert_close(logits(load(str(tmp_path / "merged"))), trained, rtol=0, atol=2e-5)


# Processor


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> ChatTSProcessor:
    return ChatTSProcessor.from_pretrained(write_checkpoint(tmp_path_factory.mktemp("processor"), "qwen3"))


def test_processor_writes_text_and_tensor(processor):
    short, long = [1.0, 2.0, 3.0], list(range(20))
    one = processor("A <ts><ts/> and <ts><ts/>.", [short, long])
    series = [torch.tensor(values, dtype=torch.float64).numpy() for values in (short, long)]
    text = f"A {describe(series[0])}<ts> and {describe(series[1])}<ts><ts><ts>."
    assert processor.tokenizer.decode(one["input_ids"][0]) == text
    assert torch.equal(one["timeseries"], torch.from_numpy(encode([short, long])))
    assert "timeseries" not in processor("only text")


@pytest.mark.parametrize("side", ["left", "right"])
def test_processor_feeds_the_model(processor, side):
    model = build("qwen3")
    texts = ["first <ts><ts/>", "a second one: <ts><ts/> against <ts><ts/>", "no series"]
    series = [[1.0, 2.0], list(range(30)), [5.0] * 9]
    batch = processor(texts, series, padding_side=side, padding=True)
    first, last = batch["attention_mask"][:, 0], batch["attention_mask"][:, -1]
    assert (bool(first.all()), bool(last.all())) == (side == "right", side == "left")
    with torch.no_grad():
        rows = model(**batch).logits
        for row, mask, text, own in zip(
            rows, batch["attention_mask"].bool(), texts, [series[:1], series[1:], []], strict=True
        ):
            alone = model(**processor(text, own)).logits[0]
            torch.testing.assert_close(row[mask], alone, rtol=0, atol=2e-5)


def test_processor_names_what_does_not_fit(processor, tmp_path):
    with pytest.raises(ValueError, match="found 1 <ts><ts/> and 2 series; expected one marker for each series"):
        processor("A <ts><ts/>", [[1.0], [2.0]])
    with pytest.raises(ValueError, match="first at index 1"):
        processor("A <ts><ts/>", [[1.0, float("nan")]])
    with pytest.raises(ValueError, match="found a series of 513 points; expected at most 512"):
        processor("A <ts><ts/>", [[1.0] * 513])
    processor("A <ts><ts/>", [[1.0] * 512])
    config = config_dict("qwen2")
    del config["ts"]
    with pytest.raises(ValueError, match=r"is no ChatTS checkpoint: its config\.json has no `ts` section"):
        ChatTSProcessor.from_pretrained(write_config(tmp_path, config))


def test_processor_saves_the_tokenizer(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    write_config(tmp_path, config_dict("qwen3"))
    again = ChatTSProcessor.from_pretrained(str(tmp_path))
    assert torch.equal(again("A <ts><ts/>", [[1.0]])["input_ids"], processor("A <ts><ts/>", [[1.0]])["input_ids"])
    assert not (tmp_path / "processor_config.json").exists()
