"""What the scripts here share: a small data set, the demo's recipe for it, and the command line in a process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from conftest import Gdsh, annotation, answer, start_cli  # noqa: E402

from llamafactory_ext.toolbox.demo.model import write_model  # noqa: E402


ZERO2 = {
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto"),
    "zero_optimization": {"stage": 2, "overlap_comm": False},
    **{"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False},
}  # DeepSpeed's configuration


def write_small_data(folder: Path) -> None:
    """Writes ``folder/model``, a tiny ChatTS, and ``folder/data``: eight points of 64 values."""
    write_model(folder / "model")
    data = Gdsh(folder / "data")
    for point in range(8):
        data.csv(f"p{point}.csv", [float((i * (point + 3)) % 11) for i in range(64)])
    data.records(*[annotation(f"p{point}.jpg", answer((5 + point, 9 + point))) for point in range(8)])


def write_stock_data(folder: Path) -> None:
    """Writes ``folder/stock``, a Qwen2 with the tiny ChatTS's tokenizer and decoder, and eight texts in ``data``."""
    from transformers import AutoConfig, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    decoder = AutoConfig.from_pretrained(folder / "model").to_dict()
    sizes = {key: decoder[key] for key in Qwen2Config().to_dict() if key in decoder and key != "model_type"}
    Qwen2ForCausalLM(Qwen2Config(**sizes)).save_pretrained(folder / "stock")
    AutoTokenizer.from_pretrained(folder / "model").save_pretrained(folder / "stock")
    texts = [{"instruction": f"Count {'on ' * 40}", "input": "", "output": str(number)} for number in range(8)]
    (folder / "data" / "texts.json").write_text(json.dumps(texts), "utf-8")
    info = folder / "data" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text("utf-8")) | {"texts": {"file_name": "texts.json"}}), "utf-8")


def demo_recipe(folder: Path, output: Path) -> dict[str, Any]:
    """The keys of ``yaml/cpu_demo.yaml`` for what :func:`write_small_data` wrote, one record a step."""
    recipe: dict[str, Any] = yaml.safe_load((ROOT / "yaml" / "cpu_demo.yaml").read_text("utf-8"))
    recipe |= {"model_name_or_path": str(folder / "model"), "dataset": "a", "dataset_dir": str(folder / "data")}
    recipe |= {"output_dir": str(output), "overwrite_output_dir": False, "cutoff_len": 1024}
    return recipe | {"per_device_train_batch_size": 1, "save_total_limit": 3}


def start(keys: dict[str, Any], folder: Path, log: Path, **environment: str) -> "subprocess.Popen[bytes]":
    """Starts ``llamafactory-cli train`` with these keys; what it prints is added to ``log``."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(keys), "utf-8")
    return start_cli("train", str(recipe), cwd=folder, log=log, **environment)
