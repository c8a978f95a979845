"""A plain Qwen2 that has learnt some text becomes a ChatTS that reads series, with an alignment stage and without.

A small Qwen2 with random weights learns to answer questions about series that are told in words ("flat flat up 17 …").
It is grafted, and trained by `yaml/align.yaml` and `yaml/sft_mixed.yaml`, overridden in sizes alone, on made-up series
of 64 points. Then it is asked about others: event F1 of their right series, and of the same series exchanged among the
records. `llamafactory-ext graft` and LLaMA-Factory do it, in one process. What comes out stands in docs/graft.md.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from answering import answers, exchanged, scores

import llamafactory_ext.autoload  # noqa: F401
from llamafactory_ext.toolbox.demo.model import train_tokenizer, write_tokenizer


ROOT = Path(__file__).resolve().parents[2]
Record = dict[str, Any]

LENGTH, PATCH, BATCH = 64, 8, 16
FIND = '找出异常，输出JSON：{"detected_anomalies":[{"interval":[起,止],"type":"升高或降低"}]}'
ASKED = {"方向": "变化处是升高还是降低？", "起点": "变化从第几点开始？", "终点": "变化到第几点结束？"}


def draw(rng: np.random.Generator) -> tuple[list[float], int, int, str]:
    """One series with one change of level: values, first and last point, type."""
    start, count = int(rng.integers(2, LENGTH - 20)), int(rng.integers(6, 18))
    kind = "升高" if rng.random() < 0.5 else "降低"
    values = rng.uniform(2, 9) + 0.3 * rng.standard_normal(LENGTH)
    values[start : start + count] += 2.4 if kind == "升高" else -2.4
    return values.round(3).tolist(), start, start + count - 1, kind


def told(start: int, end: int, kind: str) -> str:
    """The series in words, one a patch of 8 points."""
    words = []
    for patch in range(LENGTH // PATCH):
        first, last = patch * PATCH, patch * PATCH + PATCH - 1
        word = kind if start <= last and end >= first else "平"
        word += f"起{start}" if first <= start <= last else ""
        words.append(word + (f"止{end}" if first <= end <= last else ""))
    return " ".join(words)


def said(start: int, end: int, kind: str) -> dict[str, str]:
    found = {"status": "success", "detected_anomalies": [{"interval": [start, end], "type": kind}]}
    plain = {"方向": kind, "起点": f"第{start}点", "终点": f"第{end}点"}
    return {ASKED[name]: text for name, text in plain.items()} | {FIND: json.dumps(found, ensure_ascii=False)}


def records(rng: np.random.Generator, count: int, questions: Sequence[str]) -> list[Record]:
    """Series with a question each, as ChatTS records."""
    found = []
    for number in range(count):
        values, *where = draw(rng)
        question = questions[number % len(questions)]
        found.append({"input": f"<ts><ts/>\n{question}", "output": said(*where)[question], "timeseries": [values]})
    return found


def texts(rng: np.random.Generator, count: int) -> list[Record]:
    """The same questions about series that are told in words."""
    found = []
    for number in range(count):
        _, *where = draw(rng)
        question, answer = list(said(*where).items())[number % 4]
        found.append({"input": f"{told(*where)}\n{question}", "output": answer})
    return found


def write_data(folder: Path, seed: int, stage: int) -> None:
    """Writes data sets in the proportions in which the recipes mix them, ``stage`` records a stage."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    simple = list(ASKED.values())
    parts = {
        "words": texts(rng, stage),
        "align_256": records(rng, 9 * stage // 10, simple),
        "ift": records(rng, stage // 5, [FIND]),
        "sft": records(rng, 6 * stage // 10, [FIND]),
        "align_random": records(rng, stage // 5, simple),
        "held_out": records(rng, 200, [FIND]),
    }
    info: dict[str, Any] = {}
    for name, rows in parts.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
        columns = {"prompt": "input", "response": "output"} | ({"timeseries": "timeseries"} if name != "words" else {})
        info[name] = {"file_name": f"{name}.jsonl", "columns": columns}
    (folder / "dataset_info.json").write_text(json.dumps(info), "utf-8")


def write_qwen(folder: Path, data: Path, seed: int) -> None:
    """A Qwen2 of random weights, with a tokenizer that knows no series."""
    from tokenizers import Tokenizer
    from transformers import Qwen2Config, Qwen2ForCausalLM

    corpus = [line for name in ("words", "sft") for line in (data / f"{name}.jsonl").read_text("utf-8").splitlines()]
    asked = [json.loads(line) for line in corpus[:2000] + corpus[-500:]]
    corpus = [text for one in asked for text in (one["input"], one["output"])]
    folder.mkdir(parents=True)
    write_tokenizer(folder, train_tokenizer([*corpus, "system\nYou are a helpful assistant.\nuser\nassistant\n"]))
    for path in (folder / "tokenizer.json", folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        path.write_text(json.dumps(without_markers(json.loads(path.read_text("utf-8")))), "utf-8")
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(seed)
    config = Qwen2Config(
        **sizes,
        num_key_value_heads=2,
        vocab_size=-(-size // 64) * 64,
        max_position_embeddings=2048,
        initializer_range=0.08,
        tie_word_embeddings=False,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


def without_markers(value: Any) -> Any:
    """JSON without what names ``<ts>`` and ``<ts/>``."""
    if isinstance(value, dict):
        return {k: without_markers(v) for k, v in value.items() if not marks(v)}
    return [without_markers(one) for one in value if not marks(one)] if isinstance(value, list) else value


def marks(value: Any) -> bool:
    return value in ("<ts>", "<ts/>") or (isinstance(value, dict) and value.get("content") in ("<ts>", "<ts/>"))


def train(folder: Path, recipe: str, model: str, output: str, steps: int, **keys: Any) -> None:
    """Runs a recipe of ``yaml/`` on the made-up data, BATCH records a step, in this process."""
    from llamafactory.train.tuner import run_exp

    values = yaml.safe_load((ROOT / "yaml" / f"{recipe}.yaml").read_text("utf-8"))
    values |= {"model_name_or_path": str(folder / model), "dataset_dir": str(folder / "data"), "max_steps": steps}
    values |= {"output_dir": str(folder / output), "cache_dir": str(folder / "cache"), "cutoff_len": 512}
    values |= {"per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 1, "save_steps": 10_000}
    values |= {"fp16": False, "preprocessing_num_workers": None, "disable_gradient_checkpointing": True}
    values |= {"logging_steps": 50, "plot_loss": False, "adam_beta2": 0.98, "warmup_ratio": 0.05, "use_cpu": True}
    started = time.process_time()
    run_exp(values | keys)
    print(f"{output}: {time.process_time() - started:.0f} s of CPU time", file=sys.stderr, flush=True)


def graft(folder: Path, seed: int) -> None:
    from llamafactory_ext.toolbox.cli.graft import main as graft_main

    sys.argv = ["graft", str(folder / "qwen"), "--out", str(folder / "grafted"), "--max-length", "512"]
    sys.argv += ["--seed", str(seed)]
    if graft_main():
        sys.exit("graft failed")


def arms(align: int, tune: int) -> dict[str, list[tuple[str, int, dict[str, Any]]]]:
    """What is tried: stages with their recipe, steps and keys."""
    fast: dict[str, Any] = {"learning_rate": 2e-3}
    first = fast | {"dataset": "align_256,ift"}
    second = fast | {"timeseries_sft_lr": 2e-3}
    return {
        "encoder aligned, then all tuned": [("align", align, first), ("sft_mixed", tune, second)],
        "all aligned, then all tuned": [
            ("align", align, first | {"finetuning_type": "full"}),
            ("sft_mixed", tune, second),
        ],
        "not aligned, tuned as long": [("sft_mixed", tune, second)],
        "not aligned, tuned for both stages": [("sft_mixed", align + tune, second)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder for models, data and logs")
    parser.add_argument("--align", type=int, default=400, help="steps of the first stage, of 16 records; default: 400")
    parser.add_argument("--tune", type=int, default=400, help="the same of the second stage; default: 400")
    parser.add_argument("--words", type=int, default=400, help="steps in which the Qwen learns text; default: 400")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder: Path = given.folder.resolve()
    write_data(folder / "data", given.seed, BATCH * max(given.align, given.tune))
    write_qwen(folder / "random", folder / "data", given.seed)
    held_out = [json.loads(line) for line in (folder / "data" / "held_out.jsonl").read_text("utf-8").splitlines()]
    text = {"template": "qwen", "dataset": "words", "finetuning_type": "full", "mix_strategy": "concat"}
    text |= {"interleave_probs": None, "learning_rate": 2e-3}
    train(folder, "align", "random", "qwen", given.words, **text)
    graft(folder, given.seed)
    print("| arm | steps | strict JSON | event F1 | at IoU 0.5 | event F1, series exchanged |")
    print("|---|---|---|---|---|---|", flush=True)
    for number, (name, stages) in enumerate(arms(given.align, given.tune).items()):
        model = "grafted"
        for recipe, steps, keys in stages:
            output = f"arm{number}_{recipe}"
            train(folder, recipe, model, output, steps, **keys)
            model = output
        right = scores(answers(folder / model, held_out, new=60), held_out)
        control = scores(answers(folder / model, exchanged(held_out, 7), new=60), held_out)
        numbers = (right["strict_json_rate"], right["event_f1"], right["event_f1_iou50"], control["event_f1"])
        steps = " + ".join(str(one[1]) for one in stages)
        print(f"| {name} | {steps} | {' | '.join(f'{one:.3f}' for one in numbers)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
