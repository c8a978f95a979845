"""A plain Qwen becomes a ChatTS: its weights stay to the bit, what is added is in the published layout and trains."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, Gdsh, annotation, answer
from helpers_model import build, config_dict
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llamafactory_ext.model import ChatTSProcessor, Qwen2TSForCausalLM, Qwen3TSForCausalLM, read_config
from llamafactory_ext.toolbox.cli.graft import main
from llamafactory_ext.toolbox.grafting import encoder, writing


SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOKENS = 256 + 30 + len(SPECIAL)
FREE, FULL = 320, TOKENS
CLASSES: dict[str, tuple[Any, Any, Any]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, Qwen2TSForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, Qwen3TSForCausalLM),
}
SMALL = ("--max-length", "512")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

Graft = Callable[..., tuple[int, str]]
State = dict[str, torch.Tensor]


def write_tokenizer(folder: Path) -> None:
    """The files of a published Qwen's tokenizer, with few tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [first + second for first in "aeinrst" for second in "aeinrst"][:30]
    vocabulary = {text: index for index, text in enumerate(letters + pairs)}
    merges = [(pair[0], pair[1]) for pair in pairs]
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.normalizer = normalizers.NFC()
    split = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    core.save(str(folder / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    settings = {
        "add_bos_token": False,
        "added_tokens_decoder": {str(core.token_to_id(text)): {"content": text, **flags} for text in SPECIAL},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")


def write_qwen(
    folder: Path, family: str = "qwen2", rows: int = FREE, tied: bool = True, shards: bool = False, width: int = 64
) -> Path:
    """A Qwen of random weights, Qwen2 in bfloat16 and Qwen3 in float32."""
    config_class, model_class, _ = CLASSES[family]
    sizes = {"hidden_size": width, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": rows, "max_position_embeddings": 4096, "head_dim": 16}
    torch.manual_seed(3)
    model = model_class(config_class(**sizes, tie_word_embeddings=tied, rope_theta=1e6))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model = model.to(torch.bfloat16 if family == "qwen2" else torch.float32)
    model.save_pretrained(folder, max_shard_size="40KB" if shards else "1GB")
    write_tokenizer(folder)
    return folder


def weights(folder: Path) -> State:
    found: State = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as held:
            found |= {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    return found


def change(folder: Path, name: str = "config.json", **keys: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, config=read_config(str(folder)), dtype="auto").eval()


@pytest.fixture
def graft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Graft:
    """Runs the command; returns its exit status and all that it printed."""

    def run(*words: Any) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["llamafactory-ext graft", *map(str, words)])
        capsys.readouterr()  # what making the Qwen printed
        status = main()
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


@pytest.mark.parametrize(
    ("family", "rows", "tied", "shards"),
    [
        ("qwen2", FREE, True, True),
        ("qwen2", FULL, True, False),
        ("qwen2", FULL + 1, False, True),
        ("qwen3", FREE, False, False),
        ("qwen3", FULL, False, True),
    ],
)
def test_the_language_model_stays_to_the_bit(
    family: str, rows: int, tied: bool, shards: bool, graft: Graft, tmp_path: Path
) -> None:
    qwen, out = write_qwen(tmp_path / "qwen", family, rows, tied, shards), tmp_path / "made" / "chatts"
    files = sorted(qwen.glob("*.safetensors"))
    assert (len(files) > 2) == shards
    status, said = graft(qwen, "--out", out)
    assert status == 0, said
    start, end, new_rows = TOKENS, TOKENS + 1, rows if rows == FREE else 320
    assert f"<ts> is {start}, <ts/> {end}, " in said
    assert ("in free rows" in said) == (rows == FREE)
    assert (f" {new_rows - rows} rows added" in said) == (rows != FREE)

    old, new = weights(qwen), weights(out)
    own = {"ts_encoder.position_embedding.weight"}
    own |= {f"ts_encoder.mlp.{index}.{part}" for index in (0, 2, 4, 6, 8) for part in ("weight", "bias")}
    assert set(new) == set(old) | own
    assert (HEAD in new) != tied
    for name, weight in old.items():
        assert new[name].dtype == weight.dtype
        assert torch.equal(new[name][: len(weight)], weight), name
        assert len(new[name]) == (new_rows if name in (EMBEDDING, HEAD) else len(weight))
    assert new["ts_encoder.position_embedding.weight"].shape == (32769, 16)
    assert {new[name].dtype for name in own} == {old[EMBEDDING].dtype}

    index = json.loads((out / "model.safetensors.index.json").read_text())
    total = len(files) + 1
    assert set(index["weight_map"].values()) == {
        f"model-{n:05}-of-{total:05}.safetensors" for n in range(1, total + 1)
    }
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in new.values())
    if rows == FREE:  # nothing is read to be written again
        for number, file in enumerate(files, 1):
            assert (out / f"model-{number:05}-of-{total:05}.safetensors").read_bytes() == file.read_bytes()

    native = load(out)
    assert type(native) is CLASSES[family][2]
    ids = torch.arange(TOKENS).reshape(1, -1)
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(qwen, dtype="auto").eval()(ids).logits
        found = native(ids).logits
    assert torch.equal(found[..., :rows], wanted)
    assert new_rows == rows or (found[..., rows:].amax(-1) < wanted.amax(-1)).all()  # never chosen for what they are

    inputs = ChatTSProcessor.from_pretrained(str(out))("a <ts><ts/> b", [[1.0, 5.0, 2.0] * 10])
    assert int((inputs["input_ids"] == start).sum()) == 4  # one a patch
    inputs["timeseries"] = inputs["timeseries"].to(native.dtype)
    with torch.no_grad():
        assert bool(native(**inputs).logits.isfinite().all())
    assert sorted(path.name for path in out.parent.iterdir()) == ["chatts"]


def test_the_config_is_as_published(graft: Graft, tmp_path: Path) -> None:
    for family, kind in (("qwen2", "chatts"), ("qwen3", "qwen3ts")):
        out = tmp_path / kind
        graft(write_qwen(tmp_path / family, family), "--out", out)
        found, before = (json.loads((folder / "config.json").read_text()) for folder in (out, tmp_path / family))
        wanted = {"architectures": [f"{family.capitalize()}TSForCausalLM"], "model_type": kind, "ignore_index": -100}
        wanted |= {"ts_token_start_index": TOKENS, "ts_token_end_index": TOKENS + 1, "vocab_size": FREE}
        assert {key: found[key] for key in wanted} == wanted
        published = {**config_dict(family)["ts"], "embedding_dim": 16, "max_length": 32768}
        assert found["ts"] == {**published, "max_sequence_length": 32768}
        assert found["rope_theta"] == 1e6  # which published loaders read, and transformers 5 does not write
        assert {key: found[key] for key in before if key not in wanted} == {
            key: value for key, value in before.items() if key not in wanted
        }
        assert type(AutoModelForCausalLM.from_pretrained(out)) is CLASSES[family][2]


def test_the_tokenizer_has_the_markers_and_nothing_else_changes(graft: Graft, tmp_path: Path) -> None:
    qwen, out = write_qwen(tmp_path / "qwen"), tmp_path / "out"
    (qwen / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    (qwen / "added_tokens.json").write_text(json.dumps({text: TOKENS - 3 + n for n, text in enumerate(SPECIAL)}))
    assert graft(qwen, "--out", out, *SMALL)[0] == 0
    before, after = AutoTokenizer.from_pretrained(qwen), AutoTokenizer.from_pretrained(out)
    assert after.get_vocab() == {**before.get_vocab(), "<ts>": TOKENS, "<ts/>": TOKENS + 1}
    assert after("x<ts><ts/>")["input_ids"][-2:] == [TOKENS, TOKENS + 1]
    assert after.decode([TOKENS, TOKENS + 1], skip_special_tokens=True) == ""
    text = "读数 restart <t s> 12.5\n<|im_start|>user"
    assert before(text)["input_ids"] == after(text)["input_ids"]
    assert after.chat_template == before.chat_template
    for name in ("vocab.json", "merges.txt", "generation_config.json"):
        assert (out / name).read_bytes() == (qwen / name).read_bytes()
    read = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert read["tokenizer_config"]["additional_special_tokens"] == ["<|im_start|>", "<|im_end|>", "<ts>", "<ts/>"]
    assert read["tokenizer_config"]["added_tokens_decoder"][str(TOKENS)]["content"] == "<ts>"
    assert read["special_tokens_map"] == {"eos_token": "<|im_end|>", "additional_special_tokens": ["<ts>", "<ts/>"]}
    assert read["added_tokens"]["<ts/>"] == TOKENS + 1
    stated = json.loads((qwen / "tokenizer.json").read_text())
    assert read["tokenizer"]["model"] == stated["model"]
    assert read["tokenizer"]["added_tokens"][:-2] == stated["added_tokens"]
    last = stated["added_tokens"][-1]  # a special token as all of Qwen's
    assert read["tokenizer"]["added_tokens"][-2:] == [
        {**last, "id": TOKENS, "content": "<ts>"},
        {**last, "id": TOKENS + 1, "content": "<ts/>"},
    ]


def test_a_tokenizer_saved_by_transformers_itself(graft: Graft, tmp_path: Path) -> None:
    """Version 5 has other names, and a list for the special tokens."""
    qwen = write_qwen(tmp_path / "qwen")
    tokenizer = AutoTokenizer.from_pretrained(qwen)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<ts/>"]})  # one that is there keeps its id
    tokenizer.save_pretrained(qwen)
    assert graft(qwen, "--out", tmp_path / "out", *SMALL)[0] == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("<ts><ts/>")["input_ids"] == [TOKENS + 1, TOKENS]
    named = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["added_tokens"]
    assert [token["content"] for token in named] == [*SPECIAL, "<ts/>", "<ts>"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["ts_token_start_index"], config["ts_token_end_index"]) == (TOKENS + 1, TOKENS)


# --- the encoder ---


def test_the_encoder_is_drawn_from_the_seed(graft: Graft, tmp_path: Path) -> None:
    qwen = write_qwen(tmp_path / "qwen", "qwen3")
    sizes = ("--patch-size", 16, "--layers", 3, "--embedding-dim", 4, *SMALL)
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(drawn))
        assert f"seed {seed}" in graft(qwen, "--out", tmp_path / name, "--seed", seed, *sizes)[1]
        drawn.append({key: one for key, one in weights(tmp_path / name).items() if key.startswith("ts_encoder")})
    assert {name: list(weight.shape) for name, weight in drawn[0].items()} == {
        "ts_encoder.position_embedding.weight": [513, 4],
        "ts_encoder.mlp.0.weight": [64, 16 * 5],
        "ts_encoder.mlp.2.weight": [64, 64],
        "ts_encoder.mlp.4.weight": [64, 64],
        **{f"ts_encoder.mlp.{index}.bias": [64] for index in (0, 2, 4)},
    }
    for name, weight in drawn[0].items():
        assert torch.equal(weight, drawn[1][name])
        if weight.ndim == 1:
            assert not weight.any()
            continue
        assert not torch.equal(weight, drawn[2][name])
        bound = (6 / sum(weight.shape)) ** 0.5  # Glorot and Bengio 2010, equation 16
        assert bound * 0.98 < float(weight.abs().max()) <= bound
        assert abs(float(weight.std()) / (bound / 3**0.5) - 1) < 0.05


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ChatTS of width 64, with patches and lengths of its own."""
    folder = tmp_path_factory.mktemp("other")
    section = {**config_dict("qwen3")["ts"], "patch_size": 4, "max_sequence_length": 300}
    (folder / "config.json").write_text(json.dumps(config_dict("qwen3", ts=section)))
    model = build("qwen3", ts=section)
    save_file({name: one.contiguous() for name, one in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def test_an_encoder_of_the_same_width_is_taken_as_it_is(other: Path, graft: Graft, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, said = graft(write_qwen(tmp_path / "qwen", "qwen3"), "--out", out, "--encoder-from", other)
    assert (status, "width 64 in both; train it" in said, "cast" in said) == (0, True, False)
    old, new = weights(other), weights(out)
    names = {name for name in new if name.startswith("ts_encoder.")}
    assert names == {name for name in old if name.startswith("ts_encoder.")}
    assert all(torch.equal(new[name], old[name]) for name in names)
    assert json.loads((out / "config.json").read_text())["ts"]["patch_size"] == 4


def test_an_encoder_in_another_type_is_cast_and_that_is_said(other: Path, graft: Graft, tmp_path: Path) -> None:
    status, said = graft(write_qwen(tmp_path / "qwen"), "--out", tmp_path / "out", "--encoder-from", other)
    assert (status, "(cast from float32 to bfloat16)" in said) == (0, True)
    name = "ts_encoder.mlp.4.weight"
    assert torch.equal(weights(tmp_path / "out")[name], weights(other)[name].bfloat16())


def test_a_narrower_encoder_does_the_same_in_a_wider_model(other: Path, graft: Graft, tmp_path: Path) -> None:
    out = tmp_path / "out"
    qwen = write_qwen(tmp_path / "qwen", "qwen3", width=96)
    status, said = graft(qwen, "--out", out, "--encoder-from", other, "--seed", 5)
    assert status == 0
    assert "from width 64 to 96: all units kept, the last layer projected at random (seed 5)" in said
    assert "by 0.0% of their size" in said

    old, new = load(other).ts_encoder, load(out).ts_encoder
    series = torch.randn(3, 100, 1)
    series[:, 1::2] = 1
    wanted, found = old(series)[0], new(series)[0]
    # A projection that keeps lengths and angles, whatever it is: all products of the outputs stay.
    torch.testing.assert_close(found @ found.T, wanted @ wanted.T, rtol=1e-4, atol=1e-4)
    new(series)[0].pow(2).sum().backward()
    ways = new.mlp[8].weight.grad[:, 64:]
    assert bool(ways.any(dim=0).all())  # no unit is dead: those that lead nowhere yet can learn to
    assert not new.mlp[8].weight[:, 64:].any()


def test_a_wider_encoder_is_cut_and_its_loss_is_said(other: Path, graft: Graft, tmp_path: Path) -> None:
    qwen = write_qwen(tmp_path / "qwen", "qwen3", width=32)
    status, said = graft(qwen, "--out", tmp_path / "out", "--encoder-from", other)
    assert status == 0
    assert "from width 64 to 32: the 32 largest units a layer kept" in said
    assert read_config(str(tmp_path / "out")) is not None
    lost = float(said.split("original by ")[1].split("%")[0])
    assert 5 < lost < 150


def test_units_that_do_nothing_are_those_cut() -> None:
    """An encoder that was only made wider comes back as it was, but for the projections' rotation."""
    section = {**config_dict("qwen3")["ts"], "hidden_size": 16}
    drawn = encoder.draw_encoder(section, 1)
    wide = encoder.draw_encoder({**section, "hidden_size": 64}, 2)
    units = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:16].sort().values
    for name, weight in wide.items():
        weight.zero_()
        rows = units if name.startswith("mlp.") else torch.arange(len(weight))
        inner = name.endswith("weight") and name[4] in "2468"
        if weight.ndim == 2:
            columns = units if inner and name.startswith("mlp.") else torch.arange(weight.shape[1])
            weight[rows[:, None], columns] = drawn[name]
        else:
            weight[rows] = drawn[name]
    fitted, difference = encoder.fit_width(wide, {**section, "hidden_size": 64}, 16, 3)
    assert difference < 1e-5
    for index in (0, 2, 4, 6):
        assert torch.equal(fitted[f"mlp.{index}.weight"], drawn[f"mlp.{index}.weight"])


# --- training ---


def test_it_trains_in_four_bits(gdsh: Gdsh, graft: Graft, tmp_path: Path) -> None:
    """Two steps of the main recipe, by LLaMA-Factory's own `run_exp`."""
    pytest.importorskip("bitsandbytes")
    from llamafactory.train.tuner import run_exp

    model = tmp_path / "model"
    graft(write_qwen(tmp_path / "qwen", "qwen2", FULL), "--out", model, *SMALL)
    gdsh.records(*[annotation("a.jpg", answer((5, 9)))] * 2)
    recipe = yaml.safe_load((ROOT / "yaml" / "2080ti_qlora.yaml").read_text("utf-8"))
    recipe |= {"model_name_or_path": str(model), "dataset": "a", "dataset_dir": str(gdsh.folder), "max_steps": 2}
    recipe |= {"output_dir": str(tmp_path / "out"), "cache_dir": str(tmp_path / "cache"), "fp16": False}
    recipe |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "preprocessing_num_workers": 1}
    run_exp({**recipe, "use_cpu": True, "embedding_on_cpu": False, "report_to": "none", "warmup_ratio": 0})
    trained = weights(tmp_path / "out")
    changed = {name for name, weight in trained.items() if "lora_B" in name and bool(weight.any())}
    assert sum("ts_encoder" in name for name in changed) == 5
    assert any("q_proj" in name for name in changed)


# --- what is refused ---


def quantised(qwen: Path) -> None:
    change(qwen, quantization_config={"quant_method": "gptq"})


def without(name: str) -> Callable[[Path], None]:
    return lambda qwen: (qwen / name).unlink()


def with_text(name: str, text: str) -> Callable[[Path], None]:
    return lambda qwen: (qwen / name).write_text(text) and None


def keys(**found: Any) -> Callable[[Path], None]:
    return lambda qwen: change(qwen, **found)


def pickled(qwen: Path) -> None:
    torch.save(weights(qwen), qwen / "pytorch_model.bin")
    (qwen / "model.safetensors").unlink()


def headless(qwen: Path) -> None:
    change(qwen, tie_word_embeddings=False)


def cut(qwen: Path) -> None:
    content = (qwen / "model.safetensors").read_bytes()
    (qwen / "model.safetensors").write_bytes(content[:-100])


def short(qwen: Path) -> None:
    held = weights(qwen)
    save_file({**held, EMBEDDING: held[EMBEDDING][:280].clone()}, qwen / "model.safetensors")
    change(qwen, vocab_size=280)


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (shutil.rmtree, "holds no config.json; expected the folder of a downloaded Qwen2, Qwen2.5 or Qwen3"),
    (with_text("config.json", "{"), "config.json is no JSON"),
    (with_text("config.json", "[]"), "config.json holds no object"),
    (keys(ts={}), "is a ChatTS already"),
    (keys(architectures=["Qwen3TSForCausalLM"], model_type="qwen3"), "is a ChatTS already"),
    (keys(architectures=["LlamaForCausalLM"], model_type="llama"), "['LlamaForCausalLM'] of type 'llama'; expected"),
    (keys(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe"), "of type 'qwen3_moe'; expected"),
    (keys(architectures=["Qwen2ForSequenceClassification"]), "expected a Qwen2ForCausalLM"),
    (keys(model_type=["qwen2"]), "expected a Qwen2ForCausalLM"),
    (keys(hidden_size="64"), "hidden_size is '64', expected an integer"),
    (keys(intermediate_size=100), "expected [100, 64] by intermediate_size"),
    (quantised, "is quantised"),
    (pickled, "holds no safetensors"),
    (without("model.safetensors"), "holds no safetensors"),
    (headless, f"the files hold no {HEAD}"),
    (cut, "download it again"),
    (short, "the tokenizer has a token 288, the embedding 280 rows"),
    (without("tokenizer.json"), "tokenizer.json is missing"),
    (without("tokenizer_config.json"), "tokenizer_config.json is missing"),
    (with_text("tokenizer.json", "{}"), "tokenizer.json is no tokenizer"),
    (with_text("tokenizer_config.json", "]"), "tokenizer_config.json is no JSON"),
]


@pytest.mark.parametrize(("spoil", "said"), FAULTS, ids=[said[:40] for _, said in FAULTS])
def test_what_is_no_plain_qwen_is_refused_in_a_line(
    spoil: Callable[[Path], None], said: str, graft: Graft, tmp_path: Path
) -> None:
    qwen = write_qwen(tmp_path / "qwen")
    spoil(qwen)
    status, printed = graft(qwen, "--out", tmp_path / "out", *SMALL)
    assert status == 1
    assert printed.startswith("error: ")
    assert said in printed
    assert printed.count("\n") == 1
    assert str(qwen) in printed
    assert {path.name for path in tmp_path.iterdir()} <= {"qwen"}


def test_a_folder_that_holds_something_is_left_alone(graft: Graft, tmp_path: Path) -> None:
    qwen, out = write_qwen(tmp_path / "qwen"), tmp_path / "out"
    for path in (out / "mine.txt", tmp_path / "file"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    for target in (out, tmp_path / "file", qwen):
        before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
        status, said = graft(qwen, "--out", target, *SMALL)
        assert (status, said) == (2, f"error: {target} exists and is no empty folder; name another one with --out\n")
        assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    (out / "mine.txt").unlink()
    assert graft(qwen, "--out", out, *SMALL)[0] == 0
    assert graft(out, "--out", tmp_path / "again", *SMALL) == (
        1,
        f"error: {out} is a ChatTS already; train it as it is\n",
    )


@pytest.mark.parametrize("name", ["_write_weights", "check_weights"])
def test_a_full_disk_leaves_nothing(name: str, graft: Graft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qwen = write_qwen(tmp_path / "qwen")

    def fail(*given: Any) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(writing, name, fail)
    status, said = graft(qwen, "--out", tmp_path / "out", *SMALL)
    assert (status, said) == (1, "error: x: No space left on device\n")
    assert [path.name for path in tmp_path.iterdir()] == ["qwen"]


def test_encoders_that_can_not_be_taken(other: Path, graft: Graft, tmp_path: Path) -> None:
    qwen, out = write_qwen(tmp_path / "qwen", width=32), tmp_path / "out"
    assert graft(qwen, "--out", out, "--encoder-from", qwen) == (
        1,
        f"error: {qwen} is no ChatTS checkpoint: it has no config.json with a `ts` section\n",
    )
    spoilt = Path(shutil.copytree(other, tmp_path / "spoilt"))
    held = weights(spoilt)
    save_file({**held, "ts_encoder.mlp.2.bias": torch.zeros(3)}, spoilt / "model.safetensors")
    status, said = graft(qwen, "--out", out, "--encoder-from", spoilt)
    assert (status, said) == (1, f"error: {spoilt}: ts_encoder.mlp.2.bias is (3,); expected (64,)\n")
    change(spoilt, ts={**json.loads((spoilt / "config.json").read_text())["ts"], "use_layer_norm": True})
    norm = {"ts_encoder.mlp.9.weight": torch.ones(64), "ts_encoder.mlp.9.bias": torch.zeros(64)}
    save_file({**held, **norm}, spoilt / "model.safetensors")
    status, said = graft(qwen, "--out", out, "--encoder-from", spoilt)
    assert (status, "ends with a norm" in said) == (1, True)
    with pytest.raises(SystemExit):
        graft(qwen, "--out", out, "--encoder-from", other, "--patch-size", 4)
    assert not out.exists()
