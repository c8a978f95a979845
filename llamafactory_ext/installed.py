"""What is installed here: versions, those that were checked, and whether LLaMA-Factory is the fork."""

import importlib.metadata
import sys
from pathlib import Path

from llamafactory_ext import __version__


CHECKED = {"llamafactory": ("0.9.4", "0.9.5"), "transformers": ("4.57.6", "5.6.0"), "peft": ("0.17.1", "0.18.1")}


def version(distribution: str) -> str:
    """Returns the installed version of a package, or says that there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def versions() -> str:
    """Returns the versions that an error must name."""
    return f"llamafactory_ext {__version__} with llamafactory {version('llamafactory')}"


def on_fork() -> bool:
    """True on the fork that reads time series by itself (ChatTS-Training): a module for their encoder is its sign."""
    path = getattr(sys.modules.get("llamafactory"), "__file__", None)
    return path is not None and Path(path).with_name("model").joinpath("model_utils", "timeseries.py").is_file()
