"""README and docs stay true: the tree, the tables, the links, the files named, and every command line."""

import argparse
import re
import shlex
import sys
from collections.abc import Callable
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from llamafactory_ext.__main__ import COMMANDS


README = (ROOT / "README.md").read_text(encoding="utf-8")
OTHERS = ("README.zh.md", "CONTRIBUTING.md", "dataset_info/README.md", "tools/README.md", "tests/README.md")
PAGES = ("README.md", *OTHERS, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def tree() -> list[str]:
    """Paths of the file tree in the README."""
    block = next(part for part in README.split("```") if part.lstrip("\n").startswith("llamafactory_ext/\n"))
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


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 220


def test_every_recipe_is_in_both_tables() -> None:
    for recipe in (ROOT / "yaml").glob("*.yaml"):
        for name in ("README.md", "README.zh.md"):
            assert f"`{recipe.name}`" in read(name), (name, recipe.name)


def test_own_keys_are_explained() -> None:
    pytest.importorskip("llamafactory", reason="the keys are fields of LLaMA-Factory's arguments")
    from llamafactory_ext.plugin.relevance import OWN_KEYS

    for key in OWN_KEYS:
        assert f"| `{key}` |" in README


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for link, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", read(name)):
        target = ROOT / name if not link else (ROOT / name).parent / link
        assert link.startswith("https://") or target.exists(), link
        assert not anchor or anchor in anchors(target.read_text("utf-8")), (link, anchor)


def test_every_page_is_linked() -> None:
    for path in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{path.name}" in README, path.name


# --- commands ---

START = r"(?:[A-Z_]+=\S* )*(?:llamafactory-|python |make |pip )"


def blocks(name: str) -> list[tuple[str, ...]]:
    """The words of every command line in a page's code blocks, without comments."""
    found = "".join(re.findall(r"```bash\n(.*?)```", read(name), re.DOTALL)).replace("\\\n", " ")
    return [tuple(shlex.split(line, comments=True)) for line in found.splitlines() if re.match(START, line)]


def mentions(name: str) -> list[tuple[str, ...]]:
    """The same for those in a page's text; they may be cut short."""
    text = re.sub(r"```.*?```", "", read(name), flags=re.DOTALL)
    return [tuple(words.split()) for words in re.findall(r"`([^`\n]+)`", text) if re.match(START, words)]


def ours(found: Callable[[str], list[tuple[str, ...]]]) -> list[tuple[str, ...]]:
    every = dict.fromkeys(words[1:] for name in PAGES for words in found(name) if words[0] == "llamafactory-ext")
    return [words for words in every if words and words[0] not in ("--help", "COMMAND")]


class Parsed(Exception):
    """A command line was understood; nothing is run."""


def parse(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], whole: bool) -> None:
    def stand_in(usual: Callable[..., Any]) -> Callable[..., None]:
        def parse_args(parser: argparse.ArgumentParser, given: Any = None) -> None:
            assert {word for word in words if word.startswith("--")} <= {*parser._option_string_actions}
            if whole:
                usual(parser, given)
            raise Parsed

        return parse_args

    for name in ("parse_args", "parse_intermixed_args"):
        usual = getattr(argparse.ArgumentParser, name)
        monkeypatch.setattr(argparse.ArgumentParser, name, stand_in(usual))
    monkeypatch.setattr(sys, "argv", [f"llamafactory-ext {words[0]}", *words[1:]])
    module = f"{words[0]}_" if iskeyword(words[0]) else words[0]
    with pytest.raises(Parsed):
        import_module(f"llamafactory_ext.toolbox.cli.{module}").main()


def test_every_command_is_shown() -> None:
    assert {words[0] for words in ours(blocks) + ours(mentions)} == set(COMMANDS)


@pytest.mark.parametrize("words", ours(blocks), ids=" ".join)
def test_command_lines_parse(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    parse(monkeypatch, words, whole=True)


@pytest.mark.parametrize("words", ours(mentions), ids=" ".join)
def test_commands_in_the_text_have_their_options(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    parse(monkeypatch, words, whole=False)


@pytest.mark.parametrize("name", [name for name in PAGES if name != "tests/README.md"])  # it names upstream's as well
def test_named_files_exist(name: str) -> None:
    """Recipes, tools and tests that command lines name, and modules and folders in the text."""
    words = {word for command in blocks(name) + mentions(name) for word in command}
    words |= set(re.findall(r"`([\w./-]+)`", read(name)))
    for word in words:
        known = re.match(r"(yaml|tools|tests|docs|llamafactory_ext|dataset_info|plugin|toolbox)/", word)
        if known and "NAME" not in word:
            assert any((ROOT / within / word).exists() for within in ("", "llamafactory_ext", "tests")), word


def test_every_command_stands_in_one_place() -> None:
    """In code blocks of the English pages; the Chinese one follows the README."""
    lines = [" ".join(words) for name in PAGES if name != "README.zh.md" for words in blocks(name)]
    assert [line for line in set(lines) if lines.count(line) > 1] == []


def test_folder_yaml_does_not_hide_the_package() -> None:
    """Python prefers PyYAML over the folder of the same name only as long as the folder is no package."""
    assert not (ROOT / "yaml" / "__init__.py").exists()
    assert yaml.safe_load("a: 1") == {"a": 1}
