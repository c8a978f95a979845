"""Writes the demo without a download: mini, which reads series, and a plant for it; or a pair with random weights."""

import shutil
from pathlib import Path

from llamafactory_ext.toolbox.demo import data
from llamafactory_ext.toolbox.demo.folder import fresh_folder, refuse_foreign
from llamafactory_ext.toolbox.demo.model import Family, write_model
from llamafactory_ext.toolbox.demo.plant import write_plant


MINI = Path(__file__).with_name("mini")
"""The model that came with the package; how it was made stands in its README.md."""


def write_mini(path: Path) -> None:
    """Copy mini to the folder `path`; raise ForeignFolderError if that exists and was not made by the demo."""
    with fresh_folder(path) as folder:
        shutil.copytree(MINI, folder, dirs_exist_ok=True)


def write_demo(path: Path, seed: int = 0) -> None:
    """Write `path`/mini and `path`/plant; raise ForeignFolderError if one of them is somebody else's."""
    for part in ("mini", "plant"):
        refuse_foreign(path / part)
    write_mini(path / "mini")
    write_plant(path / "plant", seed)


def write_tiny_demo(path: Path, seed: int = 0, family: Family = "qwen2") -> None:
    """Write `path`/model, of random weights, and `path`/data, every habit of the field's files, in the same way."""
    for part in ("data", "model"):
        refuse_foreign(path / part)
    write_model(path / "model", seed, family)
    data.write_data(path / "data", seed)
