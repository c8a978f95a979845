"""Where the recipes lie that came with the package."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path


def recipe(name: str) -> Path:
    """Returns the path of a recipe: in this folder's ``yaml/``, in the clone, or as the wheel has installed it."""
    here, clone = Path("yaml", name), Path(__file__).parents[3] / "yaml" / name
    found = next((path.absolute() for path in (here, clone) if path.is_file()), None)
    return found or next((path for path in installed("yaml") if path.name == name), here)


def installed(folder: str) -> list[Path]:
    """Returns the files of ``yaml`` or ``dataset_info`` that the wheel has installed; none for a clone."""
    try:
        shipped = files("llamafactory-ext") or []
    except PackageNotFoundError:
        return []
    return [Path(str(one.locate())) for one in shipped if f"share/llamafactory_ext/{folder}/" in one.as_posix()]
