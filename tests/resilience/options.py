"""Runs LLaMA-Factory's other options with series, for real, and says of each whether it works or is refused.

Each option is a run of ``llamafactory-cli train`` (its entry point, in a fork where one process is enough) with a tiny
model over 8 records in one batch, so that the first step's loss does not depend on their order. An option that leaves
the computation alone must give the plain run's loss; one with a loss of its own must give another number for the same
records with their points in another order, of which the text says nothing. A refusal is one line, before the first
step.

    python tests/resilience/options.py                       # all of them, about ten minutes on 2 idle cores
    python tests/resilience/options.py --only packing dpo    # those whose name holds one of these words

Exit status 1 where an option neither works nor is refused.
"""

import argparse
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from resilience.options_bench import Bench, Run, exchange, prepare  # noqa: E402
from resilience.options_special import SPECIAL, Verdict  # noqa: E402


FSDP = {"fsdp": "full_shard auto_wrap", "per_device_train_batch_size": 4}
FSDP_APART = {"fsdp_config": {"sync_module_states": False}}
VALIDATION = {"eval_dataset": "series_exchanged", "eval_strategy": "steps", "eval_steps": 1}


@dataclass(frozen=True)
class Option:
    """An option and what is expected of it.

    ``same``: the plain run's first loss. ``own``: a number of its own (``metric``) that depends on the series.
    ``text``: no series at all, and a finite loss. ``refused``: no step, and an error that holds ``line``.
    """

    name: str
    keys: dict[str, Any]
    expected: Literal["same", "own", "text", "refused"] = "same"
    metric: str = "loss"
    line: str = ""
    processes: int = 1


OPTIONS = (
    Option("streaming, max_steps", {"streaming": True}),
    Option("streaming, 2 data loader workers", {"streaming": True, "dataloader_num_workers": 2}, "own"),
    Option("streaming, eval_dataset", {"streaming": True, **VALIDATION}),
    Option("streaming, val_size", {"streaming": True, "val_size": 2}, "refused", line="name it as `eval_dataset`"),
    Option("streaming, 2 processes", {"streaming": True, "per_device_train_batch_size": 4}, processes=2),
    Option("preprocessing_num_workers: 4", {"preprocessing_num_workers": 4}),
    Option("val_size", {"val_size": 2, "eval_strategy": "steps", "eval_steps": 1}, "own", metric="eval_loss"),
    Option(
        "mix_strategy: interleave_over, with text",
        {"dataset": "series,text", "mix_strategy": "interleave_over"},
        "own",
    ),
    Option(
        "the same, streaming", {"dataset": "series,text", "mix_strategy": "interleave_over", "streaming": True}, "own"
    ),
    Option("packing, 2 a batch", {"packing": True, "per_device_train_batch_size": 2}, "own"),
    Option("packing, val_size", {"packing": True, "val_size": 2, "eval_strategy": "steps", "eval_steps": 1}, "own"),
    Option("packing, cutoff_len 500", {"packing": True, "cutoff_len": 500}, "refused", line="set 504"),
    Option("packing, streaming", {"packing": True, "streaming": True}, "refused", line="remove one of them"),
    Option("neat_packing, flash_attn: sdpa", {"neat_packing": True, "flash_attn": "sdpa"}),
    Option("finetuning_type: full", {"finetuning_type": "full"}),
    Option("finetuning_type: freeze", {"finetuning_type": "freeze", "freeze_trainable_layers": 1}),
    Option("use_dora", {"use_dora": True}),
    Option("compute_accuracy", {"compute_accuracy": True, **VALIDATION}),
    Option("stage: dpo", {"stage": "dpo", "dataset": "pairs"}, "own", metric="logps/chosen"),
    Option(
        "stage: dpo, full",
        {"stage": "dpo", "dataset": "pairs", "finetuning_type": "full"},
        "own",
        metric="logps/chosen",
    ),
    Option("stage: dpo, pref_loss: orpo", {"stage": "dpo", "dataset": "pairs", "pref_loss": "orpo"}, "own"),
    Option("stage: kto", {"stage": "kto", "dataset": "tagged"}, "own", metric="logps/chosen"),
    Option("stage: kto, no kto_tag", {"stage": "kto", "dataset": "lines"}, "refused", line="as `kto_tag`"),
    Option("stage: rm", {"stage": "rm", "dataset": "pairs"}, "own"),
    Option("stage: ppo", {"stage": "ppo", "reward_model": "model"}, "refused", line="in stage `dpo` or `kto`"),
    Option("stage: pt", {"stage": "pt"}, "refused", line="in stage `sft`"),
    Option("stage: pt, text alone", {"stage": "pt", "dataset": "text", "cutoff_len": 16}, "text"),
    Option("DeepSpeed ZeRO-2, 2 processes", {"deepspeed": "z2.json", "per_device_train_batch_size": 4}, processes=2),
    Option("fsdp, 2 processes", FSDP, "refused", processes=2, line="no available devices found"),
    Option("fsdp, 2 processes that draw their own weights", FSDP | FSDP_APART, processes=2),
)


def judge(bench: Bench, option: Option, place: int, plain: Run, other: Run) -> Verdict:
    """Runs an option, and a second time with exchanged series where its number stands for itself."""
    name, metric = f"option{place}", option.metric
    run = bench.train(name, option.keys, option.processes)
    if option.expected == "refused":
        early = run.status != 0 and "'loss'" not in run.output
        return Verdict("refused" if early and option.line in run.error else "WRONG", run.error)
    if run.status != 0:
        return Verdict("WRONG", run.error)
    found, later = run.metric(metric), run.metric(metric, 1)
    if not (math.isfinite(found) and math.isfinite(later) and found != later):
        return Verdict("WRONG", f"{metric} {found}, then {later}")
    if option.expected == "text":
        return Verdict("works", f"{metric} {found:.4f}")
    if option.expected == "same":
        # Several processes: upstream logs the mean of their means, whatever number of labels each has.
        right = math.isclose(found, plain.metric("loss"), rel_tol=1e-5 if option.processes == 1 else 1e-4)
        told = (
            f"loss {found:.5f}, without the option {plain.metric('loss'):.5f}, other series {other.metric('loss'):.5f}"
        )
    else:
        second = bench.train(f"{name}_exchanged", exchange(option.keys), option.processes).metric(metric)
        right = math.isfinite(second) and not math.isclose(found, second, rel_tol=1e-4)
        told = f"{metric} {found:.4f}, with other series {second:.4f}"
    return Verdict("works" if right else "WRONG", told)


# A step under torch's FSDP, two processes, one of them without series, against the mean of both by themselves.


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], epilog="Exit status 1 where an option is WRONG."
    )
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="WORD", help="options whose name holds one of these"
    )
    parser.add_argument("--folder", type=Path, help="where the runs' files stay; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, prepare(arguments.folder or Path(temporary)) as bench:
        plain, other = bench.train("plain", {}), bench.train("other", exchange({}))
        if math.isclose(plain.metric("loss"), other.metric("loss"), rel_tol=1e-3):
            raise SystemExit("the plain run's loss does not tell series apart")
        print("| option | result | told by |\n|---|---|---|")
        results = []
        for place, option in enumerate([*OPTIONS, *SPECIAL]):
            name = option if isinstance(option, str) else option.name
            if not any(word in name for word in arguments.only):
                continue
            if isinstance(option, str):
                verdict = SPECIAL[option](bench, plain)
            else:
                verdict = judge(bench, option, place, plain, other)
            results.append(verdict.result)
            print(f"| `{name}` | {verdict.result} | {verdict.told} |", flush=True)
    counts = ", ".join(f"{results.count(kind)} {kind}" for kind in ("works", "refused", "WRONG"))
    print(f"{len(results)} options tried: {counts}.")
    return 1 if "WRONG" in results else 0


if __name__ == "__main__":
    sys.exit(main())
