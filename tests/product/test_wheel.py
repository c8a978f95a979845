"""The wheel works without the clone, from ``init`` to a trained demo; ``init`` overwrites nothing."""

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import upstream
from conftest import ROOT

from llamafactory_ext.__main__ import COMMANDS
from llamafactory_ext.toolbox.cli import init, recipes
from llamafactory_ext.toolbox.demo.writing import MINI


def shipped() -> dict[str, bytes]:
    """The files that a wheel brings beside its modules: path in the clone, content."""
    files = [path for folder in init.FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(ROOT)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of an environment with the wheel, and with what else is installed here but for this clone.

    Python does not read the ``.pth`` files of a folder that it borrows.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (site,) = (folder / "lib").glob("python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("-packages") and Path(path).is_dir()]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(wheel)]
    subprocess.run([*command, "--force-reinstall"], check=True, timeout=300)
    return python.parent


def test_wheel_brings_recipes_and_entries(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = "llamafactory_ext/share/"
        found = {name: archive.read(name) for name in archive.namelist() if name.startswith(inside)}
    assert {name.removeprefix(inside): content for name, content in found.items()} == shipped() != {}


def test_from_init_to_a_trained_demo_without_the_clone(programs: Path, tmp_path: Path) -> None:
    python, command, cli = programs / "python", programs / "llamafactory-ext", upstream.script("llamafactory-cli")

    def run(*arguments: str | Path) -> str:
        done = upstream.run(arguments, tmp_path, OMP_NUM_THREADS="1")
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return done.stdout

    # PyYAML, where a folder yaml/ without __init__.py lies in front of it on the path, and the package of the wheel.
    run(command, "init")
    where = "import yaml, llamafactory_ext; yaml.safe_load('a: 1'); print(llamafactory_ext.__file__)"
    assert run(python, "-c", where).startswith(str(programs.parent))
    assert run(python, "-m", "llamafactory_ext", "init").endswith(": 0\n")
    assert run(command, "demo").endswith("Wrote demo/mini and demo/plant.\n")
    assert (tmp_path / "demo" / "mini" / "model.safetensors").read_bytes() == (MINI / "model.safetensors").read_bytes()
    run(command, "demo", "--tiny")
    run(python, cli, "train", "yaml/cpu_demo.yaml", "max_steps=2", "per_device_train_batch_size=2", "save_steps=2")
    state = json.loads((tmp_path / "saves" / "demo" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert (tmp_path / "saves" / "demo" / "model.safetensors").is_file()


# --- init, in this process ---


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_init(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["llamafactory-ext init", *arguments])
    return init.main()


def test_init_leaves_what_differs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_init(monkeypatch, "plant") == 0
    assert files_of(tmp_path / "plant") == shipped()

    mine, gone = tmp_path / "plant/yaml/chat.yaml", tmp_path / "plant/dataset_info/dataset_info.json"
    mine.write_text("template: chatts\n")
    gone.unlink()
    (mine.parent / "own.yaml").write_text("a: 1\n")
    capsys.readouterr()
    assert run_init(monkeypatch, "plant") == 1
    said = capsys.readouterr()
    assert said.out.endswith(": 1\n")
    assert [line for line in said.err.splitlines() if "differs" in line] == [
        "plant/yaml/chat.yaml differs from what came with the package and was left as it is"
    ]
    assert mine.read_text() == "template: chatts\n" and gone.is_file()

    assert run_init(monkeypatch, "plant", "--force") == 0
    assert files_of(tmp_path / "plant") == shipped() | {"yaml/own.yaml": b"a: 1\n"}


def test_init_into_a_file_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "yaml").touch()
    assert run_init(monkeypatch, str(tmp_path)) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_recipe_of_this_folder_goes_before_the_shipped_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipes.recipe("chat.yaml") == ROOT / "yaml" / "chat.yaml"
    run_init(monkeypatch)
    assert recipes.recipe("chat.yaml") == tmp_path / "yaml" / "chat.yaml"


def test_every_command_has_a_module_and_every_module_a_command() -> None:
    modules = {path.stem.rstrip("_") for path in Path(init.__file__).parent.glob("*.py")} - {
        "__init",
        "terminal",
        "scores",
        "recipes",
    }
    assert modules == set(COMMANDS)
