"""`llamafactory-ext plan` as a user runs it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from conftest import ROOT, Gdsh, annotation, answer

from llamafactory_ext.toolbox.cli import plan as tool


RECIPES = [path for path in sorted((ROOT / "yaml").glob("*.yaml")) if "\ndo_train: true" in path.read_text("utf-8")]
KEYS = {
    "records", "steps_per_epoch", "steps_total", "rule_of_thumb", "epochs", "processes", "tokens", "memory_gib",
    "card", "host_gib", "disk_gib", "fits", "verdict", "changes", "faster", "recommended_recipe", "preflight",
    "estimated", "seconds", "loading_gib", "tightest", "recommended_why",
}  # fmt: skip


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Plan = Callable[..., Done]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Runs the tool in this process, a second instead of ten each; the one in a process of its own is below."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("llamafactory_ext.toolbox.plan.cards.present", list)
    monkeypatch.setattr(tool, "hush", lambda: None)  # its variables would silence the processes of later tests
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2**40))  # any machine's disk will do

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
        capsys.readouterr()
        status = tool.main()
        return Done(status, *capsys.readouterr())

    return call


def on_demo(demo: Path) -> list[str]:
    return ["dataset=gdsh_demo", f"dataset_dir={demo / 'data'}"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_prints_its_plan(recipe: Path, demo: Path, plan: Plan) -> None:
    """With the published model's name, of which nothing is there: dimensions known, tokens estimated."""
    own = recipe.stem.startswith(("cpu_demo", "align", "sft_mixed"))  # their models are made first
    model = [f"model_name_or_path={demo / 'model'}", "cutoff_len=4096"] if own else []
    model += ["interleave_probs=null"] if recipe.stem in ("align", "sft_mixed") else []
    run = plan(str(recipe), *on_demo(demo), *model)
    assert run.returncode in (0, 1) and not run.stderr, run.stderr
    for part in ("steps in all", "Peak on", "total", "Disk, GiB", "GiB: ", "not measured on this card"):
        assert part in run.stdout
    assert ("Tokens are estimated" in run.stdout) == (not model)
    if recipe.stem.startswith(("2080ti", "3060")):
        assert run.returncode == 0 and "GiB, in a step: fits\n" in run.stdout


def test_json(demo: Path, plan: Plan) -> None:
    recipe = str(ROOT / "yaml" / "2080ti_qlora.yaml")
    model = f"model_name_or_path={demo / 'model'}"
    run = plan(
        recipe, model, *on_demo(demo), "val_size=0.2", "max_steps=5", "--json", "--gpu", "3060", "--processes", "2"
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    assert found.keys() >= KEYS
    assert (found["records"], found["rows"], found["records_held_out"]) == (23, 18, 5)
    assert (found["steps_total"], found["steps_per_epoch"], found["processes"]) == (5, 1, 2)
    assert found["memory_gib"]["total"] == pytest.approx(
        sum(v for k, v in found["memory_gib"].items() if k != "total")
    )
    assert found["fits"] is True and found["estimated"] is False and found["seconds"] is None
    assert found["tokens"]["longest"] == 878


def test_tokens_are_those_of_the_run(gdsh: Gdsh, demo: Path, plan: Plan) -> None:
    gdsh.csv("b.csv", [1.0] * 17)
    gdsh.records(annotation("a.jpg", answer((2, 3))), annotation(["a.jpg", "b.jpg"], user="<image> <image>"))
    keys = ["dataset=a", f"dataset_dir={gdsh.folder}", f"model_name_or_path={demo / 'model'}"]
    run = plan(str(ROOT / "yaml" / "2080ti_qlora.yaml"), *keys, "--json")
    assert json.loads(run.stdout)["tokens"]["most_patches"] == 5 + 3


def test_what_does_not_fit_has_exit_status_1(demo: Path, plan: Plan) -> None:
    recipe = str(ROOT / "yaml" / "2080ti_qlora.yaml")
    run = plan(recipe, *on_demo(demo), "embedding_on_cpu=false", "--gpu", "10.5")
    assert run.returncode == 1 and "GiB, in a step: fits with" in run.stdout
    assert "fits with embedding_on_cpu=true" in run.stdout


def test_steps_alone_end_a_run(demo: Path, plan: Plan) -> None:
    """`num_train_epochs: 0` with `max_steps`, as the published scripts have it; on the CPU of this machine."""
    model = f"model_name_or_path={demo / 'model'}"
    keys = [model, "num_train_epochs=0", "max_steps=7", "fp16=false", "--gpu", "cpu"]
    run = plan(str(ROOT / "yaml" / "2080ti_qlora.yaml"), *on_demo(demo), *keys)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "max_steps: 7 counts" in run.stdout and "Peak on CPU, found here" in run.stdout


def test_in_a_process_of_its_own(demo: Path) -> None:
    """Nothing but the plan is printed, by no library either; a fault is one line."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    model = f"model_name_or_path={demo / 'model'}"  # nothing to download, so that any disk has room
    for last, status in (("max_steps=5", 0), ("learning=1", 2)):
        command = [sys.executable, "-m", "llamafactory_ext", "plan", "yaml/2080ti_qlora.yaml", *on_demo(demo)]
        command += [model, last]
        run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert run.returncode == status
        assert (run.stderr.count("\n"), bool(run.stdout)) == ((0, True), (1, False))[status > 0], run.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["yaml/none.yaml"], "yaml/none.yaml: no such recipe"),
        (["yaml/predict.yaml"], "yaml/predict.yaml trains nothing"),
        (["yaml/2080ti_qlora.yaml", "learning=1"], "unknown key learning in"),
        (["yaml/2080ti_qlora.yaml", "dataset=none"], "no data set none in dataset_info/dataset_info.json"),
        (["yaml/2080ti_qlora.yaml", "DEMO", "--gpu", "titan"], "no card 'titan'; known are 2080ti,"),
        (["yaml/2080ti_qlora.yaml", "DEMO", "model_name_or_path=none/there"], "none/there: neither there nor known"),
        (["yaml/2080ti_qlora.yaml", "DEMO", "model_name_or_path=tests"], "tests: no ChatTS checkpoint"),
        (["yaml/3090_deepspeed_fp16.yaml", "DEMO", "deepspeed=no.json"], "deepspeed: no.json can't be read"),
        (["yaml/2080ti_qlora.yaml", "DEMO", "gradient_accumulation_steps=0"], "gradient_accumulation_steps is 0"),
        (["yaml/2080ti_qlora.yaml", "DEMO", "lora_rank=x"], "lora_rank is 'x'; expected a whole number from 1"),
        (["yaml/2080ti_qlora.yaml", "DEMO", "embedding_on_cpu=maybe"], "`embedding_on_cpu` is 'maybe'; expected"),
        (["yaml/2080ti_qlora.yaml", "DEMO", "layers_without_checkpoints=-1"], "is -1; expected a whole number from 0"),
        (["yaml/2080ti_qlora_safe.yaml", "DEMO", "layers_without_checkpoints=2"], "not go with `offload_checkpoints`"),
        (["yaml/2080ti_qlora.yaml", "DEMO", "num_train_epochs=0"], "num_train_epochs is 0; expected more than 0"),
        (["yaml/2080ti_qlora.yaml", "DEMO", "num_train_epochs=0", "max_steps=x"], "max_steps is 'x'; expected a num"),
        (["yaml/2080ti_qlora.yaml", "dataset=null"], "yaml/2080ti_qlora.yaml names no dataset; add dataset=…"),
        (
            ["yaml/2080ti_qlora.yaml", "DEMO", "dataloader_drop_last=true", "per_device_train_batch_size=24"],
            "yaml/2080ti_qlora.yaml: 23 records make no batch of 24 on 1 processes",
        ),
        (["yaml/2080ti_qlora.yaml", "DEMO", "num_train_epochs=many"], "num_train_epochs is 'many'; expected a number"),
    ],
)
def test_bad_input_gets_one_clear_line(arguments: list[str], said: str, demo: Path, plan: Plan) -> None:
    given = [word for one in arguments for word in (on_demo(demo) if one == "DEMO" else [one])]
    run = plan(*given)
    assert run.returncode == 2 and not run.stdout
    assert said in run.stderr and run.stderr.startswith("error: ") and run.stderr.count("\n") == 1, run.stderr


@pytest.mark.parametrize(
    ("keys", "status", "said"),
    [
        (["DEMO"], 1, "error: training would stop: "),
        ([], 1, "error: training would stop: record 0 (missing.jpg): no CSV file"),
        (
            ["packing=true"],
            1,
            "would stop: records are packed by their tokens, and there is no tokenizer to count them",
        ),
        (["DEMO", "deepspeed=no.json"], 2, "error: deepspeed: no.json can't be read"),  # before the data are
    ],
)
def test_data_that_would_stop_training(
    gdsh: Gdsh, demo: Path, plan: Plan, keys: list[str], status: int, said: str
) -> None:
    gdsh.records(annotation("missing.jpg"))
    given = [f"model_name_or_path={demo / 'model'}" if key == "DEMO" else key for key in keys]
    run = plan(str(ROOT / "yaml" / "2080ti_qlora.yaml"), "dataset=a", f"dataset_dir={gdsh.folder}", *given)
    assert run.returncode == status and said in run.stderr and "Traceback" not in run.stderr, run.stderr
    assert ("missing" in run.stderr) == (status == 1 and "packing=true" not in keys)


def test_tokens_without_a_tokenizer(gdsh: Gdsh, plan: Plan) -> None:
    """One a character, one a patch, 30 for the template and 90 for each series' line of statistics."""
    gdsh.csv("b.csv", [1.0] * 17)
    short, longer = answer((2, 3)), answer((2, 3), (5, 6))
    gdsh.records(
        annotation("a.jpg", short, user="<image>why?"),
        *[annotation(["a.jpg", "b.jpg"], longer, user="<image><image>")] * 3,
        annotation("b.jpg", short, user="<image>?"),
    )
    keys = ["dataset=a", f"dataset_dir={gdsh.folder}", "--json", "--gpu", "24", "--processes", "1"]
    found = json.loads(plan(str(ROOT / "yaml" / "2080ti_qlora.yaml"), *keys).stdout)
    marker = len("<ts><ts/>")
    whole = [
        30 + 90 + marker + len("why?") + 5 + len(short),
        *[30 + 2 * 90 + 2 * marker + (5 + 3) + len(longer)] * 3,
        30 + 90 + marker + len("?") + 3 + len(short),
    ]
    assert found["tokens"] == {
        "longest": max(whole), "median": whole[1], "total": sum(whole), "most_labels": len(longer), "most_patches": 8,
    }  # fmt: skip
    assert (found["estimated"], found["records"], found["rows"], found["records_held_out"]) == (True, 5, 5, 0)
    split = json.loads(plan(str(ROOT / "yaml" / "2080ti_qlora.yaml"), *keys, "val_size=0.4").stdout)
    assert (split["records"], split["rows"], split["records_held_out"]) == (5, 3, 2)
