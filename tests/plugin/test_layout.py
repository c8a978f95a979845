"""Who imports whom, read from the source: downwards only, and what runs in other people's installs stays small."""

import ast
import importlib
import json
import pkgutil
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Gdsh

import llamafactory_ext


PACKAGE = ROOT / "llamafactory_ext"
# From the lowest to the highest. What stands in one line does not import one another.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "series"),
    ("files",),
    ("gdsh",),
    ("plugin",),
    ("model",),
    ("data",),
    ("training", "serving"),
    ("vllm",),  # reads what a request names as the API does, without LLaMA-Factory
    ("autoload",),
    ("toolbox.session",),
    ("toolbox.pages",),
    ("toolbox.importing", "toolbox.prepare", "toolbox.check", "toolbox.plan", "toolbox.evaluate", "toolbox.grafting"),
    ("toolbox.detect",),
    ("toolbox.demo",),
    ("toolbox.cli",),
    ("__main__",),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, Path]:
    """Every module of the package by its name, without the package's own in front."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yields the package's modules that a module imports, inside functions too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names if alias.name.split(".")[0] == "llamafactory_ext"]
            targets = [target.partition(".")[2] for target in targets]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            elif (node.module or "").split(".")[0] == "llamafactory_ext":
                base = (node.module or "").partition(".")[2]
            else:
                continue
            beneath = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
            targets = [one if one in known else base for one in beneath]
        else:
            continue
        yield from (target for target in targets if target and target != name)


def layer(module: str) -> str:
    first, second = ([*module.split("."), ""])[:2]
    return f"{first}.{second}" if first == "toolbox" and second else first


KNOWN = modules()
IMPORTS = {name: sorted(set(imports(name, path, KNOWN))) for name, path in KNOWN.items()}


def test_every_part_has_its_place() -> None:
    assert {layer(name) for name in KNOWN} - {"", "toolbox"} <= set(HEIGHT)


def test_imports_lead_downwards_only() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, targets in IMPORTS.items()
        for target in targets
        if layer(name) != layer(target) and name and HEIGHT[layer(target)] >= HEIGHT[layer(name)]
    ]
    assert wrong == []


def test_what_runs_in_other_installs_does_not_know_the_toolbox() -> None:
    low = [name for name in KNOWN if layer(name) not in ("toolbox", "__main__") and not name.startswith("toolbox.")]
    assert not [(name, target) for name in low for target in IMPORTS[name] if target.startswith("toolbox")]


def test_vllm_needs_little() -> None:
    """It runs where LLaMA-Factory is not installed."""
    used = {target for name in KNOWN if layer(name) == "vllm" for target in IMPORTS[name] if layer(target) != "vllm"}
    assert {layer(target) for target in used} <= {"errors", "series", "model", "serving"}
    assert {target for target in used if layer(target) == "serving"} <= {"serving.sources"}
    below = [target for target in IMPORTS["serving.sources"] if layer(target) not in ("errors", "series", "gdsh")]
    assert not below and not IMPORTS["serving"]


def test_no_import_runs_in_a_circle() -> None:
    """A package's ``__init__`` may import its modules, which are allowed to import one another."""
    graph = {name: targets for name, targets in IMPORTS.items() if KNOWN[name].name != "__init__.py"}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as circle:
        raise AssertionError(" → ".join(circle.args[1])) from None


def test_few_modules_lie_flat() -> None:
    flat = [one.name for one in pkgutil.iter_modules([str(PACKAGE)]) if not one.ispkg]
    assert len(flat) + 1 <= 7, flat  # and __init__


def test_the_reading_of_imports_sees_them_all(tmp_path: Path) -> None:
    source = "from . import b\nfrom .c import d\nfrom ..files import x\ndef f():\n    import llamafactory_ext.series\n"
    (tmp_path / "a.py").write_text(source + "    from llamafactory_ext import errors\nimport os\n")
    known = dict.fromkeys(("p.a", "p.b", "p.c", "files", "series", "errors"), tmp_path)
    assert sorted(imports("p.a", tmp_path / "a.py", known)) == ["errors", "files", "p.b", "p.c", "series"]


# --- a format is one file, and a word in the list ---

TOY = '''
"""Format ``toy``: a line a record, ``question|answer|numbers``."""

import json

from llamafactory_ext.data.formats.format import Format
from llamafactory_ext.series import MARKER, as_series


def lines(attr, source, folder):
    for line in source.read_text("utf-8").splitlines():
        ask, answer, numbers = line.split("|")
        yield json.dumps({"ask": ask, "answer": answer, "series": [float(one) for one in numbers.split()]})


def read(record, attr, notes):
    return {**record, "ask": MARKER + record["ask"]}, [as_series(record["series"])]


FORMAT = Format(
    name="toy",
    upstream="alpaca",
    columns={"prompt": "ask", "response": "answer", "timeseries": "series"},
    check_entry=lambda entry, name: None,
    lines=lines,
    read=read,
    check=lambda converted, record, attr, series: None,
)
'''


def test_a_format_is_one_file_and_one_word(
    gdsh: Gdsh, tokenise: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory.data import converter as upstream

    from llamafactory_ext.data import converter, formats
    from llamafactory_ext.toolbox.session import recipe

    (tmp_path / "toy_format.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(formats.FORMATS, "toy", importlib.import_module("toy_format").FORMAT)
    monkeypatch.setattr(upstream, "DATASET_CONVERTERS", dict(upstream.DATASET_CONVERTERS))
    assert converter.install(upstream) == "registered toy"
    (gdsh.folder / "toy.txt").write_text("what?|nothing|1 2 3 4\nand here?|this|5 6 9\n")
    (gdsh.folder / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "toy.txt", "formatting": "toy"}}))
    rows = tokenise(gdsh.folder)["train_dataset"]
    assert [row["audios"] for row in rows] == [[[1, 2, 3, 4]], [[5, 6, 9]]]
    assert list(recipe._entries("a", str(gdsh.folder))) == ["a"]  # what `check` takes
    sys.modules.pop("toy_format")


def test_a_format_is_known_by_its_files_name() -> None:
    """Before anything of it is imported: whether a run needs the plugin is asked in every process."""
    from llamafactory_ext.data.formats import FORMATS
    from llamafactory_ext.plugin.relevance import format_names

    assert format_names() == sorted(FORMATS)


def test_the_package_is_this_one() -> None:
    assert Path(llamafactory_ext.__file__).parent == PACKAGE


def test_the_model_is_imported_where_vllm_is() -> None:
    """There, beside LLaMA-Factory, accelerate and PEFT are missing; functions may import more."""
    found = set()
    for name, path in KNOWN.items():
        if layer(name) in ("model", "vllm", "series"):
            for node in ast.parse(path.read_text("utf-8")).body:
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add((node.module or "").split(".")[0])
    beside = {"torch", "transformers", "numpy", "pyarrow", "pandas", "safetensors", "vllm"}
    assert found - set(sys.stdlib_module_names) - beside - {"llamafactory_ext"} == set()
