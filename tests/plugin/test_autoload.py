"""The package is found by Python, waits for LLaMA-Factory, and switches itself on in every process that needs it.

Everything runs for real: wheels are built and installed, processes are started, LLaMA-Factory is the installed one or
a changed copy of it.
"""

import importlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import upstream
from helpers_model import config_dict

from llamafactory_ext import __version__
from llamafactory_ext.data.formats import FORMATS
from llamafactory_ext.plugin import activation
from llamafactory_ext.plugin.relevance import run_needs_plugin
from llamafactory_ext.plugin.seams import SEAMS
from llamafactory_ext.plugin.versions import CHECKED


ROOT = Path(__file__).resolve().parents[2]
PTH = "llamafactory_ext.pth"
VERSIONS = f"llamafactory_ext {__version__} with llamafactory {upstream.installed_version()}"
LIST_MODULES = "import sys; print('\\n'.join(sys.modules))"


# --- the package ---


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing in it, not even pip."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    (site_packages(folder) / "keep").touch()  # pip removes the folder with its last file
    return folder


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def site_packages(environment: Path) -> Path:
    return next((environment / "lib").glob("python*/site-packages"))


def pip(environment: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python_of(environment)), "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def loaded_modules(environment: Path, folder: Path) -> set[str]:
    done = upstream.run([python_of(environment), "-c", LIST_MODULES], folder)
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


def test_wheel_holds_the_package_and_the_pth_at_its_root(tmp_path: Path) -> None:
    pip(Path(sys.prefix), "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        line = archive.read(PTH).decode()
    assert line == (ROOT / PTH).read_text("utf-8")
    assert {f"llamafactory_ext/{path.name}" for path in (ROOT / "llamafactory_ext").glob("*.py")} <= names
    assert {name.split("/")[0] for name in names} == {
        "llamafactory_ext",
        PTH,
        f"llamafactory_ext-{__version__}.dist-info",
    }


@pytest.mark.parametrize("mode", [[], ["-e"]], ids=["install", "install -e"])
def test_install_puts_the_pth_in_place_and_costs_no_module(bare: Path, mode: list[str], tmp_path: Path) -> None:
    other = site_packages(bare) / "other.pth"
    other.write_text("# Python 3.13 loads a codec for the first file of this kind, whoever put it there\n", "utf-8")
    before = loaded_modules(bare, tmp_path)
    pip(bare, "install", "--no-deps", *mode, str(ROOT))
    try:
        assert (site_packages(bare) / PTH).is_file()
        # In a program that never imports LLaMA-Factory: these two modules, and none of Python's own beside them.
        assert loaded_modules(bare, tmp_path) - before == {"llamafactory_ext", "llamafactory_ext.autoload"}

        done = upstream.run([python_of(bare), "-c", "import llamafactory_ext as e; print(e.__version__)"], tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")

        done = upstream.run([python_of(bare), "-m", "llamafactory_ext"], tmp_path)
        assert (done.returncode, done.stderr) == (1, "")
        assert "LLaMA-Factory can't be imported: ModuleNotFoundError: No module named 'llamafactory'" in done.stdout

        (site_packages(bare) / PTH).unlink()
        done = upstream.run([python_of(bare), "-m", "llamafactory_ext"], tmp_path)
        assert (done.returncode, done.stderr) == (1, "")
        assert "Autoload: missing." in done.stdout
        shutil.copy(ROOT / PTH, site_packages(bare))
    finally:
        other.unlink()
        pip(bare, "uninstall", "-y", "llamafactory-ext")
    assert not [path for path in site_packages(bare).iterdir() if "llamafactory_ext" in path.name]


# --- half an installation ---

REMAINS: dict[str, dict[str, str]] = {
    "nothing but the .pth": {},
    "an empty folder": {"__pycache__/keep": ""},
    "no autoload": {"__init__.py": ""},
    "broken syntax": {"__init__.py": "", "autoload.py": "def\n"},
    "an error of many lines": {"__init__.py": "raise ValueError('one\\ntwo')"},
    "a missing dependency": {"__init__.py": "", "autoload.py": "import numpy"},
}


@pytest.mark.parametrize("remains", REMAINS)
def test_what_is_left_of_an_installation_never_stops_python(bare: Path, remains: str, tmp_path: Path) -> None:
    package = site_packages(bare) / "llamafactory_ext"
    try:
        shutil.copy(ROOT / PTH, site_packages(bare))
        package.mkdir()
        for name, text in REMAINS[remains].items():
            (package / name).parent.mkdir(exist_ok=True)
            (package / name).write_text(text, "utf-8")
        if not REMAINS[remains]:
            package.rmdir()
        done = upstream.run([python_of(bare), "-c", "print('started')"], tmp_path)
        assert (done.returncode, done.stdout) == (0, "started\n")
        (line,) = done.stderr.splitlines()
        assert line.startswith("llamafactory_ext.pth: the plugin is not loaded, ") and "delete" in line
        for command in (["-S", "-c", "pass"], ["-c", "import sys; sys.exit(sys.stderr is not None)"]):
            closed = {"close_fds": True} if command[0] == "-S" else {"preexec_fn": lambda: os.close(2)}
            assert subprocess.run([python_of(bare), *command], check=False, **closed).returncode == 0
    finally:
        (site_packages(bare) / PTH).unlink()
        shutil.rmtree(package, ignore_errors=True)


def write_stand_in(folder: Path, **versions: str) -> Path:
    """A LLaMA-Factory that is nothing but its name, and versions of packages as pip states them."""
    (folder / "llamafactory").mkdir()
    (folder / "llamafactory" / "__init__.py").touch()
    for name, version in versions.items():
        (folder / f"{name}-{version}.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(metadata, "utf-8")
    return folder


def import_llamafactory(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import llamafactory; print(llamafactory.__file__)"
    return upstream.run([sys.executable, "-c", code, *arguments], folder, PYTHONPATH=str(folder))


@pytest.mark.parametrize("missing", ["plugin/activation.py", "plugin/versions.py", "plugin/after_import.py"])
def test_llamafactory_starts_beside_half_an_installation(missing: str, tmp_path: Path) -> None:
    write_stand_in(tmp_path)
    shutil.copytree(ROOT / "llamafactory_ext", tmp_path / "llamafactory_ext")
    (tmp_path / "llamafactory_ext" / missing).unlink()
    done = import_llamafactory(tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'llamafactory' / '__init__.py'}\n"), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("llamafactory_ext can't be loaded and stays off, ") and Path(missing).stem in line
    # Nobody can tell whether this run needs it. Seams are missing here; that is told where they are asked for.
    shutil.copy(ROOT / "llamafactory_ext" / missing, tmp_path / "llamafactory_ext" / missing)
    (tmp_path / "llamafactory_ext" / "plugin" / "relevance.py").unlink()
    done = import_llamafactory(tmp_path, "template=chatts")
    assert (done.returncode, done.stderr) == (0, "")


# --- versions that are too old ---


@pytest.mark.parametrize(
    ("llamafactory", "transformers", "wanted"),
    [
        ("0.9.3", "4.57.6", "llamafactory 0.9.4 or newer"),
        ("0.9.5", "4.51.0", "transformers 4.57.1 or newer"),
        ("0.9.3", "4.51.0", "llamafactory 0.9.4 or newer and transformers 4.57.1 or newer"),
    ],
)
def test_versions_that_are_too_old_are_named_at_start(
    llamafactory: str, transformers: str, wanted: str, tmp_path: Path
) -> None:
    write_stand_in(tmp_path, llamafactory=llamafactory, transformers=transformers)
    done = import_llamafactory(tmp_path, "template=chatts")
    assert (done.returncode, done.stdout) == (1, "")
    found = f"llamafactory {llamafactory} with transformers {transformers} is not supported"
    assert done.stderr.splitlines()[-1] == (
        f"llamafactory_ext.plugin.activation.SeamError: {found}: llamafactory_ext {__version__} wants {wanted}. "
        "LLAMAFACTORY_EXT=0 switches off."
    )
    done = import_llamafactory(tmp_path, "template=qwen")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_fork_is_not_too_old(tmp_path: Path) -> None:
    write_stand_in(tmp_path, llamafactory="0.9.4.dev0", transformers="4.52.4")
    (tmp_path / "llamafactory" / "model" / "model_utils").mkdir(parents=True)
    (tmp_path / "llamafactory" / "model" / "model_utils" / "timeseries.py").touch()
    assert "is not supported" not in import_llamafactory(tmp_path, "template=chatts").stderr


# --- switching on ---

REPORT = """
import importlib, json, sys

def depth(function):
    return depth(function.__wrapped__) + 1 if hasattr(function, "__wrapped__") else 0

def report():
    from llamafactory.data.converter import DATASET_CONVERTERS
    from llamafactory.data.mm_plugin import PLUGINS
    from llamafactory.data.template import TEMPLATES
    from llamafactory.hparams import parser
    found = {
        "formats": sorted(DATASET_CONVERTERS),
        "plugin": "chatts" in PLUGINS,
        "template": "chatts" in TEMPLATES,
        "arguments": [one.__name__ for one in parser._TRAIN_ARGS],
        "finders": sum("llamafactory_ext" in (getattr(f, "__module__", None) or "") for f in sys.meta_path),
    }
    for target in TARGETS:
        module, _, names = target.partition(":")
        attribute = importlib.import_module(module)
        for name in names.split("."):
            attribute = getattr(attribute, name)
        found[target] = depth(attribute)
    found["processor"] = len(sys.modules["llamafactory.model.loader"].AutoProcessor.__mro__)
    found["trainer"] = len(sys.modules["llamafactory.train.sft.workflow"].CustomSeq2SeqTrainer.__mro__)
    for stage, name in (("kto", "CustomKTOTrainer"), ("rm", "PairwiseTrainer"), ("pt", "CustomTrainer")):
        found[stage] = len(getattr(importlib.import_module(f"llamafactory.train.{stage}.workflow"), name).__mro__)
    found["dpo"] = len(importlib.import_module("llamafactory.train.dpo.trainer").CustomDPOTrainer.__mro__)
    return found
"""
SUBCLASSED = (
    *("_TRAIN_ARGS", "AutoProcessor", "CustomSeq2SeqTrainer", "CustomKTOTrainer"),
    *("CustomDPOTrainer", "PairwiseTrainer", "CustomTrainer"),
)
PRIVATE = [seam.target for seam in SEAMS if not seam.public]
WRAPPED = [target for target in PRIVATE if target.rpartition(":")[2] not in SUBCLASSED]
REPORT = REPORT.replace("TARGETS", repr(WRAPPED))


@pytest.fixture(scope="module")
def on() -> dict[str, Any]:
    """What is found in this process, where the package was switched on as LLaMA-Factory was imported."""
    names: dict[str, Any] = {}
    exec(REPORT, names)
    for seam in SEAMS:
        importlib.import_module(seam.module)
    return {"states": activation.states(), "found": names["report"]()}


def test_everything_is_in_place_after_import(on: dict[str, Any]) -> None:
    assert activation.failures() == {}
    assert set(on["states"].values()) <= {
        "wrapped",
        "registered",
        "registered gdsh, chatts",
        "extended DataArguments, FinetuningArguments",
    }
    assert {"gdsh", "chatts"} <= set(on["found"]["formats"])
    assert on["found"]["plugin"] and on["found"]["template"]
    assert {target: on["found"][target] for target in WRAPPED} == dict.fromkeys(WRAPPED, 1)
    activation.require()


BY_HAND = (
    REPORT
    + """
off = report()
ours = sorted(name for name in sys.modules if name.startswith("llamafactory_ext"))
from llamafactory_ext.plugin import activation
activation.activate()
once, states = report(), activation.states()
activation.activate()
print(json.dumps({"off": off, "ours": ours, "once": once, "twice": report(), "states": states}))
"""
)
FIRST = """
import json
from llamafactory.data import converter, mm_plugin, template

class OtherPlugin(mm_plugin.BasePlugin):
    pass

converter.register_dataset_converter("chatts", converter.AlpacaDatasetConverter)
mm_plugin.register_mm_plugin("chatts", OtherPlugin)
template.register_template(name="chatts", default_system="another", mm_plugin=mm_plugin.get_mm_plugin("chatts"))
from llamafactory_ext.plugin import activation
activation.activate()
print(json.dumps({
    "converter": converter.DATASET_CONVERTERS["chatts"].__name__,
    "plugin": mm_plugin.PLUGINS["chatts"].__name__,
    "template": template.TEMPLATES["chatts"].default_system,
    "gdsh": converter.DATASET_CONVERTERS["gdsh"].func.__name__,
    "states": activation.states(),
}))
"""


@pytest.fixture(scope="module")
def switched_off(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What ``BY_HAND`` and ``FIRST`` print where the off switch is set as Python starts."""
    return upstream.run_json_each([BY_HAND, FIRST], tmp_path_factory.mktemp("off"), LLAMAFACTORY_EXT="0")


def test_off_switch_then_by_hand_after_import_then_again(on: dict[str, Any], switched_off: list[Any]) -> None:
    seen = switched_off[0]
    off = seen["off"]
    assert seen["ours"] == ["llamafactory_ext", "llamafactory_ext.autoload"]
    assert off["finders"] == 0
    assert not off["plugin"] and not off["template"] and not {"gdsh", "chatts"} & set(off["formats"])
    assert "SeriesDataArguments" not in off["arguments"]
    assert {target: off[target] for target in WRAPPED} == dict.fromkeys(WRAPPED, 0)

    assert seen["states"] == on["states"]
    assert seen["once"] == {**on["found"], "finders": 1}
    assert seen["once"]["processor"] == off["processor"] + 1
    for trainer in ("trainer", "kto", "rm", "pt", "dpo"):  # a subclass, and what is mixed in
        assert seen["once"][trainer] == off[trainer] + 2
    assert seen["twice"] == seen["once"]


def test_what_was_registered_first_stays(switched_off: list[Any]) -> None:
    seen = switched_off[1]
    states = seen.pop("states")
    assert seen == {
        "converter": "AlpacaDatasetConverter",
        "plugin": "OtherPlugin",
        "template": "another",
        "gdsh": "SeriesConverter",
    }
    assert states["llamafactory.data.converter:register_dataset_converter"] == "registered gdsh"
    assert states["llamafactory.data.template:register_template"].startswith("left alone")


def test_our_own_modules_can_be_imported_first(tmp_path: Path) -> None:
    """As in a process that unpickles one of our objects: ours imports upstream's, not the other way round."""
    code = """
import json, sys
import llamafactory_ext.MODULE
from llamafactory_ext.plugin import activation
from llamafactory_ext.plugin.seams import SEAMS
imported = {seam.target for seam in SEAMS if seam.module in sys.modules}
waiting = [target for target in imported if activation.states()[target] == activation.WAITING]
print(json.dumps([activation.failures(), waiting, len(imported)]))
"""
    modules = ["data.converter", "data.template", "training.arguments"]
    results = upstream.run_json_each([code.replace("MODULE", module) for module in modules], tmp_path)
    for module, (failures, waiting, count) in zip(modules, results, strict=True):
        assert (failures, waiting) == ({}, []), module
        assert count > 0, module


@pytest.mark.parametrize("module", ["plugin.activation", "gdsh", "toolbox.prepare"])
def test_modules_that_switching_on_needs_can_be_imported_first(module: str, tmp_path: Path) -> None:
    code = f"import json, llamafactory_ext.{module}; print(json.dumps([]))"
    assert upstream.run_json_each([code], tmp_path) == [[]]


# --- other processes ---


def write_gdsh(folder: Path, records: int) -> None:
    (folder / "csv").mkdir(parents=True)
    conversations = []
    for number in range(records):
        rows = "\n".join(f"{row},{number + row * 0.5}" for row in range(20))
        (folder / "csv" / f"point_{number}.csv").write_text(f"date,value\n{rows}\n", "utf-8")
        turns = [
            {"from": "user", "value": "<image>\nAny anomaly?"},
            {"from": "assistant", "value": '{"status":"success"}'},
        ]
        turns[1]["value"] = '{"status":"success","detected_anomalies":[{"interval":[2,5],"type":"step"}]}'
        conversations.append({"image": f"D:\\pictures\\point_{number}.jpg", "conversations": turns})
    (folder / "all.json").write_text(json.dumps(conversations), "utf-8")
    entry = {"points": {"file_name": "all.json", "formatting": "gdsh", "folder": "csv"}}
    (folder / "dataset_info.json").write_text(json.dumps(entry), "utf-8")


def test_worker_processes_of_datasets_map(tmp_path: Path) -> None:
    from llamafactory.data import loader
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.hparams import get_train_args

    write_gdsh(tmp_path / "data", 6)
    model_args, data_args, training_args, _, _ = get_train_args(
        {
            "model_name_or_path": str(tmp_path),
            "template": "chatts",
            "dataset": "points",
            "dataset_dir": str(tmp_path / "data"),
            "do_train": True,
            "output_dir": str(tmp_path / "out"),
            "cache_dir": str(tmp_path / "cache"),
            "preprocessing_num_workers": 2,
            "report_to": "none",
        }
    )
    (attr,) = get_dataset_list(["points"], data_args.dataset_dir)
    dataset = loader._load_single_dataset(attr, model_args, data_args, training_args)
    assert len(dataset) == 6
    assert dataset["_audios"][3] == [[3 + row * 0.5 for row in range(20)]]
    assert [message["content"] for message in dataset["_prompt"][0]] == ["<ts><ts/>\nAny anomaly?"]


def test_spawned_process_unpickles_converter_and_plugin() -> None:
    from llamafactory.data.converter import get_dataset_converter
    from llamafactory.data.mm_plugin import get_mm_plugin
    from llamafactory.data.parser import DatasetAttr
    from llamafactory.hparams import DataArguments

    from llamafactory_ext.model import ChatTSProcessor, Qwen2TSConfig

    attr = DatasetAttr("file", "records.jsonl")
    columns = {"prompt": "input", "response": "output", "timeseries": "timeseries"}
    attr.join({"file_name": "records.jsonl", "columns": columns})
    converter = get_dataset_converter("chatts", attr, DataArguments())
    record = {"input": "Look: <ts><ts/>", "output": "flat", "timeseries": [[1.0, 2.0, 3.0]]}
    messages = [{"role": "user", "content": "Look: <ts><ts/>"}]
    plugin, processor = get_mm_plugin("chatts"), ChatTSProcessor(Qwen2TSConfig.from_dict(config_dict("qwen2")))

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        converted = pool.submit(upstream.convert_in_child, converter, record).result(timeout=200)
        expanded = pool.submit(upstream.expand_in_child, plugin, messages, record["timeseries"], processor).result(200)
    here = converter(record)
    for one in (here, converted["converted"]):
        one["_audios"] = [series.tolist() for series in one["_audios"]]
    assert converted == {"converted": here, "converter_is_registered": True, "template": True}
    assert here["_audios"] == [[1.0, 2.0, 3.0]]
    assert expanded == {
        "expanded": plugin.process_messages(messages, [], [], record["timeseries"], processor),
        "plugin_is_registered": True,
    }
    assert expanded["expanded"][0]["content"].count("<ts>") == 1


def test_torchrun_child(tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text("from llamafactory.data.template import TEMPLATES\nprint('registered', 'chatts' in TEMPLATES)\n")
    torchrun = [sys.executable, upstream.script("torchrun"), "--standalone", "--nproc_per_node", "1"]
    done = upstream.run([*torchrun, child], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "registered True" in done.stdout


# --- a LLaMA-Factory that is not as expected ---

RENAMED = {"data/loader.py": [("_get_preprocessed_dataset", "_preprocess")]}
# One of each kind: a function gone, other parameters, a registry gone, a base class gone, a module gone.
BROKEN = RENAMED | {
    "model/loader.py": [
        ('def load_config(model_args: "ModelArguments") -> "PretrainedConfig":\n    r"""Load model config."""\n',
         'def load_config(arguments: "ModelArguments") -> "PretrainedConfig":\n    model_args = arguments\n'),
    ],
    "data/template.py": [("register_template(", "add_template(")],
    "data/converter.py": [("AlpacaDatasetConverter", "AlpacaConverter")],
    "train/sft/trainer.py->train/sft/seq2seq.py": [],
    "train/sft/workflow.py": [("from .trainer import", "from .seq2seq import")],
}  # fmt: skip
WRONG = {
    "llamafactory.data.loader:_get_preprocessed_dataset": "`_get_preprocessed_dataset` is gone from",
    "llamafactory.model.loader:load_config": "takes (arguments), expected (model_args, …)",
    "llamafactory.data.template:register_template": "`register_template` is gone from",
    "llamafactory.data.converter:register_dataset_converter": "cannot import name 'AlpacaDatasetConverter'",
    "llamafactory.train.sft.trainer:create_custom_optimizer": "there is no module llamafactory.train.sft.trainer",
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return upstream.copy_with(tmp_path_factory.mktemp("broken"), BROKEN)


def write_recipe(folder: Path, **values: Any) -> Path:
    recipe = {"model_name_or_path": "none", "stage": "sft", "do_train": True, "dataset": "alpaca", "output_dir": "out"}
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in (recipe | values).items()), "utf-8")
    return path


def test_run_that_needs_a_missing_seam_stops_and_names_it(tmp_path: Path) -> None:
    changed = upstream.copy_with(tmp_path / "changed", RENAMED)
    cli = [sys.executable, upstream.script("llamafactory-cli"), "train", write_recipe(tmp_path, template="chatts")]
    done = upstream.run(cli, tmp_path, PYTHONPATH=str(changed))
    assert done.returncode != 0
    last = done.stderr[done.stderr.rindex("SeamError") :]
    assert VERSIONS in last
    assert "llamafactory.data.loader:_get_preprocessed_dataset: `_get_preprocessed_dataset` is gone" in last
    assert "Install llamafactory 0.9.4 or 0.9.5" in last


def test_run_that_needs_a_missing_module_stops_and_names_it(broken: Path, tmp_path: Path) -> None:
    cli = [
        sys.executable,
        upstream.script("llamafactory-cli"),
        "train",
        write_recipe(tmp_path, timeseries_sft_lr=1e-4),
    ]
    done = upstream.run(cli, tmp_path, PYTHONPATH=str(broken))
    assert done.returncode != 0
    last = done.stderr[done.stderr.rindex("SeamError") :]
    assert VERSIONS in last
    assert "there is no module llamafactory.train.sft.trainer" in last


def test_run_without_need_goes_on_untouched(broken: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.argv = ["llamafactory-cli", "recipe.yaml"]
import llamafactory.data.loader, llamafactory.train.tuner, llamafactory.train.sft.workflow
from llamafactory_ext.plugin import activation
assert llamafactory.__file__.startswith(sys.argv.pop() and PLACE), llamafactory.__file__
print(len(activation.failures()))
try:
    activation.require()
except activation.SeamError as err:
    print(err)
"""
    write_recipe(tmp_path, template="qwen")
    code = code.replace("PLACE", repr(str(broken)))
    done = upstream.run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(broken))
    assert done.returncode == 0, done.stderr[-4000:]
    assert "llamafactory_ext" not in done.stderr
    count, message = done.stdout.split("\n", 1)
    # What the command line did not tell is still refused at the first use.
    assert int(count) == len(WRONG)
    assert message.startswith(VERSIONS)
    assert all(f"  {target}: " in message and why in message for target, why in WRONG.items())


def test_report_on_a_broken_install(broken: Path, tmp_path: Path) -> None:
    done = upstream.run([sys.executable, "-m", "llamafactory_ext"], tmp_path, PYTHONPATH=str(broken))
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for target, why in WRONG.items():
        (line,) = [line for line in lines if line.startswith(f"WRONG {target}: ")]
        assert why in line
        name = target.removeprefix("llamafactory.")
        assert any(name in line and "missing: " in line for line in lines)
    assert sum(line.startswith("WRONG") for line in lines) == len(WRONG)
    assert "Data formats: none. Template: none." in lines


def test_report_on_a_good_install(tmp_path: Path) -> None:
    done = upstream.run([sys.executable, "-m", "llamafactory_ext"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"llamafactory_ext {__version__}, Python" in done.stdout
    assert (
        f"llamafactory   {upstream.installed_version()}  (checked with {', '.join(CHECKED['llamafactory'])})"
        in done.stdout
    )
    for seam in SEAMS:
        assert f" {seam.target.removeprefix('llamafactory.')} " in done.stdout
    for line in (
        f"Data formats: {', '.join(FORMATS)}. Template: chatts.",
        "Autoload: in place.",
        "LLAMAFACTORY_EXT=0",
    ):
        assert line in done.stdout
    assert "missing" not in done.stdout and activation.WAITING not in done.stdout


def test_report_when_switched_off(tmp_path: Path) -> None:
    done = upstream.run([sys.executable, "-m", "llamafactory_ext"], tmp_path, LLAMAFACTORY_EXT="0")
    assert done.returncode == 0
    assert "Switched off: LLAMAFACTORY_EXT=0 is set." in done.stdout


# --- does a run need the package? ---

ENTRIES = {
    "raw": {"file_name": "a.json", "formatting": "gdsh", "folder": "csv"},
    "series": {"file_name": "b.jsonl", "columns": {"prompt": "input", "timeseries": "timeseries"}},
    "named": {"file_name": "c.jsonl", "formatting": "chatts"},
    "text": {"file_name": "d.json", "columns": {"prompt": "input"}},
}


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two data folders: ``data``, LLaMA-Factory's default, and ``elsewhere``, with tabs."""
    for name, indent in (("data", "  "), ("elsewhere", "\t")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset_info.json").write_text(json.dumps(ENTRIES, indent=indent), "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("recipe", "needed"),
    [
        ({"template": "chatts"}, True),
        ({"template": "qwen"}, False),
        ({"timeseries_sft_lr": None}, True),
        ({"train_timeseries_modules": False}, True),
        ({"overlong_records": "drop"}, True),
        ({"dataset": "raw"}, True),
        ({"dataset": "series"}, True),
        ({"dataset": "named"}, True),
        ({"dataset": "text"}, False),
        ({"dataset": "text, raw"}, True),
        ({"dataset": ["text", "raw"]}, True),
        ({"dataset": ["text"]}, False),
        ({"dataset": "text", "eval_dataset": "raw"}, True),
        ({"dataset": "raw", "dataset_dir": "elsewhere"}, True),
        ({"dataset": "raw", "dataset_dir": "nowhere"}, False),
        ({"dataset": "unknown"}, False),
        ({"dataset": None}, False),
        ({}, False),
    ],
)
def test_need_told_by_a_recipe(inside: Path, recipe: dict[str, Any], needed: bool) -> None:
    (inside / "recipe.json").write_text(json.dumps(recipe), "utf-8")
    (inside / "recipe.yaml").write_text("".join(f"{key}: {json.dumps(v)}\n" for key, v in recipe.items()), "utf-8")
    assert run_needs_plugin(["llamafactory-cli", "train", "recipe.yaml"]) is needed
    assert run_needs_plugin(["launcher.py", "recipe.yaml"]) is needed
    assert run_needs_plugin(["llamafactory-cli", "train", str(inside / "recipe.json")]) is needed


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        ("--template chatts", True),
        ("--template=chatts", True),
        ("--template qwen --stage sft", False),
        ("--template", False),
        ("--timeseries_sft_lr 1e-4", True),
        ("--timeseries-sft-lr=1e-4", True),
        ("--dataset raw", True),
        ("--dataset text,raw", True),
        ("--dataset=raw --dataset-dir=elsewhere", True),
        ("--dataset raw --dataset_dir nowhere", False),
        ("text.yaml template=chatts", True),
        ("text.yaml dataset=[text,raw]", True),
        ("text.yaml", False),
        ("chatts.yaml", True),
        ("chatts.yaml template=qwen", False),
        ("missing.yaml", False),
        ("", False),
    ],
)
def test_need_told_by_the_command_line(inside: Path, arguments: str, needed: bool) -> None:
    (inside / "text.yaml").write_text("template: qwen\ndataset: text\n", "utf-8")
    (inside / "chatts.yaml").write_text("template: chatts\n", "utf-8")
    assert run_needs_plugin(["llamafactory-cli", "train", *arguments.split()]) is needed


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"a: [", b"\xff\xfe\x00", b"\t{", b'{"dataset": "raw"'])
@pytest.mark.parametrize("name", ["recipe.yaml", "recipe.json", "data/dataset_info.json"])
def test_what_cannot_be_read_counts_as_no_need(inside: Path, content: bytes, name: str) -> None:
    (inside / name).write_bytes(content)
    arguments = ["--dataset", "raw"] if "info" in name else []
    assert run_needs_plugin(["llamafactory-cli", "train", name, *arguments]) is False
    assert run_needs_plugin(["llamafactory-cli", "train", name, "template=chatts"]) is True


def test_a_folder_in_place_of_a_file_counts_as_no_need(inside: Path) -> None:
    (inside / "nowhere" / "dataset_info.json").mkdir(parents=True)
    assert run_needs_plugin(["llamafactory-cli", "train", "--dataset", "raw", "--dataset_dir", "nowhere"]) is False
