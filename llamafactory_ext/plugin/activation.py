"""Puts the seams in place as their modules are imported, and stops a run that needs one which does not fit.

A seam is put in place when its module has been imported, at once where it was before. One that does not fit, whatever
the reason, does not stop a run that has no use for it; a run that has stops with the seam's name and both versions.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from types import ModuleType

from llamafactory_ext.plugin.after_import import AfterImport, is_gone, is_importing
from llamafactory_ext.plugin.seams import SEAMS, Seam
from llamafactory_ext.plugin.versions import CHECKED, on_fork, too_old, versions


OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"

WAITING = "waiting for its module"
_UNDER_WAY = "being put in place"

_states: dict[str, str] = {}
_failures: dict[str, str] = {}


class SeamError(RuntimeError):
    """LLaMA-Factory does not have a seam as it is expected."""


def activate() -> AfterImport:
    """Puts every seam in place: now for modules that are imported, else right after their import. Idempotent.

    Raises:
        SeamError: a seam can't be put in place, or the versions are too old, and the command line tells that this run
            needs the plugin.
    """
    old = too_old()
    if old and _is_needed():
        raise SeamError(old)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
        prepare_restarts()
    _install_waiting()
    for seam in SEAMS:
        if seam.target not in _states and seam.module not in sys.modules and is_gone(seam.module):
            _fail(seam, f"there is no module {seam.module}")
    return _finder


def prepare_restarts() -> None:
    """Lets torchrun start a run of ours again (``RDZV_ID=…`` and ``MAX_RESTARTS=…``): each start has its own store.

    By default they share torchrun's, where the addresses of those before are still to be found: the new ones wait for
    the dead, gloo for ever (pytorch issue 135712, where this setting is named). Checked on torch 2.11.
    """
    if "RDZV_ID" in os.environ and _is_needed():
        os.environ.setdefault(OWN_STORE, "1")


def states() -> dict[str, str]:
    """Returns the state of each seam by its target."""
    return {seam.target: _states.get(seam.target, WAITING) for seam in SEAMS}


def failures() -> dict[str, str]:
    """Returns what is wrong, by target; empty where everything fits."""
    return dict(_failures)


def require() -> None:
    """Called wherever a run turns out to need the plugin.

    Raises:
        SeamError: a seam could not be put in place.
    """
    if _failures:
        raise SeamError(_message())


def _message() -> str:
    lines = [f"  {target}: {why}" for target, why in _failures.items()]
    known = " or ".join(CHECKED["llamafactory"])
    return (
        f"{versions()}: LLaMA-Factory is not as this plugin expects it.\n"
        + "\n".join(lines)
        + f"\nInstall llamafactory {known}, or a llamafactory_ext made for this version. "
        "LLAMAFACTORY_EXT=0 switches the plugin off."
    )


def _install_waiting() -> None:
    for seam in SEAMS:
        if seam.module in sys.modules and not is_importing(sys.modules[seam.module]):
            _install(seam)


def _install(seam: Seam) -> None:
    if seam.target in _states or any(_is_half_imported(other) for other in SEAMS):
        return
    if on_fork() and not seam.on_fork:
        _states[seam.target] = "left alone: the fork has its own"
        return
    upstream = sys.modules[seam.module]
    misfit = _misfit(seam, upstream)
    if misfit:
        _fail(seam, misfit)
        return
    _states[seam.target] = _UNDER_WAY  # installing may import modules that have seams themselves
    try:
        installer: Callable[[ModuleType], str | None] = getattr(
            importlib.import_module(seam.own_module), seam.installer.partition(":")[2]
        )
        _states[seam.target] = installer(upstream) or "left alone: LLaMA-Factory has it already"
    except SeamError:
        raise
    except Exception as err:  # an unknown version can differ in any way, and must not stop a run that needs nothing
        _fail(seam, f"{seam.installer} failed: {type(err).__name__}: {err}", err)


def _fail(seam: Seam, why: str, cause: Exception | None = None) -> None:
    _states[seam.target] = f"missing: {why}"
    _failures[seam.target] = why
    if _is_needed():
        raise SeamError(_message()) from cause


def _is_needed() -> bool:
    try:
        from llamafactory_ext.plugin.relevance import run_needs_plugin
    except ImportError:  # no PyYAML, or half an installation: :func:`require` is asked later on
        return False
    return run_needs_plugin(sys.argv)


def _misfit(seam: Seam, module: ModuleType) -> str | None:
    target: object = module
    for name in seam.attribute.split("."):
        if not hasattr(target, name):
            return f"`{seam.attribute}` is gone from {seam.module}"
        target = getattr(target, name)
    if seam.parameters and callable(target):
        found = tuple(inspect.signature(target).parameters)
        if found[: len(seam.parameters)] != seam.parameters:
            return f"takes ({', '.join(found)}), expected ({', '.join(seam.parameters)}, …)"
    return None


def _is_half_imported(seam: Seam) -> bool:
    """True where our module was imported first and is just importing upstream's: all seams wait until it has run."""
    own = sys.modules.get(seam.own_module)
    return own is not None and seam.target not in _states and not hasattr(own, seam.installer.partition(":")[2])


def _has_waiting_seam(module: str) -> bool:
    return any(module in (seam.module, seam.own_module) and seam.target not in _states for seam in SEAMS)


def _after_import(module: ModuleType) -> None:
    for seam in SEAMS:
        if seam.module == module.__name__:  # counts as being imported until this returns
            _install(seam)
    if _UNDER_WAY not in _states.values():  # else the seam that imports this module comes first, then the others
        _install_waiting()


_finder = AfterImport(_has_waiting_seam, _after_import)
