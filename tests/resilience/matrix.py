"""Installs the project beside other versions of LLaMA-Factory, transformers and Python, one after the other.

In each: a virtual environment, `pip install .` with pyproject's `[train]` pins but for those in question, `python -m
llamafactory_ext`, the demo (a few steps of training, 4 bit on top of it) and tests. Logs, and what the tests wrote as
JUnit XML, stay in the folder; the environment, 6 GB, is deleted before the next one is made.

    python tests/resilience/matrix.py                         # all, a quarter of an hour each on 2 cores
    python tests/resilience/matrix.py --only 0.9.4 3.13       # those whose name holds one of these words
    python tests/resilience/matrix.py --python ~/python/bin   # where else interpreters are
    python tests/resilience/matrix.py --uv uv                 # installs with uv: a minute or two, and files are shared
    python tests/resilience/matrix.py --only fork --fork ../ChatTS-Training --published ../ChatTS-14B

The last one takes local copies of the fork and of a published checkpoint's Python files and configuration; no weights
are needed. There the demo is the fork's own: its data set, template and model must give the same losses, the plugin
switched off and on.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
# Those of the tests that meet LLaMA-Factory, transformers and Python's own start the most.
TESTS = (
    *("plugin/test_seams", "plugin/test_autoload", "training/test_arguments", "data/test_conversion"),
    *("product/test_recipes_run", "model", "training/test_training_encoder"),
    *("training/test_levers", "training/test_levers_run"),
)
FORK_TESTS = (
    *("gdsh/test_gdsh_annotations", "gdsh/test_gdsh_pictures", "gdsh/test_series"),
    "toolbox/test_prepare_records",
)


@dataclass(frozen=True)
class Environment:
    """A Python and what stands in place of pyproject's pins; a pin that is None leaves the choice to pip."""

    name: str
    python: str = "3.11"
    pins: Mapping[str, str | None] = field(default_factory=dict)
    extras: str = "evaluate,deepspeed,dev"
    over: Sequence[str] = ()
    """Put over the others without what they ask for, where their own limits contradict one another."""
    tests: Sequence[str] = TESTS
    demo: bool = True


# LLaMA-Factory 0.9.4 leaves the choice of these to its own limits, and refuses a DeepSpeed above 0.16.9.
OLDER_PINS = {
    **{"llamafactory": "==0.9.4", "transformers": None, "peft": None},
    **{"deepspeed": "<=0.16.9", "ninja": ">=1.11"},
}
# Its pyproject allows PEFT 0.18.1 and accelerate 1.11 at most, its own check at the start 0.20 and 1.15.
MAIN = "llamafactory @ git+https://github.com/hiyouga/LLaMA-Factory@ff6d4d12eeb035d6ce06805a5733dd7b29f2ac30"
ENVIRONMENTS = (
    Environment("llamafactory 0.9.5, reference"),
    Environment("llamafactory 0.9.4", pins=OLDER_PINS, extras="evaluate,dev"),
    Environment("llamafactory 0.9.5, transformers 4.57.6", pins={"transformers": "==4.57.6"}),
    Environment("llamafactory 0.9.5, transformers 5.6.0", pins={"transformers": "==5.6.0"}),
    Environment("llamafactory 0.9.5, Python 3.12", "3.12"),
    Environment("llamafactory 0.9.5, Python 3.13", "3.13"),
    Environment("llamafactory main, PEFT 0.18.1", over=(MAIN, "transformers==5.8.0", "accelerate==1.11.0")),
    Environment(
        "llamafactory main, PEFT 0.20", over=(MAIN, "transformers==5.8.0", "accelerate==1.15.0", "peft==0.20.0")
    ),
    Environment(
        "model classes alone, newest transformers",
        pins={"llamafactory": None, "transformers": ">=5.24", "peft": ">=0.18.1"},
        extras="evaluate,dev",
        tests=("model",),
        demo=False,
    ),
)
# The fork's own limits, and what it can be imported with; `[evaluate]` wants a newer numpy.
FORK_PINS = {"transformers": "==4.52.4", "peft": None, "numpy": "<2", "pyarrow": "<21"}
FORK_RECIPE = {
    **{"model_name_or_path": "demo/model", "trust_remote_code": True, "template": "chatts", "dataset": "chatts_dev"},
    **{"stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_target": "q_proj,k_proj,v_proj"},
    **{"timeseries_sft_lr": 1e-4, "learning_rate": 1e-4, "cutoff_len": 8000, "max_samples": 16, "max_steps": 4},
    **{"per_device_train_batch_size": 1, "logging_steps": 1, "report_to": "none", "use_cpu": True, "seed": 1},
}


def requirements(pins: Mapping[str, str | None]) -> list[str]:
    """Returns pyproject's `[train]` requirements, with these pins instead of its own, for `pip install`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = [line for line in project["optional-dependencies"]["train"] if not line.startswith(project["name"])]
    kept = [line for line in lines if line.partition("==")[0] not in pins]
    return kept + [f"{name}{pin}" for name, pin in pins.items() if pin]


def interpreter(version: str, places: Sequence[Path]) -> Path | None:
    """Returns a Python of this version that starts; a version manager's stand-in may not."""
    names = [place if place.is_file() else place / f"python{version}" for place in places]
    folders = os.environ.get("PATH", "").split(os.pathsep)
    names += [Path(sys.executable), *(Path(folder) / f"python{version}" for folder in folders)]
    for name in names:
        command = [str(name), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout.strip()
        except OSError:
            continue
        if found == version:
            return name
    return None


@dataclass(frozen=True)
class Trial:
    """One environment in its folder."""

    folder: Path
    uv: str | None = None

    def run(self, step: str, *command: str | Path, cwd: Path | None = None) -> bool:
        """Runs a command in the environment, its output into ``step.log``; tells whether it ended well."""
        programs = self.folder / "venv" / "bin"
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "LLAMAFACTORY_EXT")}
        env |= {"PATH": f"{programs}{os.pathsep}{env['PATH']}", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        env |= {"VIRTUAL_ENV": str(programs.parent), "HF_HUB_OFFLINE": "1"}
        env["HF_HOME"] = str(self.folder / "cache")  # datasets 3 can't read what datasets 4 has converted
        resolved = [str(programs / command[0] if (programs / command[0]).exists() else command[0])]
        resolved += [str(argument) for argument in command[1:]]
        with (self.folder / f"{step}.log").open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(resolved)}\n")
            log.flush()
            done = subprocess.run(resolved, cwd=cwd or self.folder, env=env, stdout=log, stderr=log, check=False)
        return done.returncode == 0

    def install(self, python: Path, environment: Environment) -> bool:
        wanted = [f"{ROOT}[{environment.extras}]", *requirements(environment.pins)]
        pip: tuple[str, ...] = ("python", "-m", "pip", "install", "-q", "--no-compile")
        if self.uv:
            pip = (self.uv, "pip", "install", "-q")
            made = self.run("install", self.uv, "venv", "-q", "--seed", "--python", python, "venv")  # tests want pip
        else:
            made = self.run("install", python, "-m", "venv", "venv")
        made = made and self.run("install", *pip, *wanted)
        return made and (not environment.over or self.run("install", *pip, "--no-deps", *environment.over))

    def demo(self) -> bool:
        """The demo of README in a folder of its own, a few steps of it."""
        few = ["logging_steps=1", "gradient_accumulation_steps=2", "warmup_ratio=0"]
        adapter = ["model_name_or_path=saves/demo", "dataset=gdsh_demo", "fp16=false", "output_dir=saves/adapter"]
        return (
            self.run("demo", "llamafactory-ext")
            and self.run("demo", "llamafactory-ext", "init")
            and self.run("demo", "llamafactory-ext", "demo", "--tiny")
            and self.run("demo", "llamafactory-cli", "train", "yaml/cpu_demo.yaml", "max_steps=6")
            and self.run("demo", "llamafactory-cli", "train", "yaml/2080ti_qlora.yaml", *adapter, *few, "max_steps=2")
            and (self.folder / "saves" / "adapter" / "adapter_model.safetensors").is_file()
        )

    def train_on_fork(self, fork: Path, published: Path) -> bool:
        """The fork's own data set with the plugin off and on; tells whether both were trained to the same losses."""
        self.run(
            "demo", sys.executable, "-m", "llamafactory_ext", "demo", "--tiny"
        )  # of this Python: the fork's is too old
        model = self.folder / "demo" / "model"
        for file in published.glob("*.py"):
            shutil.copy(file, model)
        keys = {"config.json": ("auto_map",), "tokenizer_config.json": ("auto_map", "processor_class")}
        for name, taken in keys.items():
            theirs = json.loads((published / name).read_text("utf-8"))
            ours = json.loads((model / name).read_text("utf-8")) | {key: theirs[key] for key in taken}
            (model / name).write_text(json.dumps(ours), "utf-8")
        (self.folder / "fork.json").write_text(json.dumps(FORK_RECIPE | {"dataset_dir": str(fork / "data")}), "utf-8")
        losses = []
        for state in ("0", "1"):
            run = ["env", f"LLAMAFACTORY_EXT={state}", self.folder / "venv" / "bin" / "llamafactory-cli", "train"]
            if not self.run("demo", *run, "fork.json", f"output_dir=saves/{state}"):
                return False
            log = json.loads((self.folder / "saves" / state / "trainer_state.json").read_text("utf-8"))["log_history"]
            losses.append([entry["loss"] for entry in log if "loss" in entry])
        return self.run("demo", "python", "-m", "llamafactory_ext") and losses[0] == losses[1] != []

    def test(self, names: Sequence[str]) -> str:
        """Runs these tests, all of them if there are none; returns how many passed, failed and were skipped."""
        report = self.folder / "tests.xml"
        files = [f"tests/{name}" if (ROOT / "tests" / name).is_dir() else f"tests/{name}.py" for name in names]
        # The program, not `python -m pytest`, which would take the package from this folder and not the installed one.
        self.run("tests", "pytest", f"--junitxml={report}", "-p", "no:cacheprovider", *files, cwd=ROOT)
        return outcome(report)

    def versions(self) -> str:
        code = """
import importlib.metadata, sys
found = {one.name.lower(): one.version for one in importlib.metadata.distributions()}
print(", ".join(f"{name} {found[name]}" for name in ("llamafactory", "transformers", "peft") if name in found))
print("Python", sys.version.split()[0])"""
        command = [str(self.folder / "venv" / "bin" / "python"), "-c", code]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return ", ".join(found.splitlines())


def outcome(report: Path) -> str:
    """Reads JUnit XML; names the failed tests."""
    if not report.is_file():
        return "failed to start"
    cases = list(ET.parse(report).getroot().iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    text = f"{len(cases) - len(bad) - skipped} passed, {len(bad)} failed, {skipped} skipped"
    names = ", ".join(f"{case.get('classname', '').removeprefix('tests.')}::{case.get('name')}" for case in bad)
    return f"{text}: {names}" if bad else text


def try_out(environment: Environment, arguments: argparse.Namespace) -> bool:
    """Goes through one environment; prints its row, tells whether all went well."""
    folder = Path(arguments.folder).resolve() / environment.name.replace(",", "").replace(" ", "_")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trial, start = Trial(folder, arguments.uv), time.monotonic()
    python = interpreter(environment.python, arguments.python)
    if python is None:
        print(f"| {environment.name} | no python{environment.python} that starts: --python PATH | | |", flush=True)
        return False
    chosen = arguments.tests or environment.tests
    installed = trial.install(python, environment)
    seconds = time.monotonic() - start
    if environment.name == "fork":
        demo = installed and trial.train_on_fork(arguments.fork.resolve(), arguments.published.resolve())
    else:
        demo = installed and (not environment.demo or trial.demo())
    tests = trial.test([] if arguments.all else chosen) if installed else "not run"
    outcome_of_demo = "failed" if not demo else "works" if environment.demo else "–"
    row = [f"{environment.name} ({trial.versions()})", f"{seconds:.0f} s" if installed else "failed"]
    print(f"| {' | '.join([*row, outcome_of_demo, tests])} |", flush=True)
    if not arguments.keep:
        for name in ("venv", "cache", "saves", "demo", "yaml", "dataset_info"):
            shutil.rmtree(folder / name, ignore_errors=True)
    return demo and " 0 failed" in tests


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="environments whose name holds one of these")
    parser.add_argument("--python", nargs="+", type=Path, default=[], metavar="PATH", help="interpreters or folders")
    parser.add_argument("--uv", metavar="PROGRAM", help="install with this uv, not with pip")
    parser.add_argument("--fork", type=Path, metavar="PATH", help="a local copy of ChatTS-Training, tried as well")
    parser.add_argument(
        "--published", type=Path, metavar="PATH", help="for --fork: a checkpoint's files but its weights"
    )
    parser.add_argument("--tests", nargs="+", metavar="NAME", help=f"of tests/; default: {' '.join(TESTS)}")
    parser.add_argument("--all", action="store_true", help="the whole test suite, not only what meets these versions")
    parser.add_argument("--keep", action="store_true", help="leave the environments, 6 GB each")
    parser.add_argument("--folder", default=ROOT / "build" / "matrix", help="default: build/matrix")
    arguments = parser.parse_args()
    tried = list(ENVIRONMENTS)
    if arguments.fork and not arguments.published:
        parser.error("--fork needs --published")
    if arguments.fork:
        pins = FORK_PINS | {"llamafactory": f" @ {arguments.fork.resolve().as_uri()}"}
        tried.append(Environment("fork", pins=pins, extras="tools,dev", tests=FORK_TESTS))
    words = arguments.only or [""]
    chosen = [one for one in tried if any(word in one.name for word in words)]
    print("| environment | installed in | demo | tests |\n|---|---|---|---|", flush=True)
    good = [try_out(one, arguments) for one in chosen]
    return 0 if all(good) and good else 1


if __name__ == "__main__":
    sys.exit(main())
