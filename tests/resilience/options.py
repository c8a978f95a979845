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
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

from conftest import Gdsh, annotation, answer, log_history, run_cli  # noqa: E402


RECORDS = 8
PROMPT = "<ts><ts/>\n请找出异常区间，用JSON回答。"
TWO = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}
FSDP = {"fsdp": "full_shard auto_wrap", "per_device_train_batch_size": 4}
FSDP_APART = {"fsdp_config": {"sync_module_states": False}}
VALIDATION = {"eval_dataset": "series_exchanged", "eval_strategy": "steps", "eval_steps": 1}
PLAIN = {
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_target": "q_proj,k_proj,v_proj",
    "template": "chatts",
    "dataset": "series",
    "cutoff_len": 504,
    "per_device_train_batch_size": RECORDS,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0.01,
    "max_steps": 2,
    "logging_steps": 1,
    "report_to": "none",
    "seed": 1,
    "use_cpu": True,
    "overwrite_output_dir": True,
}


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


@dataclass(frozen=True)
class Run:
    """What came of a run."""

    status: int
    output: str
    log: list[dict[str, Any]]

    def metric(self, name: str, place: int = 0) -> float:
        """The metric as it was logged first, or later; NaN where it was not."""
        values = [entry[name] for entry in self.log if name in entry]
        return float(values[place]) if len(values) > place else math.nan

    @property
    def error(self) -> str:
        """The first exception's line, which is what a user reads."""
        lines = [line.strip() for line in self.output.splitlines()]
        return next((line for line in lines if "Error: " in line), (lines or [""])[-1])


@dataclass(frozen=True)
class Verdict:
    """What is known of an option: ``works``, ``refused`` or ``WRONG``, and the numbers or the line that tell it."""

    result: str
    told: str


# One process imports what takes long; each run is a fork of it that goes through the command line's own entry point.
SERVER = """
import os, sys, traceback
told = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from llamafactory.cli import main
from llamafactory.train import tuner
for line in sys.stdin:
    sys.argv = ["llamafactory-cli", *line.split()]
    child = os.fork()
    if child == 0:
        status = 1
        log = os.open(sys.argv[2].replace(".yaml", ".log"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            main()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=told, flush=True)
"""


class Bench:
    """A folder with a model, data and runs; a context, since a process of its own stands by."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.server = subprocess.Popen([sys.executable, "-c", SERVER], cwd=folder, env=env, text=True, **pipes)

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *error: object) -> None:
        self.server.communicate("")  # the end of what it reads

    def train(self, name: str, keys: dict[str, Any], processes: int = 1, **environment: str) -> Run:
        """Trains into the folder ``name``, with a cache of its own."""
        recipe = {**PLAIN, "model_name_or_path": "model", "dataset_dir": "data", "cache_dir": f"cache/{name}"}
        self.write(f"{name}.yaml", {**recipe, "output_dir": name, **keys})
        if processes > 1:
            environment |= {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(processes)}
        return self.run(name, "train", **environment)

    def run(self, name: str, command: str, **environment: str) -> Run:
        """Runs a command of LLaMA-Factory's with ``name``.yaml; with an environment, in a process of its own."""
        if environment:
            done = run_cli(command, f"{name}.yaml", cwd=self.folder, timeout=1800, **environment)
            status, output = done.returncode, done.stdout + done.stderr
        else:
            assert self.server.stdin and self.server.stdout
            self.server.stdin.write(f"{command} {name}.yaml\n")
            self.server.stdin.flush()
            status = int(self.server.stdout.readline())
            output = (self.folder / f"{name}.log").read_text()
        finished = status == 0 and (self.folder / name / "trainer_state.json").is_file()
        return Run(status, output, log_history(self.folder / name) if finished else [])

    def write(self, name: str, content: Any) -> None:
        (self.folder / name).write_text(json.dumps(content, ensure_ascii=False))  # JSON is YAML


def prepare(folder: Path) -> Bench:
    """Writes the model and the data sets: ``series`` and one for each stage, and ``…_exchanged`` beside each."""
    from demo_model import Size, write_model

    write_model(folder / "model", size=Size(deviation=0.15))  # large weights: the series move the loss
    data, info = Gdsh(folder / "data"), {}
    for number in range(RECORDS):
        values = [math.sin(index * (number + 2) / 9) * 5 + index % 7 for index in range(48 + 8 * number)]
        for kind, cells in (("gdsh", values), ("moving", values), ("exchanged", exchanged(values))):
            data.csv(f"{number}.csv", cells, kind)
    data.records(*(annotation(f"/x/{number}.jpg", answer((number, number + 3))) for number in range(RECORDS)))
    for name, kind in (("series", "gdsh"), ("moving", "moving"), ("series_exchanged", "exchanged")):
        info[name] = {"file_name": "json/a.json", "formatting": "gdsh", "folder": f"timeseries/{kind}"}
    bench = Bench(folder)
    for suffix, kind in (("", "gdsh"), ("_exchanged", "exchanged")):
        rows = [row(data.folder / "timeseries" / kind, number) for number in range(RECORDS)]
        for name, columns in COLUMNS.items():
            kept = ["input", "timeseries", *columns.values()]
            bench.write(f"data/{name}{suffix}.json", [{key: row[key] for key in kept} for row in rows])
            all_columns = {"prompt": "input", "timeseries": "timeseries", **columns}
            info[name + suffix] = {"file_name": f"{name}{suffix}.json", "columns": all_columns}
            info[name + suffix] |= {"ranking": True} if "chosen" in columns else {}
    texts = [{"instruction": f"count {i}", "input": "", "output": f"{i} {i + 1}"} for i in range(3)]
    bench.write("data/text.json", texts)
    bench.write("data/dataset_info.json", {**info, "text": {"file_name": "text.json"}})
    stage2 = {"stage": 2, "overlap_comm": False}
    automatic = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    bench.write("z2.json", {**dict.fromkeys(automatic, "auto"), "zero_optimization": stage2} | UNTESTED)
    return bench


UNTESTED = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
COLUMNS: dict[str, dict[str, str]] = {
    "lines": {"response": "output"},
    "pairs": {"chosen": "chosen", "rejected": "rejected"},
    "tagged": {"response": "output", "kto_tag": "good"},
}


def exchanged(values: list[float]) -> list[float]:
    """The same points in another order, first, last, largest and smallest ones in place: the text says the same."""
    kept = {0, len(values) - 1, values.index(max(values)), values.index(min(values))}
    places = [index for index in range(len(values)) if index not in kept]
    moved = list(values)
    for place, source in zip(places, reversed(places), strict=True):
        moved[place] = values[source]
    return moved


def row(folder: Path, number: int) -> dict[str, Any]:
    """A record with everything that a stage may want."""
    lines = (folder / f"{number}.csv").read_text().splitlines()[1:]
    good, bad = answer((number, number + 3)), answer((number + 9, number + 20))
    record = {"input": PROMPT, "output": good if number % 2 else bad, "good": bool(number % 2)}
    return {**record, "chosen": good, "rejected": bad, "timeseries": [[float(x.rpartition(",")[2]) for x in lines]]}


def exchange(keys: dict[str, Any]) -> dict[str, Any]:
    """The same keys with the same records, whose points stand in another order."""
    names = str(keys.get("dataset", PLAIN["dataset"])).split(",")
    return {**keys, "dataset": ",".join(name if name == "text" else f"{name}_exchanged" for name in names)}


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
SHARDED = """
import json, os, torch
from helpers_model import build, inputs, labels_for, record
from torch.distributed.fsdp import fully_shard
from llamafactory_ext.model import loss

def step(model, batch):
    model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = model(**batch, labels=labels_for(batch)).loss
    found.backward()
    weights = [model.model.layers[0].self_attn.q_proj.weight, model.ts_encoder.mlp[0].weight, model.lm_head.weight]
    gradients = [getattr(weight.grad, "full_tensor", lambda weight=weight: weight.grad)() for weight in weights]
    return float(found.detach()), torch.cat([gradient.flatten() for gradient in gradients])

loss.labels_at_once = lambda vocab_size: 4  # the loss in pieces, which run the head several times
torch.distributed.init_process_group("gloo")
batches = [inputs(record(0, 40, text=30)), inputs(record(1, text=20))]
rank = int(os.environ["RANK"])
alone = [step(build("qwen2"), batch) for batch in batches]
model = build("qwen2")
for part in [*model.model.layers, model]:
    fully_shard(part, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (2,)))
found, gradient = step(model, batches[rank])
expected = (alone[0][1] + alone[1][1]) / 2
apart = float((gradient - expected).abs().max() / expected.abs().max())
print(json.dumps({"rank": rank, "loss": found, "alone": alone[rank][0], "gradients_apart": apart}), flush=True)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def sharded(bench: Bench, plain: Run | None = None) -> Verdict:
    """Takes a step under torch's own FSDP: accelerate leaves out the recipe's ``fsdp`` on a CPU."""
    (bench.folder / "sharded.py").write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29673"]
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "tools"), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*command, str(bench.folder / "sharded.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    found = [json.loads(text) for text in re.findall(r"\{[^{}]*\}", done.stdout)]
    if len(found) != 2:
        return Verdict("WRONG", done.stderr[-2000:])
    right = all(
        math.isclose(row["loss"], row["alone"], rel_tol=1e-5) and row["gradients_apart"] < 1e-4 for row in found
    )
    told = ", ".join(f"loss {row['loss']:.5f} ({row['alone']:.5f} alone)" for row in found)
    return Verdict("works" if right else "WRONG", f"{told}; gradients {found[0]['gradients_apart']:.0e} apart")


def tokenised(bench: Bench, plain: Run) -> Verdict:
    """Writes ``tokenized_path``, trains from it, and again after its CSV files have changed."""
    keys = {"tokenized_path": "tokens", "dataset": "moving"}
    losses = [bench.train("tokens_written", keys).metric("loss"), bench.train("tokens_read", keys).metric("loss")]
    for file in (bench.folder / "data" / "timeseries" / "moving").iterdir():
        file.write_bytes((file.parents[1] / "exchanged" / file.name).read_bytes())
    changed = bench.train("tokens_changed", keys)
    losses.append(changed.metric("loss"))
    told = "Loading dataset from disk will ignore other data arguments" in changed.output
    right = told and all(math.isclose(loss, plain.metric("loss"), rel_tol=1e-5) for loss in losses)
    return Verdict(
        "works" if right else "WRONG", f"losses {losses}; changed CSV files are not looked at, a line says so"
    )


def tokenised_without_plugin(bench: Bench, plain: Run) -> Verdict:
    """Trains from tokens that were made without the plugin, by another template, which leaves the series out."""
    keys = {"tokenized_path": "tokens_off", "dataset": "lines"}
    bench.train("tokens_off_written", {**keys, "template": "qwen"}, LLAMAFACTORY_EXT="0")
    if not (bench.folder / "tokens_off").is_dir():
        return Verdict("WRONG", "nothing was written")
    run = bench.train("tokens_off_read", keys)
    refused = run.status != 0 and "'loss'" not in run.output and "delete `tokenized_path`" in run.error
    return Verdict("refused" if refused else "WRONG", run.error)


def resized(bench: Bench, plain: Run) -> Verdict:
    """Trains with more tokens than the vocabulary has room for, exports, and opens what was exported."""
    tokens = ",".join(f"<unit{number}>" for number in range(20))
    more = {"add_tokens": tokens, "resize_vocab": True}
    trained = bench.train("resized", more)
    if trained.status != 0:
        return Verdict("WRONG", trained.error)
    keys = {"model_name_or_path": "model", "adapter_name_or_path": "resized", "template": "chatts", **more}
    bench.write("resized_export.yaml", {**keys, "export_dir": "resized_merged", "infer_dtype": "float32"})
    exported = bench.run("resized_export", "export")
    if exported.status != 0:
        return Verdict("WRONG", exported.error)
    again = bench.train("resized_again", {"model_name_or_path": "resized_merged"})
    found, continued = again.metric("loss"), trained.metric("loss", 1)
    right = trained.metric("loss") != plain.metric("loss") and found < continued
    return Verdict("works" if right else "WRONG", f"loss {continued:.4f} at the second step, {found:.4f} after export")


SPECIAL: dict[str, Callable[[Bench, Run], Verdict]] = {
    "FSDP by torch's fully_shard, 2 processes": sharded,
    "tokenized_path, then changed CSV files": tokenised,
    "tokenized_path made without the plugin": tokenised_without_plugin,
    "resize_vocab, add_tokens, export": resized,
}


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
