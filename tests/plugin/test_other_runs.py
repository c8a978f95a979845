"""What does not need the plugin runs as if it were not there; what only brushes it works too."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import upstream
from conftest import ROOT, Gdsh, annotation, log_history, run_cli
from test_text_runs import write_text_data


RECIPE = {
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "dataset": "text",
    "output_dir": "out",
    "per_device_train_batch_size": 2,
    "learning_rate": 0.01,
    "max_steps": 4,
    "logging_steps": 1,
    "report_to": "none",
    "seed": 1,
    "use_cpu": True,
}


@pytest.fixture(scope="module")
def text_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    rows = [{"instruction": f"count {i}", "input": "", "output": f"{i} {i + 1}"} for i in range(8)]
    (folder / "text.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"text": {"file_name": "text.json"}}))
    return folder


@pytest.fixture(scope="module")
def plain_qwen2(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has nothing to do with series, with the demo's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("qwen2")
    tokenizer = AutoTokenizer.from_pretrained(demo / "model")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 8,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


STAGES: dict[str, dict[str, Any]] = {
    "sft": {"dataset": "tasks"},
    "pt": {"dataset": "tasks", "cutoff_len": 64},
    "kto": {"dataset": "tagged"},
    "dpo": {"dataset": "pairs"},
    "rm": {"dataset": "pairs"},
}
# Each stage in a fork of one process that has imported LLaMA-Factory: a run, one that starts over in its folder, and
# one that resumes. What it prints goes into a file.
TRAIN = """
import json, os, sys, torch
from llamafactory.train.tuner import run_exp
from transformers import Trainer
torch.set_num_threads(1)
train = Trainer.train

def train_and_tell(self, *args, **kwargs):
    objects = [self, self.args, self.finetuning_args, self.data_collator]
    names = [[f"{one.__module__}.{one.__qualname__}" for one in type(x).__mro__] for x in objects]
    print(json.dumps({"classes": names, "keys": sorted(vars(self.finetuning_args)), "packages": packages()}))
    return train(self, *args, **kwargs)

def packages():
    return len(torch.serialization._package_registry)

Trainer.train = train_and_tell
for stage, recipe in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        os.mkdir(stage)
        os.chdir(stage)
        out = os.open("log.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1), os.dup2(out, 2)
        run_exp(dict(recipe))
        for name in ("earlier-checkpoint-2", "incomplete-checkpoint-2"):
            os.mkdir(f"out/{name}")
            open(f"out/{name}/notes.txt", "w").close()
        run_exp({**recipe, "overwrite_output_dir": True, "learning_rate": 0.02})
        try:
            run_exp({**recipe, "max_steps": 3})
        except Exception as err:  # stage rm says itself that it can't be resumed so
            print(repr(err)[:200])
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(0)
    if os.wait()[1]:
        sys.exit(stage)
print("llamafactory_ext.plugin.activation" in sys.modules)
"""


def train_texts(folder: Path, state: str, data: Path, *options: str, **environment: str) -> dict[str, Any]:
    """Runs every stage in ``folder/work``; returns what each left there, and what it logged."""
    common = {"model_name_or_path": str(data / "model"), "dataset_dir": str(data), "template": "empty"}
    common |= {"save_steps": 2, "max_steps": 2, "disable_tqdm": True, "cache_dir": str(folder / "work" / "cache")}
    recipes = {stage: {**RECIPE, **common, "stage": stage, **keys} for stage, keys in STAGES.items()}
    work = folder / "work"
    work.mkdir()
    packages = [path for path in sys.path if path.endswith("-packages")]
    code = f"import sys; sys.path += [path for path in {packages!r} if path not in sys.path]\n{TRAIN}"
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    done = upstream.run([sys.executable, *options, "-c", code, json.dumps(recipes)], work, **environment)
    logs = "".join(path.read_text("utf-8")[-3000:] for path in work.glob("*/log.txt"))
    assert done.returncode == 0, done.stderr[-3000:] + logs
    assert done.stdout.strip() == str(state == "on")
    found: dict[str, Any] = {"files": sorted(str(path.relative_to(work)) for path in work.rglob("*"))}
    for path in sorted(work.rglob("*")):
        if path.suffix in (".safetensors", ".arrow"):
            found[str(path.relative_to(work))] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix in (".txt", ".json", ".jsonl", ".md"):
            lines = path.read_text("utf-8").splitlines()
            found[str(path.relative_to(work))] = [without_times(line) for line in lines]
    work.rename(folder / state)
    return found


def without_times(line: str) -> str:
    """A line of a log or a file without what is another one each time: dates, durations and rates, places."""
    line = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(,\d+)?|\d:\d\d:\d\d(\.\d+)?|0x[0-9a-f]+", "…", line)
    line = re.sub(r"('?\"?\w*(time|per_second|runtime)\w*\"?'?\s*[:=])\s*\S+", r"\1…", line)
    return re.sub(r"[\d.,]+(ms|s| examples/s| tokens/s)\b", "…", line)


def test_other_models_train_as_without_the_plugin(plain_qwen2: Path, demo: Path, tmp_path: Path) -> None:
    """On, switched off or absent: the same classes, log lines, files, names and weights, whatever lies there."""
    data = tmp_path / "data"
    data.mkdir()
    write_text_data(data, demo / "model")
    shutil.copytree(plain_qwen2, data / "model", dirs_exist_ok=True)
    absent = train_texts(tmp_path, "absent", data, "-S")
    off = train_texts(tmp_path, "off", data, LLAMAFACTORY_EXT="0")
    on = train_texts(tmp_path, "on", data)
    assert {"sft/out/checkpoint-3", "sft/out/earlier-checkpoint-2/notes.txt"} <= set(absent["files"])
    for found in (off, on):
        assert found.keys() == absent.keys()
        assert {key: value for key, value in found.items() if value != absent[key]} == {}


def losses(cwd: Path, recipe: dict[str, Any], **environment: str) -> list[float]:
    cwd.mkdir()
    (cwd / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    run = run_cli("train", "recipe.yaml", cwd=cwd, **environment)
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    return [entry["loss"] for entry in log_history(cwd / "out") if "loss" in entry]


def test_text_beside_series(text_data: Path, demo: Path, tmp_path: Path) -> None:
    """Text records and series in one run, through our template, two processes: some batches hold no series at all."""
    data = Gdsh(tmp_path / "data")
    data.csv("a.csv", range(30))
    data.records(*[annotation()] * 2)
    info = {"a": data.entry, "text": {"file_name": str(text_data / "text.json")}}
    (data.folder / "dataset_info.json").write_text(json.dumps(info))
    recipe = {**RECIPE, "model_name_or_path": str(demo / "model"), "dataset_dir": str(data.folder)}
    recipe |= {"template": "chatts", "dataset": "a,text", "per_device_train_batch_size": 1, "lora_target": "all"}
    found = losses(tmp_path / "run", recipe, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    assert len(found) == 4
    assert all(0 < loss < 20 for loss in found)


@pytest.mark.parametrize("model_type", ["qwen2", "chatts"])
def test_published_checkpoint_without_its_code(model_type: str, demo: Path, tmp_path: Path) -> None:
    """As published: `auto_map` to Python files beside it, a processor that is remote code. None of it is executed."""
    model = tmp_path / "published"
    shutil.copytree(demo / "model", model)
    for module in ("configuration_x", "modeling_x", "processing_x"):
        (model / f"{module}.py").write_text(
            f"open({str(tmp_path / 'executed')!r}, 'w')\nraise SystemExit('executed')\n"
        )
    auto_map = {
        "AutoConfig": "configuration_x.C",
        "AutoModel": "modeling_x.M",
        "AutoModelForCausalLM": "modeling_x.M",
        "AutoProcessor": "processing_x.P",
    }
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": model_type, "auto_map": auto_map}))
    (model / "processor_config.json").write_text(
        json.dumps({"processor_class": "P", "auto_map": {"AutoProcessor": "processing_x.P"}})
    )
    data = Gdsh(tmp_path / "data")
    data.csv("a.csv", range(30))
    data.records(*[annotation()] * 2)
    recipe = {**RECIPE, "model_name_or_path": str(model), "dataset_dir": str(data.folder), "dataset": "a"}
    found = losses(tmp_path / "run", {**recipe, "template": "chatts", "max_steps": 1, "lora_target": "q_proj"})
    assert 0 < found[0] < 20

    export = {"model_name_or_path": str(model), "adapter_name_or_path": "out", "template": "chatts"}
    (tmp_path / "run" / "export.yaml").write_text(json.dumps({**export, "export_dir": "merged", "export_size": 1}))
    run = run_cli("export", "export.yaml", cwd=tmp_path / "run")
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    merged = tmp_path / "run" / "merged"
    exported = json.loads((merged / "config.json").read_text())
    kept = {key: exported[key] for key in ("model_type", "auto_map", "architectures", "ts", "rope_theta")}
    assert kept == {
        **{key: config[key] for key in kept if key in config},
        "model_type": model_type,
        "auto_map": auto_map,
    }
    for module in ("configuration_x", "modeling_x", "processing_x"):
        assert (merged / f"{module}.py").read_bytes() == (model / f"{module}.py").read_bytes()
    assert not (tmp_path / "executed").exists()
