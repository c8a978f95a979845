"""The loop on the demo's plant: train, detect, pre-labels, corrections, import, train again, by the real commands.

python tools/demo/loop.py saves/loop --rounds 3 --choose 20
python tools/demo/loop.py saves/loop --rounds 1 --choose 4 --start 8 --golden 8 --pool 12 --steps 2   # its mechanics

A person is simulated from the plant's known labels: of the series that are handed out, each is corrected with
probability --rate, the others are left unreviewed and so not imported. Two arms, that start from one model: the series
with the least confident detections, and as many by chance. The golden set is never trained on: prepare sees to it.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamafactory_ext.gdsh import parse_answer
from llamafactory_ext.toolbox.demo.plant import PROMPT, write_plant
from llamafactory_ext.toolbox.demo.writing import write_mini


ARMS = ("confidence", "random")
RECIPES = Path(__file__).resolve().parents[2] / "yaml"
LESSON = (
    *(
        "fp16=false",
        "per_device_train_batch_size=16",
        "gradient_accumulation_steps=1",
        "lora_rank=16",
        "lora_alpha=32",
    ),
    *("lora_target=all", "learning_rate=2.0e-3", "logging_steps=10", "save_steps=100000", "cutoff_len=512"),
    *("disable_gradient_checkpointing=true", "overwrite_output_dir=true", "preprocessing_num_workers=1"),
)
ANSWERS = (
    *("infer_dtype=float32", "max_new_tokens=96", "per_device_eval_batch_size=64", "cutoff_len=512"),
    "preprocessing_num_workers=1",
)


def run(*words: object, fine: Sequence[int] = (0,)) -> None:
    """Runs a command; its output is shown where its exit status is not a `fine` one."""
    line = [str(word) for word in words]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    if done.returncode not in fine:
        sys.exit(f"{' '.join(line)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def ext(*words: object, fine: Sequence[int] = (0,)) -> None:
    """Runs a command of this package."""
    run(sys.executable, "-m", "llamafactory_ext", *words, fine=fine)


class Loop:
    """One folder with everything that the rounds have in common."""

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.folder, self.given = folder, given
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_mini(folder / "mini")
        write_plant(folder / "plant", given.seed, given.golden + given.start + given.pool)
        self.series = {path.stem: path for path in sorted((folder / "plant" / "timeseries").rglob("*.csv"))}
        names = sorted(self.series)
        random.Random(given.seed).shuffle(names)
        self.golden, rest = names[: given.golden], names[given.golden :]
        self.start, self.pool = rest[: given.start], rest[given.start :]
        self.truth = self._truth()
        for part, chosen in (("golden", self.golden), ("start", self.start)):
            for name in chosen:
                copy(self.series[name], folder / part / "timeseries")
            records = [record for record in self._records() if self._name(record) in chosen]
            (folder / part / "json").mkdir()
            write_json(folder / part / "json" / f"{part}.json", records)
        self.info = folder / "dataset_info.json"
        (folder / "prompt.txt").write_text(PROMPT, "utf-8")
        forms = ("--merge-points", "--compact-answers", "--register", self.info)
        ext("prepare", folder / "golden", "--out", folder / "golden.jsonl", *forms)

    def _records(self) -> list[Any]:
        found: list[Any] = json.loads((self.folder / "plant" / "json" / "plant.json").read_text("utf-8"))
        return found

    def _name(self, record: dict[str, Any]) -> str:
        picture = Path(record["image"].replace("\\", "/")).stem
        return next(name for name in self.series if name.endswith(picture))

    def _truth(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in self.series}
        for record in self._records():
            answer = json.loads(parse_answer(record["conversations"][1]["value"]).text)
            found[self._name(record)] += answer["detected_anomalies"]
        return found

    def train(self, arm: Path, number: int) -> float:
        """Trains on the start and the arm's rounds so far; returns event F1 on the golden set."""
        rounds = [arm / f"round_{one}" for one in range(1, number + 1)]
        data, adapter = f"train_{arm.name}_{number}", arm / f"adapter_{number}"
        ext(
            "prepare",
            "--json", *(one / "json" for one in (self.folder / "start", *rounds)),
            "--series", *(one / "timeseries" for one in (self.folder / "start", *rounds)),
            "--golden", self.folder / "golden.jsonl", "--out", self.folder / f"{data}.jsonl",
            "--merge-points", "--compact-answers", "--register", self.info,
        )  # fmt: skip
        model = (f"model_name_or_path={self.folder / 'mini'}", f"dataset_dir={self.folder}")
        steps = (f"max_steps={self.given.steps}", f"seed={self.given.seed + 1}")
        cli = (sys.executable, "-m", "llamafactory.cli", "train")
        run(*cli, RECIPES / "2080ti_qlora.yaml", *model, *LESSON, *steps, f"dataset={data}", f"output_dir={adapter}")
        answers = arm / f"golden_{number}"
        run(
            *cli, RECIPES / "predict.yaml", *model, *ANSWERS, "eval_dataset=golden", f"adapter_name_or_path={adapter}",
            f"output_dir={answers}",
        )  # fmt: skip
        ext(
            "evaluate", answers / "generated_predictions.jsonl", "--out", arm / f"scores_{number}",
            "--history", arm / "golden_history.jsonl", "--name", f"round {number}",
        )  # fmt: skip
        found = json.loads((arm / f"scores_{number}" / "scores.json").read_text("utf-8"))
        return float(found["event_f1"])

    def correct(self, arm: Path, number: int, left: list[str]) -> list[str]:
        """Has a person correct some of the pool's series that are left; returns those that were reviewed."""
        pool, night, todo = (arm / f"{name}_{number}" for name in ("pool", "night", "todo"))
        for name in left:
            copy(self.series[name], pool / "csv")
        ext("import", pool / "csv", "--labels", "none", "--prompt", self.folder / "prompt.txt", "--out", pool / "data")
        asked = ("--model", self.folder / "mini", "--adapter", arm / f"adapter_{number - 1}", "--max-new-tokens", 96)
        # 1: an answer that could not be used, which the person sees to
        ext("detect", pool / "csv", *asked, "--batch", 64, "--out", night, fine=(0, 1))
        by = () if arm.name == "confidence" else ("--random", str(self.given.seed + number))
        chosen = ("--detections", night / "detections.csv", "--choose", self.given.choose, *by)
        ext("labels", pool / "data", *chosen, "--to", "annotator", "--out", todo)
        chance = random.Random(f"{arm.name} {number} {self.given.seed}")
        reviewed = [path for path in sorted(todo.glob("*.json")) if chance.random() < self.given.rate]
        names = [path.name.removesuffix(".csv.json") for path in reviewed]
        for path, name in zip(reviewed, names, strict=True):
            write_json(
                path, {**json.loads(path.read_text("utf-8")), "approved": True, "annotations": self.known(name)}
            )
        approved = ("--labels", f"annotator:{todo}", "--only-approved", "--round", number)
        into = ("--prompt", self.folder / "prompt.txt", "--out", arm / f"round_{number}", "--name", f"round_{number}")
        ext("import", pool / "csv", *approved, *into)
        return names

    def known(self, name: str) -> list[dict[str, Any]]:
        """Returns what is right, in the annotator's form."""
        found = []
        for one in self.truth[name]:
            start, end = one["interval"]
            found.append({"label": {"text": one["type"]}, "segments": [{"start": start, "end": end}]})
        return found


def copy(path: Path, folder: Path) -> None:
    """Copies a file into a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, folder)


def write_json(path: Path, content: object) -> None:
    """Writes a file of this script's own."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), "utf-8")


def table(scores: dict[str, list[float]]) -> str:
    """Returns the rounds as a table of Markdown."""
    arms = list(scores)
    lines = [f"| round | {' | '.join(arms)} |", f"|---|{'---|' * len(arms)}"]
    for row in range(len(scores[arms[0]])):
        lines.append(f"| {row} | {' | '.join(f'{scores[arm][row]:.3f}' for arm in arms)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="is written anew")
    for name, value, said in (
        ("rounds", 3, "rounds of corrections"), ("choose", 20, "series handed to the person in each"),
        ("start", 10, "labelled series to begin with"), ("golden", 120, "series that models are compared by"),
        ("pool", 200, "series without labels"), ("steps", 200, "training steps of each round"),
        ("seed", 0, "of the plant and of all chances"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{said}; default: {value}")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="share of the series that the person gets to; default: 1"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: both")
    given = parser.parse_args(arguments)
    loop = Loop(given.folder, given)
    first, *others = (given.folder / name for name in given.arms)
    start = loop.train(first, 0)
    for arm in others:
        shutil.copytree(first / "adapter_0", arm / "adapter_0")
    scores = {name: [start] for name in given.arms}
    print(f"round 0: event F1 {start:.3f} on the golden set", flush=True)
    for name in scores:
        arm, left = given.folder / name, list(loop.pool)
        for number in range(1, given.rounds + 1):
            reviewed = loop.correct(arm, number, left)
            left = [one for one in left if one not in reviewed]
            scores[name].append(loop.train(arm, number))
            print(f"round {number}, by {name}: {len(reviewed)} corrected, event F1 {scores[name][-1]:.3f}", flush=True)
    print(table(scores))


if __name__ == "__main__":
    main()
