"""Calls back when certain modules have been imported, and looks for modules without importing them.

Knows nothing of LLaMA-Factory. Modules are found and run as usual; only their loader is wrapped while they run.
"""

import importlib.abc
import importlib.machinery
from collections.abc import Callable, Sequence
from types import ModuleType


class AfterImport(importlib.abc.MetaPathFinder):
    """Meta path finder that calls back with each module in question, right after the module's code has run.

    Arguments:
        wanted: tells from a module's name whether it is in question.
        callback: is given the module, which counts as being imported until it returns.
    """

    def __init__(self, wanted: Callable[[str], bool], callback: Callable[[ModuleType], None]) -> None:
        self._wanted = wanted
        self._callback = callback

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not self._wanted(name):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _CallingLoader(spec.loader, self._callback)
        return spec


class _CallingLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, callback: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._callback = callback

    def __getattr__(self, name: str) -> object:  # get_source, get_filename …, for tracebacks and inspect
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self._loader  # type: ignore[union-attr]
        self._loader.exec_module(module)
        self._callback(module)


def is_importing(module: ModuleType) -> bool:
    """True while a module's code is running for the first time."""
    return bool(getattr(module.__spec__, "_initializing", False))


def is_gone(module: str) -> bool:
    """True where a package is installed without this module of it. Nothing is imported to find out."""
    path: Sequence[str] | None = None
    names = module.split(".")
    for depth in range(1, len(names) + 1):
        spec = importlib.machinery.PathFinder.find_spec(".".join(names[:depth]), path)
        if spec is None:
            return depth > 1  # a package that is not installed at all lacks nothing
        path = spec.submodule_search_locations or []
    return False
