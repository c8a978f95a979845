"""The README stays true: its tree, its tables, its links and its commands."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT


README = (ROOT / "README.md").read_text(encoding="utf-8")


def tree() -> list[str]:
    """Paths of the file tree in the README."""
    block = next(part for part in README.split("```") if part.lstrip("\n").startswith("llamafactory_ext/  "))
    paths, folder = [], ""
    for line in block.strip("\n").splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name
        paths.append(folder + name if line.startswith(" ") else name)
    return paths


def test_tree_names_what_is_there() -> None:
    for path in tree():
        assert (ROOT / path).exists(), path
    shown = {Path(path).name for path in tree() if path.startswith("llamafactory_ext/")}
    modules = {path.name for path in (ROOT / "llamafactory_ext").iterdir() if not path.name.startswith("__")}
    assert modules - {"llamafactory_ext", "py.typed"} <= shown


def test_every_recipe_is_in_both_tables() -> None:
    for recipe in (ROOT / "yaml").glob("*.yaml"):
        for name in ("README.md", "README.zh.md"):
            assert f"`{recipe.name}`" in (ROOT / name).read_text(encoding="utf-8"), (name, recipe.name)


def test_own_keys_are_explained() -> None:
    pytest.importorskip("llamafactory", reason="the keys are fields of LLaMA-Factory's arguments")
    from llamafactory_ext.plugin.relevance import OWN_KEYS

    for key in OWN_KEYS:
        assert f"| `{key}` |" in README


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "CONTRIBUTING.md", "dataset_info/README.md"])
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (ROOT / name).parent.joinpath(link).exists(), link


def test_folder_yaml_does_not_hide_the_package() -> None:
    """Python prefers PyYAML over the folder of the same name only as long as the folder is no package."""
    assert not (ROOT / "yaml" / "__init__.py").exists()
    assert yaml.safe_load("a: 1") == {"a": 1}
