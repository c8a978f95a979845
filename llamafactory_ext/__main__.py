"""``python -m llamafactory_ext``: what is active here. Exit status 1 if something is wrong."""

import importlib
import importlib.metadata
import sys

from llamafactory_ext import __version__, register
from llamafactory_ext.autoload import enabled


_PACKAGES = ("llamafactory", "torch", "transformers", "peft", "bitsandbytes", "deepspeed", "datasets", "pandas")


def main() -> int:
    """Prints versions, seams and their state, template, formats and the off switch."""
    print(f"llamafactory_ext {__version__}, Python {sys.version.split()[0]}")
    for name in _PACKAGES:
        checked = register.CHECKED.get(name)
        print(f"  {name:14} {_version(name)}" + (f"  (checked with {', '.join(checked)})" if checked else ""))
    if not enabled():
        print("Switched off: LLAMAFACTORY_EXT=0 is set. LLaMA-Factory runs as if this package were not installed.")
        return 0
    try:
        converter, template = _load()
    except Exception as err:  # whatever an install can have wrong, it is told here
        print(f"LLaMA-Factory can't be imported: {type(err).__name__}: {err}")
        print('Install it with the versions that fit together: pip install "llamafactory-ext[train]"')
        return 1
    print("Where it meets LLaMA-Factory:")
    for seam in register.SEAMS:
        kind = "public" if seam.public else "seam"
        print(f"  {kind:7} {seam.target.removeprefix('llamafactory.'):48} {register.states()[seam.target]}")
    formats = [name for name in ("gdsh", "chatts") if name in converter.DATASET_CONVERTERS]
    print(f"Data formats: {', '.join(formats) or 'none'}. Template: {'chatts' if 'chatts' in template.TEMPLATES else 'none'}.")
    print("Autoload: " + ("in place." if "llamafactory_ext.autoload" in sys.modules else "missing."))
    print("Off switch: LLAMAFACTORY_EXT=0.")
    for target, why in register.failures().items():
        print(f"WRONG {target}: {why}")
    return 1 if register.failures() or len(formats) < 2 or "chatts" not in template.TEMPLATES else 0


def _load() -> tuple[object, ...]:
    for module in dict.fromkeys(seam.module for seam in register.SEAMS):
        importlib.import_module(module)
    return tuple(sys.modules[f"llamafactory.data.{name}"] for name in ("converter", "template"))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
