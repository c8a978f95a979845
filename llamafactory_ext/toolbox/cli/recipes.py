"""Where recipes and data set entries lie that came with the package: beside it in a clone, inside it in a wheel."""

from pathlib import Path


_PACKAGE = Path(__file__).parents[2]


def shipped(folder: str) -> Path:
    """Returns the folder ``yaml`` or ``dataset_info`` as it came."""
    inside = _PACKAGE / "share" / folder  # pyproject.toml puts it there
    return inside if inside.is_dir() else _PACKAGE.parent / folder


def recipe(name: str) -> Path:
    """Returns the path of a recipe: in this folder's ``yaml/``, else as it came."""
    here = Path("yaml", name).absolute()
    return here if here.is_file() else shipped("yaml") / name
