"""What torchrun is given: whole arguments, or one line that says what holds a blank, before anything starts."""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_ext.plugin import launching


Launch = Callable[..., Any]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Returns the recipe that a launcher with such arguments starts torchrun with, None where there is none."""
    monkeypatch.setattr(launching, "_starts_torchrun", lambda: True)
    monkeypatch.setattr(launching, "run_needs_plugin", lambda arguments: True)

    def run(*arguments: str, file: str = "/opt/launcher.py") -> Any:
        seen: list[Any] = []

        def upstream_launch() -> None:
            assert not any(launching._has_blank(one) for one in sys.argv[2:])
            seen.append(json.loads(Path(sys.argv[2]).read_text("utf-8")) if len(sys.argv) == 3 else None)

        upstream = SimpleNamespace(launch=upstream_launch, __file__=file)
        launching.install(upstream)
        monkeypatch.setattr(sys, "argv", ["llamafactory-cli", "train", *arguments])
        upstream.launch()
        return seen[0]

    return run


def test_a_recipe_in_a_folder_with_a_blank_is_merged_into_one_without(launch: Launch, tmp_path: Path) -> None:
    recipe = tmp_path / "my recipe.yaml"
    recipe.write_text("output_dir: a b\nmax_steps: 4\nlearning_rate: 1.0e-4\n", "utf-8")
    found = launch(str(recipe), "max_steps=9", "dataset_dir=数据 a")
    assert found == {"output_dir": "a b", "max_steps": 9, "learning_rate": 1e-4, "dataset_dir": "数据 a"}


def test_arguments_without_a_recipe_name_the_one_with_a_blank(launch: Launch) -> None:
    with pytest.raises(SystemExit, match=r"there is a blank in 'a b'; write the arguments to a recipe \(YAML\)\.$"):
        launch("--output_dir", "a b")
    assert launch("--output_dir", "ab") is None


def test_a_folder_for_temporary_files_with_a_blank(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t m p").mkdir()
    (tmp_path / "a b.yaml").write_text("max_steps: 4\n", "utf-8")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t m p"))
    with pytest.raises(SystemExit, match=r"there is a blank in .*t m p.*; set TMPDIR to another folder\.$"):
        launch(str(tmp_path / "a b.yaml"))
    assert not list((tmp_path / "t m p").iterdir())


def test_an_installation_in_a_folder_with_a_blank(launch: Launch) -> None:
    with pytest.raises(SystemExit, match=r"there is a blank in /my env/launcher\.py; install it elsewhere\.$"):
        launch("recipe.yaml", file="/my env/launcher.py")
