"""What is installed here: versions, those that were checked, and whether LLaMA-Factory is the fork."""

import importlib.machinery
import importlib.metadata
import sys
from pathlib import Path

from llamafactory_ext import __version__


CHECKED = {
    "llamafactory": ("0.9.4", "0.9.5", "0.9.6.dev0"),  # the last one: main at ff6d4d1
    "transformers": ("4.57.1", "4.57.6", "5.5.4", "5.6.0", "5.8.0"),
    "torch": ("2.11.0",),
    "peft": ("0.17.1", "0.18.1", "0.20.0"),
}

# The oldest that the tests pass with.
OLDEST = {"llamafactory": "0.9.4", "transformers": "4.57.1"}
NOT_INSTALLED = "(not installed)"


def version(distribution: str) -> str:
    """Returns the installed version of a package, or says that there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED


def versions() -> str:
    """Returns the versions that an error must name."""
    both = f"llamafactory {version('llamafactory')} and transformers {version('transformers')}"
    return f"llamafactory_ext {__version__} with {both}"


def too_old() -> str | None:
    """Says in one line which versions are too old to work with; None where they may do, and on the fork."""
    found = {name: version(name) for name in OLDEST}
    if NOT_INSTALLED in found.values():  # a checkout on PYTHONPATH has no version
        return None
    from packaging.version import Version  # comes with them, not with this package

    old = [name for name in found if Version(found[name]).release < Version(OLDEST[name]).release]
    if not old or on_fork():
        return None
    both = " with ".join(f"{name} {found[name]}" for name in found)
    wanted = " and ".join(f"{name} {OLDEST[name]} or newer" for name in old)
    return f"{both} is not supported: llamafactory_ext {__version__} wants {wanted}. LLAMAFACTORY_EXT=0 switches off."


def on_fork() -> bool:
    """True on the fork that reads time series by itself (ChatTS-Training): a module for their encoder is its sign."""
    spec = importlib.machinery.PathFinder.find_spec("llamafactory")  # where it is not imported yet
    path: str | None = getattr(sys.modules.get("llamafactory"), "__file__", spec.origin if spec else None)
    return path is not None and Path(path).with_name("model").joinpath("model_utils", "timeseries.py").is_file()
