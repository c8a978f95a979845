"""Waits for LLaMA-Factory and then switches the plugin on.

Imported by ``llamafactory_ext.pth`` at every start of Python, so it costs next to nothing (standard library only, and
only modules that Python has loaded by then) and does nothing in a program that never imports LLaMA-Factory.
``LLAMAFACTORY_EXT=0`` in the environment switches it off.

A ``.pth`` file rather than an entry point, because LLaMA-Factory looks for none, and starts its own ``launcher.py``
under torchrun, where a wrapper command would not be loaded.
"""

import os
import sys


class LlamaFactoryWaiter:
    """Meta path finder that finds nothing: it only notices when ``llamafactory`` is about to be imported."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        if name == "llamafactory":
            cls.switch_on()

    @classmethod
    def switch_on(cls) -> None:
        if cls in sys.meta_path:
            sys.meta_path.remove(cls)
        from llamafactory_ext import register

        register.activate()


def enabled() -> bool:
    """True unless the environment switches the plugin off."""
    return os.environ.get("LLAMAFACTORY_EXT", "1") != "0"


def watch() -> None:
    """Waits for LLaMA-Factory; switches on at once where it is imported already. Safe to call again."""
    if not enabled() or LlamaFactoryWaiter in sys.meta_path:
        return
    if "llamafactory" in sys.modules:
        LlamaFactoryWaiter.switch_on()
    elif "llamafactory_ext.register" not in sys.modules:
        sys.meta_path.insert(0, LlamaFactoryWaiter)


watch()
