"""Export by the real command line: an adapter trained in 4 bit becomes a checkpoint in the published layout.

The published Python files can't be had here; in their place stands the least that reads the published layout, a second
statement of its names. It leaves a trace where it is executed.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Gdsh, annotation, answer, run_cli
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamafactory_ext.model import ChatTSProcessor, read_config


PROMPT = "<|im_start|>user\n<ts><ts/> 与 <ts><ts/> 有何异常？<|im_end|>\n<|im_start|>assistant\n"
SERIES = [[float(i % 7) for i in range(60)], [0.5, 1.75, 3.0, -400.0]]
MODULES = {
    "configuration_qwen2_ts.py": """
from transformers import Qwen2Config
class Qwen2TSConfig(Qwen2Config):
    pass
""",
    "modeling_qwen2_ts.py": """
from pathlib import Path
from torch import nn
from transformers import Qwen2ForCausalLM
from .configuration_qwen2_ts import Qwen2TSConfig
Path("executed").touch()
class Encoder(nn.Module):
    def __init__(self, ts):
        super().__init__()
        self.position_embedding = nn.Embedding(ts["max_sequence_length"] + 1, ts["embedding_dim"])
        widths = [ts["patch_size"] * (1 + ts["embedding_dim"])] + [ts["hidden_size"]] * ts["num_layers"]
        layers = [nn.Linear(one, other) for one, other in zip(widths, widths[1:])]
        self.mlp = nn.Sequential(*[part for layer in layers for part in (layer, nn.GELU())][:-1])
class Qwen2TSForCausalLM(Qwen2ForCausalLM):
    config_class = Qwen2TSConfig
    def __init__(self, config):
        super().__init__(config)
        self.ts_encoder = Encoder(config.ts)
        self.post_init()
""",
    "processing_qwen2_ts.py": "",
}
# What the README tells to do in a program without LLaMA-Factory, then the checkpoint's own loader.
ALONE = """
import json, sys
sys.modules["llamafactory"] = None  # an import of it would fail
import torch
from transformers import AutoModelForCausalLM
from llamafactory_ext.model import ChatTSProcessor, read_config
folder, prompt, series = json.loads(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(folder, config=read_config(folder), dtype="auto")
inputs = ChatTSProcessor.from_pretrained(folder)(prompt, timeseries=series)
output = model.generate(**inputs, max_new_tokens=5, do_sample=False, use_cache=True)
from pathlib import Path
assert not Path("executed").exists()
own, told = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert Path("executed").exists() and type(own).__module__.startswith("transformers_modules"), type(own)
same = all(torch.equal(weight, own.state_dict()[name]) for name, weight in model.state_dict().items())
told = {key: sorted(map(str, value)) for key, value in told.items() if value}
print(json.dumps({"logits": model(**inputs).logits[0, -1].tolist(), "output": output[0].tolist(), "told": told,
    "same": same, "dtype": str(model.dtype), "own": len(own.state_dict()), "native": len(model.state_dict())}))
"""


@pytest.fixture(scope="module")
def published(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's checkpoint as one is published: general model type, Python files, a processor's settings."""
    folder = tmp_path_factory.mktemp("published") / "model"
    shutil.copytree(demo / "model", folder)
    processor = {"AutoProcessor": "processing_qwen2_ts.Qwen2TSProcessor"}
    auto_map = {"AutoConfig": "configuration_qwen2_ts.Qwen2TSConfig", **processor}
    auto_map |= {"AutoModelForCausalLM": "modeling_qwen2_ts.Qwen2TSForCausalLM"}
    extend(folder / "config.json", model_type="qwen2", auto_map=auto_map)
    extend(folder / "tokenizer_config.json", processor_class="Qwen2TSProcessor", auto_map=processor)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen2TSProcessor"}))
    for name, text in MODULES.items():
        (folder / name).write_text(text)
    return folder


def extend(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | keys, ensure_ascii=False), "utf-8")


@pytest.fixture(scope="module")
def adapter(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by the main recipe, in 4 bit, at a rate at which three steps matter."""
    folder = tmp_path_factory.mktemp("adapter")
    data = Gdsh(folder / "data")
    data.csv("a.csv", SERIES[0])
    data.records(*[annotation("a.jpg", answer((2, 3)))] * 4)
    keys = [f"model_name_or_path={published}", "dataset=a", "dataset_dir=data", "output_dir=out", "fp16=false"]
    keys += ["max_steps=3", "gradient_accumulation_steps=2", "warmup_ratio=0", "learning_rate=0.03"]
    keys += ["timeseries_sft_lr=0.03", "plot_loss=false", "preprocessing_num_workers=1"]
    run = run_cli("train", str(ROOT / "yaml" / "2080ti_qlora.yaml"), *keys, cwd=folder)
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    return folder / "out"


@pytest.fixture(scope="module")
def merged(published: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged")
    keys = [f"model_name_or_path={published}", f"adapter_name_or_path={adapter}", "export_dir=out"]
    run = run_cli("export", str(ROOT / "yaml" / "export.yaml"), *keys, cwd=folder)
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    assert not (folder / "executed").exists()
    return folder / "out"


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, config=read_config(str(folder)), dtype="auto").eval()


def logits(model: Any, folder: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**ChatTSProcessor.from_pretrained(str(folder))(PROMPT, SERIES)).logits
    return found


def test_merged_is_base_with_adapter(published: Path, adapter: Path, merged: Path) -> None:
    base, found = load(published), load(merged)
    without = logits(base, published)
    expected = logits(PeftModel.from_pretrained(base, adapter).eval(), published)
    torch.testing.assert_close(logits(found, merged), expected, rtol=0, atol=1e-4)
    assert float((expected - without).abs().max()) > 0.05


def test_files_are_those_that_were_published(published: Path, merged: Path) -> None:
    """Modelfile, and the demo's mark aside. The tokenizer's are the published ones, which older transformers read."""
    names = {path.name for path in published.iterdir()} - {".made-by-demo"}
    assert {path.name for path in merged.iterdir()} - {"Modelfile"} == names
    for name in names - {"config.json", "model.safetensors", "generation_config.json"}:
        assert (merged / name).read_bytes() == (published / name).read_bytes(), name
    was, found = (json.loads((folder / "config.json").read_text("utf-8")) for folder in (published, merged))
    assert {key: found.get(key) for key in was} == was
    before, after = load_file(published / "model.safetensors"), load_file(merged / "model.safetensors")
    assert {name: (w.shape, w.dtype) for name, w in before.items()} == {
        name: (w.shape, w.dtype) for name, w in after.items()
    }
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    attention = {f"model.layers.{n}.self_attn.{part}_proj.weight" for n in (0, 1) for part in "qkv"}
    assert moved == attention | {f"ts_encoder.mlp.{n}.weight" for n in (0, 2, 4, 6, 8)}


def test_it_opens_without_llamafactory_and_by_its_own_files(merged: Path, tmp_path: Path) -> None:
    given = json.dumps([str(merged), PROMPT, SERIES])
    command = [sys.executable, "-c", ALONE, given]
    env = {"PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env |= {"HF_HOME": str(tmp_path / "home")}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["told"] == {} and found["same"] and found["own"] == found["native"]
    assert found["dtype"] == "torch.float32"
    expected = logits(load(merged), merged)[0, -1]
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, rtol=0, atol=1e-5)
    assert found["output"][-5] == int(expected.argmax())


def test_half_precision_stays(published: Path, adapter: Path, tmp_path: Path) -> None:
    """As published: float16 weights; without a card LLaMA-Factory would compute in float32."""
    from llamafactory.train.tuner import export_model

    half = tmp_path / "half"
    shutil.copytree(published, half)
    weights = {name: weight.half() for name, weight in load_file(half / "model.safetensors").items()}
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    extend(half / "config.json", torch_dtype="float16")
    keys = {"model_name_or_path": str(half), "adapter_name_or_path": str(adapter), "template": "chatts"}
    export_model({**keys, "finetuning_type": "lora", "export_dir": str(tmp_path / "out"), "export_device": "cpu"})
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"


def test_a_tokenizer_with_more_tokens_is_saved_as_it_is(published: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(published)
    tokenizer.add_tokens(["<new>"])
    config = read_config(str(published))
    ChatTSProcessor(config, tokenizer).save_pretrained(tmp_path / "more")
    assert AutoTokenizer.from_pretrained(tmp_path / "more").get_vocab() == tokenizer.get_vocab()
    ChatTSProcessor(config, AutoTokenizer.from_pretrained(published)).save_pretrained(tmp_path / "same")
    name = "tokenizer_config.json"
    assert (tmp_path / "same" / name).read_bytes() == (published / name).read_bytes()
    assert (tmp_path / "more" / name).read_bytes() != (published / name).read_bytes()


def test_training_leaves_the_published_tokenizer(published: Path, adapter: Path) -> None:
    """The Trainer saves its own, and that last."""
    for folder in (adapter, adapter / "checkpoint-3"):
        for name in ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"):
            assert (folder / name).read_bytes() == (published / name).read_bytes(), folder


def test_recipe_merges_what_the_main_recipe_trained() -> None:
    import yaml

    export, trains = (
        yaml.safe_load((ROOT / "yaml" / f"{name}.yaml").read_text("utf-8")) for name in ("export", "2080ti_qlora")
    )
    assert export["adapter_name_or_path"] == trains["output_dir"]
    assert export["export_dir"].startswith(trains["output_dir"] + "/")
    for key in ("model_name_or_path", "trust_remote_code", "template", "finetuning_type"):
        assert export[key] == trains[key], key
    assert not {"quantization_bit", "cutoff_len"} & set(export)  # the second one would be written into the tokenizer
