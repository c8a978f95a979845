"""Waits for LLaMA-Factory and then switches the plugin on.

Imported by ``llamafactory_ext.pth`` at every start of Python, so it costs next to nothing (standard library only, and
only modules that Python has loaded by then) and does nothing in a program that never imports LLaMA-Factory.
``LLAMAFACTORY_EXT=0`` in the environment switches it off. The ``.pth`` file catches what goes wrong here and says so
in one line, once, though a virtual environment's files are read twice: half an installation stops no program.

A ``.pth`` file rather than an entry point, because LLaMA-Factory looks for none, and starts its own ``launcher.py``
under torchrun, where a wrapper command would not be loaded.
"""

import os
import sys


TYPE_CHECKING = False  # as in typing, which costs too much to import here
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import MetaPathFinder
    from types import ModuleType
    from typing import Any


class LlamaFactoryWaiter:
    """Meta path finder that only notices when ``llamafactory`` is about to be imported.

    Or one of our own modules that import LLaMA-Factory in turn: a worker process that unpickles a converter starts
    with ours.
    """

    homes = tuple(f"llamafactory_ext.{name}" for name in ("data.converter", "data.template", "training", "serving"))

    @classmethod
    def find_spec(cls, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None) -> "Any":
        if name == "llamafactory" or name.startswith(cls.homes):
            finder = cls.switch_on()
            return finder and finder.find_spec(name, path, target)
        return None

    @classmethod
    def switch_on(cls) -> "MetaPathFinder | None":
        if cls in sys.meta_path:
            sys.meta_path.remove(cls)
        try:
            from llamafactory_ext.plugin import activation
        except Exception as why:  # half an installation: LLaMA-Factory itself will say that it knows no `chatts`
            if sys.stderr:
                sys.stderr.write(f"llamafactory_ext can't be loaded and stays off, {why!r}. Install it again\n")
            return None
        return activation.activate()


def enabled() -> bool:
    """True unless the environment switches the plugin off."""
    return os.environ.get("LLAMAFACTORY_EXT", "1") != "0"


def watch() -> None:
    """Waits for LLaMA-Factory; switches on at once where it is imported already. Safe to call again."""
    if not enabled() or LlamaFactoryWaiter in sys.meta_path:
        return
    if "llamafactory" in sys.modules:
        LlamaFactoryWaiter.switch_on()
    elif "llamafactory_ext.plugin.activation" not in sys.modules:
        sys.meta_path.insert(0, LlamaFactoryWaiter)


watch()
