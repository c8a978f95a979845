"""Whether learning from scores pays: DPO and the best of K answers against as many steps on the labels.

    python tests/resilience/prefer.py MODEL FOLDER --seed 0

MODEL is a checkpoint that reads series, but not well yet (a small one that is still being trained). It is first tuned
for a few steps on records of a plant that counts frozen values and bursts of noise, and not the spikes. Then K answers
to each of these records are drawn and scored (`prefer_reward.py`). From the same weights go on, with
equal numbers of steps: the labels again, the best answers, DPO on pairs, and DPO on the same pairs with the series
exchanged among them. Scores are of greedy answers to other points. What came out stands in docs/prefer.md.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from answering import Record, answers, exchanged, scores
from prefer_reward import Choice, choose, intervals_of, reward

import llamafactory_ext.autoload  # noqa: F401
from llamafactory_ext.toolbox.demo.series import draw_intervals, draw_series


LENGTH, SHRINK = 256, 0.42
COUNTED, NORMAL = ("数值冻结", "噪声增大"), ("上行尖峰", "下行尖峰", "双向尖峰")
COUNTS, SPIKES = (0.15, 0.5, 0.35), (0.1, 0.35, 0.55)  # none, one, two in a series
PROMPT = "下面是测点的时间序列。请找出其中的异常，给出起止下标（从0开始，首尾都算）和类型，用JSON回答。"
TRAINING, UNSEEN = 1, 2
PLAIN = {"prompt": "input", "response": "output", "timeseries": "timeseries"}
PAIRS = {"prompt": "input", "chosen": "chosen", "rejected": "rejected", "timeseries": "timeseries"}


def draw(seed: int, part: int, number: int) -> Record:
    """One point of the plant."""
    rng = np.random.default_rng([seed, part, number])
    counted = rng.choice(COUNTED, size=rng.choice(3, p=COUNTS))
    spikes = rng.choice(NORMAL, size=rng.choice(3, p=SPIKES))
    kinds = tuple(str(kind) for kind in rng.permutation([*counted, *spikes]))
    places = draw_intervals(kinds, LENGTH, rng, SHRINK) if kinds else []
    _, values = draw_series(kinds, places, LENGTH, rng, SHRINK)
    found = [
        {"interval": list(place), "type": kind} for kind, place in zip(kinds, places, strict=True) if kind in COUNTED
    ]
    answer = {"status": "success", "detected_anomalies": found}
    text = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
    return {"input": f"<ts><ts/>\n{PROMPT}", "output": text, "timeseries": [values.round(3).tolist()]}


def write(folder: Path, name: str, records: Sequence[Record], columns: dict[str, str]) -> None:
    """Adds a data set."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records))
    path = folder / "dataset_info.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    entry = {"file_name": f"{name}.jsonl", "columns": columns, "ranking": "chosen" in columns}
    path.write_text(json.dumps(known | {name: entry}))


def train(model: Path, data: Path, name: str, out: Path, steps: int, rate: float, **keys: Any) -> Path:
    """Trains all weights, 16 records a step."""
    from llamafactory.train.tuner import run_exp

    values = {"model_name_or_path": str(model), "dataset": name, "dataset_dir": str(data), "output_dir": str(out)}
    run_exp(
        {
            **values,
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "template": "chatts",
            "cutoff_len": 1024,
            "overwrite_output_dir": True,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "learning_rate": rate,
            "max_steps": steps,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
            "save_steps": 10_000,
            "report_to": "none",
            "disable_gradient_checkpointing": True,
            "use_cpu": True,
            "cache_dir": str(data.parent / "cache"),
            **keys,
        }
    )
    return out


def choices(model: Path, records: Sequence[Record], count: int, seed: int) -> list[Choice]:
    """Draws so many answers to each record, scores them, and chooses."""
    texts = answers(model, [one for one in records for _ in range(count)], 1.0, seed, batch=112)
    found = []
    for place, one in enumerate(records):
        label = intervals_of(one["output"], LENGTH) or []
        some = texts[place * count : (place + 1) * count]
        found.append(choose(some, [reward(text, label, LENGTH) for text in some]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the checkpoint")
    parser.add_argument("folder", type=Path, help="for data and models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--records", type=int, default=112, help="to train on; default: 112")
    parser.add_argument("--unseen", type=int, default=80, help="to score on; default: 80")
    parser.add_argument("--answers", type=int, default=6, help="that are drawn to each record; default: 6")
    parser.add_argument("--steps", type=int, default=28, help="of each training; default: 28")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate on answers; default: 5e-4")
    parser.add_argument("--dpo-rate", type=float, default=2e-4, help="learning rate of DPO; default: 2e-4")
    given = parser.parse_args()
    seed, folder, steps = given.seed, given.folder.resolve(), given.steps
    data, started = folder / "data", time.process_time()
    records = [draw(seed, TRAINING, number) for number in range(given.records)]
    unseen = [draw(seed, UNSEEN, number) for number in range(given.unseen)]

    def tell(arm: str, model: Path) -> None:
        found = scores(answers(model, unseen, batch=80), unseen)
        names = ("event_f1", "event_f1_iou50", "false_alarms_per_1000_points", "strict_json_rate")
        line = {"seed": seed, "arm": arm, **{name: found[name] for name in names}}
        print(json.dumps(line | {"cpu_seconds": round(time.process_time() - started)}), flush=True)

    tell("as given", given.model)
    write(data, "labels", records, PLAIN)
    base = train(given.model, data, "labels", folder / "base", steps, 1e-3, seed=seed)
    tell("tuned on the labels", base)
    found = choices(base, records, given.answers, seed)
    both = list(zip(records, found, strict=True))
    best = [{**one, "output": choice.best} for one, choice in both if choice.best]
    pairs = [{**one, "chosen": choice.best, "rejected": choice.worst} for one, choice in both if choice.worst]
    counts = {"seed": seed, "records": len(records), "best": len(best), "pairs": len(pairs)}
    print(json.dumps(counts | {"mean": round(float(np.mean([one.mean for one in found])), 3)}), flush=True)
    write(data, "best", best, PLAIN)
    write(data, "pairs", pairs, PAIRS)
    write(data, "exchanged", exchanged(pairs, 5), PAIRS)
    dpo = {"stage": "dpo", "pref_beta": 0.1}
    trials: list[tuple[str, str, float, dict[str, Any]]] = [
        ("labels again", "labels", given.rate, {}),
        ("DPO", "pairs", given.dpo_rate, dpo),
        ("best of the answers", "best", given.rate, {}),
        ("DPO, series exchanged", "exchanged", given.dpo_rate, dpo),
    ]
    for arm, name, rate, keys in trials:
        tell(arm, train(base, data, name, folder / name, steps, rate, seed=seed + 10, **keys))
    return 0


if __name__ == "__main__":
    sys.exit(main())
