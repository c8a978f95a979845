"""Times answers through LLaMA-Factory against the model's bare `generate`, over the same batches.

The shipped model `mini` answers about the demo's points: by `llamafactory-cli train` with the recipe `predict.yaml`,
and by `generate` of the same class, loaded by itself. Both run in one process and in turn; the first round of each
warms up and does not count. Time is that of the processor: of LLaMA-Factory's, `Seq2SeqTrainer.predict` alone, from
the records to the predictions as tokens; start-up, tokenising and the file of predictions are no part of it.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from llamafactory_ext.toolbox.cli.terminal import DONE, run, say
from llamafactory_ext.toolbox.session.silence import hush


AT_MOST = 1.10
_ROOT = Path(__file__).parents[2]
_GIVEN = ("input_ids", "attention_mask", "timeseries")
_KEPT = ("max_new_tokens", "do_sample", "eos_token_id", "pad_token_id", "use_cache")


def make_records(folder: Path) -> None:
    """Writes the demo's model and records into ``folder/demo``, `plant_val` among them."""
    tool = [sys.executable, "-m", "llamafactory_ext"]
    split = ["--merge-points", "--compact-answers", "--split", "0.12", "--register", "demo/dataset_info.json"]
    for command in (["demo"], ["prepare", "demo/plant", "--out", "demo/plant.jsonl", *split]):
        subprocess.run([*tool, *command], cwd=folder, check=True, stdout=subprocess.DEVNULL)


class Answers:
    """What LLaMA-Factory asked of `generate`, and what its `predict` took."""

    def __init__(self, folder: Path, batch: int, new_tokens: int, records: int | None) -> None:
        changes = {
            "model_name_or_path": folder / "demo/mini", "adapter_name_or_path": "null", "quantization_bit": "null",
            "infer_dtype": "float32", "embedding_on_cpu": "false", "dataset_dir": folder / "demo",
            "eval_dataset": "plant_val", "cutoff_len": 512, "preprocessing_num_workers": "null",
            "max_new_tokens": new_tokens, "per_device_eval_batch_size": batch, "output_dir": folder / "answers",
            "overwrite_cache": "true", "max_samples": records or "null",
        }  # fmt: skip
        self.model = folder / "demo/mini"
        self._command = ["llamafactory-cli", "train", str(_ROOT / "yaml/predict.yaml")]
        self._command += [f"{key}={value}" for key, value in changes.items()]
        self.batches: list[tuple[dict[str, Any], Any]] = []

    def predict(self) -> float:
        """Runs `llamafactory-cli`, and notes the batches; returns the seconds of its `predict`.

        Raises:
            RuntimeError: nothing was answered.
        """
        from llamafactory.cli import main
        from transformers import GenerationMixin, Seq2SeqTrainer

        generate, predict, seconds = GenerationMixin.generate, Seq2SeqTrainer.predict, []
        self.batches.clear()

        def noted(model: Any, *args: Any, **kwargs: Any) -> Any:
            found = generate(model, *args, **kwargs)
            self.batches.append((kwargs, found.clone()))  # the Trainer writes into it
            return found

        def timed(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            found = predict(trainer, *args, **kwargs)
            seconds.append(time.process_time() - start)
            return found

        with (
            patch.object(sys, "argv", self._command.copy()),
            patch.object(GenerationMixin, "generate", noted),
            patch.object(Seq2SeqTrainer, "predict", timed),
            redirect_stdout(sys.stderr),
        ):
            main()
        if not (seconds and self.batches):
            raise RuntimeError("LLaMA-Factory's `predict` answered nothing")
        return seconds[0]

    def generate(self) -> float:
        """Answers the noted batches again; returns the seconds.

        Raises:
            RuntimeError: the answers are others.
        """
        import torch

        from llamafactory_ext.model import Qwen2TSForCausalLM

        model = Qwen2TSForCausalLM.from_pretrained(self.model, dtype=torch.float32, attn_implementation="sdpa").eval()
        found, start = [], time.process_time()
        for kwargs, _ in self.batches:
            found.append(model.generate(**{key: kwargs[key] for key in _GIVEN + _KEPT}))
        seconds = time.process_time() - start
        if not all(torch.equal(ours, theirs) for ours, (_, theirs) in zip(found, self.batches, strict=True)):
            raise RuntimeError("bare `generate` gave other answers than LLaMA-Factory; nothing is compared")
        return seconds


def compare(rounds: int, batch: int, new_tokens: int, records: int | None) -> tuple[float, float, int]:
    """Returns the best seconds of LLaMA-Factory's way and of the bare one, and the number of batches."""
    with tempfile.TemporaryDirectory() as folder:
        make_records(Path(folder))
        answers = Answers(Path(folder), batch, new_tokens, records)
        both = [(answers.predict(), answers.generate()) for _ in range(rounds + 1)][1:]
        return min(ours for ours, _ in both), min(bare for _, bare in both), len(answers.batches)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python tools/bench/predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed ones of each; default: 3")
    parser.add_argument("--batch", type=int, default=16, help="records at a time; default: 16")
    parser.add_argument("--new-tokens", type=int, default=96, help="of an answer at most; default: 96")
    parser.add_argument("--records", type=int, help="default: all of the demo's")
    given = parser.parse_args()
    hush()
    ours, bare, batches = compare(given.rounds, given.batch, given.new_tokens, given.records)
    ratio = f"{ours / bare:.2f} (at most {AT_MOST:.2f})"
    say("| answers of mini | s through LLaMA-Factory | s of bare `generate` | ratio |\n|---|---|---|---|")
    say(f"| {batches} batches of {given.batch} | {ours:.2f} | {bare:.2f} | {ratio} |")
    return DONE


if __name__ == "__main__":
    run(main)
